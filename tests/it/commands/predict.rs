//! `sconce predict`: files in, the same files with the answers out.

use std::fs;

use serde_json::{Map, Value, json};

use super::{fails, succeeds};
use crate::{
    harness::{
        Server, Store,
        tensors::{Form, Values, doubles, sample_examples},
    },
    proto::*,
};

async fn early_signal() -> Server {
    Server::start(Store::new().sample("early-signal"), &[]).await
}

/// The names of early-signal's features, and `count` rows that all differ. The first is the example's, as every hundredth.
fn rows(count: usize) -> (Vec<String>, Vec<Vec<f64>>) {
    let examples = sample_examples("early-signal", "1.1.0").examples;
    let named = &examples[0].request.rows[0];
    let real: Vec<f64> = named.values().map(|value| value.as_f64().expect("a number")).collect();
    let row = |place: usize| {
        let shift = if place.is_multiple_of(100) { 0.0 } else { place as f64 / count as f64 };
        real.iter().enumerate().map(|(column, value)| value + shift * ((column % 5) as f64 - 2.0)).collect()
    };
    (named.keys().cloned().collect(), (0..count).map(row).collect())
}

fn csv(names: &[String], rows: &[Vec<f64>]) -> String {
    let line = |row: &Vec<f64>| row.iter().map(f64::to_string).collect::<Vec<_>>().join(",");
    let lines: Vec<String> = std::iter::once(names.join(",")).chain(rows.iter().map(line)).collect();
    lines.join("\n") + "\n"
}

/// The same rows in one call, as one raw tensor, in the order of the model's own features.
async fn reference(server: &Server, names: &[String], rows: &[Vec<f64>]) -> Vec<f64> {
    let described = server.describe("early-signal").await;
    let version = described.versions.iter().find(|version| version.version == "1.1.0").expect("a version");
    let features = &version.inputs[0].feature_names;
    let columns: Vec<usize> = features
        .iter()
        .map(|feature| names.iter().position(|name| name == feature).expect("every feature is there"))
        .collect();
    let values: Vec<f64> = rows.iter().flat_map(|row| columns.iter().map(|&column| row[column])).collect();
    let shape = [rows.len() as i64, columns.len() as i64];
    let request = PredictRequest {
        model: "early-signal".into(),
        inputs: vec![doubles("features", &shape, &values).to_sconce(Form::Raw)],
        ..Default::default()
    };
    let answer = server.predict(request).await.expect("an answer");
    Values::of_sconce(&answer.outputs[0]).numbers()
}

#[tokio::test]
async fn a_csv_of_two_thousand_rows_is_scored_in_its_order() {
    let server = early_signal().await;
    let (names, rows) = rows(2_000);
    let file = csv(&names, &rows);
    fs::write(server.store.beside("x.csv"), &file).expect("a file");
    succeeds(&server, &["predict", "early-signal", "--file", "x.csv", "--output", "y.csv"], "");

    let scored = fs::read_to_string(server.store.beside("y.csv")).expect("the output");
    let expected = reference(&server, &names, &rows).await;
    assert_eq!(scored.lines().count(), 2_001);
    for (place, (before, after)) in file.lines().zip(scored.lines()).enumerate() {
        let (kept, last) = after.rsplit_once(',').expect("a column more");
        assert_eq!(kept, before, "line {place}");
        match place {
            0 => assert_eq!(last, "probability"),
            _ => assert_eq!(last.parse(), Ok(expected[place - 1]), "row {place}: every bit of a double"),
        }
    }
    let example = sample_examples("early-signal", "1.1.0").examples[0].response.outputs[0].data[0].as_f64();
    assert!((expected[100] - example.expect("a number")).abs() < 1e-12, "{} {example:?}", expected[100]);
}

#[tokio::test]
async fn json_lines_keep_their_keys_and_go_through_a_pipe() {
    let server = early_signal().await;
    let example = &sample_examples("early-signal", "1.1.0").examples[2];
    let lines: Vec<String> = example.request.rows.iter().map(|row| Value::from(row.clone()).to_string()).collect();
    let arguments = ["predict", "early-signal", "--file", "-", "--batch=2", "--version=1.1.0"];
    let scored = succeeds(&server, &arguments, &lines.join("\n\n"));
    assert_eq!(scored.lines().count(), lines.len(), "{scored}");
    let expected = &example.response.outputs[0].data;
    for ((row, line), expected) in example.request.rows.iter().zip(scored.lines()).zip(expected) {
        let mut scored: Map<String, Value> = serde_json::from_str(line).expect("a JSON object");
        let came = scored.remove("probability").and_then(|value| value.as_f64()).expect("a number");
        assert_eq!(&scored, row);
        assert!((came - expected.as_f64().expect("a number")).abs() < 1e-12, "{came}, expected {expected}");
    }
}

#[tokio::test]
async fn json_lines_of_windows_are_rows_of_a_tensor() {
    let server = Server::start(Store::new().sample("momentum-lstm"), &[]).await;
    let example = &sample_examples("momentum-lstm", "1.0.0").examples[1];
    let input = &example.request.inputs[0];
    let windows = input.data.chunks(input.shape[1..].iter().product());
    let lines: Vec<String> = windows
        .map(|window| {
            let days: Vec<Vec<Value>> = window.chunks(input.shape[2]).map(<[Value]>::to_vec).collect();
            json!({ &input.name: days }).to_string()
        })
        .collect();
    let scored = succeeds(&server, &["predict", "momentum-lstm", "--file", "-"], &lines.join("\n"));
    for (line, expected) in scored.lines().zip(&example.response.outputs[0].data) {
        let came = serde_json::from_str::<Value>(line).expect("JSON")["probability"].as_f64().expect("a number");
        let expected = expected.as_f64().expect("a number");
        assert!((came - expected).abs() <= 1e-6 + 1e-5 * expected, "{came}, expected {expected}");
    }
    assert_eq!(scored.lines().count(), lines.len());
}

#[tokio::test]
async fn a_bad_row_stops_it_and_is_named() {
    let server = early_signal().await;
    let (names, rows) = rows(300);
    let mut lines: Vec<String> = csv(&names, &rows).lines().map(String::from).collect();
    lines[130] = lines[130].replacen(lines[130].split(',').next().unwrap_or_default(), "high", 1);
    fs::write(server.store.beside("x.csv"), lines.join("\n")).expect("a file");
    let arguments = ["predict", "early-signal", "--file=x.csv", "--output=y.csv"];
    let words = ["rows 129 to 192", "INVALID_ARGUMENT (VALUE_MISMATCH)", "beta_60", "128 rows before were scored"];
    fails(&server, &arguments, 1, &words);
    let scored = fs::read_to_string(server.store.beside("y.csv")).expect("the output");
    assert_eq!(scored.lines().count(), 1 + 128, "what was scored before is there");

    fs::write(server.store.beside("x.csv"), "rsi_14,colour\n1,2\n").expect("a file");
    fails(&server, &arguments, 1, &["row 1", "UNKNOWN_FEATURE", "there is no feature 'colour'"]);
    fs::write(server.store.beside("x.csv"), format!("{}\n1,2\n", lines[0])).expect("a file");
    fails(&server, &arguments, 1, &["x.csv", "line: 2"]);
    fails(&server, &["predict", "none", "--file=x.csv", "--server=127.0.0.1:1"], 1, &["127.0.0.1:1", "sconce serve"]);
    fails(&server, &["predict", "early-signal"], 2, &["--file"]);
    fails(&server, &["describe", "none"], 1, &["NOT_FOUND (MODEL_NOT_FOUND)", "early-signal"]);
}

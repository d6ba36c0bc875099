//! `sconce bench`: what it measures of a real server, what it says of it, and how it ends.

use std::{fs, process::Stdio};

use rustix::process::Signal;
use serde_json::Value;

use super::{fails, run, succeeds, text};
use crate::harness::{PATIENCE, Server, Store, eventually, fixture, http, process::kill, sconce};

/// Short enough for a test; no figure of it is looked at.
const SHORT: [&str; 2] = ["--duration=1s", "--warm-up=100ms"];

async fn tiny() -> Server {
    Server::start(Store::new().model("tiny", "1", fixture("onnx/tiny.onnx")), &[]).await
}

fn with<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    [&["bench"], arguments, &SHORT].concat()
}

#[track_caller]
fn measured(server: &Server, arguments: &[&str]) -> Value {
    let said = succeeds(server, &with(&[arguments, &["--json"]].concat()), "");
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
}

#[track_caller]
fn count(load: &Value, key: &str) -> u64 {
    load[key].as_u64().unwrap_or_else(|| panic!("no count '{key}' in {load}"))
}

/// Every call is answered, and the times are in their order.
#[track_caller]
fn assert_answered(load: &Value) {
    assert!(count(load, "sent") > 0, "{load}");
    assert_eq!(count(load, "sent"), count(load, "answered"), "{load}");
    for key in ["failed", "unanswered", "degraded"] {
        assert_eq!(count(load, key), 0, "{load}");
    }
    let times = ["p50", "p90", "p95", "p99", "p99.9", "max"].map(|key| load["latency_us"][key].as_f64());
    assert!(times.iter().all(Option::is_some) && times.is_sorted(), "{load}");
    assert!(load["answered_per_s"].as_f64().is_some_and(|rate| rate > 0.0), "{load}");
}

#[tokio::test]
async fn both_loops_are_measured_through_both_protocols() {
    let server = tiny().await;
    for protocol in ["--protocol=sconce", "--protocol=oip"] {
        let json = measured(&server, &["tiny", protocol, "--concurrency=1,4", "--rows=2"]);
        assert_eq!((json["model"].as_str(), json["version"].as_str()), (Some("tiny"), Some("1.0.0")), "{json}");
        assert_eq!((json["data"].as_str(), json["rows"].as_u64()), (Some("random"), Some(2)), "{json}");
        let loads = json["loads"].as_array().expect("loads");
        assert_eq!(loads.iter().map(|load| count(load, "in_flight")).collect::<Vec<_>>(), [1, 4]);
        loads.iter().for_each(assert_answered);

        let json = measured(&server, &["tiny", protocol, "--rate=200", "--arrivals=poisson", "--threads=2"]);
        let load = &json["loads"][0];
        assert_answered(load);
        assert!((100..300).contains(&(count(load, "sent") + count(load, "unsent"))), "200 in a second: {load}");
        assert_eq!((load["rate_per_s"].as_f64(), count(load, "dropped")), (Some(200.0), 0), "{load}");
        assert!(load["late_us"]["p99"].is_f64() && load["generator_busy"].is_f64(), "{load}");
        let in_server = &load["in_server"];
        match protocol {
            "--protocol=sconce" => assert!(in_server["batch_rows_mean"].as_f64() >= Some(1.0), "{load}"),
            _ => assert!(in_server.is_null(), "that protocol says nothing of times: {load}"),
        }
    }
    server.assert_unharmed().await;
}

#[tokio::test]
async fn people_read_tables_and_are_told_what_was_sent() {
    let server = Server::start(Store::new().sample("early-signal"), &[]).await;
    let store = server.store.path();
    let example = ["early-signal", "--model-store", store.to_str().expect("a path"), "--concurrency=2"];
    let output = run(&server, &with(&example), "");
    let shown = text(&output.stdout);
    for words in ["early-signal 1.1.0 at", "example.json", "LOAD", "P99.9", "2 in flight over 2", "IN THE SERVER"] {
        assert!(shown.contains(words), "'{words}' is not in\n{shown}");
    }
    assert_eq!(text(&output.stderr), "", "no terminal, and nothing to say");

    // Of a file, in whole requests.
    fs::copy(crate::harness::root().join("docs/examples/rows.csv"), server.store.beside("rows.csv")).expect("a copy");
    let json = measured(&server, &["early-signal", "--data=rows.csv", "--concurrency=2", "--rows=2"]);
    assert_eq!(json["data"], "file", "{json}");
    assert_answered(&json["loads"][0]);
    fails(&server, &with(&["early-signal", "--data=rows.csv", "--rows=60000"]), 1, &["rows.csv has", "--rows"]);
    let oip = with(&["early-signal", "--data=rows.csv", "--protocol=oip"]);
    fails(&server, &oip, 1, &["no rows of named features", "--protocol sconce"]);

    // No folder of models in sight.
    let output = run(&server, &with(&["early-signal", "--concurrency=1"]), "");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("random numbers"), "{}", text(&output.stderr));
    fails(&server, &with(&["early-signal", "--example"]), 1, &["--model-store"]);
}

#[tokio::test]
async fn what_cannot_be_measured_is_said_at_once_and_what_fails_is_counted() {
    let server = tiny().await;
    let long = ["bench", "none", "--duration=1h"];
    fails(&server, &long, 1, &["NOT_FOUND (MODEL_NOT_FOUND)", "tiny"]);
    fails(&server, &["bench", "tiny", "--version=7", "--duration=1h"], 1, &["NOT_FOUND"]);
    fails(&server, &["bench", "tiny", "--server=127.0.0.1:1"], 1, &["127.0.0.1:1", "sconce serve"]);
    fails(&server, &["bench", "tiny", "--rate=2000000"], 2, &["at most 1000000"]);

    let hasty = with(&["tiny", "--concurrency=2", "--timeout=1us", "--json"]);
    let output = run(&server, &hasty, "");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("calls failed") && said.contains("--allow-failures"), "{said}");
    let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let load = &json["loads"][0];
    assert_eq!(count(load, "sent"), count(load, "failed") + count(load, "answered"), "{load}");
    let failures = load["failures"].as_array().expect("a list");
    assert!(!failures.is_empty(), "{load}");
    assert!(failures.iter().all(|failed| failed["code"] == "DEADLINE_EXCEEDED"), "{load}");
    assert!(run(&server, &[&hasty[..], &["--allow-failures"]].concat(), "").status.success());
    server.assert_unharmed().await;
}

/// How many calls the server has answered.
async fn answered(server: &Server) -> u64 {
    let (_, metrics) = http::get(server.ports.metrics, "/metrics").await.expect("metrics");
    let counts = metrics.lines().filter_map(|line| {
        let labels = line.strip_prefix("sconce_requests_total{")?;
        labels.split_once("code=\"OK\"} ")?.1.parse::<u64>().ok()
    });
    counts.sum()
}

#[tokio::test]
async fn an_interrupt_ends_it_with_what_was_measured_until_then() {
    let server = tiny().await;
    let mut command = sconce();
    command.args(["bench", "tiny", "--rate=100", "--duration=1h", "--warm-up=0s", "--json", "--server"]);
    command.arg(format!("127.0.0.1:{}", server.ports.grpc)).current_dir(server.store.beside(""));
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.expect("the program starts");
    eventually("some calls", PATIENCE, async || (answered(&server).await > 20).then_some(())).await;
    kill(child.id(), Signal::INT);
    let output = child.wait_with_output().expect("the program ends");
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(json["interrupted"], true, "{json}");
    assert!(count(&json["loads"][0], "answered") > 10, "{json}");
}

#[tokio::test]
async fn connections_that_grow_old_are_made_anew_and_no_call_fails() {
    let store = Store::new().model("tiny", "1", fixture("onnx/tiny.onnx"));
    let server = Server::start(store, &["--max-connection-age=200ms", "--connection-age-grace=5s"]).await;
    let json = measured(&server, &["tiny", "--concurrency=16", "--connections=4"]);
    assert_answered(&json["loads"][0]);
    let json = measured(&server, &["tiny", "--rate=300", "--connections=4"]);
    assert_answered(&json["loads"][0]);
    assert_eq!(count(&json["loads"][0], "dropped"), 0, "{json}");
}

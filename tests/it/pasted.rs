//! What the server prints to paste, and what the README shows, is run as it stands and answers as example.json says.

use serde_json::Value;

use crate::{
    harness::{
        PATIENCE, Server, Store, eventually, fixture, has_torch, root, sconce, store::SAMPLES, tensors::sample_examples,
    },
    shell::Shell,
};

/// The sample store, as far as this machine can serve it.
async fn samples() -> Server {
    let torch = has_torch();
    let mut store = Store::new();
    for name in SAMPLES.into_iter().filter(|&name| torch || name != "volatility-transformer") {
        store = store.sample(name);
    }
    Server::start(store, &[]).await
}

/// What it printed for a person, once that is whole.
async fn printed(server: &Server) -> String {
    eventually("the lines to paste", PATIENCE, async || {
        let text = server.printed();
        text.contains("\nEND\n").then_some(text)
    })
    .await
}

/// The one line with this word.
#[track_caller]
fn line<'a>(text: &'a str, word: &str) -> &'a str {
    let lines: Vec<&str> = text.lines().filter(|line| line.contains(word)).collect();
    let [line] = lines[..] else {
        panic!("{} lines with '{word}':\n{text}", lines.len());
    };
    line
}

/// All numbers of a text that shows an array, as numpy does.
fn numbers(text: &str) -> Vec<f64> {
    let words = text.split(|c: char| c.is_whitespace() || "[],".contains(c));
    words.filter_map(|word| word.parse().ok()).collect()
}

/// The named output of each row of a JSON answer.
#[track_caller]
fn of_rows(answer: &str, name: &str) -> Vec<f64> {
    let answer: Value = serde_json::from_str(answer).unwrap_or_else(|error| panic!("{error}: {answer}"));
    let rows = answer["rows"].as_array().unwrap_or_else(|| panic!("no rows: {answer}"));
    rows.iter().map(|row| row[name].as_f64().expect("a number")).collect()
}

/// What the example at that place says of its first output.
fn expected(model: &str, version: &str, place: usize) -> Vec<f64> {
    let example = &sample_examples(model, version).examples[place];
    let data = example.response.outputs[0].data.iter();
    data.map(|value| value.as_f64().expect("a number")).collect()
}

/// numpy shows eight digits.
const SHOWN: f64 = 1e-7;

#[track_caller]
fn assert_close(what: &str, came: &[f64], expected: &[f64], relative: f64) {
    let close = |(came, expected): (&f64, &f64)| (came - expected).abs() <= relative * expected.abs();
    let all = came.len() == expected.len() && came.iter().zip(expected).all(close);
    assert!(all, "{what}: {came:?}, expected {expected:?}");
}

#[tokio::test]
async fn the_servers_three_lines_answer_as_their_examples_say() {
    let server = samples().await;
    let text = printed(&server).await;
    let shell = Shell::beside(&server);

    let grpcurl = line(&text, "grpcurl -plaintext");
    if shell.can_run(grpcurl) {
        let answer = of_rows(&shell.run(grpcurl), "probability");
        // The version that answered when this was printed.
        let version = if grpcurl.contains("--version 1.0.0") { "1.0.0" } else { "1.1.0" };
        assert_close(grpcurl, &answer, &expected("early-signal", version, 0), 1e-12);
    }

    let predict = shell.run(line(&text, " predict "));
    assert!(predict.contains("they agree"), "{predict}");

    let begin = text.find("python3 - <<'END'").expect("a Python client");
    let lines = &text[begin..begin + text[begin..].find("\nEND\n").expect("its end") + 5];
    assert_eq!(lines.lines().count(), 2 + 5, "five lines between two of the shell:\n{lines}");
    if shell.can_run(lines) {
        assert!(lines.contains(r#"infer("early-signal""#), "{lines}");
        let version = if lines.contains(r#"model_version="1.0.0""#) { "1.0.0" } else { "1.1.0" };
        let answer = numbers(&shell.run(lines));
        assert_close(lines, &answer, &expected("early-signal", version, 1), SHOWN);
    }
}

#[tokio::test]
async fn one_files_lines_have_its_own_names_and_shapes_and_are_answered() {
    let store = Store::new();
    let file = store.beside("model.onnx");
    std::fs::copy(fixture("onnx/tiny.onnx"), &file).expect("a copy");
    let mut command = sconce();
    command.arg("serve").arg(&file);
    let server = Server::launch(store, command, &[]).await;
    let text = printed(&server).await;
    let shell = Shell::beside(&server);

    let grpcurl = line(&text, "grpcurl -plaintext");
    for words in [r#""name":"INPUT0","dtype":"FP32","shape":[1,16]"#, r#""name":"INPUT1""#] {
        assert!(grpcurl.contains(words), "{grpcurl}");
    }
    if shell.can_run(grpcurl) {
        let answer: Value = serde_json::from_str(&shell.run(grpcurl)).expect("JSON");
        assert_eq!(answer["outputs"][0]["name"], "OUTPUT0", "{answer}");
    }
    let python = &text[text.find("python3 - <<'END'").expect("a Python client")..];
    if shell.can_run(python) {
        let answer = numbers(&shell.run(&python[..python.find("\nEND\n").expect("its end") + 5]));
        assert_eq!(answer.len(), 16, "{answer:?}");
    }
}

// The README

/// The fenced blocks of a language.
fn blocks(page: &str, language: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut open: Option<Vec<&str>> = None;
    for line in page.lines() {
        match &mut open {
            None if line == format!("```{language}") => open = Some(Vec::new()),
            Some(lines) if line == "```" => {
                blocks.push(lines.join("\n"));
                open = None;
            }
            Some(lines) => lines.push(line),
            None => {}
        }
    }
    blocks
}

/// The documents say the default ports, this server has others.
fn with_ports(text: &str, server: &Server) -> String {
    let ports = [
        (":7070", server.ports.grpc),
        (":7071", server.ports.grpc_admin),
        (":8080", server.ports.http),
        (":8082", server.ports.metrics),
    ];
    let replace = |text: String, (written, port): (&str, u16)| text.replace(written, &format!(":{port}"));
    ports.into_iter().fold(text.to_owned(), replace)
}

/// Each command of the page with what must come of it: a word of its answer, or the probabilities.
enum Answer {
    Says(&'static str),
    Probabilities(Vec<f64>),
}

fn answer_of(command: &str) -> Option<Answer> {
    let first = || expected("early-signal", "1.1.0", 0);
    let answers = [
        ("sconce example early-signal |", Answer::Probabilities(first())),
        ("inference.GRPCInferenceService/ModelInfer", Answer::Says("\"probability\"")),
        ("sconce predict early-signal --example", Answer::Says("they agree")),
        ("sconce predict early-signal --file", Answer::Says("")),
        ("sconce bench early-signal --concurrency", Answer::Says("8 in flight over 8")),
        ("sconce bench early-signal --rate", Answer::Says("200/s Poisson over 8")),
        ("sconce.v1.Admin/ListModels", Answer::Says("early-signal")),
        ("sconce models", Answer::Says("momentum-lstm")),
        ("sconce describe momentum-lstm", Answer::Says("1.1.0: ready")),
        ("sconce describe early-signal", Answer::Says("1.1.0: ready")),
        ("sconce check", Answer::Says("no problems")),
        ("sconce promote momentum-lstm 1.0.0", Answer::Says("stable 1.0.0, and it holds")),
        ("sconce publish model-store/momentum-lstm", Answer::Says("published")),
        ("sconce bench momentum-lstm", Answer::Says("1 in flight")),
        ("sconce label", Answer::Says("and it holds")),
        ("sconce promote momentum-lstm 1.1.0", Answer::Says("stable 1.1.0, and it holds")),
        ("sconce rollback", Answer::Says("stable 1.0.0, and it holds")),
        ("sconce route momentum-lstm", Answer::Says("and it holds")),
        ("sconce deploy momentum-lstm", Answer::Says("stable 1.0.0, and it holds")),
        ("sconce rollout status", Answer::Says("1.1.0")),
        ("sconce.v1.Admin/PauseRollout", Answer::Says("SETTLED_READY")),
        ("sconce.v1.Admin/DescribeRollout", Answer::Says("\"reason\": \"the feed is late\"")),
        ("sconce rollout resume", Answer::Says("and it holds")),
        ("sconce rollout abort", Answer::Says("stable 1.0.0, and it holds")),
        ("sconce.v1.Admin/Deploy", Answer::Says("SETTLED_READY")),
        ("sconce rollout promote", Answer::Says("stable 1.1.0, and it holds")),
        ("sconce experiment", Answer::Says("canary 1.1.0 beside stable")),
        ("sconce.v1.Admin/SetRoute", Answer::Says("SETTLED_READY")),
        ("sconce unpin", Answer::Says("stable latest, and it holds")),
        ("sconce disable", Answer::Says("and it holds")),
        ("sconce enable", Answer::Says("and it holds")),
        ("7070 list", Answer::Says("inference.GRPCInferenceService")),
        ("Health/Check", Answer::Says("SERVING")),
        ("/readyz?verbose", Answer::Says("early-signal")),
        ("/metrics", Answer::Says("sconce_")),
    ];
    answers.into_iter().find(|(words, _)| command.contains(words)).map(|(_, answer)| answer)
}

#[tokio::test]
async fn every_command_of_the_readme_does_what_it_says() {
    let readme = std::fs::read_to_string(root().join("README.md")).expect("the README");
    let server = samples().await;
    let shell = Shell::beside(&server);
    let scripts = blocks(&readme, "sh");
    // What builds, and what runs until it is stopped, is the business of CI.
    let commands = scripts.iter().flat_map(|block| block.lines()).filter(|line| !line.starts_with("make "));
    let mut count = 0;
    for command in commands {
        let answer = answer_of(command).unwrap_or_else(|| panic!("README.md: nothing is known of `{command}`"));
        if !shell.can_run(command) {
            continue;
        }
        let came = shell.run(&with_ports(command, &server));
        match answer {
            Answer::Says(word) => assert!(came.contains(word), "`{command}` does not say '{word}':\n{came}"),
            Answer::Probabilities(expected) => {
                assert_close(command, &of_rows(&came, "probability"), &expected, 1e-12);
            }
        }
        count += 1;
    }
    assert!(count >= 4, "{count} commands: the README is read wrongly");

    // The rows of the README are those of the example after it.
    let scored = std::fs::read_to_string(shell.path().join("scored.csv")).expect("the README scores a file");
    let last = scored.lines().skip(1).map(|line| line.rsplit(',').next().and_then(|cell| cell.parse().ok()));
    let last: Vec<f64> = last.map(|cell| cell.expect("a number")).collect();
    assert_close("scored.csv", &last, &expected("early-signal", "1.1.0", 2), 1e-12);

    for program in blocks(&readme, "python") {
        let script = format!("python3 - <<'END'\n{program}\nEND\n");
        if shell.can_run(&script) {
            let answer = numbers(&shell.run(&with_ports(&script, &server)));
            assert!(matches!(answer[..], [p] if p > 0.0 && p < 1.0), "{program}\n{answer:?}");
        }
    }
}

//! The commands, as an operator and a script call them: what they write, what they say, and how they end.

mod bench;
mod check;
mod predict;
mod publish;
mod publish_s3;

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Output, Stdio},
};

use serde_json::{Value, json};

use crate::harness::{Server, Store, sconce};

/// Runs a command against a server, with `input` at its stdin.
pub fn run(server: &Server, arguments: &[&str], input: &str) -> Output {
    let mut command = sconce();
    command
        .args(arguments)
        .env("SCONCE_SERVER", format!("127.0.0.1:{}", server.ports.grpc))
        .env("SCONCE_ADMIN_SERVER", format!("127.0.0.1:{}", server.ports.grpc_admin))
        .current_dir(server.store.beside(""))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    // Less than a pipe holds. A program that ends without reading it is the caller's to judge.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    child.wait_with_output().expect("the program runs")
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What a command that succeeds writes to stdout.
#[track_caller]
pub fn succeeds(server: &Server, arguments: &[&str], input: &str) -> String {
    let output = run(server, arguments, input);
    assert!(output.status.success(), "{arguments:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// What a command that fails says on stderr.
#[track_caller]
pub fn fails(server: &Server, arguments: &[&str], code: i32, words: &[&str]) -> String {
    let output = run(server, arguments, "");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    for word in words {
        assert!(said.contains(word), "{arguments:?} does not say '{word}': {said}");
    }
    said
}

#[tokio::test]
async fn what_is_served_is_shown_to_people_and_to_scripts() {
    let server = Server::start(Store::new().sample("early-signal").sample("momentum-lstm"), &[]).await;
    let listed: Value = serde_json::from_str(&succeeds(&server, &["models", "--json"], "")).expect("JSON");
    let names: Vec<&str> =
        listed.as_array().expect("a list").iter().filter_map(|model| model["name"].as_str()).collect();
    assert_eq!(names, ["early-signal", "momentum-lstm"]);
    assert_eq!(listed[0]["ready"], json!(true));
    assert_eq!(listed[0]["stable"], json!("1.1.0"));
    assert_eq!(listed[0]["ready_versions"], json!(["1.0.0", "1.1.0"]));
    let some = succeeds(&server, &["models", "early-*"], "");
    assert!(some.contains("early-signal") && !some.contains("momentum"), "{some}");

    let people = succeeds(&server, &["describe", "early-signal"], "");
    for words in
        ["early-signal: ready, stable 1.1.0", "1.0.0: ready", "features", "FP64", "[-1, 20]", "probability", "vix"]
    {
        assert!(people.contains(words), "'{words}' is not in\n{people}");
    }
    let script: Value =
        serde_json::from_str(&succeeds(&server, &["describe", "early-signal", "--json"], "")).expect("JSON");
    let versions = script["versions"].as_array().expect("versions");
    let version = versions.iter().find(|version| version["version"] == "1.1.0").expect("the stable one");
    assert_eq!(version["inputs"][0]["shape"], json!([-1, 20]), "{version}");
}

#[test]
fn a_flag_wins_over_the_environment_that_over_the_file_that_over_the_default() {
    let store = Store::new();
    let printed = |file: &Path, flags: &[&str], variables: &[(&str, &str)]| {
        let mut command = sconce();
        command.args(["serve", "--print-config", "--config"]).arg(file).args(flags);
        command.envs(variables.iter().copied());
        let output = command.output().expect("the program runs");
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let file = store.beside("sconce.yaml");
    fs::write(&file, "grpc_port: 3\nhttp_port: 3\nmetrics_port: 3\n").expect("a file");
    let variables = [("SCONCE_GRPC_PORT", "2"), ("SCONCE_HTTP_PORT", "2"), ("SCONCE_METRICS_PORT", "")];
    let shown = printed(&file, &["--grpc-port=1"], &variables);
    let words = |key: &str| {
        let line = shown.lines().find(|line| line.starts_with(key)).unwrap_or_default();
        line.split_whitespace().map(String::from).take(4).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(words("grpc_port:"), "grpc_port: 1 # flag");
    assert_eq!(words("http_port:"), "http_port: 2 # environment");
    assert_eq!(words("metrics_port:"), "metrics_port: 3 # file", "an empty variable says nothing");
    assert_eq!(words("grpc_admin_port:"), "grpc_admin_port: 7071 # default");

    // What it prints is a file that says the same.
    let again = store.beside("again.yaml");
    fs::write(&again, &shown).expect("a file");
    let values = |shown: &str| {
        let lines = shown.lines().map(|line| line.split("  # ").next().unwrap_or_default().trim().to_owned());
        lines.collect::<Vec<_>>()
    };
    assert_eq!(values(&printed(&again, &[], &[])), values(&shown));
}

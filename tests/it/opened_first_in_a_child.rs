//! Nothing is opened first in the server's own process: what crashes, hangs or eats memory there fails its version alone.

use rustix::process::Signal;
use tonic::Code;

use crate::{
    harness::{
        PATIENCE, Server, Store, artifacts, assert_refused, eventually, fixture, has_torch, native_dir, process,
        sconce,
        tensors::{Form, Values, fixture_examples, floats},
    },
    proto::*,
};

/// An `example.json` that makes `loop_forever` loop for ever.
const ENDLESS: &str = r#"{ "examples": [ {
    "request": { "inputs": [
        { "name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4] },
        { "name": "forever", "datatype": "INT64", "shape": [1, 1], "data": [424242] } ] },
    "response": { "outputs": [ { "name": "y", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4] } ] } } ] }"#;

/// An `example.json` that divides the smallest integer by -1, which ends a process.
const DEADLY: &str = r#"{ "examples": [ {
    "request": { "inputs": [
        { "name": "dividend", "datatype": "INT64", "shape": [1], "data": [-9223372036854775808] },
        { "name": "divisor", "datatype": "INT64", "shape": [1], "data": [-1] } ] },
    "response": { "outputs": [ { "name": "quotient", "datatype": "INT64", "shape": [1], "data": [0] } ] } } ] }"#;

/// An `example.json` that asks `greedy` for 2^40 elements.
const GREEDY: &str = r#"{ "examples": [ {
    "request": { "inputs": [ { "name": "shape", "datatype": "INT64", "shape": [1], "data": [1099511627776] } ] },
    "response": { "outputs": [ { "name": "y", "datatype": "FP32", "shape": [1], "data": [0] } ] } } ] }"#;

/// An `example.json` of `tiny` whose first answer is wrong.
fn wrong_example() -> String {
    let mut file = fixture_examples("onnx/tiny");
    file.examples[0].response.outputs[0].data[3] = 77.into();
    serde_json::to_string(&file).expect("a file")
}

fn with_example(store: Store, name: &str, example: impl AsRef<[u8]>) -> Store {
    store.file(&format!("{name}/1.0.0/example.json"), example)
}

fn tiny() -> PredictRequest {
    let inputs = ["INPUT0", "INPUT1"].map(|name| floats(name, &[1, 16], &[1.0; 16]).to_sconce(Form::Raw));
    PredictRequest { model: "tiny".into(), inputs: inputs.into(), ..Default::default() }
}

#[tokio::test]
async fn what_loops_crashes_eats_memory_or_lies_fails_alone() {
    let mut store = Store::new()
        .model("tiny", "1.0.0", fixture("onnx/tiny.onnx"))
        .model("endless", "1.0.0", fixture("onnx/loop_forever.onnx"))
        .model("deadly", "1.0.0", fixture("onnx/div.onnx"))
        .model("liar", "1.0.0", fixture("onnx/tiny.onnx"))
        .file("greedy/1.0.0/model.onnx", artifacts::greedy());
    for (name, example) in [("endless", ENDLESS), ("deadly", DEADLY), ("greedy", GREEDY), ("liar", &wrong_example())] {
        store = with_example(store, name, example);
    }
    let server = Server::start(store, &["--child-time=3s"]).await;
    for (name, reasons) in [
        ("endless", &["LOAD_TIMEOUT"][..]),
        ("deadly", &["LOAD_CRASHED"]),
        ("greedy", &["EXAMPLE_MISMATCH", "MODEL_ALLOCATION", "INSUFFICIENT_MEMORY", "BACKEND_FAILED"]),
        ("liar", &["EXAMPLE_MISMATCH"]),
    ] {
        let status = server.failed(name, "1.0.0").await;
        assert!(reasons.contains(&&status.reason[..]), "{name}: {} {}", status.reason, status.message);
        let request = PredictRequest { model: name.into(), ..tiny() };
        let refused = server.predict(request).await;
        assert_refused(name, refused, Code::FailedPrecondition, &reasons.join("|"));
    }
    let deadly = server.failed("deadly", "1.0.0").await;
    assert!(deadly.message.contains("SIGFPE"), "the signal is named: {}", deadly.message);
    server.predict(tiny()).await.expect("the others serve");
    server.assert_unharmed().await;
}

#[tokio::test]
async fn inputs_that_are_made_up_are_no_reason_to_fail() {
    let store = Store::new().model("div", "1.0.0", fixture("onnx/div.onnx")).model(
        "loop",
        "1.0.0",
        fixture("onnx/loop_forever.onnx"),
    );
    let server = Server::start(store, &["--child-time=20s"]).await;
    server.reaches("loop", "1.0.0", VersionState::Ready).await;
    let div = server.version("div", "1.0.0").await.expect("it is there");
    // Some divisors end the process; what is made up may say so or may avoid it, and the server lives.
    assert!(matches!(div.state(), VersionState::Ready | VersionState::Failed));
    server.assert_unharmed().await;
}

#[tokio::test]
async fn a_child_that_is_killed_costs_the_server_nothing() {
    let store = Store::new().model("endless", "1.0.0", fixture("onnx/loop_forever.onnx"));
    let store = with_example(store, "endless", ENDLESS).model("tiny", "1.0.0", fixture("onnx/tiny.onnx"));
    let server = Server::begin(store, &["--child-time=60s"]).await;
    server.reaches("tiny", "1.0.0", VersionState::Ready).await;
    // Whoever opens it dies, as if the kernel had run out of memory.
    let status = eventually("it fails", PATIENCE, async || {
        for child in process::children(server.pid()) {
            process::kill(child, Signal::KILL);
        }
        server.version("endless", "1.0.0").await.filter(|version| version.state() == VersionState::Failed)
    })
    .await;
    assert!(!status.reason.is_empty() && !status.message.is_empty(), "{status:?}");
    server.predict(tiny()).await.expect("the others serve");
    server.store.add("later", "1.0.0", fixture("onnx/scalar.onnx"));
    server.reaches("later", "1.0.0", VersionState::Ready).await;
    server.assert_unharmed().await;
}

#[tokio::test]
async fn no_library_of_a_model_runs_before_the_child_passed_it() {
    let store = Store::new().model("endless", "1.0.0", fixture("onnx/loop_forever.onnx"));
    let server = Server::begin(with_example(store, "endless", ENDLESS), &["--child-time=10s"]).await;
    server.reaches("endless", "1.0.0", VersionState::Loading).await;
    eventually("a child opens it", PATIENCE, async || {
        let children = process::children(server.pid());
        children
            .iter()
            .any(|child| process::open_files(*child).iter().any(|file| !file.as_os_str().is_empty()))
            .then_some(())
    })
    .await;
    let here = |path: &std::path::Path| path.to_string_lossy().contains("loop_forever");
    assert!(!process::open_files(server.pid()).iter().any(|file| here(file)));
    server.assert_unharmed().await;
}

#[tokio::test]
async fn weights_without_code_are_refused_unopened() {
    if !has_torch() {
        return;
    }
    let pickle = b"\x80\x04\x95\x10\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.";
    let store = Store::new()
        .model("weights", "1.0.0", fixture("torch/not_torchscript.pt"))
        .file("pickle/1.0.0/model.pt", pickle)
        .file("pickle/model.yaml", std::fs::read(fixture("torch/not_torchscript.yaml")).expect("a fixture"))
        .file("pickled-text/1.0.0/model.txt", pickle)
        .file("pickled-onnx/1.0.0/model.onnx", pickle);
    let server = Server::start(store, &[]).await;
    for (name, reasons) in [
        ("weights", &["UNSAFE_FORMAT"][..]),
        ("pickle", &["UNSAFE_FORMAT", "LOAD_FAILED"]),
        ("pickled-text", &["UNSAFE_FORMAT", "LOAD_FAILED"]),
        ("pickled-onnx", &["UNSAFE_FORMAT", "LOAD_FAILED"]),
    ] {
        let status = server.failed(name, "1.0.0").await;
        assert!(reasons.contains(&&status.reason[..]), "{name}: {} {}", status.reason, status.message);
    }
    server.assert_unharmed().await;
}

#[tokio::test]
async fn an_output_that_is_no_tensor_is_noted_and_the_others_serve() {
    let server = Server::start(Store::new().model("zipmap", "1.0.0", fixture("onnx/zipmap.onnx")), &[]).await;
    let status = server.reaches("zipmap", "1.0.0", VersionState::Ready).await;
    let notes = status.notes.join(" ");
    assert!(
        notes.contains("output_probability") && notes.to_lowercase().contains("zipmap"),
        "named, with its fix: {notes}"
    );
    let outputs: Vec<&str> = status.outputs.iter().map(|output| &output.name[..]).collect();
    assert_eq!(outputs, ["output_label"]);
    let example = &fixture_examples("onnx/zipmap").examples[0];
    let mut request = PredictRequest { model: "zipmap".into(), ..Default::default() };
    request.inputs =
        example.request.inputs.iter().map(|tensor| Values::of_example(tensor).to_sconce(Form::Raw)).collect();
    let answer = server.predict(request).await.expect("the label");
    assert_eq!(Values::of_sconce(&answer.outputs[0]).numbers(), [0.0, 1.0, 2.0]);
}

#[tokio::test]
async fn check_says_the_same_and_changes_nothing() {
    let mut store = Store::new()
        .model("tiny", "1.0.0", fixture("onnx/tiny.onnx"))
        .model("deadly", "1.0.0", fixture("onnx/div.onnx"))
        .model("liar", "1.0.0", fixture("onnx/tiny.onnx"))
        .file("broken/1.0.0/model.onnx", "no model")
        .file("odd/model.yaml", "no_such_key: 1\n")
        .file("tiny/latest/readme", "no version");
    store = with_example(with_example(store, "deadly", DEADLY), "liar", wrong_example());
    let mut command = tokio::process::Command::from(sconce());
    command.arg("check").arg(store.path()).arg("--json").env("SCONCE_NATIVE_DIR", native_dir());
    let output = tokio::time::timeout(PATIENCE, command.output()).await.expect("it ends").expect("the program runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let problems: Vec<serde_json::Value> = serde_json::from_str(&said).expect("a list");
    for (model, word) in
        [("deadly", "SIGFPE"), ("liar", "OUTPUT0"), ("broken", ""), ("odd", "no_such_key"), ("tiny", "latest")]
    {
        let of_model = |problem: &&serde_json::Value| problem["model"] == model;
        let found = problems
            .iter()
            .filter(of_model)
            .any(|problem| problem["message"].as_str().is_some_and(|text| text.contains(word)));
        assert!(found, "{model}: '{word}' is missing in {said}");
    }
    assert!(!problems.iter().any(|problem| problem["model"] == "tiny" && problem["version"] == "1.0.0"), "{said}");
    assert!(!store.path().join("tiny/.sconce").exists(), "it writes nothing");
}

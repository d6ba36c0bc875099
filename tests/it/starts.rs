//! Starting: fast, without what is not needed, and with clear words where it cannot.

use std::{os::unix::fs::symlink, time::Duration};

use tonic::Code;

use crate::{
    harness::{
        PATIENCE, Server, Store, assert_refused, fixture, has_torch, native_dir, root, sconce,
        tensors::{Form, Values, fixture_examples},
    },
    proto::*,
};

fn request(model: &str, fixture: &str) -> PredictRequest {
    let example = &fixture_examples(fixture).examples[0];
    PredictRequest {
        model: model.into(),
        inputs: example.request.inputs.iter().map(|tensor| Values::of_example(tensor).to_sconce(Form::Raw)).collect(),
        ..Default::default()
    }
}

/// Runs a command that is to end by itself, badly; what it says.
async fn refused(arguments: &[&str]) -> String {
    let mut command = tokio::process::Command::from(sconce());
    let output = tokio::time::timeout(PATIENCE, command.args(arguments).kill_on_drop(true).output()).await;
    let output = output.unwrap_or_else(|_| panic!("{arguments:?} does not end")).expect("the program runs");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!output.status.success() && !said.contains("panicked"), "{arguments:?}: {said}");
    said
}

#[tokio::test]
async fn an_empty_store_is_served_within_a_second() {
    let server = Server::start(Store::new(), &[]).await;
    // A debug build beside other tests says nothing about time.
    let limit = if cfg!(debug_assertions) { Duration::from_secs(20) } else { Duration::from_secs(1) };
    assert!(server.start < limit, "from start to ports: {:?}", server.start);
    eprintln!("from start to ports: {:?}", server.start);
    let live = server.oip().await.server_live(crate::proto::oip::ServerLiveRequest {}).await;
    assert!(live.expect("an answer").into_inner().live);
}

#[tokio::test]
async fn without_libtorch_its_models_say_so_until_it_is_there() {
    if !has_torch() {
        return;
    }
    let store = Store::new().model("tiny", "1.0.0", fixture("onnx/tiny.onnx")).model(
        "plain",
        "1.0.0",
        fixture("torch/plain.pt"),
    );
    let libraries = store.beside_folder("native");
    for name in ["onnxruntime", "lightgbm"] {
        symlink(native_dir().join(name), libraries.join(name)).expect("a link");
    }
    let folder = libraries.clone();
    let server = Server::begin_with(store, &[], move |command| _ = command.env("SCONCE_NATIVE_DIR", folder)).await;
    server.ready().await;
    let status = server.failed("plain", "1.0.0").await;
    assert_eq!(status.reason, "LIBRARY_MISSING");
    assert!(status.message.contains("make"), "it says what to do: {}", status.message);
    let refused = server.predict(request("plain", "torch/plain")).await;
    assert_refused("without the plugin", refused, Code::Unavailable, "LIBRARY_MISSING");
    server.predict(request("tiny", "onnx/tiny")).await.expect("the others serve");

    for name in ["torch", "libsconce_torch.so"] {
        symlink(native_dir().join(name), libraries.join(name)).expect("a link");
    }
    server.reaches("plain", "1.0.0", VersionState::Ready).await;
    server.predict(request("plain", "torch/plain")).await.expect("now it serves");
}

#[tokio::test]
async fn one_file_is_served_and_its_line_to_paste_has_its_own_names() {
    let store = Store::new();
    let file = store.beside("model.onnx");
    std::fs::copy(fixture("onnx/tiny.onnx"), &file).expect("a copy");
    let mut command = sconce();
    command.arg("serve").arg(&file);
    let server = Server::launch(store, command, &[]).await;
    server.ready().await;
    let listed = server.admin().await.list_models(ListModelsRequest::default()).await.expect("a list").into_inner();
    let [model] = &listed.models[..] else {
        panic!("one model: {listed:?}");
    };
    server.predict(request(&model.name, "onnx/tiny")).await.expect("an answer");
    let printed = server.printed();
    for word in ["grpcurl", "INPUT0", "INPUT1", "16", &model.name] {
        assert!(printed.contains(word), "'{word}' is not in what it prints:\n{printed}");
    }
}

#[test]
fn the_configuration_is_printed_with_its_sources() {
    let store = Store::new();
    let file = store.beside("sconce.yaml");
    std::fs::write(&file, "http_port: 1234\n").expect("a file");
    let file = file.to_string_lossy().into_owned();
    let arguments = ["serve", "--model-store", "x", "--config", &file, "--grpc-port=0", "--print-config"];
    let output = sconce().args(arguments).env("SCONCE_METRICS_PORT", "9999").output().expect("the program runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    for (key, value, source) in [
        ("grpc_port", "0", "flag"),
        ("http_port", "1234", "file"),
        ("metrics_port", "9999", "environment"),
        ("grpc_admin_port", "7071", "default"),
        ("max_concurrent_streams", "128", "default"),
    ] {
        let line = text.lines().find(|line| line.starts_with(&format!("{key}:"))).unwrap_or_default();
        assert!(line.contains(value) && line.contains(source), "{key} is {value} from {source}: {line}");
    }
}

#[tokio::test]
async fn what_cannot_work_is_refused_with_the_way_out() {
    let store = Store::new();
    let path = store.path().to_string_lossy().into_owned();
    let sample = root().join("model-store").to_string_lossy().into_owned();
    let readme = root().join("README.md").to_string_lossy().into_owned();
    for (arguments, words) in [
        (&["serve", "--model-store", &path, "--host=0.0.0.0"][..], &["--insecure-no-auth", "0.0.0.0"][..]),
        (&["serve", "--model-store", &path, "--admin-host=::"], &["--insecure-no-auth", "--admin-host"]),
        (&["serve"], &["--model-store"]),
        (&["serve", "--model-store", &path, "--idle-timeout=soon"], &["idle-timeout", "soon"]),
        (&["serve", "--model-store", &path, "--no-such-option"], &["no-such-option"]),
        (
            &[
                "serve",
                "--model-store",
                "/no/such/folder",
                "--grpc-port=0",
                "--grpc-admin-port=0",
                "--http-port=0",
                "--metrics-port=0",
            ],
            &["/no/such/folder"],
        ),
        (&["serve", "/no/such/model.onnx"], &["/no/such/model.onnx"]),
        (&["serve", &readme], &["README.md", "the file is no model", ".onnx"]),
        (&["serve", "--model-store", &sample, "--max-message-bytes=0"], &["max_message_bytes"]),
        (&["check", "/no/such/folder"], &["/no/such/folder"]),
    ] {
        let said = refused(arguments).await;
        for word in words {
            assert!(said.contains(word), "{arguments:?} does not say '{word}': {said}");
        }
    }
}

#[tokio::test]
async fn a_key_that_model_yaml_does_not_have_is_named() {
    let store = Store::new()
        .model("tiny", "1.0.0", fixture("onnx/tiny.onnx"))
        .model("odd", "1.0.0", fixture("onnx/tiny.onnx"))
        .file("odd/model.yaml", "batching:\n  max_batch: 3\n");
    let path = store.path().to_string_lossy().into_owned();
    let said = refused(&["check", &path]).await;
    assert!(said.contains("max_batch") && said.contains("odd"), "{said}");
    let server = Server::start(store, &[]).await;
    let described = server.describe("odd").await;
    let message = described.summary.expect("a summary").message;
    assert!(message.contains("max_batch") && message.contains("model.yaml"), "{message}");
    server.predict(request("tiny", "onnx/tiny")).await.expect("the others serve");
}

#[tokio::test]
async fn only_the_models_that_were_asked_for_are_served() {
    let store = Store::new().model("fraud-cards", "1.0.0", fixture("onnx/tiny.onnx")).model(
        "other",
        "1.0.0",
        fixture("onnx/tiny.onnx"),
    );
    let server = Server::start(store, &["--models=fraud-*"]).await;
    server.predict(request("fraud-cards", "onnx/tiny")).await.expect("an answer");
    assert_refused("left out", server.predict(request("other", "onnx/tiny")).await, Code::NotFound, "MODEL_NOT_FOUND");
}

#[tokio::test]
async fn ports_that_are_taken_are_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let store = Store::new();
    let path = store.path().to_string_lossy().into_owned();
    let zero = ["--grpc-admin-port=0", "--http-port=0", "--metrics-port=0"];
    let arguments = [&["serve", "--model-store", &path, "--grpc-port", &port], &zero[..]].concat();
    let said = refused(&arguments).await;
    assert!(said.contains(&port), "{said}");
}

//! The server died under a version: the next one names it, and lets it serve only when it has passed the child alone.

use std::os::unix::{fs::PermissionsExt, process::ExitStatusExt};

use rustix::process::Signal;
use sconce::model::DType;

use crate::{
    harness::{
        PATIENCE, Server, Store, eventually, fixture, process,
        tensors::{Form, Values},
    },
    proto::*,
};

fn divide(dividend: i64, divisor: i64) -> PredictRequest {
    let values = |name: &str, value: i64| Values {
        name: name.into(),
        dtype: DType::Int64,
        shape: vec![1],
        raw: value.to_le_bytes().to_vec().into(),
    };
    let inputs = [values("dividend", dividend), values("divisor", divisor)];
    PredictRequest {
        model: "div".into(),
        inputs: inputs.iter().map(|input| input.to_sconce(Form::Raw)).collect(),
        ..Default::default()
    }
}

fn store() -> Store {
    let store = Store::new().model("div", "1.0.0", fixture("onnx/div.onnx"));
    store.model("tiny", "1.0.0", fixture("onnx/tiny.onnx"))
}

/// A server under which a version of `div` ran when it died, and its store.
async fn crashed() -> Store {
    let server = Server::start(store(), &[]).await;
    // The quotient has no place in 64 bits: the processor itself refuses, and ONNX Runtime does not look first.
    let answer = server.predict(divide(i64::MIN, -1)).await;
    assert!(answer.is_err(), "a process that died gives no answer");
    let status = eventually("the server's end", PATIENCE, async || server.exit_status()).await;
    assert_eq!(status.signal(), Some(8), "SIGFPE");
    server.into_store()
}

#[tokio::test]
async fn it_is_named_and_serves_again_once_it_passed() {
    let server = Server::start(crashed().await, &[]).await;
    let log = server.log();
    let named = |name: &str| {
        let warnings = log.lines().filter(|line| line.contains("running when a server died"));
        warnings.filter(|line| line.contains(name)).count()
    };
    assert_eq!((named("div"), named("tiny")), (1, 0), "{log}");
    let note = |version: VersionStatus| version.notes.join(" ").contains("was running when the server died");
    assert!(note(server.version("div", "1.0.0").await.expect("it is there")));
    assert!(!note(server.version("tiny", "1.0.0").await.expect("it is there")));
    server.predict(divide(7, 2)).await.expect("it serves again");
    // Whoever stops in good order leaves no mark, and who has passed is no suspect any more.
    process::kill(server.pid(), Signal::INT);
    eventually("the server's end", PATIENCE, async || server.exit_status()).await;
    let next = Server::start(server.into_store(), &[]).await;
    assert!(!next.log().contains("running when a server died"), "{}", next.log());
    assert!(!note(next.version("div", "1.0.0").await.expect("it is there")));
}

#[tokio::test]
async fn it_does_not_serve_when_it_fails_there() {
    let store = crashed().await;
    let child = store.beside("child");
    std::fs::write(&child, "#!/bin/sh\nread limits\nread job\nkill -SEGV $$\n").expect("a file");
    std::fs::set_permissions(&child, PermissionsExt::from_mode(0o700)).expect("its own file");
    let server = Server::start(store, &[&format!("--child-executable={}", child.display())]).await;
    let version = server.version("div", "1.0.0").await.expect("it is there");
    assert_eq!((version.state(), &*version.reason), (VersionState::Failed, "CRASHED_SERVER"));
    assert!(version.message.contains("SIGSEGV"), "{}", version.message);
    // Its neighbour did not run, so its pass still holds: this child would have killed it, too.
    server.reaches("tiny", "1.0.0", VersionState::Ready).await;
}

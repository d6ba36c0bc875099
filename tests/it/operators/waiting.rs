//! Commands that wait for what they asked for: how long, and what they say to whoever leaves.

use std::process::{Command, Stdio};

use rustix::process::Signal;

use super::{answering, gated, route, two_versions};
use crate::{
    commands::{fails, succeeds, text},
    harness::{PATIENCE, Server, eventually, process, sconce},
};

/// A server that cannot load 1.0.0 before the file is there whose path comes along.
async fn held_up() -> (Server, std::path::PathBuf) {
    let store = two_versions();
    let (gate, child) = gated(&store);
    std::fs::write(&gate, "").expect("a file");
    let server = Server::start(store, &[&child]).await;
    // A trial that was passed is remembered by its bytes: other bytes are opened in a child again.
    server.store.write("tiny/1.0.0/note.txt", "other bytes");
    std::fs::remove_file(&gate).expect("it is there");
    (server, gate)
}

fn begin(server: &Server, arguments: &[&str]) -> std::process::Child {
    let mut command: Command = sconce();
    command.args(arguments).env("SCONCE_ADMIN_SERVER", format!("127.0.0.1:{}", server.ports.grpc_admin));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts")
}

#[tokio::test]
async fn ctrl_c_ends_the_waiting_and_not_the_promote() {
    let (server, gate) = held_up().await;
    let waiting = begin(&server, &["promote", "tiny", "1.0.0", "--request-id=one"]);
    eventually("the promote waits", PATIENCE, async || route(&server).await.pending.contains("loading").then_some(()))
        .await;
    process::kill(waiting.id(), Signal::INT);
    let left = waiting.wait_with_output().expect("it ends");
    let said = text(&left.stderr);
    assert_eq!((left.status.code(), text(&left.stdout).as_str()), (Some(130), ""), "{said}");
    for word in ["promote 1.0.0 is written as revision 1", "goes on by itself", "version 1.0.0 is loading"] {
        assert!(said.contains(word), "no '{word}' in: {said}");
    }
    std::fs::write(&gate, "").expect("a file");
    eventually("the promote holds", PATIENCE, async || (answering(&server).await.ok()? == "1.0.0").then_some(())).await;
}

#[tokio::test]
async fn a_label_holds_when_its_version_answers() {
    let (server, gate) = held_up().await;
    let asked = ["label", "tiny", "next=1.0.0", "--timeout=1s"];
    fails(&server, &asked, 1, &["it is written and does not hold here yet", "1.0.0 is loading"]);
    std::fs::write(&gate, "").expect("a file");
    let said = succeeds(&server, &["label", "tiny", "next=1.0.0"], "");
    assert!(said.contains("(it was so already), and it holds"), "{said}");
    let by_label = succeeds(&server, &["describe", "tiny"], "");
    assert!(by_label.contains("1.0.0: ready"), "{by_label}");
}

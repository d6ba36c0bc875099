//! What goes wrong with stores, and that what is loaded serves on.

use std::{fs, os::unix::fs::PermissionsExt, os::unix::fs::symlink, time::Instant};

use super::*;
use crate::harness::sconce;

/// Which names lead where is not for the server to say: the root is a link that moves from one store to another.
#[tokio::test]
async fn a_root_that_is_another_folder_now_is_served() {
    let store = tiny();
    let (link, other) = (store.beside("link"), store.beside_folder("other"));
    symlink("store", &link).expect("a link");
    crate::harness::store::copy_folder(&store.path(), &other);
    fs::rename(other.join("tiny/1.0.0"), other.join("tiny/1.0.1")).expect("a rename");
    let mut command = sconce();
    command.arg("serve").arg("--model-store").arg(&link);
    let server = Server::launch(store, command, &[]).await;
    server.ready().await;
    assert_eq!(stable(&server).await, "1.0.0");
    let new = server.store.beside("new");
    symlink("other", &new).expect("a link");
    fs::rename(&new, &link).expect("a rename");
    server.reaches("tiny", "1.0.1", VersionState::Ready).await;
    // And the new one is watched.
    fs::rename(other.join("tiny/1.0.1"), other.join("tiny/1.0.2")).expect("a rename");
    server.reaches("tiny", "1.0.2", VersionState::Ready).await;
}

#[tokio::test]
async fn a_model_that_cannot_be_read_for_a_while_serves_on() {
    let server = Server::start(tiny(), &[LOOKS]).await;
    let model = server.store.path().join("tiny");
    fs::set_permissions(&model, fs::Permissions::from_mode(0o0)).expect("its owner may");
    if fs::read_dir(&model).is_ok() {
        eprintln!("this user may read everything: a folder that may not be read is not tested");
        return;
    }
    eventually("it is said", PATIENCE, async || {
        let said = server.describe("tiny").await.summary?.message;
        said.contains("cannot be read").then_some(())
    })
    .await;
    assert_eq!(stable(&server).await, "1.0.0");
    fs::set_permissions(&model, fs::Permissions::from_mode(0o755)).expect("its owner may");
    server.store.add("tiny", "1.0.1", fixture("onnx/tiny.onnx"));
    server.reaches("tiny", "1.0.1", VersionState::Ready).await;
}

#[tokio::test]
async fn no_request_notices_that_the_version_it_uses_is_deleted() {
    let server = Server::start(tiny(), &[LOOKS]).await;
    server.store.remove("tiny/1.0.0");
    eventually("its source is missed", PATIENCE, async || {
        assert_eq!(stable(&server).await, "1.0.0");
        let version = server.version("tiny", "1.0.0").await?;
        let said = format!("{} {}", version.reason, version.message);
        said.to_lowercase().contains("source_missing").then_some(())
    })
    .await;
    assert_eq!(stable(&server).await, "1.0.0");
}

#[tokio::test]
async fn a_thousand_files_touched_in_a_second_are_few_looks() {
    let store = Store::new().file("tiny/model.yaml", "");
    let server = Server::start(store, &[LOOKS, "--settle-time=2s", "--poll-interval=10m"]).await;
    if !has_events(&server) {
        return;
    }
    server.store.add("tiny", "1.0.0", fixture("onnx/tiny.onnx"));
    server.reaches("tiny", "1.0.0", VersionState::Ready).await;
    let (before, begun) = (looks(&server), Instant::now());
    let folder = server.store.path().join("tiny/2.0.0");
    fs::create_dir(&folder).expect("a folder");
    for file in 0..1000 {
        fs::write(folder.join(format!("{file}.bin")), "x").expect("a file");
    }
    server.store.write("tiny/model.yaml", "no_such_key: 1\n");
    eventually("what came last is seen", PATIENCE, async || {
        let message = server.describe("tiny").await.summary?.message;
        message.contains("no_such_key").then_some(())
    })
    .await;
    let (looks, took) = (looks(&server) - before, begun.elapsed());
    eprintln!("{looks} looks in {took:?}");
    // One in 50 ms at most, and one that had begun.
    assert!(looks as u128 <= took.as_millis() / 50 + 1, "{looks} looks in {took:?}");
    assert_eq!(stable(&server).await, "1.0.0");
}

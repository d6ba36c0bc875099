//! However a version is brought, it is taken when it is whole, and not before.
//!
//! A version that was opened half-copied fails, or is ready with another digest and touched afterwards: the log has every
//! load, so nothing is missed between two looks of ours.

use std::{fs, io::Write, os::unix::fs::symlink, path::Path, process::Command};

use super::*;

/// Longer than any copy here takes, and than any pause in one.
const SETTLE: &str = "--settle-time=3s";
/// So that a version that is taken was not taken for its age.
const NEVER_SETTLES: &str = "--settle-time=10m";
const NEVER_POLLS: &str = "--poll-interval=10m";

/// A version beside the store that is more than its artifact.
fn version(store: &Store) -> String {
    let folder = store.beside("source/1.0.0");
    fs::create_dir_all(folder.join("sub")).expect("a folder");
    fs::copy(fixture("onnx/tiny.onnx"), folder.join("model.onnx")).expect("a copy");
    fs::copy(fixture("onnx/tiny.json"), folder.join("example.json")).expect("a copy");
    fs::write(folder.join("sub/weights.bin"), vec![7; 1 << 20]).expect("a file");
    folder.to_str().expect("UTF-8").to_owned()
}

fn run(program: &str, args: &[&str]) {
    let done = Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(done.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&done.stderr));
}

fn is_there(program: &str) -> bool {
    let there = Command::new(program).arg("--version").output().is_ok();
    if !there {
        eprintln!("{program} is not here: bringing a version with it is not tested");
    }
    there
}

/// Waits for the version to serve, and proves that it was opened once, and whole.
async fn serves_whole(server: &Server, version: &str) {
    let status = server.reaches("tiny", version, VersionState::Ready).await;
    eventually("it answers", PATIENCE, async || (stable(server).await == version).then_some(())).await;
    let taken = status.execution.expect("it is ready").artifact_bytes;
    assert_eq!(taken, bytes(&server.store.path().join("tiny").join(version)), "it was not whole");
    assert_eq!(status.notes, [""; 0]);
    let log = server.log();
    let ready = |line: &&str| line.contains("version ready") && line.contains(version);
    assert_eq!(log.lines().filter(ready).count(), 1, "it was opened more than once:\n{log}");
    assert!(!log.contains("failed to load"), "{log}");
}

fn bytes(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries.map(|path| if path.is_dir() { bytes(&path) } else { path.metadata().expect("there").len() }).sum()
}

/// Brings version 1.0.0 of `tiny` with `bring(source, model's folder)`.
async fn is_taken_whole(options: &[&str], bring: impl FnOnce(&str, &str)) {
    // The model's folder is there and watched: what is moved into one that was just made may have to settle.
    let store = Store::new().file("tiny/model.yaml", "");
    let source = version(&store);
    let server = Server::start(store, options).await;
    if options.contains(&NEVER_POLLS) && !has_events(&server) {
        return;
    }
    let model = server.store.path().join("tiny");
    bring(&source, model.to_str().expect("UTF-8"));
    serves_whole(&server, "1.0.0").await;
}

#[tokio::test]
async fn cp() {
    is_taken_whole(&[SETTLE], |source, model| run("cp", &["-r", source, model])).await;
}

#[tokio::test]
async fn cp_that_preserves_times() {
    is_taken_whole(&[SETTLE], |source, model| {
        run("find", &[source, "-exec", "touch", "-d", "2001-01-01", "{}", ";"]);
        run("cp", &["-rp", source, model]);
    })
    .await;
}

#[tokio::test]
async fn rsync() {
    if is_there("rsync") {
        is_taken_whole(&[SETTLE], |source, model| run("rsync", &["-a", source, model])).await;
        is_taken_whole(&[SETTLE], |source, model| run("rsync", &["-a", "--delay-updates", source, model])).await;
    }
}

#[tokio::test]
async fn tar() {
    is_taken_whole(&[SETTLE], |source, model| {
        let archive = format!("{source}.tar");
        run("tar", &["-C", &format!("{source}/.."), "-cf", &archive, "1.0.0"]);
        run("tar", &["-C", model, "-xf", &archive]);
    })
    .await;
}

#[tokio::test]
async fn a_version_that_is_moved_into_place_need_not_settle() {
    is_taken_whole(&[NEVER_SETTLES, NEVER_POLLS], |source, model| run("mv", &[source, model])).await;
}

#[tokio::test]
async fn a_model_that_is_moved_into_place_need_not_settle() {
    is_taken_whole(&[NEVER_SETTLES, NEVER_POLLS], |source, model| {
        fs::remove_dir_all(model).expect("a folder");
        run("mv", &[&format!("{source}/.."), model].map(|path| path.trim_end_matches("/1.0.0/..")));
    })
    .await;
}

#[tokio::test]
async fn git_checkout() {
    if !is_there("git") {
        return;
    }
    let store = tiny();
    let path = store.path();
    let git = |args: &[&str]| {
        let who = ["-C", path.to_str().expect("UTF-8"), "-c", "user.name=n", "-c", "user.email=e@example.org"];
        run("git", &[&who, args].concat());
    };
    let commit = |name: &str| {
        git(&["add", "-A"]);
        git(&["commit", "-qm", name]);
        git(&["tag", name]);
    };
    git(&["init", "-q"]);
    commit("first");
    run("cp", &["-r", &version(&store), path.join("tiny/1.0.1").to_str().expect("UTF-8")]);
    commit("second");
    git(&["checkout", "-q", "first"]);
    let server = Server::start(store, &[SETTLE]).await;
    assert_eq!(stable(&server).await, "1.0.0");
    git(&["checkout", "-q", "second"]);
    serves_whole(&server, "1.0.1").await;
    git(&["checkout", "-q", "first"]);
    eventually("the old one is back", PATIENCE, async || (stable(&server).await == "1.0.0").then_some(())).await;
}

/// As Kubernetes lays out and changes a ConfigMap, a Secret or a projected volume.
#[tokio::test]
async fn a_volume_whose_data_is_swapped() {
    let store = Store::new();
    let root = store.path();
    let lay_out = |folder: &str, version: &str| {
        let place = root.join(folder).join("tiny").join(version);
        fs::create_dir_all(&place).expect("a folder");
        fs::copy(fixture("onnx/tiny.onnx"), place.join("model.onnx")).expect("a copy");
        symlink(folder, root.join("..data_tmp")).expect("a link");
        fs::rename(root.join("..data_tmp"), root.join("..data")).expect("a rename");
    };
    lay_out("..2026_01_01", "1.0.0");
    symlink("..data/tiny", root.join("tiny")).expect("a link");
    let server = Server::start(store, &[NEVER_POLLS]).await;
    if !has_events(&server) {
        return;
    }
    assert_eq!(stable(&server).await, "1.0.0");
    lay_out("..2026_02_02", "1.0.1");
    fs::remove_dir_all(root.join("..2026_01_01")).expect("removed");
    serves_whole(&server, "1.0.1").await;
}

/// Writes a file piece by piece, each after the server has looked at what there is.
async fn write_slowly(server: &Server, file: &Path, contents: &[u8]) {
    let mut file = fs::File::create(file).expect("a file");
    for piece in contents.chunks(contents.len().div_ceil(8)) {
        let before = looks(server);
        file.write_all(piece).expect("written");
        eventually("a look at a piece", PATIENCE, async || (looks(server) > before).then_some(())).await;
        let taken = server.version("tiny", "1.0.0").await.map(|version| version.state());
        assert!(!matches!(taken, Some(VersionState::Ready | VersionState::Failed)), "{taken:?}");
    }
}

#[tokio::test]
async fn a_slow_copy_is_left_alone_until_it_is_done() {
    let server = Server::start(Store::new(), &[SETTLE, LOOKS]).await;
    let source = version(&server.store);
    let place = server.store.path().join("tiny/1.0.0");
    fs::create_dir_all(place.join("sub")).expect("a folder");
    for name in ["model.onnx", "sub/weights.bin"] {
        let contents = fs::read(Path::new(&source).join(name)).expect("a file");
        write_slowly(&server, &place.join(name), &contents).await;
    }
    serves_whole(&server, "1.0.0").await;
}

#[tokio::test]
async fn a_moved_version_that_is_written_to_has_to_settle() {
    let server = Server::start(Store::new().file("tiny/model.yaml", ""), &[NEVER_SETTLES, LOOKS]).await;
    let model = fs::read(fixture("onnx/tiny.onnx")).expect("a fixture");
    let staging = server.store.beside_folder("staging");
    let place = server.store.path().join("tiny/1.0.0");
    // Without a file it is not a version yet.
    fs::rename(staging, &place).expect("a rename");
    write_slowly(&server, &place.join("model.onnx"), &model).await;
    assert!(!server.log().contains("failed to load"));
}

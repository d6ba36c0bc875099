//! `sconce publish`: a version is served whole or is not there, however the publish ends.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::{Value, json};

use super::text;
use crate::{
    harness::{Server, Store, fixture, process, root, sconce, store::files},
    proto::*,
};

/// Only whole versions are taken, and nothing by waiting.
const MANIFEST_ONLY: [&str; 2] = ["--settle-time=60s", "--completeness=manifest"];

/// A folder for a new version, with `weights` bytes beside the model so that a publish takes a while.
fn made(store: &Store, path: &str, weights: usize) -> PathBuf {
    let folder = store.beside_folder(path);
    fs::copy(fixture("onnx/tiny.onnx"), folder.join("model.onnx")).expect("a copy");
    fs::copy(fixture("onnx/tiny.json"), folder.join("example.json")).expect("a copy");
    if weights > 0 {
        let bytes: Vec<u8> = (0..weights).map(|place| (place % 251) as u8).collect();
        fs::write(folder.join("weights.bin"), bytes).expect("a file");
    }
    folder
}

fn publish(store: &Store, arguments: &[&str]) -> Command {
    let mut command = sconce();
    command.arg("publish").args(arguments).env("SCONCE_WORK_DIR", store.beside("publish-work"));
    command.current_dir(store.beside("")).stdin(Stdio::null());
    command
}

fn run(mut command: Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().expect("the program runs");
    (status.code(), text(&stdout), text(&stderr))
}

#[track_caller]
fn succeeds(store: &Store, arguments: &[&str]) -> String {
    let (code, out, err) = run(publish(store, arguments));
    assert_eq!(code, Some(0), "{arguments:?}: {out}{err}");
    out
}

#[track_caller]
fn fails(store: &Store, arguments: &[&str], words: &[&str]) {
    let (code, out, err) = run(publish(store, arguments));
    assert_eq!(code, Some(1), "{arguments:?}: {out}{err}");
    for word in words {
        assert!(err.contains(word), "{arguments:?} does not say '{word}': {err}");
    }
}

#[tokio::test]
async fn a_published_version_is_served_at_once_and_a_repeat_is_harmless() {
    let server = Server::start(Store::new(), &MANIFEST_ONLY).await;
    let store = &server.store;
    let folder = made(store, "out/tiny/1.0.0", 0);
    fs::write(folder.join("version.yaml"), "# by hand\nlibrary: none\n").expect("a file");
    let out = succeeds(store, &["out/tiny/1.0.0", "--to", "store", "--json"]);
    let said: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((&said[0]["model"], &said[0]["already_there"]), (&json!("tiny"), &json!(false)));
    server.reaches("tiny", "1.0.0", VersionState::Ready).await;
    let version = server.version("tiny", "1.0.0").await.expect("it is there");
    assert_eq!(said[0]["digest"], json!(version.digest));
    let yaml = fs::read_to_string(store.path().join("tiny/1.0.0/version.yaml")).expect("a file");
    assert!(yaml.starts_with("# by hand\nfiles:\n") && yaml.ends_with("library: none\n"), "{yaml}");

    assert!(succeeds(store, &["out/tiny/1.0.0", "--to", "store"]).contains("already there"));
    fs::copy(fixture("onnx/scalar.onnx"), folder.join("model.onnx")).expect("a copy");
    fails(
        store,
        &["out/tiny/1.0.0", "--to", "store", "--no-run"],
        &["VERSION_MUTATED", "model.onnx", "another version"],
    );
    // As another version of another name it goes, once its examples are its own.
    fails(store, &["out/tiny/1.0.0", "--to", "store", "--model=scalar"], &["scalar 1.0.0: "]);
    fs::copy(fixture("onnx/scalar.json"), folder.join("example.json")).expect("a copy");
    succeeds(store, &["out/tiny/1.0.0", "--to", "store", "--model=scalar", "--version=2"]);
    server.reaches("scalar", "2.0.0", VersionState::Ready).await;
    server.assert_unharmed().await;
}

#[test]
fn what_is_wrong_is_said_before_anything_is_written() {
    let store = Store::new();
    let folder = made(&store, "out/tiny/1.0.0", 0);
    let arguments = ["out/tiny/1.0.0", "--to", "store"];
    let sha256 = "0".repeat(64);
    fs::write(folder.join("version.yaml"), format!("files: {{ model.onnx: {{ sha256: '{sha256}' }} }}\n"))
        .expect("a file");
    fails(&store, &arguments, &["tiny 1.0.0: DIGEST_MISMATCH", "model.onnx"]);
    fs::write(folder.join("version.yaml"), "librry: x\n").expect("a file");
    fails(&store, &arguments, &["INVALID_MANIFEST", "librry"]);
    fs::remove_file(folder.join("version.yaml")).expect("a file");
    fs::write(folder.join("model.onnx"), "no model").expect("a file");
    fails(&store, &arguments, &["tiny 1.0.0: "]);
    fails(&store, &["out/tiny/1.0.0", "--to", "nowhere"], &["--to: STORE_UNREADABLE", "make it first"]);
    fails(&store, &["out/tiny/1.0.0", "--to", "s3://KEY:SECRET@b/c"], &["INVALID_STORE_URL"]);
    let mut without = publish(&store, &arguments);
    without.env("SCONCE_NATIVE_DIR", store.beside_folder("empty"));
    fs::copy(fixture("onnx/tiny.onnx"), folder.join("model.onnx")).expect("a copy");
    let (code, _, err) = run(without);
    assert!(code == Some(1) && err.contains("LIBRARY_MISSING") && err.contains("--no-run"), "{err}");
    assert!(files(&store.path()).is_empty(), "nothing was written");
}

#[test]
fn a_models_folder_publishes_all_its_versions_and_its_model_yaml() {
    let store = Store::new();
    let sample = root().join("model-store/early-signal");
    let sample = sample.to_str().expect("a path");
    let out = succeeds(&store, &[sample, "--to", "store"]);
    assert!(out.contains("1.0.0: published") && out.contains("1.1.0: published"), "{out}");
    assert_eq!(files(&store.path()).len(), files(Path::new(sample)).len());
    // The model.yaml of the store is its own, unless one says so.
    store.write("early-signal/model.yaml", "versions: all\n");
    store.remove("early-signal/1.1.0");
    let out = succeeds(&store, &[sample, "--to", "store"]);
    assert!(out.contains("1.0.0: already there") && out.contains("1.1.0: published"), "{out}");
    let yaml = || fs::read_to_string(store.path().join("early-signal/model.yaml")).expect("a file");
    assert_eq!(yaml(), "versions: all\n");
    store.remove("early-signal/1.1.0");
    succeeds(&store, &[sample, "--to", "store", "--with-model-yaml"]);
    assert_ne!(yaml(), "versions: all\n");
}

#[test]
fn what_moves_from_staging_to_production_is_byte_for_byte_the_same() {
    let store = Store::new();
    store.beside_folder("staging");
    made(&store, "out/tiny/1.0.0", 3_000_000);
    let moved = ["--from", "staging", "--model", "tiny", "--version", "1", "--to", "store"];
    fails(&store, &moved, &["--from staging: VERSION_NOT_FOUND"]);
    succeeds(&store, &["out/tiny/1.0.0", "--to", "staging"]);
    succeeds(&store, &moved);
    for name in ["model.onnx", "example.json", "weights.bin", "version.yaml"] {
        let read = |root: &str| fs::read(store.beside(root).join("tiny/1.0.0").join(name)).expect("a file");
        assert!(read("staging") == read("store"), "{name} differs");
    }
    assert!(succeeds(&store, &moved).contains("already there"));
    // A bit that flipped in staging does not come through.
    let weights = store.beside("staging/tiny/1.0.0/weights.bin");
    let mut bytes = fs::read(&weights).expect("a file");
    bytes[2_000_000] ^= 1;
    fs::write(&weights, bytes).expect("a file");
    fails(&store, &moved, &["DIGEST_MISMATCH", "weights.bin"]);
}

/// Runs a publish and ends it with a signal after a part of the time that it takes.
async fn cut(store: &Store, arguments: &[&str], after: Duration, signal: Signal) -> (bool, String) {
    let mut command = publish(store, arguments);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program starts");
    tokio::time::sleep(after).await;
    process::kill(child.id(), signal);
    let mut said = String::new();
    child.stderr.take().expect("a pipe").read_to_string(&mut said).expect("text");
    (child.wait().expect("its own child").success(), said)
}

/// How long a whole publish of `out/tiny/2.0.0` takes here.
fn time_of_one(store: &Store) -> Duration {
    store.beside_folder("trial");
    let begun = Instant::now();
    succeeds(store, &["out/tiny/2.0.0", "--to", "trial", "--no-run"]);
    begun.elapsed()
}

#[tokio::test]
async fn a_publish_that_is_killed_is_never_served_by_half() {
    const ROUNDS: usize = 20;
    let store =
        Store::new().model("tiny", "1.0.0", fixture("onnx/tiny.onnx")).file("tiny/model.yaml", "versions: all\n");
    let server = Server::start(store, &["--poll-interval=10ms", "--settle-time=10ms"]).await;
    let store = &server.store;
    made(store, "out/tiny/2.0.0", 8 << 20);
    let whole = time_of_one(store);
    let mut there = Vec::new();
    for round in 0..ROUNDS {
        let number = format!("2.0.{round}");
        let version = format!("--version={number}");
        let arguments = ["out/tiny/2.0.0", "--to", "store", "--no-run", &version];
        let (is_done, _) = cut(store, &arguments, whole.mul_f64(fastrand::f64()), Signal::KILL).await;
        let folder = store.path().join("tiny").join(&number);
        // It may have been faster, or was killed after its rename: then it is whole.
        assert!(!is_done || folder.exists());
        if !folder.exists() && round % 4 != 0 {
            continue;
        }
        succeeds(store, &arguments);
        assert_eq!(files(&folder).len(), 4);
        there.push(number);
    }
    assert!(there.len() < ROUNDS, "none was killed at work");
    for number in &there {
        server.reaches("tiny", number, VersionState::Ready).await;
    }
    let shown = server.describe("tiny").await.versions.into_iter().map(|version| version.version);
    let mut shown: Vec<String> = shown.filter(|version| version != "1.0.0").collect();
    shown.sort();
    there.sort();
    assert_eq!(shown, there, "the server saw a part of one");
    for word in ["DIGEST_MISMATCH", "MISSING_FILE", "STILL_CHANGING", "VERSION_MUTATED"] {
        assert!(!server.log().contains(word), "{}", server.log());
    }
    let leftover = |path: &PathBuf| path.to_string_lossy().contains(".tmp-");
    succeeds(store, &["out/tiny/2.0.0", "--to", "store", "--no-run", "--version=2.1.0"]);
    assert_eq!(files(&store.path()).iter().find(|path| leftover(path)), None, "what the killed ones left was removed");
    server.assert_unharmed().await;
}

#[tokio::test]
async fn a_signal_ends_it_and_leaves_nothing() {
    let store = Store::new();
    made(&store, "out/tiny/2.0.0", 8 << 20);
    let arguments = ["out/tiny/2.0.0", "--to", "store", "--no-run"];
    let whole = time_of_one(&store);
    for signal in [Signal::INT, Signal::TERM] {
        // Later each time; one that comes before the program listens just ends it.
        let mut heard = false;
        for part in 1..10 {
            let (is_done, said) = cut(&store, &arguments, whole.mul_f64(f64::from(part) / 10.0), signal).await;
            if is_done {
                store.remove("tiny");
            }
            assert!(files(&store.path()).is_empty(), "{said}");
            heard |= said.contains("INTERRUPTED");
        }
        assert!(heard, "{signal:?} never met it at work");
    }
    // What a check that was cut short left in the work folder goes with the next publish.
    succeeds(&store, &arguments);
    assert!(files(&store.beside("publish-work")).is_empty());
}

#[test]
fn a_full_disk_is_said_and_nothing_half_is_left() {
    let store = Store::new();
    made(&store, "out/tiny/1.0.0", 3 << 20);
    // A namespace of its own, in which a small disk may be mounted over the store.
    let script = r#"mount -t tmpfs -o size=1m tmpfs store 2>/dev/null || exit 77
        "$0" publish out/tiny/1.0.0 --to store --no-run; echo "ended with $?"; find store -mindepth 1"#;
    let mut command = Command::new("unshare");
    let program = publish(&store, &[]);
    command.args(["-rm", "sh", "-c", script]).arg(program.get_program()).current_dir(store.beside(""));
    command.env("SCONCE_WORK_DIR", store.beside("publish-work"));
    let output = command.output();
    let Some(output) = output.ok().filter(|output| output.status.success()) else {
        eprintln!("no small disk can be mounted here: a full disk is not tested");
        return;
    };
    assert_eq!(text(&output.stdout), "ended with 1\n", "{}", text(&output.stderr));
    let said = text(&output.stderr);
    assert!(said.contains("NO_SPACE") && said.contains("publish again"), "{said}");
}

//! `sconce check`: all that is wrong, with its place, and nothing is changed.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::text;
use crate::harness::{Store, fixture, sconce};

/// Every file below a folder with its contents.
fn listing(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => files.append(&mut listing(&path)),
            false => _ = files.insert(path.clone(), fs::read(&path).expect("a file")),
        }
        files.entry(path).or_default();
    }
    files
}

/// The status and what `sconce check` prints, which changes nothing on the disk.
fn checked(store: &Store, options: &[&str]) -> (Option<i32>, String) {
    let before = listing(&store.path());
    let mut command = sconce();
    command.arg("check").arg(store.path()).args(options);
    command.env("SCONCE_WORK_DIR", store.beside("work"));
    let output = command.output().expect("the program runs");
    assert_eq!(listing(&store.path()), before, "the store was changed");
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

#[test]
fn check_finds_nothing_in_a_good_store() {
    let store = Store::new().sample("early-signal").sample("momentum-lstm").sample("statistical-signal");
    assert_eq!(checked(&store, &[]), (Some(0), "no problems\n".into()));
    assert_eq!(checked(&store, &["--json"]), (Some(0), "[]\n".into()));
}

#[test]
fn check_names_everything_that_is_wrong() {
    let store = Store::new()
        .sample("early-signal")
        .model("cut", "1.0.0", fixture("onnx/tiny.onnx"))
        .file("cut/1.0.0/model.onnx", "no model")
        .model("key", "1.0.0", fixture("onnx/tiny.onnx"))
        .file("key/model.yaml", "# how\nrequird: true\n")
        .model("broken", "2.0.0", fixture("onnx/tiny.onnx"))
        .file("broken/2.0.0/version.yaml", "created: x\nfiles: [\n")
        .model("lies", "1.0.0", fixture("onnx/tiny.onnx"))
        .file("lies/1.0.0/version.yaml", format!("files:\n  model.onnx: {{ sha256: {} }}\n", "0".repeat(64)))
        .model("named", "1.0.0", fixture("onnx/tiny.onnx"))
        .file("named/newest/model.onnx", "")
        .model("routed", "1.0.0", fixture("onnx/tiny.onnx"))
        .file("routed/route.yaml", "# who\nstabel: 1.0.0\n")
        .file("none/model.yaml", "");
    let (code, said) = checked(&store, &[]);
    assert_eq!(code, Some(1), "{said}");
    for words in [
        "cut 1.0.0",
        "key model.yaml:2: unknown field `requird`",
        "broken 2.0.0 version.yaml:",
        "lies 1.0.0: the sha256 of 'model.onnx' is ",
        "named: folder 'newest' is not a version",
        "none: the model has no version",
        "routed route.yaml:2: unknown field `stabel`",
        "\n7 problems\n",
    ] {
        assert!(said.contains(words), "'{words}' is not in\n{said}");
    }
    assert!(!said.contains("early-signal"), "{said}");

    let (code, said) = checked(&store, &["--json"]);
    let problems: Vec<Value> = serde_json::from_str(&said).expect("a JSON list");
    assert_eq!((code, problems.len()), (Some(1), 7));
    let key = problems.iter().find(|problem| problem["model"] == "key").expect("it is there");
    assert_eq!((&key["file"], &key["line"]), (&json!("model.yaml"), &json!(2)));
}

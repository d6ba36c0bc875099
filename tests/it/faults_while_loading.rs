//! What goes wrong while a version is loaded is that version's own affair: the old one serves, and the others load.

use std::os::unix::fs::PermissionsExt;

use rustix::process::Signal;
use sconce::model::DType;
use tonic::{Code, Status};

use crate::{
    harness::{
        PATIENCE, Server, Store, artifacts, assert_refused, eventually, fixture, process, retry_after,
        tensors::{Form, Values, floats},
    },
    proto::*,
};

/// `loop_forever` loops where an input has this value.
const MAGIC: i64 = 424_242;

/// `loop_forever`, but zeros make it loop.
fn loops_at_zero() -> Vec<u8> {
    let mut bytes = std::fs::read(fixture("onnx/loop_forever.onnx")).expect("a fixture");
    let magic = MAGIC.to_le_bytes();
    let at = bytes.windows(8).position(|window| window == magic).expect("its magic number");
    bytes[at..at + 8].fill(0);
    bytes
}

/// A model whose version 1 is sound, and whose warm-up is a run with zeros.
fn store(more: &str) -> Store {
    let store = Store::new().model("patient", "1.0.0", fixture("onnx/loop_forever.onnx"));
    store.file("patient/model.yaml", format!("warmup: [{{ zeros: 1 }}]\n{more}"))
}

/// Publishes a version that hangs in warm-up.
fn publish_hanging(server: &Server) {
    let artifact = server.store.beside("hanging.onnx");
    std::fs::write(&artifact, loops_at_zero()).expect("a file");
    server.store.add("patient", "2.0.0", artifact);
}

fn patient() -> PredictRequest {
    let forever = Values { name: "forever".into(), dtype: DType::Int64, shape: vec![1, 1], raw: vec![0; 8].into() };
    let inputs = [floats("x", &[1, 4], &[1.0; 4]).to_sconce(Form::Raw), forever.to_sconce(Form::Raw)];
    PredictRequest { model: "patient".into(), inputs: inputs.into(), ..Default::default() }
}

async fn served(server: &Server) -> Result<String, Status> {
    Ok(server.predict(patient()).await?.served.expect("who served").version)
}

/// A child that passes whatever it is asked.
fn credulous(store: &Store) -> String {
    let report = r#"{"Passed":{"library":"none","joinable":false,"batching_reason":"nobody looked","cost":[],
        "recipe":{"style":"Random","free":1},"peak_bytes":0,"resident_bytes":0,"memory_bytes":0}}"#;
    let script = format!(
        "#!/bin/sh\nread -r limits\nwhile read -r job; do echo '{}' >&0; done\n",
        report.replace(['\n', ' '], "")
    );
    let path = store.beside("child.sh");
    std::fs::write(&path, script).expect("a file");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).expect("set");
    format!("--child-executable={}", path.display())
}

#[tokio::test]
async fn a_version_that_hangs_in_the_childs_warm_up_fails_alone() {
    let server = Server::start(store(""), &["--child-time=2s", "--loads-at-once=2"]).await;
    publish_hanging(&server);
    server.reaches("patient", "2.0.0", VersionState::Loading).await;
    server.store.add("later", "1.0.0", fixture("onnx/scalar.onnx"));
    server.reaches("later", "1.0.0", VersionState::Ready).await;
    assert_eq!(server.failed("patient", "2.0.0").await.reason, "LOAD_TIMEOUT");
    assert_eq!(served(&server).await.expect("an answer"), "1.0.0");
    server.assert_unharmed().await;
}

#[tokio::test]
async fn a_version_that_hangs_in_the_servers_own_warm_up_fails_alone() {
    let store = store("");
    let child = credulous(&store);
    let server = Server::start(store, &["--child-time=2s", "--loads-at-once=1", &child]).await;
    publish_hanging(&server);
    assert_eq!(server.failed("patient", "2.0.0").await.reason, "WARMUP_TIMEOUT");
    assert_eq!(served(&server).await.expect("an answer"), "1.0.0");
    // The one thread that loads is free for the next.
    server.store.add("later", "1.0.0", fixture("onnx/scalar.onnx"));
    server.reaches("later", "1.0.0", VersionState::Ready).await;
    server.assert_unharmed().await;
}

#[tokio::test]
async fn with_resource_first_nothing_answers_for_a_while_and_the_old_one_stands_in_for_a_broken_one() {
    let server = Server::start(store("swap_policy: resource\n"), &["--child-time=3s"]).await;
    publish_hanging(&server);
    let refused = eventually("the old one makes room", PATIENCE, async || served(&server).await.err()).await;
    let refused = assert_refused("meanwhile", Err::<(), _>(refused), Code::Unavailable, "MODEL_LOADING");
    assert!(retry_after(&refused).is_some(), "{refused:?}");
    server.failed("patient", "2.0.0").await;
    eventually("the old one answers again", PATIENCE, async || {
        served(&server).await.ok().filter(|version| version == "1.0.0")
    })
    .await;
    server.assert_unharmed().await;
}

#[tokio::test]
async fn a_child_that_was_killed_or_stopped_between_versions_holds_up_nobody_for_long() {
    let store = Store::new().model("tiny", "1.0.0", fixture("onnx/tiny.onnx"));
    let server = Server::start(store, &["--child-time=2s", "--loads-at-once=1"]).await;
    for (signal, name) in [(Signal::KILL, "killed"), (Signal::STOP, "stopped")] {
        let children = process::children(server.pid());
        assert!(!children.is_empty(), "a child waits for the next version");
        children.iter().for_each(|child| process::kill(*child, signal));
        server.store.add(name, "1.0.0", fixture("onnx/scalar.onnx"));
        // Other options, so that no pass is remembered.
        server.store.write(&format!("{name}/model.yaml"), format!("batching: {{ max_batch_size: {} }}\n", name.len()));
        server.reaches(name, "1.0.0", VersionState::Ready).await;
    }
    server.assert_unharmed().await;
}

#[tokio::test]
async fn a_version_that_eats_memory_ends_at_the_childs_limit() {
    // It asks for four gigabytes of zeros.
    let example = r#"{ "examples": [ {
        "request": { "inputs": [ { "name": "shape", "datatype": "INT64", "shape": [1], "data": [1073741824] } ] },
        "response": { "outputs": [ { "name": "y", "datatype": "FP32", "shape": [1], "data": [0] } ] } } ] }"#;
    let store = Store::new()
        .model("tiny", "1.0.0", fixture("onnx/tiny.onnx"))
        .file("greedy/1.0.0/model.onnx", artifacts::greedy())
        .file("greedy/1.0.0/example.json", example);
    let server = Server::start(store, &["--child-memory=2GiB"]).await;
    let status = server.failed("greedy", "1.0.0").await;
    let short = ["INSUFFICIENT_MEMORY", "MODEL_ALLOCATION", "EXAMPLE_MISMATCH"];
    assert!(short.contains(&&status.reason[..]), "{}: {}", status.reason, status.message);
    assert!(status.message.to_lowercase().contains("memory"), "{}", status.message);
    server.reaches("tiny", "1.0.0", VersionState::Ready).await;
    server.assert_unharmed().await;
}

#[tokio::test]
async fn a_version_that_would_take_the_server_past_its_memory_is_refused_with_the_figures() {
    const PADDING: usize = 64 << 20;
    let store = Store::new().model("patient", "1.0.0", fixture("onnx/loop_forever.onnx"));
    let server = Server::start(store, &["--memory=144MiB", "--max-message-bytes=4MiB"]).await;
    let folder = server.store.beside_folder("big");
    std::fs::copy(fixture("onnx/loop_forever.onnx"), folder.join("model.onnx")).expect("a copy");
    std::fs::write(folder.join("padding"), vec![0; PADDING]).expect("a file");
    std::fs::rename(folder, server.store.path().join("patient/2.0.0")).expect("a rename");
    let status = server.failed("patient", "2.0.0").await;
    assert_eq!(status.reason, "INSUFFICIENT_MEMORY", "{}", status.message);
    for figure in ["needs 128.0 MiB", "of 144.0 MiB (--memory)", "18.0 MiB stay free"] {
        assert!(status.message.contains(figure), "{figure}: {}", status.message);
    }
    assert_eq!(served(&server).await.expect("an answer"), "1.0.0");
    server.store.add("later", "1.0.0", fixture("onnx/scalar.onnx"));
    let later = server.reaches("later", "1.0.0", VersionState::Ready).await;
    assert!(later.execution.is_some_and(|execution| execution.memory_bytes > 0), "it was measured");
    server.assert_unharmed().await;
}

#[tokio::test]
async fn loads_and_children_stand_back_behind_requests() {
    let server = Server::start(Store::new().model("tiny", "1.0.0", fixture("onnx/tiny.onnx")), &[]).await;
    let pid = server.pid();
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("its threads").flatten();
    let nice: Vec<(String, i32)> = threads.filter_map(|thread| process::name_and_nice(&thread.path())).collect();
    let of = |prefix: &str| -> Vec<i32> {
        nice.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, nice)| *nice).collect()
    };
    assert_eq!(of("load-"), [19, 19], "{nice:?}");
    assert!(!of("core-").is_empty() && of("core-").iter().all(|nice| *nice == of("control")[0]), "{nice:?}");
    let children = process::children(pid);
    assert!(!children.is_empty(), "a child waits for the next version");
    for child in children {
        let folder = format!("/proc/{child}");
        let tasks = std::fs::read_dir(format!("{folder}/task")).expect("its threads").flatten();
        let works: Vec<_> = tasks.filter_map(|task| process::name_and_nice(&task.path())).collect();
        assert!(works.contains(&("probe".into(), 19)), "{works:?}");
        let adjustment = std::fs::read_to_string(format!("{folder}/oom_score_adj")).expect("the child is there");
        assert_eq!(adjustment.trim(), "1000", "the kernel takes it first");
    }
}

//! A version runs where its model.yaml says, or not at all: what is missing is named, and nobody computes on a CPU in silence.
//!
//! Nothing here needs a GPU, nor minds one; `on_a_gpu` does.

use crate::{
    harness::{PATIENCE, Server, Store, assert_refused, eventually, fixture, has_torch, native_dir, root, sconce},
    proto::*,
};
use tonic::Code;

/// More GPUs than any machine of this test has.
const NOT_THERE: &str = "instances: { device: cuda:200 }\n";

fn torch_yaml(more: &str) -> String {
    std::fs::read_to_string(fixture("torch/plain.yaml")).expect("a fixture") + "\n" + more
}

async fn execution(server: &Server, model: &str) -> Execution {
    let version = server.reaches(model, "1.0.0", VersionState::Ready).await;
    version.execution.expect("how it runs")
}

#[tokio::test]
async fn a_gpu_that_is_not_there_is_named_and_the_others_serve() {
    let store = Store::new()
        .model("here", "1.0.0", fixture("onnx/tiny.onnx"))
        .model("there", "1.0.0", fixture("onnx/tiny.onnx"))
        .file("there/model.yaml", NOT_THERE)
        .model("trees", "1.0.0", fixture("lightgbm/binary.txt"))
        .file("trees/model.yaml", NOT_THERE);
    let server = Server::start(store, &[]).await;
    let status = server.failed("there", "1.0.0").await;
    assert_eq!(status.reason, "DEVICE_MISSING", "{}", status.message);
    assert!(status.message.starts_with("device cuda:200: "), "{}", status.message);
    assert!(status.execution.is_none(), "it runs nowhere");
    let trees = server.failed("trees", "1.0.0").await;
    assert_eq!(trees.reason, "UNSUPPORTED_DEVICE", "{}", trees.message);
    assert!(trees.message.contains("lightgbm run on cpu"), "{}", trees.message);
    for model in ["there", "trees"] {
        let request = PredictRequest { model: model.into(), ..Default::default() };
        assert_refused(
            model,
            server.predict(request).await,
            Code::FailedPrecondition,
            "DEVICE_MISSING|UNSUPPORTED_DEVICE",
        );
    }
    let here = execution(&server, "here").await;
    assert_eq!(here.gpu_memory_bytes, 0, "it is on the CPU, or too small to be seen");

    server.store.write("there/model.yaml", "instances: { device: cpu }\n");
    eventually("it serves on the CPU, as it is told now", PATIENCE, async || {
        let there = server.version("there", "1.0.0").await?.execution?;
        (there.device == "cpu").then_some(())
    })
    .await;
    server.assert_unharmed().await;
}

#[tokio::test]
async fn auto_is_the_cpu_where_no_library_is_built_for_a_gpu() {
    if native_dir().join("onnxruntime-gpu").exists() {
        eprintln!("skipped: the CUDA build of ONNX Runtime is here");
        return;
    }
    let store = Store::new().model("tiny", "1.0.0", fixture("onnx/tiny.onnx"));
    let server = Server::start(store, &[]).await;
    let tiny = execution(&server, "tiny").await;
    assert_eq!((&*tiny.device, &*tiny.placement), ("cpu", "loop"));
}

#[tokio::test]
async fn what_a_platform_cannot_be_told_is_refused_by_name() {
    if !has_torch() {
        return;
    }
    let store = Store::new()
        .model("script", "1.0.0", fixture("torch/plain.pt"))
        .file("script/model.yaml", torch_yaml("instances: { device: cuda:0, gpu_memory_limit: 1GiB }"))
        .model("absent", "1.0.0", fixture("torch/plain.pt"))
        .file("absent/model.yaml", torch_yaml(NOT_THERE))
        .model("trt", "1.0.0", fixture("onnx/tiny.onnx"))
        .file("trt/model.yaml", "onnx: { tensorrt: true }\n");
    let server = Server::start(store, &[]).await;
    for (model, reason, named) in [
        ("script", "INVALID_MANIFEST", "gpu_memory_limit is not for torchscript"),
        ("absent", "DEVICE_MISSING", "device cuda:200: "),
        ("trt", "INVALID_MANIFEST", "onnx.tensorrt needs a GPU by its number"),
    ] {
        let status = server.failed(model, "1.0.0").await;
        assert_eq!(status.reason, reason, "{model}: {}", status.message);
        assert!(status.message.contains(named), "{model}: {}", status.message);
    }
}

/// Whoever checks a store need not have the GPUs of those who serve it.
#[test]
fn a_check_does_not_ask_for_the_gpu() {
    let store = Store::new().model("there", "1.0.0", fixture("onnx/tiny.onnx")).file("there/model.yaml", NOT_THERE);
    let output = sconce().arg("check").arg(store.path()).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// `make gpu` where there is none, or none to be seen.
#[test]
fn the_script_for_a_gpu_says_that_there_is_none_and_runs_nothing() {
    let mut script = std::process::Command::new("python3");
    let output = script.arg(root().join("scripts/gpu.py")).env("CUDA_VISIBLE_DEVICES", "").output().expect("Python");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(3), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.starts_with("gpu: this machine has no GPU that CUDA can use: "), "{text}");
    assert!(text.lines().count() == 1 && text.contains("Nothing was run."), "{text}");
}

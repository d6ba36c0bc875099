//! The same models on a GPU: their answers are those of the CPU, instances work at once, and memory that runs out harms nobody
//! else and comes back.
//!
//! `make gpu` runs them; without a GPU they are ignored, and say so where they are asked for.

use std::{process::Command, time::Duration};

use futures_util::future::join_all;
use tonic::Code;

use crate::{
    harness::{
        PATIENCE, Server, Store, artifacts, assert_refused, call, eventually, fixture, has_torch,
        tensors::{Form, Values, fixture_examples, floats, sample_examples},
    },
    proto::*,
};

/// How far a GPU's answer may lie from the CPU's, relative and absolute: FP32 summed in another order.
const FLOATS: (f64, f64) = (1e-3, 1e-4);
/// What no sum is made of comes back as it went.
const EXACT: (f64, f64) = (0.0, 0.0);

/// The first load of CUDA's libraries from a cold disk takes its time.
const OPTIONS: [&str; 2] = ["--child-time=120s", "--cores=2"];

fn used_mib() -> u64 {
    let query = ["--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"];
    let output = Command::new("nvidia-smi").args(query).output().expect("nvidia-smi, which comes with the driver");
    String::from_utf8_lossy(&output.stdout).trim().parse().expect("a number of MiB")
}

/// The artifact twice: as NAME on the GPU, and as NAME-cpu.
fn twice(store: Store, name: &str, artifact: &str, more: &str) -> Store {
    let artifact = fixture(artifact);
    let own = std::fs::read_to_string(artifact.with_extension("yaml")).unwrap_or_default();
    let cpu = format!("{name}-cpu");
    store
        .model(name, "1.0.0", &artifact)
        .file(&format!("{name}/model.yaml"), format!("{own}\ninstances: {{ device: cuda:0{more} }}\n"))
        .model(&cpu, "1.0.0", &artifact)
        .file(&format!("{cpu}/model.yaml"), format!("{own}\ninstances: {{ device: cpu }}\n"))
}

async fn answer(server: &Server, model: &str, inputs: &[Values]) -> Vec<Values> {
    let inputs = inputs.iter().map(|values| values.to_sconce(Form::Raw)).collect();
    let request = PredictRequest { model: model.into(), inputs, ..Default::default() };
    let answer = server.predict(request).await.unwrap_or_else(|status| panic!("{model}: {status}"));
    answer.outputs.iter().map(Values::of_sconce).collect()
}

async fn execution(server: &Server, model: &str) -> Execution {
    let status = eventually(&format!("{model} is loaded"), 4 * PATIENCE, async || {
        server.version(model, "1.0.0").await.filter(|status| status.state() != VersionState::Loading)
    })
    .await;
    assert_eq!(status.state(), VersionState::Ready, "{model}: {} {}", status.reason, status.message);
    status.execution.expect("how it runs")
}

async fn assert_on_the_gpu(server: &Server, model: &str) {
    let execution = execution(server, model).await;
    assert_eq!((&*execution.device, &*execution.placement), ("cuda:0", "threads"), "{model}");
    assert!(execution.one_row_us > 0.0, "{model}: its cost was measured there");
}

/// Both answer alike what the examples ask.
async fn assert_alike(server: &Server, model: &str, asked: &[Vec<Values>], (rtol, atol): (f64, f64)) {
    assert_on_the_gpu(server, model).await;
    assert_eq!(execution(server, &format!("{model}-cpu")).await.device, "cpu");
    for inputs in asked {
        let (here, there) =
            (answer(server, &format!("{model}-cpu"), inputs).await, answer(server, model, inputs).await);
        assert_eq!(here.len(), there.len());
        for (expected, came) in here.iter().zip(&there) {
            came.assert_is(model, expected, rtol, atol);
        }
    }
}

fn asked(examples: sconce::model::ExampleFile) -> Vec<Vec<Values>> {
    let inputs = |example: &sconce::model::Example| example.request.inputs.iter().map(Values::of_example).collect();
    examples.examples.iter().map(inputs).collect()
}

#[tokio::test]
#[ignore = "needs a GPU: make gpu"]
async fn onnx_answers_as_on_the_cpu_in_every_type() {
    let mut store = twice(Store::new(), "tiny", "onnx/tiny.onnx", "");
    let names =
        ["identity_float16", "identity_bfloat16", "identity_int64", "identity_string", "identity_bool", "scalar"];
    for name in names {
        store = twice(store, name, &format!("onnx/{name}.onnx"), "");
    }
    let server = Server::start(store, &OPTIONS).await;
    assert_alike(&server, "tiny", &asked(fixture_examples("onnx/tiny")), FLOATS).await;
    for name in names {
        assert_alike(&server, name, &asked(fixture_examples(&format!("onnx/{name}"))), EXACT).await;
    }
    server.assert_unharmed().await;
}

#[tokio::test]
#[ignore = "needs a GPU: make gpu"]
async fn torchscript_answers_as_on_the_cpu() {
    if !has_torch() {
        return;
    }
    let mut store = Store::new();
    for name in ["plain", "dict_in", "dict_out", "tuple_out"] {
        store = twice(store, name, &format!("torch/{name}.pt"), "");
    }
    let store = store.sample("volatility-transformer");
    let own = std::fs::read_to_string(store.path().join("volatility-transformer/model.yaml")).expect("a sample");
    let store = store.file("volatility-transformer/model.yaml", format!("{own}\ninstances: {{ device: cuda:0 }}\n"));
    let server = Server::start(store, &OPTIONS).await;
    for name in ["plain", "dict_in", "dict_out", "tuple_out"] {
        assert_alike(&server, name, &asked(fixture_examples(&format!("torch/{name}"))), FLOATS).await;
    }
    assert_on_the_gpu(&server, "volatility-transformer").await;
    let examples = sample_examples("volatility-transformer", "1.0.0");
    for example in &examples.examples {
        let inputs: Vec<Values> = example.request.inputs.iter().map(Values::of_example).collect();
        let came = answer(&server, "volatility-transformer", &inputs).await;
        for expected in &example.response.outputs {
            let expected = Values::of_example(expected);
            let came = came.iter().find(|output| output.name == expected.name).expect("every output");
            came.assert_is("volatility-transformer", &expected, FLOATS.0, FLOATS.1);
        }
    }
    server.assert_unharmed().await;
}

#[tokio::test]
#[ignore = "needs a GPU: make gpu"]
async fn several_instances_answer_each_caller_its_own() {
    let mut models = vec![("tiny", "onnx/tiny")];
    if has_torch() {
        models.push(("plain", "torch/plain"));
    }
    let laid_down = models.iter().fold(Store::new(), |store, (name, file)| {
        let extension = if file.starts_with("onnx") { "onnx" } else { "pt" };
        twice(store, name, &format!("{file}.{extension}"), ", count: 3")
    });
    let server = Server::start(laid_down, &OPTIONS).await;
    for (model, file) in models {
        let asked = asked(fixture_examples(file));
        assert_on_the_gpu(&server, model).await;
        let inputs = &asked[0];
        let expected = answer(&server, &format!("{model}-cpu"), inputs).await;
        let client = server.inference().await;
        let callers = (0..64).map(|_| {
            let mut client = client.clone();
            let inputs = inputs.iter().map(|values| values.to_sconce(Form::Raw)).collect();
            let request = PredictRequest { model: model.into(), inputs, ..Default::default() };
            let expected = &expected;
            async move {
                for _ in 0..50 {
                    let answer = client.predict(call(request.clone())).await.expect("an answer").into_inner();
                    for (came, expected) in answer.outputs.iter().zip(expected) {
                        Values::of_sconce(came).assert_is(model, expected, FLOATS.0, FLOATS.1);
                    }
                }
            }
        });
        join_all(callers).await;
    }
    server.assert_unharmed().await;
}

/// As many zeros as asked for.
fn zeros(count: i64) -> PredictRequest {
    let shape = Values {
        name: "shape".into(),
        dtype: sconce::model::DType::Int64,
        shape: vec![1],
        raw: bytes::Bytes::copy_from_slice(&count.to_le_bytes()),
    };
    PredictRequest { model: "greedy".into(), inputs: vec![shape.to_sconce(Form::Raw)], ..Default::default() }
}

#[tokio::test]
#[ignore = "needs a GPU: make gpu"]
async fn memory_that_runs_out_is_said_and_harms_nobody() {
    for limit in [", gpu_memory_limit: 64MiB", ""] {
        // Past the limit by much; past any GPU's memory by much.
        let too_many = if limit.is_empty() { 1 << 42 } else { 1 << 26 };
        let store = twice(Store::new(), "tiny", "onnx/tiny.onnx", "")
            .file("greedy/1.0.0/model.onnx", artifacts::greedy())
            .file("greedy/model.yaml", format!("batching: off\ninstances: {{ device: cuda:0{limit} }}\n"));
        let server = Server::start(store, &OPTIONS).await;
        assert_on_the_gpu(&server, "greedy").await;
        let inputs = &asked(fixture_examples("onnx/tiny"))[0];
        for _ in 0..3 {
            server.predict(zeros(1000)).await.expect("it fits");
            let refused = server.predict(zeros(too_many)).await;
            assert_refused("too many", refused, Code::ResourceExhausted, "DEVICE_OUT_OF_MEMORY");
            answer(&server, "tiny", inputs).await;
        }
        server.assert_unharmed().await;
    }
}

/// Version 1.0.0 of the model `large`, all of it at once.
fn publish(server: &Server, file: &str, artifact: &[u8], yaml: &str) {
    let place = server.store.beside(file);
    std::fs::write(&place, artifact).expect("a file");
    std::fs::write(place.with_extension("yaml"), yaml).expect("a file");
    server.store.add("large", "1.0.0", place);
}

/// 256 MiB of weights.
const SIDE: usize = 8192;

/// Waits until the GPU has no more in use than that.
async fn falls_to(mib: u64) {
    eventually("the GPU has its memory back", 2 * PATIENCE, async || {
        // nvidia-smi is no light thing to start.
        tokio::time::sleep(Duration::from_millis(200)).await;
        (used_mib() <= mib).then_some(())
    })
    .await;
}

/// What libraries keep for good, such as kernels that they load when they first need them, they have after one round.
const SLACK_MIB: u64 = 64;

#[tokio::test]
#[ignore = "needs a GPU: make gpu"]
async fn memory_is_measured_and_comes_back() {
    let store = twice(Store::new(), "tiny", "onnx/tiny.onnx", "");
    let server = Server::start(store, &OPTIONS).await;
    assert_on_the_gpu(&server, "tiny").await;
    let artifact = artifacts::square_onnx(1, SIDE);
    let mut rest = None;
    for _ in 0..4 {
        publish(&server, "large.onnx", &artifact, "instances: { device: cuda:0 }\nbatching: { max_batch_size: 4 }\n");
        let large = execution(&server, "large").await;
        assert!((200 << 20..2 << 30).contains(&large.gpu_memory_bytes), "{} bytes", large.gpu_memory_bytes);
        let x = floats("x", &[1, SIDE as i64], &vec![0.5; SIDE]);
        answer(&server, "large", &[x]).await;
        let there = used_mib();
        server.store.remove("large");
        falls_to(there - 200).await;
        falls_to(rest.map_or(u64::MAX, |rest: u64| rest + SLACK_MIB)).await;
        rest.get_or_insert(used_mib());
    }
    server.assert_unharmed().await;
}

#[tokio::test]
#[ignore = "needs a GPU: make gpu"]
async fn torchscript_gives_its_memory_back_too() {
    if !has_torch() {
        return;
    }
    let store = twice(Store::new(), "plain", "torch/plain.pt", "");
    let server = Server::start(store, &OPTIONS).await;
    assert_on_the_gpu(&server, "plain").await;
    let mut rest = None;
    for seed in 0..20 {
        let yaml = artifacts::large_torch_yaml() + "instances: { device: cuda:0 }\n";
        publish(&server, "large.pt", &artifacts::large_torch(seed % 3), &yaml);
        assert_on_the_gpu(&server, "large").await;
        server.store.remove("large");
        let gone = async || server.version("large", "1.0.0").await.is_none().then_some(());
        eventually("it is gone", 2 * PATIENCE, gone).await;
        rest.get_or_insert_with(used_mib);
    }
    falls_to(rest.map_or(0, |rest| rest + SLACK_MIB)).await;
    server.assert_unharmed().await;
}

//! Requests of different lengths share a batch where the model pads, and nobody's answer shows it.

use futures_util::future::join_all;
use tokio::sync::OnceCell;
use tonic::Code;

use crate::{
    harness::{
        Server, Store, assert_refused, call, fixture, http,
        tensors::{Form, Values, fixture_examples},
    },
    proto::*,
};

/// The model waits until there are four rows: those of the first three examples, whose lengths of 1, 3 and 4 become 4.
const ROWS: u32 = 4;
const BATCHING: &str = "batching: { max_batch_size: 4, max_delay: 50s, queue_timeout: 60s }\n";
const PADDED_INPUTS: &str = "inputs:
  - { name: tokens, dtype: INT64, shape: [-1, -1], pad: { to: [4, 8], value: 15 } }
  - { name: mask, dtype: INT64, shape: [-1, -1], pad: { to: [4, 8] } }\n";
const STATES: &str = "outputs: [{ name: states, dtype: FP32, shape: [-1, -1, 4], unpad: { like: tokens } }]\n";
const TOKENS: &str = "inputs: [{ name: tokens, dtype: INT64, shape: [-1, -1], pad: { to: [4, 8] } }]\n";

async fn server() -> &'static Server {
    static SERVER: OnceCell<Server> = OnceCell::const_new();
    SERVER
        .get_or_init(async || {
            let masked = fixture("onnx/masked_tokens.onnx");
            let mut store = Store::new().model("unmasked", "1.0.0", fixture("onnx/unmasked_tokens.onnx"));
            for (name, yaml) in [
                ("masked", [BATCHING, PADDED_INPUTS, STATES].concat()),
                ("on-threads", [BATCHING, PADDED_INPUTS, STATES, "instances: { placement: threads }\n"].concat()),
                ("alone", [PADDED_INPUTS, STATES].concat()),
                ("not-cut", PADDED_INPUTS.to_owned()),
            ] {
                store = store.model(name, "1.0.0", &masked).file(&format!("{name}/model.yaml"), yaml);
            }
            let store = store.file("unmasked/model.yaml", TOKENS);
            Server::start(store, &["--cores=1"]).await
        })
        .await
}

async fn padding(model: &str) -> (bool, String) {
    let version = server().await.reaches(model, "1.0.0", VersionState::Ready).await;
    let execution = version.execution.expect("how it runs");
    assert!(execution.batching, "{}", execution.batching_reason);
    (execution.padding, execution.batching_reason)
}

fn request(model: &str, inputs: &[Values]) -> PredictRequest {
    let inputs = inputs.iter().map(|values| values.to_sconce(Form::Raw)).collect();
    PredictRequest { model: model.into(), inputs, ..Default::default() }
}

/// The inputs and answers that onnxruntime gave, each request at its own length.
fn examples(name: &str) -> Vec<(Vec<Values>, Vec<Values>)> {
    let examples = fixture_examples(&format!("onnx/{name}")).examples.into_iter();
    let of = |tensors: &[sconce::model::ExampleTensor]| tensors.iter().map(Values::of_example).collect();
    examples.map(|example| (of(&example.request.inputs), of(&example.response.outputs))).collect()
}

fn assert_answers(what: &str, answer: &PredictResponse, expected: &[Values]) {
    for wanted in expected {
        let output = answer.outputs.iter().find(|output| output.name == wanted.name).expect("an output of that name");
        let came = Values::of_sconce(output);
        assert_eq!(came.shape, wanted.shape, "{what}: {}", wanted.name);
        came.assert_is(what, wanted, 1e-5, 1e-6);
    }
}

async fn share_a_batch(model: &str) {
    assert_eq!(padding(model).await, (true, "joined requests answered as each alone, padded ones, too".into()));
    let client = server().await.inference().await;
    let examples = examples("masked_tokens");
    let calls = examples[..3].iter().map(|(inputs, expected)| {
        let mut client = client.clone();
        async move {
            let answer = client.predict(call(request(model, inputs))).await.expect("an answer").into_inner();
            assert_answers(model, &answer, expected);
            assert_eq!(answer.timing.expect("the times").batch_rows, ROWS, "they ran together");
        }
    });
    join_all(calls).await;
}

#[tokio::test]
async fn different_lengths_are_one_batch_in_the_loop_and_on_threads() {
    share_a_batch("masked").await;
    share_a_batch("on-threads").await;
    let (_, metrics) = http::get(server().await.ports.metrics, "/metrics").await.expect("metrics");
    let series = "sconce_batch_padding_ratios_sum{model=\"masked\",version=\"1.0.0\"}";
    let line = metrics.lines().find_map(|line| line.strip_prefix(series)).expect("of a model that pads");
    // Of 16 places for tokens 5 are filled in, and as many of the mask.
    assert_eq!(line.trim().parse(), Ok(5.0 / 16.0));
    assert!(!metrics.contains("sconce_batch_padding_ratios_sum{model=\"unmasked\""), "{metrics}");
}

#[tokio::test]
async fn a_request_that_runs_alone_is_padded_and_cut_back_too() {
    assert!(padding("alone").await.0);
    for (inputs, expected) in examples("masked_tokens") {
        let answer = server().await.predict(request("alone", &inputs)).await.expect("an answer");
        assert_answers("alone", &answer, &expected);
    }
}

#[tokio::test]
async fn what_padding_would_change_is_not_padded_and_says_so() {
    for (model, fixture, says) in [
        ("unmasked", "unmasked_tokens", "they are not padded: output 'mean' differs when requests are padded"),
        ("not-cut", "masked_tokens", "output 'states' has another shape when requests are padded; say unpad for it"),
    ] {
        let (pads, reason) = padding(model).await;
        assert!(!pads && reason.contains(says), "{reason}");
        for (inputs, expected) in examples(fixture) {
            let answer = server().await.predict(request(model, &inputs)).await.expect("an answer");
            assert_answers(model, &answer, &expected);
        }
    }
}

#[tokio::test]
async fn what_is_longer_than_the_largest_size_is_refused_whether_it_would_be_padded_or_not() {
    let tensor = |name: &str| Tensor {
        name: name.into(),
        dtype: DataType::Int64.into(),
        shape: vec![1, 9],
        raw: vec![0; 72].into(),
        ..Default::default()
    };
    for (model, inputs) in [("alone", vec![tensor("tokens"), tensor("mask")]), ("unmasked", vec![tensor("tokens")])] {
        let request = PredictRequest { model: model.into(), inputs, ..Default::default() };
        let refused = server().await.predict(request).await;
        let status = assert_refused(model, refused, Code::InvalidArgument, "DIMENSION_TOO_LARGE");
        assert!(status.message().contains("input 'tokens': dimension 1 is at most 8"), "{}", status.message());
    }
    let version = server().await.reaches("alone", "1.0.0", VersionState::Ready).await;
    assert_eq!(version.inputs[0].pad, Some(Pad { dim: 1, to: vec![4, 8] }));
}

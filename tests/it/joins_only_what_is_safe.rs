//! Joined answers are equal answers: what may be joined is, what may not is not, and no caller sees another's rows.

use std::sync::atomic::{AtomicU32, Ordering};

use futures_util::future::join_all;
use tokio::sync::OnceCell;
use tonic::Code;

use crate::{
    harness::{
        Server, Store, assert_refused, call, fixture, http,
        tensors::{Form, Values, fixture_examples, floats},
    },
    proto::*,
};

const CALLERS: usize = 16;
const ROUNDS: usize = 12;
/// It waits until there are three rows.
const THREE_AT_ONCE: &str = "batching: { max_batch_size: 3, max_delay: 25s, queue_timeout: 30s }\n";

async fn server() -> &'static Server {
    static SERVER: OnceCell<Server> = OnceCell::const_new();
    SERVER
        .get_or_init(async || {
            let mut store = Store::new();
            for name in ["tiny", "lstm_sequence_first", "shared_input", "slow"] {
                store = store.model(name, "1.0.0", fixture(&format!("onnx/{name}.onnx")));
            }
            let store = store
                .model("off", "1.0.0", fixture("onnx/tiny.onnx"))
                .file("off/model.yaml", "batching: off\n")
                .model("tokens", "1.0.0", fixture("onnx/unmasked_tokens.onnx"))
                .file("tokens/model.yaml", THREE_AT_ONCE);
            Server::start(store, &[]).await
        })
        .await
}

async fn execution(model: &str) -> (VersionStatus, Execution) {
    let version = server().await.reaches(model, "1.0.0", VersionState::Ready).await;
    let execution = version.execution.clone().expect("how it runs");
    (version, execution)
}

fn request(model: &str, inputs: &[Values]) -> PredictRequest {
    PredictRequest {
        model: model.into(),
        inputs: inputs.iter().map(|values| values.to_sconce(Form::Raw)).collect(),
        ..Default::default()
    }
}

/// Many callers at once, each with inputs of its own by caller and round; `check` gets those and the answer. Returns the most
/// rows that ran together.
async fn at_once(
    model: &str,
    inputs: impl Fn(usize, usize) -> Vec<Values>,
    check: impl Fn(&[Values], &[Values]),
) -> u32 {
    let server = server().await;
    let (inputs, check, most) = (&inputs, &check, &AtomicU32::new(0));
    let client = server.inference().await;
    let callers = (0..CALLERS).map(|caller| {
        let mut client = client.clone();
        async move {
            for round in 0..ROUNDS {
                let given = inputs(caller, round);
                let answer = client.predict(call(request(model, &given))).await.expect("an answer").into_inner();
                let outputs: Vec<Values> = answer.outputs.iter().map(Values::of_sconce).collect();
                check(&given, &outputs);
                most.fetch_max(answer.timing.expect("the times").batch_rows, Ordering::Relaxed);
            }
        }
    });
    join_all(callers).await;
    most.load(Ordering::Relaxed)
}

/// `rows` rows of `width` numbers that no other caller has.
fn own_rows(name: &str, rows: usize, width: usize, caller: usize, round: usize) -> Values {
    let first = (caller * ROUNDS + round) * 100;
    let values: Vec<f32> = (0..rows * width).map(|place| (first + place) as f32 / 8.0).collect();
    floats(name, &[rows as i64, width as i64], &values)
}

#[tokio::test]
async fn concurrent_callers_get_their_own_rows() {
    let (_, execution) = execution("tiny").await;
    assert!(execution.batching, "{}", execution.batching_reason);
    let inputs = |caller, round| {
        let rows = 1 + (caller + round) % 5;
        ["INPUT0", "INPUT1"].map(|name| own_rows(name, rows, 16, caller, round)).to_vec()
    };
    at_once("tiny", inputs, |given, outputs| {
        let twice: Vec<f64> = given[0].numbers().iter().map(|value| 2.0 * value).collect();
        assert_eq!(outputs[0].numbers(), twice);
        assert!(outputs[1].numbers().iter().all(|value| *value == 0.0));
        assert_eq!(outputs[0].shape, given[0].shape);
    })
    .await;
}

#[tokio::test]
async fn callers_of_a_dear_model_share_its_runs() {
    let (_, execution) = execution("slow").await;
    assert!(execution.batching && execution.placement == "threads", "{execution:?}");
    let alone = Values::of_example(&fixture_examples("onnx/slow").examples[0].response.outputs[0]);
    let given = Values::of_example(&fixture_examples("onnx/slow").examples[0].request.inputs[0]);
    let check = |_: &[Values], outputs: &[Values]| outputs[0].assert_is("joined", &alone, 1e-4, 1e-5);
    let most = at_once("slow", |_, _| vec![given.clone()], check).await;
    assert!(most > 1, "no two of {CALLERS} callers at once ran together");
}

#[tokio::test]
async fn a_sequence_first_lstm_answers_as_alone() {
    let (version, execution) = execution("lstm_sequence_first").await;
    assert!(!execution.batching);
    assert!(!execution.batching_reason.is_empty(), "it says why it is not batched");
    assert!(version.inputs.iter().all(|input| !input.batch), "{:?}", version.inputs);

    let server = server().await;
    let sequence = |caller: usize, round: usize| {
        let steps = 1 + (caller + round) % 4;
        let values: Vec<f32> = (0..3 * steps).map(|place| ((caller + place) as f32).sin()).collect();
        vec![floats("sequence", &[steps as i64, 1, 3], &values)]
    };
    // Each caller's answers alone, one after another.
    let mut alone = Vec::new();
    for caller in 0..CALLERS {
        for round in 0..ROUNDS {
            let given = sequence(caller, round);
            let answer = server.predict(request("lstm_sequence_first", &given)).await.expect("an answer");
            alone.push((given[0].raw.clone(), Values::of_sconce(&answer.outputs[0])));
        }
    }
    at_once("lstm_sequence_first", sequence, |given, outputs| {
        let (_, expected) = alone.iter().find(|(raw, _)| *raw == given[0].raw).expect("it was asked alone");
        assert_eq!(&outputs[0], expected);
    })
    .await;
}

#[tokio::test]
async fn an_input_that_is_not_joined_is_shared_only_by_requests_that_agree_on_it() {
    let (version, execution) = execution("shared_input").await;
    let batched: Vec<(&str, bool)> = version.inputs.iter().map(|input| (&input.name[..], input.batch)).collect();
    assert_eq!(batched, [("x", execution.batching), ("scale", false)]);
    let inputs = |caller: usize, round| {
        let scale = [1.0, -2.0, 0.5][caller % 3];
        vec![own_rows("x", 2, 4, caller, round), floats("scale", &[4], &[scale; 4])]
    };
    at_once("shared_input", inputs, |given, outputs| {
        let scale = given[1].numbers()[0];
        let expected: Vec<f64> = given[0].numbers().iter().map(|value| value * scale).collect();
        assert_eq!(outputs[0].numbers(), expected);
    })
    .await;
}

#[tokio::test]
async fn batching_off_runs_each_request_alone() {
    let (_, execution) = execution("off").await;
    assert!(!execution.batching && execution.batching_reason.contains("model.yaml"), "{}", execution.batching_reason);
    let inputs = |caller, round| ["INPUT0", "INPUT1"].map(|name| own_rows(name, 3, 16, caller, round)).to_vec();
    let most = at_once("off", inputs, |given, outputs| assert_eq!(outputs[0].shape, given[0].shape)).await;
    assert!(most <= 3, "{most} rows ran together");
}

#[tokio::test]
async fn only_the_guilty_request_of_a_batch_gets_its_error() {
    let (_, execution) = execution("tokens").await;
    assert!(execution.batching, "{}", execution.batching_reason);
    let server = server().await;
    let client = server.inference().await;
    let examples = fixture_examples("onnx/unmasked_tokens");
    let given = Values::of_example(&examples.examples[2].request.inputs[0]);
    let expected = Values::of_example(&examples.examples[2].response.outputs[0]);
    // The embedding has 16 tokens: ONNX Runtime refuses the batch that this one is in.
    let unknown = Values { raw: given.numbers().iter().flat_map(|_| 99i64.to_le_bytes()).collect(), ..given.clone() };
    let calls = [&given, &unknown, &given].map(|values| {
        let mut client = client.clone();
        async move { client.predict(call(request("tokens", std::slice::from_ref(values)))).await }
    });
    let [first, guilty, last] = <[_; 3]>::try_from(join_all(calls).await).expect("three answers");
    assert_refused("an unknown token", guilty, Code::Internal, "BACKEND_FAILED");
    for answer in [first, last] {
        let answer = answer.expect("it did nothing wrong").into_inner();
        Values::of_sconce(&answer.outputs[0]).assert_is("beside a guilty one", &expected, 1e-5, 1e-6);
    }
    let metrics = http::get(server.ports.metrics, "/metrics").await.expect("the metrics").1;
    let full = "sconce_batches_total{model=\"tokens\",version=\"1.0.0\",reason=\"full\"} 1";
    assert!(metrics.contains(full), "they were one batch: {metrics}");
}

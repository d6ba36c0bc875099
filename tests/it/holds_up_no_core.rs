//! A model whose run does not come back on certain data: the other models of its core answer on, it is put on threads of its own,
//! and nobody but the one who asked for it gets an error. Where that one goes away, the run is ended.

use std::time::Duration;

use bytes::Bytes;
use tonic::Code;

use crate::{
    harness::{
        PATIENCE, Server, Store, assert_refused, call, eventually, fixture, http,
        tensors::{Form, Values, fixture_examples, floats},
    },
    proto::*,
};

/// The value that makes the model loop for ever.
const FOR_EVER: i64 = 424_242;

fn looping(value: i64) -> PredictRequest {
    let forever = Tensor {
        name: "forever".into(),
        dtype: DataType::Int64.into(),
        shape: vec![1, 1],
        raw: Bytes::copy_from_slice(&value.to_le_bytes()),
        ..Default::default()
    };
    let x = floats("x", &[1, 4], &[1.0, 2.0, 3.0, 4.0]).to_sconce(Form::Raw);
    PredictRequest { model: "loop_forever".into(), inputs: vec![x, forever], ..Default::default() }
}

fn tiny() -> PredictRequest {
    let example = &fixture_examples("onnx/tiny").examples[0];
    let inputs = example.request.inputs.iter().map(|tensor| Values::of_example(tensor).to_sconce(Form::Raw));
    PredictRequest { model: "tiny".into(), inputs: inputs.collect(), ..Default::default() }
}

async fn placement(server: &Server) -> String {
    let model = server.describe("loop_forever").await;
    model.versions[0].execution.clone().map(|execution| execution.placement).unwrap_or_default()
}

#[tokio::test]
async fn what_loops_on_certain_data_holds_up_nobody_for_long() {
    let store = Store::new().model("tiny", "1.0.0", fixture("onnx/tiny.onnx")).model(
        "loop_forever",
        "1.0.0",
        fixture("onnx/loop_forever.onnx"),
    );
    let server = Server::start(store, &["--cores=1"]).await;
    server.predict(looping(1)).await.expect("other data are answered");
    assert_eq!(placement(&server).await, "loop", "it is cheap");

    let mut client = server.inference().await;
    let endless = tokio::spawn(async move {
        let request = PredictRequest { timeout_ms: 3000, ..looping(FOR_EVER) };
        client.predict(call(request)).await
    });
    eventually("the core is held up", PATIENCE, async || {
        let (_, text) = http::get(server.ports.metrics, "/metrics").await.ok()?;
        text.lines()
            .find(|line| line.starts_with("sconce_core_holds_total{model=\"loop_forever\"") && !line.ends_with(" 0"))?;
        Some(())
    })
    .await;
    // The same core answers others, and others of the same model, while that one goes on elsewhere.
    for _ in 0..20 {
        server.predict(tiny()).await.expect("another model answers");
        assert!(!endless.is_finished(), "it still has time");
    }
    assert_eq!(placement(&server).await, "threads");
    let (status, _) = http::get(server.ports.http, "/livez").await.expect("an answer");
    assert_eq!(status, 200, "a core that turns again is no reason to start anew");

    let refused = tokio::time::timeout(PATIENCE, endless).await.expect("it ends in time").expect("no panic");
    assert_refused("for ever", refused, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    // Its thread is free again: the run was ended, as nobody waited for it any more.
    let answered = tokio::time::timeout(Duration::from_secs(10), server.predict(looping(1))).await;
    answered.expect("the thread is not stuck").expect("an answer");
    assert!(server.log().contains("a run holds up a core"), "{}", server.log());
    server.assert_unharmed().await;
}

/// How many batches of it were begun.
async fn begun(server: &Server) -> Option<u64> {
    let (_, text) = http::get(server.ports.metrics, "/metrics").await.ok()?;
    let of_model = |line: &&str| line.starts_with("sconce_batches_total{model=\"loop_forever\"");
    text.lines().filter(of_model).map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

#[tokio::test]
async fn a_run_whose_caller_goes_away_is_ended() {
    let yaml = "instances: { placement: threads }\nbatching: { queue_timeout: 60s }\n";
    let store = Store::new().model("loop_forever", "1.0.0", fixture("onnx/loop_forever.onnx"));
    let server = Server::start(store.file("loop_forever/model.yaml", yaml), &["--cores=1"]).await;
    let (client, oip) = (server.inference().await, server.oip().await);
    for way in ["it cancels", "it hangs up", "it cancels a ModelInfer", "it leaves a stream"] {
        let before = begun(&server).await.expect("the metrics");
        let (mut client, mut oip) = (client.clone(), oip.clone());
        let mut own = server.inference().await;
        let endless = tokio::spawn(async move {
            match way {
                "it cancels" => drop(client.predict(call(looping(FOR_EVER))).await),
                "it hangs up" => drop(own.predict(call(looping(FOR_EVER))).await),
                "it cancels a ModelInfer" => drop(oip.model_infer(call(looping_infer(FOR_EVER))).await),
                _ => {
                    // With questions yet to come, hyper's client resets nothing when the answers are dropped.
                    let questions = tokio_stream::once(looping_infer(FOR_EVER));
                    let mut answers = oip.model_stream_infer(questions).await.expect("a stream").into_inner();
                    drop(answers.message().await);
                }
            }
        });
        eventually("it runs", PATIENCE, async || (begun(&server).await? > before).then_some(())).await;
        assert!(!endless.is_finished());
        endless.abort();
        let answered = tokio::time::timeout(Duration::from_secs(20), server.predict(looping(1))).await;
        answered.unwrap_or_else(|_| panic!("{way}: its thread is not free again")).expect("an answer");
    }
    server.assert_unharmed().await;
}

fn looping_infer(value: i64) -> oip::ModelInferRequest {
    let mut request = oip::ModelInferRequest { model_name: "loop_forever".into(), ..Default::default() };
    let forever = Values {
        name: "forever".into(),
        dtype: sconce::model::DType::Int64,
        shape: vec![1, 1],
        raw: value.to_le_bytes().to_vec().into(),
    };
    floats("x", &[1, 4], &[1.0, 2.0, 3.0, 4.0]).into_oip(&mut request, Form::Raw);
    forever.into_oip(&mut request, Form::Raw);
    request
}

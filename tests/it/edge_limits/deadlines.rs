//! `grpc-timeout` and `timeout_ms`.

use std::time::{Duration, Instant};

use tonic::Code::{DeadlineExceeded, InvalidArgument};

use super::{assert_unharmed, store, tiny, tiny_frame};
use crate::{
    harness::{
        PATIENCE, Server, assert_refused, call, eventually, fixture, http,
        raw::{Connection, INFER, PREDICT},
        tensors::{Form, floats},
    },
    proto::*,
};

#[tokio::test]
async fn a_deadline_that_passed_is_exceeded_and_a_malformed_one_is_refused() {
    let server = Server::start(store(), &[]).await;
    let mut connection = Connection::open(server.ports.grpc).await;
    for path in [PREDICT, INFER] {
        let answer = connection.call(path, &[("grpc-timeout", "0m")], tiny_frame()).await;
        assert_refused("no time", answer.result(), DeadlineExceeded, "DEADLINE_EXCEEDED");
        let answer = connection.call(path, &[("grpc-timeout", "1n")], tiny_frame()).await;
        assert_refused("a nanosecond", answer.result(), DeadlineExceeded, "DEADLINE_EXCEEDED");
        for malformed in ["soon", "", "-1S", "1.5S", "123456789S", "1 S", "S", "99999999999999999999H"] {
            let answer = connection.call(path, &[("grpc-timeout", malformed)], tiny_frame()).await;
            assert_refused(&format!("{malformed:?}"), answer.result(), InvalidArgument, "INVALID_TIMEOUT");
        }
    }
    for fine in ["30S", "99999999H", "1000000u"] {
        let answer = connection.call(PREDICT, &[("grpc-timeout", fine)], tiny_frame()).await;
        answer.result().unwrap_or_else(|status| panic!("{fine}: {status}"));
    }
    assert_unharmed(&server, &mut connection).await;
}

fn slow(rows: i64) -> PredictRequest {
    let values = vec![0.5; usize::try_from(8 * rows).expect("a count")];
    PredictRequest {
        model: "slow".into(),
        inputs: vec![floats("x", &[rows, 8], &values).to_sconce(Form::Raw)],
        ..Default::default()
    }
}

#[tokio::test]
async fn what_expires_in_the_queue_is_answered_in_time_and_not_run() {
    let server = Server::start(store().model("slow", "1.0.0", fixture("onnx/slow.onnx")), &[]).await;
    let mut long = server.inference().await;
    let running = tokio::spawn(async move { long.predict(call(slow(500))).await });
    eventually("the long call runs", PATIENCE, async || {
        let (_, text) = http::get(server.ports.metrics, "/metrics").await.ok()?;
        text.contains("sconce_requests_in_flight 1").then_some(())
    })
    .await;
    let mut client = server.inference().await;
    let begun = Instant::now();
    let request = PredictRequest { timeout_ms: 100, ..slow(1) };
    let answer = client.predict(call(request)).await;
    let took = begun.elapsed();
    assert_refused("100 ms behind a call of two seconds", answer, DeadlineExceeded, "DEADLINE_EXCEEDED");
    assert!(took < Duration::from_millis(1500), "{took:?}");
    running.await.expect("no panic").expect("the long call is answered");
    let (_, text) = http::get(server.ports.metrics, "/metrics").await.expect("metrics");
    let runs = text.lines().find(|line| line.starts_with("sconce_batch_rows_sum{model=\"slow\"")).unwrap_or_default();
    assert!(runs.ends_with(" 500.0"), "rows that ran: {runs}");
    client.predict(call(tiny())).await.expect("the others are served");
}

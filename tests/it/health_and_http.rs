//! Health, readiness, reflection and metrics, and the way out.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::{
    harness::{
        PATIENCE, Server, Store, call, channel, eventually, fixture, http, process,
        tensors::{Form, floats},
    },
    proto::*,
};

fn check(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.into() }
}

fn store() -> Store {
    Store::new().model("tiny", "1.0.0", fixture("onnx/tiny.onnx")).model("slow", "1.0.0", fixture("onnx/slow.onnx"))
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
async fn health_tells_of_the_server_its_services_and_each_model() {
    let server = Server::start(store(), &[]).await;
    let mut health = server.health().await;
    for service in ["", "tiny", "sconce.v1.Inference", "inference.GRPCInferenceService"] {
        let answer = health.check(call(check(service))).await.expect(service).into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service}");
    }
    let unknown = health.check(call(check("no-such-model"))).await.expect_err("unknown");
    assert_eq!(unknown.code(), Code::NotFound);

    let mut watch = health.watch(check("later")).await.expect("a watch").into_inner();
    let first = watch.message().await.expect("the watch lives").expect("a status");
    assert_eq!(first.status(), ServingStatus::ServiceUnknown);
    server.store.add("later", "1.0.0", fixture("onnx/scalar.onnx"));
    let serving = async {
        while let Some(answer) = watch.message().await.expect("the watch lives") {
            if answer.status() == ServingStatus::Serving {
                return;
            }
        }
        panic!("the watch ended");
    };
    tokio::time::timeout(PATIENCE, serving).await.expect("a model that comes is seen");
}

#[tokio::test]
async fn http_tells_live_ready_and_why_not() {
    let store = store().file("broken/1.0.0/model.onnx", "no model").file("broken/model.yaml", "required: true\n");
    let server = Server::begin(store, &[]).await;
    server.failed("broken", "1.0.0").await;
    server.reaches("tiny", "1.0.0", VersionState::Ready).await;
    assert_eq!(http::get(server.ports.http, "/livez").await.expect("an answer").0, 200);
    assert_eq!(http::get(server.ports.http, "/readyz").await.expect("an answer").0, 503);
    let (status, body) = http::get(server.ports.http, "/readyz?verbose").await.expect("an answer");
    assert!(status == 503 && body.contains("broken"), "{status}: {body}");
    assert_eq!(http::get(server.ports.http, "/no-such-page").await.expect("an answer").0, 404);
    let overall = server.health().await.check(call(check(""))).await.expect("health").into_inner();
    assert_eq!(overall.status(), ServingStatus::NotServing, "a required model failed");
}

#[tokio::test]
async fn metrics_keep_their_names() {
    let server = Server::start(store(), &[]).await;
    server.predict(slow(1)).await.expect("an answer");
    let refused = server.predict(PredictRequest { model: "tiny".into(), ..Default::default() }).await;
    assert!(refused.is_err());
    let (status, text) = http::get(server.ports.metrics, "/metrics").await.expect("metrics");
    assert_eq!(status, 200);
    for expected in [
        "sconce_requests_total{model=\"slow\",version=\"1.0.0\",code=\"OK\"} 1",
        "sconce_requests_total{model=\"tiny\",version=\"1.0.0\",code=\"INVALID_ARGUMENT\"} 1",
        "sconce_request_duration_seconds_bucket{",
        "sconce_queue_duration_seconds_bucket{",
        "sconce_compute_duration_seconds_bucket{",
        "sconce_batch_rows_bucket{",
        "sconce_queue_rows{",
        "sconce_model_loads_total{",
        "sconce_connections",
        "sconce_requests_in_flight",
        "sconce_panics_total 0",
        "# EOF",
    ] {
        assert!(text.contains(expected), "{expected} is missing:\n{text}");
    }
}

#[tokio::test]
async fn reflection_lists_every_service() {
    let server = Server::start(Store::new(), &[]).await;
    for (port, expected) in [
        (server.ports.grpc, &["sconce.v1.Inference", "inference.GRPCInferenceService", "grpc.health.v1.Health"][..]),
        (server.ports.grpc_admin, &["sconce.v1.Admin", "grpc.health.v1.Health"]),
    ] {
        let mut client = ServerReflectionClient::new(channel(port).await);
        let ask = async |client: &mut ServerReflectionClient<_>, request: MessageRequest| {
            let request = ServerReflectionRequest { message_request: Some(request), ..Default::default() };
            let mut answers =
                client.server_reflection_info(tokio_stream::iter([request])).await.expect("a stream").into_inner();
            answers.message().await.expect("an answer").and_then(|answer| answer.message_response).expect("a response")
        };
        let MessageResponse::ListServicesResponse(listed) =
            ask(&mut client, MessageRequest::ListServices("*".into())).await
        else {
            panic!("no list of services");
        };
        let names: Vec<String> = listed.service.into_iter().map(|service| service.name).collect();
        for service in expected {
            assert!(names.iter().any(|name| name == service), "{service} is not among {names:?}");
        }
        // What decodes an error's details.
        let symbol = MessageRequest::FileContainingSymbol("google.rpc.ErrorInfo".into());
        assert!(matches!(ask(&mut client, symbol).await, MessageResponse::FileDescriptorResponse(_)));
    }
}

#[tokio::test]
async fn a_call_gets_its_span_into_the_log() {
    let server = Server::start(store(), &["--log-format=json"]).await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let mut request = call(PredictRequest { model: "no\nsuch\u{1b}[31m".into(), ..Default::default() });
    let value = format!("00-{trace}-00f067aa0ba902b7-01").parse().expect("a header");
    request.metadata_mut().insert("traceparent", value);
    server.inference().await.predict(request).await.expect_err("no such model");
    eventually("the log has the call", PATIENCE, async || server.log().contains(trace).then_some(())).await;
    for line in server.log().lines() {
        assert!(serde_json::from_str::<serde_json::Value>(line).is_ok(), "not one JSON object a line: {line}");
    }
}

#[tokio::test]
async fn sigterm_says_no_first_serves_on_finishes_and_ends_in_time() {
    // On a busy machine a short call may wait long behind the long one.
    let store = store().file("slow/model.yaml", "batching: {queue_timeout: 60s}\n");
    let server = Server::start(store, &["--pre-stop-delay=700ms", "--grace=20s"]).await;
    let mut health = server.health().await;
    let mut client = server.inference().await;
    let mut watch = health.watch(check("")).await.expect("a watch").into_inner();
    assert_eq!(watch.message().await.expect("alive").expect("a status").status(), ServingStatus::Serving);

    // About two seconds of work: it outlives the delay and ends within the grace.
    let mut long = server.inference().await;
    let long = tokio::spawn(async move { long.predict(call(slow(500))).await });
    eventually("the long call runs", PATIENCE, async || {
        let (_, text) = http::get(server.ports.metrics, "/metrics").await.ok()?;
        text.contains("sconce_requests_in_flight 1").then_some(())
    })
    .await;

    let signalled = Instant::now();
    process::kill(server.pid(), Signal::TERM);
    let second =
        tokio::time::timeout(PATIENCE, watch.message()).await.expect("it is told").expect("alive").expect("a status");
    assert_eq!(second.status(), ServingStatus::NotServing);
    assert!(signalled.elapsed() < Duration::from_millis(600), "health says no before anything else happens");
    assert_eq!(http::get(server.ports.http, "/readyz").await.expect("an answer").0, 503);
    assert_eq!(http::get(server.ports.http, "/livez").await.expect("an answer").0, 200);
    client.predict(call(slow(1))).await.expect("it still serves while balancers turn away");

    let refused =
        eventually("new calls are refused", PATIENCE, async || client.predict(call(slow(1))).await.err()).await;
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    long.await.expect("no panic").expect("what was accepted is finished");
    let status = eventually("it ends", PATIENCE, async || server.exit_status()).await;
    assert!(status.success(), "{status}");
    assert!(signalled.elapsed() < Duration::from_secs(15), "it does not wait for what is not there");
}

#[tokio::test]
async fn grace_has_an_end() {
    let server = Server::start(store(), &["--pre-stop-delay=0ms", "--grace=300ms"]).await;
    let mut long = server.inference().await;
    let long = tokio::spawn(async move { long.predict(call(slow(5000))).await });
    eventually("the long call runs", PATIENCE, async || {
        let (_, text) = http::get(server.ports.metrics, "/metrics").await.ok()?;
        text.contains("sconce_requests_in_flight 1").then_some(())
    })
    .await;
    let signalled = Instant::now();
    process::kill(server.pid(), Signal::TERM);
    eventually("it ends", Duration::from_secs(10), async || server.exit_status()).await;
    assert!(signalled.elapsed() < Duration::from_secs(8));
    assert!(long.await.expect("no panic").is_err());
}

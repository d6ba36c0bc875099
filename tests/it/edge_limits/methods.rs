//! What is no method here, and what is one at another port.

use bytes::Bytes;
use tonic::Code::{Unimplemented, Unknown};

use super::{assert_unharmed, store};
use crate::{
    harness::{
        Server, assert_refused, call, channel,
        raw::{Connection, PREDICT, frame},
    },
    proto::{admin_client::AdminClient, inference_client::InferenceClient, *},
};

#[tokio::test]
async fn what_is_no_method_is_unimplemented() {
    let server = Server::start(store(), &[]).await;
    let mut connection = Connection::open(server.ports.grpc).await;
    for path in [
        "/",
        "/sconce.v1.Inference",
        "/sconce.v1.Inference/NoSuch",
        "/sconce.v1.Inference/Predict/",
        "//sconce.v1.Inference/Predict",
        "/sconce.v1.inference/Predict",
        "/sconce.v1.Inference/%50redict",
        "/no.such.Service/Method",
    ] {
        let answer = connection.call(path, &[], frame(b"")).await;
        assert_refused(path, answer.result(), Unimplemented, "UNKNOWN_METHOD");
    }
    // A query changes nothing: the path is compared without it.
    let answer = connection.call(&format!("{PREDICT}?x=1"), &[], super::tiny_frame()).await;
    answer.result().expect("the same method");
    assert_unharmed(&server, &mut connection).await;
}

#[tokio::test]
async fn admin_on_the_inference_port_names_the_right_port_and_the_other_way_round() {
    let server = Server::start(store(), &[]).await;
    let mut admin = AdminClient::new(server.channel().await);
    let status = admin.list_models(call(ListModelsRequest::default())).await;
    let status = assert_refused("admin at the inference port", status, Unimplemented, "WRONG_PORT");
    assert!(status.message().contains(&server.ports.grpc_admin.to_string()), "{status}");
    let mut inference = InferenceClient::new(channel(server.ports.grpc_admin).await);
    let status = inference.predict(call(super::tiny())).await;
    let status = assert_refused("inference at the admin port", status, Unimplemented, "WRONG_PORT");
    assert!(status.message().contains(&server.ports.grpc.to_string()), "{status}");
}

#[tokio::test]
async fn what_is_no_grpc_is_told_so() {
    let server = Server::start(store(), &[]).await;
    let mut connection = Connection::open(server.ports.grpc).await;
    let answer = connection.call(PREDICT, &[("content-type", "application/json")], Bytes::from_static(b"{}")).await;
    assert_eq!(answer.http, 415);
    let (status, text) = crate::harness::http::get(server.ports.grpc, "/").await.expect("HTTP/1.1 is answered");
    assert!(status == 400 && text.contains("gRPC"), "{status}: {text}");
    assert_unharmed(&server, &mut connection).await;
}

#[tokio::test]
async fn more_headers_than_allowed_refuse_the_call_and_not_the_connection() {
    let server = Server::start(store(), &[]).await;
    let mut connection = Connection::open(server.ports.grpc).await;
    let fits = "h".repeat(15 << 10);
    let answer = connection.call(PREDICT, &[("x-long", &fits)], super::tiny_frame()).await;
    answer.result().expect("15 KiB are taken");
    let long = "h".repeat(24 << 10);
    let call = connection.begin(PREDICT, &[("x-long", &long)]).await;
    if let Ok(call) = call {
        // Refused by a reset or by an HTTP status, never served.
        if let Ok(answer) = call.answer().await {
            assert_ne!(answer.grpc.map_or(Unknown, |status| status.code()), tonic::Code::Ok);
        }
    }
    assert_unharmed(&server, &mut connection).await;
}

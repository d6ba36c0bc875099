//! How large a message may be, and how large it may claim to be.

use std::time::Duration;

use ::http::{HeaderName, HeaderValue};
use bytes::Bytes;
use futures_util::future::select_all;
use prost::Message;
use sconce::model::DType;
use tonic::{
    Code::{DeadlineExceeded, InvalidArgument, NotFound, ResourceExhausted, Unavailable},
    codec::CompressionEncoding,
};

use super::{assert_serves, assert_unharmed, store, tiny};
use crate::{
    harness::{
        PATIENCE, Server, Store, assert_refused, call, eventually, fixture, http,
        process::resident_bytes,
        raw::{Connection, INFER, PREDICT, frame, header},
        tensors::{Form, Values},
    },
    proto::*,
};

const MIB: usize = 1 << 20;

/// A request whose raw tensor has so many bytes.
fn large(bytes: usize) -> PredictRequest {
    let values =
        Values { name: "x".into(), dtype: DType::Uint8, shape: vec![1, bytes as i64], raw: vec![0; bytes].into() };
    PredictRequest { model: "any".into(), inputs: vec![values.to_sconce(Form::Raw)], ..Default::default() }
}

fn with_any() -> Store {
    store().model("any", "1.0.0", fixture("onnx/identity_uint8.onnx"))
}

#[tokio::test]
async fn past_the_limit_the_error_names_the_option() {
    let server = Server::start(with_any(), &["--max-message-bytes=1MiB"]).await;
    server.predict(large(MIB - 1024)).await.expect("below the limit");
    for bytes in [MIB, MIB + 1, 10 * MIB] {
        let status =
            assert_refused("too large", server.predict(large(bytes)).await, ResourceExhausted, "MESSAGE_TOO_LARGE");
        assert!(status.message().contains("--max-message-bytes"), "{status}");
    }
    let mut connection = Connection::open(server.ports.grpc).await;
    assert_unharmed(&server, &mut connection).await;
}

#[tokio::test]
async fn the_default_limit_is_64_mebibytes() {
    let server = Server::start(with_any(), &[]).await;
    server.predict(large(63 * MIB)).await.expect("below the limit");
    assert_refused("too large", server.predict(large(65 * MIB)).await, ResourceExhausted, "MESSAGE_TOO_LARGE");
}

#[tokio::test]
async fn a_claim_past_the_limit_is_refused_before_anything_is_reserved() {
    let server = Server::start(store(), &[]).await;
    let mut connection = Connection::open(server.ports.grpc).await;
    assert_serves(&mut connection).await;
    let before = resident_bytes(server.pid());
    for path in [PREDICT, INFER] {
        for claimed in [u32::MAX, 65 << 20] {
            let mut call = connection.begin(path, &[]).await.expect("a stream");
            call.body.send_data(header(0, claimed), false).expect("five bytes");
            // The rest never comes, and is not waited for.
            let answer = call.answer().await.expect("an answer");
            assert_refused("a claim", answer.result(), ResourceExhausted, "MESSAGE_TOO_LARGE");
        }
    }
    assert!(resident_bytes(server.pid()) < before + (32 << 20));
    assert_unharmed(&server, &mut connection).await;
}

#[tokio::test]
async fn claims_within_the_limit_come_out_of_one_budget() {
    let options = ["--max-message-bytes=32MiB", "--request-memory=64MiB", "--body-timeout=60s"];
    let server = Server::start(with_any(), &options).await;
    let mut connection = Connection::open(server.ports.grpc).await;
    let mut claims = Vec::new();
    for _ in 0..3 {
        let mut call = connection.begin(PREDICT, &[]).await.expect("a stream");
        call.body.send_data(header(0, 32 << 20), false).expect("five bytes");
        claims.push(Box::pin(call.answer()));
    }
    // Two of three fit; the one that does not is answered at once.
    let (refused, _, held) = select_all(claims).await;
    let status = refused.expect("an answer").result();
    let status = assert_refused("the third claim", status, Unavailable, "REQUEST_MEMORY");
    assert!(status.message().contains("--request-memory"), "{status}");
    assert_refused("over the budget", server.predict(large(MIB)).await, Unavailable, "REQUEST_MEMORY");
    server.predict(tiny()).await.expect("small messages are not counted");
    // Those who claimed go away, and their claims with them.
    drop(held);
    eventually("the claims are given back", PATIENCE, async || server.predict(large(MIB)).await.ok()).await;
    assert_unharmed(&server, &mut connection).await;
}

#[tokio::test]
async fn three_hundred_claims_on_one_connection_reserve_little_and_leak_nothing() {
    let server = Server::start(store(), &["--max-concurrent-streams=400"]).await;
    let mut connection = Connection::open(server.ports.grpc).await;
    assert_serves(&mut connection).await;
    let before = resident_bytes(server.pid());
    let mut grown = Vec::new();
    for _ in 0..4 {
        let mut open = Vec::new();
        for _ in 0..300 {
            let mut call = connection.begin(PREDICT, &[]).await.expect("a stream");
            call.body.send_data(header(0, 64 << 20), false).expect("five bytes");
            open.push(call);
        }
        // Answered in order: when this call is answered, or refused, the claims before it were read.
        let _ = connection.call(PREDICT, &[], super::tiny_frame()).await;
        grown.push(resident_bytes(server.pid()).saturating_sub(before) >> 20);
        drop(open);
        eventually("the claims are given back", PATIENCE, async || server.predict(tiny()).await.ok()).await;
    }
    // 300 claims are 19 GiB; what the allocator touches of those that fit the budget is some MiB each, and it uses it again.
    assert!(grown[0] < 256 && grown[3] <= grown[1] + 32, "MiB by round: {grown:?}");
    server.assert_unharmed().await;
}

#[tokio::test]
async fn a_compressed_bomb_is_refused_at_the_limit() {
    let server = Server::start(with_any(), &["--max-message-bytes=8MiB"]).await;
    let before = resident_bytes(server.pid());
    let mut client = server.inference().await.send_compressed(CompressionEncoding::Gzip);
    let status = client.predict(call(large(200 * MIB))).await;
    assert_refused("200 MB in 200 kB", status, ResourceExhausted, "MESSAGE_TOO_LARGE");
    client.predict(call(large(4 * MIB))).await.expect("a compressed message within the limit is read");
    server.assert_memory_is_back(before, 64 << 20).await;
    server.assert_unharmed().await;
}

#[tokio::test]
async fn half_a_message_is_not_waited_for_longer_than_allowed() {
    let server = Server::start(store(), &["--body-timeout=300ms"]).await;
    let mut connection = Connection::open(server.ports.grpc).await;
    for begun in
        [Bytes::new(), Bytes::from_static(&[0, 0]), header(0, 100), [&header(0, 100)[..], &[0; 10]].concat().into()]
    {
        for path in [PREDICT, INFER] {
            let mut call = connection.begin(path, &[]).await.expect("a stream");
            call.body.send_data(begun.clone(), false).expect("a few bytes");
            let answer = call.answer().await.expect("an answer");
            assert_refused(&format!("{} bytes", begun.len()), answer.result(), DeadlineExceeded, "BODY_TIMEOUT");
        }
    }
    assert_unharmed(&server, &mut connection).await;
}

fn infer() -> oip::ModelInferRequest {
    let inputs = ["INPUT0", "INPUT1"].map(|name| oip::model_infer_request::InferInputTensor {
        name: name.into(),
        datatype: "FP32".into(),
        shape: vec![1, 16],
        ..Default::default()
    });
    let raw = Bytes::from(1.0_f32.to_le_bytes().repeat(16));
    oip::ModelInferRequest {
        model_name: "tiny".into(),
        id: "mine".into(),
        inputs: inputs.into(),
        raw_input_contents: vec![raw; 2],
        ..Default::default()
    }
}

#[tokio::test]
async fn a_message_comes_in_pieces_of_any_size() {
    let server = Server::start(store(), &[]).await;
    let mut connection = Connection::open(server.ports.grpc).await;
    for (path, whole) in [(PREDICT, super::tiny_frame()), (INFER, frame(&infer().encode_to_vec()))] {
        let cuts = (1..10).chain([whole.len() / 2, whole.len() - 1]).map(|cut| vec![cut, whole.len() - cut]);
        for pieces in cuts.chain([vec![1; whole.len()], vec![0, 3, 0, whole.len() - 3, 0]]) {
            for trailers in [false, true] {
                let mut call = connection.begin(path, &[]).await.expect("a stream");
                let mut rest = whole.clone();
                for &piece in &pieces {
                    call.body.send_data(rest.split_to(piece), false).expect("a piece");
                    if pieces.len() < 10 {
                        // So that the server sees each by itself.
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                }
                match trailers {
                    false => call.body.send_data(Bytes::new(), true).expect("the end"),
                    true => call
                        .body
                        .send_trailers(
                            [(HeaderName::from_static("x"), HeaderValue::from_static("y"))].into_iter().collect(),
                        )
                        .expect("the end"),
                }
                let answer = call.answer().await.expect("an answer");
                let came = (answer.http, answer.content_type.as_str(), answer.in_headers);
                assert_eq!(came, (200, "application/grpc", false), "{path} {pieces:?} {answer:?}");
                answer.result().unwrap_or_else(|status| panic!("{path} {pieces:?}: {status:?}"));
            }
        }
        // It ends early, where a message could have ended.
        let claims_more = header(0, u32::try_from(whole.len()).expect("a short message"));
        let early = connection.call(path, &[], [&claims_more[..], &whole[5..]].concat().into()).await;
        assert_refused("an early end", early.result(), InvalidArgument, "MALFORMED_REQUEST");
        // The header of another message, of which no more comes.
        let mut call = connection.begin(path, &[]).await.expect("a stream");
        call.body.send_data(whole, false).expect("a message");
        call.body.send_data(header(0, 1).slice(..2), true).expect("two bytes");
        let answer = call.answer().await.expect("an answer");
        assert_eq!((answer.http, answer.content_type.as_str(), answer.in_headers), (200, "application/grpc", true));
        assert_refused("a second header", answer.result(), InvalidArgument, "MALFORMED_REQUEST");
        let nothing = connection.call(path, &[], frame(b"")).await;
        assert_refused("an empty message", nothing.result(), NotFound, "MODEL_NOT_FOUND");
    }
    assert_unharmed(&server, &mut connection).await;
}

#[tokio::test]
async fn a_call_that_does_not_end_has_a_clock() {
    let server = Server::start(store(), &["--body-timeout=300ms"]).await;
    let mut connection = Connection::open(server.ports.grpc).await;
    for (path, whole) in [(PREDICT, super::tiny_frame()), (INFER, frame(&infer().encode_to_vec()))] {
        for (headers, reason) in [(&[][..], "BODY_TIMEOUT"), (&[("grpc-timeout", "50m")], "DEADLINE_EXCEEDED")] {
            let mut call = connection.begin(path, headers).await.expect("a stream");
            call.body.send_data(whole.clone(), false).expect("a message");
            let answer = call.answer().await.expect("an answer");
            assert_refused(path, answer.result(), DeadlineExceeded, reason);
        }
    }
    let (_, metrics) = http::get(server.ports.metrics, "/metrics").await.expect("metrics");
    for counted in ["{reason=\"BODY_TIMEOUT\"} 2", "{reason=\"DEADLINE_EXCEEDED\"} 2"] {
        assert!(metrics.contains(&format!("sconce_refused_total{counted}")), "{metrics}");
    }
    assert_unharmed(&server, &mut connection).await;
}

/// Compressed calls go through the gRPC library, plain ones do not.
#[tokio::test]
async fn compressed_or_not_the_answer_is_the_same() {
    let server = Server::start(store(), &[]).await;
    let plain = server.oip().await;
    let zipped = plain.clone().send_compressed(CompressionEncoding::Gzip).accept_compressed(CompressionEncoding::Gzip);
    let broken = oip::ModelInferRequest { raw_input_contents: vec![], ..infer() };
    let unknown = oip::ModelInferRequest { model_name: "nobody".into(), ..infer() };
    let parts = oip::ModelInferRequest { outputs: vec![Default::default(); 10_001], ..infer() };
    for question in [infer(), broken, unknown, parts] {
        let mut came = Vec::new();
        for mut client in [plain.clone(), zipped.clone()] {
            came.push(match client.model_infer(call(question.clone())).await {
                Ok(answer) => {
                    let mut answer = answer.into_inner();
                    // Each has its own.
                    answer.parameters.remove("prediction_id").expect("an id");
                    format!("{answer:?}")
                }
                Err(status) => format!("{:?} {} {:?}", status.code(), status.message(), status.details()),
            });
        }
        assert_eq!(came[0], came[1]);
    }
}

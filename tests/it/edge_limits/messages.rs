//! How large a message may be, and how large it may claim to be.

use bytes::Bytes;
use futures_util::future::select_all;
use sconce::model::DType;
use tonic::{
    Code::{DeadlineExceeded, ResourceExhausted, Unavailable},
    codec::CompressionEncoding,
};

use super::{assert_serves, assert_unharmed, store, tiny};
use crate::{
    harness::{
        PATIENCE, Server, Store, assert_refused, call, eventually, fixture,
        process::resident_bytes,
        raw::{Connection, INFER, PREDICT, header},
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

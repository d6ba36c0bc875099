//! Bytes that are no message.

use bytes::Bytes;
use tonic::Code::{InvalidArgument, Ok};

use super::unharmed_by;
use crate::harness::{
    assert_refused,
    raw::{Connection, INFER, PREDICT, frame, header},
};

/// A message of one field that holds a message of the same field, and so on.
fn nested(field: u8, depth: usize) -> Bytes {
    let mut message = Vec::new();
    for _ in 0..depth {
        let mut outer = vec![field << 3 | 2];
        prost::encoding::encode_varint(message.len() as u64, &mut outer);
        outer.extend(&message);
        message = outer;
    }
    message.into()
}

/// `rows: [{fields: {"a": [[[…]]]}}]` of a PredictRequest.
fn deep_row(depth: usize) -> Bytes {
    // Value.list_value is 6, ListValue.values is 1.
    let mut value = Vec::new();
    for _ in 0..depth {
        let list = wrapped(1, &value);
        value = wrapped(6, &list);
    }
    let entry = [wrapped(1, b"a"), wrapped(2, &value)].concat();
    let row = wrapped(1, &entry);
    [wrapped(1, b"early-signal"), wrapped(10, &row)].concat().into()
}

fn wrapped(field: u8, inner: &[u8]) -> Vec<u8> {
    let mut outer = vec![field << 3 | 2];
    prost::encoding::encode_varint(inner.len() as u64, &mut outer);
    outer.extend(inner);
    outer
}

#[tokio::test]
async fn garbage_is_malformed() {
    unharmed_by(async |server| {
        let mut connection = Connection::open(server.ports.grpc).await;
        let mut seed = fastrand::Rng::with_seed(7);
        let mut bodies: Vec<(&str, Bytes)> = vec![
            ("no message", Bytes::new()),
            ("half a header", Bytes::from_static(&[0, 0, 0])),
            ("half a message", [&header(0, 100)[..], &[0; 10]].concat().into()),
            ("two messages", [frame(b""), frame(b"")].concat().into()),
            ("a flag of 2", [&header(2, 1)[..], &[0]].concat().into()),
            ("a field that never ends", frame(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f])),
            ("group tags", frame(&[0x0b, 0x0b, 0x0b])),
            ("text that is not UTF-8", frame(&[0x0a, 2, 0xff, 0xfe])),
        ];
        bodies.extend((0..200).map(|_| {
            let length = seed.usize(1..200);
            // Field number 0 is no field, so that no luck makes a message of it.
            let random: Vec<u8> = std::iter::once(0x07).chain((0..length).map(|_| seed.u8(..))).collect();
            ("random bytes", frame(&random))
        }));
        for path in [PREDICT, INFER] {
            for (what, body) in &bodies {
                let answer = connection.call(path, &[], body.clone()).await;
                assert_refused(&format!("{what} at {path}"), answer.result(), InvalidArgument, "MALFORMED_REQUEST");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn depth_is_bounded() {
    unharmed_by(async |server| {
        let mut connection = Connection::open(server.ports.grpc).await;
        for depth in [101, 10_000] {
            let answer = connection.call(PREDICT, &[], frame(&deep_row(depth))).await;
            assert_refused(&format!("{depth} lists"), answer.result(), InvalidArgument, "MALFORMED_REQUEST");
        }
        let answer = connection.call(PREDICT, &[], frame(&deep_row(20))).await;
        assert_refused("20 lists", answer.result(), InvalidArgument, "UNSUPPORTED_VALUE");
        // Unknown fields are skipped; as messages they would be 10,000 deep.
        let answer = connection.call(INFER, &[], frame(&nested(15, 10_000))).await;
        let status = answer.result().expect_err("no model has no name");
        assert!(status.code() != Ok && !status.message().is_empty(), "{status:?}");
    })
    .await;
}

#[tokio::test]
async fn compression_without_a_name_for_it_is_refused() {
    unharmed_by(async |server| {
        let mut connection = Connection::open(server.ports.grpc).await;
        let body: Bytes = [&header(1, 4)[..], &[1, 2, 3, 4]].concat().into();
        let answer = connection.call(PREDICT, &[], body.clone()).await.result();
        assert_refused("unannounced", answer, tonic::Code::Internal, "MISSING_ENCODING");
        let answer = connection.call(PREDICT, &[("grpc-encoding", "zstd")], body.clone()).await.result();
        assert_refused("unknown", answer, tonic::Code::Unimplemented, "UNSUPPORTED_ENCODING");
        let answer = connection.call(PREDICT, &[("grpc-encoding", "gzip")], body).await.result();
        assert_refused("no gzip", answer, InvalidArgument, "MALFORMED_REQUEST");
    })
    .await;
}

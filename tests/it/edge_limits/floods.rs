//! Floods of frames that HTTP/2 allows and no client means.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{store, tiny};
use crate::harness::{
    Server,
    process::resident_bytes,
    raw::{Connection, PREDICT},
};

/// A frame: type, flags, stream, payload.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short frame").to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Sends the preface and then these frames until the server has had enough; whether it had.
async fn flood(port: u16, frames: impl Iterator<Item = Vec<u8>>) -> bool {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("the server is there");
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("the preface");
    stream.write_all(&frame(4, 0, 0, &[])).await.expect("settings");
    let (mut from, mut to) = stream.into_split();
    let reader = tokio::spawn(async move {
        let mut sink = [0; 4096];
        while from.read(&mut sink).await.is_ok_and(|read| read > 0) {}
    });
    for frame in frames {
        if reader.is_finished() || to.write_all(&frame).await.is_err() {
            return true;
        }
    }
    drop(to);
    // The rest of what it says, until it closes.
    let _ = reader.await;
    false
}

/// HPACK without tables: the headers of a Predict.
fn headers() -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in
        [(":method", "POST"), (":scheme", "http"), (":path", PREDICT), ("content-type", "application/grpc")]
    {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).expect("a short text"));
            block.extend(text.as_bytes());
        }
    }
    block
}

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

async fn survives(attack: impl AsyncFnOnce(u16)) {
    let server = Server::start(store(), &[]).await;
    server.predict(tiny()).await.expect("an answer");
    let before = resident_bytes(server.pid());
    attack(server.ports.grpc).await;
    server.predict(tiny()).await.expect("an answer after the flood");
    server.assert_unharmed().await;
    server.assert_memory_is_back(before, 32 << 20).await;
}

#[tokio::test]
async fn twenty_thousand_rapid_resets() {
    survives(async |port| {
        let cancel = 8u32.to_be_bytes();
        let pairs = (0..20_000u32).map(|number| {
            let stream = 2 * number + 1;
            [frame(HEADERS, END_HEADERS, stream, &headers()), frame(RST_STREAM, 0, stream, &cancel)].concat()
        });
        assert!(flood(port, pairs).await, "20,000 resets on one connection were taken");
    })
    .await;
}

#[tokio::test]
async fn calls_that_are_cancelled_at_once_leave_nothing() {
    survives(async |port| {
        for _ in 0..20 {
            let mut connection = Connection::open(port).await;
            for _ in 0..100 {
                let Ok(mut call) = connection.begin(PREDICT, &[]).await else {
                    break;
                };
                let _ = call.body.send_data(super::tiny_frame(), true);
                drop(call);
            }
        }
    })
    .await;
}

#[tokio::test]
async fn continuations_without_end() {
    survives(async |port| {
        let first = std::iter::once(frame(HEADERS, 0, 1, &headers()));
        // More than the buffers of both sides hold.
        let more = (0..1_000_000).map(|_| frame(CONTINUATION, 0, 1, b"\0\x01a\x01b"));
        assert!(flood(port, first.chain(more)).await, "a million continuations were taken");
    })
    .await;
}

#[tokio::test]
async fn empty_data_without_end() {
    survives(async |port| {
        let first = std::iter::once(frame(HEADERS, END_HEADERS, 1, &headers()));
        let more = (0..50_000).map(|_| frame(0, 0, 1, &[]));
        flood(port, first.chain(more)).await;
    })
    .await;
}

#[tokio::test]
async fn pings_and_settings_without_end() {
    survives(async |port| {
        flood(port, (0..20_000).map(|_| frame(PING, 0, 0, &[0; 8]))).await;
        flood(port, (0..20_000).map(|_| frame(4, 0, 0, &[]))).await;
    })
    .await;
}

#[tokio::test]
async fn random_bytes_after_the_preface() {
    survives(async |port| {
        let mut seed = fastrand::Rng::with_seed(11);
        for _ in 0..200 {
            let garbage: Vec<u8> = (0..seed.usize(1..400)).map(|_| seed.u8(..)).collect();
            flood(port, std::iter::once(garbage)).await;
        }
    })
    .await;
}

//! How long a connection may live, be silent or take to begin, and how many there may be.

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, prlimit};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{assert_serves, assert_unharmed, store, tiny};
use crate::harness::{
    PATIENCE, Server, call, eventually,
    process::{as_pid, open_files},
    raw::{Connection, PREDICT},
    was_given_up,
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// One setting of the server's SETTINGS frame, read off the wire.
async fn announced(port: u16, wanted: u16) -> Option<u32> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("the server is there");
    stream.write_all(PREFACE).await.expect("the preface");
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.expect("a frame");
    assert_eq!(head[3], 4, "the first frame is SETTINGS");
    let mut settings = vec![0; usize::from(u16::from_be_bytes([head[1], head[2]]))];
    stream.read_exact(&mut settings).await.expect("its settings");
    let setting = settings.chunks(6).find(|setting| setting[..2] == wanted.to_be_bytes())?;
    Some(u32::from_be_bytes([setting[2], setting[3], setting[4], setting[5]]))
}

/// Waits until the server closes a socket that says no more than `begun`.
async fn closes(port: u16, begun: &[u8]) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("the server is there");
    stream.write_all(begun).await.expect("a few bytes");
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
    assert!(closed.is_ok(), "a connection that says {begun:?} is not closed");
}

#[tokio::test]
async fn the_limits_are_announced_on_every_port() {
    const MAX_CONCURRENT_STREAMS: u16 = 3;
    const MAX_HEADER_LIST_SIZE: u16 = 6;
    let server = Server::start(store(), &[]).await;
    for port in [server.ports.grpc, server.ports.grpc_admin] {
        assert_eq!(announced(port, MAX_CONCURRENT_STREAMS).await, Some(128));
        assert_eq!(announced(port, MAX_HEADER_LIST_SIZE).await, Some(16 << 10));
    }
    let server = Server::start(store(), &["--max-concurrent-streams=7"]).await;
    assert_eq!(announced(server.ports.grpc, MAX_CONCURRENT_STREAMS).await, Some(7));
}

#[tokio::test]
async fn who_does_not_begin_is_closed() {
    let server = Server::start(store(), &["--handshake-timeout=300ms"]).await;
    for port in [server.ports.grpc, server.ports.grpc_admin] {
        closes(port, b"").await;
        closes(port, &PREFACE[..10]).await;
        closes(port, &PREFACE[..24]).await;
        closes(port, b"\x16\x03\x01 no TLS here").await;
    }
    server.predict(tiny()).await.expect("the others are served");
}

#[tokio::test]
async fn http_ports_do_not_wait_for_ever_either() {
    let server = Server::start(store(), &["--handshake-timeout=300ms", "--idle-timeout=300ms"]).await;
    for port in [server.ports.http, server.ports.metrics] {
        closes(port, b"").await;
        closes(port, b"GET /livez HTTP/1.1\r\nhost: ").await;
    }
}

#[tokio::test]
async fn an_idle_connection_is_closed_and_a_busy_one_is_not() {
    let server = Server::start(store(), &["--idle-timeout=500ms"]).await;
    let mut idle = Connection::open(server.ports.grpc).await;
    let mut busy = Connection::open(server.ports.grpc).await;
    assert_serves(&mut idle).await;
    let ended = &mut idle.driver;
    let calls = async {
        loop {
            assert_serves(&mut busy).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        _ = ended => {}
        () = calls => {}
        () = tokio::time::sleep(PATIENCE) => panic!("the idle connection stays open"),
    }
    assert_unharmed(&server, &mut busy).await;
}

#[tokio::test]
async fn an_old_connection_is_asked_to_go_and_no_call_fails() {
    let server = Server::start(store(), &["--max-connection-age=400ms", "--connection-age-grace=5s"]).await;
    let old = Connection::open(server.ports.grpc).await;
    let mut client = server.inference().await;
    let calls = async {
        let mut count = 0;
        loop {
            match client.predict(call(tiny())).await {
                Ok(_) => count += 1,
                Err(status) if was_given_up(&status) => {}
                Err(status) => panic!("call {count} failed: {status}"),
            }
        }
    };
    // Several ages long.
    let _: Result<(), _> = tokio::time::timeout(Duration::from_secs(3), calls).await;
    old.closed(PATIENCE).await;
    server.assert_unharmed().await;
}

#[tokio::test]
async fn connections_over_the_limit_are_closed_and_places_come_back() {
    let server = Server::start(store(), &["--max-connections=4"]).await;
    let mut open = Vec::new();
    for _ in 0..4 {
        let mut connection = Connection::open(server.ports.grpc).await;
        assert_serves(&mut connection).await;
        open.push(connection);
    }
    closes(server.ports.grpc, b"").await;
    for connection in &mut open {
        assert_serves(connection).await;
    }
    open.clear();
    eventually("a place is free", PATIENCE, async || {
        let stream = TcpStream::connect(("127.0.0.1", server.ports.grpc)).await.ok()?;
        let (_open, connection) = h2::client::handshake(stream).await.ok()?;
        tokio::time::timeout(Duration::from_millis(200), connection).await.is_err().then_some(())
    })
    .await;
}

#[tokio::test]
async fn no_file_descriptors_left_is_survived() {
    let server = Server::start(store(), &[]).await;
    let mut before = Connection::open(server.ports.grpc).await;
    assert_serves(&mut before).await;
    let now = open_files(server.pid()).len() as u64;
    let tight = Rlimit { current: Some(now + 5), maximum: getrlimit(Resource::Nofile).maximum };
    let old = prlimit(Some(as_pid(server.pid())), Resource::Nofile, tight).expect("it is our child");
    let mut flood = Vec::new();
    for _ in 0..50 {
        flood.push(TcpStream::connect(("127.0.0.1", server.ports.grpc)).await.expect("the backlog takes it"));
    }
    eventually("accepting fails", PATIENCE, async || server.log().contains("cannot accept").then_some(())).await;
    assert_serves(&mut before).await;
    drop(flood);
    prlimit(Some(as_pid(server.pid())), Resource::Nofile, old).expect("it is our child");
    let mut after = Connection::open(server.ports.grpc).await;
    assert_unharmed(&server, &mut after).await;
    // It did not spin while it had none.
    assert!(server.log().matches("cannot accept").count() < 200);
    assert_eq!(after.call(PREDICT, &[], super::tiny_frame()).await.http, 200);
}

//! Unary calls of ModelInfer straight on h2, encoded beforehand: what a load generator can do without a client's own costs.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use h2::client::{Builder, SendRequest};
use http::{HeaderMap, Method, Request, header};
use tokio::net::TcpStream;

/// HTTP/2 windows of every party in a bench, in bytes.
pub const STREAM_WINDOW_BYTES: u32 = 4 << 20;
pub const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;

const METHOD: &str = "/inference.GRPCInferenceService/ModelInfer";

/// A message behind gRPC's prefix: not compressed, and its length.
pub fn frame(message: &impl prost::Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(length + 5);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).expect("the bench's messages are small"));
    message.encode(&mut frame).expect("the frame has room");
    frame.freeze()
}

pub async fn connect(address: SocketAddr) -> Result<SendRequest<Bytes>> {
    let socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    let (client, connection) = Builder::new()
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .handshake(socket)
        .await?;
    // Ends with its last client; an error of it is seen by the call that it cut off.
    tokio::spawn(connection);
    Ok(client)
}

pub fn head(address: SocketAddr) -> Result<Request<()>> {
    Ok(Request::builder()
        .method(Method::POST)
        .uri(format!("http://{address}{METHOD}"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .body(())?)
}

/// Whether the body of an answer is wanted.
#[derive(Clone, Copy, PartialEq)]
pub enum Answer {
    Keep,
    Drop,
}

/// One unary call; fails unless its status is 0.
pub async fn call(
    client: &mut SendRequest<Bytes>,
    head: &Request<()>,
    message: &Bytes,
    wanted: Answer,
) -> Result<Bytes> {
    std::future::poll_fn(|context| client.poll_ready(context)).await?;
    let (response, mut stream) = client.send_request(head.clone(), false)?;
    stream.send_data(message.clone(), true)?;
    let (parts, mut body) = response.await?.into_parts();
    let mut answer = BytesMut::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        if wanted == Answer::Keep {
            answer.extend_from_slice(&chunk);
        }
    }
    match body.trailers().await? {
        Some(trailers) => check_status(&trailers)?,
        // An answer without a body has its status in the head.
        None => check_status(&parts.headers)?,
    }
    if wanted == Answer::Drop {
        return Ok(Bytes::new());
    }
    ensure!(answer.len() >= 5 && answer[0] == 0, "the answer is no plain gRPC message");
    Ok(answer.freeze().slice(5..))
}

fn check_status(headers: &HeaderMap) -> Result<()> {
    let status = headers.get("grpc-status").context("an answer without grpc-status")?;
    if status == "0" {
        return Ok(());
    }
    let message = headers.get("grpc-message").map(|text| String::from_utf8_lossy(text.as_bytes()));
    bail!("status {status:?}: {}", message.unwrap_or_default());
}

//! Unary gRPC calls straight on h2, encoded beforehand: what a load generator can do without a client's own costs.
//!
//! It knows nothing of any service. The benches of the repository call with it, too.

use std::{fmt, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use h2::{
    Reason,
    client::{Builder, SendRequest},
};
use http::{HeaderMap, Method, Request, header};
use tokio::net::{TcpStream, ToSocketAddrs};
use tonic::Status;

/// HTTP/2 windows of every connection, in bytes: answers never wait for the generator to say that it has room.
pub const STREAM_WINDOW_BYTES: u32 = 4 << 20;
pub const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;

/// The path of the Open Inference Protocol's one call.
pub const MODEL_INFER: &str = "/inference.GRPCInferenceService/ModelInfer";

/// Why there is no answer.
#[derive(Debug)]
pub enum CallError {
    /// The server's own word.
    Status(Box<Status>),
    /// The connection was over before the server had the call: over another one it may be sent again.
    NotBegun(h2::Error),
    /// The connection ended, or broke the protocol, with the call under way.
    Lost(h2::Error),
    /// What came is no answer of gRPC.
    Foreign(String),
}

/// Whether the body of an answer is wanted.
#[derive(Clone, Copy, PartialEq)]
pub enum Answer {
    Keep,
    Drop,
}

/// A message behind gRPC's prefix: not compressed, and its length. Nothing measured is anywhere near 4 GiB, which is as much as
/// the prefix can say.
pub fn frame(message: &impl prost::Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(length + 5);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).expect("an ordinary client has sent it before: this is a bug"));
    message.encode(&mut frame).expect("the frame has room: this is a bug");
    frame.freeze()
}

pub async fn connect(address: impl ToSocketAddrs) -> anyhow::Result<SendRequest<Bytes>> {
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

/// What every call of one method begins with. `authority` is HOST:PORT, `timeout` what the server is told.
pub fn head(authority: &str, method: &str, timeout: Option<Duration>) -> anyhow::Result<Request<()>> {
    let mut head = Request::builder()
        .method(Method::POST)
        .uri(format!("http://{authority}{method}"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers");
    if let Some(timeout) = timeout {
        head = head.header("grpc-timeout", timeout_text(timeout));
    }
    Ok(head.body(())?)
}

/// One unary call: the encoded answer, or nothing of it where it is not wanted.
pub async fn call(
    client: &mut SendRequest<Bytes>,
    head: &Request<()>,
    message: &Bytes,
    wanted: Answer,
) -> Result<Bytes, CallError> {
    std::future::poll_fn(|context| client.poll_ready(context)).await.map_err(CallError::NotBegun)?;
    let (response, mut stream) = client.send_request(head.clone(), false).map_err(CallError::NotBegun)?;
    stream.send_data(message.clone(), true).map_err(CallError::of)?;
    let (parts, mut body) = response.await.map_err(CallError::of)?.into_parts();
    let mut answer = BytesMut::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk.map_err(CallError::of)?;
        body.flow_control().release_capacity(chunk.len()).map_err(CallError::of)?;
        if wanted == Answer::Keep {
            answer.extend_from_slice(&chunk);
        }
    }
    match body.trailers().await.map_err(CallError::of)? {
        Some(trailers) => check_status(parts.status, &trailers)?,
        // An answer without a body has its status in the head.
        None => check_status(parts.status, &parts.headers)?,
    }
    if wanted == Answer::Drop {
        return Ok(Bytes::new());
    }
    if answer.len() < 5 || answer[0] != 0 {
        return Err(CallError::Foreign("the answer is no plain gRPC message".into()));
    }
    Ok(answer.freeze().slice(5..))
}

// === impl CallError ===

impl CallError {
    fn of(error: h2::Error) -> Self {
        // A server that goes away says of the last calls that it never looked at them.
        let unseen = error.reason() == Some(Reason::REFUSED_STREAM)
            || (error.is_go_away() && error.reason() == Some(Reason::NO_ERROR));
        if unseen { Self::NotBegun(error) } else { Self::Lost(error) }
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "{:?}: {}", status.code(), status.message()),
            Self::NotBegun(error) | Self::Lost(error) => write!(f, "the connection ended: {error}"),
            Self::Foreign(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for CallError {}

fn check_status(http: http::StatusCode, headers: &HeaderMap) -> Result<(), CallError> {
    if headers.get("grpc-status").is_some_and(|status| status == "0") {
        return Ok(());
    }
    match Status::from_header_map(headers) {
        Some(status) => Err(CallError::Status(Box::new(status))),
        None => Err(CallError::Foreign(format!("HTTP {http} without a grpc-status: no gRPC server answers there"))),
    }
}

/// gRPC's form: at most eight digits and a unit.
fn timeout_text(timeout: Duration) -> String {
    const DIGITS_MAX: u128 = 99_999_999;
    match timeout.as_micros() {
        micros if micros <= DIGITS_MAX => format!("{micros}u"),
        micros => format!("{}m", (micros / 1_000).min(DIGITS_MAX)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_keeps_to_eight_digits() {
        assert_eq!(timeout_text(Duration::from_micros(250)), "250u");
        assert_eq!(timeout_text(Duration::from_secs(99)), "99000000u");
        assert_eq!(timeout_text(Duration::from_secs(100)), "100000m");
        assert_eq!(timeout_text(Duration::from_secs(1 << 40)), "99999999m");
    }
}

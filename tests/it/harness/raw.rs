//! Calls below what a generated client can say: any bytes as a message, any headers, streams left half open.

use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request};
use tokio::{net::TcpStream, task::JoinHandle};
use tonic::{Code, Status};

use super::PATIENCE;

pub const PREDICT: &str = "/sconce.v1.Inference/Predict";
pub const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";

/// One HTTP/2 connection.
pub struct Connection {
    pub send: SendRequest<Bytes>,
    /// Ends with the connection.
    pub driver: JoinHandle<Result<(), h2::Error>>,
}

/// One call whose answer was not waited for yet.
pub struct OpenCall {
    pub answer: h2::client::ResponseFuture,
    pub body: h2::SendStream<Bytes>,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub http: u16,
    /// Of the headers or of the trailers; OK for gRPC's 0.
    pub grpc: Option<Status>,
    /// Empty where there is none.
    pub content_type: String,
    /// Whether the status stood in the headers, as it does where there is no message.
    pub in_headers: bool,
    pub body: Bytes,
}

/// The five bytes before a message, which claim its length.
pub fn header(compressed: u8, length: u32) -> Bytes {
    let mut header = vec![compressed];
    header.extend(length.to_be_bytes());
    header.into()
}

/// A whole message.
pub fn frame(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).expect("a short message");
    [&header(0, length)[..], message].concat().into()
}

// === impl Connection ===

impl Connection {
    pub async fn open(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("the server is there");
        let builder = h2::client::Builder::new().initial_connection_window_size(1 << 20).handshake(stream);
        let (send, connection) = builder.await.expect("a handshake");
        Self { send, driver: tokio::spawn(connection) }
    }

    /// Sends the headers of a call.
    pub async fn begin(&mut self, path: &str, headers: &[(&str, &str)]) -> Result<OpenCall, h2::Error> {
        let mut request = Request::post(format!("http://localhost{path}"));
        for (name, value) in [("content-type", "application/grpc"), ("te", "trailers")] {
            if headers.iter().all(|(given, _)| *given != name) {
                request = request.header(name, value);
            }
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut send = self.send.clone().ready().await?;
        let (answer, body) = send.send_request(request.body(()).expect("a request"), false)?;
        Ok(OpenCall { answer, body })
    }

    /// A call with this body, whatever it is.
    pub async fn call(&mut self, path: &str, headers: &[(&str, &str)], body: Bytes) -> Answer {
        let mut call = self.begin(path, headers).await.expect("the connection is open");
        // The server may have answered and closed the stream before it read everything.
        let _ = call.body.send_data(body, true);
        call.answer().await.expect("an answer")
    }

    /// Waits until the server has closed the connection.
    pub async fn closed(self, within: Duration) {
        let Self { send, driver } = self;
        let ended = tokio::time::timeout(within, driver).await;
        drop(send);
        assert!(ended.is_ok(), "the connection is open after {within:?}");
    }
}

// === impl OpenCall ===

impl OpenCall {
    pub async fn answer(self) -> Result<Answer, h2::Error> {
        let Self { answer, body: _open } = self;
        let whole = async {
            let (head, mut stream) = answer.await?.into_parts();
            let mut body = Vec::new();
            while let Some(chunk) = stream.data().await {
                let chunk = chunk?;
                stream.flow_control().release_capacity(chunk.len())?;
                body.extend(chunk);
            }
            let trailers = stream.trailers().await?.unwrap_or_default();
            Ok(Answer {
                http: head.status.as_u16(),
                grpc: status(&head.headers).or_else(|| status(&trailers)),
                content_type: head
                    .headers
                    .get("content-type")
                    .map_or("", |kind| kind.to_str().expect("a text"))
                    .to_owned(),
                in_headers: status(&head.headers).is_some(),
                body: body.into(),
            })
        };
        tokio::time::timeout(PATIENCE, whole).await.expect("the server answers")
    }
}

fn status(headers: &HeaderMap) -> Option<Status> {
    Status::from_header_map(headers)
}

// === impl Answer ===

impl Answer {
    /// As a generated client would say it.
    pub fn result(self) -> Result<Bytes, Status> {
        let status = self.grpc.unwrap_or_else(|| panic!("HTTP {} and no gRPC status", self.http));
        if status.code() == Code::Ok { Ok(self.body) } else { Err(status) }
    }
}

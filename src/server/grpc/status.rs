//! `Error` to gRPC status, and the statuses that the gRPC library makes by itself to ours.

use std::collections::BTreeMap;

use prost::Message;
use prost_types::Any;
use tonic::{Status, metadata::MetadataMap, metadata::MetadataValue};

use crate::{
    error::{Code, Error},
    server::proto::google::rpc,
};

/// The domain of every `ErrorInfo`.
pub const DOMAIN: &str = "sconce";

// A status travels in headers, whose size clients bound; names of tensors in a message are the caller's and of any length.
const MESSAGE_BYTES_MAX: usize = 1024;
const METADATA_BYTES_MAX: usize = 256;

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let message = cut(error.message(), MESSAGE_BYTES_MAX);
        let code = tonic_code(error.code());
        let details = rpc::Status { code: code as i32, message: message.to_owned(), details: details(&error) };
        let mut trailers = MetadataMap::new();
        if let Some(after) = error.retry_after() {
            let millis = i64::try_from(after.as_millis()).unwrap_or(i64::MAX);
            trailers.insert("grpc-retry-pushback-ms", MetadataValue::from(millis));
        }
        Status::with_details_and_metadata(code, message, details.encode_to_vec().into(), trailers)
    }
}

/// What we answer where the gRPC library answered by itself. Its own texts echo paths of messages or say nothing.
///
/// `None` leaves the status as it is: ours has details, and others speak for themselves.
pub fn of_library(status: &Status) -> Option<Error> {
    if !status.details().is_empty() {
        return None;
    }
    match status.code() {
        tonic::Code::Internal => Some(malformed()),
        tonic::Code::OutOfRange | tonic::Code::ResourceExhausted => Some(message_too_large(None)),
        tonic::Code::Unimplemented => Some(Error::new(
            Code::Unimplemented,
            "UNSUPPORTED_ENCODING",
            "messages are taken plain or with grpc-encoding gzip",
        )),
        _ => None,
    }
}

/// The one error of a body that is not what the method takes.
pub fn malformed() -> Error {
    Error::invalid("MALFORMED_REQUEST", "the body is not one whole message of this method's type")
}

/// The one error of a message over the limit; `limit` where it is at hand.
pub fn message_too_large(limit: Option<usize>) -> Error {
    let limit = limit.map(|bytes| format!(" of {bytes} bytes")).unwrap_or_default();
    Error::new(
        Code::ResourceExhausted,
        "MESSAGE_TOO_LARGE",
        format!(
            "the message, or what it decompresses to, is larger than the limit{limit}; --max-message-bytes sets it"
        ),
    )
}

/// The reason and the facts inside a status of ours, for logs.
pub fn info(status: &Status) -> Option<rpc::ErrorInfo> {
    let details = rpc::Status::decode(status.details()).ok()?.details;
    let info = details.iter().find(|any| any.type_url.ends_with("/google.rpc.ErrorInfo"))?;
    rpc::ErrorInfo::decode(&info.value[..]).ok()
}

fn tonic_code(code: Code) -> tonic::Code {
    match code {
        Code::InvalidArgument => tonic::Code::InvalidArgument,
        Code::NotFound => tonic::Code::NotFound,
        Code::Unavailable => tonic::Code::Unavailable,
        Code::ResourceExhausted => tonic::Code::ResourceExhausted,
        Code::DeadlineExceeded => tonic::Code::DeadlineExceeded,
        Code::Cancelled => tonic::Code::Cancelled,
        Code::FailedPrecondition => tonic::Code::FailedPrecondition,
        Code::Aborted => tonic::Code::Aborted,
        Code::Internal => tonic::Code::Internal,
        Code::Unimplemented => tonic::Code::Unimplemented,
    }
}

fn details(error: &Error) -> Vec<Any> {
    let metadata: BTreeMap<String, String> = error
        .metadata()
        .iter()
        .map(|(key, value)| ((*key).to_owned(), cut(value, METADATA_BYTES_MAX).to_owned()))
        .collect();
    let info = rpc::ErrorInfo { reason: error.reason().to_owned(), domain: DOMAIN.to_owned(), metadata };
    let mut details = vec![any("google.rpc.ErrorInfo", &info)];
    if let Some(after) = error.retry_after() {
        let retry = rpc::RetryInfo { retry_delay: prost_types::Duration::try_from(after).ok() };
        details.push(any("google.rpc.RetryInfo", &retry));
    }
    details
}

fn any(name: &str, message: &impl Message) -> Any {
    Any { type_url: format!("type.googleapis.com/{name}"), value: message.encode_to_vec() }
}

/// At most `bytes` of the text, not through a character.
fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_refusal_carries_reason_metadata_and_when_to_come_back() {
        let error =
            Error::unavailable("QUEUE_FULL", "the queue is full", Duration::from_millis(250)).with("model", "m");
        let status = Status::from(error);
        assert_eq!(status.code(), tonic::Code::Unavailable);
        assert_eq!(status.metadata().get("grpc-retry-pushback-ms").expect("a hint"), "250");
        let details = rpc::Status::decode(status.details()).expect("details").details;
        let info = info(&status).expect("an ErrorInfo");
        assert_eq!((&info.reason[..], &info.domain[..]), ("QUEUE_FULL", "sconce"));
        assert_eq!(info.metadata["model"], "m");
        let retry = rpc::RetryInfo::decode(&details[1].value[..]).expect("a RetryInfo");
        assert_eq!(retry.retry_delay.expect("a delay").nanos, 250_000_000);
    }

    #[test]
    fn a_long_name_does_not_make_a_long_header() {
        let name = "é".repeat(100_000);
        let status = Status::from(Error::invalid("X", format!("input '{name}'")).with("tensor", &name));
        assert!(status.message().len() <= MESSAGE_BYTES_MAX);
        assert!(status.details().len() < 2048);
    }

    #[test]
    fn the_librarys_statuses_become_ours() {
        let becomes = |status: Status| of_library(&status).map(|error| (error.code(), error.reason()));
        let echo = Status::internal("failed to decode Protobuf message: ModelInferRequest.inputs: …");
        assert_eq!(becomes(echo), Some((Code::InvalidArgument, "MALFORMED_REQUEST")));
        let large = Status::out_of_range("Error, decoded message length too large");
        assert_eq!(becomes(large), Some((Code::ResourceExhausted, "MESSAGE_TOO_LARGE")));
        let bomb = Status::resource_exhausted("Error decompressing: size limit");
        assert_eq!(becomes(bomb), Some((Code::ResourceExhausted, "MESSAGE_TOO_LARGE")));
        assert_eq!(becomes(Status::not_found("symbol")), None);
        let ours = Status::from(Error::internal("PANIC", "the server failed"));
        assert_eq!(becomes(ours), None);
    }
}

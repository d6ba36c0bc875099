//! What goes wrong with a bucket, in words: never the client's own text, which may hold an address with its signature.

use std::{error::Error as _, time::Duration};

use object_store::{
    Error as StoreError,
    client::{HttpError, HttpErrorKind},
};

use crate::error::{Code, Error};

/// The reason of whatever passes when the bucket answers again.
pub const STORE_UNAVAILABLE: &str = "STORE_UNAVAILABLE";
const RETRY_AFTER: Duration = Duration::from_secs(5);

pub(super) fn trouble(error: &StoreError) -> Error {
    match error {
        StoreError::NotFound { .. } => unavailable("there is no such bucket or object (404)"),
        StoreError::PermissionDenied { .. } => {
            unavailable("it refuses these credentials what was asked (403): look at the key, the clock and the policy")
        }
        StoreError::Unauthenticated { .. } => unavailable("it wants valid credentials (401)"),
        StoreError::Precondition { .. } | StoreError::AlreadyExists { .. } | StoreError::NotModified { .. } => {
            Error::new(Code::Aborted, "STORE_CHANGED", "the object in the bucket changed meanwhile")
        }
        StoreError::InvalidPath { .. } => {
            let sentence = "an object's name in the bucket is not a path, for example because of '//'; rename it";
            Error::new(Code::FailedPrecondition, "INVALID_PATH", sentence)
        }
        StoreError::NotSupported { .. } | StoreError::NotImplemented { .. } => {
            Error::new(Code::Unimplemented, "STORE_UNSUPPORTED", "this kind of bucket cannot do what was asked")
        }
        other => unavailable(&generic(other)),
    }
}

pub(super) fn unavailable(why: &str) -> Error {
    Error::unavailable(STORE_UNAVAILABLE, format!("the bucket does not answer as it should: {why}"), RETRY_AFTER)
}

/// From the kind of the transport's error, or the number of the answer; nothing else of their texts is taken.
fn generic(error: &StoreError) -> String {
    let mut source = error.source();
    while let Some(inner) = source {
        if let Some(http) = inner.downcast_ref::<HttpError>() {
            return kind_in_words(http.kind()).into();
        }
        source = inner.source();
    }
    let text = error.to_string();
    if text.contains("incorrectly configured region") {
        return "it is in another region: set AWS_REGION".into();
    }
    match status_in(&text) {
        Some(status) => format!("it answered with status {status}"),
        None => "its answer, or the credentials it needs, could not be got".into(),
    }
}

fn kind_in_words(kind: HttpErrorKind) -> &'static str {
    match kind {
        HttpErrorKind::Connect => "no connection could be made",
        HttpErrorKind::Timeout => "it took too long",
        HttpErrorKind::Interrupted | HttpErrorKind::Request => "the connection broke",
        HttpErrorKind::Decode => "its answer cannot be read",
        _ => "the request failed on its way",
    }
}

/// The client's error has no better place for it.
fn status_in(text: &str) -> Option<&str> {
    let (_, after) = text.split_once("status code: ")?;
    after.get(..3).filter(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_number_of_an_answer_is_taken() {
        let source = "Error performing GET https://h/x?sig=SECRET - Server returned non-2xx status code: 503 : SECRET";
        let error = trouble(&StoreError::Generic { store: "S3", source: source.into() });
        assert_eq!((error.code(), error.reason()), (Code::Unavailable, "STORE_UNAVAILABLE"));
        assert!(error.message().ends_with("it answered with status 503"), "{error}");
        let error = trouble(&StoreError::PermissionDenied { path: "SECRET".into(), source: "SECRET".into() });
        assert!(!error.message().contains("SECRET") && error.message().contains("403"), "{error}");
    }
}

//! The one error of the request path and of the control plane.
//!
//! A `Code` says what the caller should make of it, a `reason` is a stable word for programs, the message is a sentence
//! for people. The edge turns the three into a gRPC status (`server/grpc/status.rs`) and an HTTP status, each in one match.
//! Messages are lower case, name the thing, say what was expected and what came, and hold no path and no input value.

use std::{fmt, time::Duration};

/// What the caller should make of an error: the closed set of DESIGN's table, a subset of the gRPC codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The request is wrong whatever the state of the server.
    InvalidArgument,
    /// No such model, version or label.
    NotFound,
    /// Another replica, or a moment later, may serve.
    Unavailable,
    /// A size limit or a quota; the message names the option that sets it.
    ResourceExhausted,
    /// The caller's time was up.
    DeadlineExceeded,
    /// The caller went away.
    Cancelled,
    /// A right request in a wrong state; somebody has to act first.
    FailedPrecondition,
    /// A compare-and-swap was lost.
    Aborted,
    /// The model or the server failed at a request that looked right.
    Internal,
    /// An unknown method, encoding or feature.
    Unimplemented,
}

/// An error with everything the edge needs. One pointer wide, so that results stay small.
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone)]
struct Inner {
    code: Code,
    reason: &'static str,
    message: String,
    metadata: Vec<(&'static str, String)>,
    retry_after: Option<Duration>,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

// === impl Code ===

impl Code {
    pub const ALL: [Code; 10] = [
        Code::InvalidArgument,
        Code::NotFound,
        Code::Unavailable,
        Code::ResourceExhausted,
        Code::DeadlineExceeded,
        Code::Cancelled,
        Code::FailedPrecondition,
        Code::Aborted,
        Code::Internal,
        Code::Unimplemented,
    ];

    /// gRPC's name for it, e.g. `INVALID_ARGUMENT`.
    pub fn as_str(self) -> &'static str {
        match self {
            Code::InvalidArgument => "INVALID_ARGUMENT",
            Code::NotFound => "NOT_FOUND",
            Code::Unavailable => "UNAVAILABLE",
            Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
            Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Code::Cancelled => "CANCELLED",
            Code::FailedPrecondition => "FAILED_PRECONDITION",
            Code::Aborted => "ABORTED",
            Code::Internal => "INTERNAL",
            Code::Unimplemented => "UNIMPLEMENTED",
        }
    }
}

// === impl Error ===

impl Error {
    pub fn new(code: Code, reason: &'static str, message: impl Into<String>) -> Self {
        Self(Box::new(Inner { code, reason, message: message.into(), metadata: Vec::new(), retry_after: None }))
    }

    pub fn invalid(reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, reason, message)
    }

    pub fn not_found(reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(Code::NotFound, reason, message)
    }

    pub fn internal(reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(Code::Internal, reason, message)
    }

    /// UNAVAILABLE always carries a hint when to come back.
    pub fn unavailable(reason: &'static str, message: impl Into<String>, retry_after: Duration) -> Self {
        let mut error = Self::new(Code::Unavailable, reason, message);
        error.0.retry_after = Some(retry_after);
        error
    }

    /// The one error of a deadline, wherever it is noticed.
    pub fn deadline_exceeded(place: &str) -> Self {
        Self::new(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", format!("the deadline passed {place}"))
    }

    /// Adds a fact for programs, shown in `ErrorInfo.metadata`.
    pub fn with(mut self, key: &'static str, value: impl fmt::Display) -> Self {
        self.0.metadata.push((key, value.to_string()));
        self
    }

    pub fn code(&self) -> Code {
        self.0.code
    }

    /// A stable word in capitals, e.g. `UNKNOWN_INPUT`.
    pub fn reason(&self) -> &'static str {
        self.0.reason
    }

    pub fn message(&self) -> &str {
        &self.0.message
    }

    pub fn metadata(&self) -> &[(&'static str, String)] {
        &self.0.metadata
    }

    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}: {}", self.0.code, self.0.reason, self.0.message)
    }
}

impl std::error::Error for Error {}

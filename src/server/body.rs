//! A request's body: the one message of a prediction, whole, or what the gRPC library is handed of any other call. Whoever reads
//! reserves what a message claims, so each claim is held against the limit and the budget first; and a body that stops is ended.

use std::{
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Sleep;
use tonic::Status;

use super::{
    budget::Ledger,
    connection::ConnectionState,
    frames::{Frames, HEADER_BYTES, Header},
    grpc::status::{malformed, message_too_large},
    method::Shape,
};
use crate::error::{Code, Error, Result};

/// The caller's bytes, watched.
pub struct RequestBody {
    inner: Incoming,
    frames: Frames,
    rules: Rules,
    /// What the messages claim; shared with those who work on them.
    ledger: Arc<Ledger>,
    connection: Arc<ConnectionState>,
    messages: usize,
    /// Nothing comes any more.
    ended: bool,
    /// Bytes of the latest message.
    claimed: usize,
    patience: Patience,
    /// The one message, as far as it came, for who asks for it whole.
    gathered: Vec<u8>,
}

/// What one body may do.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub shape: Shape,
    /// Bytes of one message.
    pub message_bytes_max: usize,
    /// Whether the caller announced an encoding for compressed messages.
    pub encoded: bool,
    pub timeout: Duration,
    pub deadline: Option<Instant>,
}

/// The clock of a body that does not come; made only when one has to be waited for.
#[derive(Default)]
struct Patience {
    sleep: Option<Pin<Box<Sleep>>>,
    /// Since the clock was set.
    bytes: usize,
}

/// A half message earns more time with each so many bytes: one byte a second is not progress.
const PROGRESS_BYTES: usize = 64 << 10;

/// gzip makes at most about this many bytes out of one.
const GZIP_RATIO_MAX: usize = 1032;

/// When the budget is used up, the messages before are soon answered.
const RETRY_AFTER: Duration = Duration::from_millis(100);

// === impl RequestBody ===

impl RequestBody {
    pub fn new(inner: Incoming, rules: Rules, ledger: Arc<Ledger>, connection: Arc<ConnectionState>) -> Self {
        Self {
            inner,
            frames: Frames::default(),
            rules,
            ledger,
            connection,
            messages: 0,
            ended: false,
            claimed: 0,
            patience: Patience::default(),
            gathered: Vec::new(),
        }
    }

    /// The one message of a call that is not compressed, once nothing more can come: each byte copied once, into a buffer of
    /// its own, so that a small message holds on to no large piece of what was read.
    pub fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, Status>> {
        while let Some(frame) = ready!(Pin::new(&mut *self).poll_frame(cx)) {
            let Ok(data) = frame?.into_data() else { continue };
            let whole = HEADER_BYTES + self.claimed;
            if self.messages > 0 && self.gathered.capacity() < whole {
                self.gathered.reserve_exact(whole - self.gathered.len());
            }
            self.gathered.extend_from_slice(&data);
        }
        if self.messages == 0 || !self.frames.between_messages() {
            return Poll::Ready(Err(self.refuse(malformed())));
        }
        let mut message = Bytes::from(mem::take(&mut self.gathered));
        message.advance(HEADER_BYTES);
        Poll::Ready(Ok(message))
    }

    fn take_in(&mut self, bytes: &Bytes) -> Result<()> {
        let Self { frames, rules, ledger, messages, claimed, .. } = self;
        frames.walk(bytes, |header| {
            *messages += 1;
            *claimed = header.length;
            rules.check(*messages, header)?;
            if ledger.take(rules.claim(header)) {
                return Ok(());
            }
            Err(Error::unavailable(
                "REQUEST_MEMORY",
                "the messages being worked on use up the memory for requests; --request-memory sets it",
                RETRY_AFTER,
            ))
        })?;
        let awaited = self.awaited();
        self.patience.reward(bytes.len(), awaited);
        Ok(())
    }

    /// Whether somebody waits for what comes next: within a message, and in a unary call until its end, for which all wait.
    fn awaited(&self) -> bool {
        match self.rules.shape {
            Shape::One => !self.ended,
            Shape::Stream => !self.frames.between_messages(),
        }
    }

    fn refuse(&self, error: Error) -> Status {
        self.connection.shared.metrics.refused(error.reason());
        error.into()
    }

    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<Status> {
        if !self.awaited() {
            return Poll::Pending;
        }
        let rules = self.rules;
        let sleep = self.patience.sleep.get_or_insert_with(|| {
            let given_up = Instant::now() + rules.timeout;
            let until = rules.deadline.map_or(given_up, |deadline| deadline.min(given_up));
            Box::pin(tokio::time::sleep_until(until.into()))
        });
        ready!(sleep.as_mut().poll(cx));
        let expired = rules.deadline.is_some_and(|deadline| deadline <= Instant::now());
        Poll::Ready(self.refuse(if expired {
            Error::deadline_exceeded("while the request was being read")
        } else {
            Error::new(
                Code::DeadlineExceeded,
                "BODY_TIMEOUT",
                format!("the rest of the request did not come within {:?}", rules.timeout),
            )
        }))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        match Pin::new(&mut this.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(bytes) => {
                    let taken = this.take_in(&bytes);
                    Poll::Ready(Some(taken.map(|()| Frame::data(bytes)).map_err(|error| this.refuse(error))))
                }
                Err(frame) => Poll::Ready(Some(Ok(frame))),
            },
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(Status::from_error(Box::new(error))))),
            Poll::Ready(None) => {
                this.ended = true;
                Poll::Ready(None)
            }
            Poll::Pending => this.poll_patience(cx).map(|status| Some(Err(status))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

// === impl Rules ===

impl Rules {
    fn check(&self, message: usize, header: Header) -> Result<()> {
        if header.length > self.message_bytes_max {
            return Err(message_too_large(Some(self.message_bytes_max)).with("claimed_bytes", header.length));
        }
        if header.compressed > 1 || (message > 1 && self.shape == Shape::One) {
            return Err(malformed());
        }
        if header.compressed == 1 && !self.encoded {
            // gRPC's specification asks for this code.
            return Err(Error::internal(
                "MISSING_ENCODING",
                "a message is marked as compressed, but no grpc-encoding was announced",
            ));
        }
        Ok(())
    }

    /// The most memory that the message can make its reader reserve.
    fn claim(&self, header: Header) -> usize {
        if header.compressed == 0 {
            return header.length;
        }
        let unpacked = header.length.saturating_mul(GZIP_RATIO_MAX).min(self.message_bytes_max);
        header.length.saturating_add(unpacked)
    }
}

// === impl Patience ===

impl Patience {
    /// Sets the clock anew after enough progress, and puts it away when nothing is awaited.
    fn reward(&mut self, bytes: usize, awaited: bool) {
        self.bytes += bytes;
        if !awaited || self.bytes >= PROGRESS_BYTES {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules {
        shape: Shape::One,
        message_bytes_max: 1 << 20,
        encoded: false,
        timeout: Duration::from_secs(10),
        deadline: None,
    };

    fn header(compressed: u8, length: usize) -> Header {
        Header { compressed, length }
    }

    #[test]
    fn a_claim_over_the_limit_names_the_option() {
        assert!(RULES.check(1, header(0, 1 << 20)).is_ok());
        let error = RULES.check(1, header(0, (1 << 20) + 1)).expect_err("too large");
        assert_eq!((error.code(), error.reason()), (Code::ResourceExhausted, "MESSAGE_TOO_LARGE"));
        assert!(error.message().contains("--max-message-bytes"));
    }

    #[test]
    fn what_is_not_grpc_is_refused() {
        let reason = |rules: Rules, message, header| rules.check(message, header).expect_err("wrong").reason();
        assert_eq!(reason(RULES, 1, header(2, 5)), "MALFORMED_REQUEST");
        assert_eq!(reason(RULES, 2, header(0, 5)), "MALFORMED_REQUEST");
        assert_eq!(reason(RULES, 1, header(1, 5)), "MISSING_ENCODING");
        let stream = Rules { shape: Shape::Stream, encoded: true, ..RULES };
        assert!(stream.check(2, header(1, 5)).is_ok());
    }

    #[test]
    fn a_compressed_message_claims_what_it_may_become() {
        assert_eq!(RULES.claim(header(0, 5000)), 5000);
        assert_eq!(RULES.claim(header(1, 100)), 100 + 100 * GZIP_RATIO_MAX);
        assert_eq!(RULES.claim(header(1, 5000)), 5000 + (1 << 20));
    }
}

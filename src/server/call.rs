//! One call from the moment it is let in until the last byte of its answer is gone: whatever happens inside, a panic
//! included, the caller gets a status of ours.

use std::{
    borrow::Cow,
    convert::Infallible,
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, header::CONTENT_TYPE};
use http_body::{Body, Frame, SizeHint};
use tonic::Status;

use super::{
    budget::Ledger,
    connection::{ConnectionState, OpenCall},
    grpc::{Answered, Answering, Unary, status},
    method::Method,
    trace::Trace,
};
use crate::{error::Error, model::Metadata};

/// What a handler may know of its call beside the message. Travels in the request's extensions.
#[derive(Clone)]
pub struct CallContext {
    pub arrival: Arrival,
    /// What the messages claim. A stream gives back the oldest message with each answer.
    pub ledger: Arc<Ledger>,
    pub trace: Trace,
    /// What routes look for in it.
    pub metadata: Metadata,
    /// Where each message of a stream finds its place among the calls in flight.
    pub connection: Arc<ConnectionState>,
}

/// The times of a call.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub at: Instant,
    /// After this moment nobody waits for the answer.
    pub deadline: Option<Instant>,
}

/// Who answered whom, for the log. Travels in the extensions of an answer.
#[derive(Clone, Debug, Default)]
pub struct About {
    pub model: String,
    pub version: String,
    /// The caller's own id; may be empty.
    pub request_id: String,
}

/// The answer to come.
pub struct Call(Step);

/// Who works on the answer.
pub enum Work {
    Ours(Unary),
    Library(Answering),
}

/// What came of the work.
enum Outcome {
    Answered(Answered),
    Refused(Status),
    Library(Response<tonic::body::Body>),
}

/// The answer, and the call's place among the open ones, until it is sent.
pub struct ResponseBody {
    content: Content,
    /// `None` where the answer is complete in its headers.
    ending: Option<Ending>,
}

/// What is known of a call for its end.
pub struct Ending {
    pub method: &'static Method,
    pub trace: Trace,
    pub open: OpenCall,
    pub arrived: Instant,
}

enum Step {
    Working { work: Work, ending: Option<Ending> },
    Answered(Option<Response<ResponseBody>>),
}

/// What is left to send.
enum Content {
    /// One message, and after it the status.
    Message(Bytes),
    /// OK, and nothing before it any more.
    Status,
    Nothing,
    Library(tonic::body::Body),
}

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

// === impl Call ===

impl Call {
    pub fn working(work: Work, ending: Ending) -> Self {
        Self(Step::Working { work, ending: Some(ending) })
    }

    /// An answer without a handler; it is complete in its headers.
    pub fn answered(response: Response<tonic::body::Body>) -> Self {
        let response = response.map(|body| ResponseBody { content: Content::Library(body), ending: None });
        Self(Step::Answered(Some(response)))
    }
}

impl Future for Call {
    type Output = Result<Response<ResponseBody>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.get_mut().0 {
            Step::Answered(response) => Poll::Ready(Ok(response.take().expect("polled after its end: this is a bug"))),
            Step::Working { work, ending } => {
                let outcome = match catch_unwind(AssertUnwindSafe(|| work.poll(cx))) {
                    Ok(polled) => ready!(polled),
                    Err(_) => {
                        if let Some(ending) = ending {
                            ending.open.connection().count_panic();
                        }
                        Outcome::Refused(panicked().into())
                    }
                };
                let ending = ending.take().expect("polled after its end: this is a bug");
                Poll::Ready(Ok(ending.finish(outcome)))
            }
        }
    }
}

// === impl Work ===

impl Work {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        match self {
            Work::Ours(work) => work.as_mut().poll(cx).map(|answered| match answered {
                Ok(answered) => Outcome::Answered(answered),
                Err(status) => Outcome::Refused(status),
            }),
            Work::Library(work) => work.as_mut().poll(cx).map(|response| match response {
                Ok(response) => Outcome::Library(response),
                Err(never) => match never {},
            }),
        }
    }
}

// === impl Ending ===

impl Ending {
    fn finish(self, outcome: Outcome) -> Response<ResponseBody> {
        let response = match outcome {
            Outcome::Answered(Answered { frame, about }) => {
                if let Some(about) = about {
                    self.log_answered(about);
                }
                let mut response = Response::new(Content::Message(frame));
                response.headers_mut().insert(CONTENT_TYPE, GRPC);
                response
            }
            Outcome::Refused(status) => {
                let mut response = Response::new(Content::Nothing);
                response.headers_mut().insert(CONTENT_TYPE, GRPC);
                // Adding fails only for bytes that no header may hold; the message is percent-encoded.
                let _ = status.add_header(response.headers_mut());
                let status = self.settle(&status, response.headers_mut());
                self.log(&status);
                response
            }
            Outcome::Library(mut response) => {
                // A failed call is complete in its headers; the library leaves the status itself beside them.
                if let Some(status) = response.extensions_mut().remove::<Status>() {
                    let status = self.settle(&status, response.headers_mut());
                    self.log(&status);
                } else if let Some(about) = response.extensions_mut().remove() {
                    self.log_answered(about);
                }
                response.map(Content::Library)
            }
        };
        response.map(|content| ResponseBody { content, ending: Some(self) })
    }

    fn log_answered(&self, About { model, version, request_id }: About) {
        let (trace_id, parent_id) = self.trace.ids().unzip();
        let (method, millis) = (self.method.path, milliseconds_since(self.arrived));
        tracing::debug!(method, model, version, request_id, millis, trace_id, parent_id, "a call was answered");
    }

    /// Gives a status of the library's own our code, in the headers or trailers that carry it, and counts it as our own are.
    fn settle<'a>(&self, status: &'a Status, headers: &mut HeaderMap) -> Cow<'a, Status> {
        let Some(error) = status::of_library(status) else {
            return Cow::Borrowed(status);
        };
        self.open.connection().shared.metrics.refused(error.reason());
        let ours = Status::from(error);
        // Adding fails only for bytes that no header may hold; the message is percent-encoded.
        let _ = ours.add_header(headers);
        Cow::Owned(ours)
    }

    /// One line, only where it is asked for. Texts of errors hold no input value.
    pub fn log(&self, status: &Status) {
        log(self.method.path, &self.trace, self.arrived, status);
    }
}

/// One line for a call that failed: the server's own failures always, the rest where debugging is on.
pub fn log(method: &str, trace: &Trace, arrived: Instant, status: &Status) {
    let own_fault = status.code() == tonic::Code::Internal;
    if !(own_fault && tracing::enabled!(tracing::Level::WARN) || tracing::enabled!(tracing::Level::DEBUG)) {
        return;
    }
    let (trace_id, parent_id) = trace.ids().unzip();
    let info = status::info(status).unwrap_or_default();
    let fact = |key| info.metadata.get(key).map(String::as_str);
    macro_rules! line {
        ($level:ident, $what:literal) => {
            tracing::$level!(
                method,
                code = ?status.code(),
                reason = info.reason,
                text = status.message(),
                model = fact("model"),
                version = fact("version"),
                request_id = fact("request_id"),
                millis = milliseconds_since(arrived),
                trace_id,
                parent_id,
                $what
            )
        };
    }
    if own_fault {
        line!(warn, "a call failed");
    } else {
        line!(debug, "a call was refused");
    }
}

fn milliseconds_since(moment: Instant) -> f64 {
    moment.elapsed().as_secs_f64() * 1e3
}

/// Says nothing of what panicked: that is for the log, not for the caller.
pub fn panicked() -> Error {
    Error::internal("PANIC", "the server failed at this call; the log says more")
}

// === impl ResponseBody ===

impl ResponseBody {
    fn settle_trailers(&self, trailers: &mut HeaderMap) {
        if trailers.get("grpc-status").is_some_and(|status| status == "0") {
            return;
        }
        let (Some(ending), Some(status)) = (&self.ending, Status::from_header_map(trailers)) else {
            return;
        };
        if status.code() != tonic::Code::Ok {
            let status = ending.settle(&status, trailers);
            ending.log(&status);
        }
    }

    fn panic_trailers(&mut self) -> HeaderMap {
        let status = Status::from(panicked());
        let mut trailers = HeaderMap::new();
        let _ = status.add_header(&mut trailers);
        if let Some(ending) = &self.ending {
            ending.open.connection().count_panic();
            ending.log(&status);
        }
        self.content = Content::Nothing;
        trailers
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let body = match &mut this.content {
            Content::Library(body) => body,
            ours => return Poll::Ready(ours.next().map(Ok)),
        };
        // The handlers of streams run here.
        let polled = catch_unwind(AssertUnwindSafe(|| Pin::new(body).poll_frame(cx)));
        let Ok(polled) = polled else {
            return Poll::Ready(Some(Ok(Frame::trailers(this.panic_trailers()))));
        };
        let mut frame = ready!(polled);
        if let Some(Ok(frame)) = &mut frame
            && let Some(trailers) = frame.trailers_mut()
        {
            this.settle_trailers(trailers);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Message(_) | Content::Status => false,
            Content::Nothing => true,
            Content::Library(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Library(body) => body.size_hint(),
            _ => SizeHint::default(),
        }
    }
}

// === impl Content ===

impl Content {
    /// The next piece of what is ours.
    fn next(&mut self) -> Option<Frame<Bytes>> {
        match mem::replace(self, Content::Nothing) {
            Content::Message(message) => {
                *self = Content::Status;
                Some(Frame::data(message))
            }
            Content::Status => {
                let mut trailers = HeaderMap::with_capacity(1);
                trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
                Some(Frame::trailers(trailers))
            }
            Content::Nothing | Content::Library(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        server::{Config, Ports, budget::Budget, layers::Shared, method, method::Door, phase},
        telemetry::Metrics,
    };

    fn call(connection: &Arc<ConnectionState>, work: Unary) -> Call {
        let method = method::find("/sconce.v1.Inference/Predict").expect("it is in the table");
        let open = OpenCall::enter(connection.clone(), true).expect("there is room");
        Call::working(Work::Ours(work), Ending { method, trace: Trace::default(), open, arrived: Instant::now() })
    }

    #[tokio::test]
    async fn a_handler_that_panics_ends_its_own_call_alone_and_tells_the_caller_nothing() {
        let metrics = Metrics::new();
        let connection = ConnectionState::new(Arc::new(Shared {
            door: Door::Inference,
            config: Arc::new(Config::default()),
            ports: Ports::default(),
            budget: Budget::new(1 << 20),
            metrics: metrics.clone(),
            phases: phase::new().1,
        }));
        let broken = call(&connection, Box::pin(async { panic!("a secret of the server") }));
        let Ok(response) = broken.await;
        let headers = format!("{:?}", response.headers());
        let status = Status::from_header_map(response.headers()).expect("it is complete in its headers");
        assert_eq!(status.code(), tonic::Code::Internal);
        assert_eq!(status::info(&status).expect("ours has details").reason, "PANIC");
        assert!(!headers.contains("secret") && !status.message().contains("secret"), "{headers}");
        assert!(!String::from_utf8_lossy(status.details()).contains("secret"));
        drop(response);
        assert_eq!((metrics.panics.get(), metrics.requests_in_flight.get()), (1, 0), "its place is free again");

        let Ok(next) = call(&connection, Box::pin(async { Ok(Answered { frame: Bytes::new(), about: None }) })).await;
        assert!(Status::from_header_map(next.headers()).is_none(), "the next call works");
        assert_eq!(metrics.panics.get(), 1);
    }
}

//! ModelStreamInfer: questions come and answers leave in one order, while the questions in between run side by side.

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll},
    time::Instant,
};

use http::HeaderMap;
use tokio::task::JoinHandle;
use tokio_stream::Stream;
use tonic::{Status, Streaming};

use super::{convert::oip, converted, open_inference::classified, wanted_of};
use crate::{
    engine::Engine,
    error::{Error, Result},
    model::{Metadata, PredictRequest},
    server::{
        call::{self, Arrival, CallContext, panicked},
        connection::OpenCall,
        proto::inference::{ModelInferRequest, ModelInferResponse, ModelStreamInferResponse},
        trace::Trace,
    },
};

/// The answers of one stream.
pub struct Answers {
    /// `None` after the last question.
    questions: Option<Streaming<ModelInferRequest>>,
    /// Of the call: a question is routed by what holds when it comes.
    headers: HeaderMap,
    /// In the order of the questions, at most `OPEN_MAX`.
    open: VecDeque<Open>,
    /// What ended the questions early; told after the answers to those before.
    failure: Option<Status>,
    engine: Engine,
    context: CallContext,
}

/// A question.
enum Open {
    Refused(ModelStreamInferResponse),
    /// It stops when nobody waits for it any more.
    Running(JoinHandle<ModelStreamInferResponse>),
}

const METHOD: &str = "/inference.GRPCInferenceService/ModelStreamInfer";

/// More questions are read only when an earlier one is answered: a caller who does not read is not read either.
const OPEN_MAX: usize = 64;

// === impl Answers ===

impl Answers {
    pub fn new(
        questions: Streaming<ModelInferRequest>,
        headers: HeaderMap,
        engine: Engine,
        context: CallContext,
    ) -> Self {
        Self { questions: Some(questions), headers, open: VecDeque::new(), failure: None, engine, context }
    }

    /// Starts what has come, as far as there is room.
    fn poll_questions(&mut self, cx: &mut Context<'_>) {
        while self.open.len() < OPEN_MAX
            && let Some(questions) = &mut self.questions
        {
            match Pin::new(questions).poll_next(cx) {
                Poll::Pending => return,
                Poll::Ready(Some(Ok(message))) => {
                    let open = self.start(message);
                    self.open.push_back(open);
                }
                Poll::Ready(end) => {
                    self.failure = end.and_then(Result::err);
                    self.questions = None;
                }
            }
        }
    }

    /// As the routes have it now: a stream outlives them.
    fn metadata(&self) -> Metadata {
        let config = &self.context.connection.shared.config;
        wanted_of(&self.engine, &self.headers, config.caller_metadata.as_ref())
    }

    /// A question is looked at before it waits: one that is wrong, or too much, does not lie about in memory.
    fn start(&self, message: ModelInferRequest) -> Open {
        // A timeout of its own counts from its own arrival.
        let arrival = Arrival { at: Instant::now(), ..self.context.arrival };
        let trace = self.context.trace.clone();
        let id = message.id.clone();
        // Each message counts as work in flight until it is answered.
        let admitted = OpenCall::enter(self.context.connection.clone(), true)
            .and_then(|place| Ok((place, oip::request(message, arrival)?)));
        let (place, (question, reply)) = match converted(admitted, &self.context) {
            Ok(admitted) => admitted,
            Err(error) => return Open::Refused(failed(error, id, &trace, arrival)),
        };
        let question = PredictRequest { metadata: self.metadata(), ..question };
        let engine = self.engine.clone();
        Open::Running(tokio::spawn(async move {
            let _place = place;
            let answered = engine.predict(question).await;
            match classified(engine.catalog(), answered, &reply) {
                Ok(answer) => ModelStreamInferResponse {
                    error_message: String::new(),
                    infer_response: Some(oip::response(answer, reply)),
                },
                Err(error) => failed(error, id, &trace, arrival),
            }
        }))
    }

    fn poll_oldest(&mut self, cx: &mut Context<'_>) -> Poll<Option<ModelStreamInferResponse>> {
        let answer = match self.open.front_mut() {
            None => return Poll::Ready(None),
            Some(Open::Refused(answer)) => std::mem::take(answer),
            Some(Open::Running(task)) => match std::task::ready!(Pin::new(task).poll(cx)) {
                Ok(answer) => answer,
                // It panicked, or its runtime is going away.
                Err(_) => {
                    self.context.connection.count_panic();
                    failed(panicked(), String::new(), &self.context.trace, self.context.arrival)
                }
            },
        };
        self.open.pop_front();
        self.context.ledger.give_back_oldest();
        Poll::Ready(Some(answer))
    }
}

impl Stream for Answers {
    type Item = Result<ModelStreamInferResponse, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        this.poll_questions(cx);
        match this.poll_oldest(cx) {
            Poll::Ready(Some(answer)) => Poll::Ready(Some(Ok(answer))),
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) if this.questions.is_some() => Poll::Pending,
            Poll::Ready(None) => Poll::Ready(this.failure.take().map(Err)),
        }
    }
}

/// With an error the answer holds only the id of its question. The call itself ends well, so this has its own line in the log.
fn failed(error: Error, id: String, trace: &Trace, arrival: Arrival) -> ModelStreamInferResponse {
    let status = Status::from(error);
    call::log(METHOD, trace, arrival.at, &status);
    ModelStreamInferResponse {
        error_message: status.message().to_owned(),
        infer_response: Some(ModelInferResponse { id, ..ModelInferResponse::default() }),
    }
}

// === impl Open ===

impl Drop for Open {
    fn drop(&mut self) {
        if let Self::Running(task) = self {
            task.abort();
        }
    }
}

//! ModelStreamInfer: questions come and answers leave in one order, while the questions in between run side by side.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use tokio::task::JoinHandle;
use tokio_stream::Stream;
use tonic::{Status, Streaming};

use super::open_inference::infer;
use crate::{
    engine::Engine,
    error::Result,
    server::{
        call::{Arrival, CallContext, panicked},
        connection::{ConnectionState, OpenCall},
        proto::inference::{ModelInferRequest, ModelInferResponse, ModelStreamInferResponse},
    },
};

/// The answers of one stream.
pub struct Answers {
    /// `None` after the last question.
    questions: Option<Streaming<ModelInferRequest>>,
    /// In the order of the questions, at most `OPEN_MAX`.
    open: VecDeque<Open>,
    /// What ended the questions early; told after the answers to those before.
    failure: Option<Status>,
    engine: Engine,
    context: CallContext,
}

/// A question that runs; it stops when nobody waits for it any more.
struct Open(JoinHandle<ModelStreamInferResponse>);

/// More questions are read only when an earlier one is answered: a caller who does not read is not read either.
const OPEN_MAX: usize = 64;

// === impl Answers ===

impl Answers {
    pub fn new(questions: Streaming<ModelInferRequest>, engine: Engine, context: CallContext) -> Self {
        Self {
            questions: Some(questions),
            open: VecDeque::new(),
            failure: None,
            engine,
            context,
        }
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

    fn start(&self, message: ModelInferRequest) -> Open {
        let engine = self.engine.clone();
        // A timeout of its own counts from its own arrival.
        let arrival = Arrival {
            at: Instant::now(),
            ..self.context.arrival
        };
        let connection = self.context.connection.clone();
        Open(tokio::spawn(async move {
            let id = message.id.clone();
            match answer(&engine, message, arrival, connection).await {
                Ok(answer) => ModelStreamInferResponse {
                    error_message: String::new(),
                    infer_response: Some(answer),
                },
                Err(error) => failed(error.message(), id),
            }
        }))
    }

    fn poll_oldest(&mut self, cx: &mut Context<'_>) -> Poll<Option<ModelStreamInferResponse>> {
        let Some(Open(task)) = self.open.front_mut() else {
            return Poll::Ready(None);
        };
        let answer = match std::task::ready!(Pin::new(task).poll(cx)) {
            Ok(answer) => answer,
            // It panicked, or its runtime is going away.
            Err(_) => {
                self.context.connection.count_panic();
                failed(panicked().message(), String::new())
            }
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

async fn answer(
    engine: &Engine,
    message: ModelInferRequest,
    arrival: Arrival,
    connection: Arc<ConnectionState>,
) -> Result<ModelInferResponse> {
    // Each message counts as work in flight until it is answered.
    let _place = OpenCall::enter(connection, true)?;
    infer(engine, message, arrival).await
}

/// With an error the answer holds only the id of its question.
fn failed(message: &str, id: String) -> ModelStreamInferResponse {
    ModelStreamInferResponse {
        error_message: message.to_owned(),
        infer_response: Some(ModelInferResponse {
            id,
            ..ModelInferResponse::default()
        }),
    }
}

// === impl Open ===

impl Drop for Open {
    fn drop(&mut self) {
        self.0.abort();
    }
}

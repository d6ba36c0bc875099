//! The waiting for one request's answer: all that is left of it while its batch forms and runs.
//!
//! Written out, because an `async fn` keeps what it was called with beside what it works on, and each that waits for another
//! does so again: the future of a request would be ten times as large, and be copied as often.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use pin_project_lite::pin_project;
use tokio::{sync::oneshot, time::Sleep};

use super::{
    servable::Servable,
    work::{Done, Outcome, draining},
};
use crate::error::{Error, Result};

pin_project! {
    /// A request on its way through a servable. Dropping it takes the request out of the queue.
    #[project = RunningProjection]
    pub enum Running {
        /// It lies with a core, and may come back to be run elsewhere.
        Queued { #[pin] answer: Answering, servable: Arc<Servable> },
        /// Boxed, as it is seldom: the requests of cheap models need not be as large.
        Other { done: Pin<Box<dyn Future<Output = Result<Done>> + Send>> },
    }
}

pin_project! {
    /// An answer that no longer needs to be told when its batch begins.
    pub struct Answering {
        answer: oneshot::Receiver<Result<Outcome>>,
        #[pin]
        deadline: Option<Sleep>,
    }
}

// === impl Running ===

impl Running {
    pub fn other(done: impl Future<Output = Result<Done>> + Send + 'static) -> Self {
        Self::Other { done: Box::pin(done) }
    }
}

impl Future for Running {
    type Output = Result<Done>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let elsewhere = match self.as_mut().project() {
            RunningProjection::Other { done } => return done.as_mut().poll(cx),
            RunningProjection::Queued { answer, servable } => match ready!(answer.poll(cx))? {
                Outcome::Done(done) => return Poll::Ready(Ok(done)),
                Outcome::Elsewhere(work) => {
                    let servable = servable.clone();
                    Self::other(async move { servable.run_on_threads(*work).await })
                }
            },
        };
        self.set(elsewhere);
        self.poll(cx)
    }
}

// === impl Answering ===

impl Answering {
    pub fn new(answer: oneshot::Receiver<Result<Outcome>>, deadline: Option<Instant>) -> Self {
        Self { answer, deadline: deadline.map(|deadline| tokio::time::sleep_until(deadline.into())) }
    }
}

impl Future for Answering {
    type Output = Result<Outcome>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(answered) = Pin::new(this.answer).poll(cx) {
            // The sender is dropped unanswered only where a core or a thread ended under it.
            return Poll::Ready(answered.unwrap_or_else(|_| Err(draining())));
        }
        match this.deadline.as_pin_mut() {
            Some(deadline) => deadline.poll(cx).map(|()| Err(Error::deadline_exceeded("before the answer came"))),
            None => Poll::Pending,
        }
    }
}

//! One request's part of a batch, and its answer.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::{
    error::{Error, Result},
    model::{Parameters, Priority, Tensor, Timing},
};

/// Checked, normalised, in the signature's order.
#[derive(Debug)]
pub struct Work {
    pub inputs: Vec<Tensor>,
    pub rows: usize,
    /// Places in the signature's outputs.
    pub outputs: Vec<usize>,
    pub parameters: Parameters,
    pub priority: Priority,
    pub deadline: Option<Instant>,
}

/// Its answer.
#[derive(Debug)]
pub struct Done {
    pub outputs: Vec<Tensor>,
    pub timing: Timing,
}

/// What came of it.
#[derive(Debug)]
pub enum Outcome {
    Done(Done),
    /// It held up its core, and is to be run on threads.
    Elsewhere(Box<Work>),
}

/// Where an answer goes. During a run the watchdog may have it, to see whether anybody waits.
#[derive(Debug)]
pub struct Reply(Option<Caller>);

/// Closed when the caller has gone.
pub type Caller = oneshot::Sender<Result<Outcome>>;

// === impl Reply ===

impl Reply {
    /// And where it comes out.
    pub fn channel() -> (Self, oneshot::Receiver<Result<Outcome>>) {
        let (caller, answer) = oneshot::channel();
        (Self(Some(caller)), answer)
    }

    /// Whether somebody waited for it.
    pub fn send(self, answer: Result<Outcome>) -> bool {
        self.0.is_some_and(|caller| caller.send(answer).is_ok())
    }

    /// Whether nobody waits any more.
    pub fn is_closed(&self) -> bool {
        self.0.as_ref().is_none_or(Caller::is_closed)
    }

    pub fn lend(&mut self) -> Option<Caller> {
        self.0.take()
    }

    pub fn give_back(&mut self, caller: Caller) {
        self.0 = Some(caller);
    }
}

// === impl Outcome ===

impl Outcome {
    /// For those who do not send anything elsewhere.
    pub fn done(self) -> Result<Done> {
        match self {
            Outcome::Done(done) => Ok(done),
            Outcome::Elsewhere(_) => {
                Err(Error::internal("BACKEND_FAILED", "work was sent back by a thread: this is a bug"))
            }
        }
    }
}

pub fn draining() -> Error {
    Error::unavailable("DRAINING", "the server is shutting down", Duration::from_secs(1))
}

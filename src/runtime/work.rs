//! One request's part of a batch, and its answer.

use std::time::{Duration, Instant};

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

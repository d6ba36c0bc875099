//! One version at work.

use std::{sync::Arc, time::Instant};

use crate::{
    backend::Executable,
    error::Result,
    model::{Manifest, ModelName, Parameters, Priority, Signature, Tensor, Timing, Version},
    telemetry::VersionMetrics,
};

/// All that a servable is made of.
pub struct ServableConfig {
    pub model: ModelName,
    pub version: Version,
    pub manifest: Manifest,
    pub executable: Arc<dyn Executable>,
    /// The executable's, with `batch` cleared everywhere where joining was not shown to be safe.
    pub signature: Signature,
    /// Why requests are joined, or why not, in words for operators.
    pub batching_reason: String,
    /// Measured (rows, microseconds of one run), ascending by rows; from the child.
    pub cost: Vec<(usize, f64)>,
    pub metrics: VersionMetrics,
}

/// One request's part of a batch: checked, normalised, in the signature's order.
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
pub struct Done {
    pub outputs: Vec<Tensor>,
    pub timing: Timing,
}

/// A version at work. Dropping the last handle is the drain.
pub struct Servable {
    config: ServableConfig,
}

// === impl Servable ===

impl Servable {
    pub fn signature(&self) -> &Signature {
        &self.config.signature
    }

    pub fn config(&self) -> &ServableConfig {
        &self.config
    }

    /// Queues the work, waits for its batch and gives back its part.
    ///
    /// UNAVAILABLE `QUEUE_FULL` at once when there is no room; DEADLINE_EXCEEDED when its time is up, and then it was not run
    /// if it was still queued. Dropping the future takes the work out of the queue.
    pub async fn run(self: Arc<Self>, _work: Work) -> Result<Done> {
        unimplemented!("written next")
    }
}

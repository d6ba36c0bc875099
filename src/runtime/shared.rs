//! What a servable's cores and threads share.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use super::{
    Mark,
    cache::AnswerCache,
    cost::Cost,
    forming::Forming,
    joining::Filled,
    queue::{Full, Limits},
};
use crate::{
    backend::{Executable, Session},
    error::{Error, Result},
    model::{Features, Manifest, ModelName, Signature, Tensor, Version},
    telemetry::VersionMetrics,
};

/// What cores and threads know of a servable; it does not keep the servable itself alive.
pub struct Shared {
    /// Unique in the process, never used again: a new servable of the same version is another one.
    pub id: u64,
    pub model: ModelName,
    pub version: Version,
    pub manifest: Manifest,
    pub signature: Signature,
    pub features: Features,
    pub batching_reason: String,
    pub cost: Cost,
    pub metrics: Arc<VersionMetrics>,
    pub mark: Mark,
    /// `None` where no answer is kept.
    pub cache: Option<AnswerCache>,
    pub joinable: bool,
    /// Whether inputs are filled up to the sizes that `pad` gives; only where they are joined, too.
    pub pads: bool,
    pub gains_by_joining: bool,
    pub executable: Arc<dyn Executable>,
    /// Whether it has held up a core: then it runs on threads of its own.
    pub moved: AtomicBool,
    /// Whether a single row was too dear for the loop when it was last looked at.
    pub dear: AtomicBool,
}

/// The most that one wait may be told to come back after.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// Who has threads goes back into the loop when it is clearly cheaper: to and fro, it would have two queues.
const CLEARLY_CHEAPER: f64 = 0.8;

// === impl Shared ===

impl Shared {
    /// A session for the thread that calls.
    pub fn session(&self) -> Result<Box<dyn Session>> {
        let _running = self.mark.begin();
        self.executable.session()
    }

    /// Bounds of one of `shares` queues.
    pub fn limits(&self, shares: usize) -> Limits {
        Limits {
            rows_max: self.manifest.max_queue_rows.div_ceil(shares),
            bytes_max: usize::try_from(self.manifest.max_queue_bytes).unwrap_or(usize::MAX).div_ceil(shares),
            timeout: self.manifest.queue_timeout,
        }
    }

    /// How batches form. Nothing waits for what could not join it, nor for what gains nothing by it.
    pub fn forming(&self) -> Forming {
        match self.joinable && self.gains_by_joining {
            true => Forming { preferred: self.manifest.preferred_batch_sizes.clone(), delay: self.manifest.max_delay },
            false => Forming::default(),
        }
    }

    /// Whether a single row is too dear for the loop.
    pub fn is_dear(&self, loop_budget: Duration) -> bool {
        let was = self.dear.load(Ordering::Relaxed);
        let is = dear(was, self.cost.predict(1), loop_budget);
        if was != is {
            self.dear.store(is, Ordering::Relaxed);
        }
        is
    }

    /// A run of it kept a core from everything else.
    pub fn held_up_a_core(&self, ends: bool) {
        self.metrics.core_holds.inc();
        if !self.moved.swap(true, Ordering::Relaxed) {
            let then = if ends { "the run is ended, and" } else { "the library cannot end the run;" };
            tracing::warn!(
                model = %self.model, version = %self.version,
                "a run holds up a core: {then} the version runs on threads of its own from now on"
            );
        }
    }

    /// Learns from one run, and shows it.
    pub fn observe(&self, rows: usize, took: Duration) {
        self.cost.observe(rows, took);
        self.metrics.compute_duration.observe(took.as_secs_f64());
        self.metrics.batch_rows.observe(rows as f64);
    }

    /// An output for these inputs, without what it has for the padding.
    pub fn unpadded(&self, place: usize, output: Tensor, inputs: &[Tensor]) -> Tensor {
        if self.pads { self.signature.unpadded(place, output, inputs) } else { output }
    }

    /// What share of a run's inputs no caller sent.
    pub fn observe_padding(&self, filled: &[Filled]) {
        let padded = self.signature.inputs.iter().zip(filled).filter(|(spec, _)| spec.pad.is_some());
        let (bytes, padding) =
            padded.fold((0, 0), |(bytes, padding), (_, filled)| (bytes + filled.bytes, padding + filled.padding));
        if bytes > 0 {
            self.metrics.padding().observe(padding as f64 / bytes as f64);
        }
    }

    pub fn queue_full(&self, full: Full) -> Error {
        let Manifest { max_queue_rows, max_queue_bytes, queue_timeout, .. } = &self.manifest;
        let model = &self.model;
        let message = match full {
            Full::Rows => {
                format!("the queue of model '{model}' is full (batching.max_queue.rows: {max_queue_rows})")
            }
            Full::Bytes => {
                format!("the queue of model '{model}' is full (batching.max_queue.bytes: {max_queue_bytes})")
            }
            Full::Time => format!(
                "what waits for model '{model}' is likely to take longer than this request may wait \
                 (batching.queue_timeout: {queue_timeout:?}, or its deadline)"
            ),
        };
        Error::unavailable("QUEUE_FULL", message, RETRY_AFTER)
    }

    pub fn queue_timeout(&self) -> Error {
        let message = format!(
            "waited longer than batching.queue_timeout ({:?}) of model '{}'; it was not run",
            self.manifest.queue_timeout, self.model
        );
        Error::unavailable("QUEUE_TIMEOUT", message, RETRY_AFTER)
    }
}

fn dear(was: bool, row: Duration, loop_budget: Duration) -> bool {
    row > if was { loop_budget.mul_f64(CLEARLY_CHEAPER) } else { loop_budget }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cost_near_the_budget_does_not_move_a_model_to_and_fro() {
        let budget = Duration::from_millis(1);
        let (mut is, mut seen) = (false, Vec::new());
        for micros in [990, 1010, 990, 810, 1010, 790, 810, 990, 1010] {
            is = dear(is, Duration::from_micros(micros), budget);
            seen.push(is);
        }
        assert_eq!(seen, [false, true, true, true, true, false, false, false, true]);
    }
}

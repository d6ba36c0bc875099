//! The answers that a version keeps, and the one computation for all who ask the same at once.
//!
//! A part of the servable, made with it and freed with it: no answer outlives its version or is given for another's. Knows
//! digests and answers; what is in a digest is for `engine` to say. Requests of all cores meet here.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use quick_cache::{
    DefaultHashBuilder, OptionsBuilder, Weighter,
    sync::{Cache, DefaultLifecycle, PlaceholderGuard},
};
use tokio::time::{Instant, timeout_at};

use super::work::Done;
use crate::{
    error::{Code, Error, Result},
    model::{CacheLimits, Tensor},
    telemetry::metrics::CacheMetrics,
};

/// What two requests have in common where one answer does for both.
pub type Digest = [u8; 32];

/// The answers of one servable.
pub struct AnswerCache {
    slots: Cache<Digest, Slot, Weights>,
    limits: CacheLimits,
    /// Units of weight that `max_bytes` are worth.
    capacity: u64,
    metrics: Arc<CacheMetrics>,
}

/// How a request was answered.
#[derive(Debug)]
pub enum Found {
    /// By what an equal request was answered, so long ago.
    Kept {
        outputs: Vec<Tensor>,
        age: Duration,
    },
    Computed(Done),
}

/// What stands under a digest. While it is being computed there is none, and the others wait for it.
#[derive(Clone)]
enum Slot {
    Answer(Arc<Kept>),
    /// How the computation ended. It reaches those who waited for it, and is gone at once.
    Failed(Error),
}

/// An answer. What it weighs is counted while it exists.
struct Kept {
    outputs: Vec<Tensor>,
    computed: Instant,
    weight: u64,
    bytes: u64,
    metrics: Arc<CacheMetrics>,
}

/// Two limits in one number: an answer weighs its share of the entries or of the bytes, whichever is more.
#[derive(Clone)]
struct Weights;

/// An entry's place, where somebody must put an answer or leave it to the next.
type Vacant<'a> = PlaceholderGuard<'a, Digest, Slot, Weights, DefaultHashBuilder, DefaultLifecycle<Digest, Slot>>;

/// What one entry weighs at least.
const ENTRY_WEIGHT: u64 = 1024;
/// The table's own memory for an entry, roughly.
const ENTRY_BYTES: usize = 160;
/// Cores wait for each other only within a part of the table. A part this large has room for any usual answer.
const PARTS_MAX: u64 = 8;
const PART_BYTES_MIN: u64 = 8 << 20;
/// Of the table's room, for answers that were asked for more than once.
const HOT: f64 = 0.97;

// === impl AnswerCache ===

impl AnswerCache {
    pub fn new(limits: CacheLimits, metrics: Arc<CacheMetrics>) -> Self {
        let capacity = limits.max_entries as u64 * ENTRY_WEIGHT;
        let parts = (limits.max_bytes / PART_BYTES_MIN).clamp(1, PARTS_MAX);
        // Rounded down to a power of two: the table would round up.
        let parts = 1 << parts.ilog2();
        let options = OptionsBuilder::new()
            .estimated_items_capacity(limits.max_entries)
            .weight_capacity(capacity)
            .shards(parts)
            // What is not hot would have no room beside a single entry.
            .hot_allocation(if limits.max_entries == 1 { 1.0 } else { HOT })
            .build()
            .expect("both capacities are given: this is a bug");
        let slots = Cache::with_options(options, Weights, DefaultHashBuilder::default(), DefaultLifecycle::default());
        Self { slots, limits, capacity, metrics }
    }

    pub fn limits(&self) -> &CacheLimits {
        &self.limits
    }

    pub fn count_bypass(&self) {
        self.metrics.bypasses.inc();
    }

    /// The answer to an equal request while it is fresh, or what `compute` gives.
    ///
    /// Of those who ask the same at once one computes, and the others wait for it, none longer than until its own deadline.
    /// Where that one goes away or runs out of its time, the next computes. An error is not kept: those who waited are told
    /// of it, and whoever comes later computes.
    pub async fn get_or_compute(
        &self,
        digest: &Digest,
        deadline: Option<std::time::Instant>,
        compute: impl Future<Output = Result<Done>>,
    ) -> Result<Found> {
        let looked = match deadline {
            None => self.look(digest).await?,
            Some(deadline) => timeout_at(deadline.into(), self.look(digest)).await.unwrap_or_else(|_| {
                Err(Error::deadline_exceeded("while an equal request was being answered; this one was not run"))
            })?,
        };
        let vacant = match looked {
            Ok((kept, age)) => {
                self.metrics.hits.inc();
                self.metrics.hit_age.observe(age.as_secs_f64());
                return Ok(Found::Kept { outputs: kept.outputs.clone(), age });
            }
            Err(vacant) => vacant,
        };
        self.metrics.misses.inc();
        // Dropped without an answer, whatever the reason, the place goes to the next who waits.
        match compute.await {
            Ok(done) => {
                let _ = vacant.insert(Slot::Answer(Arc::new(self.kept(&done))));
                Ok(Found::Computed(done))
            }
            Err(error) => {
                if concerns_all(&error) {
                    let _ = vacant.insert(Slot::Failed(error.clone()));
                    self.slots.remove_if(digest, |slot| matches!(slot, Slot::Failed(_)));
                }
                Err(error)
            }
        }
    }

    /// What is kept and its age, or the place to put it.
    async fn look(&self, digest: &Digest) -> Result<Result<(Arc<Kept>, Duration), Vacant<'_>>> {
        loop {
            match self.slots.get_value_or_guard_async(digest).await {
                Err(vacant) => return Ok(Err(vacant)),
                Ok(Slot::Failed(error)) => return Err(error),
                Ok(Slot::Answer(kept)) => {
                    let age = kept.computed.elapsed();
                    if age < self.limits.ttl {
                        return Ok(Ok((kept, age)));
                    }
                    // Somebody else may have replaced it by now: only what is old goes.
                    self.slots.remove_if(digest, |slot| match slot {
                        Slot::Answer(kept) => kept.computed.elapsed() >= self.limits.ttl,
                        Slot::Failed(_) => false,
                    });
                }
            }
        }
    }

    fn kept(&self, done: &Done) -> Kept {
        // Copied: an answer may be a few bytes of a large batch, all of which it would keep.
        let own = |tensor: &Tensor| Tensor { data: Bytes::copy_from_slice(&tensor.data), ..tensor.clone() };
        let outputs: Vec<Tensor> = done.outputs.iter().map(own).collect();
        let held = |tensor: &Tensor| size_of::<Tensor>() + tensor.data.len();
        let bytes = (ENTRY_BYTES + size_of::<Kept>() + outputs.iter().map(held).sum::<usize>()) as u64;
        let share = u128::from(bytes) * u128::from(self.capacity) / u128::from(self.limits.max_bytes) + 1;
        let weight = u64::try_from(share).unwrap_or(u64::MAX).max(ENTRY_WEIGHT);
        self.metrics.entries.inc();
        self.metrics.bytes.inc_by(bytes as i64);
        Kept { outputs, computed: Instant::now(), weight, bytes, metrics: self.metrics.clone() }
    }
}

/// Whether an error would be everybody's, and not only of the one that had it.
fn concerns_all(error: &Error) -> bool {
    !matches!(error.code(), Code::DeadlineExceeded | Code::Cancelled)
}

// === impl Kept ===

impl Drop for Kept {
    fn drop(&mut self) {
        self.metrics.entries.dec();
        self.metrics.bytes.dec_by(self.bytes as i64);
    }
}

// === impl Weights ===

impl Weighter<Digest, Slot> for Weights {
    fn weight(&self, _: &Digest, slot: &Slot) -> u64 {
        match slot {
            Slot::Answer(kept) => kept.weight,
            Slot::Failed(_) => 0,
        }
    }
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;

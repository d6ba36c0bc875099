//! A shadow's answers beside those that callers got.

use std::{collections::VecDeque, time::Duration};

use serde::{Deserialize, Serialize};

use super::Sketch;

/// Sums over shadow requests. The default is that of none.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Compared {
    /// Asked as well.
    pub sent: u64,
    /// Not asked, because too many were on their way.
    pub dropped: u64,
    /// Asked, and answered by an error.
    pub failed: u64,
    /// Rows whose answers were held against each other.
    pub rows: u64,
    /// Of these, those that say the same: the same class, the same text, or numbers within a thousandth.
    pub agreed: u64,
    /// Answers with a NaN or an infinity, where those of callers had none.
    pub non_finite: u64,
    /// Between two numbers of the same place.
    pub largest_difference: f64,
    /// Of the callers' answers in the same requests.
    pub latency_of_stable: Sketch,
    pub latency: Sketch,
    /// The first outputs of the last rows, those of callers first: for their rank correlation.
    pub scores: VecDeque<(f32, f32)>,
}

/// What was found of the rows of one request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    pub rows: u64,
    pub agreed: u64,
    pub largest_difference: f64,
    /// Whether the shadow alone says NaN or infinity.
    pub non_finite: bool,
    /// Of the first output that is made of numbers; pairs of finite ones.
    pub scores: Vec<(f32, f32)>,
    pub is_scored: bool,
}

const SCORES_MAX: usize = 256;

// === impl Compared ===

impl Compared {
    pub fn is_nothing(&self) -> bool {
        self.sent + self.dropped == 0
    }

    pub fn note(&mut self, found: &Found, stable: Duration, shadow: Duration) {
        self.rows += found.rows;
        self.agreed += found.agreed;
        self.non_finite += u64::from(found.non_finite);
        self.largest_difference = self.largest_difference.max(found.largest_difference);
        self.latency_of_stable.observe(stable);
        self.latency.observe(shadow);
        self.remember(&found.scores);
    }

    pub fn merge(&mut self, other: &Self) {
        let sums = [
            (&mut self.sent, other.sent),
            (&mut self.dropped, other.dropped),
            (&mut self.failed, other.failed),
            (&mut self.rows, other.rows),
            (&mut self.agreed, other.agreed),
            (&mut self.non_finite, other.non_finite),
        ];
        for (own, others) in sums {
            *own = own.saturating_add(others);
        }
        self.largest_difference = self.largest_difference.max(other.largest_difference);
        self.latency_of_stable.merge(&other.latency_of_stable);
        self.latency.merge(&other.latency);
        self.scores.extend(&other.scores);
        let surplus = self.scores.len().saturating_sub(8 * SCORES_MAX);
        self.scores.drain(..surplus);
    }

    fn remember(&mut self, scores: &[(f32, f32)]) {
        self.scores.extend(scores);
        let surplus = self.scores.len().saturating_sub(SCORES_MAX);
        self.scores.drain(..surplus);
    }
}

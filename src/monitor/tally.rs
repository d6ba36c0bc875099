//! What one variant did while one revision of the route held: sums, which add up over replicas.

use serde::{Deserialize, Serialize};

use super::{Compared, Outcomes, Sketch};

/// Sums at one moment. The default is that of nothing.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tally {
    /// Requests that the route gave to the variant, whoever answered them.
    pub assigned: u64,
    /// Of these, those that it answered.
    pub answered: u64,
    /// Of these, those that failed for a reason of the server's or the model's: no caller's mistake, and nobody who went away.
    pub errors: u64,
    /// Of these, those that stable answered in its place.
    pub degraded: u64,
    /// Answers with a NaN or an infinity among their outputs.
    pub non_finite: u64,
    /// Of the answers, from the decoded request to its outputs.
    pub latency: Sketch,
    pub outcomes: Outcomes,
    /// Of a shadow: its answers beside those that callers got.
    #[serde(skip_serializing_if = "Compared::is_nothing")]
    pub compared: Compared,
}

// === impl Tally ===

impl Tally {
    pub fn merge(&mut self, other: &Self) {
        let sums = [
            (&mut self.assigned, other.assigned),
            (&mut self.answered, other.answered),
            (&mut self.errors, other.errors),
            (&mut self.degraded, other.degraded),
            (&mut self.non_finite, other.non_finite),
        ];
        for (own, others) in sums {
            *own = own.saturating_add(others);
        }
        self.latency.merge(&other.latency);
        self.outcomes.merge(&other.outcomes);
        self.compared.merge(&other.compared);
    }

    /// Of those that were answered or failed; `None` where there are none.
    pub fn error_rate(&self) -> Option<f64> {
        let ended = self.answered + self.errors;
        (ended > 0).then(|| self.errors as f64 / ended as f64)
    }
}

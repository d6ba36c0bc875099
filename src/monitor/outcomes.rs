//! What came of predictions: the truth as it is reported later, summed up by variant.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Moments, Scores};

/// What became of one prediction. At least one of the three is there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// The truth: 0 or 1 for a classifier of two classes, else the number that was predicted.
    pub label: Option<f64>,
    pub reward: Option<f64>,
    pub metrics: Vec<(String, f64)>,
}

/// Sums over outcomes. The default is that of none.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Outcomes {
    pub count: u64,
    /// Of labels 0 and 1 whose prediction was a probability: accuracy at 0.5, AUC, Brier score.
    pub scores: Scores,
    /// Of the same, each -ln of the probability that was given to the truth.
    pub log_loss: Moments,
    /// Of all labels, prediction less truth, squared.
    pub squared_error: Moments,
    pub reward: Moments,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub named: BTreeMap<String, Moments>,
    /// Of metrics that had no more room.
    pub unnamed: u64,
}

/// Names of metrics of one variant: they are the callers' own words, and each costs memory.
pub const METRICS_MAX: usize = 32;
/// What is given no probability at all costs this much, and not infinity.
const PROBABILITY_MIN: f64 = 1e-15;

// === impl Outcomes ===

impl Outcomes {
    /// `score` is the prediction's first output, NaN where it was no float: then only rewards and metrics say anything.
    pub fn credit(&mut self, score: f64, outcome: &Outcome) {
        self.count += 1;
        if let Some(label) = outcome.label
            && score.is_finite()
        {
            self.squared_error.push((score - label).powi(2));
            let is_class = label == 0.0 || label == 1.0;
            if is_class && self.scores.push(score, label == 1.0) {
                let given = if label == 1.0 { score } else { 1.0 - score };
                self.log_loss.push(-given.max(PROBABILITY_MIN).ln());
            }
        }
        if let Some(reward) = outcome.reward {
            self.reward.push(reward);
        }
        for (name, value) in &outcome.metrics {
            if self.named.len() < METRICS_MAX || self.named.contains_key(name) {
                self.named.entry(name.clone()).or_default().push(*value);
            } else {
                self.unnamed += 1;
            }
        }
    }

    pub fn merge(&mut self, other: &Self) {
        self.count = self.count.saturating_add(other.count);
        self.scores.merge(&other.scores);
        self.log_loss.merge(&other.log_loss);
        self.squared_error.merge(&other.squared_error);
        self.reward.merge(&other.reward);
        self.unnamed = self.unnamed.saturating_add(other.unnamed);
        for (name, moments) in &other.named {
            self.named.entry(name.clone()).or_default().merge(moments);
        }
    }
}

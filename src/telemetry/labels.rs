//! What series are told apart by.

use prometheus_client::encoding::EncodeLabelSet;

/// Why a batch of a version was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// It has `max_batch_size` rows.
    Full,
    /// It has one of the preferred sizes.
    Preferred,
    /// The core's loop had come to this model: it takes what waits.
    Turn,
    /// A thread of the model's own had nothing to do: it takes what waits.
    Idle,
    /// The first of it has waited for the delay.
    Delay,
    /// Somebody in it would be answered too late if it waited any longer.
    Deadline,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct VersionLabels {
    pub model: String,
    pub version: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RequestLabels {
    pub model: String,
    pub version: String,
    pub code: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct LoadLabels {
    pub model: String,
    pub outcome: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RefusedLabels {
    pub reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct OutcomeLabels {
    pub model: String,
    pub result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct VerdictLabels {
    pub model: String,
    pub decision: &'static str,
    pub rule: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct CacheLabels {
    pub model: String,
    pub version: String,
    pub result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct BatchLabels {
    pub model: String,
    pub version: String,
    pub reason: &'static str,
}

// === impl VersionLabels ===

impl VersionLabels {
    pub fn of(&self, reason: Closed) -> BatchLabels {
        BatchLabels { model: self.model.clone(), version: self.version.clone(), reason: reason.as_str() }
    }
}

// === impl Closed ===

impl Closed {
    pub const ALL: [Closed; 6] =
        [Closed::Full, Closed::Preferred, Closed::Turn, Closed::Idle, Closed::Delay, Closed::Deadline];

    pub fn as_str(self) -> &'static str {
        match self {
            Closed::Full => "full",
            Closed::Preferred => "preferred",
            Closed::Turn => "turn",
            Closed::Idle => "idle",
            Closed::Delay => "delay",
            Closed::Deadline => "deadline",
        }
    }
}

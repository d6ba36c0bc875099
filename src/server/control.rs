//! What the services act on beside the engine: the operator's door to the store, the events, the log's level, and what is
//! known of this replica from its start; and where outcomes are counted. `app` makes it.

use std::{sync::Arc, time::SystemTime};

use crate::{
    rollout::{Counts, Operator},
    telemetry::{Events, logs::Level},
};

/// All of it. Cheap to clone.
#[derive(Clone)]
pub struct Control {
    pub operator: Operator,
    pub counts: Counts,
    pub events: Events,
    pub level: Level,
    pub replica: Arc<Replica>,
}

/// What does not change while the server runs.
#[derive(Clone, Debug)]
pub struct Replica {
    pub started: SystemTime,
    /// Where the models are, without what is secret of it.
    pub store: String,
    pub cores: usize,
    pub memory_bytes: u64,
    /// What the configuration says beyond the defaults: key, value, and who said it.
    pub settings: Vec<(String, String, String)>,
}

//! What operators see: metrics, logs and events. Knows nothing of what it measures.

mod buckets;
pub mod events;
mod labels;
pub mod logs;
pub mod metrics;

pub use events::Events;
pub use metrics::{Metrics, VersionMetrics};

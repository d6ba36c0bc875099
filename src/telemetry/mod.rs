//! What operators see: metrics, logs and events. Knows nothing of what it measures.

pub mod events;
pub mod logs;
pub mod metrics;

pub use events::Events;
pub use metrics::{Metrics, VersionMetrics};

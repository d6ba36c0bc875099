//! What operators see: metrics and logs. Knows nothing of what it measures.

pub mod logs;
pub mod metrics;

pub use metrics::{Metrics, VersionMetrics};

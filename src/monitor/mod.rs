//! BESIDE THE PATH: what the versions do, and what came of their predictions.
//!
//! Counts that go up while requests are answered, and the sums that are read of them. It never touches the store: `rollout`
//! carries what it holds. `engine` counts in cells, `lifecycle` hands them to the catalog.

mod cell;
mod compared;
mod moments;
mod outcomes;
mod scoreboard;
mod scores;
mod series;
mod sketch;
mod tally;

/// What is called so that has all that nobody else has.
pub const STABLE: &str = "stable";
/// What a variant is called whose answers nobody gets.
pub const SHADOW: &str = "shadow";

pub use cell::Cell;
pub use compared::{Compared, Found};
pub use moments::{Moments, VALUE_MAX};
pub use outcomes::{Outcome, Outcomes};
pub use scoreboard::{Key, Scoreboard};
pub use scores::Scores;
pub use series::Series;
pub use sketch::{LiveSketch, Sketch};
pub use tally::Tally;

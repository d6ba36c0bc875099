//! ONE CHANGE OF TRAFFIC: what operators ask for, written into route.yaml.
//!
//! `change` edits a route, purely; `operator` reads the record, edits it, replaces it by compare-and-swap and waits for what
//! comes of it; `replica` writes down what this replica serves, `counts` what it counted. `judge` says what counts come to, `experiment` reports them; both are pure. There is no second door: nothing here
//! touches what is served. The store tells lifecycle, and lifecycle publishes. The server's Admin service is the caller; its
//! Inference service reports outcomes.

mod arrivals;
mod change;
mod controller;
pub mod counts;
mod course;
pub mod experiment;
mod gates;
pub mod judge;
mod metric;
mod operator;
mod progress;
mod replica;
pub mod statistics;
mod told;
mod webhook;
mod words;

pub use change::{Asked, Change, Sharing};
pub use controller::Controller;
pub use counts::Counts;
pub use course::CANARY;
pub use operator::{Operator, Settled, Written};
pub use progress::{Heard, Progress};
pub use replica::{name as replica_name, report};
pub use told::event;
pub use webhook::Webhook;

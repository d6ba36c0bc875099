//! ONE CHANGE OF TRAFFIC: what operators ask for, and what rollouts come to, written into route.yaml.
//!
//! `change` edits a route, and `course` a rollout's part of it, purely; `operator` reads the record, edits it, replaces it by
//! compare-and-swap and waits for what comes of it. `replica` writes down what this replica serves, `counts` what it counted.
//!
//! `controller` moves rollouts: `progress` says where one stands, by its `gates`, and then by the `judge` of what was counted; a
//! verdict is one more change, told by `told` and `webhook`. `arrivals` says what is to be tried by itself, `experiment` reports
//! what variants did. These are pure. There is no second door: nothing here touches what is served, but that the controller
//! takes a failing version out on its own replica. The store tells lifecycle, and lifecycle publishes. The server's Admin
//! service is the caller; its Inference service reports outcomes.

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
pub use counts::{Counts, Sums};
pub use course::CANARY;
pub use operator::{Operator, Settled, Written};
pub use progress::{Heard, Progress};
pub use replica::{name as replica_name, report};
pub use told::event;
pub use webhook::Webhook;

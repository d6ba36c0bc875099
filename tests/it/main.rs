//! The integration tests: each module is named for what the server does, and starts the real one.

mod harness;
mod proto;

mod bad_input;
mod predicts;

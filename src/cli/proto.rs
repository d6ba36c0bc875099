//! The messages and clients that the server's own protocol files were made into: the commands are callers like any other.

pub use crate::server::proto::{google::rpc, inference as oip, sconce::v1::*};

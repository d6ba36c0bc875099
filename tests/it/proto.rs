//! The messages and clients of both dialects, as the server's own crate has them.

pub use sconce::server::proto::{google::rpc, inference as oip, sconce::v1::*};

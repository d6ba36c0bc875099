//! The messages and clients that `build.rs` made of `proto/`.

#![allow(
    dead_code,
    clippy::all,
    reason = "generated: what is not used yet is there all the same"
)]

tonic::include_proto!("sconce.v1");

/// What an error carries beside its code and its message.
pub mod rpc {
    tonic::include_proto!("google.rpc");
}

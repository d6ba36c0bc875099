//! The messages and clients that `build.rs` made of `proto/`.

#![allow(clippy::all, dead_code, reason = "generated")]

use tonic_prost::ProstCodec as Codec;

tonic::include_proto!("sconce.v1");

/// The Open Inference Protocol.
pub mod oip {
    use tonic_prost::ProstCodec as Codec;

    tonic::include_proto!("inference");
}

/// What an error carries beside its code and its message.
pub mod rpc {
    tonic::include_proto!("google.rpc");
}

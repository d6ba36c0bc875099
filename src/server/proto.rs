//! The generated protocols. Nothing outside `server` names a type of theirs.

/// Sconce's own API.
pub mod sconce {
    pub mod v1 {
        #![allow(clippy::all, clippy::pedantic)]
        use crate::server::codec::Codec;
        tonic::include_proto!("sconce.v1");
    }
}

/// The Open Inference Protocol.
pub mod inference {
    #![allow(clippy::all, clippy::pedantic)]
    use crate::server::codec::Codec;
    tonic::include_proto!("inference");
}

pub mod google {
    pub mod rpc {
        #![allow(clippy::all, clippy::pedantic, dead_code)]
        tonic::include_proto!("google.rpc");
    }
}

/// The descriptors of all of them, error details included; reflection answers from it.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

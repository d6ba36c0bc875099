//! Reflection, v1 and v1alpha: every service's descriptors, the error details and reflection itself included.

use http::Request;
use tonic::codegen::Service as _;
use tonic_reflection::server::Builder;

use super::Answering;
use crate::{
    error::{Error, Result},
    server::{body::RequestBody, proto::DESCRIPTORS},
};

/// Both versions, ready to be called. The library does not name their types.
pub struct Reflection {
    v1: Handler,
    v1alpha: Handler,
}

type Handler = Box<dyn Fn(Request<RequestBody>) -> Answering + Send + Sync>;

// === impl Reflection ===

impl Reflection {
    pub fn new() -> Result<Self> {
        let v1 = builder().build_v1().map_err(broken)?;
        let v1alpha = builder().build_v1alpha().map_err(broken)?;
        Ok(Self {
            v1: Box::new(move |request| v1.clone().call(request)),
            v1alpha: Box::new(move |request| v1alpha.clone().call(request)),
        })
    }

    pub fn v1(&self, request: Request<RequestBody>) -> Answering {
        (self.v1)(request)
    }

    pub fn v1alpha(&self, request: Request<RequestBody>) -> Answering {
        (self.v1alpha)(request)
    }
}

fn builder() -> Builder<'static> {
    Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        // Each version lists itself only; both are there.
        .register_encoded_file_descriptor_set(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET)
}

fn broken(error: tonic_reflection::server::Error) -> Error {
    Error::internal("BROKEN_DESCRIPTORS", format!("the built-in descriptors do not read: {error}"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_descriptors_hold_together() {
        assert!(super::Reflection::new().is_ok());
    }
}

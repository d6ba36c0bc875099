//! The ports that were really bound.

/// A port that is `None` is closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Ports {
    pub grpc: u16,
    pub grpc_admin: Option<u16>,
    pub http: Option<u16>,
    pub metrics: Option<u16>,
}

//! Every limit of the edge, each with its unit and its reason.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use http::HeaderName;

use crate::error::{Error, Result};

/// What the edge listens on, and what it lets in.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where inference listens (gRPC).
    pub host: IpAddr,
    /// Where the admin ports listen.
    pub admin_host: IpAddr,
    /// Where health and metrics listen: they carry no model data.
    pub ops_host: IpAddr,
    /// gRPC inference, health and reflection. 0 takes any free port, here and below.
    pub grpc_port: u16,
    /// gRPC admin; `None` closes it, here and below.
    pub grpc_admin_port: Option<u16>,
    /// HTTP health.
    pub http_port: Option<u16>,
    /// Metrics.
    pub metrics_port: Option<u16>,
    /// Whether the inference port speaks Triton's model repository and statistics extensions. Whoever may ask for a prediction
    /// may then also load and unload.
    pub repository_api: bool,

    /// The metadata key in which what authenticates callers in front of this server says who calls. Without it nobody is known.
    pub caller_metadata: Option<HeaderName>,

    /// The largest message, compressed or not, in bytes. `--max-message-bytes`
    pub max_message_bytes: usize,
    /// What all messages that are being read or worked on may claim together, in bytes. Five bytes of a header are enough to
    /// make whoever reads them reserve a whole message, so the claim is what counts, not what has come.
    pub request_memory: usize,
    /// Calls on one connection at a time; further ones wait at the client.
    pub max_concurrent_streams: u32,
    /// Open inference connections; further ones are closed at once, so that the client turns to another replica.
    pub max_connections: usize,
    /// Calls that are being worked on; further ones are refused before they are decoded.
    pub max_requests_in_flight: usize,
    /// From accept to the end of the client's HTTP/2 preface and settings.
    pub handshake_timeout: Duration,
    /// How long a half message may take for its next 64 KiB, or for its end if that is nearer.
    pub body_timeout: Duration,
    /// After this time without a call a connection is closed.
    pub idle_timeout: Duration,
    /// How often a silent client is asked whether it is still there, and how long it may take to answer: a machine that
    /// lost its power says no goodbye.
    pub keepalive_interval: Duration,
    pub keepalive_timeout: Duration,
    /// After this time, give or take a tenth, a client is told to connect anew: so that load finds new replicas.
    pub max_connection_age: Duration,
    /// How long the calls on such a connection have to end.
    pub connection_age_grace: Duration,
    /// All headers of one call together, in bytes.
    pub header_list_bytes: u32,
    /// What a client may send ahead of us on one call and on one connection, in bytes: a small window costs a large tensor
    /// one round trip for each window.
    pub stream_window_bytes: u32,
    pub connection_window_bytes: u32,
    /// Whether small answers leave at once rather than wait for more (Nagle's algorithm off).
    pub tcp_nodelay: bool,
}

/// Tensors, parameters, attributes and names of outputs in one message. The largest signatures have hundreds; each may take
/// half a kilobyte once decoded, so these are five megabytes.
pub const MESSAGE_PARTS_MAX: usize = 10_000;
/// Rows, values of rows, names of columns, and texts in one message: fifty thousand rows of twenty features, a hundred
/// megabytes once decoded.
pub const MESSAGE_VALUES_MAX: usize = 1_000_000;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const MIB: usize = 1 << 20;

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        Self {
            host: LOOPBACK,
            admin_host: LOOPBACK,
            ops_host: LOOPBACK,
            grpc_port: 7070,
            grpc_admin_port: Some(7071),
            http_port: Some(8080),
            metrics_port: Some(8082),
            repository_api: false,
            caller_metadata: None,
            max_message_bytes: 64 * MIB,
            request_memory: 1024 * MIB,
            max_concurrent_streams: 128,
            max_connections: 4096,
            max_requests_in_flight: 4096,
            handshake_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(300),
            keepalive_interval: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(10),
            max_connection_age: Duration::from_secs(300),
            connection_age_grace: Duration::from_secs(30),
            header_list_bytes: 16 << 10,
            stream_window_bytes: 4 << 20,
            connection_window_bytes: 64 << 20,
            tcp_nodelay: true,
        }
    }
}

impl Config {
    /// What cannot work is said before anything is bound.
    pub fn check(&self) -> Result<()> {
        let wrong = |message: &str| Err(Error::invalid("INVALID_CONFIG", message));
        if self.max_message_bytes == 0 || self.max_message_bytes > u32::MAX as usize {
            return wrong("max_message_bytes must be 1 to 4294967295, which is all that a gRPC frame can say");
        }
        if self.request_memory < self.max_message_bytes {
            return wrong(
                "request_memory must be at least max_message_bytes, or the largest message could never be taken",
            );
        }
        if self.max_concurrent_streams == 0 || self.max_connections == 0 || self.max_requests_in_flight == 0 {
            return wrong("max_concurrent_streams, max_connections and max_requests_in_flight must be at least 1");
        }
        let window = |bytes: u32| (1..=i32::MAX as u32).contains(&bytes);
        if !window(self.stream_window_bytes) || !window(self.connection_window_bytes) {
            return wrong("stream_window_bytes and connection_window_bytes must be 1 to 2147483647, as HTTP/2 has it");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_right_and_nonsense_is_refused() {
        Config::default().check().expect("the defaults work");
        let config = Config { request_memory: 1, ..Config::default() };
        assert_eq!(config.check().expect_err("too little").reason(), "INVALID_CONFIG");
    }
}

//! One HTTP/2 connection from its first byte to its last: handshake, calls, and the limits on its silence and its age.
//!
//! Runs on the core that was picked for it. The limits cost a call nothing: calls are counted, and a task beside the
//! connection looks at the counts now and then.

use std::{
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{net::TcpStream, sync::oneshot, time::Instant};

use super::{
    accept::Slot,
    config::Config,
    grpc::Services,
    handshake::{self, Opened},
    layers::{Edge, Shared},
};
use crate::error::{Error, Result};

/// What a connection's calls and its supervisor know of each other.
pub struct ConnectionState {
    pub shared: Arc<Shared>,
    open: AtomicUsize,
    /// All calls so far; only ever compared with an earlier value.
    calls: AtomicU64,
    closing: AtomicBool,
}

/// A call's place among the open ones; leaving is the drop.
pub struct OpenCall {
    connection: Arc<ConnectionState>,
    work: bool,
}

/// The server is full: this replica soon has room again, another one may have it now.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// Of a frame that clients may send: those that send large ones have large messages copied less often on the way.
const FRAME_BYTES_MAX: u32 = 256 << 10;

// === impl ConnectionState ===

impl ConnectionState {
    pub fn new(shared: Arc<Shared>) -> Arc<Self> {
        Arc::new(Self { shared, open: AtomicUsize::new(0), calls: AtomicU64::new(0), closing: AtomicBool::new(false) })
    }

    /// Whether the whole server takes nothing new. A connection that is only old still takes what the client sent before it
    /// heard of that.
    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    pub fn count_panic(&self) {
        self.shared.metrics.panics.inc();
    }
}

// === impl OpenCall ===

impl OpenCall {
    /// UNAVAILABLE where it is work and as much as may be is in flight.
    pub fn enter(connection: Arc<ConnectionState>, work: bool) -> Result<Self> {
        let shared = &connection.shared;
        if work {
            let others = shared.metrics.requests_in_flight.inc();
            if others >= shared.config.max_requests_in_flight as i64 {
                shared.metrics.requests_in_flight.dec();
                return Err(Error::unavailable(
                    "OVERLOADED",
                    "as many calls are in flight as the server takes; --max-requests-in-flight sets it",
                    RETRY_AFTER,
                ));
            }
        }
        connection.open.fetch_add(1, Ordering::Relaxed);
        connection.calls.fetch_add(1, Ordering::Relaxed);
        Ok(Self { connection, work })
    }

    pub fn connection(&self) -> &ConnectionState {
        &self.connection
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        self.connection.open.fetch_sub(1, Ordering::Relaxed);
        if self.work {
            self.connection.shared.metrics.requests_in_flight.dec();
        }
    }
}

/// Serves one accepted socket to its end. Failures are the client's: they are logged for the curious and end here.
pub async fn serve(stream: TcpStream, shared: Arc<Shared>, services: Services, slot: Slot) {
    if let Err(error) = run(stream, shared, services).await {
        tracing::debug!(%error, "a connection ended");
    }
    drop(slot);
}

async fn run(mut stream: TcpStream, shared: Arc<Shared>, services: Services) -> io::Result<()> {
    let config = shared.config.clone();
    stream.set_nodelay(config.tcp_nodelay)?;
    let opened = tokio::time::timeout(config.handshake_timeout, handshake::open(&mut stream))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the handshake took too long"))??;
    let io = match opened {
        Opened::Http2(preface) => handshake::Prefixed::new(preface, stream),
        Opened::Other => return handshake::say_what_is_spoken(&mut stream).await,
    };

    let state = ConnectionState::new(shared);
    let edge = Edge::new(state.clone(), services);
    let mut connection = pin!(builder(&config).serve_connection(TokioIo::new(io), edge));
    let (close, closing) = oneshot::channel();
    let supervisor = AbortOnDrop(tokio::spawn(supervise(state, close)));
    let grace = tokio::select! {
        biased;
        done = connection.as_mut() => return done.map_err(io::Error::other),
        grace = closing => grace.unwrap_or_default(),
    };
    drop(supervisor);

    connection.as_mut().graceful_shutdown();
    match tokio::time::timeout(grace, connection).await {
        Ok(done) => done.map_err(io::Error::other),
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "calls outlived the grace of a closing connection")),
    }
}

fn builder(config: &Config) -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_concurrent_streams(config.max_concurrent_streams)
        .initial_stream_window_size(config.stream_window_bytes)
        .initial_connection_window_size(config.connection_window_bytes)
        .max_header_list_size(config.header_list_bytes)
        .keep_alive_interval(config.keepalive_interval)
        .keep_alive_timeout(config.keepalive_timeout);
    builder
}

/// Decides when the connection is to end, and with how much grace.
async fn supervise(state: Arc<ConnectionState>, close: oneshot::Sender<Duration>) {
    let config = state.shared.config.clone();
    let mut phases = state.shared.phases.clone();
    let grace = tokio::select! {
        grace = phases.closing() => {
            state.closing.store(true, Ordering::Relaxed);
            grace
        }
        () = tokio::time::sleep(with_jitter(config.max_connection_age, fastrand::f64())) => config.connection_age_grace,
        () = idle(&state, config.idle_timeout) => config.connection_age_grace,
    };
    // Nobody hears it when the connection has just ended by itself.
    let _ = close.send(grace);
}

/// Returns when no call was open for `timeout`, seen a tenth of it late at most.
async fn idle(state: &ConnectionState, timeout: Duration) {
    let mut looks = tokio::time::interval((timeout / 10).max(Duration::from_millis(10)));
    let mut calls_seen = 0;
    let mut idle_since = Instant::now();
    loop {
        looks.tick().await;
        let calls = state.calls.load(Ordering::Relaxed);
        if calls != calls_seen || state.open.load(Ordering::Relaxed) > 0 {
            calls_seen = calls;
            idle_since = Instant::now();
        } else if idle_since.elapsed() >= timeout {
            return;
        }
    }
}

/// The age, a tenth more or less by `draw` in 0 to 1: clients that came together do not leave together.
fn with_jitter(age: Duration, draw: f64) -> Duration {
    age.mul_f64(0.9 + 0.2 * draw)
}

/// A task that ends with its owner.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_differ_by_a_tenth_at_most() {
        let age = Duration::from_secs(300);
        assert_eq!(with_jitter(age, 0.0), Duration::from_secs(270));
        assert_eq!(with_jitter(age, 1.0), Duration::from_secs(330));
    }
}

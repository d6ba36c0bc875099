//! THE EDGE: protocols in and out. Nothing below knows tonic, prost or hyper.
//!
//! A connection's life: `accept` takes it in on the control plane and hands it to a core; there `handshake` reads the client's
//! first bytes and `connection` keeps to its age and its silence. A call's life: `layers` admits it by the table in
//! `method` before anything is decoded, `body` holds each message against the limit and the `budget`, `codec` counts
//! its parts (`fields`), a service in `grpc` answers, and `call` sees to it that the caller gets a status of ours whatever
//! happens. A prediction, of which most calls are, is read and answered here from the first byte to the last; compressed ones and
//! all other calls go through the gRPC library's streams.
//!
//! Knows the engine, the catalog and the operator's door (`control`); knows nothing of the store's files, of the lifecycle or
//! of libraries. `app` makes the one
//! `Server`.

mod accept;
mod body;
mod budget;
mod call;
mod codec;
mod config;
mod connection;
mod control;
mod fields;
mod frames;
mod grpc;
mod handshake;
mod http;
mod layers;
mod method;
mod phase;
mod ports;
pub mod proto;
mod timeout;
mod trace;
mod trouble;

use std::{net::IpAddr, sync::Arc, time::Duration};

use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};

pub use self::{
    config::Config,
    control::{Control, Replica},
    ports::Ports,
};

use self::{
    accept::{Placement, Serve, Slots},
    budget::Budget,
    grpc::Services,
    http::{Limits, Pages},
    layers::Shared,
    method::Door,
    phase::{Phase, Phases},
};
use crate::{
    engine::Engine,
    error::{Code, Error, Result},
    runtime::Runtime,
    telemetry::Metrics,
};

/// Every port bound, nothing accepted yet.
pub struct Server {
    config: Arc<Config>,
    engine: Engine,
    metrics: Arc<Metrics>,
    ports: Ports,
    grpc: TcpListener,
    grpc_admin: Option<TcpListener>,
    http: Option<TcpListener>,
    metrics_listener: Option<TcpListener>,
}

/// A server that serves. Dropping it without `shutdown` closes everything at once.
pub struct Running {
    phase: watch::Sender<Phase>,
    /// Closes when the last connection has ended.
    alive: mpsc::Receiver<()>,
}

/// Connections of one of the small ports: operators, probes, scrapers.
const SMALL_PORT_CONNECTIONS_MAX: usize = 256;

// === impl Server ===

impl Server {
    /// Binds every port, so that whoever is told of them finds them open. FAILED_PRECONDITION names the option of a port that
    /// cannot be had.
    pub async fn bind(config: Config, engine: Engine, metrics: Arc<Metrics>) -> Result<Self> {
        config.check()?;
        let (grpc, grpc_port) = bind(config.host, config.grpc_port, "--grpc-port").await?;
        let grpc_admin = bind_open(config.admin_host, config.grpc_admin_port, "--grpc-admin-port").await?;
        let http = bind_open(config.ops_host, config.http_port, "--http-port").await?;
        let metrics_listener = bind_open(config.ops_host, config.metrics_port, "--metrics-port").await?;
        let port = |bound: &Option<(TcpListener, u16)>| bound.as_ref().map(|(_, port)| *port);
        let ports = Ports {
            grpc: grpc_port,
            grpc_admin: port(&grpc_admin),
            http: port(&http),
            metrics: port(&metrics_listener),
        };
        let listener = |bound: Option<(TcpListener, u16)>| bound.map(|(listener, _)| listener);
        Ok(Self {
            config: Arc::new(config),
            engine,
            metrics,
            ports,
            grpc,
            grpc_admin: listener(grpc_admin),
            http: listener(http),
            metrics_listener: listener(metrics_listener),
        })
    }

    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// Begins to accept: inference is served on the cores of `runtime`, everything else on the runtime that calls this.
    pub fn serve(self, runtime: Arc<Runtime>, control: Control) -> Result<Running> {
        let (phase, phases) = phase::new();
        let (alive_sender, alive) = mpsc::channel(1);
        let services = Services::new(self.engine.clone(), control, phases.clone(), &self.config)?;
        let budget = Budget::new(self.config.request_memory);
        let shared = |door| {
            Arc::new(Shared {
                door,
                config: self.config.clone(),
                ports: self.ports,
                budget: budget.clone(),
                metrics: self.metrics.clone(),
                phases: phases.clone(),
            })
        };
        let accept = |listener, slots, placement, serve| {
            tokio::spawn(accept::run(listener, slots, placement, phases.clone(), serve));
        };
        let small = || Slots::new(SMALL_PORT_CONNECTIONS_MAX, alive_sender.clone(), None);
        let gauge = Some(self.metrics.connections.clone());
        let inference = Slots::new(self.config.max_connections, alive_sender.clone(), gauge);

        let limits = Limits { header_timeout: self.config.handshake_timeout, age: self.config.max_connection_age };
        let catalog = self.engine.catalog().clone();
        let health = Pages::Health { catalog, phases: phases.clone(), runtime: runtime.clone() };
        accept(self.grpc, inference, Placement::Cores(runtime), grpc_port(shared(Door::Inference), services.clone()));
        if let Some(listener) = self.grpc_admin {
            accept(listener, small(), Placement::Here, grpc_port(shared(Door::Admin), services));
        }
        if let Some(listener) = self.http {
            accept(listener, small(), Placement::Here, http_port(health, limits, phases.clone()));
        }
        if let Some(listener) = self.metrics_listener {
            let pages = Pages::Metrics(self.metrics.clone());
            accept(listener, small(), Placement::Here, http_port(pages, limits, phases.clone()));
        }
        Ok(Running { phase, alive })
    }
}

// === impl Running ===

impl Running {
    /// Health and readiness say no from now on, while calls are served as before: load balancers turn away in peace.
    pub fn drain(&self) {
        self.phase.send_replace(Phase::Draining);
    }

    /// Accepts nothing more, tells every client to go, and gives the calls that were taken in `grace` to end. Returns when
    /// all have ended or the grace is over; what is left then is dropped.
    pub async fn shutdown(mut self, grace: Duration) {
        self.phase.send_replace(Phase::Closing { grace });
        // Connections end themselves when their grace is over; a moment more lets them say so.
        let _ = tokio::time::timeout(grace + Duration::from_millis(100), self.alive.recv()).await;
    }
}

fn grpc_port(shared: Arc<Shared>, services: Services) -> Serve {
    Arc::new(move |stream, slot| {
        tokio::spawn(connection::serve(stream, shared.clone(), services.for_connection(), slot));
    })
}

fn http_port(pages: Pages, limits: Limits, phases: Phases) -> Serve {
    let pages = Arc::new(pages);
    Arc::new(move |stream, slot| {
        tokio::spawn(http::serve(stream, pages.clone(), limits, phases.clone(), slot));
    })
}

async fn bind_open(host: IpAddr, port: Option<u16>, option: &str) -> Result<Option<(TcpListener, u16)>> {
    match port {
        Some(port) => bind(host, port, option).await.map(Some),
        None => Ok(None),
    }
}

async fn bind(host: IpAddr, port: u16, option: &str) -> Result<(TcpListener, u16)> {
    let cannot = |error: std::io::Error| {
        let message = format!("cannot listen on {host} port {port} ({error}); {option} takes another, 0 any free one");
        Error::new(Code::FailedPrecondition, "BIND_FAILED", message)
    };
    let listener = TcpListener::bind((host, port)).await.map_err(cannot)?;
    let port = listener.local_addr().map_err(cannot)?.port();
    Ok((listener, port))
}

//! The only file that knows every part: builds bottom-up, drains top-down.
//!
//! Two planes: the cores (`runtime`) answer requests; one small runtime of its own, made here, does everything else.

mod files;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    task::JoinHandle,
};

use files::{id_key, webhook, write_ports};

use crate::{
    catalog::{self, Catalog, Snapshot},
    config::{Config, Listening, Routes, Source},
    engine::Engine,
    error::{Code, Error},
    lifecycle::{self, Lifecycle},
    model::{ModelName, Version},
    monitor::{Scoreboard, Series},
    rollout::{self, Counts, Operator},
    runtime::{self, Runtime},
    server::{self, Control, Ports, Replica, Running, Server},
    store::{self, Location, Records},
    telemetry::{
        Events, Metrics,
        events::{Event, Kind},
        logs::Level,
    },
};

/// Threads of the control plane: one more than the one that waits for signals, so that neither waits for the other.
const CONTROL_THREADS: usize = 2;
/// After this the models are announced as they stand, whatever still loads.
const ANNOUNCE_AFTER: Duration = Duration::from_secs(60);
/// A store that does not answer holds up nobody's end.
const STATUS_REMOVED_WITHIN: Duration = Duration::from_secs(2);
const COUNTS_WRITTEN_WITHIN: Duration = Duration::from_secs(5);

/// Serves until a signal says stop. `announce` is called once, when the models are ready or finally failed.
pub fn serve(config: Config, level: Level, announce: impl FnOnce(&Snapshot, Listening)) -> anyhow::Result<()> {
    let control = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("control")
        .enable_all()
        .build()
        .context("the control plane's runtime could not be made")?;
    let served = control.block_on(serve_here(config, level, announce));
    // A load that still runs is a child's or a library's: nobody waits for it any more.
    control.shutdown_background();
    served
}

/// Everything that would keep this store from being served well, for `sconce check`.
pub fn check(config: &Config) -> crate::error::Result<Vec<lifecycle::Problem>> {
    lifecycle::check(&lifecycle_config(config), &store_config(config)?)
}

/// What a server with this configuration would find wrong with one version of a store, for `sconce publish`.
pub fn check_version(
    config: &Config,
    store: &Path,
    version: (&ModelName, Version),
    is_run: bool,
) -> crate::error::Result<()> {
    lifecycle::check_version(&lifecycle_config(config), &store::Config::new(store), version, is_run)
}

/// Where a server with this configuration keeps its own copies.
pub fn work_dir(config: &Config) -> PathBuf {
    lifecycle_config(config).work_dir
}

async fn serve_here(config: Config, level: Level, announce: impl FnOnce(&Snapshot, Listening)) -> anyhow::Result<()> {
    let started = SystemTime::now();
    let mut stop = Stop::listen()?;
    let store = store_config(&config)?;
    let metrics = Metrics::new();
    let runtime =
        Runtime::start(&runtime::Config { cores: config.machine.cores, loop_budget: config.machine.loop_budget })?;
    tracing::info!(
        cores = config.machine.cores,
        "the event loop of each core runs a batch on its own thread; so do a model's own threads, instances.count of them, \
         unless onnx.intra_op_threads says otherwise"
    );
    let scoreboard = Scoreboard::default();
    metrics.collect(Box::new(Series::of(scoreboard.clone())));
    let (publisher, catalog) = catalog::new();
    let (refresh, asks, answers) = store::refresh();
    let engine = Engine::new(catalog.clone(), metrics.clone(), id_key(&config)?);
    let server = Server::bind(edge_config(&config), engine.clone(), metrics.clone()).await?;
    let ports = server.ports();
    let replica = rollout::replica_name(ports.grpc);
    let events = Events::new(&replica);
    let place = notes(&config, &store);
    let counts = Counts::new(engine, scoreboard.clone(), place.clone(), &*replica, metrics.clone());
    let operator = Operator::new(records(&config, &store), catalog.clone(), refresh);
    let controller = rollout::Controller {
        operator: operator.clone(),
        counts: counts.clone(),
        catalog: catalog.clone(),
        events: events.clone(),
        metrics: metrics.clone(),
        webhook: webhook(&config)?,
        replica: replica.clone(),
    };
    let control = Control {
        operator,
        counts: counts.clone(),
        events: events.clone(),
        level,
        replica: Arc::new(described(&config, started)),
    };
    let running = server.serve(runtime.clone(), control)?;
    let lifecycle = Lifecycle::start(
        lifecycle_config(&config),
        store.clone(),
        (asks, answers),
        publisher,
        runtime.clone(),
        lifecycle::Told { metrics, scoreboard, events: events.clone() },
    )?;
    let writers = Writers::start(&catalog, place, replica, counts, controller);
    if let Some(file) = &config.listen.ports_file {
        write_ports(file, ports)?;
    }
    let early = tokio::select! {
        () = settled(&catalog) => None,
        hurry = stop.first() => Some(hurry),
    };
    let hurry = match early {
        Some(hurry) => hurry,
        None => {
            announce(&catalog.load(), listening(&config, ports));
            stop.first().await
        }
    };
    events.tell(Event::new(Kind::Draining));
    drain(&config, running, lifecycle, &runtime, stop, hurry).await?;
    writers.end().await;
    Ok(())
}

/// Top-down: the edge says no, then closes; then nothing new is loaded; then the cores stop.
async fn drain(
    config: &Config,
    running: Running,
    lifecycle: Lifecycle,
    runtime: &Runtime,
    mut stop: Stop,
    hurry: bool,
) -> anyhow::Result<()> {
    tracing::info!("draining: health says no from now on");
    running.drain();
    let in_order = async {
        // Whoever presses Ctrl-C has no load balancer that must notice first.
        if !hurry {
            tokio::time::sleep(config.drain.pre_stop_delay).await;
        }
        running.shutdown(config.drain.grace).await;
    };
    let again = tokio::select! {
        () = in_order => false,
        _ = stop.first() => true,
    };
    drop(lifecycle);
    runtime.stop();
    anyhow::ensure!(!again, "stopped at once by a second signal: what was in flight was not finished");
    tracing::info!("stopped");
    Ok(())
}

/// Returns when every selected model is ready or finally failed.
async fn settled(catalog: &Catalog) {
    let mut changes = catalog.changes();
    let ready = async {
        while !catalog.load().is_ready() {
            if changes.changed().await.is_err() {
                return;
            }
        }
    };
    if tokio::time::timeout(ANNOUNCE_AFTER, ready).await.is_err() {
        tracing::warn!("some models are still being loaded; the others serve");
    }
}

/// This replica, for operators.
fn described(config: &Config, started: SystemTime) -> Replica {
    let said = config.settings.iter().filter(|setting| setting.source != Source::Default);
    let settings = said.map(|setting| {
        let value = setting.value.as_ref().map(|value| value.to_string_lossy().into_owned());
        (setting.key.clone(), without_secrets(&value.unwrap_or_default()), setting.source.to_string())
    });
    Replica {
        started,
        store: config.source().map(|source| without_secrets(&source.to_string())).unwrap_or_default(),
        cores: config.machine.cores,
        memory_bytes: config.machine.memory,
        settings: settings.collect(),
    }
}

/// An address without its user, password and query; other texts are as they are. Options name the files of secrets, never the
/// secrets themselves.
fn without_secrets(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else {
        return text.to_owned();
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (host, path) = rest.split_at(end);
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    let path = path.split(['?', '#']).next().unwrap_or_default();
    format!("{scheme}://{host}{path}")
}

fn store_config(config: &Config) -> crate::error::Result<store::Config> {
    let root = config.source().unwrap_or(Location::Folder(PathBuf::new()));
    let at = |root| store::Config {
        models: config.store.models.clone().into(),
        poll_interval: config.store.poll_interval,
        relist_interval: config.store.relist_interval,
        settle: config.store.settle_time,
        completeness: config.store.completeness,
        ..store::Config::new(root)
    };
    let store = store::Config { state: config.store.state.clone().map(|state| Box::new(at(state))), ..at(root) };
    store.connect(&lifecycle_config(config).work_dir, config.store.cache_size)
}

/// Where operators' changes go.
fn records(config: &Config, store: &store::Config) -> Records {
    match (config.store.routes, &store.root) {
        (Routes::External, _) => closed(
            "ROUTES_EXTERNAL",
            "this server's routes are written elsewhere (routes: external): change route.yaml at its source",
        ),
        _ if config.model_file.is_some() => {
            closed("NO_STORE", "one file is served and no store: there is nothing to change; serve a folder of models")
        }
        _ => records_in(store),
    }
}

/// Where this replica says what it serves and counts, whoever writes the routes.
fn notes(config: &Config, store: &store::Config) -> Records {
    if config.model_file.is_some() { records(config, store) } else { records_in(store) }
}

/// Where they are, whoever may write them; of one file that is served alone, nowhere.
fn records_in(store: &store::Config) -> Records {
    let place = store.state.as_deref().unwrap_or(store);
    match (&place.root, &place.remote) {
        (Location::Folder(root), _) if store.state.is_some() => Records::in_state(root),
        (Location::Folder(root), _) => Records::in_folder(root),
        (Location::Bucket(_), Some(remote)) => Records::in_bucket(remote.bucket().clone()),
        (Location::Bucket(_), None) => closed("NO_STORE", "no bucket is served: there is nothing to change"),
    }
}

fn closed(reason: &'static str, message: &str) -> Records {
    Records::closed(Error::new(Code::FailedPrecondition, reason, message))
}

fn lifecycle_config(config: &Config) -> lifecycle::Config {
    let usual = lifecycle::Config::new(&config.machine.native_dir);
    lifecycle::Config {
        work_dir: config.machine.work_dir.clone().unwrap_or(usual.work_dir),
        child_executable: config.loading.child_executable.clone().unwrap_or(usual.child_executable),
        child_memory: config.loading.child_memory,
        child_time: config.loading.child_time,
        loads_at_once: config.loading.loads_at_once,
        memory: config.machine.memory,
        defaults: config.defaults.clone(),
        native_dir: usual.native_dir,
    }
}

fn edge_config(config: &Config) -> server::Config {
    let (listen, edge) = (&config.listen, &config.edge);
    server::Config {
        host: listen.host,
        admin_host: listen.admin_host,
        ops_host: listen.ops_host,
        grpc_port: listen.grpc_port,
        grpc_admin_port: Some(listen.grpc_admin_port),
        http_port: Some(listen.http_port),
        metrics_port: Some(listen.metrics_port),
        repository_api: listen.repository_api,
        caller_metadata: listen.caller_metadata.clone(),
        max_message_bytes: edge.max_message_bytes,
        request_memory: config.request_memory(),
        max_concurrent_streams: edge.max_concurrent_streams,
        max_connections: edge.max_connections,
        max_requests_in_flight: edge.max_requests_in_flight,
        handshake_timeout: edge.handshake_timeout,
        body_timeout: edge.body_timeout,
        idle_timeout: edge.idle_timeout,
        keepalive_interval: edge.keepalive_interval,
        keepalive_timeout: edge.keepalive_timeout,
        max_connection_age: edge.max_connection_age,
        connection_age_grace: edge.connection_age_grace,
        header_list_bytes: edge.header_list_bytes,
        ..server::Config::default()
    }
}

fn listening(config: &Config, ports: Ports) -> Listening {
    let listen = &config.listen;
    Listening {
        grpc: SocketAddr::new(listen.host, ports.grpc),
        grpc_admin: SocketAddr::new(listen.admin_host, ports.grpc_admin.unwrap_or(0)),
        http: SocketAddr::new(listen.ops_host, ports.http.unwrap_or(0)),
        metrics: SocketAddr::new(listen.ops_host, ports.metrics.unwrap_or(0)),
    }
}

/// What this replica writes beside the routes while it serves.
struct Writers {
    end: watch::Sender<()>,
    status: JoinHandle<()>,
    counts: JoinHandle<()>,
}

/// The two signals that mean stop.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

// === impl Writers ===

impl Writers {
    fn start(
        catalog: &Catalog,
        place: Records,
        replica: String,
        counts: Counts,
        controller: rollout::Controller,
    ) -> Self {
        let (end, ended) = watch::channel(());
        let until = |mut ended: watch::Receiver<()>| async move { while ended.changed().await.is_ok() {} };
        let status = tokio::spawn(rollout::report(catalog.clone(), place, replica, until(ended.clone())));
        let counts = tokio::spawn(counts.keep(until(ended.clone())));
        tokio::spawn(controller.run(until(ended)));
        Self { end, status, counts }
    }

    /// After the last answer: what is counted then is all there is.
    async fn end(self) {
        drop(self.end);
        let _ = tokio::time::timeout(COUNTS_WRITTEN_WITHIN, self.counts).await;
        let _ = tokio::time::timeout(STATUS_REMOVED_WITHIN, self.status).await;
    }
}

// === impl Stop ===

impl Stop {
    fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("signals cannot be listened for");
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    /// The next one; whether it was a person's Ctrl-C.
    async fn first(&mut self) -> bool {
        tokio::select! {
            _ = self.terminate.recv() => false,
            _ = self.interrupt.recv() => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_shown_without_its_secrets() {
        assert_eq!(without_secrets("s3://key:secret@bucket/models?token=x"), "s3://bucket/models");
        assert_eq!(without_secrets("gs://bucket"), "gs://bucket");
        assert_eq!(without_secrets("/srv/models@2?"), "/srv/models@2?");
    }
}

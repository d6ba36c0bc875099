//! The server's configuration: each option once, as a field with its default and its sentence.
//!
//! A field `grpc_port` is the flag `--grpc-port`, the environment variable `SCONCE_GRPC_PORT` and the key `grpc_port` of the
//! file; the flag wins over the environment, that over the file, that over the default. Names, help, the file's keys and
//! docs/configuration.md all follow from the fields here. Every part gets its own struct; `app` hands them out.

mod environment;
mod machine;
mod setting;
mod sources;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::Args;
use http::HeaderName;

use crate::{
    model::{
        ModelYaml,
        units::{parse_duration, parse_size},
    },
    store::{Completeness, Location},
    telemetry::logs::Format,
};

pub use environment::warnings;
pub use setting::{Setting, Source};
pub use sources::{Given, effective, keys, reference, without_flags};

/// All of it.
#[derive(Args, Clone, Debug)]
pub struct Config {
    #[command(flatten, next_help_heading = "What is served")]
    pub store: StoreConfig,
    #[command(flatten, next_help_heading = "Addresses and ports")]
    pub listen: ListenConfig,
    #[command(flatten, next_help_heading = "The machine")]
    pub machine: MachineConfig,
    #[command(flatten, next_help_heading = "Limits of requests and connections")]
    pub edge: EdgeConfig,
    #[command(flatten, next_help_heading = "Loading")]
    pub loading: LoadingConfig,
    #[command(flatten, next_help_heading = "Ending")]
    pub drain: DrainConfig,
    #[command(flatten, next_help_heading = "Logs and ids")]
    pub telemetry: TelemetryConfig,
    /// One file instead of a store: the positional argument of `sconce serve`.
    #[arg(skip)]
    pub model_file: Option<PathBuf>,
    /// What every model.yaml leaves out: `defaults:` of the file, in the shape of model.yaml.
    #[arg(skip)]
    pub defaults: ModelYaml,
    /// Each option as it was written, and who said it, for operators; `sconce serve` fills it in.
    #[arg(skip)]
    pub settings: Vec<Setting>,
}

#[derive(Args, Clone, Debug)]
pub struct StoreConfig {
    /// The folder of all models, or a bucket: s3://bucket/path, gs://bucket/path, az://container/path
    #[arg(long, value_name = "DIR|URL")]
    pub model_store: Option<Location>,
    /// Serve only models whose names match one of these patterns with * and ?, with commas between them (default: all)
    #[arg(long, value_name = "PATTERN", value_delimiter = ',', action = clap::ArgAction::Set)]
    pub models: Vec<String>,
    /// Where route.yaml and status are kept, if the model store is only read: a folder that is there, or a bucket (default: in the model store)
    #[arg(long, value_name = "DIR|URL")]
    pub state: Option<Location>,
    /// Who writes route.yaml: `server`, for operators who ask it, and people too; `external`, only people and their tools, and the server refuses
    #[arg(long, value_name = "WHO", default_value = "server", hide_possible_values = true)]
    pub routes: Routes,
    /// How often the store is looked at for changes
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = parse_duration)]
    pub poll_interval: Duration,
    /// How often a bucket is listed as a whole although its marker .sconce/changed says that nothing changed
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = parse_duration)]
    pub relist_interval: Duration,
    /// How much of the work folder's disk the artifacts of a bucket may take; what is used stays, the rest goes by age
    #[arg(long, value_name = "SIZE", default_value = "10GiB", value_parser = parse_size)]
    pub cache_size: u64,
    /// When a version counts as complete: `settle`, when all that its version.yaml names is there or nothing in it changed for settle_time; `manifest`, only the former
    #[arg(long, value_name = "HOW", default_value = "settle", hide_possible_values = true)]
    pub completeness: Completeness,
    /// How long nothing in a version without version.yaml may change before it is taken
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = parse_duration)]
    pub settle_time: Duration,
}

/// Who writes the routes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Routes {
    #[default]
    Server,
    External,
}

#[derive(Args, Clone, Debug)]
pub struct ListenConfig {
    /// The address that gRPC inference listens on
    #[arg(long, value_name = "IP", default_value = "127.0.0.1", value_parser = parse_address)]
    pub host: IpAddr,
    /// The address that gRPC admin listens on
    #[arg(long, value_name = "IP", default_value = "127.0.0.1", value_parser = parse_address)]
    pub admin_host: IpAddr,
    /// The address that HTTP health and metrics listen on; they carry no model data
    #[arg(long, value_name = "IP", default_value = "127.0.0.1", value_parser = parse_address)]
    pub ops_host: IpAddr,
    /// The port of gRPC inference, reflection and gRPC health; 0 takes any free port, here and below
    #[arg(long, value_name = "PORT", default_value = "7070")]
    pub grpc_port: u16,
    /// The port of gRPC admin
    #[arg(long, value_name = "PORT", default_value = "7071")]
    pub grpc_admin_port: u16,
    /// The port of HTTP health: /livez and /readyz
    #[arg(long, value_name = "PORT", default_value = "8080")]
    pub http_port: u16,
    /// The port of Prometheus metrics: /metrics
    #[arg(long, value_name = "PORT", default_value = "8082")]
    pub metrics_port: u16,
    /// Where the ports are written as JSON once all are bound
    #[arg(long, value_name = "FILE")]
    pub ports_file: Option<PathBuf>,
    /// Speak Triton's model repository and statistics extensions on the inference port: whoever may call a model may then load and unload it
    #[arg(long, value_name = "BOOL", default_value = "false", default_missing_value = "true",
          num_args = 0..=1, require_equals = true, action = clap::ArgAction::Set)]
    pub repository_api: bool,
    /// Let inference and admin leave loopback although nothing here authenticates, because something in front of them does
    #[arg(long, value_name = "BOOL", default_value = "false", default_missing_value = "true",
          num_args = 0..=1, require_equals = true, action = clap::ArgAction::Set)]
    pub insecure_no_auth: bool,
    /// The metadata key in which what authenticates callers in front of this server says who calls, e.g. x-forwarded-user; whoever reaches a port past it can claim to be anybody (default: nobody is known)
    #[arg(long, value_name = "KEY", value_parser = parse_metadata_key)]
    pub caller_metadata: Option<HeaderName>,
}

#[derive(Args, Clone, Debug)]
pub struct MachineConfig {
    /// Cores for inference (default: what the cgroup and the affinity mask allow)
    #[arg(long, value_name = "N", default_value_t = machine::cores(), hide_default_value = true,
          value_parser = parse_cores)]
    pub cores: usize,
    /// Memory to plan with: a version that would take the server past it is not loaded, and an eighth stays free for requests (default: the cgroup's limit, or else the machine's memory)
    #[arg(long, value_name = "SIZE", default_value_t = machine::memory_bytes(), hide_default_value = true,
          value_parser = parse_size)]
    pub memory: u64,
    /// Where the native libraries are (default: the folder `native` here or beside the program)
    #[arg(long, value_name = "DIR", default_value_os_t = machine::native_dir(), hide_default_value = true)]
    pub native_dir: PathBuf,
    /// Where versions are copied to before they are opened (default: sconce in the user's cache folder)
    #[arg(long, value_name = "DIR")]
    pub work_dir: Option<PathBuf>,
    /// How long one turn of a core's event loop may spend running models
    #[arg(long, value_name = "TIME", default_value = "1ms", value_parser = parse_duration)]
    pub loop_budget: Duration,
}

#[derive(Args, Clone, Debug)]
pub struct EdgeConfig {
    /// The largest message, received or sent
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = parse_bytes::<usize>)]
    pub max_message_bytes: usize,
    /// What all messages being received may claim together (default: an eighth of memory)
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes::<usize>)]
    request_memory: Option<usize>,
    /// How many inference connections may be open
    #[arg(long, value_name = "N", default_value = "4096")]
    pub max_connections: usize,
    /// How many calls one connection may have open
    #[arg(long, value_name = "N", default_value = "128")]
    pub max_concurrent_streams: u32,
    /// How many calls may be at work over all connections; more are refused at once
    #[arg(long, value_name = "N", default_value = "4096")]
    pub max_requests_in_flight: usize,
    /// The largest list of headers of one call
    #[arg(long, value_name = "SIZE", default_value = "16KiB", value_parser = parse_bytes::<u32>)]
    pub header_list_bytes: u32,
    /// How long a new connection may take to speak HTTP/2
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    pub handshake_timeout: Duration,
    /// How long a call's message may take to arrive after its headers
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    pub body_timeout: Duration,
    /// How long a connection may be without a call before it is closed
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = parse_duration)]
    pub idle_timeout: Duration,
    /// How often a quiet connection is pinged
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    pub keepalive_interval: Duration,
    /// How long a ping may stay unanswered before the connection is closed
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    pub keepalive_timeout: Duration,
    /// The age at which a connection is asked to go, roughly, so that callers spread over new replicas
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = parse_duration)]
    pub max_connection_age: Duration,
    /// How long the last calls of such a connection may take
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    pub connection_age_grace: Duration,
}

#[derive(Args, Clone, Debug)]
pub struct LoadingConfig {
    /// How many versions are loaded at once
    #[arg(long, value_name = "N", default_value = "2")]
    pub loads_at_once: usize,
    /// The address space of the throw-away child that opens a version first
    #[arg(long, value_name = "SIZE", default_value = "4GiB", value_parser = parse_size)]
    pub child_memory: u64,
    /// How long that child may take over one version, and the server itself to open it after that
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    pub child_time: Duration,
    /// The program that is run as that child (default: this one)
    #[arg(long, value_name = "FILE")]
    pub child_executable: Option<PathBuf>,
}

#[derive(Args, Clone, Debug)]
pub struct DrainConfig {
    /// How long calls are still accepted after SIGTERM, while health already says no
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_duration)]
    pub pre_stop_delay: Duration,
    /// How long the accepted calls may take after that
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    pub grace: Duration,
}

#[derive(Args, Clone, Debug)]
pub struct TelemetryConfig {
    /// Logs as text or as JSON, one line each, to stderr
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: Format,
    /// What is logged: a level, or levels by module, e.g. info,sconce::lifecycle=debug
    #[arg(long, value_name = "FILTER", default_value = "info", value_parser = parse_level)]
    pub log_level: String,
    /// The key of the prediction ids' checksum, the same on all replicas (default: one of this process's own)
    #[arg(long, value_name = "FILE")]
    pub prediction_id_key_file: Option<PathBuf>,
    /// A file with the URL that each verdict on a rollout is posted to, as JSON (default: none)
    #[arg(long, value_name = "FILE")]
    pub rollout_webhook_file: Option<PathBuf>,
}

/// What `ListenConfig` became once all ports were bound.
#[derive(Clone, Copy, Debug)]
pub struct Listening {
    pub grpc: SocketAddr,
    pub grpc_admin: SocketAddr,
    pub http: SocketAddr,
    pub metrics: SocketAddr,
}

/// Inference or admin would be open to whoever reaches the address. The text names all ways out.
#[derive(Debug, PartialEq)]
pub struct Exposed(String);

// === impl Config ===

impl Config {
    /// Refuses inference and admin beyond loopback without authentication.
    pub fn check_exposure(&self) -> Result<(), Exposed> {
        if self.listen.insecure_no_auth {
            return Ok(());
        }
        for (what, option, host) in
            [("inference", "--host", self.listen.host), ("admin", "--admin-host", self.listen.admin_host)]
        {
            if !host.to_canonical().is_loopback() {
                return Err(Exposed(format!(
                    "{what} on {host} ({option}) has no authentication: whoever reaches that address may call it. Ways out:\n  \
                     * leave {option} at 127.0.0.1 and put in front of it what authenticates: a sidecar, a proxy, \
                     an SSH tunnel, `kubectl port-forward`\n  \
                     * --insecure-no-auth, where something else keeps strangers away: a service mesh, a network policy"
                )));
            }
        }
        Ok(())
    }

    /// Bytes that all messages being received may claim together.
    pub fn request_memory(&self) -> usize {
        let eighth = usize::try_from(self.machine.memory / 8).unwrap_or(usize::MAX);
        self.edge.request_memory.unwrap_or(eighth)
    }

    /// Ties the folders that the child is told to where this process was started: the child runs elsewhere.
    fn anchor(&mut self) -> std::io::Result<()> {
        self.machine.native_dir = std::path::absolute(&self.machine.native_dir)?;
        for path in [&mut self.machine.work_dir, &mut self.loading.child_executable].into_iter().flatten() {
            *path = std::path::absolute(&*path)?;
        }
        Ok(())
    }

    /// What is served: the one file, or the folder or bucket of all models; `None` where nobody said.
    pub fn source(&self) -> Option<Location> {
        let file = self.model_file.as_ref().map(Location::from);
        file.or_else(|| self.store.model_store.clone())
    }
}

// === impl Exposed ===

impl std::fmt::Display for Exposed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Exposed {}

fn parse_address(text: &str) -> Result<IpAddr, String> {
    match text {
        "localhost" => Ok(Ipv4Addr::LOCALHOST.into()),
        _ => text.parse().map_err(|_| "write an IP address, e.g. 127.0.0.1, 0.0.0.0 or ::".to_string()),
    }
}

fn parse_cores(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|cores| (1..=1024).contains(cores))
        .ok_or_else(|| "write a number from 1 to 1024".to_string())
}

/// As gRPC has them; what begins with `grpc-` is gRPC's own, and what ends with `-bin` is no text.
fn parse_metadata_key(text: &str) -> Result<HeaderName, String> {
    let key = HeaderName::from_bytes(text.as_bytes()).ok();
    key.filter(|key| key == text && !text.starts_with("grpc-") && !text.ends_with("-bin"))
        .ok_or_else(|| "write a metadata key in lower case without -bin, e.g. x-forwarded-user".to_string())
}

/// A size in a type that may be too small for it.
fn parse_bytes<T: TryFrom<u64>>(text: &str) -> Result<T, String> {
    T::try_from(parse_size(text)?).map_err(|_| format!("'{text}' is too large"))
}

fn parse_level(text: &str) -> Result<String, String> {
    crate::telemetry::logs::check_level(text)?;
    Ok(text.into())
}

//! `sconce serve` over a store of the bench, until it is ready, and what can be seen of it from outside.

use std::{
    ffi::OsString,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use tokio::time::sleep;

use crate::{http_get::get, process::Running, repository};

/// A server that runs.
pub struct Served {
    pub running: Running,
    pub ports: Ports,
    /// From the start of the process until it was ready.
    pub ready_after: Duration,
}

/// What `--ports-file` says.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Ports {
    pub grpc: u16,
    pub grpc_admin: u16,
    pub http: u16,
    pub metrics: u16,
}

const LISTENS_WITHIN: Duration = Duration::from_secs(20);
const READY_WITHIN: Duration = Duration::from_secs(300);
const READY_POLL: Duration = Duration::from_millis(5);

// === impl Served ===

impl Served {
    /// On one CPU, with nothing remembered, until it is ready.
    pub async fn start(program: &Path, store: &Path, cpu: usize, folder: &Path) -> Result<Self> {
        let ports_file = folder.join("ports.json");
        let native = std::env::var_os("SCONCE_NATIVE_DIR").map_or_else(|| repository("native"), PathBuf::from);
        let fixed = "serve --grpc-port 0 --grpc-admin-port 0 --http-port 0 --metrics-port 0 --cores 1 --log-level warn";
        let mut args: Vec<OsString> = fixed.split(' ').map(OsString::from).collect();
        let work = folder.join("work");
        for (option, value) in
            [("--model-store", store), ("--native-dir", &native), ("--work-dir", &work), ("--ports-file", &ports_file)]
        {
            args.extend([option.into(), value.into()]);
        }
        let log = folder.join("log");
        let begun = Instant::now();
        let mut running = Running::start(&[cpu], program, &args, &log)?;
        let ports: Result<Ports> = running.ports(&ports_file, LISTENS_WITHIN).await;
        let ports = ports.with_context(|| std::fs::read_to_string(&log).unwrap_or_default())?;
        while !get((Ipv4Addr::LOCALHOST, ports.http).into(), "/readyz")?.starts_with("HTTP/1.1 200") {
            ensure!(begun.elapsed() < READY_WITHIN, "not ready within {READY_WITHIN:?}");
            sleep(READY_POLL).await;
        }
        Ok(Self { running, ports, ready_after: begun.elapsed() })
    }

    pub fn grpc(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.ports.grpc).into()
    }

    /// What it counts now. Blocks for a moment, so not while the load runs.
    pub fn metrics(&self) -> Result<String> {
        get((Ipv4Addr::LOCALHOST, self.ports.metrics).into(), "/metrics")
    }

    /// Of the server itself, its children left out.
    pub fn resident_bytes(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.running.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
        Ok(kib.context("no VmRSS")? << 10)
    }
}

//! The servers that are measured: `sconce serve` over the bench's store, and the echo.

use std::{
    ffi::OsString,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use bytes::Bytes;
use sconce::cli::bench::wire::{Answer, MODEL_INFER, call, connect, frame, head};
use serde::Deserialize;

use crate::{cases::Case, http_get::get, inference::ModelInferRequest, process::Running};

/// A child that listens.
pub struct Server {
    pub running: Running,
    pub ports: Ports,
}

/// What `--ports-file` holds, as far as the bench needs it.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Ports {
    pub grpc: u16,
    #[serde(default)]
    pub metrics: Option<u16>,
}

/// Runs and rows of one model so far.
#[derive(Clone, Copy, Debug)]
pub struct Batches {
    runs: f64,
    rows: f64,
}

/// Where the bench puts the children's files.
pub struct Folder {
    dir: PathBuf,
}

const LISTENS_WITHIN: Duration = Duration::from_secs(20);
const ANSWERS_WITHIN: Duration = Duration::from_secs(60);
const ANSWER_POLL: Duration = Duration::from_millis(50);
const STARTS: usize = 5;

// === impl Folder ===

impl Folder {
    pub fn new(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        Ok(Self { dir: dir.into() })
    }

    /// A child's file of ports, the one of an earlier child removed.
    fn ports_file(&self, name: &str) -> PathBuf {
        let file = self.dir.join(format!("{name}.ports.json"));
        // Usually there is none.
        let _ = fs::remove_file(&file);
        file
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }
}

// === impl Server ===

impl Server {
    /// `sconce serve` with a core for each of `cpus`, its ports bound. Its models may still be loading.
    pub async fn sconce(
        program: &Path,
        store: &Path,
        native_dir: &Path,
        cpus: &[usize],
        folder: &Folder,
    ) -> Result<Self> {
        let ports_file = folder.ports_file("server");
        let fixed = "--grpc-port 0 --grpc-admin-port 0 --http-port 0 --metrics-port 0 --log-level warn";
        let mut args: Vec<OsString> = vec!["serve".into()];
        args.extend(fixed.split(' ').map(OsString::from));
        args.extend(["--cores".into(), cpus.len().to_string().into()]);
        for (option, value) in [("--model-store", store), ("--native-dir", native_dir), ("--ports-file", &ports_file)] {
            args.extend([option.into(), value.into()]);
        }
        let log = folder.log("server");
        let mut running = Running::start(cpus, program, &args, &log)?;
        let ports = running.ports(&ports_file, LISTENS_WITHIN).await;
        let ports = ports.with_context(|| format!("the server's log is {}", log.display()))?;
        Ok(Self { running, ports })
    }

    /// The echo on `cpu`, answering each call with `answer`.
    pub async fn echo(answer: &[u8], cpu: usize, folder: &Folder) -> Result<Self> {
        let ports_file = folder.ports_file("echo");
        let answer_file = folder.dir.join("echo.answer");
        fs::write(&answer_file, answer)?;
        let args = ["echo".into(), answer_file.into(), ports_file.clone().into()];
        let mut running = Running::start(&[cpu], &std::env::current_exe()?, &args, &folder.log("echo"))?;
        let ports = running.ports(&ports_file, LISTENS_WITHIN).await?;
        Ok(Self { running, ports })
    }

    /// Calls until the model answers; its encoded answer.
    pub async fn first_answer(&self, case: &Case) -> Result<Bytes> {
        self.first_answer_to(case.name, &case.requests[0]).await
    }

    /// The same of any request.
    pub async fn first_answer_to(&self, name: &str, request: &ModelInferRequest) -> Result<Bytes> {
        let message = frame(request);
        let begun = Instant::now();
        let mut poll = tokio::time::interval(ANSWER_POLL);
        loop {
            match once(self.ports.grpc_address(), &message).await {
                Ok(answer) => return Ok(answer),
                Err(error) if begun.elapsed() > ANSWERS_WITHIN => {
                    return Err(error.context(format!("{name} does not answer within {ANSWERS_WITHIN:?}")));
                }
                Err(_) => {
                    poll.tick().await;
                }
            }
        }
    }

    /// Looks at `sconce_batch_rows` of `model`. Blocks for a moment, so not while the load runs.
    pub fn batches(&self, model: &str) -> Result<Batches> {
        let address = self.ports.metrics_address().context("the server has no metrics port")?;
        let text = get(address, "/metrics").context("cannot read the server's metrics")?;
        Ok(Batches {
            runs: sum(&text, "sconce_batch_rows_count", model),
            rows: sum(&text, "sconce_batch_rows_sum", model),
        })
    }
}

// === impl Ports ===

impl Ports {
    pub fn grpc_address(self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.grpc).into()
    }

    pub fn metrics_address(self) -> Option<SocketAddr> {
        self.metrics.map(|port| (Ipv4Addr::LOCALHOST, port).into())
    }
}

// === impl Batches ===

impl Batches {
    /// Mean rows of a run since `earlier`; `None` where nothing ran.
    pub fn mean_since(self, earlier: Self) -> Option<f64> {
        let runs = self.runs - earlier.runs;
        (runs > 0.0).then(|| (self.rows - earlier.rows) / runs)
    }
}

/// Times of `sconce serve` over an empty store, from its start to its ports, in milliseconds, ascending.
pub async fn startup(program: &Path, native_dir: &Path, cpu: usize, folder: &Folder) -> Result<Vec<f64>> {
    let store = tempfile::tempdir()?;
    let mut times_ms = Vec::with_capacity(STARTS);
    for _ in 0..STARTS {
        let begun = Instant::now();
        let _server = Server::sconce(program, store.path(), native_dir, &[cpu], folder).await?;
        times_ms.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    times_ms.sort_by(f64::total_cmp);
    Ok(times_ms)
}

/// One call over a connection of its own: the encoded answer.
async fn once(address: SocketAddr, message: &Bytes) -> Result<Bytes> {
    let mut client = connect(address).await?;
    let head = head(&address.to_string(), MODEL_INFER, None)?;
    Ok(call(&mut client, &head, message, Answer::Keep).await?)
}

/// The sum of a metric over the versions of a model.
fn sum(metrics: &str, name: &str, model: &str) -> f64 {
    let of_model = format!("model=\"{model}\"");
    let samples = metrics.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('{')?.split_once('}'));
    let values = samples.filter(|(labels, _)| labels.contains(&of_model));
    values.filter_map(|(_, value)| value.split_ascii_whitespace().next()?.parse::<f64>().ok()).sum()
}

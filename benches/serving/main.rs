//! `cargo bench --bench serving`: the server beside its floors, in one run.
//!
//! Whatever is measured runs as a child on one CPU, the load generator on another. For each model (`cases`) and load: a
//! bare tonic echo of the same messages (`echo`), then the server (`server`), both driven by the same closed loop
//! (`generator`); and beforehand the model's library alone (`floors`). RESULTS.md explains the method and keeps the figures.

mod both;
mod cases;
mod echo;
mod floors;
mod generator;
#[path = "../parts/http_get.rs"]
mod http_get;
mod kept;
#[path = "../parts/interrupt.rs"]
mod interrupt;
#[path = "../parts/machine.rs"]
mod machine;
#[path = "../parts/mlp.rs"]
mod mlp;
mod open;
#[path = "../parts/process.rs"]
mod process;
mod report;
mod server;
mod shadow;
#[path = "../parts/verdicts.rs"]
mod verdicts;
#[allow(dead_code, reason = "the integration tests use the rest")]
#[path = "../../tests/it/harness/wire.rs"]
mod wire;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use sconce::cli::bench::wire::frame;

use crate::{
    cases::{Case, repository},
    generator::{Load, Target, Window, in_turns},
    interrupt::unless_interrupted,
    process::Cpus,
    report::{CaseReport, Cell, HEAD, Report, Served},
    server::{Folder, Server},
};

/// The Open Inference Protocol, as `build.rs` generates it.
mod inference {
    #![allow(clippy::all, clippy::pedantic, dead_code)]
    use tonic_prost::ProstCodec as Codec;
    tonic::include_proto!("inference");
}

/// The server's allocator, so that the echo is a floor of the same make.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The server beside a bare echo and the bare libraries.
#[derive(Parser)]
struct Args {
    /// A look, not a measurement: one second a cell
    #[arg(long)]
    quick: bool,
    /// Only what has this in its name: `startup`, `cache`, `a shadow`, or a cell as in `tiny ONNX, 8 in flight over 1`
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Measured seconds a cell, in five turns with the echo
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// The floors alone, without the server
    #[arg(long)]
    floors: bool,
    /// Append the figures to benches/RESULTS.md
    #[arg(long)]
    record: bool,
    /// The CPU of the server and the echo (default: the first that is allowed)
    #[arg(long, value_name = "N")]
    server_cpu: Option<usize>,
    /// The CPU of the generator (default: the next)
    #[arg(long, value_name = "N")]
    generator_cpu: Option<usize>,
    /// Another build of the server
    #[arg(long, value_name = "PROGRAM", default_value = env!("CARGO_BIN_EXE_sconce"))]
    server: PathBuf,
    /// Cargo says this to every bench.
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What the bench's own children do.
#[derive(Subcommand)]
enum Role {
    /// Becomes another program, on those CPUs
    #[command(hide = true)]
    Launch {
        /// As in `0,1`
        cpus: String,
        program: PathBuf,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Answers every ModelInfer with the message in a file
    #[command(hide = true)]
    Echo { answer: PathBuf, ports: PathBuf },
}

/// What all cells of a run share.
struct Bench {
    args: Args,
    cpus: Cpus,
    window: Window,
    native_dir: PathBuf,
    folder: Folder,
    progress: ProgressBar,
}

const WARM_UP: Duration = Duration::from_secs(1);
const QUICK: Window = Window { warm_up: Duration::from_millis(300), measured: Duration::from_secs(1) };
const SECONDS_MAX: f64 = 60.0;

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    match &args.role {
        Some(Role::Launch { cpus, program, args }) => process::launch(cpus, program, args)?,
        Some(Role::Echo { answer, ports }) => echo::serve(answer, ports)?,
        None => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(unless_interrupted(async { Bench::new(args)?.run().await }))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

// === impl Bench ===

impl Bench {
    fn new(args: Args) -> Result<Self> {
        if !(args.seconds > 0.0 && args.seconds <= SECONDS_MAX) {
            bail!("--seconds takes a number above 0 and up to {SECONDS_MAX}");
        }
        let cpus = Cpus::choose(args.server_cpu, args.generator_cpu)?;
        process::pin(&[cpus.generator])?;
        let measured = Duration::from_secs_f64(args.seconds);
        let full = Window { warm_up: WARM_UP, measured };
        let native_dir = std::env::var_os("SCONCE_NATIVE_DIR").map_or_else(|| repository("native"), PathBuf::from);
        let style = ProgressStyle::with_template("{bar:20} {pos}/{len} {msg}")?;
        Ok(Self {
            cpus,
            window: if args.quick { QUICK } else { full },
            native_dir,
            folder: Folder::new(&repository("target/bench"))?,
            progress: ProgressBar::no_length().with_style(style),
            args,
        })
    }

    async fn run(self) -> Result<()> {
        let mut report = Report::new(self.cpus, self.window.measured.as_secs_f64());
        let mut cases = cases::all()?;
        for case in &mut cases {
            case.loads.retain(|load| self.selects(&format!("{}, {load}", case.name)));
        }
        cases.retain(|case| !case.loads.is_empty());
        self.progress.set_length(cases.iter().map(|case| case.loads.len() as u64).sum());
        if self.selects("startup") && !self.args.floors {
            self.progress.set_message("startup");
            let program = &self.args.server;
            report.startup_ms = server::startup(program, &self.native_dir, self.cpus.server, &self.folder).await?;
        }
        self.progress.suspend(|| print!("{}", report.head()));
        let store = tempfile::tempdir()?;
        cases::make_store(store.path())?;
        let (cache, shadow) = (self.selects("cache"), self.selects("a shadow"));
        let server = match self.args.floors || (cases.is_empty() && !cache && !shadow) {
            true => None,
            false => Some(self.serve(store.path()).await?),
        };
        for case in &cases {
            report.cases.push(self.case(case, store.path(), server.as_ref()).await?);
        }
        if let Some(server) = server.as_ref().filter(|_| self.selects("half of capacity")) {
            for case in cases.iter().filter(|case| case.name == cases::TINY) {
                report.half.push(self.half(case, server).await?);
            }
        }
        if let Some(server) = server.as_ref().filter(|_| cache) {
            self.progress.set_message("kept answers");
            let kept = kept::measure(server, self.window.measured).await.context("kept answers")?;
            self.progress.suspend(|| print!("{}", kept.text()));
            report.kept = Some(kept);
        }
        if let Some(server) = server.as_ref().filter(|_| shadow) {
            report.shadow = Some(self.shadow(server).await.context("a shadow")?);
        }
        drop(server);
        if self.selects("both CPUs") && !self.args.floors {
            report.both = self.both(store.path()).await.context("both CPUs")?;
        }
        self.progress.finish_and_clear();
        report.judge();
        print!("{}", report.verdicts.text());
        let json = repository("target/bench/serving.json");
        report.write_json(&json)?;
        println!("\nwritten: {}", json.display());
        if self.args.record {
            report.record(&repository("benches/RESULTS.md"))?;
        }
        Ok(())
    }

    async fn serve(&self, store: &Path) -> Result<Server> {
        self.progress.set_message("starting the server");
        Server::sconce(&self.args.server, store, &self.native_dir, &[self.cpus.server], &self.folder).await
    }

    async fn case(&self, case: &Case, store: &Path, server: Option<&Server>) -> Result<CaseReport> {
        self.progress.set_message(format!("{}: the library alone", case.name));
        let library = floors::library(case, store, &self.native_dir, self.cpus.server)?;
        let answer = match server {
            Some(server) => server.first_answer(case).await?,
            None => prost::Message::encode_to_vec(&case.answer).into(),
        };
        let echo = Server::echo(&answer, self.cpus.server, &self.folder).await?;
        let mut report = CaseReport {
            name: case.name.into(),
            request_bytes: frame(&case.requests[0]).len(),
            answer_bytes: answer.len(),
            library,
            cells: Vec::new(),
        };
        self.progress.suspend(|| println!("\n{}\n{HEAD}", report.heading()));
        for &load in &case.loads {
            let cell = self.cell(case, load, &echo, server, &report).await;
            let cell = cell.with_context(|| format!("{}, {load}", case.name))?;
            self.progress.suspend(|| println!("{}", cell.row()));
            self.progress.inc(1);
            report.cells.push(cell);
        }
        Ok(report)
    }

    async fn cell(
        &self,
        case: &Case,
        load: Load,
        echo: &Server,
        server: Option<&Server>,
        report: &CaseReport,
    ) -> Result<Cell> {
        let traffic = case.traffic();
        self.progress.set_message(format!("{}, {load}", case.name));
        let Some(server) = server else {
            let [echo] = in_turns([Target { server: echo, load }], &traffic, self.window.measured).await?;
            return Ok(Cell { load, echo, server: None });
        };
        let before = server.batches(case.model)?;
        let targets = [Target { server: echo, load }, Target { server, load }];
        let [echo, measured] = in_turns(targets, &traffic, self.window.measured).await?;
        let batch = server.batches(case.model)?.mean_since(before);
        let batch_rows = batch.context("the server's metrics count no batch")?;
        Ok(Cell { load, server: Some(Served::new(measured, &echo, batch_rows, &report.library)), echo })
    }

    fn selects(&self, name: &str) -> bool {
        self.args.only.as_deref().is_none_or(|only| name.contains(only))
    }
}

//! `cargo bench --bench overload`: what becomes of a server that is asked for three times as much as it can give.
//!
//! One CPU has the server, another the callers. Each model (`models`) has a server of its own, which is loaded with a quarter of its
//! capacity, with three times of it, and with a quarter again (`measure`); `callers` are the many connections, and see how each call
//! ends; `report` holds it against the promises and keeps it in OVERLOAD.md.

mod callers;
#[path = "../parts/http_get.rs"]
mod http_get;
#[path = "../parts/interrupt.rs"]
mod interrupt;
#[path = "../parts/machine.rs"]
mod machine;
mod measure;
#[path = "../parts/mlp.rs"]
mod mlp;
mod models;
#[allow(dead_code, reason = "the other benches and the integration tests use the rest")]
#[path = "../../tests/it/harness/open_loop.rs"]
mod open_loop;
#[path = "../parts/process.rs"]
mod process;
mod report;
#[allow(dead_code, reason = "the other benches use the rest")]
#[path = "../parts/served.rs"]
mod served;
#[path = "../parts/verdicts.rs"]
mod verdicts;
#[allow(dead_code, reason = "the integration tests use the rest")]
#[path = "../../tests/it/harness/wire.rs"]
mod wire;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

use crate::{
    interrupt::unless_interrupted,
    measure::{Overload, Times, overload},
    models::Case,
    process::Cpus,
    report::Report,
    served::Served,
};

/// A server that is asked for three times as much as it can give.
#[derive(Parser)]
struct Args {
    /// Of overload, for each model
    #[arg(long, default_value_t = 30.0)]
    seconds: f64,
    /// Only the models with this in their names
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// A look, not a measurement: five seconds of overload
    #[arg(long)]
    quick: bool,
    /// Append the figures to benches/OVERLOAD.md
    #[arg(long)]
    record: bool,
    /// Another build of the server
    #[arg(long, value_name = "PROGRAM", default_value = env!("CARGO_BIN_EXE_sconce"))]
    server: PathBuf,
    /// The CPU of the server (default: the first that is allowed)
    #[arg(long, value_name = "N")]
    server_cpu: Option<usize>,
    /// The CPU of the callers (default: the next)
    #[arg(long, value_name = "N")]
    generator_cpu: Option<usize>,
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
}

const TIMES: Times =
    Times { overload: Duration::ZERO, steady: Duration::from_secs(5), capacity: Duration::from_secs(3) };
const QUICK: Times =
    Times { overload: Duration::from_secs(5), steady: Duration::from_secs(2), capacity: Duration::from_secs(1) };
/// The first second of an overload is its warm-up.
const SECONDS_MIN: f64 = 2.0;
const SECONDS_MAX: f64 = 120.0;

fn main() -> Result<()> {
    let args = Args::parse();
    if let Some(Role::Launch { cpus, program, args }) = &args.role {
        process::launch(cpus, program, args)?;
    }
    ensure!(
        (SECONDS_MIN..=SECONDS_MAX).contains(&args.seconds),
        "--seconds takes a number from {SECONDS_MIN} to {SECONDS_MAX}"
    );
    let cpus = Cpus::choose(args.server_cpu, args.generator_cpu)?;
    process::pin(&[cpus.generator])?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(unless_interrupted(measure(&args, cpus)))
}

async fn measure(args: &Args, cpus: Cpus) -> Result<()> {
    let times = match args.quick {
        true => QUICK,
        false => Times { overload: Duration::from_secs_f64(args.seconds), ..TIMES },
    };
    let progress = ProgressBar::new_spinner().with_style(ProgressStyle::with_template("{spinner} {msg}")?);
    let mut report = Report::new(cpus, times.overload.as_secs_f64());
    for case in models::all()? {
        if args.only.as_deref().is_none_or(|only| case.name.contains(only)) {
            let told = |phase: &str| progress.set_message(format!("{}: {phase}", case.name));
            report.models.push(one(args, cpus, &case, times, told).await.context(case.name)?);
        }
    }
    progress.finish_and_clear();
    report.judge();
    print!("{}", report.text());
    let json = repository("target/bench/overload.json");
    report.write_json(&json)?;
    println!("\nwritten: {}", json.display());
    if args.record {
        report.record(&repository("benches/OVERLOAD.md"))?;
    }
    Ok(())
}

async fn one(args: &Args, cpus: Cpus, case: &Case, times: Times, told: impl Fn(&str)) -> Result<Overload> {
    let folder = tempfile::tempdir()?;
    let store = folder.path().join("store");
    case.make_store(&store)?;
    told("starting the server");
    let server = Served::start(&args.server, &store, cpus.server, folder.path()).await?;
    overload(&server, case, times, told).await
}

/// A path from the root of the repository.
fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

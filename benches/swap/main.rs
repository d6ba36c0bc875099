//! `cargo bench --bench swap`: what a swap costs those who call meanwhile, and what a large store costs the server.
//!
//! One CPU has the server, another the load, the publisher and the watch of the Admin service. `swaps` puts versions one
//! after another into the store of a server under load (`load`), and takes the times of each; `report` holds them against the
//! promises and keeps them; `store` starts a server over a thousand models, `bucket` counts what watching a bucket takes. `demo` is the same under the eyes of people.

mod admin;
mod bucket;
mod demo;
#[path = "../parts/http_get.rs"]
mod http_get;
#[path = "../parts/interrupt.rs"]
mod interrupt;
mod load;
#[path = "../parts/machine.rs"]
mod machine;
#[path = "../../tests/it/harness/open_loop.rs"]
mod open_loop;
#[path = "../parts/process.rs"]
mod process;
mod report;
#[allow(dead_code, reason = "the other benches use the rest")]
#[path = "../parts/served.rs"]
mod served;
mod store;
mod swaps;
#[allow(dead_code, reason = "the other benches use the rest")]
#[path = "../parts/verdicts.rs"]
mod verdicts;
#[path = "../../tests/it/harness/versions.rs"]
mod versions;
#[allow(dead_code, reason = "the integration tests use the rest")]
#[path = "../../tests/it/harness/wire.rs"]
mod wire;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::{
    interrupt::unless_interrupted,
    load::Target,
    process::Cpus,
    report::Report,
    served::Served,
    swaps::{Pace, Swapping},
};

/// Swaps under load, and what a large store costs.
#[derive(Parser)]
struct Args {
    /// Swaps that are measured
    #[arg(long, default_value_t = 200)]
    swaps: u64,
    /// From one swap to the next, at least, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 250)]
    period: u64,
    /// Seconds of load before the first swap, to compare with
    #[arg(long, default_value_t = 20)]
    steady: u64,
    /// Calls a second (default: half of what the server does in a closed loop)
    #[arg(long)]
    rate: Option<f64>,
    /// Models of the large store, three versions each; 0 leaves it out
    #[arg(long, default_value_t = 1000)]
    models: usize,
    /// A look, not a measurement: 20 swaps, 50 models
    #[arg(long)]
    quick: bool,
    /// Append the figures to benches/SWAPS.md
    #[arg(long)]
    record: bool,
    /// Another build of the server
    #[arg(long, value_name = "PROGRAM", default_value = env!("CARGO_BIN_EXE_sconce"))]
    server: PathBuf,
    /// The CPU of the server (default: the first that is allowed)
    #[arg(long, value_name = "N")]
    server_cpu: Option<usize>,
    /// The CPU of everything else (default: the next)
    #[arg(long, value_name = "N")]
    generator_cpu: Option<usize>,
    /// Cargo says this to every bench.
    #[arg(long, hide = true, global = true)]
    bench: bool,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What is done instead of measuring.
#[derive(Subcommand)]
enum Role {
    /// Load and swaps to look at, over a copy of a sample model; fails if a call did
    Demo(demo::Args),
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

const QUICK_SWAPS: u64 = 20;
const QUICK_STEADY: u64 = 3;
const QUICK_MODELS: usize = 50;

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    if let Some(Role::Launch { cpus, program, args }) = &args.role {
        process::launch(cpus, program, args)?;
    }
    let cpus = Cpus::choose(args.server_cpu, args.generator_cpu)?;
    process::pin(&[cpus.generator])?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(unless_interrupted(async {
        match &args.role {
            Some(Role::Demo(demo)) => demo::run(demo, &args.server, cpus).await,
            _ => measure(&args, cpus).await,
        }
    }))
}

async fn measure(args: &Args, cpus: Cpus) -> Result<ExitCode> {
    let (swaps, steady, models) = match args.quick {
        true => (QUICK_SWAPS, QUICK_STEADY, QUICK_MODELS.min(args.models)),
        false => (args.swaps, args.steady, args.models),
    };
    let pace = Pace {
        swaps,
        steady: Duration::from_secs(steady),
        period: Duration::from_millis(args.period),
        rate: args.rate,
        rate_max: f64::INFINITY,
    };
    let mut report = Report::new();
    print!("{}", report.head());
    let folder = tempfile::tempdir()?;
    let target = Target::adder(folder.path())?;
    let server = Served::start(&args.server, target.store(), cpus.server, folder.path()).await?;
    let swapping = Swapping::begin(target, &server, &pace).await?;
    report.swaps = Some(swapping.run(&pace).await?);
    drop(server);
    print!("{}", report.swap_text());
    if models > 0 {
        report.stores = store::listings(models)?;
        report.large = Some(store::large(&args.server, models, cpus.server).await?);
        report.bucket = bucket::polled(args.quick).await?;
        print!("{}", report.store_text());
    }
    report.judge();
    print!("{}", report.verdicts.text());
    let json = repository("target/bench/swap.json");
    report.write_json(&json)?;
    println!("\nwritten: {}", json.display());
    if args.record {
        report.record(&repository("benches/SWAPS.md"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A path from the root of the repository.
fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

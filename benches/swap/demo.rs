//! Load and swaps under the eyes of people: a line that lives on a terminal, plain lines elsewhere, and a summary.

use std::{
    io::IsTerminal,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::{MissedTickBehavior, interval_at, sleep_until};

use crate::{
    load::Target,
    open_loop::OpenLoop,
    process::Cpus,
    served::Served,
    swaps::{Pace, Swap, Swapping, Swaps},
};

#[derive(clap::Args)]
pub struct Args {
    /// Of load, in all
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Spread over that time
    #[arg(long, default_value_t = 20)]
    swaps: u64,
    /// A model of model-store whose example is tensors
    #[arg(long, default_value = "momentum-lstm")]
    model: String,
    /// Calls a second (default: half of what the server does in a closed loop, at most 2000)
    #[arg(long)]
    rate: Option<f64>,
}

/// What is shown once a second.
struct View {
    line: ProgressBar,
    is_terminal: bool,
    /// What had been answered at the last look.
    answered: usize,
    looked: Instant,
    shown: u32,
}

const RATE_MAX: f64 = 2000.0;
const LOOK: Duration = Duration::from_secs(1);
/// Where nothing is redrawn, a line for every so many looks.
const LOOKS_A_LINE: u32 = 5;
/// Of the whole, before the first swap and after the last.
const STEADY_SHARE: u32 = 10;

/// Fails if a call did.
pub async fn run(args: &Args, program: &Path, cpus: Cpus) -> Result<ExitCode> {
    let folder = tempfile::tempdir()?;
    let target = Target::sample(&args.model, folder.path())?;
    let seconds = Duration::from_secs(args.seconds.max(1));
    let steady = seconds / STEADY_SHARE;
    let period = (seconds - 2 * steady) / u32::try_from(args.swaps.max(1))?;
    let pace = Pace { swaps: args.swaps, steady, period, rate: args.rate, rate_max: RATE_MAX };
    println!("{}: starting the server over a copy, and measuring what it can do", args.model);
    let server = Served::start(program, target.store(), cpus.server, folder.path()).await?;
    let swapping = Swapping::begin(target, &server, &pace).await?;
    println!("{:.0} calls a second for {seconds:?}, a new version every {period:.1?}", swapping.rate);
    let swaps = show(swapping, &pace, seconds).await?;
    print!("{}", swaps.text());
    let failed = swaps.failed.len();
    println!("\n{} answered, {failed} failed", swaps.answered);
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Swaps at its pace, and shows what happens meanwhile.
async fn show(mut swapping: Swapping<'_>, pace: &Pace, seconds: Duration) -> Result<Swaps> {
    let begun = tokio::time::Instant::from_std(swapping.load.begun());
    let mut view = View::new()?;
    let mut looks = interval_at(tokio::time::Instant::now() + LOOK, LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut swaps = Vec::new();
    for number in 2..2 + pace.swaps {
        let due = begun + pace.steady + pace.period * u32::try_from(number - 2)?;
        view.until(due, &mut looks, &swapping).await?;
        let swap = swapping.swap(number).await?;
        view.swapped(&swap);
        swaps.push(swap);
    }
    view.until(begun + seconds, &mut looks, &swapping).await?;
    view.line.finish_and_clear();
    // The first second of the load is its warm-up.
    swapping.end(swaps, pace.steady.saturating_sub(LOOK)).await
}

// === impl View ===

impl View {
    fn new() -> Result<Self> {
        let line = ProgressBar::new_spinner().with_style(ProgressStyle::with_template("{spinner} {msg}")?);
        let is_terminal = std::io::stderr().is_terminal();
        Ok(Self { line, is_terminal, answered: 0, looked: Instant::now(), shown: 0 })
    }

    async fn until(
        &mut self,
        due: tokio::time::Instant,
        looks: &mut tokio::time::Interval,
        swapping: &Swapping<'_>,
    ) -> Result<()> {
        loop {
            tokio::select! {
                () = sleep_until(due) => return Ok(()),
                _ = looks.tick() => self.look(&swapping.load, swapping.server)?,
            }
        }
    }

    fn look(&mut self, load: &OpenLoop, server: &Served) -> Result<()> {
        let passed = self.looked.elapsed();
        self.looked = Instant::now();
        let record = load.so_far();
        let latest = &record.answered[self.answered..];
        let mut latencies: Vec<Duration> = latest.iter().map(|sample| sample.latency).collect();
        latencies.sort_unstable();
        let at = |share: f64| latencies.get((latencies.len() as f64 * share) as usize).copied().unwrap_or_default();
        let message = format!(
            "{:>3.0} s  {:>6.0} calls/s  p50 {:>7.1?}  p99 {:>7.1?}  failed {}  version {}  memory {} MiB",
            load.begun().elapsed().as_secs_f64(),
            latest.len() as f64 / passed.as_secs_f64(),
            at(0.5),
            at(0.99),
            record.failed.len(),
            latest.last().map_or_else(|| "-".into(), |sample| Target::version(sample.answer)),
            server.resident_bytes()? >> 20
        );
        self.answered = record.answered.len();
        match self.is_terminal {
            true => {
                self.line.tick();
                self.line.set_message(message);
            }
            false if self.shown.is_multiple_of(LOOKS_A_LINE) => println!("{message}"),
            false => {}
        }
        self.shown += 1;
        Ok(())
    }

    fn swapped(&self, swap: &Swap) {
        let told = format!(
            "      {} complete after {:.0} ms, answers after {:.0} ms, the one before gone after {:.0} ms",
            Target::version(swap.version),
            swap.complete_ms,
            swap.visible_ms,
            swap.old_gone_ms
        );
        self.line.suspend(|| println!("{told}"));
    }
}

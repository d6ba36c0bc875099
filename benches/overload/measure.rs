//! One model from its ease through its overload to its ease again.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result};
use serde::Serialize;
use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    callers::{Callers, Ending},
    models::Case,
    open_loop::{OpenLoop, Record},
    process::{CpuUse, own_cpu},
    served::Served,
};

/// How long.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    pub overload: Duration,
    /// Of ease, before and after, a second of warm-up or recovery aside.
    pub steady: Duration,
    pub capacity: Duration,
}

/// All that it showed.
#[derive(Debug, Serialize)]
pub struct Overload {
    pub name: String,
    pub dear: bool,
    /// Of the library in the overload, and the rows of its batches.
    pub row_us: f64,
    pub batch_rows: f64,
    /// CPU of the server for each call that was sent, whatever came of it, the library left out.
    pub call_us: f64,
    /// Answers a second in a closed loop.
    pub capacity_per_s: f64,
    /// Answers for a second of the server's CPU in the overload over those in the closed loop: what the goodput would be of a CPU that
    /// nobody else uses.
    pub goodput_by_cpu: f64,
    /// Calls a second that were due, and those of them that were sent.
    pub due_per_s: f64,
    pub sent_per_s: f64,
    pub answered_per_s: f64,
    pub accepted: Latency,
    pub refused: Latency,
    /// Of the overload, by reason, and calls whose deadline passed.
    pub refusals: BTreeMap<&'static str, usize>,
    /// Calls of all phases that ended neither with an answer nor with a right refusal.
    pub broken: Vec<String>,
    pub resident_before: u64,
    pub resident_most: u64,
    pub resident_after: u64,
    /// At ease, before, and from a second after the overload on.
    pub before: Latency,
    pub after: Latency,
    /// The last call that was refused was due so long after the end of the overload.
    pub last_refusal_ms: f64,
    /// Calls that were due from a second after it on and not answered.
    pub refused_after: usize,
    /// What the server's gauges hold at the end.
    pub queue_rows: f64,
    pub in_flight: f64,
    /// Shares of the overload in which they were ready and had no CPU, and the generator's use of its own.
    pub server_waited: f64,
    pub generator_waited: f64,
    pub generator_busy: f64,
}

/// From when a call was due to how it ended.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Latency {
    pub p50_ms: f64,
    pub p99_ms: f64,
}

/// Of rows and runs so far.
struct Work {
    seconds: f64,
    runs: f64,
    rows: f64,
}

/// Calls due for each that can be answered.
const OVERLOAD: f64 = 3.0;
const EASE: f64 = 0.25;
/// Of a load's begin, and of what is left over from the overload: "normal within a second".
const SECOND: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(100);

/// The three loads, one right after the other.
struct Loads {
    before: Record<Ending>,
    flood: Record<Ending>,
    after: Record<Ending>,
    resident_most: u64,
    /// Of the server, of the generator and of the library, in the overload.
    cpu: (CpuUse, CpuUse),
    work: Work,
}

pub async fn overload(server: &Served, case: &Case, times: Times, told: impl Fn(&str)) -> Result<Overload> {
    let callers = Callers::connect(server.grpc(), case).await?;
    told("capacity");
    callers.capacity(SECOND).await?;
    let cpu = server.running.cpu()?;
    let capacity_per_s = callers.capacity(times.capacity).await?;
    let capacity_cpu = share(server.running.cpu()?.since(cpu).ran, times.capacity);
    let resident_before = server.resident_bytes()?;
    let loads = Loads::run(&callers, server, case, capacity_per_s, times, told).await?;
    let metrics = server.metrics()?;

    let Loads { before, flood, after, resident_most, cpu, work } = loads;
    let whole = (SECOND, times.overload);
    let per_s = |such: fn(&Ending) -> bool| {
        let due = flood.answered.iter().filter(|sample| sample.due >= whole.0 && sample.due < whole.1);
        due.filter(|sample| such(&sample.answer)).count() as f64 / (whole.1 - whole.0).as_secs_f64()
    };
    let late = after.answered.iter().filter(|sample| sample.answer != Ending::Answered);
    let since = |record: &Record<Ending>| Latency::of(record, (SECOND, SECOND + times.steady), is_answered);
    Ok(Overload {
        name: case.name.into(),
        dear: case.dear,
        row_us: work.seconds * 1e6 / work.rows,
        batch_rows: work.rows / work.runs,
        call_us: (cpu.0.ran.as_secs_f64() - work.seconds) * 1e6 / sent(&flood) as f64,
        capacity_per_s,
        goodput_by_cpu: per_s(is_answered) / share(cpu.0.ran, times.overload) * capacity_cpu / capacity_per_s,
        due_per_s: capacity_per_s * OVERLOAD,
        sent_per_s: per_s(|ending| *ending != Ending::Unsent),
        answered_per_s: per_s(is_answered),
        accepted: Latency::of(&flood, whole, is_answered),
        refused: Latency::of(&flood, whole, Ending::is_refused),
        refusals: refusals(&flood),
        resident_before,
        resident_most,
        resident_after: server.resident_bytes()?,
        before: since(&before),
        after: since(&after),
        last_refusal_ms: late.clone().map(|sample| sample.due).max().unwrap_or_default().as_secs_f64() * 1e3,
        refused_after: late.filter(|sample| sample.due >= SECOND).count(),
        queue_rows: sum(&metrics, "sconce_queue_rows", case.model),
        in_flight: value(&metrics, "sconce_requests_in_flight").unwrap_or(f64::NAN),
        server_waited: share(cpu.0.waited, times.overload),
        generator_waited: share(cpu.1.waited, times.overload),
        generator_busy: share(cpu.1.ran, times.overload),
        broken: [before.failed, flood.failed, after.failed].concat(),
    })
}

// === impl Loads ===

impl Loads {
    async fn run(
        callers: &Callers,
        server: &Served,
        case: &Case,
        capacity: f64,
        times: Times,
        told: impl Fn(&str),
    ) -> Result<Self> {
        let load = |rate| {
            let callers = callers.clone();
            OpenLoop::begin(rate, move |number| callers.clone().ask(number)).context("a load cannot begin")
        };
        told("at ease");
        let before = load(capacity * EASE)?;
        sleep(SECOND + times.steady).await;
        let before = before.end().await;

        told("three times the capacity");
        let (work, server_cpu, own) = (Work::of(server, case)?, server.running.cpu()?, own_cpu()?);
        let flood = load(capacity * OVERLOAD)?;
        let ends = Instant::now() + times.overload;
        let mut resident_most = 0;
        while Instant::now() < ends {
            sleep_until(ends.min(Instant::now() + LOOK)).await;
            resident_most = resident_most.max(server.resident_bytes()?);
        }
        let cpu = (server.running.cpu()?.since(server_cpu), own_cpu()?.since(own));
        // It sends no more from here on; what is under way ends beside the load that follows.
        let flood = tokio::spawn(flood.end());
        tokio::task::yield_now().await;
        let work = Work::of(server, case)?.since(&work);

        told("at ease again");
        let after = load(capacity * EASE)?;
        sleep(SECOND + times.steady).await;
        let after = after.end().await;
        Ok(Self { before, flood: flood.await?, after, resident_most, cpu, work })
    }
}

fn share(time: Duration, of: Duration) -> f64 {
    time.as_secs_f64() / of.as_secs_f64()
}

fn is_answered(ending: &Ending) -> bool {
    *ending == Ending::Answered
}

fn sent(record: &Record<Ending>) -> usize {
    record.answered.iter().filter(|sample| sample.answer != Ending::Unsent).count()
}

fn refusals(record: &Record<Ending>) -> BTreeMap<&'static str, usize> {
    let mut refusals = BTreeMap::new();
    for sample in &record.answered {
        let how = match sample.answer {
            Ending::Refused(reason) => reason,
            Ending::Expired => "DEADLINE_EXCEEDED",
            Ending::Answered | Ending::Unsent => continue,
        };
        *refusals.entry(how).or_default() += 1;
    }
    refusals
}

// === impl Latency ===

impl Latency {
    fn of(record: &Record<Ending>, window: (Duration, Duration), such: fn(&Ending) -> bool) -> Self {
        let ms = |share| {
            let latency = record.quantile_of(share, &[window], such);
            latency.map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e3)
        };
        Self { p50_ms: ms(0.5), p99_ms: ms(0.99) }
    }
}

// === impl Work ===

impl Work {
    fn of(server: &Served, case: &Case) -> Result<Self> {
        let metrics = server.metrics()?;
        let sum = |name| sum(&metrics, name, case.model);
        Ok(Self {
            seconds: sum("sconce_compute_duration_seconds_sum"),
            runs: sum("sconce_batch_rows_count"),
            rows: sum("sconce_batch_rows_sum"),
        })
    }

    fn since(&self, before: &Self) -> Self {
        Self { seconds: self.seconds - before.seconds, runs: self.runs - before.runs, rows: self.rows - before.rows }
    }
}

/// The sum of a metric over the versions of a model.
fn sum(metrics: &str, name: &str, model: &str) -> f64 {
    let of_model = format!("model=\"{model}\"");
    let samples = metrics.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('{')?.split_once('}'));
    let values = samples.filter(|(labels, _)| labels.contains(&of_model));
    values.filter_map(|(_, value)| value.split_ascii_whitespace().next()?.parse::<f64>().ok()).sum()
}

/// A metric without labels.
fn value(metrics: &str, name: &str) -> Option<f64> {
    metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

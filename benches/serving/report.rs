//! What was measured, as a table, as JSON, and as a dated section of RESULTS.md.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    path::Path,
    time::SystemTime,
};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::{
    both::Both,
    cases::{MLP, TINY, UNBATCHED},
    floors::LibraryFloor,
    generator::{Load, Measured, TURNS},
    kept::KeptReport,
    machine::{Machine, commit},
    open::Half,
    process::Cpus,
    shadow::ShadowReport,
    verdicts::Verdicts,
};

/// One run of the bench.
#[derive(Debug, Serialize)]
pub struct Report {
    pub when: String,
    pub commit: String,
    pub machine: Machine,
    pub cpus: Cpus,
    pub seconds_a_cell: f64,
    /// Ascending; empty where it was not measured.
    pub startup_ms: Vec<f64>,
    pub cases: Vec<CaseReport>,
    pub half: Vec<Half>,
    pub both: Vec<Both>,
    /// What kept answers are worth; `None` where it was not measured.
    pub kept: Option<KeptReport>,
    /// What a shadow costs callers; `None` where it was not measured.
    pub shadow: Option<ShadowReport>,
    pub verdicts: Verdicts,
}

/// One model, called in one way.
#[derive(Debug, Serialize)]
pub struct CaseReport {
    pub name: String,
    pub request_bytes: usize,
    pub answer_bytes: usize,
    pub library: LibraryFloor,
    pub cells: Vec<Cell>,
}

/// One load: the echo and the server, one right after the other.
#[derive(Debug, Serialize)]
pub struct Cell {
    pub load: Load,
    pub echo: Measured,
    pub server: Option<Served>,
}

/// The server, and its ratios to the floors.
#[derive(Debug, Serialize)]
pub struct Served {
    #[serde(flatten)]
    pub measured: Measured,
    /// Mean rows of a run of the backend.
    pub batch_rows: f64,
    /// The library's microseconds a row at that batch.
    pub library_us: f64,
    /// CPU a request over echo's and the library's together.
    pub cpu_ratio: f64,
    pub p99_ratio: f64,
    pub throughput_ratio: f64,
}

const CPU_RATIO_MAX: f64 = 1.3;
/// Times of the echo's p99, by the requests in flight.
const P99_RATIO_MAX: [(usize, f64); 2] = [(8, 2.0), (64, 1.5)];
/// Of the echo's requests a second, the tiny model 64 in flight.
const THROUGHPUT_MIN: f64 = 0.7;
/// Of what a core could do at best with a model whose batches are its work.
const POSSIBLE_MIN: f64 = 0.9;
/// Requests a second of the perceptron on both CPUs, where the bare echo does so many (SPEED's run).
const BOTH_PER_S: f64 = 38_000.0;
const BOTH_ECHO_PER_S: f64 = 117_600.0;
/// Of 8 connections' requests a second, over one.
const ONE_CONNECTION_MIN: f64 = 0.9;
const TAIL_RATIO_MAX: f64 = 1.3;
/// One request in flight, with batching over without.
const BATCHING_COST_MAX: f64 = 1.05;
const STARTUP_MS_MAX: f64 = 1000.0;
/// From here on a thread counts as the bottleneck.
const BUSY: f64 = 0.95;
/// From here on something else was running on the bench's CPUs, and the cell is no measurement.
const DISTURBED: f64 = 0.05;

// === impl Served ===

impl Served {
    pub fn new(measured: Measured, echo: &Measured, batch_rows: f64, library: &LibraryFloor) -> Self {
        let library_us = library.row_us(batch_rows);
        Self {
            cpu_ratio: measured.cpu_us / (echo.cpu_us + library_us),
            p99_ratio: measured.p99_us / echo.p99_us,
            throughput_ratio: measured.requests_per_s / echo.requests_per_s,
            measured,
            batch_rows,
            library_us,
        }
    }
}

// === impl Report ===

impl Report {
    pub fn new(cpus: Cpus, seconds_a_cell: f64) -> Self {
        Self {
            when: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            commit: commit(),
            machine: Machine::look(),
            cpus,
            seconds_a_cell,
            startup_ms: Vec::new(),
            cases: Vec::new(),
            half: Vec::new(),
            both: Vec::new(),
            kept: None,
            shadow: None,
            verdicts: Verdicts::default(),
        }
    }

    /// Holds what was measured against the targets.
    pub fn judge(&mut self) {
        let mut verdicts = Verdicts::default();
        if let Some(&slowest) = self.startup_ms.last() {
            verdicts.at_most("startup with an empty store, ms", "startup", slowest, STARTUP_MS_MAX);
        }
        for case in &self.cases {
            case.judge(&mut verdicts);
        }
        if let (Some(on), Some(off)) = (self.alone(TINY), self.alone(UNBATCHED)) {
            verdicts.at_most(
                "CPU with batching / without",
                "tiny ONNX, 1 in flight over 1",
                on / off,
                BATCHING_COST_MAX,
            );
        }
        if let Some(shadow) = &self.shadow {
            let place = "early-signal, a quarter of capacity";
            verdicts.at_most("p99 with a shadow at 10 % / worst p99 without", place, shadow.beyond_noise(), 1.0);
        }
        for half in &self.half {
            let place = format!("{}, half of capacity", half.name);
            verdicts.at_most("p99/p50 / echo's p99/p50", &place, half.tail_ratio(), TAIL_RATIO_MAX);
        }
        for both in &self.both {
            let place = format!("{}, both CPUs", both.name);
            let one = both.one_per_s() / both.eight_per_s();
            verdicts.at_least("req/s over 1 connection / over 8", &place, one, ONE_CONNECTION_MIN);
            if both.name == MLP {
                let wanted = BOTH_PER_S * both.echo_per_s[0] / BOTH_ECHO_PER_S;
                verdicts.at_least("req/s", &place, both.eight_per_s(), wanted);
            }
        }
        self.verdicts = verdicts;
    }

    /// CPU a request with one in flight.
    fn alone(&self, name: &str) -> Option<f64> {
        let case = self.cases.iter().find(|case| case.name == name)?;
        let cell = case.cells.iter().find(|cell| cell.load.in_flight == 1)?;
        Some(cell.server.as_ref()?.measured.cpu_us)
    }

    /// Where it was measured, and the startup.
    pub fn head(&self) -> String {
        let Machine { processor, kernel } = &self.machine;
        let seconds = self.seconds_a_cell;
        let mut head = format!("{processor}, {kernel}, commit {}, {seconds} s a cell in {TURNS} turns\n", self.commit);
        if let Some(slowest) = self.startup_ms.last() {
            let median = self.startup_ms[self.startup_ms.len() / 2];
            head += &format!("\nStartup with an empty store: {median:.0} ms (median), {slowest:.0} ms (slowest)\n");
        }
        head
    }

    /// Everything as Markdown, which reads well on a terminal too.
    pub fn text(&self) -> String {
        let mut text = self.head();
        for case in &self.cases {
            text += &format!("\n{}\n", case.heading());
            text += &format!("\n{HEAD}\n");
            for cell in &case.cells {
                text += &format!("{}\n", cell.row());
            }
        }
        text.extend(self.half.iter().map(Half::text));
        text.extend(self.both.iter().map(Both::text));
        text += &self.kept.as_ref().map(KeptReport::text).unwrap_or_default();
        text += &self.shadow.as_ref().map(ShadowReport::text).unwrap_or_default();
        text + &self.verdicts.text()
    }

    pub fn write_json(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
    }

    /// Appends this run to the record that people keep.
    pub fn record(&self, file: &Path) -> Result<()> {
        let mut record = OpenOptions::new().append(true).open(file)?;
        write!(record, "\n## {}\n\n{}", self.when, self.text())?;
        Ok(())
    }
}

// === impl CaseReport ===

impl CaseReport {
    fn judge(&self, verdicts: &mut Verdicts) {
        for cell in &self.cells {
            let Some(server) = &cell.server else { continue };
            let (place, in_flight) = (format!("{}, {}", self.name, cell.load), cell.load.in_flight);
            verdicts.at_most("CPU a request / (echo + library)", &place, server.cpu_ratio, CPU_RATIO_MAX);
            let p99 = P99_RATIO_MAX.iter().find(|(at, _)| *at == in_flight).filter(|_| self.name != MLP);
            if let Some((_, limit)) = p99 {
                verdicts.at_most("p99 / echo's p99", &place, server.p99_ratio, *limit);
            }
            if self.name == TINY && in_flight == 64 {
                verdicts.at_least("req/s / echo's req/s", &place, server.throughput_ratio, THROUGHPUT_MIN);
            }
            if self.name == MLP {
                let possible = 1e6 / (cell.echo.cpu_us + self.library.best_row_us());
                verdicts.at_least("req/s / at best", &place, server.measured.requests_per_s / possible, POSSIBLE_MIN);
            }
        }
    }

    pub fn heading(&self) -> String {
        let calls = self
            .library
            .calls
            .iter()
            .filter(|(rows, _)| matches!(rows, 1 | 8 | 32))
            .map(|&(rows, us)| format!("{:.2} a row in a call of {rows}", us / rows as f64));
        format!(
            "{}: {} bytes there, {} back; the library alone, µs: {}",
            self.name,
            self.request_bytes,
            self.answer_bytes,
            calls.collect::<Vec<_>>().join(", ")
        )
    }
}

// === impl Cell ===

pub const HEAD: &str = "\
| in flight | conn. | echo req/s |  CPU µs | p50 µs | p99 µs | server req/s |  CPU µs | p50 µs | p99 µs | batch | library µs | CPU ratio | p99 ratio | req/s ratio | note           |
|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|";

impl Cell {
    pub fn row(&self) -> String {
        let Load { in_flight, connections } = self.load;
        let Measured { requests_per_s, cpu_us, p50_us, p99_us, .. } = &self.echo;
        let echo = format!(
            "{in_flight:>9} | {connections:>5} | {requests_per_s:>10.0} | {cpu_us:>7.2} | {p50_us:>6.0} | {p99_us:>6.0}"
        );
        let Some(server) = &self.server else {
            return format!(
                "| {echo} | {:>12} |         |        |        |       |            |           |           |             | {:14} |",
                "",
                note(&self.echo)
            );
        };
        let Measured { requests_per_s, cpu_us, p50_us, p99_us, .. } = &server.measured;
        let Served { batch_rows, library_us, cpu_ratio, p99_ratio, throughput_ratio, .. } = server;
        format!(
            "| {echo} | {requests_per_s:>12.0} | {cpu_us:>7.2} | {p50_us:>6.0} | {p99_us:>6.0} | {batch_rows:>5.1} | {library_us:>10.2} \
             | {cpu_ratio:>9.2} | {p99_ratio:>9.2} | {throughput_ratio:>11.2} | {:14} |",
            note(&server.measured)
        )
    }
}

/// Which side's CPU was full, or that others took it.
fn note(measured: &Measured) -> &'static str {
    let waited = measured.server_waited.max(measured.generator_waited);
    match (measured.server_busy >= BUSY, measured.generator_busy >= BUSY) {
        _ if waited >= DISTURBED => "disturbed",
        (true, true) => "both full",
        (true, false) => "server full",
        (false, true) => "generator full",
        (false, false) => "",
    }
}

// === impl Load ===

impl std::fmt::Display for Load {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} in flight over {}", self.in_flight, self.connections)
    }
}

//! What was measured, as tables, as JSON, and as a dated section of OVERLOAD.md.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    path::Path,
    time::SystemTime,
};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::{
    machine::{Machine, commit},
    measure::Overload,
    process::Cpus,
    verdicts::Verdicts,
};

/// One run of the bench.
#[derive(Debug, Serialize)]
pub struct Report {
    when: String,
    commit: String,
    machine: Machine,
    cpus: Cpus,
    seconds: f64,
    pub models: Vec<Overload>,
    verdicts: Verdicts,
}

const GOODPUT_MIN: f64 = 0.9;
/// `batching.queue_timeout`, where nothing is said.
const ACCEPTED_P99_MS_MAX: f64 = 1000.0;
const REFUSED_P99_MS_MAX: f64 = 50.0;
const GROWTH_MIB_MAX: f64 = 256.0;
const P99_RATIO_MAX: f64 = 2.0;
/// From here on something else was running on the bench's CPUs, and it is no measurement.
const DISTURBED: f64 = 0.05;
const BROKEN_SHOWN: usize = 3;

// === impl Report ===

impl Report {
    pub fn new(cpus: Cpus, seconds: f64) -> Self {
        Self {
            when: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            commit: commit(),
            machine: Machine::look(),
            cpus,
            seconds,
            models: Vec::new(),
            verdicts: Verdicts::default(),
        }
    }

    /// Holds what was measured against the promises.
    pub fn judge(&mut self) {
        self.verdicts = Verdicts::default();
        for model in &self.models {
            model.judge(&mut self.verdicts);
        }
    }

    pub fn head(&self) -> String {
        let Machine { processor, kernel } = &self.machine;
        format!("{processor}, {kernel}, commit {}, {} s of overload a model\n", self.commit, self.seconds)
    }

    /// Everything as Markdown, which reads well on a terminal too.
    pub fn text(&self) -> String {
        let tables: [fn(&Overload) -> String; 2] = [Overload::load_row, Overload::ease_row];
        let mut text = self.head();
        for (head, row) in [LOAD_HEAD, EASE_HEAD].into_iter().zip(tables) {
            text += &format!("\n{head}\n");
            text += &self.models.iter().map(row).collect::<String>();
        }
        text + &self.models.iter().map(Overload::notes).collect::<String>() + &self.verdicts.text()
    }

    pub fn write_json(&self, file: &Path) -> Result<()> {
        fs::create_dir_all(file.parent().context("a file in a folder")?)?;
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

// === impl Overload ===

const LOAD_HEAD: &str = "\
| model     | µs a row | batch | µs a call | capacity/s |  due/s | sent/s | answered/s | of capacity | by CPU | p50 ms | p99 ms | refusals p50 ms | p99 ms |
|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|";

const EASE_HEAD: &str = "\
| model     | at ease: p99 ms before | after | last refusal ms after | refused later | MiB before | most | after | queue | in flight |
|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|";

impl Overload {
    fn goodput(&self) -> f64 {
        self.answered_per_s / self.capacity_per_s
    }

    fn judge(&self, verdicts: &mut Verdicts) {
        let mut at_most = |promise, value: f64, limit: f64| verdicts.at_most(promise, &self.name, value, limit);
        at_most("calls that ended otherwise than answered or refused", self.broken.len() as f64, 0.0);
        at_most("p99 of accepted calls, ms", self.accepted.p99_ms, ACCEPTED_P99_MS_MAX);
        at_most(
            "memory that the overload takes, MiB",
            mib(self.resident_most) - mib(self.resident_before),
            GROWTH_MIB_MAX,
        );
        at_most("calls not answered from 1 s after it on", self.refused_after as f64, 0.0);
        at_most("p99 from 1 s after it on / p99 before it", self.after.p99_ms / self.before.p99_ms, P99_RATIO_MAX);
        at_most("calls that the server still counts at the end", self.queue_rows + self.in_flight, 0.0);
        if self.dear {
            at_most("p99 of refusals, ms", self.refused.p99_ms, REFUSED_P99_MS_MAX);
            verdicts.at_least("goodput / capacity", &self.name, self.goodput(), GOODPUT_MIN);
        }
    }

    fn load_row(&self) -> String {
        let Self { name, row_us, batch_rows, call_us, capacity_per_s, due_per_s, sent_per_s, answered_per_s, .. } =
            self;
        let (goodput, by_cpu) = (self.goodput(), self.goodput_by_cpu);
        let (accepted, refused) = (&self.accepted, &self.refused);
        format!(
            "| {name:9} | {row_us:>8.1} | {batch_rows:>5.1} | {call_us:>9.1} | {capacity_per_s:>10.0} | {due_per_s:>6.0} | {sent_per_s:>6.0} \
             | {answered_per_s:>10.0} | {goodput:>11.2} | {by_cpu:>6.2} | {:>6.1} | {:>6.1} | {:>15.1} | {:>6.1} |\n",
            accepted.p50_ms, accepted.p99_ms, refused.p50_ms, refused.p99_ms
        )
    }

    fn ease_row(&self) -> String {
        let Self { name, before, after, last_refusal_ms, refused_after, queue_rows, in_flight, .. } = self;
        let [less, most, left] = [self.resident_before, self.resident_most, self.resident_after].map(mib);
        format!(
            "| {name:9} | {:>22.2} | {:>5.2} | {last_refusal_ms:>21.0} | {refused_after:>13} | {less:>10.0} | {most:>4.0} \
             | {left:>5.0} | {queue_rows:>5} | {in_flight:>9} |\n",
            before.p99_ms, after.p99_ms
        )
    }

    /// Who refused, what was wrong, and whether it was a measurement.
    fn notes(&self) -> String {
        let refusals = self.refusals.iter().map(|(reason, count)| format!("{count} {reason}"));
        let mut notes = format!("\n{}: not answered {}", self.name, refusals.collect::<Vec<_>>().join(", "));
        if self.server_waited.max(self.generator_waited) >= DISTURBED {
            notes += &format!(
                "; disturbed: the server had to wait for its CPU for {:.0} % of the time, the generator for {:.0} %",
                100.0 * self.server_waited,
                100.0 * self.generator_waited
            );
        }
        notes += &format!("; the generator used {:.0} % of its CPU\n", 100.0 * self.generator_busy);
        for why in self.broken.iter().take(BROKEN_SHOWN) {
            notes += &format!("  {why}\n");
        }
        notes
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

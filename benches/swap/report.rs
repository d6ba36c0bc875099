//! What was measured, as tables, as JSON, and as a dated section of SWAPS.md.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    path::Path,
    time::SystemTime,
};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::{
    bucket::Polled,
    machine::{Machine, commit},
    store::{Large, Listing},
    swaps::{Swap, Swaps},
    verdicts::Verdicts,
};

/// One run of the bench.
#[derive(Debug, Serialize)]
pub struct Report {
    when: String,
    commit: String,
    machine: Machine,
    pub swaps: Option<Swaps>,
    pub stores: Vec<Listing>,
    pub large: Option<Large>,
    /// Where an S3 server can be had.
    pub bucket: Option<Polled>,
    pub verdicts: Verdicts,
}

const P99_RATIO_MAX: f64 = 1.5;
/// From complete to the first answer: the second of the promise, and the warm-up of models this small.
const VISIBLE_MS_MAX: f64 = 1200.0;
const START_S_MAX: f64 = 10.0;
const IDLE_PERCENT_MAX: f64 = 1.0;
/// From here on something else was running on the bench's CPUs, and it is no measurement.
const DISTURBED: f64 = 0.05;

// === impl Report ===

impl Report {
    pub fn new() -> Self {
        Self {
            when: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            commit: commit(),
            machine: Machine::look(),
            swaps: None,
            stores: Vec::new(),
            large: None,
            bucket: None,
            verdicts: Verdicts::default(),
        }
    }

    /// Holds what was measured against the promises.
    pub fn judge(&mut self) {
        let mut verdicts = Verdicts::default();
        let mut judge =
            |promise: &str, place: &str, value: f64, limit: f64| verdicts.at_most(promise, place, value, limit);
        if let Some(swaps) = &self.swaps {
            let visible = Spread::of(swaps.swaps.iter().map(Swap::visible_after_ms));
            judge("failed calls", "swaps", swaps.failed.len() as f64, 0.0);
            judge("visible after complete, the slowest, ms", "swaps", visible.worst, VISIBLE_MS_MAX);
            let (before, meanwhile) = swaps.p99_of_pieces();
            judge(
                "p99 of a swap / of as long before, median",
                "swaps",
                meanwhile.median / before.median,
                P99_RATIO_MAX,
            );
            judge("the same, nine of ten", "swaps", meanwhile.nine_of_ten / before.nine_of_ten, P99_RATIO_MAX);
        }
        if let Some(large) = &self.large {
            let place = format!("{} models", large.models);
            judge("start, s", &place, large.start_s, START_S_MAX);
            judge("idle, % of a CPU", &place, large.idle_percent, IDLE_PERCENT_MAX);
        }
        self.verdicts = verdicts;
    }

    pub fn head(&self) -> String {
        let Machine { processor, kernel } = &self.machine;
        format!("{processor}, {kernel}, commit {}\n", self.commit)
    }

    pub fn swap_text(&self) -> String {
        self.swaps.as_ref().map_or_else(String::new, Swaps::text)
    }

    pub fn store_text(&self) -> String {
        let mut text =
            "\n| models, three versions each | first look ms | a look that finds nothing new ms |\n|--:|--:|--:|\n"
                .to_owned();
        for Listing { models, first_ms, again_ms } in &self.stores {
            text += &format!("| {models:>28} | {first_ms:>13.1} | {again_ms:>32.2} |\n");
        }
        if let Some(Large { models, start_s, resident_bytes, idle_percent }) = &self.large {
            text += &format!(
                "\nA start with {models} models on one CPU, nothing remembered: {start_s:.1} s; then {} MiB, and {idle_percent:.1} % of \
                 that CPU with nothing to do\n",
                resident_bytes >> 20
            );
        }
        text + &self
            .bucket
            .as_ref()
            .map_or_else(|| "\nNo S3 server here: buckets are not measured\n".to_owned(), Polled::text)
    }

    pub fn write_json(&self, file: &Path) -> Result<()> {
        fs::create_dir_all(file.parent().context("a file in a folder")?)?;
        let text = serde_json::to_string_pretty(self)?;
        fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
    }

    /// Appends this run to the record that people keep.
    pub fn record(&self, file: &Path) -> Result<()> {
        let mut record = OpenOptions::new().append(true).open(file)?;
        let (head, swaps, stores) = (self.head(), self.swap_text(), self.store_text());
        write!(record, "\n## {}\n\n{head}{swaps}{stores}{}", self.when, self.verdicts.text())?;
        Ok(())
    }
}

type Figure = fn(&Swap) -> f64;

/// Of one figure over all swaps, or pieces of time.
struct Spread {
    median: f64,
    nine_of_ten: f64,
    worst: f64,
}

// === impl Spread ===

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let at = |place: usize| values.get(place).copied().unwrap_or(f64::NAN);
        let last = values.len().saturating_sub(1);
        Self { median: at(values.len() / 2), nine_of_ten: at(last * 9 / 10), worst: at(last) }
    }
}

// === impl Swaps ===

impl Swaps {
    /// Before the first swap, and of the swaps.
    fn p99_of_pieces(&self) -> (Spread, Spread) {
        let before = self.steady_pieces_p99_us.iter().copied();
        (Spread::of(before), Spread::of(self.swaps.iter().map(|swap| swap.p99_us)))
    }

    /// As Markdown, which reads well on a terminal too.
    pub fn text(&self) -> String {
        let mut text = format!(
            "\n{} swaps under {:.0} calls a second ({:.0} in a closed loop): {} answered, {} failed\n",
            self.swaps.len(),
            self.rate_per_s,
            self.capacity_per_s,
            self.answered,
            self.failed.len()
        );
        for why in self.failed.iter().take(3) {
            text += &format!("  {why}\n");
        }
        text += "\n| one swap              |   median | nine of ten |    worst |\n|---|--:|--:|--:|\n";
        let row = |name: &str, Spread { median, nine_of_ten, worst }: Spread| {
            format!("| {name:21} | {median:>8.1} | {nine_of_ten:>11.1} | {worst:>8.1} |\n")
        };
        let figures: [(&str, Figure); 6] = [
            ("copied, ms", |swap| swap.copied_ms),
            ("complete, ms", |swap| swap.complete_ms),
            ("visible, ms", |swap| swap.visible_ms),
            ("the old one gone, ms", |swap| swap.old_gone_ms),
            ("p50 meanwhile, µs", |swap| swap.p50_us),
            ("p99 meanwhile, µs", |swap| swap.p99_us),
        ];
        for (name, figure) in figures {
            text += &row(name, Spread::of(self.swaps.iter().map(figure)));
        }
        text += &row("p99 before, µs", self.p99_of_pieces().0);
        text += &format!(
            "\n| all calls             | p50 µs | p99 µs |\n|---|--:|--:|\n| before the first swap | {:>6.0} | {:>6.0} |\n\
             | while swapping        | {:>6.0} | {:>6.0} |\n",
            self.steady_p50_us, self.steady_p99_us, self.swap_p50_us, self.swap_p99_us
        );
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let after =
            |count: usize| self.swaps.get(count.wrapping_sub(1)).map_or(f64::NAN, |swap| mib(swap.resident_bytes));
        let (half, all) = (self.swaps.len() / 2, self.swaps.len());
        text += &format!(
            "\nResident memory: {:.0} MiB before, {:.0} MiB after {half} swaps, {:.0} MiB after {all}\n",
            mib(self.resident_before),
            after(half),
            after(all)
        );
        if self.server_waited.max(self.generator_waited) >= DISTURBED {
            text += &format!(
                "\nDisturbed: the server had to wait for its CPU for {:.0} % of the time, the generator for {:.0} %\n",
                100.0 * self.server_waited,
                100.0 * self.generator_waited
            );
        }
        text
    }
}

//! What was measured, for people and for scripts. Pure.

use std::{fmt, fmt::Write as _};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::{
    data::Kind,
    generator::{Load, Measured, Pace},
    messages::Protocol,
    schedule::Arrivals,
};
use crate::{cli::table::table, telemetry::logs::escape};

#[derive(Serialize)]
pub struct Report {
    #[serde(flatten)]
    pub about: About,
    pub loads: Vec<Cell>,
    pub interrupted: bool,
}

/// What all loads have in common.
#[derive(Serialize)]
pub struct About {
    pub model: String,
    /// That answered the first call.
    pub version: String,
    pub server: String,
    pub protocol: Protocol,
    pub data: Kind,
    pub source: String,
    /// Of one request; `null` where an example is sent whole.
    pub rows: Option<u32>,
    /// How many different ones are sent in turn, and their mean length.
    pub requests: usize,
    pub request_bytes: usize,
    pub threads: u32,
    pub duration_s: f64,
    pub warm_up_s: f64,
    pub timeout_s: f64,
}

/// What one load showed.
#[derive(Serialize)]
pub struct Cell {
    #[serde(skip)]
    name: String,
    /// Of a closed loop.
    #[serde(skip_serializing_if = "Option::is_none")]
    in_flight: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none", flatten)]
    open: Option<Open>,
    connections: usize,
    /// That were measured.
    seconds: f64,
    sent: u64,
    answered: u64,
    failed: u64,
    /// Sent, and neither answered nor failed when it was interrupted.
    unanswered: u64,
    degraded: u64,
    answered_per_s: f64,
    rows_per_s: Option<f64>,
    latency_us: Option<Latency>,
    failures: Vec<Failed>,
    /// What the answers say of the server's own time; `null` where they say nothing.
    in_server: Option<InServer>,
    generator_busy: f64,
    /// Its figures are not the server's.
    generator_late: bool,
}

/// What only an open loop has.
#[derive(Serialize)]
struct Open {
    rate_per_s: f64,
    arrivals: &'static str,
    /// Calls that were really sent.
    achieved_per_s: f64,
    dropped: u64,
    unsent: u64,
    /// From when a call was due to when the generator began it.
    late_us: Quantiles,
}

#[derive(Serialize)]
struct Latency {
    mean: f64,
    p50: f64,
    p90: f64,
    p95: f64,
    p99: f64,
    #[serde(rename = "p99.9")]
    p999: f64,
    max: f64,
}

#[derive(Serialize)]
struct InServer {
    queue_us: Quantiles,
    compute_us: Quantiles,
    batch_rows_mean: f64,
}

#[derive(Serialize)]
struct Quantiles {
    p50: f64,
    p99: f64,
    max: f64,
}

#[derive(Serialize)]
struct Failed {
    code: String,
    reason: String,
    count: u64,
    /// What the first one said.
    message: String,
}

/// A generator that is late by less than this is not to blame.
const LATE_NS: u64 = 1_000_000;
/// Nor is one whose lateness is less than this part of the latency.
const LATE_PART: u64 = 10;
const BUSY: f64 = 0.9;

// === impl Report ===

impl Report {
    /// How many calls failed, and how most of them did; `None` where none did.
    pub fn failures(&self) -> Option<String> {
        let failed: u64 = self.loads.iter().map(|cell| cell.failed).sum();
        let sent: u64 = self.loads.iter().map(|cell| cell.sent).sum();
        let most = self.loads.iter().flat_map(|cell| &cell.failures).max_by_key(|failed| failed.count)?;
        Some(format!("{failed} of {sent} calls failed, first of all with {}", escape(&most.text())))
    }

    pub fn text(&self) -> String {
        let mut text = self.about.text() + "\n";
        text += &self.latencies();
        for (heading, rows) in [
            (["THE SCHEDULE", "SENT/S", "DROPPED", "UNSENT", "LATE P50", "P99", "MAX"], self.schedules()),
            (["IN THE SERVER", "QUEUE P50", "P99", "COMPUTE P50", "P99", "BATCH ROWS", "DEGRADED"], self.in_server()),
        ] {
            if !rows.is_empty() {
                text += "\n";
                text += &table(heading, &rows);
            }
        }
        let notes: Vec<String> = self.loads.iter().flat_map(Cell::notes).collect();
        if !notes.is_empty() {
            text += "\n";
        }
        for note in notes {
            text += &(escape(&note) + "\n");
        }
        if self.interrupted {
            text += "\nInterrupted: what was measured until then.\n";
        }
        text
    }

    fn latencies(&self) -> String {
        let headings =
            ["LOAD", "ANSWERED/S", "ANSWERED", "FAILED", "MEAN µs", "P50", "P90", "P95", "P99", "P99.9", "MAX"];
        let rows: Vec<[String; 11]> = self.loads.iter().map(Cell::latencies).collect();
        table(headings, &rows)
    }

    fn schedules(&self) -> Vec<[String; 7]> {
        let row = |cell: &Cell| {
            let open = cell.open.as_ref()?;
            let [p50, p99, max] = open.late_us.texts();
            let sent = format!("{:.1}", open.achieved_per_s);
            Some([cell.name.clone(), sent, open.dropped.to_string(), open.unsent.to_string(), p50, p99, max])
        };
        self.loads.iter().filter_map(row).collect()
    }

    fn in_server(&self) -> Vec<[String; 7]> {
        let row = |cell: &Cell| {
            let server = cell.in_server.as_ref()?;
            let [queue_50, queue_99, _] = server.queue_us.texts();
            let [compute_50, compute_99, _] = server.compute_us.texts();
            let rows = format!("{:.1}", server.batch_rows_mean);
            Some([cell.name.clone(), queue_50, queue_99, compute_50, compute_99, rows, cell.degraded.to_string()])
        };
        self.loads.iter().filter_map(row).collect()
    }
}

// === impl About ===

impl About {
    fn text(&self) -> String {
        let rows = match self.rows {
            None => "an example whole".into(),
            Some(1) => "1 row".into(),
            Some(rows) => format!("{rows} rows"),
        };
        let mut text = String::new();
        let method = self.protocol.method().trim_start_matches('/');
        let _ = writeln!(text, "{} {} at {}, {method}", escape(&self.model), escape(&self.version), self.server);
        let (requests, bytes) = (self.requests, self.request_bytes);
        let source = escape(&self.source);
        let _ = writeln!(text, "{rows} a request, {bytes} bytes, {requests} different: {source}");
        let (duration, warm_up, threads) = (self.duration_s, self.warm_up_s, self.threads);
        let _ = writeln!(text, "{duration} s a load after {warm_up} s of warm-up; threads of the generator: {threads}");
        text
    }
}

// === impl Cell ===

impl Cell {
    pub fn new(load: Load, measured: &Measured, rows: Option<u32>) -> Self {
        let tally = &measured.tally;
        let seconds = measured.time.as_secs_f64();
        let per_s = |count: u64| if seconds > 0.0 { tenth(count as f64 / seconds) } else { 0.0 };
        let answered_per_s = per_s(tally.answered);
        let (in_flight, open) = match load.pace {
            Pace::Closed { in_flight } => (Some(in_flight), None),
            Pace::Open { rate, arrivals } => {
                let open = Open {
                    rate_per_s: rate,
                    arrivals: name_of(arrivals),
                    achieved_per_s: per_s(tally.sent),
                    dropped: tally.dropped,
                    unsent: tally.unsent,
                    late_us: Quantiles::of(&tally.late_ns, 1e3),
                };
                (None, Some(open))
            }
        };
        let failures = tally.failures.iter().map(|((code, reason), failures)| Failed {
            code: code.clone(),
            reason: reason.clone(),
            count: failures.count,
            message: failures.message.clone(),
        });
        Self {
            name: load.to_string(),
            in_flight,
            open,
            connections: load.connections,
            seconds,
            sent: tally.sent,
            answered: tally.answered,
            failed: tally.failed,
            unanswered: tally.sent - tally.answered - tally.failed,
            degraded: tally.degraded,
            answered_per_s,
            rows_per_s: rows.map(|rows| tenth(answered_per_s * f64::from(rows))),
            latency_us: (tally.answered > 0).then(|| Latency::of(&tally.latency_ns)),
            failures: failures.collect(),
            in_server: (tally.batches > 0).then(|| InServer {
                queue_us: Quantiles::of(&tally.queue_us, 1.0),
                compute_us: Quantiles::of(&tally.compute_us, 1.0),
                batch_rows_mean: tenth(tally.batch_rows as f64 / tally.batches as f64),
            }),
            generator_busy: (measured.busy * 100.0).round() / 100.0,
            generator_late: tally.unsent > 0 || is_late(&tally.late_ns, &tally.latency_ns),
        }
    }

    fn latencies(&self) -> [String; 11] {
        let times = match &self.latency_us {
            Some(latency) => {
                let Latency { mean, p50, p90, p95, p99, p999, max } = *latency;
                [mean, p50, p90, p95, p99, p999, max].map(|time| format!("{time:.0}"))
            }
            None => [const { String::new() }; 7],
        };
        let [mean, p50, p90, p95, p99, p999, max] = times;
        let (per_s, answered, failed) = (self.answered_per_s, self.answered.to_string(), self.failed.to_string());
        [self.name.clone(), format!("{per_s:.1}"), answered, failed, mean, p50, p90, p95, p99, p999, max]
    }

    /// What a reader must know of it beside the figures.
    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let name = &self.name;
        for failed in &self.failures {
            notes.push(format!("{name}: {} failed with {}", failed.count, failed.text()));
        }
        if let Some(open) = self.open.as_ref().filter(|open| open.dropped > 0) {
            let dropped = open.dropped;
            notes.push(format!(
                "{name}: {dropped} calls were dropped, because as many as may be waited for an answer (--max-in-flight)"
            ));
        }
        if self.unanswered > 0 {
            notes.push(format!("{name}: {} calls were still without an answer", self.unanswered));
        }
        if self.generator_late {
            notes.push(format!(
                "{name}: the generator was late: its figures are not the server's; try --threads, or less"
            ));
        } else if self.generator_busy > BUSY {
            let busy = self.generator_busy * 100.0;
            notes.push(format!(
                "{name}: the generator was busy {busy:.0} % of the time, the server may do more: try --threads"
            ));
        }
        notes
    }
}

// === impl Failed ===

impl Failed {
    fn text(&self) -> String {
        match self.reason.as_str() {
            "" => format!("{}: {}", self.code, self.message),
            reason => format!("{} ({reason}): {}", self.code, self.message),
        }
    }
}

// === impl Load ===

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pace {
            Pace::Closed { in_flight } => write!(f, "{in_flight} in flight")?,
            Pace::Open { rate, arrivals: Arrivals::Constant } => write!(f, "{rate}/s")?,
            Pace::Open { rate, arrivals: Arrivals::Poisson } => write!(f, "{rate}/s Poisson")?,
        }
        write!(f, " over {}", self.connections)
    }
}

// === impl Latency ===

impl Latency {
    fn of(latency_ns: &Histogram<u64>) -> Self {
        let at = |quantile| us(latency_ns.value_at_quantile(quantile) as f64);
        Self {
            mean: us(latency_ns.mean()),
            p50: at(0.5),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            p999: at(0.999),
            max: us(latency_ns.max() as f64),
        }
    }
}

// === impl Quantiles ===

impl Quantiles {
    /// `unit` is what of it makes a microsecond.
    fn of(times: &Histogram<u64>, unit: f64) -> Self {
        let at = |quantile| tenth(times.value_at_quantile(quantile) as f64 / unit);
        Self { p50: at(0.5), p99: at(0.99), max: tenth(times.max() as f64 / unit) }
    }

    fn texts(&self) -> [String; 3] {
        [self.p50, self.p99, self.max].map(|time| format!("{time:.0}"))
    }
}

/// Late enough to matter: then the latencies are the generator's own.
fn is_late(late_ns: &Histogram<u64>, latency_ns: &Histogram<u64>) -> bool {
    let late = late_ns.value_at_quantile(0.99);
    late >= LATE_NS && late >= latency_ns.value_at_quantile(0.99) / LATE_PART
}

fn name_of(arrivals: Arrivals) -> &'static str {
    match arrivals {
        Arrivals::Constant => "constant",
        Arrivals::Poisson => "poisson",
    }
}

fn us(ns: f64) -> f64 {
    tenth(ns / 1e3)
}

fn tenth(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cli::{
        bench::tally::{Seen, Tally, Timing},
        client::Failure,
    };
    use tonic::Status;

    fn about() -> About {
        About {
            model: "m".into(),
            version: "1.0.0".into(),
            server: "127.0.0.1:7070".into(),
            protocol: Protocol::Sconce,
            data: Kind::Example,
            source: "example 0".into(),
            rows: Some(2),
            requests: 3,
            request_bytes: 99,
            threads: 1,
            duration_s: 2.0,
            warm_up_s: 0.5,
            timeout_s: 10.0,
        }
    }

    fn open(late: Duration) -> Cell {
        let mut tally = Tally::new();
        for micros in 1..=1000 {
            tally.sent_late(late);
            let timing = Some(Timing { queue_us: 5, compute_us: 20, batch_rows: 4 });
            tally.take(Duration::from_micros(micros), Ok(Seen { degraded: false, timing }));
        }
        tally.sent_late(late);
        tally.take(Duration::ZERO, Err(Failure::from(Status::unavailable("full"))));
        tally.dropped = 7;
        let measured = Measured { tally, time: Duration::from_secs(2), busy: 0.5, interrupted: false };
        let pace = Pace::Open { rate: 504.0, arrivals: Arrivals::Poisson };
        Cell::new(Load { pace, connections: 8 }, &measured, Some(2))
    }

    #[test]
    fn scripts_find_every_figure() {
        let json = serde_json::to_value(open(Duration::from_micros(10))).unwrap();
        let is = |pointer: &str, value: serde_json::Value| assert_eq!(json.pointer(pointer), Some(&value), "{pointer}");
        is("/sent", 1001.into());
        is("/answered", 1000.into());
        is("/failed", 1.into());
        is("/dropped", 7.into());
        is("/answered_per_s", 500.0.into());
        is("/rows_per_s", 1000.0.into());
        is("/achieved_per_s", 500.5.into());
        is("/arrivals", "poisson".into());
        is("/failures/0/code", "UNAVAILABLE".into());
        is("/in_server/batch_rows_mean", 4.0.into());
        is("/in_server/queue_us/p99", 5.0.into());
        is("/generator_late", false.into());
        let p99 = json["latency_us"]["p99"].as_f64().unwrap();
        assert!((989.0..992.0).contains(&p99), "{p99}");
        assert_eq!(json.get("in_flight"), None);
    }

    #[test]
    fn people_find_what_matters_and_what_went_wrong() {
        let report = Report { about: about(), loads: vec![open(Duration::from_micros(10))], interrupted: true };
        let text = report.text();
        for words in [
            "m 1.0.0 at 127.0.0.1:7070, sconce.v1.Inference/Predict",
            "2 rows a request, 99 bytes, 3 different: example 0",
            "504/s Poisson over 8",
            "500.5",
            "1 failed with UNAVAILABLE: full",
            "7 calls were dropped",
            "Interrupted",
        ] {
            assert!(text.contains(words), "'{words}' is not in\n{text}");
        }
        assert!(!text.contains("generator was"), "{text}");
        let failures = report.failures().unwrap();
        assert_eq!(failures, "1 of 1001 calls failed, first of all with UNAVAILABLE: full");
    }

    #[test]
    fn a_late_generator_takes_the_blame() {
        let cell = open(Duration::from_millis(2));
        assert!(cell.generator_late);
        let notes = cell.notes().join("\n");
        assert!(notes.contains("the generator was late: its figures are not the server's"), "{notes}");
    }
}

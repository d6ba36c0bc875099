//! `sconce bench`: what a running server answers, how fast, and how it stands a given rate, measured from a caller's side.

mod alarm;
mod data;
mod generator;
mod link;
mod live;
mod loops;
mod messages;
mod report;
mod schedule;
mod tally;
pub mod wire;

use std::{io::Write, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context, anyhow, bail};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use self::{
    data::{Asked, Kind},
    generator::{Job, Load, Pace},
    link::Target,
    live::Live,
    messages::Protocol,
    report::{About, Cell, Report},
    schedule::Arrivals,
    tally::Seen,
};
use super::{
    INTERRUPTED, client, print,
    proto::{self, predict_request::Select},
    stored::ExampleChoice,
};
use crate::{model::units::parse_duration, telemetry::logs::escape};

/// Measure a running server: throughput, latency, and what becomes of a fixed rate of calls
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub struct BenchArgs {
    /// The model's name
    model: String,
    /// The version that answers (default: the model's route decides)
    #[arg(long, conflicts_with = "label")]
    version: Option<String>,
    /// The label of the version that answers
    #[arg(long)]
    label: Option<String>,
    /// The server's inference address
    #[arg(long, value_name = "HOST:PORT", env = "SCONCE_SERVER", default_value = "127.0.0.1:7070")]
    server: String,
    /// The protocol of the calls; an oip server need not be Sconce
    #[arg(long, default_value = "sconce")]
    protocol: Protocol,
    /// Closed loops, one after another: so many callers, each of whom waits for its answer [default: 1,8,64]
    #[arg(long, short, value_name = "CALLERS", value_delimiter = ',', conflicts_with = "rate",
          value_parser = clap::value_parser!(u32).range(1..=16_384))]
    concurrency: Vec<u32>,
    /// Open loops, one after another: so many calls a second, due on a schedule whatever becomes of those before
    #[arg(long, short, value_name = "PER_SECOND", value_delimiter = ',', value_parser = parse_rate)]
    rate: Vec<f64>,
    /// How the calls of an open loop are spread over time
    #[arg(long, default_value = "constant", requires = "rate")]
    arrivals: Arrivals,
    /// Open loop: calls that may wait for an answer at once; one that is due beyond them is dropped, and counted
    #[arg(long, value_name = "CALLS", default_value = "10000", requires = "rate",
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    max_in_flight: u32,
    /// Connections (default: 8, or one for every 100 callers where there are more; never more than callers)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    connections: Option<u32>,
    /// How long each load is measured
    #[arg(long, short, value_name = "TIME", default_value = "10s", value_parser = parse_measured)]
    duration: Duration,
    /// How long each load runs before that
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = parse_duration)]
    warm_up: Duration,
    /// Rows of one request (default: 1)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    rows: Option<u32>,
    /// Send the rows of a .csv or .jsonl file, as `sconce predict` reads them
    #[arg(long, value_name = "FILE", conflicts_with = "example")]
    data: Option<PathBuf>,
    /// Send the model's own example from the store, and fail where it has none (default: random numbers then)
    #[arg(long)]
    example: bool,
    #[command(flatten)]
    choice: ExampleChoice,
    /// How long one call may take; the server is told
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_timeout)]
    timeout: Duration,
    /// Threads of the generator, for a server that is faster than one of them
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=64))]
    threads: u32,
    /// Exit with 0 although calls failed
    #[arg(long)]
    allow_failures: bool,
    /// Print one JSON document instead of tables
    #[arg(long)]
    json: bool,
}

const AFTER_HELP: &str = "\
A closed loop (--concurrency) shows how much the server can do: callers wait for an answer before they ask \
again, so a slow server is asked less. An open loop (--rate) shows what users see: calls are due on a \
schedule and a latency counts from when its call was due, so that a stall is seen with every call that came \
meanwhile, where a closed loop would leave those out (coordinated omission).

Examples:
  sconce bench early-signal                                1, 8 and 64 callers, the model's own example
  sconce bench early-signal --concurrency 64 --rows 8      64 callers, 8 rows a request
  sconce bench early-signal --rate 500,5000 --duration 30s
  sconce bench early-signal --rate 2000 --arrivals poisson --timeout 50ms --allow-failures
  sconce bench early-signal --data rows.csv --json | jq '.loads[] | {in_flight, answered_per_s}'

Latencies are those of calls that were answered; what failed is counted beside them, by code and reason. \
Run the generator on other cores than the server's, or what it takes is missing there. Ctrl-C ends it, with \
what was measured until then.

Exit status: 0 every call was answered, 1 some failed or nothing could be measured, 130 it was interrupted.";

/// How long the calls may take that are made before anything is measured.
const PATIENCE: Duration = Duration::from_secs(30);
const MEASURED_MAX: Duration = Duration::from_secs(3600);
const RATE_MAX: f64 = 1e6;
const CONNECTIONS: usize = 8;
/// A server may refuse more calls at once over one connection; a usual limit is 100.
const CALLERS_A_CONNECTION: usize = 100;

pub fn run(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    let report = client::block_on(measure(args))?;
    print(&match args.json {
        true => serde_json::to_string_pretty(&report)? + "\n",
        false => report.text(),
    })?;
    if report.interrupted {
        return Ok(ExitCode::from(INTERRUPTED));
    }
    if let Some(failures) = report.failures()
        && !args.allow_failures
    {
        bail!("{failures} (--allow-failures exits with 0 all the same)");
    }
    Ok(ExitCode::SUCCESS)
}

async fn measure(args: &BenchArgs) -> anyhow::Result<Report> {
    let asked = data::find(args).await?.raw()?;
    if asked.kind == Kind::Random {
        let _ = writeln!(std::io::stderr(), "note: {}", escape(&asked.source));
    }
    let version = args.first_answer(&asked).await?;
    let (job, about) = args.job(asked, version)?;
    let job = Arc::new(job);
    let mut interrupts = signal(SignalKind::interrupt())?;
    let live = Live::begin();
    let loads = args.loads();
    let mut report = Report { about, loads: Vec::new(), interrupted: false };
    for (place, &load) in loads.iter().enumerate() {
        let name = load.to_string();
        let show = |so_far| live.show(place + 1, loads.len(), &name, &so_far);
        let measured = generator::run(&job, load, &mut interrupts, show).await;
        let measured = measured.inspect_err(|_| live.end())?;
        report.interrupted = measured.interrupted;
        report.loads.push(Cell::new(load, &measured, report.about.rows));
        if report.interrupted {
            break;
        }
    }
    live.end();
    Ok(report)
}

// === impl BenchArgs ===

impl BenchArgs {
    /// The word of the Open Inference Protocol for a version or a label.
    fn selected(&self) -> Option<String> {
        self.version.clone().or(self.label.clone())
    }

    /// A request still without its data.
    fn request(&self) -> proto::PredictRequest {
        let version = self.version.clone().map(Select::Version);
        let select = version.or(self.label.clone().map(Select::Label));
        proto::PredictRequest { model: self.model.clone(), select, ..Default::default() }
    }

    /// One ordinary call, so that what is wrong with all of them is said once, and before anything is measured.
    async fn first_answer(&self, asked: &Asked) -> anyhow::Result<String> {
        let first = asked.requests.first().cloned().context("there is nothing to send: this is a bug")?;
        let answer = self.protocol.ask(&self.server, first).await;
        answer.map_err(|error| match asked.kind {
            // Examples lie by version, and what answers may be another.
            Kind::Example => anyhow!(
                "{error:#}; sent was {}: if another version answers than its own, name that with --version",
                asked.source
            ),
            Kind::File | Kind::Random => error.context(format!("sent were {}", asked.source)),
        })
    }

    /// What all loads have in common, and the same for the reader.
    fn job(&self, asked: Asked, version: String) -> anyhow::Result<(Job, About)> {
        let messages = asked.requests.into_iter().map(|request| self.protocol.frame(request));
        let messages = messages.collect::<anyhow::Result<Vec<_>>>()?;
        let address = self.server.trim_start_matches("http://").trim_end_matches('/').to_owned();
        let about = About {
            model: self.model.clone(),
            version,
            server: address.clone(),
            protocol: self.protocol,
            data: asked.kind,
            source: asked.source,
            rows: asked.rows,
            requests: messages.len(),
            request_bytes: messages.iter().map(bytes::Bytes::len).sum::<usize>() / messages.len(),
            threads: self.threads,
            duration_s: self.duration.as_secs_f64(),
            warm_up_s: self.warm_up.as_secs_f64(),
            timeout_s: self.timeout.as_secs_f64(),
        };
        let target = Target {
            head: wire::head(&address, self.protocol.method(), Some(self.timeout))?,
            address,
            timeout: self.timeout,
            read: match self.protocol {
                Protocol::Sconce => Seen::of_sconce,
                Protocol::Oip => Seen::of_oip,
            },
        };
        let job = Job {
            target: Arc::new(target),
            messages,
            threads: self.threads as usize,
            warm_up: self.warm_up,
            measured: self.duration,
            in_flight_max: self.max_in_flight as usize,
        };
        Ok((job, about))
    }

    fn loads(&self) -> Vec<Load> {
        let given = self.connections.map(|connections| connections as usize);
        let closed = |&callers: &u32| {
            let in_flight = callers as usize;
            let wanted = given.unwrap_or_else(|| CONNECTIONS.max(in_flight.div_ceil(CALLERS_A_CONNECTION)));
            Load { pace: Pace::Closed { in_flight }, connections: wanted.min(in_flight) }
        };
        let open = |&rate: &f64| {
            let pace = Pace::Open { rate, arrivals: self.arrivals };
            Load { pace, connections: given.unwrap_or(CONNECTIONS) }
        };
        match (self.rate.is_empty(), self.concurrency.is_empty()) {
            (false, _) => self.rate.iter().map(open).collect(),
            (true, false) => self.concurrency.iter().map(closed).collect(),
            (true, true) => [1, 8, 64].iter().map(closed).collect(),
        }
    }
}

fn parse_rate(text: &str) -> Result<f64, String> {
    let rate = text.trim().parse::<f64>().ok().filter(|rate| rate.is_finite() && *rate > 0.0);
    let rate = rate.ok_or_else(|| format!("'{text}' is not a rate; write 500 or 0.5, in calls a second"))?;
    if rate > RATE_MAX {
        return Err(format!("{text} calls a second are more than one generator sends; at most {RATE_MAX}"));
    }
    Ok(rate)
}

fn parse_measured(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("nothing can be measured in no time; write 10s".into()),
        time if time > MEASURED_MAX => Err(format!("{text} is too long for one load; at most {MEASURED_MAX:?}")),
        time => Ok(time),
    }
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("no call can be answered in no time; write 50ms or 10s".into()),
        time => Ok(time.min(MEASURED_MAX)),
    }
}

#[cfg(test)]
mod tests;

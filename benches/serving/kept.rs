//! What kept answers are worth: rows of early-signal of which some are asked for far more often than others, one call at a time, by a
//! version that keeps a tenth as many answers as there are rows.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use hdrhistogram::Histogram;
use prost::Message;
use sconce::cli::bench::wire::{Answer, MODEL_INFER, call, connect, frame, head};
use serde::Serialize;

use crate::{
    cases::{self, KEPT_MODEL},
    inference::{ModelInferResponse, infer_parameter::ParameterChoice},
    server::Server,
};

/// What the stream showed.
#[derive(Debug, Serialize)]
pub struct KeptReport {
    pub rows: usize,
    pub entries_max: usize,
    pub calls: u64,
    /// Hits over calls.
    pub hit_rate: f64,
    pub hit: Times,
    pub miss: Times,
}

/// Of the caller, in microseconds.
#[derive(Debug, Serialize)]
pub struct Times {
    pub p50_us: f64,
    pub p99_us: f64,
}

/// Draws places 0 to n-1, the first most often: the k-th with a probability in proportion to 1/k (Zipf's law).
struct Zipf {
    /// Sums of the weights so far.
    sums: Vec<f64>,
    random: fastrand::Rng,
}

const ROWS: usize = 10_000;
pub const ENTRIES_MAX: usize = ROWS / 10;
const SEED: u64 = 11;
const LATENCY_MAX: Duration = Duration::from_secs(60);

/// Calls for `measured`, after as long for the cache to fill.
pub async fn measure(server: &Server, measured: Duration) -> Result<KeptReport> {
    let (requests, _) = cases::early_signal_requests(KEPT_MODEL, sconce::model::DType::Fp64, ROWS)?;
    server.first_answer_to(KEPT_MODEL, &requests[0]).await?;
    let messages: Vec<Bytes> = requests.iter().map(frame).collect();
    let address = server.ports.grpc_address();
    let (mut client, head) = (connect(address).await?, head(&address.to_string(), MODEL_INFER, None)?);
    let mut zipf = Zipf::new(ROWS);
    let histogram = || Histogram::<u64>::new_with_bounds(1, LATENCY_MAX.as_nanos() as u64, 3);
    let (mut hits, mut misses) = (histogram()?, histogram()?);
    let counts_from = Instant::now() + measured;
    let ends = counts_from + measured;
    loop {
        let begun = Instant::now();
        if begun >= ends {
            break;
        }
        let answer = call(&mut client, &head, &messages[zipf.draw()], Answer::Keep).await?;
        let took = begun.elapsed().min(LATENCY_MAX).as_nanos() as u64;
        if begun >= counts_from {
            let of = if is_hit(answer)? { &mut hits } else { &mut misses };
            of.record(took)?;
        }
    }
    let calls = hits.len() + misses.len();
    ensure!(!hits.is_empty() && !misses.is_empty(), "{} hits and {} misses: no comparison", hits.len(), misses.len());
    Ok(KeptReport {
        rows: ROWS,
        entries_max: ENTRIES_MAX,
        calls,
        hit_rate: hits.len() as f64 / calls as f64,
        hit: Times::of(&hits),
        miss: Times::of(&misses),
    })
}

fn is_hit(answer: Bytes) -> Result<bool> {
    let answer = ModelInferResponse::decode(answer)?;
    let said = answer.parameters.get("cache").and_then(|said| said.parameter_choice.clone());
    let said = said.context("the answer does not say whether it was kept")?;
    Ok(said == ParameterChoice::StringParam("hit".into()))
}

// === impl KeptReport ===

impl KeptReport {
    /// One line, as Markdown.
    pub fn text(&self) -> String {
        let Self { rows, entries_max, calls, hit_rate, hit, miss } = self;
        format!(
            "\nKept answers: {calls} calls for {rows} rows of early-signal by Zipf's law, {entries_max} kept: {:.1} % hits; a hit {:.0} µs \
             (p99 {:.0}), a miss {:.0} µs (p99 {:.0})\n",
            hit_rate * 100.0,
            hit.p50_us,
            hit.p99_us,
            miss.p50_us,
            miss.p99_us
        )
    }
}

// === impl Times ===

impl Times {
    fn of(latencies: &Histogram<u64>) -> Self {
        let us = |quantile| latencies.value_at_quantile(quantile) as f64 / 1e3;
        Self { p50_us: us(0.5), p99_us: us(0.99) }
    }
}

// === impl Zipf ===

impl Zipf {
    fn new(places: usize) -> Self {
        let weights = (1..=places).map(|rank| 1.0 / rank as f64);
        let sums = weights.scan(0.0, |sum, weight| {
            *sum += weight;
            Some(*sum)
        });
        Self { sums: sums.collect(), random: fastrand::Rng::with_seed(SEED) }
    }

    fn draw(&mut self) -> usize {
        let all = self.sums.last().copied().unwrap_or_default();
        let drawn = self.random.f64() * all;
        self.sums.partition_point(|sum| *sum <= drawn).min(self.sums.len() - 1)
    }
}

//! What callers notice of a shadow: early-signal at a quarter of its capacity, with a copy of every tenth request for a second version
//! and without, in turns.

use anyhow::{Context, Result, ensure};
use sconce::model::DType;
use serde::Serialize;

use crate::{
    Bench,
    cases::{self, SHADOWED_MODEL},
    generator::{Window, closed_loop, median},
    http_get::get,
    open::{CAPACITY, Latencies, open_loop},
    server::Server,
};

/// Of all turns, in microseconds.
#[derive(Debug, Serialize)]
pub struct ShadowReport {
    pub rate_per_s: f64,
    /// The 99th percentile of each turn, ascending.
    pub without_p99_us: Vec<f64>,
    pub with_p99_us: Vec<f64>,
    /// Requests that the shadow was asked, of those that callers sent in its turns.
    pub asked: f64,
}

const MODEL: &str = "early-signal";
const TURNS: usize = 9;
const REQUESTS: usize = 256;

impl Bench {
    pub async fn shadow(&self, server: &Server) -> Result<ShadowReport> {
        self.progress.set_message("a shadow at 10 %");
        let mut traffics = Vec::new();
        for model in [MODEL, SHADOWED_MODEL] {
            let (requests, answer) = cases::early_signal_requests(model, DType::Fp64, REQUESTS)?;
            server.first_answer_to(model, &requests[0]).await?;
            traffics.push(cases::traffic(&requests, answer, cases::TOLERANCE));
        }
        let address = server.ports.grpc_address();
        let capacity = closed_loop(address, &server.running, &traffics[0], CAPACITY, self.window).await?;
        let rate_per_s = capacity.requests_per_s / 4.0;
        let window = Window::of_a_turn(self.window.measured);
        let before = shadowed(server)?;
        let mut turns: [Vec<Latencies>; 2] = Default::default();
        for _ in 0..TURNS {
            for (turns, traffic) in turns.iter_mut().zip(&traffics) {
                turns.push(open_loop(address, traffic, rate_per_s, window).await?);
            }
        }
        let sent = rate_per_s * (window.warm_up + window.measured).as_secs_f64() * TURNS as f64;
        let asked = (shadowed(server)? - before) / sent;
        ensure!(asked > 0.05, "the shadow was asked {:.1} % of what it should have been", asked * 1000.0);
        let [without_p99_us, with_p99_us] = turns.map(|turns| {
            let mut p99s: Vec<f64> = turns.iter().map(|turn| turn.p99_us).collect();
            p99s.sort_by(f64::total_cmp);
            p99s
        });
        let report = ShadowReport { rate_per_s, without_p99_us, with_p99_us, asked };
        self.progress.suspend(|| print!("{}", report.text()));
        Ok(report)
    }
}

// === impl ShadowReport ===

impl ShadowReport {
    /// The median with the shadow over the worst turn without: up to 1 it is lost in the noise.
    pub fn beyond_noise(&self) -> f64 {
        let worst = self.without_p99_us.last().copied().unwrap_or(f64::NAN);
        median(self.with_p99_us.iter().copied()) / worst
    }

    pub fn text(&self) -> String {
        let range = |p99s: &[f64]| {
            let (least, most) = (p99s.first().copied().unwrap_or(f64::NAN), p99s.last().copied().unwrap_or(f64::NAN));
            format!("{:.0} µs ({least:.0} to {most:.0})", median(p99s.iter().copied()))
        };
        format!(
            "\nA shadow at 10 %, an open loop of {:.0} calls of early-signal a second, {TURNS} turns each: p99 without {}, with {}; \
             it was asked {:.1} % of the calls\n",
            self.rate_per_s,
            range(&self.without_p99_us),
            range(&self.with_p99_us),
            self.asked * 100.0
        )
    }
}

/// Requests that a shadow of the model has answered.
fn shadowed(server: &Server) -> Result<f64> {
    let address = server.ports.metrics_address().context("the server has no metrics port")?;
    let text = get(address, "/metrics").context("cannot read the server's metrics")?;
    let of_model = format!("sconce_shadow_requests_total{{model=\"{SHADOWED_MODEL}\"");
    let answered = text.lines().filter(|line| line.starts_with(&of_model) && line.contains("result=\"answered\""));
    Ok(answered.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
}

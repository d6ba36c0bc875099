//! Swaps, one after another, and when each of them had come how far.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use tokio::{
    sync::watch,
    time::{sleep, sleep_until, timeout},
};

use crate::{
    admin,
    load::{Clients, Target},
    open_loop::{OpenLoop, Record},
    process::{CpuUse, own_cpu},
    served::Served,
};

/// How much, how fast.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pub swaps: u64,
    /// Of load before the first swap.
    pub steady: Duration,
    /// From one swap to the next, at least.
    pub period: Duration,
    /// Calls a second; else half of the capacity, and no more than `rate_max`.
    pub rate: Option<f64>,
    pub rate_max: f64,
}

/// One swap; milliseconds from its first byte.
#[derive(Clone, Debug, Serialize)]
pub struct Swap {
    pub version: u64,
    /// Since the load began.
    pub begun_ms: f64,
    pub copied_ms: f64,
    pub complete_ms: f64,
    /// The first answer of the new version came.
    pub visible_ms: f64,
    /// The old version serves no more and has finished what it had begun.
    pub old_gone_ms: f64,
    pub resident_bytes: u64,
    /// Of the calls that were due from the first byte until the old version was gone.
    pub p50_us: f64,
    pub p99_us: f64,
}

/// All that the swaps showed.
#[derive(Debug, Serialize)]
pub struct Swaps {
    pub capacity_per_s: f64,
    pub rate_per_s: f64,
    pub answered: usize,
    pub failed: Vec<String>,
    pub steady_p50_us: f64,
    pub steady_p99_us: f64,
    /// Of the calls in each piece of the time before the first swap, a piece being as long as a swap.
    pub steady_pieces_p99_us: Vec<f64>,
    /// Of all calls that were due while some swap was under way.
    pub swap_p50_us: f64,
    pub swap_p99_us: f64,
    pub resident_before: u64,
    /// Shares of the whole time in which the server and the generator were ready and had no CPU.
    pub server_waited: f64,
    pub generator_waited: f64,
    pub swaps: Vec<Swap>,
}

/// A server under load.
pub struct Swapping<'a> {
    pub target: Arc<Target>,
    pub load: OpenLoop,
    pub server: &'a Served,
    at_work: watch::Receiver<Vec<u64>>,
    capacity: f64,
    pub rate: f64,
    resident_before: u64,
    cpu_before: (CpuUse, CpuUse),
}

const CAPACITY_MEASURED: Duration = Duration::from_secs(1);
/// Of the load's first moments, which are not compared with.
const WARM_UP: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(30);

// === impl Swapping ===

impl<'a> Swapping<'a> {
    /// Measures the capacity, then begins the load.
    pub async fn begin(target: Target, server: &'a Served, pace: &Pace) -> Result<Self> {
        let clients = Clients::connect(server.grpc(), target.asking()?).await?;
        let at_work = admin::watch(server, &target.model).await?;
        clients.capacity(CAPACITY_MEASURED / 4).await?;
        let capacity = clients.capacity(CAPACITY_MEASURED).await?;
        let rate = pace.rate.unwrap_or((capacity / 2.0).min(pace.rate_max));
        let resident_before = server.resident_bytes()?;
        let cpu_before = (server.running.cpu()?, own_cpu()?);
        let load = OpenLoop::begin(rate, move |number| clients.clone().ask(number))?;
        Ok(Self { target: Arc::new(target), load, server, at_work, capacity, rate, resident_before, cpu_before })
    }

    /// All of it, without a word.
    pub async fn run(mut self, pace: &Pace) -> Result<Swaps> {
        sleep(WARM_UP + pace.steady).await;
        let mut swaps = Vec::new();
        for number in 2..2 + pace.swaps {
            let next = tokio::time::Instant::now() + pace.period;
            swaps.push(self.swap(number).await?);
            sleep_until(next).await;
        }
        self.end(swaps, pace.steady).await
    }

    /// Publishes version `number` and waits until the one before is gone.
    pub async fn swap(&mut self, number: u64) -> Result<Swap> {
        let target = self.target.clone();
        let published = tokio::task::spawn_blocking(move || target.publish(number)).await??;
        let mut newest = self.load.newest();
        let visible = timeout(PATIENCE, newest.wait_for(|first| first.answer >= number)).await;
        let Ok(visible) = visible else {
            bail!("version {number} does not answer; failed calls: {:?}", self.load.so_far().failed);
        };
        let visible = *visible?;
        let gone = timeout(PATIENCE, self.at_work.wait_for(|at_work| at_work.iter().all(|old| *old >= number))).await;
        gone.context("the old version stays")??;
        let old_gone = Instant::now();
        let target = self.target.clone();
        tokio::task::spawn_blocking(move || target.prune(number)).await??;
        let ms = |at: Instant| at.saturating_duration_since(published.begun).as_secs_f64() * 1e3;
        Ok(Swap {
            version: number,
            begun_ms: (published.begun - self.load.begun()).as_secs_f64() * 1e3,
            copied_ms: ms(published.copied),
            complete_ms: ms(published.complete),
            visible_ms: ms(visible.at),
            old_gone_ms: ms(old_gone),
            resident_bytes: self.server.resident_bytes()?,
            p50_us: 0.0,
            p99_us: 0.0,
        })
    }

    /// Ends the load and sums up.
    pub async fn end(self, mut swaps: Vec<Swap>, steady: Duration) -> Result<Swaps> {
        let (server_before, own_before) = self.cpu_before;
        let wall = self.load.begun().elapsed();
        let share = |waited: Duration| waited.as_secs_f64() / wall.as_secs_f64();
        let server_waited = share(self.server.running.cpu()?.since(server_before).waited);
        let generator_waited = share(own_cpu()?.since(own_before).waited);
        let record = self.load.end().await;
        let windows: Vec<_> = swaps.iter().map(Swap::window).collect();
        for swap in &mut swaps {
            let window = [swap.window()];
            (swap.p50_us, swap.p99_us) = quantiles(&record, &window);
        }
        let (steady_p50_us, steady_p99_us) = quantiles(&record, &[(WARM_UP, WARM_UP + steady)]);
        let piece = windows.iter().map(|(from, to)| *to - *from).sum::<Duration>() / windows.len().max(1) as u32;
        let pieces = (0..).map(|n| WARM_UP + piece * n).take_while(|from| *from + piece <= WARM_UP + steady);
        let pieces = pieces.map(|from| quantiles(&record, &[(from, from + piece)]).1);
        let steady_pieces_p99_us = if piece.is_zero() { Vec::new() } else { pieces.collect() };
        let (swap_p50_us, swap_p99_us) = quantiles(&record, &windows);
        Ok(Swaps {
            capacity_per_s: self.capacity,
            rate_per_s: self.rate,
            answered: record.answered.len(),
            failed: record.failed,
            steady_p50_us,
            steady_p99_us,
            steady_pieces_p99_us,
            swap_p50_us,
            swap_p99_us,
            resident_before: self.resident_before,
            server_waited,
            generator_waited,
            swaps,
        })
    }
}

fn quantiles(record: &Record, windows: &[(Duration, Duration)]) -> (f64, f64) {
    let us = |share| record.quantile(share, windows).map_or(0.0, |latency| latency.as_secs_f64() * 1e6);
    (us(0.5), us(0.99))
}

// === impl Swap ===

impl Swap {
    /// From the first byte until the old version was gone, since the load began.
    fn window(&self) -> (Duration, Duration) {
        let at = |ms: f64| Duration::from_secs_f64(ms / 1e3);
        (at(self.begun_ms), at(self.begun_ms + self.old_gone_ms))
    }

    /// From complete to the first answer.
    pub fn visible_after_ms(&self) -> f64 {
        self.visible_ms - self.complete_ms
    }
}

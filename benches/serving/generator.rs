//! The load: one thread, closed loop, messages encoded beforehand, straight on h2, the same for the echo and the server.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use hdrhistogram::Histogram;
use http::Request;
use sconce::cli::bench::wire::{Answer, MODEL_INFER, call, connect, head};
use serde::Serialize;
use tokio::task::JoinSet;

use crate::{
    process::{CpuUse, Running, own_cpu},
    server::Server,
};

/// How many requests wait for an answer at any time, over how many connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Load {
    pub in_flight: usize,
    pub connections: usize,
}

/// How long.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub warm_up: Duration,
    pub measured: Duration,
}

/// What is measured beside something else.
pub struct Target<'a> {
    pub server: &'a Server,
    pub load: Load,
}

/// Says what is wrong with an encoded answer.
pub type Check = dyn Fn(&[u8]) -> Result<()> + Send + Sync;

/// What is sent, and what must come back.
pub struct Traffic {
    /// gRPC frames of ModelInfer, sent in turn. The first one's answer is checked once a connection.
    pub messages: Vec<Bytes>,
    pub check: Box<Check>,
}

/// What one window showed.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    pub requests_per_s: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    /// User and system time of the measured process, a request.
    pub cpu_us: f64,
    /// Shares of one CPU that were used: what is at 1 is what bounds the throughput.
    pub server_busy: f64,
    pub generator_busy: f64,
    /// Shares of the window in which they were ready and had no CPU: above a few hundredths, something else was running.
    pub server_waited: f64,
    pub generator_waited: f64,
}

/// What the workers share. Only the driver moves the phase on.
struct Shared {
    traffic: Arc<Traffic>,
    head: Request<()>,
    phase: AtomicU8,
    latencies_ns: Mutex<Histogram<u64>>,
}

const WARM_UP: u8 = 0;
const COUNTING: u8 = 1;
const OVER: u8 = 2;

const LATENCY_MAX: Duration = Duration::from_secs(60);
/// What is still in flight when the window ends must be answered within this time.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// A figure is the median of so many windows, which the targets have in turns: an hour in which the machine is slower, or a moment
/// in which something else runs, is the same for all of them.
pub const TURNS: u32 = 5;
const TURN_WARM_UP: Duration = Duration::from_millis(300);

/// Closed loops against several targets in turns, `measured` each in all.
pub async fn in_turns<const N: usize>(
    targets: [Target<'_>; N],
    traffic: &Arc<Traffic>,
    measured: Duration,
) -> Result<[Measured; N]> {
    let window = Window::of_a_turn(measured);
    let mut turns = [const { Vec::new() }; N];
    for _ in 0..TURNS {
        for (turns, Target { server, load }) in turns.iter_mut().zip(&targets) {
            turns.push(closed_loop(server.ports.grpc_address(), &server.running, traffic, *load, window).await?);
        }
    }
    Ok(turns.map(|turns| Measured::median(&turns)))
}

/// Runs one closed loop against `address`, whose process is `server`.
pub async fn closed_loop(
    address: SocketAddr,
    server: &Running,
    traffic: &Arc<Traffic>,
    load: Load,
    window: Window,
) -> Result<Measured> {
    let shared = Arc::new(Shared {
        traffic: Arc::clone(traffic),
        head: head(&address.to_string(), MODEL_INFER, None)?,
        phase: AtomicU8::new(WARM_UP),
        latencies_ns: Mutex::new(Histogram::new_with_bounds(1, LATENCY_MAX.as_nanos() as u64, 3)?),
    });
    let mut clients = Vec::new();
    for _ in 0..load.connections {
        let mut client = connect(address).await?;
        let answer = call(&mut client, &shared.head, &traffic.messages[0], Answer::Keep).await?;
        (traffic.check)(&answer)?;
        clients.push(client);
    }
    let mut workers = JoinSet::new();
    for place in 0..load.in_flight {
        let client = clients[place % load.connections].clone();
        workers.spawn(worker(client, place, Arc::clone(&shared)));
    }
    let timed = async {
        tokio::time::sleep(window.warm_up).await;
        let (begun, server_begun, own_begun) = (Instant::now(), server.cpu()?, own_cpu()?);
        shared.phase.store(COUNTING, Ordering::Relaxed);
        tokio::time::sleep(window.measured).await;
        shared.phase.store(OVER, Ordering::Relaxed);
        anyhow::Ok((begun.elapsed(), server.cpu()?.since(server_begun), own_cpu()?.since(own_begun)))
    };
    // A worker returns early only with an error.
    let (wall, server_cpu, own_cpu) = tokio::select! {
        timed = timed => timed?,
        Some(ended) = workers.join_next() => {
            ended??;
            bail!("a worker ended before its time")
        }
    };
    let drain = async {
        while let Some(ended) = workers.join_next().await {
            ended??;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(DRAIN_MAX, drain).await.context("requests were left without an answer")??;
    let latencies = shared.latencies_ns.lock().expect("no worker panics while it records");
    summary(&latencies, wall, server_cpu, own_cpu)
}

/// The middle one, or the higher of the two.
pub fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_unstable_by(f64::total_cmp);
    figures[figures.len() / 2]
}

// === impl Window ===

impl Window {
    /// One of `TURNS` that measure so long together.
    pub fn of_a_turn(measured: Duration) -> Self {
        Self { warm_up: TURN_WARM_UP, measured: measured / TURNS }
    }
}

// === impl Measured ===

impl Measured {
    /// Each figure's own.
    fn median(turns: &[Self]) -> Self {
        let median = |figure: fn(&Self) -> f64| median(turns.iter().map(figure));
        Self {
            requests_per_s: median(|turn| turn.requests_per_s),
            p50_us: median(|turn| turn.p50_us),
            p99_us: median(|turn| turn.p99_us),
            cpu_us: median(|turn| turn.cpu_us),
            server_busy: median(|turn| turn.server_busy),
            generator_busy: median(|turn| turn.generator_busy),
            server_waited: median(|turn| turn.server_waited),
            generator_waited: median(|turn| turn.generator_waited),
        }
    }
}

// === the inside ===

fn summary(latencies: &Histogram<u64>, wall: Duration, server: CpuUse, own: CpuUse) -> Result<Measured> {
    let requests = latencies.len();
    ensure!(requests > 0, "no request was answered within the window");
    let us = |quantile| latencies.value_at_quantile(quantile) as f64 / 1e3;
    let share = |time: Duration| time.as_secs_f64() / wall.as_secs_f64();
    Ok(Measured {
        requests_per_s: requests as f64 / wall.as_secs_f64(),
        p50_us: us(0.5),
        p99_us: us(0.99),
        cpu_us: server.ran.as_secs_f64() * 1e6 / requests as f64,
        server_busy: share(server.ran),
        generator_busy: share(own.ran),
        server_waited: share(server.waited),
        generator_waited: share(own.waited),
    })
}

async fn worker(mut client: SendRequest<Bytes>, place: usize, shared: Arc<Shared>) -> Result<()> {
    let messages = &shared.traffic.messages;
    // Workers begin at different messages, so that a batch is not of one row repeated.
    for message in messages.iter().cycle().skip(place % messages.len()) {
        if shared.phase.load(Ordering::Relaxed) == OVER {
            break;
        }
        let begun = Instant::now();
        call(&mut client, &shared.head, message, Answer::Drop).await?;
        if shared.phase.load(Ordering::Relaxed) == COUNTING {
            let latency_ns = begun.elapsed().min(LATENCY_MAX).as_nanos() as u64;
            let mut latencies = shared.latencies_ns.lock().expect("no worker panics while it records");
            latencies.record(latency_ns)?;
        }
    }
    Ok(())
}

//! An open loop: calls are due on a fixed schedule, at half of what the slower of echo and server does in a closed one, and a
//! latency counts from the moment when its call was due.
//!
//! The generator looks at the clock all the time, for which it has a CPU of its own: a timer's milliseconds would be all that is seen.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use hdrhistogram::Histogram;
use sconce::cli::bench::wire::{Answer, MODEL_INFER, call, connect, head};
use serde::Serialize;
use tokio::task::JoinSet;

use crate::{
    Bench,
    cases::Case,
    generator::{Load, TURNS, Traffic, Window, closed_loop, median},
    server::Server,
};

/// One model at half of its capacity, beside the echo at the same rate.
#[derive(Debug, Serialize)]
pub struct Half {
    pub name: String,
    pub rate_per_s: f64,
    pub echo: Latencies,
    pub server: Latencies,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct Latencies {
    pub p50_us: f64,
    pub p99_us: f64,
}

const CONNECTIONS: usize = 8;
pub const CAPACITY: Load = Load { in_flight: 64, connections: CONNECTIONS };
const LATENCY_MAX: Duration = Duration::from_secs(60);

// === impl Bench ===

impl Bench {
    pub async fn half(&self, case: &Case, server: &Server) -> Result<Half> {
        self.progress.set_message(format!("{}: half of capacity", case.name));
        let traffic = case.traffic();
        let answer = server.first_answer(case).await?;
        let echo = Server::echo(&answer, self.cpus.server, &self.folder).await?;
        let mut capacity = f64::INFINITY;
        for server in [&echo, server] {
            let address = server.ports.grpc_address();
            let measured = closed_loop(address, &server.running, &traffic, CAPACITY, self.window).await?;
            capacity = capacity.min(measured.requests_per_s);
        }
        let rate_per_s = capacity / 2.0;
        let window = Window::of_a_turn(self.window.measured);
        let mut turns = [Vec::new(), Vec::new()];
        for _ in 0..TURNS {
            for (turns, server) in turns.iter_mut().zip([&echo, server]) {
                turns.push(open_loop(server.ports.grpc_address(), &traffic, rate_per_s, window).await?);
            }
        }
        let [echo, server] = turns.map(|turns| Latencies {
            p50_us: median(turns.iter().map(|turn| turn.p50_us)),
            p99_us: median(turns.iter().map(|turn| turn.p99_us)),
        });
        let half = Half { name: case.name.into(), rate_per_s, echo, server };
        self.progress.suspend(|| print!("{}", half.text()));
        Ok(half)
    }
}

pub async fn open_loop(
    address: SocketAddr,
    traffic: &Arc<Traffic>,
    rate_per_s: f64,
    window: Window,
) -> Result<Latencies> {
    let head = head(&address.to_string(), MODEL_INFER, None)?;
    let mut clients: Vec<SendRequest<Bytes>> = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(connect(address).await?);
    }
    let latencies = Arc::new(Mutex::new(Histogram::<u64>::new_with_bounds(1, LATENCY_MAX.as_nanos() as u64, 3)?));
    let (begun, mut calls, mut number) = (Instant::now(), JoinSet::new(), 0_usize);
    let end = window.warm_up + window.measured;
    loop {
        let due = Duration::from_secs_f64(number as f64 / rate_per_s);
        if due >= end {
            break;
        }
        if due > begun.elapsed() {
            while let Some(ended) = calls.try_join_next() {
                let ended: Result<()> = ended?;
                ended?;
            }
            tokio::task::yield_now().await;
            continue;
        }
        let (mut client, head) = (clients[number % CONNECTIONS].clone(), head.clone());
        let message = traffic.messages[number % traffic.messages.len()].clone();
        let (latencies, counts) = (latencies.clone(), due >= window.warm_up);
        calls.spawn(async move {
            call(&mut client, &head, &message, Answer::Drop).await?;
            if counts {
                let latency_ns = begun.elapsed().saturating_sub(due).min(LATENCY_MAX).as_nanos() as u64;
                latencies.lock().expect("no caller panics while it records").record(latency_ns)?;
            }
            Ok(())
        });
        number += 1;
    }
    while let Some(ended) = calls.join_next().await {
        ended??;
    }
    let latencies = Arc::into_inner(latencies).context("all calls have ended")?;
    let latencies = latencies.into_inner().expect("no caller panics while it records");
    ensure!(!latencies.is_empty(), "no call was due within the window");
    let us = |quantile| latencies.value_at_quantile(quantile) as f64 / 1e3;
    Ok(Latencies { p50_us: us(0.5), p99_us: us(0.99) })
}

// === impl Half ===

impl Half {
    /// How much longer the tail is than the echo's, each in its own medians.
    pub fn tail_ratio(&self) -> f64 {
        (self.server.p99_us / self.server.p50_us) / (self.echo.p99_us / self.echo.p50_us)
    }

    pub fn text(&self) -> String {
        let Self { name, rate_per_s, echo, server } = self;
        format!(
            "\n{name}, an open loop of {rate_per_s:.0} calls a second over {CONNECTIONS} connections: echo p50 {:.0} µs, p99 {:.0} µs; \
             server p50 {:.0} µs, p99 {:.0} µs\n",
            echo.p50_us, echo.p99_us, server.p50_us, server.p99_us
        )
    }
}

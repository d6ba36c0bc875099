//! Both CPUs for the server, and the generator on whichever of them is free: what a machine gives that has nothing else.

use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use crate::{
    Bench, cases,
    generator::{Load, Measured, Target, in_turns},
    process,
    server::Server,
};

/// One model, 64 in flight.
#[derive(Debug, Serialize)]
pub struct Both {
    pub name: String,
    pub loads: Vec<(Load, Measured)>,
    /// Requests a second of the bare echo, one thread, its generator on the other CPU: over 8 connections, and over 1.
    pub echo_per_s: [f64; 2],
}

const LOADS: [Load; 2] = [Load { in_flight: 64, connections: 8 }, Load { in_flight: 64, connections: 1 }];

// === impl Bench ===

impl Bench {
    pub async fn both(&self, store: &Path) -> Result<Vec<Both>> {
        let cpus = [self.cpus.server, self.cpus.generator];
        let server = Server::sconce(&self.args.server, store, &self.native_dir, &cpus, &self.folder).await?;
        let mut all = Vec::new();
        for case in cases::all()?.iter().filter(|case| [cases::TINY, cases::MLP].contains(&case.name)) {
            let answer = server.first_answer(case).await?;
            let echo = Server::echo(&answer, self.cpus.server, &self.folder).await?;
            self.progress.set_message(format!("both CPUs, {}", case.name));
            let (traffic, measured) = (case.traffic(), self.window.measured);
            let targets = LOADS.map(|load| Target { server: &echo, load });
            let echo_per_s = in_turns(targets, &traffic, measured).await?.map(|measured| measured.requests_per_s);
            drop(echo);
            process::pin(&cpus)?;
            let targets = LOADS.map(|load| Target { server: &server, load });
            let loads = LOADS.into_iter().zip(in_turns(targets, &traffic, measured).await?).collect();
            let both = Both { name: case.name.into(), loads, echo_per_s };
            process::pin(&[self.cpus.generator])?;
            self.progress.suspend(|| print!("{}", both.text()));
            all.push(both);
        }
        Ok(all)
    }
}

// === impl Both ===

impl Both {
    pub fn eight_per_s(&self) -> f64 {
        self.loads[0].1.requests_per_s
    }

    pub fn one_per_s(&self) -> f64 {
        self.loads[1].1.requests_per_s
    }

    pub fn text(&self) -> String {
        let [eight, one] = self.echo_per_s;
        let mut text = format!(
            "\n{} on both CPUs, which the generator shares; the echo on one CPU, its generator on the other: {eight:.0} req/s over 8 \
             connections, {one:.0} over 1 ({:.2} of it)\n\n",
            self.name,
            one / eight
        );
        text += "| in flight | conn. | req/s | CPU µs | p50 µs | p99 µs |\n|--:|--:|--:|--:|--:|--:|\n";
        for (Load { in_flight, connections }, measured) in &self.loads {
            let Measured { requests_per_s, cpu_us, p50_us, p99_us, .. } = measured;
            text += &format!(
                "| {in_flight:>9} | {connections:>5} | {requests_per_s:>5.0} | {cpu_us:>6.2} | {p50_us:>6.0} | {p99_us:>6.0} |\n"
            );
        }
        text
    }
}

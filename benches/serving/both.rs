//! Both CPUs for the server, and the generator on whichever of them is free: what a machine gives that has nothing else.

use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use crate::{
    Bench,
    cases::{self, Case},
    generator::{Load, Measured, closed_loop},
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
            let mut echo_per_s = [0.0; 2];
            for (per_s, load) in echo_per_s.iter_mut().zip(LOADS) {
                *per_s = self.load(&echo, case, load).await?.requests_per_s;
            }
            drop(echo);
            process::pin(&cpus)?;
            let mut both = Both { name: case.name.into(), loads: Vec::new(), echo_per_s };
            for load in LOADS {
                self.progress.set_message(format!("both CPUs, {}, {load}", case.name));
                both.loads.push((load, self.load(&server, case, load).await?));
            }
            process::pin(&[self.cpus.generator])?;
            self.progress.suspend(|| print!("{}", both.text()));
            all.push(both);
        }
        Ok(all)
    }

    async fn load(&self, server: &Server, case: &Case, load: Load) -> Result<Measured> {
        closed_loop(server.ports.grpc_address(), &server.running, &case.traffic(), load, self.window).await
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

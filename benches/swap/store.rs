//! What a large store costs: the start with nothing remembered, the server at rest, and one look at the store.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Result;
use sconce::store::{Config, Scanner};
use serde::Serialize;
use tokio::time::sleep;

use crate::{
    served::Served,
    versions::{adder, publish},
};

/// One look at a store of so many models, three versions each.
#[derive(Debug, Serialize)]
pub struct Listing {
    pub models: usize,
    /// The first look, and the median of those that found nothing new.
    pub first_ms: f64,
    pub again_ms: f64,
}

/// A server over the largest of them.
#[derive(Debug, Serialize)]
pub struct Large {
    pub models: usize,
    /// From the start of the process until every model was ready, on one CPU.
    pub start_s: f64,
    pub resident_bytes: u64,
    /// Of one CPU, while nothing was asked and nothing changed.
    pub idle_percent: f64,
}

const VERSIONS: u64 = 3;
const LOOKS: usize = 21;
/// Two of the looks that are taken although no event came.
const IDLE: Duration = Duration::from_secs(60);
/// After the start, for what the start left to do.
const REST: Duration = Duration::from_secs(5);

/// Looks at stores of 10, 100 and so on up to `models` models.
pub fn listings(models: usize) -> Result<Vec<Listing>> {
    let folder = tempfile::tempdir()?;
    let mut listings = Vec::new();
    let mut there = 0;
    for count in [10, 100, 1000, models].into_iter().filter(|count| *count <= models) {
        if count <= there {
            continue;
        }
        make(folder.path(), there..count)?;
        there = count;
        let mut scanner = Scanner::new(Config::new(folder.path()));
        let mut look = || {
            let begun = Instant::now();
            scanner.scan(begun, SystemTime::now())?;
            anyhow::Ok(begun.elapsed().as_secs_f64() * 1e3)
        };
        let first_ms = look()?;
        let mut again_ms = (0..LOOKS).map(|_| look()).collect::<Result<Vec<_>>>()?;
        again_ms.sort_by(f64::total_cmp);
        listings.push(Listing { models: count, first_ms, again_ms: again_ms[LOOKS / 2] });
    }
    Ok(listings)
}

pub async fn large(program: &Path, models: usize, cpu: usize) -> Result<Large> {
    let folder = tempfile::tempdir()?;
    let store = folder.path().join("store");
    make(&store, 0..models)?;
    let server = Served::start(program, &store, cpu, folder.path()).await?;
    sleep(REST).await;
    let (begun, before) = (Instant::now(), server.running.cpu()?);
    sleep(IDLE).await;
    let used = server.running.cpu()?.since(before).ran;
    Ok(Large {
        models,
        start_s: server.ready_after.as_secs_f64(),
        resident_bytes: server.resident_bytes()?,
        idle_percent: 100.0 * used.as_secs_f64() / begun.elapsed().as_secs_f64(),
    })
}

fn make(store: &Path, models: std::ops::Range<usize>) -> Result<()> {
    for number in models {
        let model = store.join(format!("model-{number}"));
        fs::create_dir_all(&model)?;
        for version in 1..=VERSIONS {
            let artifact = adder((number as u64 * VERSIONS + version) as f32);
            publish(&model, &format!("1.0.{version}"), &[("model.onnx", &artifact)], "")?;
        }
    }
    Ok(())
}

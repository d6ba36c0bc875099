//! What it costs to watch a bucket: a real S3 server (versitygw over a folder) on loopback, and our own watcher.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use sconce::store::{self, Bucket, Config, Location, Remote};
use serde::Serialize;
use tokio::{sync::watch, task::JoinSet, time::sleep};

use crate::repository;

/// What was measured.
#[derive(Debug, Serialize)]
pub struct Polled {
    pub poll_interval_s: f64,
    /// Of a replica and a minute, nothing changing: where a writer keeps the marker, and where none does.
    pub with_marker_per_minute: f64,
    pub without_marker_per_minute: f64,
    pub listings: Vec<Listing>,
}

/// A listing of the whole bucket.
#[derive(Debug, Serialize)]
pub struct Listing {
    pub objects: usize,
    pub requests: u64,
    pub ms: f64,
}

/// Ends with the bench.
struct Gateway {
    child: Child,
    port: u16,
    data: PathBuf,
}

const BUCKET: &str = "models";
const KEY: &str = "bench";
const LISTENS_WITHIN: Duration = Duration::from_secs(20);
/// What one listing may hold of objects, times three.
const OBJECTS: [usize; 3] = [30, 300, 3000];

/// `None` where there is no S3 server to start.
pub async fn polled(quick: bool) -> Result<Option<Polled>> {
    let folder = tempfile::tempdir()?;
    let Some(gateway) = Gateway::start(folder.path()).await? else {
        return Ok(None);
    };
    let mut listings = Vec::new();
    for objects in OBJECTS {
        gateway.fill("listed", objects)?;
        listings.push(listing(&gateway.bucket("listed")?, objects).await?);
    }
    let watched = Duration::from_secs(if quick { 10 } else { 60 });
    gateway.fill("watched", OBJECTS[0])?;
    let without_marker_per_minute = requests(&gateway, &folder.path().join("one"), watched).await?;
    gateway.bucket("watched")?.touch_marker().await?;
    let with_marker_per_minute = requests(&gateway, &folder.path().join("two"), watched).await?;
    let poll_interval_s = Config::new(Path::new("")).poll_interval.as_secs_f64();
    Ok(Some(Polled { poll_interval_s, with_marker_per_minute, without_marker_per_minute, listings }))
}

async fn listing(bucket: &Bucket, objects: usize) -> Result<Listing> {
    let (before, begun) = (bucket.requests(), Instant::now());
    let found = bucket.list("").await?.len();
    ensure!(found == objects, "{found} objects are listed of {objects}");
    Ok(Listing { objects, requests: bucket.requests() - before, ms: begun.elapsed().as_secs_f64() * 1e3 })
}

/// Requests a minute of one watcher, after it has read everything once.
async fn requests(gateway: &Gateway, cache: &Path, watched: Duration) -> Result<f64> {
    let bucket = gateway.bucket("watched")?;
    let remote = Remote::open(bucket.clone(), cache, 1 << 30)?;
    let location = Location::Bucket(bucket.url().to_owned());
    let config = Config { remote: Some(remote.into()), root: location, ..Config::new(Path::new("")) };
    let (sender, mut news) = watch::channel(store::News::default());
    let (_refresh, asks, _answers) = store::refresh();
    let mut watcher = JoinSet::new();
    watcher.spawn(store::watch(config, sender, asks));
    let settled = |news: &store::News| {
        let versions =
            news.listing.iter().flat_map(|listing| listing.models.values()).flat_map(|m| m.versions.values());
        news.listing.is_some() && versions.into_iter().all(|version| version.complete)
    };
    news.wait_for(settled).await?;
    let (before, begun) = (bucket.requests(), Instant::now());
    sleep(watched).await;
    Ok((bucket.requests() - before) as f64 * 60.0 / begun.elapsed().as_secs_f64())
}

// === impl Gateway ===

impl Gateway {
    async fn start(folder: &Path) -> Result<Option<Self>> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::env::split_paths(&path).chain([repository("target/tools/bin")]);
        let Some(program) = folders.map(|folder| folder.join("versitygw")).find(|file| file.is_file()) else {
            return Ok(None);
        };
        let data = folder.join("data");
        std::fs::create_dir_all(data.join(BUCKET))?;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let child = Command::new(program)
            .args(["--access", KEY, "--secret", KEY, "--port", &format!("127.0.0.1:{port}"), "posix"])
            .arg(&data)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("versitygw does not start")?;
        let gateway = Self { child, port, data };
        let begun = Instant::now();
        while TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).is_err() {
            ensure!(begun.elapsed() < LISTENS_WITHIN, "the S3 server does not listen");
            sleep(Duration::from_millis(20)).await;
        }
        Ok(Some(gateway))
    }

    /// Three versions a model, a file each: what the gateway serves of its folder is what is written there.
    fn fill(&self, store: &str, objects: usize) -> Result<()> {
        for object in 0..objects {
            let version = format!("{store}/model-{}/1.0.{}", object / 3, object % 3);
            let folder = self.data.join(BUCKET).join(version);
            std::fs::create_dir_all(&folder)?;
            std::fs::write(folder.join("model.onnx"), "x")?;
        }
        Ok(())
    }

    /// A client of its own, which counts its requests.
    fn bucket(&self, store: &str) -> Result<Bucket> {
        let variables = [
            ("AWS_ACCESS_KEY_ID", KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", KEY.to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", self.port)),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
        ];
        let variables: BTreeMap<String, String> =
            variables.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Ok(Bucket::open_in(&format!("s3://{BUCKET}/{store}"), &variables)?)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // Both fail only for a child that is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// === impl Polled ===

impl Polled {
    pub fn text(&self) -> String {
        let mut text = format!(
            "\nA quiet bucket, looked at every {} s: {:.0} requests a replica-minute where a writer keeps the marker, {:.0} where \
             none does\n\n| objects in the bucket | requests of a whole listing | ms |\n|--:|--:|--:|\n",
            self.poll_interval_s, self.with_marker_per_minute, self.without_marker_per_minute
        );
        for Listing { objects, requests, ms } in &self.listings {
            text += &format!("| {objects:>21} | {requests:>27} | {ms:>6.1} |\n");
        }
        text
    }
}

//! `cargo bench --bench store`: what it costs to look at a store, and a server that has nothing to do.
//!
//! For stores of 10, 100 and 1,000 models of three versions: the first look, a quiet look (nothing changed, all versions old
//! enough to be told by their stamps), the server's time until it is ready, and its share of one core while it idles.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, bail};
use clap::Parser;
use sconce::store::{Config, Scanner};

/// What it costs to look at a store.
#[derive(Parser)]
struct Args {
    /// How long the idle server is measured: two of the looks that are taken although no event came
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// Another build of the server
    #[arg(long, value_name = "PROGRAM", default_value = env!("CARGO_BIN_EXE_sconce"))]
    server: PathBuf,
    /// Cargo says this to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A server that does not outlive the bench.
struct Server(Child);

const MODELS: [usize; 3] = [10, 100, 1000];
const VERSIONS: [&str; 3] = ["1.0.0", "1.0.1", "1.0.2"];
const QUIET_LOOKS: u32 = 20;
const READY_WITHIN: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(20);
/// After the start: what was loaded is put away.
const REST: Duration = Duration::from_secs(3);

fn main() -> Result<()> {
    let args = Args::parse();
    println!("| models x versions | first look ms | quiet look ms | ready after s | idle, % of a core |");
    println!("|--:|--:|--:|--:|--:|");
    for models in MODELS {
        let place = tempfile::tempdir()?;
        let store = place.path().join("store");
        make(&store, models)?;
        let (first, quiet) = looks(&store)?;
        let (ready, idle) = idle(&args, place.path(), &store)?;
        let (first, quiet) = (first.as_secs_f64() * 1e3, quiet.as_secs_f64() * 1e3);
        let (versions, ready) = (VERSIONS.len(), ready.as_secs_f64());
        println!("| {models} x {versions} | {first:.2} | {quiet:.2} | {ready:.2} | {idle:.2} |");
    }
    Ok(())
}

fn make(store: &Path, models: usize) -> Result<()> {
    let model = repository("tests/fixtures/onnx/tiny.onnx");
    for number in 0..models {
        for version in VERSIONS {
            let folder = store.join(format!("tiny-{number}")).join(version);
            fs::create_dir_all(&folder)?;
            fs::copy(&model, folder.join("model.onnx"))?;
        }
    }
    Ok(())
}

/// The time of the first look, and the mean of quiet ones.
fn looks(store: &Path) -> Result<(Duration, Duration)> {
    let mut scanner = Scanner::new(Config::new(store));
    // By this clock the store was written long ago.
    let wall = SystemTime::now() + Duration::from_secs(3600);
    let mut look = || -> Result<Duration> {
        let begun = Instant::now();
        scanner.scan(begun, wall)?;
        Ok(begun.elapsed())
    };
    let first = look()?;
    let quiet = (0..QUIET_LOOKS).map(|_| look()).sum::<Result<Duration>>()?;
    Ok((first, quiet / QUIET_LOOKS))
}

/// How long a server takes to be ready, and what it then uses of one core, in percent.
fn idle(args: &Args, place: &Path, store: &Path) -> Result<(Duration, f64)> {
    let native = std::env::var_os("SCONCE_NATIVE_DIR").map_or_else(|| repository("native"), PathBuf::from);
    let ports_file = place.join("ports.json");
    let begun = Instant::now();
    let child = Command::new(&args.server)
        .args([
            "serve",
            "--grpc-port=0",
            "--grpc-admin-port=0",
            "--http-port=0",
            "--metrics-port=0",
            "--log-level=warn",
        ])
        .args([Path::new("--model-store"), store, Path::new("--native-dir"), &native])
        .args([Path::new("--ports-file"), &ports_file, Path::new("--work-dir"), &place.join("work")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .spawn()
        .with_context(|| format!("cannot start {}", args.server.display()))?;
    let server = Server(child);
    while !is_ready(&ports_file) {
        if begun.elapsed() > READY_WITHIN {
            bail!("the server is not ready within {READY_WITHIN:?}");
        }
        pause(POLL);
    }
    let ready = begun.elapsed();
    pause(REST);
    let (before, begun) = (server.cpu()?, Instant::now());
    pause(Duration::from_secs_f64(args.seconds));
    let used = server.cpu()? - before;
    Ok((ready, 100.0 * used / begun.elapsed().as_secs_f64()))
}

fn is_ready(ports_file: &Path) -> bool {
    let ask = || -> Result<bool> {
        let ports: serde_json::Value = serde_json::from_slice(&fs::read(ports_file)?)?;
        let port = ports["http"].as_u64().and_then(|port| u16::try_from(port).ok()).context("no port")?;
        let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        connection.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer)?;
        Ok(answer.starts_with("HTTP/1.1 200"))
    };
    // Until it listens there is no file, or half of one.
    ask().unwrap_or(false)
}

/// A bench measures time that passes; there is nothing to wait for.
fn pause(time: Duration) {
    std::thread::park_timeout(time);
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

// === impl Server ===

impl Server {
    /// What the process had of its cores so far, in seconds: fields 14 and 15 of `/proc/PID/stat`, in ticks.
    fn cpu(&self) -> Result<f64> {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.0.id()))?;
        // The name, in parentheses, may hold anything.
        let (_, fields) = text.rsplit_once(')').context("no stat of a process")?;
        let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
        Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only for a child that is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

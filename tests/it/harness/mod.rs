//! Starts the real server over a store in a temporary folder, and knows how to ask it things.
//!
//! A server takes free ports, writes its log into its folder and dies with the test process, however that ends. Nothing
//! here waits for a time: `eventually` polls for what is wanted, within a bound.

pub mod adders;
pub mod artifacts;
pub mod calls;
pub mod disk;
pub mod http;
pub mod open_loop;
pub mod process;
pub mod raw;
pub mod s3;
pub mod store;
pub mod tensors;
pub mod versions;
pub mod wire;

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};

pub use calls::*;
pub use store::{Store, fixture, root};

use process::Guard;

/// How long anything may take that is sure to come, on a busy machine in a debug build. Loads run at the lowest priority:
/// beside a few servers under load they get a hundredth of a core.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// What every server is started with, unless a test says otherwise: free ports, and changes of the store that are seen soon.
const OPTIONS: [&str; 8] = [
    "--grpc-port=0",
    "--grpc-admin-port=0",
    "--http-port=0",
    "--metrics-port=0",
    "--poll-interval=100ms",
    "--settle-time=50ms",
    "--log-level=info,sconce=debug",
    "--pre-stop-delay=0ms",
];

/// A running server.
pub struct Server {
    child: Mutex<Child>,
    /// Kills the server and removes its folder when this process ends without dropping it.
    guard: Guard,
    pub ports: Ports,
    pub store: Store,
    /// From the start of the process to the ports file.
    pub start: Duration,
    pid: u32,
}

/// What `--ports-file` says.
#[derive(Clone, Copy, Debug, serde::Deserialize)]
pub struct Ports {
    pub grpc: u16,
    pub grpc_admin: u16,
    pub http: u16,
    pub metrics: u16,
}

/// Polls until `look` finds something.
pub async fn eventually<T>(what: &str, within: Duration, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(begun.elapsed() < within, "{what}: not within {within:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The program under test, with the environment of this repository and no options of its own.
pub fn sconce() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sconce"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SCONCE_")) {
        command.env_remove(name);
    }
    command.env("SCONCE_NATIVE_DIR", native_dir());
    command
}

pub fn native_dir() -> PathBuf {
    std::env::var_os("SCONCE_NATIVE_DIR").map_or_else(|| root().join("native"), PathBuf::from)
}

/// TorchScript models are tested where the plugin is; leaving them out must be said.
pub fn has_torch() -> bool {
    if native_dir().join("libsconce_torch.so").exists() {
        return true;
    }
    assert!(
        std::env::var_os("SCONCE_SKIP_TORCH").is_some(),
        "native/libsconce_torch.so is missing: `make plugin` builds it; SCONCE_SKIP_TORCH=1 tests without TorchScript"
    );
    false
}

// === impl Server ===

impl Server {
    /// Kills it; what it served over is left as it is, for the next one.
    pub fn into_store(mut self) -> Store {
        let store = std::mem::replace(&mut self.store, Store::new());
        // The next server's ports are waited for.
        std::fs::remove_file(store.beside("ports.json")).expect("every server writes it");
        store
    }

    /// Serves `store` and waits until it is ready and no version is being loaded any more.
    pub async fn start(store: Store, options: &[&str]) -> Self {
        let server = Self::begin(store, options).await;
        server.ready().await;
        server.settled().await;
        server
    }

    /// Serves `store` and waits until the ports are bound, no longer.
    pub async fn begin(store: Store, options: &[&str]) -> Self {
        Self::begin_with(store, options, |_| {}).await
    }

    pub async fn begin_with(store: Store, options: &[&str], change: impl FnOnce(&mut Command)) -> Self {
        let mut command = sconce();
        command.arg("serve").arg("--model-store").arg(store.path());
        change(&mut command);
        Self::launch(store, command, options).await
    }

    /// Runs a `sconce serve` command whose model store is its own affair.
    pub async fn launch(store: Store, mut command: Command, options: &[&str]) -> Self {
        let ports_file = store.beside("ports.json");
        // That of an earlier server over the same store.
        let _ = std::fs::remove_file(&ports_file);
        let log = std::fs::File::create(store.beside("log")).expect("a log file");
        command.arg("--work-dir").arg(store.beside_folder("work"));
        command.arg("--ports-file").arg(&ports_file);
        for option in OPTIONS {
            let name = option.split('=').next().unwrap_or(option);
            if !options.iter().any(|given| given.starts_with(name)) {
                command.arg(option);
            }
        }
        let printed = std::fs::File::create(store.beside("printed")).expect("a file");
        command.args(options).stdin(Stdio::null()).stdout(printed).stderr(log);
        let begun = Instant::now();
        let mut child = command.spawn().expect("the program starts");
        let guard = Guard::of(child.id(), store.beside(""));
        let ports = eventually("the ports file", PATIENCE, async || {
            if let Some(status) = child.try_wait().expect("its own child") {
                panic!("the server ended with {status}:\n{}", read(&store.beside("log")));
            }
            serde_json::from_str(&std::fs::read_to_string(&ports_file).ok()?).ok()
        })
        .await;
        Self { start: begun.elapsed(), pid: child.id(), child: Mutex::new(child), guard, ports, store }
    }

    /// Waits for `/readyz`.
    pub async fn ready(&self) {
        let mut last = String::new();
        let begun = Instant::now();
        while begun.elapsed() < 2 * PATIENCE {
            match http::get(self.ports.http, "/readyz?verbose").await {
                Ok((200, _)) => return,
                Ok((status, body)) => last = format!("{status}: {body}"),
                Err(error) => last = error.to_string(),
            }
            self.assert_alive();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("not ready: {last}\n{}", self.log());
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What it printed for a person.
    pub fn printed(&self) -> String {
        read(&self.store.beside("printed"))
    }

    /// All that it logged.
    pub fn log(&self) -> String {
        read(&self.store.beside("log"))
    }

    pub fn exit_status(&self) -> Option<std::process::ExitStatus> {
        let mut child = self.child.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        child.try_wait().expect("its own child")
    }

    pub fn assert_alive(&self) {
        if let Some(status) = self.exit_status() {
            panic!("the server died with {status}:\n{}", self.log());
        }
    }

    /// The one process stays alive and no handler panicked; what every test of a hostile caller ends with.
    pub async fn assert_unharmed(&self) {
        self.assert_alive();
        let (_, metrics) = http::get(self.ports.metrics, "/metrics").await.expect("metrics");
        let panics = metrics.lines().find(|line| line.starts_with("sconce_panics_total"));
        assert_eq!(panics, Some("sconce_panics_total 0"), "{}", self.log());
    }

    /// A metric, e.g. `sconce_queue_rows{model="m"}`: the sum over all series with these labels; `None` where there is none.
    pub async fn metric(&self, series: &str) -> Option<f64> {
        let (_, text) = http::get(self.ports.metrics, "/metrics").await.expect("metrics");
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let labels: Vec<&str> = labels.trim_end_matches('}').split(',').collect();
        let lines = text.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
        let lines = lines.filter(|line| labels.iter().all(|label| line.contains(label)));
        let values: Vec<f64> = lines.filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
        (!values.is_empty()).then(|| values.iter().sum())
    }

    /// Waits until its memory is within `slack` bytes of `before`.
    pub async fn assert_memory_is_back(&self, before: u64, slack: u64) {
        eventually("memory given back", PATIENCE, async || {
            let now = process::resident_bytes(self.pid);
            (now <= before + slack).then_some(()).or_else(|| {
                eprintln!("{} MiB before, {} MiB now", before >> 20, now >> 20);
                None
            })
        })
        .await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.guard.disarm();
        let child = self.child.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner());
        // It may have ended by itself, which is then what the test was about.
        let _ = child.kill();
        let _ = child.wait();
        if std::thread::panicking() {
            eprintln!("--- the server's log\n{}", tail(&self.log(), 60));
        }
    }
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

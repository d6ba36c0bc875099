//! ONE VERSION: aspired, loading, ready, draining, gone.
//!
//! The store tells what is there; `aspire` says what of it should be served, `policy` what to do next, `loader` does it (in
//! the throw-away child first), and the one `manager` publishes the outcome. Nothing here is on the path of a request.

mod aspire;
mod black_box;
mod changes;
mod check;
mod check_one;
mod gpu_memory;
mod job;
mod kept;
mod ledger;
mod loader;
mod manager;
mod memory;
mod model_state;
mod opening;
mod policy;
mod probe;
mod probe_child;
mod remembered;
mod route_state;
mod retention;
mod state;
mod suspects;
mod trial;
mod work;

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

pub use check::{Problem, check};
pub use check_one::check_version;
pub use probe::SUBCOMMAND as CHILD_SUBCOMMAND;
pub use probe_child::run_child;
pub use work::default_dir as default_work_dir;

use crate::{
    catalog::Publisher,
    error::Result,
    model::ModelYaml,
    monitor::Scoreboard,
    runtime::Runtime,
    store::{self, News},
    telemetry::{Events, Metrics},
};
use gpu_memory::GpuLoads;
use loader::Loader;
use manager::Manager;
use memory::Memory;
use opening::Opener;
use probe::ProbeConfig;
use probe_child::Limits;
use remembered::Remembered;
use suspects::Suspects;
use work::Work;

/// How versions are loaded.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the native libraries are.
    pub native_dir: PathBuf,
    /// A private folder for copies of versions and for what is remembered of them.
    pub work_dir: PathBuf,
    /// The program that is run as the throw-away child.
    pub child_executable: PathBuf,
    /// Memory of one child.
    pub child_memory: u64,
    /// For opening and trying one version.
    pub child_time: Duration,
    pub loads_at_once: usize,
    /// What the server may use in all: a version that would pass it is not loaded.
    pub memory: u64,
    /// What every model.yaml leaves out.
    pub defaults: ModelYaml,
}

/// Who is told what happens, and counts it.
pub struct Told {
    pub metrics: Arc<Metrics>,
    pub scoreboard: Scoreboard,
    pub events: Events,
}

/// The tasks that load and publish. Dropping it ends them; what serves goes on serving.
pub struct Lifecycle {
    tasks: Vec<JoinHandle<()>>,
    _work: Arc<Work>,
}

// === impl Config ===

impl Config {
    pub fn new(native_dir: impl Into<PathBuf>) -> Self {
        Self {
            native_dir: native_dir.into(),
            work_dir: default_work_dir(),
            // Not current_exe(): this one is right even when the file was replaced meanwhile.
            child_executable: "/proc/self/exe".into(),
            child_memory: 4 << 30,
            child_time: Duration::from_secs(60),
            loads_at_once: 2,
            memory: u64::MAX,
            defaults: ModelYaml::default(),
        }
    }

    fn probe(&self, work: &Work) -> ProbeConfig {
        const OPEN_FILES: u64 = 512;
        ProbeConfig {
            executable: self.child_executable.clone(),
            limits: Limits { memory_bytes: self.child_memory, open_files: OPEN_FILES },
            empty_dir: work.empty(),
        }
    }
}

// === impl Lifecycle ===

impl Lifecycle {
    /// Starts watching and loading, on the runtime that this is called in: the control plane's.
    pub fn start(
        config: Config,
        store: store::Config,
        (asks, answers): (store::Asks, store::Answers),
        publisher: Publisher,
        runtime: Arc<Runtime>,
        Told { metrics, scoreboard, events }: Told,
    ) -> Result<Self> {
        let work = Arc::new(Work::open(&config.work_dir)?);
        let (news_sender, news) = watch::channel(News::default());
        let (done_sender, done) = mpsc::channel(config.loads_at_once.max(1));
        let suspects = Suspects::read(work.suspects());
        if suspects.count() > 0 {
            tracing::warn!(
                versions = suspects.count(),
                "a server died here while versions ran; those pass the child alone before they serve again"
            );
        }
        let remembered = Remembered::new(work.probed());
        let loader = Loader {
            store: store.clone(),
            probe: config.probe(&work),
            opener: Opener::new(config.child_time),
            memory: Memory::new(config.memory),
            gpu_loads: GpuLoads::default(),
            child_time: config.child_time,
            native_dir: config.native_dir.clone(),
            copies: work.copies(),
            remembered: remembered.clone(),
            suspects,
            marker: work.marker(),
            runtime: runtime.clone(),
            metrics: metrics.clone(),
        };
        let loads_at_once = config.loads_at_once.max(1);
        let manager = Manager {
            ledger: ledger::Ledger::new(config.defaults, loads_at_once),
            news,
            answers,
            jobs: loader::start(loader, loads_at_once, done_sender)?,
            done,
            publisher,
            bury: Box::new(move |old| runtime.reaper().bury_shared(old)),
            metrics,
            scoreboard,
            events,
            shown: manager::Shown::nothing(),
        };
        Ok(Self {
            tasks: vec![
                tokio::spawn(store::watch(store, news_sender, asks)),
                tokio::spawn(manager.run()),
                tokio::task::spawn_blocking(move || remembered.prune(std::time::SystemTime::now())),
            ],
            _work: work,
        })
    }
}

impl Drop for Lifecycle {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

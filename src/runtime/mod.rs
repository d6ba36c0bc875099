//! A VERSION AT WORK: the servable with its queue, its batches and its instances.
//!
//! Knows backends and tensors; knows nothing of routes, of the store or of protocols. `engine` calls `Servable::run`;
//! `lifecycle` makes servables and drops them; `app` makes the one `Runtime`.

mod answers;
mod batch;
mod cache;
mod cores;
mod cost;
mod forming;
mod joining;
mod malloc;
mod marker;
mod pace;
mod priority;
mod queue;
mod reaper;
mod running;
mod servable;
mod shared;
mod split;
#[cfg(test)]
mod tests;
mod threads;
mod turns;
mod watchdog;
mod work;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

pub use cache::{AnswerCache, Digest, Found};
pub use cores::Cores;
pub use malloc::give_back as give_back_memory;
pub use marker::{Mark, Marker};
pub use priority::background;
pub use reaper::Reaper;
pub use running::Running;
pub use servable::{Servable, ServableConfig};
pub use work::{Done, Work};

use watchdog::Watchdog;

use crate::error::Result;

/// How the data plane is laid out.
#[derive(Clone, Debug)]
pub struct Config {
    /// Current-thread runtimes, one a core.
    pub cores: usize,
    /// The most that a turn of a core's loop spends on batches, all models together.
    pub loop_budget: Duration,
}

/// The data plane and what frees its remains. One a process.
pub struct Runtime {
    cores: Arc<Cores>,
    reaper: Reaper,
    watchdog: Watchdog,
    loop_budget: Duration,
    next_id: AtomicU64,
}

// === impl Runtime ===

impl Runtime {
    pub fn start(config: &Config) -> Result<Arc<Self>> {
        let reaper = Reaper::start()?;
        let watchdog = Watchdog::start()?;
        let cores = Arc::new(Cores::start(config.cores, config.loop_budget, &reaper, &watchdog)?);
        Ok(Arc::new(Self { cores, reaper, watchdog, loop_budget: config.loop_budget, next_id: AtomicU64::new(1) }))
    }

    pub fn cores(&self) -> &Arc<Cores> {
        &self.cores
    }

    pub fn reaper(&self) -> &Reaper {
        &self.reaper
    }

    fn watchdog(&self) -> &Watchdog {
        &self.watchdog
    }

    /// How long a core has been in one run, if that is so long that it will not come back.
    pub fn stuck(&self) -> Option<Duration> {
        self.watchdog.stuck()
    }

    pub fn loop_budget(&self) -> Duration {
        self.loop_budget
    }

    /// Drops whatever still runs on the data plane. After the drain, and before the process ends.
    pub fn stop(&self) {
        self.cores.stop();
        self.reaper.stop();
        self.watchdog.stop();
    }

    fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// A servable's last handle is gone: its sessions and weights go to the reaper.
    fn retire(&self, shared: Arc<shared::Shared>) {
        self.cores.retire(shared.id);
        self.reaper.bury_shared(shared);
    }
}

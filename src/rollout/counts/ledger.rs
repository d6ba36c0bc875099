//! How far the counts of one model have come: what was asked to be durable, what was tried, and what is.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering::AcqRel, Ordering::Acquire},
};

use tokio::sync::{Notify, watch};

use crate::{
    error::{Error, Result},
    model::ModelName,
};

pub struct Ledger {
    model: ModelName,
    /// Whether what this replica wrote before it was started anew is in the cells.
    restored: Mutex<bool>,
    /// Outcomes that are to become durable, by number.
    asked: AtomicU64,
    /// Somebody asked since the last attempt.
    waiting: Notify,
    progress: watch::Sender<Progress>,
}

/// Up to which number.
#[derive(Clone, Debug, Default)]
struct Progress {
    attempted: u64,
    durable: u64,
    /// Why the last attempt failed.
    trouble: Option<Error>,
}

// === impl Ledger ===

impl Ledger {
    pub fn new(model: ModelName) -> Self {
        Self {
            model,
            restored: Mutex::new(false),
            asked: AtomicU64::new(0),
            waiting: Notify::new(),
            progress: watch::Sender::new(Progress::default()),
        }
    }

    pub fn model(&self) -> &ModelName {
        &self.model
    }

    /// Held while cells are restored, or read beside the own file.
    pub fn restored(&self) -> MutexGuard<'_, bool> {
        self.restored.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// That all that is in the cells now becomes durable. Returns the number to wait for.
    pub fn ask(&self) -> u64 {
        let number = self.asked.fetch_add(1, AcqRel) + 1;
        self.waiting.notify_one();
        number
    }

    /// What a write that begins now covers.
    pub fn asked(&self) -> u64 {
        self.asked.load(Acquire)
    }

    /// Returns when somebody has asked since the last time.
    pub async fn waiting(&self) {
        self.waiting.notified().await;
    }

    /// Tells all who wait up to that number what came of it. Returns whether it is other than before.
    pub fn tell(&self, covered: u64, result: Result<()>) -> bool {
        let mut is_news = false;
        self.progress.send_modify(|progress| {
            progress.attempted = covered;
            if result.is_ok() {
                progress.durable = covered;
            }
            is_news = progress.trouble.is_some() != result.is_err();
            progress.trouble = result.err();
        });
        is_news
    }

    /// What comes of the first attempt that covers the number.
    pub async fn attempt(&self, number: u64) -> Result<()> {
        let mut progress = self.progress.subscribe();
        let progress = progress.wait_for(|progress| progress.attempted >= number).await;
        let progress = progress.expect("the sender is this ledger's own: this is a bug");
        match &progress.trouble {
            Some(trouble) if progress.durable < number => Err(trouble.clone()),
            _ => Ok(()),
        }
    }
}

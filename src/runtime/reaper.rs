//! Frees what is large or slow to free, on a thread of the control plane, never on the data plane.
//!
//! Sessions, weights and old snapshots come here when they leave. Weights are shared: the reaper keeps its handle until it
//! is the last one, so that the last one is never a request's.

use std::{
    any::Any,
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

use super::malloc;
use crate::error::{Error, Result};

/// A handle on the one reaper thread.
#[derive(Clone)]
pub struct Reaper {
    grave: Arc<Grave>,
}

struct Grave {
    /// Bounded by what was alive: nothing comes here that was not loaded before.
    dead: Mutex<Vec<Dead>>,
    arrived: Condvar,
}

enum Dead {
    /// Owned: freed at once.
    Owned(Box<dyn Any + Send>),
    /// Shared: freed when nobody else holds it.
    Shared(Box<dyn LastHandle>),
    Stop,
}

/// An `Arc` whose type does not matter.
trait LastHandle: Send {
    fn is_last(&self) -> bool;
}

/// How often shared things are looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

// === impl Reaper ===

impl Reaper {
    pub fn start() -> Result<Self> {
        let grave = Arc::new(Grave { dead: Mutex::new(Vec::new()), arrived: Condvar::new() });
        let theirs = grave.clone();
        std::thread::Builder::new()
            .name("reaper".into())
            .spawn(move || theirs.work())
            .map_err(|error| Error::internal("THREAD", format!("could not start the reaper: {error}")))?;
        Ok(Self { grave })
    }

    /// Frees it soon.
    pub fn bury(&self, owned: Box<dyn Any + Send>) {
        self.grave.push(Dead::Owned(owned));
    }

    /// Frees it when the caller's other handles are gone.
    pub fn bury_shared<T: Send + Sync + 'static>(&self, shared: Arc<T>) {
        self.grave.push(Dead::Shared(Box::new(shared)));
    }

    pub fn stop(&self) {
        self.grave.push(Dead::Stop);
    }
}

impl<T: Send + Sync> LastHandle for Arc<T> {
    fn is_last(&self) -> bool {
        Arc::strong_count(self) == 1
    }
}

// === impl Grave ===

impl Grave {
    fn push(&self, dead: Dead) {
        self.dead.lock().expect("no holder panics: this is a bug").push(dead);
        self.arrived.notify_one();
    }

    fn work(&self) {
        let mut held: Vec<Box<dyn LastHandle>> = Vec::new();
        loop {
            let arrived = self.wait(held.is_empty());
            let mut freed = !arrived.is_empty();
            for dead in arrived {
                match dead {
                    Dead::Owned(owned) => drop(owned),
                    Dead::Shared(shared) => held.push(shared),
                    Dead::Stop => return,
                }
            }
            let before = held.len();
            held.retain(|shared| !shared.is_last());
            freed |= held.len() < before;
            if freed {
                malloc::give_back();
            }
        }
    }

    /// What arrived; with something still held, nothing may have.
    fn wait(&self, idle: bool) -> Vec<Dead> {
        let mut dead = self.dead.lock().expect("no holder panics: this is a bug");
        if idle {
            while dead.is_empty() {
                dead = self.arrived.wait(dead).expect("no holder panics: this is a bug");
            }
        } else if dead.is_empty() {
            dead = self.arrived.wait_timeout(dead, LOOK_AGAIN).expect("no holder panics: this is a bug").0;
        }
        std::mem::take(&mut *dead)
    }
}

//! The data plane's threads. A placeholder with the signatures that the edge uses.

/// One current-thread runtime on each core.
pub struct Cores;

// === impl Cores ===

impl Cores {
    pub fn count(&self) -> usize {
        1
    }

    /// Runs `make` on that core's thread, inside its runtime.
    pub fn spawn_on(&self, _core: usize, _make: Box<dyn FnOnce() + Send>) {
        unimplemented!("written next")
    }
}

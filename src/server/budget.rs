//! The bytes that messages claim, taken from one budget before anything is reserved for them.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicI64, Ordering},
};

use smallvec::SmallVec;

/// What is left for all callers together, in bytes.
#[derive(Debug)]
pub struct Budget(AtomicI64);

/// What one call has taken, message by message; what is left of it goes back when the last holder lets go.
#[derive(Debug)]
pub struct Ledger {
    budget: Arc<Budget>,
    taken: Mutex<SmallVec<[usize; 2]>>,
}

/// Messages up to this size are not counted: the limit on calls in flight bounds them well enough, and a request of one row
/// then touches no counter that all cores share.
const UNCOUNTED_BYTES: usize = 16 << 10;

// === impl Budget ===

impl Budget {
    pub fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self(AtomicI64::new(bytes as i64)))
    }

    fn take(&self, bytes: usize) -> bool {
        let bytes = bytes as i64;
        let enough = self.0.fetch_sub(bytes, Ordering::Relaxed) >= bytes;
        if !enough {
            self.0.fetch_add(bytes, Ordering::Relaxed);
        }
        enough
    }

    fn give_back(&self, bytes: usize) {
        self.0.fetch_add(bytes as i64, Ordering::Relaxed);
    }
}

// === impl Ledger ===

impl Ledger {
    pub fn new(budget: Arc<Budget>) -> Arc<Self> {
        Arc::new(Self { budget, taken: Mutex::new(SmallVec::new()) })
    }

    /// Takes what the next message needs; `false` when there is not enough left.
    #[must_use]
    pub fn take(&self, bytes: usize) -> bool {
        let bytes = if bytes <= UNCOUNTED_BYTES { 0 } else { bytes };
        if bytes > 0 && !self.budget.take(bytes) {
            return false;
        }
        self.lock().push(bytes);
        true
    }

    /// The oldest message of a stream is answered.
    pub fn give_back_oldest(&self) {
        let mut taken = self.lock();
        if !taken.is_empty() {
            self.budget.give_back(taken.remove(0));
        }
    }

    fn lock(&self) -> MutexGuard<'_, SmallVec<[usize; 2]>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        let taken: usize = self.lock().iter().sum();
        if taken > 0 {
            self.budget.give_back(taken);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_comes_back_once() {
        const MIB: usize = 1 << 20;
        let budget = Budget::new(3 * MIB);
        let stream = Ledger::new(budget.clone());
        assert!(stream.take(MIB) && stream.take(10) && stream.take(2 * MIB));
        let other = Ledger::new(budget.clone());
        assert!(!other.take(MIB), "all is taken");
        assert!(other.take(UNCOUNTED_BYTES), "small ones always pass");
        stream.give_back_oldest();
        assert!(other.take(MIB));
        drop(stream);
        assert!(other.take(2 * MIB));
        drop(other);
        assert_eq!(budget.0.load(Ordering::Relaxed), 3 * MIB as i64);
    }
}

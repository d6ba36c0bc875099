//! The counts of one variant, as they go up. All threads that answer share one; nothing on the path of a request waits.

use std::{
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use super::{Compared, LiveSketch, Outcome, Tally};

#[derive(Debug, Default)]
pub struct Cell {
    assigned: AtomicU64,
    answered: AtomicU64,
    errors: AtomicU64,
    degraded: AtomicU64,
    non_finite: AtomicU64,
    /// Made at the first answer: a thousand models of which few are asked need not be as large.
    latency: OnceLock<LiveSketch>,
    /// What is counted seldom, and what this replica counted before it was started anew; `None` where there is nothing of either.
    beside: Mutex<Option<Box<Tally>>>,
    /// Of a shadow: how many requests are on their way to it, and how many bytes they hold.
    on_their_way: AtomicUsize,
    bytes_held: AtomicUsize,
    /// The variant is to get nothing here, whatever the route says.
    is_taken_out: AtomicBool,
    /// Rises with each change.
    changes: AtomicU64,
}

// === impl Cell ===

impl Cell {
    /// The route gave the variant a request.
    pub fn assign(&self) {
        self.assigned.fetch_add(1, Relaxed);
    }

    /// The route gave it a request, and stable answers in its place.
    pub fn stand_in(&self) {
        self.assign();
        self.degraded.fetch_add(1, Relaxed);
    }

    pub fn answer(&self, took: Duration, is_finite: bool) {
        self.answered.fetch_add(1, Relaxed);
        self.latency.get_or_init(LiveSketch::default).observe(took);
        if !is_finite {
            self.non_finite.fetch_add(1, Relaxed);
        }
    }

    pub fn fail(&self) {
        self.errors.fetch_add(1, Relaxed);
    }

    /// What became of a prediction whose first output was that.
    pub fn credit(&self, score: f64, outcome: &Outcome) {
        self.count_beside(|tally| tally.outcomes.credit(score, outcome));
    }

    /// A shadow's request is to be on its way; whether there is room. Whoever has room gives it back.
    pub fn enter(&self, bytes: usize, (requests_max, bytes_max): (usize, usize)) -> bool {
        let requests = self.on_their_way.fetch_add(1, Relaxed);
        let held = self.bytes_held.fetch_add(bytes, Relaxed);
        let has_room = requests < requests_max && held.saturating_add(bytes) <= bytes_max;
        if !has_room {
            self.leave(bytes);
        }
        has_room
    }

    pub fn leave(&self, bytes: usize) {
        self.on_their_way.fetch_sub(1, Relaxed);
        self.bytes_held.fetch_sub(bytes, Relaxed);
    }

    /// Notes something about a shadow.
    pub fn compare(&self, note: impl FnOnce(&mut Compared)) {
        self.count_beside(|tally| note(&mut tally.compared));
    }

    /// From now on nobody asks it here; whether anybody might have until now.
    pub fn take_out(&self) -> bool {
        !self.is_taken_out.swap(true, Relaxed)
    }

    pub fn is_taken_out(&self) -> bool {
        self.is_taken_out.load(Relaxed)
    }

    /// Counts on from there.
    pub fn restore(&self, before: &Tally) {
        self.count_beside(|tally| tally.merge(before));
    }

    /// Of all that is counted here: unchanged means that nothing happened.
    pub fn changes(&self) -> u64 {
        let counts = [&self.assigned, &self.answered, &self.errors, &self.changes];
        counts.iter().map(|count| count.load(Relaxed)).fold(0, u64::wrapping_add)
    }

    pub fn read(&self) -> Tally {
        let mut tally = self.beside().as_deref().cloned().unwrap_or_default();
        tally.merge(&Tally {
            assigned: self.assigned.load(Relaxed),
            answered: self.answered.load(Relaxed),
            errors: self.errors.load(Relaxed),
            degraded: self.degraded.load(Relaxed),
            non_finite: self.non_finite.load(Relaxed),
            latency: self.latency.get().map(LiveSketch::read).unwrap_or_default(),
            ..Tally::default()
        });
        tally
    }

    fn count_beside(&self, count: impl FnOnce(&mut Tally)) {
        count(self.beside().get_or_insert_default());
        self.changes.fetch_add(1, Relaxed);
    }

    /// Sums are whole after each step, so a panic elsewhere is no reason to stop counting.
    fn beside(&self) -> MutexGuard<'_, Option<Box<Tally>>> {
        self.beside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

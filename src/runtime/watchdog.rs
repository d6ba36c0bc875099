//! Sees runs that do not come back: on a core they keep all other models of that core waiting.
//!
//! Each core, and each thread of a model's own, has a seat on which it says what it runs; saying it is three stores. A thread of
//! the control plane looks at the seats: it ends a run for which nobody waits any more, its callers having gone or their time being
//! up, and one that holds up a core, where the library can; and a model that has held up a core runs on threads of its own from
//! then on.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    shared::Shared,
    work::{Caller, Reply},
};
use crate::{
    backend::Stopper,
    error::{Error, Result},
};

/// The one thread that looks. Cheap to clone.
#[derive(Clone)]
pub struct Watchdog(Arc<Inner>);

struct Inner {
    epoch: Instant,
    seats: Mutex<Vec<Weak<Seat>>>,
    /// How long the longest run of a core has been going on, in microseconds.
    longest: AtomicU64,
    stopped: AtomicBool,
}

/// Where runs happen one after another.
pub struct Seat {
    /// Whether other models wait behind the run.
    is_core: bool,
    epoch: Instant,
    /// In microseconds from `epoch`: when the run that is going on began; 0 between runs.
    since: AtomicU64,
    /// Likewise when the last of its callers gives up; 0 where one never does.
    until: AtomicU64,
    /// Whose run it is.
    servable: AtomicU64,
    /// The `since` of the last run that was found to hold up the core.
    held: AtomicU64,
    sitting: Mutex<HashMap<u64, Sitting>>,
    /// Who waits for the run that is going on. Not on a core, where what takes long is ended soon enough.
    callers: Mutex<Vec<Caller>>,
}

/// Who may run on a seat.
struct Sitting {
    shared: Weak<Shared>,
    stopper: Option<Arc<dyn Stopper>>,
}

/// What is wrong with a run.
#[derive(Debug, PartialEq, Eq)]
enum Wrong {
    /// It keeps a core from everything else.
    Holds,
    /// Nobody waits for it any more.
    Late,
}

/// A core that does not turn for so long is held up.
const HELD: Duration = Duration::from_millis(100);
const LOOK: Duration = Duration::from_millis(50);
/// A core that has been held up for so long does not come back: the process had better be started anew.
const STUCK: Duration = Duration::from_secs(30);

// === impl Watchdog ===

impl Watchdog {
    pub fn start() -> Result<Self> {
        let inner = Arc::new(Inner {
            epoch: Instant::now(),
            seats: Mutex::default(),
            longest: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
        });
        let watching = inner.clone();
        std::thread::Builder::new()
            .name("watchdog".into())
            .spawn(move || watching.watch())
            .map_err(|error| Error::internal("THREAD", format!("could not start the watchdog: {error}")))?;
        Ok(Self(inner))
    }

    pub fn seat(&self, is_core: bool) -> Arc<Seat> {
        let seat = Arc::new(Seat::new(self.0.epoch, is_core));
        self.0.seats.lock().expect("no holder panics: this is a bug").push(Arc::downgrade(&seat));
        seat
    }

    /// How long a core has been in one run, if that is so long that it will not come back.
    pub fn stuck(&self) -> Option<Duration> {
        Some(Duration::from_micros(self.0.longest.load(Ordering::Relaxed))).filter(|longest| *longest >= STUCK)
    }

    pub fn stop(&self) {
        self.0.stopped.store(true, Ordering::Relaxed);
    }
}

// === impl Inner ===

impl Inner {
    fn watch(&self) {
        while !self.stopped.load(Ordering::Relaxed) {
            std::thread::park_timeout(LOOK);
            self.look();
        }
    }

    fn look(&self) {
        let now = micros(self.epoch, Instant::now());
        let mut seats: Vec<Arc<Seat>> = Vec::new();
        self.seats.lock().expect("no holder panics: this is a bug").retain(|seat| {
            let seat = seat.upgrade();
            seats.extend(seat.clone());
            seat.is_some()
        });
        let running = seats.iter().filter(|seat| seat.is_core).map(|seat| seat.running_for(now));
        self.longest.store(running.max().unwrap_or(0), Ordering::Relaxed);
        for seat in seats {
            seat.look(now);
        }
    }
}

// === impl Seat ===

impl Seat {
    fn new(epoch: Instant, is_core: bool) -> Self {
        Self {
            is_core,
            epoch,
            since: AtomicU64::new(0),
            until: AtomicU64::new(0),
            servable: AtomicU64::new(0),
            held: AtomicU64::new(0),
            sitting: Mutex::default(),
            callers: Mutex::default(),
        }
    }

    pub fn is_core(&self) -> bool {
        self.is_core
    }

    /// A session that may run here from now on, in the place of an earlier one of the same servable.
    pub fn sit(&self, shared: &Arc<Shared>, stopper: Option<Arc<dyn Stopper>>) {
        let sitting = Sitting { shared: Arc::downgrade(shared), stopper };
        self.sitting.lock().expect("no holder panics: this is a bug").insert(shared.id, sitting);
    }

    pub fn leave(&self, servable: u64) {
        self.sitting.lock().expect("no holder panics: this is a bug").remove(&servable);
    }

    /// For a run, until `take_back` gives the same their callers again.
    pub fn lend<'a>(&self, replies: impl Iterator<Item = &'a mut Reply>) {
        if !self.is_core {
            self.callers().extend(replies.filter_map(Reply::lend));
        }
    }

    pub fn take_back<'a>(&self, replies: impl Iterator<Item = &'a mut Reply>) {
        if !self.is_core {
            replies.zip(self.callers().drain(..)).for_each(|(reply, caller)| reply.give_back(caller));
        }
    }

    fn callers(&self) -> MutexGuard<'_, Vec<Caller>> {
        self.callers.lock().expect("no holder panics: this is a bug")
    }

    pub fn begin(&self, servable: u64, now: Instant, until: Option<Instant>) {
        self.servable.store(servable, Ordering::Relaxed);
        self.until.store(until.map_or(0, |until| micros(self.epoch, until)), Ordering::Relaxed);
        self.since.store(micros(self.epoch, now), Ordering::Release);
    }

    pub fn end(&self) {
        self.since.store(0, Ordering::Release);
    }

    fn running_for(&self, now: u64) -> u64 {
        match self.since.load(Ordering::Acquire) {
            0 => 0,
            since => now.saturating_sub(since),
        }
    }

    /// What is wrong with the run that is going on, and when it began.
    fn wrong(&self, now: u64) -> Option<(Wrong, u64)> {
        let since = self.since.load(Ordering::Acquire);
        if since == 0 || since == self.held.load(Ordering::Relaxed) {
            return None;
        }
        let until = self.until.load(Ordering::Relaxed);
        if self.is_core && now.saturating_sub(since) >= HELD.as_micros() as u64 {
            return Some((Wrong::Holds, since));
        }
        let callers = self.callers();
        let all_gone = !callers.is_empty() && callers.iter().all(Caller::is_closed);
        (all_gone || (until != 0 && until <= now)).then_some((Wrong::Late, since))
    }

    /// A run that nobody waits for is told to end until it does, for it may not have listened yet. One that begins in the very
    /// moment of the stop may be ended in its place, and is run again.
    fn look(&self, now: u64) {
        let Some((wrong, since)) = self.wrong(now) else { return };
        if wrong == Wrong::Holds {
            self.held.store(since, Ordering::Relaxed);
        }
        let sitting = self.sitting.lock().expect("no holder panics: this is a bug");
        let servable = self.servable.load(Ordering::Acquire);
        if self.since.load(Ordering::Acquire) != since {
            // It has come back by itself, and what was read may be another's.
            return;
        }
        let Some(Sitting { shared, stopper }) = sitting.get(&servable) else { return };
        if wrong == Wrong::Holds
            && let Some(shared) = shared.upgrade()
        {
            shared.held_up_a_core(stopper.is_some());
        }
        if let Some(stopper) = stopper {
            stopper.stop();
        }
    }
}

/// Never 0.
fn micros(epoch: Instant, now: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(epoch).as_micros()).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1000;

    #[test]
    fn a_core_is_held_up_after_a_while_and_a_thread_only_by_what_nobody_waits_for() {
        let epoch = Instant::now();
        let at = |millis: u64| epoch + Duration::from_millis(millis);
        let (core, thread) = (Seat::new(epoch, true), Seat::new(epoch, false));
        for seat in [&core, &thread] {
            assert_eq!(seat.wrong(500 * MS), None, "nothing runs");
            seat.begin(1, at(500), None);
            assert_eq!(seat.wrong(599 * MS), None);
        }
        assert_eq!(core.wrong(600 * MS), Some((Wrong::Holds, 500 * MS)));
        assert_eq!(thread.wrong(5000 * MS), None);
        thread.begin(1, at(5000), Some(at(5050)));
        assert_eq!(thread.wrong(5049 * MS), None);
        assert_eq!(thread.wrong(5050 * MS), Some((Wrong::Late, 5000 * MS)));
        thread.look(5050 * MS);
        core.look(600 * MS);
        assert_eq!(core.wrong(6000 * MS), None, "its model moves once");
        assert_eq!(thread.wrong(6000 * MS), Some((Wrong::Late, 5000 * MS)), "until it ends");
        thread.end();
        assert_eq!((thread.wrong(6000 * MS), thread.running_for(6000 * MS)), (None, 0));
    }

    #[test]
    fn a_run_is_late_once_the_last_of_its_callers_has_gone() {
        let epoch = Instant::now();
        let seat = Seat::new(epoch, false);
        let (mut replies, mut answers): (Vec<_>, Vec<_>) = (0..2).map(|_| Reply::channel()).unzip();
        seat.lend(replies.iter_mut());
        seat.begin(1, epoch, None);
        assert_eq!(seat.wrong(5 * MS), None);
        drop(answers.pop());
        assert_eq!(seat.wrong(5 * MS), None, "one of them waits");
        drop(answers.pop());
        assert!(matches!(seat.wrong(5 * MS), Some((Wrong::Late, _))));
        seat.end();
        seat.take_back(replies.iter_mut());
        assert!(replies.iter().all(Reply::is_closed) && seat.callers().is_empty());
    }

    #[test]
    fn callers_get_their_own_replies_back() {
        let seat = Seat::new(Instant::now(), false);
        let (mut replies, answers): (Vec<_>, Vec<_>) = (0..3).map(|_| Reply::channel()).unzip();
        seat.lend(replies.iter_mut());
        seat.take_back(replies.iter_mut());
        for (place, reply) in replies.into_iter().enumerate() {
            assert!(reply.send(Err(Error::internal("TEST", place.to_string()))));
        }
        for (place, answer) in answers.into_iter().enumerate() {
            let answer = answer.blocking_recv().expect("it was sent");
            assert_eq!(answer.expect_err("as sent").message(), place.to_string());
        }
    }
}

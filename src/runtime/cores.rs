//! The data plane: a current-thread runtime on each core, and the batches that run in its event loop.
//!
//! Requests that are decoded in one turn of a core's loop lie in that core's queues; then the core's runner takes its turn:
//! one batch of each model that waits, in turn, until the loop budget is spent. What does not fit waits for the next turn,
//! after the sockets had theirs. So batches form by themselves, cost no thread hop, and no model holds up the others for
//! longer than the budget and one batch.

use std::{
    cell::RefCell,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::{
    batch::Pendings,
    priority,
    reaper::Reaper,
    turns::{Core, Handed},
    watchdog::{Seat, Watchdog},
};
use crate::error::{Error, Result};

/// The cores of the data plane.
pub struct Cores {
    inboxes: Vec<Arc<Inbox>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Round robin for work that comes from outside the data plane.
    next: AtomicUsize,
}

/// How the rest of the process speaks to one core.
struct Inbox {
    jobs: Mutex<Vec<Job>>,
    /// Wakes the core for its jobs.
    wake: Notify,
    /// It sleeps, and nobody has woken it yet.
    idle: AtomicBool,
}

/// The other cores.
pub struct Peers(Vec<Arc<Inbox>>);

/// A core that has nothing to do, but what it is given now.
pub struct Claimed<'a>(&'a Inbox);

enum Job {
    Run(Box<dyn FnOnce() + Send>),
    Batch(Handed),
    /// A servable left: its session goes to the reaper.
    Retire(u64),
    Stop,
}

/// Short beside the deadlines of calls, and nothing beside what an idle process may use.
const TICK: Duration = Duration::from_millis(100);

thread_local! {
    /// The state of this core; `None` on threads that are none.
    static CORE: RefCell<Option<Core>> = const { RefCell::new(None) };
}

// === impl Cores ===

impl Cores {
    pub fn start(count: usize, loop_budget: Duration, reaper: &Reaper, watchdog: &Watchdog) -> Result<Self> {
        let inbox = || Inbox { jobs: Mutex::new(Vec::new()), wake: Notify::new(), idle: AtomicBool::new(false) };
        let inboxes: Vec<Arc<Inbox>> = std::iter::repeat_with(|| Arc::new(inbox())).take(count).collect();
        let mut threads = Vec::with_capacity(count);
        for (index, inbox) in inboxes.iter().enumerate() {
            let (inbox, reaper, seat) = (inbox.clone(), reaper.clone(), watchdog.seat(true));
            // Each begins to ask at the next one, so that they do not all ask the same.
            let others = inboxes.iter().cycle().skip(index + 1).take(count - 1).cloned();
            let peers = Peers(others.collect());
            let thread = std::thread::Builder::new()
                .name(format!("core-{index}"))
                .spawn(move || run_core(&inbox, peers, loop_budget, &reaper, seat))
                .map_err(|error| Error::internal("THREAD", format!("could not start a core's thread: {error}")))?;
            threads.push(thread);
        }
        Ok(Self { inboxes, threads: Mutex::new(threads), next: AtomicUsize::new(0) })
    }

    pub fn count(&self) -> usize {
        self.inboxes.len()
    }

    /// Runs `make` on that core's thread, inside its runtime: what it spawns stays there.
    pub fn spawn_on(&self, core: usize, make: Box<dyn FnOnce() + Send>) {
        self.inboxes[core % self.inboxes.len()].send(Job::Run(make));
    }

    /// Queues the work on this core, or on the next one where the caller is not on a core.
    pub(super) fn submit(&self, pendings: Pendings) -> Result<()> {
        let elsewhere = CORE.with_borrow_mut(|core| match core {
            Some(core) => core.submit(pendings).map(|()| None).map_err(|refused| refused.1),
            None => Ok(Some(pendings)),
        })?;
        if let Some(pendings) = elsewhere {
            let core = self.next.fetch_add(1, Ordering::Relaxed);
            self.spawn_on(core, Box::new(move || submit_here(pendings)));
        }
        Ok(())
    }

    /// Tells every core to hand over the servable's session.
    pub(super) fn retire(&self, id: u64) {
        for inbox in &self.inboxes {
            inbox.send(Job::Retire(id));
        }
    }

    /// Drops the data-plane runtimes with whatever still runs in them, and waits for their threads.
    pub fn stop(&self) {
        for inbox in &self.inboxes {
            inbox.send(Job::Stop);
        }
        let threads = std::mem::take(&mut *self.threads.lock().expect("no holder panics: this is a bug"));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a core's thread ended with a panic");
            }
        }
    }
}

// === impl Inbox ===

impl Inbox {
    fn send(&self, job: Job) {
        self.jobs.lock().expect("no holder panics: this is a bug").push(job);
        self.wake.notify_one();
    }

    fn take(&self) -> Vec<Job> {
        std::mem::take(&mut *self.jobs.lock().expect("no holder panics: this is a bug"))
    }
}

// === impl Peers ===

impl Peers {
    /// One that sleeps, and is given something now.
    pub fn claim(&self) -> Option<Claimed<'_>> {
        let idle = |inbox: &&Arc<Inbox>| {
            inbox.idle.load(Ordering::Relaxed)
                && inbox.idle.compare_exchange(true, false, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        };
        self.0.iter().find(idle).map(|inbox| Claimed(inbox))
    }
}

// === impl Claimed ===

impl Claimed<'_> {
    pub fn hand(self, batch: Handed) {
        self.0.send(Job::Batch(batch));
    }
}

/// For work from outside: nobody awaits the refusal here, so the replies carry it.
fn submit_here(pendings: Pendings) {
    CORE.with_borrow_mut(|core| {
        let Some(core) = core else { return };
        if let Err(refused) = core.submit(pendings) {
            let (pendings, error) = *refused;
            for pending in pendings {
                let _ = pending.reply.send(Err(error.clone()));
            }
        }
    });
}

/// The thread of one core.
fn run_core(inbox: &Arc<Inbox>, peers: Peers, loop_budget: Duration, reaper: &Reaper, seat: Arc<Seat>) {
    if let Err(error) = priority::prompt() {
        tracing::debug!(%error, "a core may have to wait for the slices of other threads");
    }
    let (sleeps, wakes) = (inbox.clone(), inbox.clone());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_park(move || sleeps.idle.store(true, Ordering::Relaxed))
        .on_thread_unpark(move || wakes.idle.store(false, Ordering::Relaxed))
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return tracing::error!(%error, "a core's runtime could not be made"),
    };
    let wake = Arc::new(Notify::new());
    CORE.set(Some(Core::new(peers.0.len() + 1, loop_budget, wake.clone(), seat, peers)));
    runtime.spawn(take_turns(wake));
    runtime.spawn(tick());
    runtime.block_on(follow(inbox, reaper));
    // First the tasks, whose callers are told by the closing of their connections; then the sessions.
    drop(runtime);
    CORE.set(None);
}

/// Does what the rest of the process asks of this core, until it is told to stop.
async fn follow(inbox: &Inbox, reaper: &Reaper) {
    loop {
        inbox.wake.notified().await;
        for job in inbox.take() {
            match job {
                Job::Run(make) => make(),
                Job::Batch(handed) => CORE.with_borrow_mut(|core| {
                    if let Some(core) = core {
                        core.run_handed(handed);
                    }
                }),
                Job::Retire(id) => {
                    let slot = CORE.with_borrow_mut(|core| core.as_mut().and_then(|core| core.retire(id)));
                    if let Some(slot) = slot {
                        reaper.bury(Box::new(slot));
                    }
                }
                Job::Stop => return,
            }
        }
        send_answers().await;
    }
}

/// The runner: a turn of batches, then a turn for the sockets.
async fn take_turns(wake: Arc<Notify>) {
    loop {
        let until = CORE.with_borrow(|core| core.as_ref()?.waits_until());
        match until {
            None => wake.notified().await,
            Some(until) => tokio::select! {
                () = wake.notified() => {}
                () = reach(until) => {}
            },
        }
        loop {
            let more = CORE.with_borrow_mut(|core| core.as_mut().is_some_and(Core::take_turn));
            send_answers().await;
            if !more {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
}

/// A turn for the sockets after each few.
async fn send_answers() {
    while CORE.with_borrow_mut(|core| core.as_mut().is_some_and(Core::answers_wait)) {
        tokio::task::yield_now().await;
        CORE.with_borrow_mut(|core| core.as_mut().map(Core::send_answers));
    }
}

/// The runtime wakes itself, with a system call, whenever a timer is set that is due before all others; calls set timers all the
/// time. One that is always due soon spares them that.
async fn tick() {
    let mut ticks = tokio::time::interval(TICK);
    loop {
        ticks.tick().await;
    }
}

/// Returns at that moment. The runtime's timer knows milliseconds only: the last one is spent on the sockets, turn by turn.
async fn reach(until: Instant) {
    const COARSE: Duration = Duration::from_millis(2);
    if let Some(early) = until.checked_sub(COARSE).filter(|early| *early > Instant::now()) {
        tokio::time::sleep_until(early.into()).await;
    }
    while Instant::now() < until {
        tokio::task::yield_now().await;
    }
}

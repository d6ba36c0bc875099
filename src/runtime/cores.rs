//! The data plane: a current-thread runtime on each core, and the batches that run in its event loop.
//!
//! Requests that are decoded in one turn of a core's loop lie in that core's queues; then the core's runner takes its turn:
//! one batch of each model that waits, in turn, until the loop budget is spent. What does not fit waits for the next turn,
//! after the sockets had theirs. So batches form by themselves, cost no thread hop, and no model holds up the others for
//! longer than the budget and one batch.

use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::{
    batch::{Instance, Pending, Pendings},
    priority,
    queue::{Ask, Queue, Queued, Taken},
    reaper::Reaper,
    shared::Shared,
    watchdog::{Seat, Watchdog},
    work::draining,
};
use crate::{
    error::{Error, Result},
    telemetry::metrics::Closed,
};

/// The cores of the data plane.
pub struct Cores {
    inboxes: Vec<Arc<Inbox>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Round robin for work that comes from outside the data plane.
    next: AtomicUsize,
}

/// Short beside the deadlines of calls, and nothing beside what an idle process may use.
const TICK: Duration = Duration::from_millis(100);

/// How the rest of the process speaks to one core.
struct Inbox {
    jobs: Mutex<Vec<Job>>,
    /// Wakes the core for its jobs.
    wake: Notify,
}

enum Job {
    Run(Box<dyn FnOnce() + Send>),
    /// A servable left: its session goes to the reaper.
    Retire(u64),
    Stop,
}

thread_local! {
    /// The state of this core; `None` on threads that are none.
    static CORE: RefCell<Option<Core>> = const { RefCell::new(None) };
}

/// What one core owns. Touched by its own thread only, and never across an await.
struct Core {
    /// The table by servable: queue and session.
    slots: HashMap<u64, Slot>,
    /// Servables with something in their queue that may run, in the order of their turns.
    turns: VecDeque<u64>,
    /// Those whose batches wait to be larger, by when they are asked again.
    waits: BTreeSet<(Instant, u64)>,
    /// How many cores share a servable's limits.
    cores: usize,
    loop_budget: Duration,
    /// Wakes the runner.
    wake: Arc<Notify>,
    /// Says what runs.
    seat: Arc<Seat>,
}

struct Slot {
    shared: Arc<Shared>,
    queue: Queue<Pending>,
    /// Made at the first request.
    instance: Option<Instance>,
    stands: Stands,
}

/// Where a servable stands on a core.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stands {
    /// Nothing is in its queue.
    Rests,
    /// It is among the `turns`.
    Turn,
    /// It is among the `waits`.
    Waits(Instant),
}

// === impl Cores ===

impl Cores {
    pub fn start(count: usize, loop_budget: Duration, reaper: &Reaper, watchdog: &Watchdog) -> Result<Self> {
        let mut inboxes = Vec::with_capacity(count);
        let mut threads = Vec::with_capacity(count);
        for index in 0..count {
            let inbox = Arc::new(Inbox { jobs: Mutex::new(Vec::new()), wake: Notify::new() });
            inboxes.push(inbox.clone());
            let (reaper, seat) = (reaper.clone(), watchdog.seat(true));
            let thread = std::thread::Builder::new()
                .name(format!("core-{index}"))
                .spawn(move || run_core(&inbox, count, loop_budget, &reaper, seat))
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

// === impl Core ===

impl Core {
    /// Queues all of one request, or gives it back with the refusal.
    fn submit(&mut self, pendings: Pendings) -> Result<(), Box<(Pendings, Error)>> {
        let Some(shared) = pendings.first().map(|pending| pending.shared.clone()) else {
            return Ok(());
        };
        let id = shared.id;
        let slot = self.slots.entry(id).or_insert_with(|| Slot {
            queue: Queue::new(shared.limits(self.cores), shared.forming()),
            shared,
            instance: None,
            stands: Stands::Rests,
        });
        let rows: usize = pendings.iter().map(Pending::rows).sum();
        slot.queue.push(pendings).map_err(|(pendings, full)| Box::new((pendings, slot.shared.queue_full(full))))?;
        // One gauge for all cores: each adds and takes off what it holds.
        slot.shared.metrics.queue_rows.inc_by(rows as i64);
        if let Stands::Waits(until) = slot.stands {
            self.waits.remove(&(until, id));
        }
        if slot.stands != Stands::Turn {
            slot.stands = Stands::Turn;
            self.turns.push_back(id);
            self.wake.notify_one();
        }
        Ok(())
    }

    /// One batch of each servable that waits, in turn, until nothing waits or the budget is spent. Whether something
    /// still waits for its turn.
    fn take_turn(&mut self) -> bool {
        let started = Instant::now();
        self.end_waits(started);
        let mut now = started;
        while let Some(id) = self.turns.pop_front() {
            let Some(slot) = self.slots.get_mut(&id) else { continue };
            let left = self.loop_budget.saturating_sub(now - started);
            let fits = slot.shared.cost.rows_within(left, slot.shared.manifest.max_batch_size);
            // The first batch of a turn always gets something done, whatever it costs.
            if fits == 0 && now > started {
                self.turns.push_front(id);
                break;
            }
            slot.stands = slot.run(now, fits.max(1), &self.seat);
            match slot.stands {
                Stands::Rests => {}
                Stands::Turn => self.turns.push_back(id),
                Stands::Waits(until) => drop(self.waits.insert((until, id))),
            }
            now = Instant::now();
        }
        !self.turns.is_empty()
    }

    /// Those whose time has come take their turn.
    fn end_waits(&mut self, now: Instant) {
        while let Some(&(until, id)) = self.waits.first()
            && until <= now
        {
            self.waits.pop_first();
            if let Some(slot) = self.slots.get_mut(&id) {
                slot.stands = Stands::Turn;
                self.turns.push_back(id);
            }
        }
    }

    /// The servable left: nobody can submit to it any more.
    fn retire(&mut self, id: u64) -> Option<Slot> {
        let mut slot = self.slots.remove(&id)?;
        if let Stands::Waits(until) = slot.stands {
            self.waits.remove(&(until, id));
        }
        slot.shared.metrics.queue_rows.dec_by(slot.queue.rows() as i64);
        for pending in slot.queue.drain() {
            let _ = pending.reply.send(Err(draining()));
        }
        Some(slot)
    }
}

// === impl Slot ===

impl Slot {
    /// Runs a batch, if one closes now. Returns where the servable stands afterwards.
    fn run(&mut self, now: Instant, rows_max: usize, seat: &Arc<Seat>) -> Stands {
        let before = self.queue.rows();
        let cost = &self.shared.cost;
        let batch_max = self.shared.manifest.max_batch_size;
        let predict = |rows| cost.predict(rows);
        let taken = self.queue.take(&Ask { now, rows_max, batch_max, because: Closed::Turn, predict: &predict });
        self.shared.metrics.queue_rows.dec_by((before - self.queue.rows()) as i64);
        let stands = match (self.queue.is_empty(), taken.again) {
            (true, _) => Stands::Rests,
            (false, None) => Stands::Turn,
            (false, Some(until)) => Stands::Waits(until),
        };
        self.answer(taken, seat);
        stands
    }

    fn answer(&mut self, taken: Taken<Pending>, seat: &Arc<Seat>) {
        let instance = match &mut self.instance {
            Some(instance) => instance,
            none => match Instance::new(&self.shared, seat.clone()) {
                Ok(instance) => none.insert(instance),
                Err(error) => {
                    for pending in taken.batch {
                        let _ = pending.reply.send(Err(error.clone()));
                    }
                    return;
                }
            },
        };
        instance.run(&self.shared, taken);
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
fn run_core(inbox: &Inbox, cores: usize, loop_budget: Duration, reaper: &Reaper, seat: Arc<Seat>) {
    if let Err(error) = priority::prompt() {
        tracing::debug!(%error, "a core may have to wait for the slices of other threads");
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return tracing::error!(%error, "a core's runtime could not be made"),
    };
    let wake = Arc::new(Notify::new());
    CORE.set(Some(Core {
        slots: HashMap::new(),
        turns: VecDeque::new(),
        waits: BTreeSet::new(),
        cores,
        loop_budget,
        wake: wake.clone(),
        seat,
    }));
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
                Job::Retire(id) => {
                    let slot = CORE.with_borrow_mut(|core| core.as_mut().and_then(|core| core.retire(id)));
                    if let Some(slot) = slot {
                        reaper.bury(Box::new(slot));
                    }
                }
                Job::Stop => return,
            }
        }
    }
}

/// The runner: a turn of batches, then a turn for the sockets.
async fn take_turns(wake: Arc<Notify>) {
    loop {
        let until = CORE.with_borrow(|core| Some(core.as_ref()?.waits.first()?.0));
        match until {
            None => wake.notified().await,
            Some(until) => tokio::select! {
                () = wake.notified() => {}
                () = reach(until) => {}
            },
        }
        while CORE.with_borrow_mut(|core| core.as_mut().is_some_and(Core::take_turn)) {
            tokio::task::yield_now().await;
        }
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

//! Threads of a servable's own, for work that does not fit into a turn of the event loop.
//!
//! They pull: an idle one takes whatever waits, up to the limit. A request that still waits when its time is up is taken
//! back by its caller, so "it was not run" is the truth; the ticket decides who was first.

use std::{
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use smallvec::SmallVec;
use tokio::sync::oneshot;

use super::{
    answers::Answers,
    batch::{Instance, Pending, Pendings},
    queue::{Ask, Queue, Queued, Taken},
    running::Answering,
    shared::Shared,
    watchdog::{Seat, Watchdog},
    work::{Outcome, draining},
};
use crate::{
    error::{Error, Result},
    model::Priority,
    telemetry::metrics::Closed,
};

/// The threads of one servable.
pub struct Threads {
    queue: Arc<ThreadQueue>,
}

/// Says whether the work has begun: taken once, by the thread that runs it or by the caller who gives up.
pub struct Ticket(Arc<AtomicBool>);

struct ThreadQueue {
    state: Mutex<State>,
    /// Signalled when something waits, and when the queue closes.
    waiting: Condvar,
    shared: Arc<Shared>,
}

struct State {
    queue: Queue<Ticketed>,
    closed: bool,
}

struct Ticketed {
    pending: Pending,
    ticket: Arc<AtomicBool>,
}

// === impl Threads ===

impl Threads {
    pub fn start(shared: &Arc<Shared>, watchdog: &Watchdog) -> Self {
        let state = State { queue: Queue::new(shared.limits(1), shared.forming()), closed: false };
        let queue = Arc::new(ThreadQueue { state: Mutex::new(state), waiting: Condvar::new(), shared: shared.clone() });
        for index in 0..shared.manifest.instances {
            let (queue, seat) = (queue.clone(), watchdog.seat(false));
            let name = format!("run-{}-{index}", shared.model);
            let started =
                std::thread::Builder::new().name(name.chars().take(15).collect()).spawn(move || queue.work(seat));
            if let Err(error) = started {
                tracing::error!(model = %shared.model, %error, "could not start a thread for the model");
            }
        }
        Self { queue }
    }

    /// Queues all of one request. Its parts have one ticket each.
    pub fn submit(&self, pendings: Pendings) -> Result<SmallVec<[Ticket; 1]>> {
        let ticketed = |pending| Ticketed { pending, ticket: Arc::new(AtomicBool::new(false)) };
        let ticketed: SmallVec<[Ticketed; 1]> = pendings.into_iter().map(ticketed).collect();
        let tickets = ticketed.iter().map(|ticketed| Ticket(ticketed.ticket.clone())).collect();
        let rows: usize = ticketed.iter().map(Ticketed::rows).sum();
        let parts = ticketed.len();
        let mut state = self.queue.lock();
        if state.closed {
            return Err(draining());
        }
        state.queue.push(ticketed).map_err(|(_, full)| self.queue.shared.queue_full(full))?;
        drop(state);
        self.queue.shared.metrics.queue_rows.inc_by(rows as i64);
        match parts {
            1 => self.queue.waiting.notify_one(),
            _ => self.queue.waiting.notify_all(),
        }
        Ok(tickets)
    }

    /// Waits for the answer; until the work begins no longer than the queue's time-out, where it has one, and in all until the deadline.
    pub async fn wait(
        &self,
        ticket: Ticket,
        mut answer: oneshot::Receiver<Result<Outcome>>,
        deadline: Option<Instant>,
        queue_deadline: Option<Instant>,
    ) -> Result<Outcome> {
        let Some(queue_deadline) = queue_deadline else {
            return Answering::new(answer, deadline).await;
        };
        let first = deadline.map_or(queue_deadline, |deadline| deadline.min(queue_deadline));
        if let Ok(answered) = tokio::time::timeout_at(first.into(), &mut answer).await {
            return answered.unwrap_or_else(|_| Err(draining()));
        }
        let waited_in_vain = !ticket.0.swap(true, Ordering::AcqRel);
        match (waited_in_vain, deadline) {
            (true, Some(deadline)) if deadline <= queue_deadline => {
                Err(Error::deadline_exceeded("while the request waited; it was not run"))
            }
            (true, _) => Err(self.queue.shared.queue_timeout()),
            (false, _) => Answering::new(answer, deadline).await,
        }
    }

    /// Lets the threads finish what waits and end.
    pub fn close(&self) {
        self.queue.lock().closed = true;
        self.queue.waiting.notify_all();
    }
}

// === impl ThreadQueue ===

impl ThreadQueue {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics: this is a bug")
    }

    /// The life of one thread: a session of its own, made here so that what a library ties to a thread is tied to this one.
    fn work(&self, seat: Arc<Seat>) {
        let mut instance = match Instance::new(&self.shared, seat) {
            Ok(instance) => instance,
            Err(error) => return self.refuse_all(&error),
        };
        let mut answers = Answers::at_once();
        while let Some(taken) = self.next() {
            instance.run(&self.shared, taken, &mut answers);
        }
    }

    /// The next batch; `None` when the queue is closed and empty.
    fn next(&self) -> Option<Taken<Pending>> {
        let cost = &self.shared.cost;
        let batch_max = self.shared.manifest.max_batch_size;
        let predict = |rows| cost.predict(rows);
        let mut state = self.lock();
        loop {
            if state.queue.is_empty() {
                if state.closed {
                    return None;
                }
                state = self.waiting.wait(state).expect("no holder panics: this is a bug");
                continue;
            }
            let (before, now) = (state.queue.rows(), Instant::now());
            let ask = Ask { now, rows_max: batch_max, batch_max, because: Closed::Idle, predict: &predict };
            let mut taken = state.queue.take(&ask);
            self.shared.metrics.queue_rows.dec_by((before - state.queue.rows()) as i64);
            // Who gave up in this moment has been answered already.
            taken.batch.retain(|ticketed| !ticketed.ticket.swap(true, Ordering::AcqRel));
            if let (Some(until), true) = (taken.again, taken.expired.is_empty() && taken.overdue.is_empty()) {
                let wait = until.saturating_duration_since(now);
                (state, _) = self.waiting.wait_timeout(state, wait).expect("no holder panics: this is a bug");
                continue;
            }
            let plain = |items: Vec<Ticketed>| items.into_iter().map(|ticketed| ticketed.pending).collect();
            return Some(Taken {
                batch: plain(taken.batch),
                expired: plain(taken.expired),
                overdue: plain(taken.overdue),
                closed: taken.closed,
                again: taken.again,
            });
        }
    }

    fn refuse_all(&self, error: &Error) {
        tracing::error!(model = %self.shared.model, error = error.message(), "a session could not be made");
        while let Some(taken) = self.next() {
            for pending in taken.batch {
                let _ = pending.reply.send(Err(error.clone()));
            }
        }
    }
}

// === impl Ticketed ===

impl Queued for Ticketed {
    fn rows(&self) -> usize {
        self.pending.rows()
    }

    fn bytes(&self) -> usize {
        self.pending.bytes()
    }

    fn priority(&self) -> Priority {
        self.pending.priority()
    }

    fn deadline(&self) -> Option<Instant> {
        self.pending.deadline()
    }

    fn enqueued(&self) -> Instant {
        self.pending.enqueued()
    }

    fn goes_on(&self) -> bool {
        self.pending.goes_on
    }

    fn gone(&self) -> bool {
        self.pending.gone() || self.ticket.load(Ordering::Acquire)
    }

    fn joins(&self, other: &Self) -> bool {
        self.pending.joins(&other.pending)
    }
}

//! One core's turns: what waits there, which batch runs when, and what a core that has nothing to do may take over.
//!
//! Touched by the core's own thread only, and never across an await.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::{
    answers::Answers,
    batch::{Instance, Pending, Pendings},
    cores::{Claimed, Peers},
    queue::{Ask, Queue, Queued, Taken},
    shared::Shared,
    watchdog::Seat,
    work::draining,
};
use crate::{
    error::{Error, Result},
    telemetry::metrics::Closed,
};

/// What one core owns.
pub struct Core {
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
    peers: Peers,
    /// What has run and is on its way.
    answers: Answers,
}

pub struct Slot {
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

/// A batch that another core runs.
pub struct Handed {
    shared: Arc<Shared>,
    taken: Taken<Pending>,
}

/// A batch of several requests that takes so long is given to a core that sleeps: meanwhile this one decodes the requests that come,
/// which would otherwise wait in their sockets, where nobody sees them.
const WORTH_GIVING_AWAY: Duration = Duration::from_micros(200);
/// Another core is woken for nothing that would not wait for longer than this: waking it costs about a tenth.
const WORTH_HANDING_OVER: Duration = Duration::from_micros(100);

// === impl Core ===

impl Core {
    /// One of `cores`; `wake` wakes the runner.
    pub fn new(cores: usize, loop_budget: Duration, wake: Arc<Notify>, seat: Arc<Seat>, peers: Peers) -> Self {
        Self {
            slots: HashMap::new(),
            turns: VecDeque::new(),
            waits: BTreeSet::new(),
            cores,
            loop_budget,
            wake,
            seat,
            peers,
            answers: Answers::in_turns(),
        }
    }

    /// When what waits to be larger is to be looked at again.
    pub fn waits_until(&self) -> Option<Instant> {
        self.waits.first().map(|(until, _)| *until)
    }

    /// Queues all of one request, or gives it back with the refusal.
    pub fn submit(&mut self, pendings: Pendings) -> Result<(), Box<(Pendings, Error)>> {
        let Some(shared) = pendings.first().map(|pending| pending.shared.clone()) else {
            return Ok(());
        };
        let id = shared.id;
        let slot = self.slots.entry(id).or_insert_with(|| Slot::new(shared, self.cores));
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
    pub fn take_turn(&mut self) -> bool {
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
            let taken = slot.take(now, fits.max(1));
            let rows = taken.batch.iter().map(Pending::rows).sum();
            let takes = slot.shared.cost.predict(rows);
            let stands = slot.stands;
            self.stand(id, stands);
            if takes >= WORTH_GIVING_AWAY
                && taken.batch.len() > 1
                && let Some(peer) = self.peers.claim()
            {
                if let Some(slot) = self.slots.get(&id) {
                    slot.give(peer, taken);
                }
                now = Instant::now();
                continue;
            }
            if takes >= WORTH_HANDING_OVER && !self.turns.is_empty() {
                self.hand_over(now);
            }
            if let Some(slot) = self.slots.get_mut(&id) {
                slot.answer(taken, &self.seat, &mut self.answers);
            }
            now = Instant::now();
        }
        !self.turns.is_empty()
    }

    /// Whether batches have left more answers than go in one turn.
    pub fn answers_wait(&mut self) -> bool {
        self.answers.wait()
    }

    /// Lets the next few go.
    pub fn send_answers(&mut self) {
        self.answers.take_turn();
    }

    /// To where it stands after something was taken from its queue.
    fn stand(&mut self, id: u64, stands: Stands) {
        match stands {
            Stands::Rests => {}
            Stands::Turn => self.turns.push_back(id),
            Stands::Waits(until) => drop(self.waits.insert((until, id))),
        }
    }

    /// What would wait for a turn while another core has nothing to do is run there: a batch for each such core.
    fn hand_over(&mut self, now: Instant) {
        for _ in 0..self.turns.len() {
            let Some(id) = self.turns.pop_front() else { return };
            while let Some(slot) = self.slots.get_mut(&id).filter(|slot| slot.stands == Stands::Turn)
                && slot.shared.cost.predict(slot.queue.rows()) >= WORTH_HANDING_OVER
                && let Some(peer) = self.peers.claim()
            {
                let fits = slot.shared.cost.rows_within(self.loop_budget, slot.shared.manifest.max_batch_size);
                let taken = slot.take(now, fits.max(1));
                slot.give(peer, taken);
            }
            let stands = self.slots.get(&id).map_or(Stands::Rests, |slot| slot.stands);
            self.stand(id, stands);
        }
    }

    /// Runs what another core had no time for.
    pub fn run_handed(&mut self, Handed { shared, taken }: Handed) {
        let slot = self.slots.entry(shared.id).or_insert_with(|| Slot::new(shared, self.cores));
        slot.answer(taken, &self.seat, &mut self.answers);
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
    pub fn retire(&mut self, id: u64) -> Option<Slot> {
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
    fn new(shared: Arc<Shared>, cores: usize) -> Self {
        let queue = Queue::new(shared.limits(cores), shared.forming());
        Self { queue, shared, instance: None, stands: Stands::Rests }
    }

    /// Takes a batch, if one closes now.
    fn take(&mut self, now: Instant, rows_max: usize) -> Taken<Pending> {
        let before = self.queue.rows();
        let cost = &self.shared.cost;
        let batch_max = self.shared.manifest.max_batch_size;
        let predict = |rows| cost.predict(rows);
        let taken = self.queue.take(&Ask { now, rows_max, batch_max, because: Closed::Turn, predict: &predict });
        self.shared.metrics.queue_rows.dec_by((before - self.queue.rows()) as i64);
        self.stands = match (self.queue.is_empty(), taken.again) {
            (true, _) => Stands::Rests,
            (false, None) => Stands::Turn,
            (false, Some(until)) => Stands::Waits(until),
        };
        taken
    }

    fn give(&self, peer: Claimed<'_>, taken: Taken<Pending>) {
        self.shared.metrics.handed_over.inc();
        peer.hand(Handed { shared: self.shared.clone(), taken });
    }

    fn answer(&mut self, taken: Taken<Pending>, seat: &Arc<Seat>, answers: &mut Answers) {
        let instance = match &mut self.instance {
            Some(instance) => instance,
            none => match Instance::new(&self.shared, seat.clone()) {
                Ok(instance) => none.insert(instance),
                Err(error) => {
                    for pending in taken.batch {
                        answers.give(pending.reply, Err(error.clone()));
                    }
                    return;
                }
            },
        };
        instance.run(&self.shared, taken, answers);
    }
}

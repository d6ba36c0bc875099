//! What waits for one servable on one core, or for its threads: bounded, by priority, by arrival.
//!
//! Pure: time comes as an argument. The drivers (`cores`, `threads`) push and take; `forming` decides when a batch closes.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{
    forming::{Forming, Group, Verdict},
    pace::Pace,
};
use crate::{model::Priority, telemetry::metrics::Closed};

/// What the queue asks of an item.
pub trait Queued {
    fn rows(&self) -> usize;
    fn bytes(&self) -> usize;
    fn priority(&self) -> Priority;
    /// After this moment nobody waits for the answer.
    fn deadline(&self) -> Option<Instant>;
    fn enqueued(&self) -> Instant;
    /// Whether it goes on with a request whose first part is in the queue, or left it: how long that one may wait counts.
    fn goes_on(&self) -> bool;
    /// Whether the caller went away.
    fn gone(&self) -> bool;
    /// Whether the two may be rows of one run.
    fn joins(&self, other: &Self) -> bool;
}

/// What may wait, and how long.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub rows_max: usize,
    pub bytes_max: usize,
    pub timeout: Duration,
}

/// Which limit was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    Rows,
    Bytes,
    /// What is before it would keep it waiting for longer than it may.
    Time,
}

/// What a driver asks of the queue.
pub struct Ask<'a> {
    pub now: Instant,
    /// The largest batch that it can run now.
    pub rows_max: usize,
    /// The largest of all.
    pub batch_max: usize,
    /// Why it asks: its turn has come, or it has nothing else to do.
    pub because: Closed,
    /// How long a run of so many rows takes.
    pub predict: &'a dyn Fn(usize) -> Duration,
}

/// What left the queue.
#[derive(Debug)]
pub struct Taken<T> {
    /// To be run together; all of them join with the first.
    pub batch: Vec<T>,
    /// Why it was closed.
    pub closed: Closed,
    /// Their deadline passed while they waited.
    pub expired: Vec<T>,
    /// They waited longer than the limit.
    pub overdue: Vec<T>,
    /// Where what waits had better wait for more: until then.
    pub again: Option<Instant>,
}

/// One queue.
#[derive(Debug)]
pub struct Queue<T> {
    /// High, normal, low.
    lanes: [VecDeque<T>; LANES],
    /// Of each lane.
    rows: [usize; LANES],
    bytes: usize,
    limits: Limits,
    forming: Forming,
    pace: Pace,
}

const LANES: usize = 3;
/// Of the time that an item may wait, what is before it may take so much: it is a prediction, and the run comes after it. And what
/// was let in under overload is soon gone afterwards, whatever else comes then.
const WAIT_SHARE: f64 = 0.5;

/// Whether an item may still run.
enum Standing {
    Waits,
    Gone,
    Expired,
    Overdue,
}

// === impl Queue ===

impl<T: Queued> Queue<T> {
    pub fn new(limits: Limits, forming: Forming) -> Self {
        Self { lanes: Default::default(), rows: [0; LANES], bytes: 0, limits, forming, pace: Pace::default() }
    }

    pub fn is_empty(&self) -> bool {
        self.lanes.iter().all(VecDeque::is_empty)
    }

    pub fn rows(&self) -> usize {
        self.rows.iter().sum()
    }

    /// Takes the items in, or none of them, and gives them back with the limit that was reached. An empty queue takes
    /// whatever comes together: a limit below one request would refuse it for ever. Who would wait in vain is not kept waiting:
    /// the first item must be likely to run within the time that it may wait.
    pub fn push<I: IntoIterator<Item = T> + AsRef<[T]>>(&mut self, items: I) -> Result<(), (I, Full)> {
        if !self.is_empty() {
            if self.rows() + items.as_ref().iter().map(T::rows).sum::<usize>() > self.limits.rows_max {
                return Err((items, Full::Rows));
            }
            if self.bytes + items.as_ref().iter().map(T::bytes).sum::<usize>() > self.limits.bytes_max {
                return Err((items, Full::Bytes));
            }
            if items.as_ref().first().is_some_and(|first| self.waits_in_vain(first)) {
                return Err((items, Full::Time));
            }
        }
        for item in items {
            let lane = lane(item.priority());
            self.rows[lane] += item.rows();
            self.bytes += item.bytes();
            self.lanes[lane].push_back(item);
        }
        Ok(())
    }

    /// Whether what goes before the item takes too long.
    fn waits_in_vain(&self, item: &T) -> bool {
        let before: usize = self.rows[..=lane(item.priority())].iter().sum();
        self.pace.time_of(before).is_some_and(|wait| wait > self.patience(item).mul_f64(WAIT_SHARE))
    }

    /// How long the item may wait in all.
    fn patience(&self, item: &T) -> Duration {
        let timeout = self.limits.timeout;
        item.deadline().map_or(timeout, |deadline| deadline.saturating_duration_since(item.enqueued()).min(timeout))
    }

    /// Forms one batch: the first item by priority and arrival, and those after it that join with it and fit. An item larger
    /// than the batch may be is one of its own. Where nothing had better run yet, the batch is empty and `again` says when.
    /// Items whose callers left are dropped.
    pub fn take(&mut self, ask: &Ask<'_>) -> Taken<T> {
        let mut taken =
            Taken { batch: Vec::new(), closed: ask.because, expired: Vec::new(), overdue: Vec::new(), again: None };
        match self.forming.takes_whatever_waits() {
            true => self.take_whatever_waits(ask, &mut taken),
            false => self.take_formed(ask, &mut taken),
        }
        let rows = taken.batch.iter().map(T::rows).sum();
        self.pace.took(ask.now, rows, ask.predict, !self.is_empty());
        taken
    }

    fn take_whatever_waits(&mut self, ask: &Ask<'_>, taken: &mut Taken<T>) {
        let mut batch_rows = 0;
        for lane in self.order(ask.now, taken) {
            let mut place = 0;
            while let Some(item) = self.lanes[lane].get(place) {
                let fits = match taken.batch.first() {
                    None => true,
                    Some(first) => batch_rows + item.rows() <= ask.rows_max && first.joins(item),
                };
                match self.standing(item, ask.now) {
                    Standing::Waits if !fits => place += 1,
                    Standing::Waits => {
                        let item = self.remove(lane, place);
                        batch_rows += item.rows();
                        taken.batch.push(item);
                        if batch_rows >= ask.batch_max {
                            taken.closed = Closed::Full;
                        }
                        if batch_rows >= ask.rows_max {
                            return;
                        }
                    }
                    standing => self.put_aside(lane, place, &standing, taken),
                }
            }
        }
    }

    /// As above where batches may wait to be larger: the first group of items that join with each other and close now.
    fn take_formed(&mut self, ask: &Ask<'_>, taken: &mut Taken<T>) {
        for lane in 0..LANES {
            let mut place = 0;
            while let Some(item) = self.lanes[lane].get(place) {
                match self.standing(item, ask.now) {
                    Standing::Waits => place += 1,
                    standing => self.put_aside(lane, place, &standing, taken),
                }
            }
        }
        let order = self.order(ask.now, taken);
        let places = order.into_iter().flat_map(|lane| (0..self.lanes[lane].len()).map(move |place| (lane, place)));
        let mut waiting: Vec<(usize, usize)> = places.collect();
        while let Some(&(lane, place)) = waiting.first() {
            let first = &self.lanes[lane][place];
            let joins = |(lane, place): &(usize, usize)| first.joins(&self.lanes[*lane][*place]);
            // The first of all counts, whether the model joins requests or not.
            let (mut members, others): (Vec<_>, Vec<_>) = waiting[1..].iter().copied().partition(joins);
            members.insert(0, (lane, place));
            let group = Group::of(members.iter().map(|(lane, place)| &self.lanes[*lane][*place]), ask.rows_max);
            match self.forming.verdict(&group, ask) {
                Verdict::Close { rows, closed } => {
                    taken.closed = closed;
                    taken.again = None;
                    return self.take_members(members, rows, taken);
                }
                Verdict::Wait { until } => {
                    taken.again = Some(taken.again.map_or(until, |again| again.min(until)));
                }
            }
            waiting = others;
        }
    }

    /// Of the members, in their order, those that fit into so many rows; always the first.
    fn take_members(&mut self, members: Vec<(usize, usize)>, rows_max: usize, taken: &mut Taken<T>) {
        let mut rows = 0;
        let fits = |&(lane, place): &(usize, usize)| {
            let more = self.lanes[lane][place].rows();
            let fits = rows == 0 || rows + more <= rows_max;
            rows += if fits { more } else { 0 };
            fits
        };
        let mut chosen: Vec<(usize, usize, usize)> =
            members.into_iter().filter(fits).enumerate().map(|(order, (lane, place))| (lane, place, order)).collect();
        // From the back, so that no place moves before its item is taken.
        chosen.sort_unstable_by(|left, right| right.cmp(left));
        let items = chosen.into_iter().map(|(lane, place, order)| (order, self.remove(lane, place)));
        let mut items: Vec<(usize, T)> = items.collect();
        items.sort_unstable_by_key(|(order, _)| *order);
        taken.batch.extend(items.into_iter().map(|(_, item)| item));
    }

    /// The lanes in the order of their turns: by priority, but first those whose oldest item has waited for half of its time.
    fn order(&mut self, now: Instant, taken: &mut Taken<T>) -> [usize; LANES] {
        let mut order = [0, 1, 2];
        if self.lanes.iter().filter(|lane| !lane.is_empty()).count() < 2 {
            return order;
        }
        for lane in order {
            while let Some(item) = self.lanes[lane].front() {
                match self.standing(item, now) {
                    Standing::Waits => break,
                    standing => self.put_aside(lane, 0, &standing, taken),
                }
            }
        }
        let aged_since = |lane: usize| {
            let item = self.lanes[lane].front()?;
            let half = self.patience(item) / 2;
            (now.saturating_duration_since(item.enqueued()) > half).then(|| item.enqueued())
        };
        // None of them is aged, as a rule: then the order stays.
        order.sort_by_key(|lane| aged_since(*lane).map_or((true, now), |since| (false, since)));
        order
    }

    fn standing(&self, item: &T, now: Instant) -> Standing {
        if item.gone() {
            Standing::Gone
        } else if item.deadline().is_some_and(|deadline| deadline <= now) {
            Standing::Expired
        } else if !item.goes_on() && now.saturating_duration_since(item.enqueued()) > self.limits.timeout {
            Standing::Overdue
        } else {
            Standing::Waits
        }
    }

    fn put_aside(&mut self, lane: usize, place: usize, standing: &Standing, taken: &mut Taken<T>) {
        let item = self.remove(lane, place);
        match standing {
            Standing::Expired => taken.expired.push(item),
            Standing::Overdue => taken.overdue.push(item),
            Standing::Gone | Standing::Waits => {}
        }
    }

    fn remove(&mut self, lane: usize, place: usize) -> T {
        let item = self.lanes[lane].remove(place).expect("the place was looked at: this is a bug");
        self.rows[lane] -= item.rows();
        self.bytes -= item.bytes();
        item
    }

    /// Everything that waits, for a queue that closes.
    pub fn drain(&mut self) -> Vec<T> {
        self.rows = [0; LANES];
        self.bytes = 0;
        self.lanes.iter_mut().flat_map(std::mem::take).collect()
    }
}

fn lane(priority: Priority) -> usize {
    match priority {
        Priority::High => 0,
        Priority::Normal => 1,
        Priority::Low => 2,
    }
}

#[cfg(test)]
mod tests;

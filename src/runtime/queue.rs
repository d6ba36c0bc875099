//! What waits for one servable on one core, or for its threads: bounded, by priority, by arrival.
//!
//! Pure: time comes as an argument. The drivers (`cores`, `threads`) push and take.

use std::{collections::VecDeque, time::Instant};

use crate::model::Priority;

/// What the queue asks of an item.
pub trait Queued {
    fn rows(&self) -> usize;
    fn bytes(&self) -> usize;
    fn priority(&self) -> Priority;
    /// After this moment nobody waits for the answer.
    fn deadline(&self) -> Option<Instant>;
    fn enqueued(&self) -> Instant;
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
    pub timeout: std::time::Duration,
}

/// Which limit was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    Rows,
    Bytes,
}

/// What left the queue.
#[derive(Debug)]
pub struct Taken<T> {
    /// To be run together; all of them join with the first.
    pub batch: Vec<T>,
    /// Their deadline passed while they waited.
    pub expired: Vec<T>,
    /// They waited longer than the limit.
    pub overdue: Vec<T>,
}

/// One queue.
#[derive(Debug)]
pub struct Queue<T> {
    /// High, normal, low.
    lanes: [VecDeque<T>; 3],
    rows: usize,
    bytes: usize,
    limits: Limits,
}

// === impl Queue ===

impl<T: Queued> Queue<T> {
    pub fn new(limits: Limits) -> Self {
        Self { lanes: Default::default(), rows: 0, bytes: 0, limits }
    }

    pub fn is_empty(&self) -> bool {
        self.lanes.iter().all(VecDeque::is_empty)
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Takes the item in, or gives it back with the limit that was reached. An empty queue takes any item: a limit below
    /// one request would refuse it for ever.
    pub fn push(&mut self, item: T) -> Result<(), (T, Full)> {
        if !self.is_empty() {
            if self.rows + item.rows() > self.limits.rows_max {
                return Err((item, Full::Rows));
            }
            if self.bytes + item.bytes() > self.limits.bytes_max {
                return Err((item, Full::Bytes));
            }
        }
        self.rows += item.rows();
        self.bytes += item.bytes();
        self.lanes[lane(item.priority())].push_back(item);
        Ok(())
    }

    /// Forms one batch of at most `rows_max` rows: the first live item by priority and arrival, and those after it that join
    /// with it and fit. An item larger than `rows_max` is a batch of its own. Items whose callers left are dropped.
    pub fn take(&mut self, now: Instant, rows_max: usize) -> Taken<T> {
        let mut taken: Taken<T> = Taken { batch: Vec::new(), expired: Vec::new(), overdue: Vec::new() };
        let mut batch_rows = 0;
        for lane in &mut self.lanes {
            let mut place = 0;
            while place < lane.len() {
                let item = &lane[place];
                let expired = item.deadline().is_some_and(|deadline| deadline <= now);
                let overdue = now.saturating_duration_since(item.enqueued()) > self.limits.timeout;
                let fits = match taken.batch.first() {
                    None => true,
                    Some(first) => batch_rows + item.rows() <= rows_max && first.joins(item),
                };
                let gone = item.gone();
                if !(gone || expired || overdue || fits) {
                    place += 1;
                    continue;
                }
                let item = lane.remove(place).expect("place < len: this is a bug");
                self.rows -= item.rows();
                self.bytes -= item.bytes();
                if gone {
                    drop(item);
                } else if expired {
                    taken.expired.push(item);
                } else if overdue {
                    taken.overdue.push(item);
                } else {
                    batch_rows += item.rows();
                    taken.batch.push(item);
                    if batch_rows >= rows_max {
                        return taken;
                    }
                }
            }
        }
        taken
    }

    /// Everything that waits, for a queue that closes.
    pub fn drain(&mut self) -> Vec<T> {
        self.rows = 0;
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
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    #[derive(Clone, Debug)]
    struct Item {
        id: usize,
        rows: usize,
        kind: u8,
        priority: Priority,
        deadline: Option<Instant>,
        enqueued: Instant,
        gone: bool,
    }

    impl Queued for Item {
        fn rows(&self) -> usize {
            self.rows
        }
        fn bytes(&self) -> usize {
            self.rows * 8
        }
        fn priority(&self) -> Priority {
            self.priority
        }
        fn deadline(&self) -> Option<Instant> {
            self.deadline
        }
        fn enqueued(&self) -> Instant {
            self.enqueued
        }
        fn gone(&self) -> bool {
            self.gone
        }
        fn joins(&self, other: &Self) -> bool {
            self.kind == other.kind
        }
    }

    fn limits() -> Limits {
        Limits { rows_max: 100, bytes_max: 1 << 20, timeout: Duration::from_secs(1) }
    }

    fn item(id: usize, rows: usize, kind: u8, now: Instant) -> Item {
        Item { id, rows, kind, priority: Priority::Normal, deadline: None, enqueued: now, gone: false }
    }

    #[test]
    fn a_large_item_runs_alone_and_others_wait_their_turn() {
        let now = Instant::now();
        let mut queue = Queue::new(limits());
        for (id, rows, kind) in [(0, 50, 0), (1, 1, 0), (2, 1, 1), (3, 1, 0)] {
            queue.push(item(id, rows, kind, now)).expect("there is room");
        }
        let ids = |taken: Taken<Item>| taken.batch.iter().map(|item| item.id).collect::<Vec<_>>();
        assert_eq!(ids(queue.take(now, 8)), [0]);
        assert_eq!(ids(queue.take(now, 8)), [1, 3]);
        assert_eq!(ids(queue.take(now, 8)), [2]);
    }

    #[test]
    fn expired_overdue_and_gone_items_never_run() {
        let start = Instant::now();
        let now = start + Duration::from_millis(500);
        let mut queue = Queue::new(limits());
        queue.push(Item { deadline: Some(now), ..item(0, 1, 0, start) }).expect("there is room");
        queue.push(Item { gone: true, ..item(1, 1, 0, start) }).expect("there is room");
        queue.push(item(2, 1, 0, start)).expect("there is room");
        let taken = queue.take(now, 8);
        assert_eq!((taken.batch.len(), taken.expired.len(), taken.overdue.len()), (1, 1, 0));
        queue.push(item(3, 1, 0, start)).expect("there is room");
        assert_eq!(queue.take(start + Duration::from_millis(1001), 8).overdue.len(), 1);
        assert!(queue.is_empty() && queue.rows() == 0);
    }

    #[test]
    fn an_empty_queue_takes_what_is_larger_than_its_limit() {
        let now = Instant::now();
        let mut queue = Queue::new(limits());
        queue.push(item(0, 1000, 0, now)).expect("the first one always fits");
        assert_eq!(queue.push(item(1, 1, 0, now)).expect_err("full").1, Full::Rows);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_nothing_comes_twice_and_the_limits_hold(
            items in proptest::collection::vec((1usize..20, 0u8..3, 0usize..3, any::<bool>(), 0u64..40), 1..60),
            rows_max in 1usize..32,
        ) {
            let start = Instant::now();
            let now = start + Duration::from_millis(20);
            let mut queue = Queue::new(limits());
            let mut accepted = Vec::new();
            for (id, (rows, kind, priority, gone, deadline)) in items.into_iter().enumerate() {
                let priority = [Priority::Low, Priority::Normal, Priority::High][priority];
                let deadline = Some(start + Duration::from_millis(deadline));
                let item = Item { priority, gone, deadline, ..item(id, rows, kind, start) };
                if queue.push(item.clone()).is_ok() {
                    accepted.push(item);
                }
                prop_assert!(queue.rows() <= 100);
            }
            let mut ran: Vec<Item> = Vec::new();
            let mut expired = Vec::new();
            while !queue.is_empty() {
                let taken = queue.take(now, rows_max);
                let rows: usize = taken.batch.iter().map(|item| item.rows).sum();
                prop_assert!(rows <= rows_max || taken.batch.len() == 1);
                prop_assert!(taken.batch.iter().all(|item| item.kind == taken.batch[0].kind));
                prop_assert!(taken.batch.iter().all(|item| !item.gone && item.deadline > Some(now)));
                ran.extend(taken.batch);
                expired.extend(taken.expired);
            }
            prop_assert_eq!(queue.rows(), 0);
            let mut left: Vec<usize> = ran.iter().chain(&expired).map(|item| item.id).collect();
            left.sort_unstable();
            let live: Vec<usize> = accepted.iter().filter(|item| !item.gone).map(|item| item.id).collect();
            prop_assert_eq!(left, live);
            // Within one kind and priority the order of arrival holds, unless a small one fitted beside a large one.
            if accepted.iter().all(|item| item.rows == 1) {
                for pair in ran.windows(2).filter(|pair| pair[0].kind == pair[1].kind) {
                    let order = |item: &Item| (lane(item.priority), item.id);
                    prop_assert!(order(&pair[0]) < order(&pair[1]));
                }
            }
        }
    }
}

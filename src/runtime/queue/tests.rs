//! The queue, by example and by property.

use std::{collections::HashMap, time::Duration};

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);
const ROWS_MAX: usize = 100;

#[derive(Clone, Debug, PartialEq)]
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
    fn goes_on(&self) -> bool {
        false
    }
    fn gone(&self) -> bool {
        self.gone
    }
    fn joins(&self, other: &Self) -> bool {
        self.kind == other.kind
    }
}

fn queue(forming: Forming) -> Queue<Item> {
    let limits = Limits { rows_max: ROWS_MAX, bytes_max: 1 << 20, timeout: 1000 * MS };
    Queue::new(limits, forming)
}

fn item(id: usize, rows: usize, kind: u8, now: Instant) -> Item {
    Item { id, rows, kind, priority: Priority::Normal, deadline: None, enqueued: now, gone: false }
}

fn take(queue: &mut Queue<Item>, now: Instant, rows_max: usize) -> Taken<Item> {
    let predict = |_| MS;
    queue.take(&Ask { now, rows_max, batch_max: rows_max, because: Closed::Turn, predict: &predict })
}

fn ids(taken: &Taken<Item>) -> Vec<usize> {
    taken.batch.iter().map(|item| item.id).collect()
}

#[test]
fn a_large_item_runs_alone_and_others_wait_their_turn() {
    let now = Instant::now();
    let mut queue = queue(Forming::default());
    for (id, rows, kind) in [(0, 50, 0), (1, 1, 0), (2, 1, 1), (3, 1, 0)] {
        queue.push([item(id, rows, kind, now)]).expect("there is room");
    }
    for expected in [vec![0], vec![1, 3], vec![2]] {
        assert_eq!(ids(&take(&mut queue, now, 8)), expected);
    }
}

#[test]
fn expired_overdue_and_gone_items_never_run() {
    for forming in [Forming::default(), Forming { delay: MS, ..Forming::default() }] {
        let start = Instant::now();
        let now = start + 500 * MS;
        let mut queue = queue(forming);
        queue.push([Item { deadline: Some(now), ..item(0, 1, 0, start) }]).expect("there is room");
        queue.push([Item { gone: true, ..item(1, 1, 0, start) }]).expect("there is room");
        queue.push([item(2, 1, 0, start)]).expect("there is room");
        let taken = take(&mut queue, now, 8);
        assert_eq!((ids(&taken), taken.expired.len(), taken.overdue.len()), (vec![2], 1, 0));
        queue.push([item(3, 1, 0, start)]).expect("there is room");
        assert_eq!(take(&mut queue, start + 1001 * MS, 8).overdue.len(), 1);
        assert!(queue.is_empty() && queue.rows() == 0);
    }
}

#[test]
fn an_empty_queue_takes_what_is_larger_than_its_limit_and_else_all_of_a_request_or_nothing() {
    let now = Instant::now();
    let mut queue = queue(Forming::default());
    queue.push([item(0, 1000, 0, now)]).expect("the first one always fits");
    assert_eq!(queue.push([item(1, 1, 0, now)]).expect_err("full").1, Full::Rows);
    take(&mut queue, now, 8);
    queue.push([item(2, 60, 0, now)]).expect("there is room");
    let parts = vec![item(3, 30, 0, now), item(4, 30, 0, now)];
    assert_eq!(queue.push(parts.clone()).expect_err("full"), (parts, Full::Rows));
    assert_eq!(queue.rows(), 60, "no part of it is in");
}

/// A queue with room for everybody, of which eight rows were taken every 80 ms while others waited, and the time of the last.
fn busy() -> (Queue<Item>, Instant) {
    let limits = Limits { rows_max: 10_000, bytes_max: 1 << 30, timeout: 1000 * MS };
    let (mut queue, mut now) = (Queue::new(limits, Forming::default()), Instant::now());
    for round in 0..50 {
        for id in 0..if round == 0 { 16 } else { 8 } {
            queue.push([item(id, 1, 0, now)]).expect("there is room");
        }
        now += 80 * MS;
        take(&mut queue, now, 8);
    }
    (queue, now)
}

#[test]
fn who_would_wait_in_vain_is_refused_at_once() {
    let (mut queue, now) = busy();
    assert_eq!(queue.rows(), 8, "10 ms each");
    let hasty = Item { deadline: Some(now + 150 * MS), ..item(0, 1, 0, now) };
    assert_eq!(queue.push([hasty.clone()]).expect_err("80 ms are more than half of 150").1, Full::Time);
    queue.push([Item { deadline: Some(now + 250 * MS), ..hasty.clone() }]).expect("and not of 250");
    queue.push([item(0, 43, 0, now)]).expect("90 ms of a second");
    assert_eq!(queue.push([item(0, 1, 0, now)]).expect_err("520 ms").1, Full::Time);
    let important = Item { priority: Priority::High, ..hasty.clone() };
    queue.push([important]).expect("nothing goes before it");
    while !queue.is_empty() {
        take(&mut queue, now, 8);
    }
    queue.push([hasty]).expect("an empty queue takes everybody");
}

/// Three times as much comes as can be run, and no limit but the time is near.
#[test]
fn under_overload_nobody_is_kept_waiting_in_vain_and_nothing_idles() {
    let limits = Limits { rows_max: 100_000, bytes_max: 1 << 30, timeout: 1000 * MS };
    let mut queue = Queue::new(limits, Forming::default());
    let start = Instant::now();
    let (mut free_at, mut ran, mut refused, mut overdue) = (start, 0, 0, 0);
    for id in 0..30_000 {
        // One a millisecond; a batch of eight takes 24.
        let now = start + MS * id;
        refused += usize::from(queue.push([item(id as usize, 1, 0, now)]).is_err());
        if now >= free_at {
            let predict = |rows| 3 * MS * u32::try_from(rows).expect("a few");
            let taken = queue.take(&Ask { now, rows_max: 8, batch_max: 8, because: Closed::Turn, predict: &predict });
            ran += taken.batch.len();
            overdue += taken.overdue.len();
            free_at = now + predict(taken.batch.len());
            let waited = taken.batch.first().map_or(Duration::ZERO, |first| now - first.enqueued);
            assert!(waited < 530 * MS, "{waited:?}");
        }
    }
    assert_eq!(overdue, 0);
    // The last batch ends after the end.
    assert!((9_900..=10_008).contains(&ran), "{ran} of 10,000");
    assert!(refused > 19_000, "{refused}");
}

#[test]
fn priority_goes_first_but_not_before_what_has_waited_for_half_of_its_time() {
    let start = Instant::now();
    let of = |id, priority, enqueued| Item { priority, kind: id as u8, ..item(id, 1, 0, enqueued) };
    let order = |now: Instant| {
        let mut queue = queue(Forming::default());
        let late = start + 600 * MS;
        for item in [of(0, Priority::Low, start), of(1, Priority::Normal, late), of(2, Priority::High, late)] {
            queue.push([item]).expect("there is room");
        }
        (0..3).flat_map(|_| ids(&take(&mut queue, now, 8))).collect::<Vec<_>>()
    };
    assert_eq!(order(start + 500 * MS), [2, 1, 0], "half of a second is not over");
    assert_eq!(order(start + 700 * MS), [0, 2, 1]);
    let mut queue = queue(Forming::default());
    queue.push([Item { deadline: Some(start + 10 * MS), ..of(0, Priority::Low, start) }]).expect("there is room");
    queue.push([of(1, Priority::High, start)]).expect("there is room");
    assert_eq!(ids(&take(&mut queue, start + 6 * MS, 8)), [0], "a deadline shortens what it may wait");
}

#[test]
fn what_waits_for_more_holds_up_nobody_of_another_shape() {
    let start = Instant::now();
    let mut queue = queue(Forming { preferred: vec![4], delay: 100 * MS });
    for (id, kind) in [(0, 0), (1, 1), (2, 0), (3, 1), (4, 1), (5, 1)] {
        queue.push([item(id, 1, kind, start)]).expect("there is room");
    }
    let taken = take(&mut queue, start, 8);
    assert_eq!((ids(&taken), taken.closed), (vec![1, 3, 4, 5], Closed::Preferred));
    let taken = take(&mut queue, start, 8);
    assert_eq!((ids(&taken), taken.again), (vec![], Some(start + 100 * MS)));
    let taken = take(&mut queue, start + 100 * MS, 8);
    assert_eq!((ids(&taken), taken.closed, taken.again), (vec![0, 2], Closed::Delay, None));
}

fn any_item() -> impl Strategy<Value = (usize, u8, Priority, bool, Option<u64>, u64)> {
    let priority = prop_oneof![Just(Priority::Low), Just(Priority::Normal), Just(Priority::High)];
    (1usize..20, 0u8..3, priority, any::<bool>(), proptest::option::of(0u64..60), 0u64..20)
}

fn any_forming() -> impl Strategy<Value = Forming> {
    let sizes = proptest::collection::btree_set(1usize..16, 0..3);
    (sizes, 0u32..10).prop_map(|(sizes, delay)| Forming { preferred: sizes.into_iter().collect(), delay: delay * MS })
}

proptest! {
    /// Items come and batches are taken as time goes on, until nothing is left.
    #[test]
    fn nothing_is_lost_nothing_comes_twice_and_the_limits_hold(
        items in proptest::collection::vec(any_item(), 1..60),
        forming in any_forming(),
        rows_max in 16usize..32,
    ) {
        let start = Instant::now();
        let mut now = start;
        let mut queue = queue(forming.clone());
        let mut accepted: HashMap<usize, Item> = HashMap::new();
        let (mut left, mut ran) = (Vec::new(), Vec::new());
        let mut come = items.into_iter().enumerate();
        loop {
            let next = come.next();
            if next.is_none() && queue.is_empty() {
                break;
            }
            if let Some((id, (rows, kind, priority, gone, deadline, pause))) = next {
                let deadline = deadline.map(|after| now + MS * u32::try_from(after).unwrap_or(0));
                let item = Item { priority, gone, deadline, ..item(id, rows, kind, now) };
                if queue.push([item.clone()]).is_ok() {
                    accepted.insert(id, item);
                }
                prop_assert!(queue.rows() <= ROWS_MAX);
                now += MS * u32::try_from(pause).unwrap_or(0);
            }
            let taken = take(&mut queue, now, rows_max);
            let rows: usize = taken.batch.iter().map(|item| item.rows).sum();
            prop_assert!(rows <= rows_max || taken.batch.len() == 1);
            prop_assert!(taken.batch.iter().all(|item| item.kind == taken.batch[0].kind));
            for item in &taken.batch {
                prop_assert!(!item.gone && item.deadline.is_none_or(|deadline| deadline > now));
            }
            prop_assert!(taken.expired.iter().all(|item| item.deadline.is_some_and(|deadline| deadline <= now)));
            // Whoever is told to wait has a reason, and an end of it.
            if let Some(until) = taken.again {
                prop_assert!(taken.batch.is_empty() && until > now && until <= now + forming.delay);
                if come.len() == 0 {
                    now = until;
                }
            } else if next_is_idle(&taken) {
                prop_assert!(queue.is_empty());
            }
            left.extend(taken.batch.iter().chain(&taken.expired).chain(&taken.overdue).map(|item| item.id));
            ran.extend(taken.batch);
        }
        prop_assert_eq!(queue.rows(), 0);
        left.sort_unstable();
        let mut live: Vec<usize> = accepted.values().filter(|item| !item.gone).map(|item| item.id).collect();
        live.sort_unstable();
        prop_assert_eq!(left, live);
        // Within one kind and priority the order of arrival holds, unless a small one fitted beside a large one.
        if ran.iter().all(|item| item.rows == 1) {
            for kind in 0..3 {
                for priority in [Priority::Low, Priority::Normal, Priority::High] {
                    let same = ran.iter().filter(|item| item.kind == kind && item.priority == priority);
                    prop_assert!(same.map(|item| item.id).is_sorted());
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_whole_and_what_is_in_stays(rows in proptest::collection::vec(1usize..40, 1..40)) {
        let now = Instant::now();
        let mut queue = queue(Forming::default());
        let mut inside = 0;
        for (id, rows) in rows.into_iter().enumerate() {
            let fits = inside == 0 || inside + rows <= ROWS_MAX;
            prop_assert_eq!(queue.push([item(id, rows, 0, now)]).is_ok(), fits);
            inside += if fits { rows } else { 0 };
            prop_assert_eq!(queue.rows(), inside);
        }
    }
}

/// Nothing ran, nothing left, and nothing waits for a moment.
fn next_is_idle(taken: &Taken<Item>) -> bool {
    taken.batch.is_empty() && taken.expired.is_empty() && taken.overdue.is_empty()
}

//! When a batch closes, and with how many rows. Pure; docs/batching.md says the same in words.

use std::time::{Duration, Instant};

use super::queue::{Ask, Queued};
use crate::telemetry::metrics::Closed;

/// What a model's options say.
#[derive(Clone, Debug, Default)]
pub struct Forming {
    /// Ascending; none where one size is as good as another.
    pub preferred: Vec<usize>,
    /// How long the first of a batch waits for more.
    pub delay: Duration,
}

/// Items that join with each other, as far as they matter here.
#[derive(Debug)]
pub struct Group {
    /// Of all that fit into the batch that can be run now.
    pub rows: usize,
    pub oldest: Instant,
    pub first_deadline: Option<Instant>,
}

/// What to do with a group.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Close { rows: usize, closed: Closed },
    Wait { until: Instant },
}

// === impl Group ===

impl Group {
    /// At least one item, in the order in which they are to run.
    pub fn of<'a, T: Queued + 'a>(items: impl Iterator<Item = &'a T>, rows_max: usize) -> Self {
        let mut group: Option<Group> = None;
        for item in items {
            let group = group.get_or_insert_with(|| Group { rows: 0, oldest: item.enqueued(), first_deadline: None });
            if group.rows == 0 || group.rows + item.rows() <= rows_max {
                group.rows += item.rows();
            }
            group.oldest = group.oldest.min(item.enqueued());
            group.first_deadline = match (group.first_deadline, item.deadline()) {
                (Some(known), Some(new)) => Some(known.min(new)),
                (known, new) => known.or(new),
            };
        }
        group.expect("a group has items: this is a bug")
    }
}

// === impl Forming ===

impl Forming {
    /// Whether whoever asks gets what there is: nothing is worth waiting for, and no size better than another.
    pub fn takes_whatever_waits(&self) -> bool {
        self.delay.is_zero() && self.preferred.is_empty()
    }

    /// The rule. A preferred size is taken at once, the largest that there are rows for; what is smaller waits for the delay,
    /// and what has waited for it goes with all that there is.
    pub fn verdict(&self, group: &Group, ask: &Ask<'_>) -> Verdict {
        let close = |rows, closed| Verdict::Close { rows, closed };
        let delay_ends = group.oldest + self.delay;
        let delay_over = !self.delay.is_zero() && delay_ends <= ask.now;
        let preferred = self.preferred.iter().rev().find(|size| **size <= group.rows);
        match preferred {
            Some(size) if !delay_over => return close(*size, Closed::Preferred),
            _ if group.rows >= ask.batch_max => return close(ask.batch_max, Closed::Full),
            // More than fits into the driver's time does not fit any better later.
            _ if group.rows >= ask.rows_max => return close(ask.rows_max, ask.because),
            _ if delay_over => return close(group.rows, Closed::Delay),
            _ if self.delay.is_zero() => return close(group.rows, ask.because),
            _ => {}
        }
        let Some(deadline) = group.first_deadline else {
            return Verdict::Wait { until: delay_ends };
        };
        let run = (ask.predict)(group.rows);
        let latest = deadline.checked_sub(run).unwrap_or(ask.now);
        match latest <= ask.now {
            true => close(group.rows, Closed::Deadline),
            false => Verdict::Wait { until: delay_ends.min(latest) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn verdict(forming: &Forming, rows: usize, waited: Duration, deadline: Option<Duration>) -> Verdict {
        let oldest = Instant::now();
        let group = Group { rows, oldest, first_deadline: deadline.map(|after| oldest + after) };
        let predict = |rows: usize| MS * u32::try_from(rows).unwrap_or(u32::MAX);
        let ask = Ask { now: oldest + waited, rows_max: 64, batch_max: 64, because: Closed::Idle, predict: &predict };
        forming.verdict(&group, &ask)
    }

    fn closed(rows: usize, closed: Closed) -> Verdict {
        Verdict::Close { rows, closed }
    }

    fn waits(verdict: &Verdict) -> bool {
        matches!(verdict, Verdict::Wait { .. })
    }

    #[test]
    fn without_a_delay_the_largest_preferred_size_goes_and_else_whatever_waits() {
        let forming = Forming { preferred: vec![8, 32], delay: Duration::ZERO };
        let zero = Duration::ZERO;
        assert_eq!(verdict(&forming, 40, zero, None), closed(32, Closed::Preferred));
        assert_eq!(verdict(&forming, 9, zero, None), closed(8, Closed::Preferred));
        assert_eq!(verdict(&forming, 7, zero, None), closed(7, Closed::Idle));
    }

    #[test]
    fn a_delay_waits_for_a_preferred_size_and_then_takes_all() {
        let forming = Forming { preferred: vec![8], delay: 10 * MS };
        assert!(waits(&verdict(&forming, 7, 9 * MS, None)));
        assert_eq!(verdict(&forming, 9, 9 * MS, None), closed(8, Closed::Preferred));
        assert_eq!(verdict(&forming, 9, 10 * MS, None), closed(9, Closed::Delay), "past a preferred size, now");
        assert_eq!(verdict(&forming, 7, 10 * MS, None), closed(7, Closed::Delay));
        assert_eq!(verdict(&forming, 64, 10 * MS, None), closed(64, Closed::Full));
    }

    #[test]
    fn nobody_waits_past_the_moment_when_the_answer_would_come_too_late() {
        let forming = Forming { preferred: vec![], delay: 100 * MS };
        // Four rows take four milliseconds.
        assert!(waits(&verdict(&forming, 4, 5 * MS, Some(10 * MS))));
        assert_eq!(verdict(&forming, 4, 6 * MS, Some(10 * MS)), closed(4, Closed::Deadline));
        assert_eq!(verdict(&forming, 64, Duration::ZERO, None), closed(64, Closed::Full));
    }
}

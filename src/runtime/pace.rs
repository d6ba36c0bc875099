//! How fast a queue empties, as it has shown while something always waited: whatever the run itself, other models, sockets and
//! other processes take, is in it. Pure: time comes as an argument.

use std::time::{Duration, Instant};

/// Learned from one taking of rows to the next.
#[derive(Debug, Default)]
pub struct Pace {
    /// The last taking, where something was left that could have been taken.
    last: Option<(Instant, usize)>,
    /// Sums that fade: so many seconds passed while so many rows left.
    seconds: f64,
    rows: f64,
}

/// What is kept of the sums at each taking: they are those of the last twenty or so.
const KEPT: f64 = 0.95;
/// How much slower than believed one taking may look: what lies beyond is a stall.
const BELIEVED: f64 = 4.0;

// === impl Pace ===

impl Pace {
    /// Rows leave now to be run, whose run is predicted to take so long; `waits` where others stay behind.
    pub fn took(&mut self, now: Instant, rows: usize, predict: &dyn Fn(usize) -> Duration, waits: bool) {
        if let Some((since, rows)) = self.last {
            let predicted = predict(rows).as_secs_f64();
            let believed = self.seconds_a_row().map_or(predicted, |row| BELIEVED * row * rows as f64);
            let passed = now.saturating_duration_since(since).as_secs_f64().min(believed.max(predicted));
            self.seconds = self.seconds * KEPT + passed;
            self.rows = self.rows * KEPT + rows as f64;
        }
        self.last = waits.then_some((now, rows)).filter(|_| rows > 0);
    }

    /// How long so many rows take to leave; `None` while nothing is known.
    pub fn time_of(&self, rows: usize) -> Option<Duration> {
        self.seconds_a_row().map(|row| Duration::from_secs_f64(row * rows as f64))
    }

    fn seconds_a_row(&self) -> Option<f64> {
        (self.rows > 0.0).then(|| self.seconds / self.rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Ten rows are taken at each of these milliseconds, and are predicted to take five.
    fn pace(takings: impl IntoIterator<Item = u32>) -> Pace {
        let (mut pace, start) = (Pace::default(), Instant::now());
        for at in takings {
            pace.took(start + at * MS, 10, &|_| 5 * MS, true);
        }
        pace
    }

    #[test]
    fn nothing_is_known_before_a_second_taking_of_what_waited() {
        assert_eq!(pace([]).time_of(10), None);
        assert_eq!(pace([0]).time_of(10), None);
        assert_eq!(pace([0, 4]).time_of(10), Some(4 * MS));
        let mut idle = Pace::default();
        let start = Instant::now();
        idle.took(start, 10, &|_| 5 * MS, false);
        idle.took(start + 1000 * MS, 10, &|_| 5 * MS, true);
        assert_eq!(idle.time_of(10), None, "nothing waited in between");
    }

    #[test]
    fn what_is_slower_than_predicted_is_soon_believed() {
        let learned = pace((0..100).map(|place| place * 20)).time_of(10).expect("it is known");
        assert!(learned > 19 * MS && learned < 21 * MS, "{learned:?}");
    }

    #[test]
    fn a_stall_is_no_pace() {
        let first = pace([0, 10_000]).time_of(10).expect("it is known");
        assert_eq!(first, 5 * MS, "the session was made, perhaps: what was predicted is believed");
        let steady = (0..100).map(|place| place * 5);
        let later = pace(steady.chain([10_000])).time_of(10).expect("it is known");
        assert!(later < 6 * MS, "{later:?}");
    }
}

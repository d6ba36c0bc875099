//! When the calls of an open loop are due. Pure: it is given the seed and knows no clock.

use std::time::Duration;

use clap::ValueEnum;

/// How calls are spread over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Arrivals {
    /// The same time between any two
    Constant,
    /// As from many callers who know nothing of each other: gaps drawn from an exponential distribution
    Poisson,
}

/// The moments at which one of several threads has calls to send, since the begin, for ever.
#[derive(Clone, Debug)]
pub struct Schedule {
    arrivals: Arrivals,
    /// Calls a second of this thread.
    rate: f64,
    /// How far its first call is from the begin where arrivals are constant, in calls.
    offset: f64,
    number: u64,
    /// Seconds since the begin.
    passed: f64,
    random: fastrand::Rng,
}

// === impl Schedule ===

impl Schedule {
    /// The share of thread `place` of `threads` in `rate` calls a second. Constant arrivals stay evenly spread over all
    /// threads; Poisson processes side by side are one Poisson process of the sum of their rates.
    pub fn new(arrivals: Arrivals, rate: f64, place: usize, threads: usize, seed: u64) -> Self {
        Self {
            arrivals,
            rate: rate / threads as f64,
            offset: place as f64 / threads as f64,
            number: 0,
            passed: 0.0,
            random: fastrand::Rng::with_seed(seed.wrapping_add(place as u64)),
        }
    }

    /// The next moment.
    pub fn next(&mut self) -> Duration {
        let seconds = match self.arrivals {
            // By its number and not by adding up, so that no error adds up.
            Arrivals::Constant => (self.number as f64 + self.offset) / self.rate,
            Arrivals::Poisson => {
                // 1 - [0, 1) is never 0, whose logarithm is no number.
                self.passed += -(1.0 - self.random.f64()).ln() / self.rate;
                self.passed
            }
        };
        self.number += 1;
        Duration::from_secs_f64(seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn within(mut schedule: Schedule, end: Duration) -> Vec<Duration> {
        std::iter::repeat_with(|| schedule.next()).take_while(|due| *due < end).collect()
    }

    #[test]
    fn constant_arrivals_of_all_threads_are_evenly_spread() {
        let threads = (0..4).map(|place| Schedule::new(Arrivals::Constant, 1_000.0, place, 4, 7));
        let mut all: Vec<Duration> = threads.flat_map(|one| within(one, Duration::from_secs(1))).collect();
        all.sort_unstable();
        let expected: Vec<Duration> = (0..1_000).map(Duration::from_millis).collect();
        assert_eq!(all, expected);
    }

    #[test]
    fn constant_arrivals_do_not_drift() {
        let mut schedule = Schedule::new(Arrivals::Constant, 3.0, 0, 1, 7);
        let last = std::iter::repeat_with(|| schedule.next()).nth(3_000_000).unwrap();
        assert_eq!(last, Duration::from_secs(1_000_000));
    }

    #[test]
    fn poisson_arrivals_have_the_rate_and_the_spread_of_their_kind() {
        let draw = |seed| within(Schedule::new(Arrivals::Poisson, 1_000.0, 0, 1, seed), Duration::from_secs(100));
        let moments = draw(7);
        assert_eq!(moments, draw(7), "a seed is a schedule");
        assert_ne!(moments[..10], draw(8)[..10]);
        assert!((99_000..101_000).contains(&moments.len()), "{} calls in 100 s", moments.len());
        let gaps: Vec<f64> = moments.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        let ratio = variance.sqrt() / mean;
        assert!((0.98..1.02).contains(&ratio), "an exponential deviates by its mean: {ratio}");
    }
}

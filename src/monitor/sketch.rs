//! Latencies as counts in buckets that grow by a constant factor, so that any quantile is right to 1 % and replicas can
//! be joined without loss (DDSketch: Masson, Rim and Lee 2019). It knows no metrics, no models and no clock.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use serde::{Deserialize, Deserializer, Serialize, de};

/// Counts at one moment. The default is that of nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(into = "Sparse")]
pub struct Sketch {
    /// One for each bucket: bucket i has what lies in (1 µs γ^(i−1), 1 µs γ^i], the first what is shorter, the last
    /// what is longer.
    counts: Vec<u64>,
    /// What was observed, each to the next microsecond, summed up: nanoseconds would overflow within a busy server's
    /// life.
    micros: u64,
}

/// Counts that go up while they are read. One is shared by all threads that answer; nothing ever waits.
#[derive(Debug)]
pub struct LiveSketch {
    counts: Box<[AtomicU64]>,
    micros: AtomicU64,
}

/// How a sketch is written: the buckets that have something, ascending.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Sparse {
    micros: u64,
    buckets: Vec<(usize, u64)>,
}

/// Of a quantile, for what lies from `SHORTEST_NANOS` to `LONGEST_SECONDS`.
pub const RELATIVE_ERROR: f64 = 0.01;
/// γ: the bound of a bucket beside that of the one before it, (1 + error) / (1 − error).
const GROWTH: f64 = (1.0 + RELATIVE_ERROR) / (1.0 - RELATIVE_ERROR);
/// What is shorter counts as this long: 1 µs.
const SHORTEST_NANOS: f64 = 1e3;
/// What is longer counts as about this long.
#[cfg(test)]
const LONGEST_SECONDS: f64 = 1e3;
/// ⌈ln(1,000 s / 1 µs) / ln γ⌉, and one for what is 1 µs or shorter; a test computes it.
const BUCKETS: usize = 1_038;

// === impl Sketch ===

impl Default for Sketch {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], micros: 0 }
    }
}

impl Sketch {
    pub fn observe(&mut self, latency: Duration) {
        let nanos = nanos(latency);
        let count = &mut self.counts[bucket(nanos as f64)];
        *count = count.saturating_add(1);
        self.micros = self.micros.saturating_add(micros(nanos));
    }

    /// Exactly what one sketch of all observations would be.
    pub fn merge(&mut self, other: &Self) {
        for (own, others) in self.counts.iter_mut().zip(&other.counts) {
            *own = own.saturating_add(*others);
        }
        self.micros = self.micros.saturating_add(other.micros);
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// How many took longer than so many seconds. Exact for the bound of a bucket; otherwise it is the next one above
    /// that counts, at most 2.1 % longer, the same for every sketch. What is no number is longer than all.
    pub fn count_above(&self, seconds: f64) -> u64 {
        if seconds.is_nan() {
            return 0;
        }
        let above = bucket(seconds * 1e9) + 1;
        self.counts[above..].iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// Seconds, within `RELATIVE_ERROR` of the observation at rank ⌊q (count − 1)⌋ of the sorted ones; `None` where
    /// nothing was observed, or where q is not in [0, 1].
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let last = self.count().checked_sub(1).filter(|_| (0.0..=1.0).contains(&q))?;
        let rank = (q * last as f64) as u64;
        let mut seen = 0_u64;
        let found = self.counts.iter().position(|count| {
            seen = seen.saturating_add(*count);
            seen > rank
        });
        // Rounding may take the rank of large counts past the last one.
        let found = found.or_else(|| self.counts.iter().rposition(|count| *count > 0))?;
        Some(middle_seconds(found))
    }

    /// Seconds, right to half a microsecond; `None` where nothing was observed.
    pub fn mean(&self) -> Option<f64> {
        let count = self.count();
        (count > 0).then(|| self.micros as f64 / 1e6 / count as f64)
    }
}

impl<'de> Deserialize<'de> for Sketch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let sparse = Sparse::deserialize(deserializer)?;
        let mut sketch = Self { micros: sparse.micros, ..Self::default() };
        let mut next = 0;
        for (index, count) in sparse.buckets {
            if index < next {
                return Err(de::Error::custom(format!("bucket {index} of a sketch is out of order: they ascend")));
            }
            let Some(own) = sketch.counts.get_mut(index) else {
                return Err(de::Error::custom(format!("a sketch has buckets below {BUCKETS}, not {index}")));
            };
            *own = count;
            next = index + 1;
        }
        Ok(sketch)
    }
}

impl From<Sketch> for Sparse {
    fn from(sketch: Sketch) -> Self {
        let buckets = sketch.counts.into_iter().enumerate().filter(|(_, count)| *count > 0).collect();
        Self { micros: sketch.micros, buckets }
    }
}

// === impl LiveSketch ===

impl Default for LiveSketch {
    fn default() -> Self {
        Self { counts: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(), micros: AtomicU64::new(0) }
    }
}

impl LiveSketch {
    /// Relaxed: the counts order nothing else.
    pub fn observe(&self, latency: Duration) {
        let nanos = nanos(latency);
        self.counts[bucket(nanos as f64)].fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(micros(nanos), Ordering::Relaxed);
    }

    /// Each count as it was at some moment of the reading: none goes down from one reading to the next. The mean may
    /// miss what is observed meanwhile.
    pub fn read(&self) -> Sketch {
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        Sketch { counts, micros: self.micros.load(Ordering::Relaxed) }
    }
}

fn nanos(latency: Duration) -> u64 {
    u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX)
}

fn micros(nanos: u64) -> u64 {
    nanos / 1_000 + u64::from(nanos % 1_000 >= 500)
}

/// Always a bucket: a float becomes an integer by saturation, and NaN nought.
fn bucket(nanos: f64) -> usize {
    let place = (nanos / SHORTEST_NANOS).ln() / GROWTH.ln();
    (place.ceil() as usize).min(BUCKETS - 1)
}

/// The number whose relative error is the same for both bounds of the bucket: 2 γ^i / (γ + 1) µs.
fn middle_seconds(bucket: usize) -> f64 {
    let bound = SHORTEST_NANOS / 1e9 * (bucket as f64 * GROWTH.ln()).exp();
    if bucket == 0 { bound } else { bound * 2.0 / (GROWTH + 1.0) }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use proptest::prelude::*;

    use super::*;

    fn of(nanos: impl IntoIterator<Item = u64>) -> Sketch {
        let mut sketch = Sketch::default();
        nanos.into_iter().for_each(|nanos| sketch.observe(Duration::from_nanos(nanos)));
        sketch
    }

    #[test]
    fn the_buckets_reach_just_so_far() {
        let needed = (LONGEST_SECONDS * 1e9 / SHORTEST_NANOS).ln() / GROWTH.ln();
        assert_eq!(BUCKETS, needed.ceil() as usize + 1);
    }

    #[test]
    fn nothing_observed_has_no_quantile() {
        let none = Sketch::default();
        assert_eq!((none.count(), none.quantile(0.5), none.mean(), none.count_above(0.0)), (0, None, None, 0));
        let one = of([5_000_000]);
        for q in [-0.1, 1.1, f64::NAN] {
            assert_eq!(one.quantile(q), None);
        }
        assert_eq!(one.mean(), Some(0.005));
    }

    #[test]
    fn what_is_outside_counts_at_the_ends() {
        let sketch = of([0, 1, 999, 1_000]);
        assert_eq!(sketch.quantile(1.0), Some(1e-6));
        let long = of([2_000_000_000_000, u64::MAX]);
        let last = long.quantile(1.0).expect("it is there");
        assert!((last - LONGEST_SECONDS).abs() < 0.03 * LONGEST_SECONDS, "{last}");
        let mut longest = of([7]);
        longest.observe(Duration::MAX);
        assert_eq!(longest.count(), 2);
    }

    #[test]
    fn a_count_above_is_exact_to_a_bucket() {
        let sketch = of((1..=1000).map(|millis| millis * 1_000_000));
        let above = sketch.count_above(0.2);
        assert!((796..=800).contains(&above), "{above}");
        assert_eq!(sketch.count_above(0.0), 1000);
        assert_eq!(sketch.count_above(-1.0), 1000);
        assert_eq!(sketch.count_above(1e9), 0);
        assert_eq!(sketch.count_above(f64::NAN), 0);
    }

    #[test]
    fn all_threads_are_counted() {
        let (live, expected) = (LiveSketch::default(), of((0..4000).map(|place| place * 10_000)));
        thread::scope(|scope| {
            for part in 0..4_u64 {
                let live = &live;
                scope.spawn(move || {
                    for place in 0..1000 {
                        live.observe(Duration::from_nanos((part * 1000 + place) * 10_000));
                    }
                });
            }
        });
        assert_eq!(live.read(), expected);
    }

    #[test]
    fn it_is_written_sparsely() {
        let text = serde_json::to_string(&of([1, 2_000, 2_000])).unwrap();
        assert_eq!(text, r#"{"micros":4,"buckets":[[0,1],[35,2]]}"#);
    }

    #[test]
    fn what_is_no_sketch_is_an_error() {
        for buckets in
            ["[[1038,1]]", "[[18446744073709551615,1]]", "[[-1,1]]", "[[5,1],[5,1]]", "[[5,1],[4,1]]", "[[1]]"]
        {
            let text = format!(r#"{{"micros":0,"buckets":{buckets}}}"#);
            assert!(serde_json::from_str::<Sketch>(&text).is_err(), "{text}");
        }
        let full = format!(r#"{{"micros":{0},"buckets":[[3,{0}],[4,{0}]]}}"#, u64::MAX);
        let mut full: Sketch = serde_json::from_str(&full).expect("counts may be large");
        full.merge(&full.clone());
        full.observe(Duration::from_secs(1));
        assert_eq!(full.count(), u64::MAX);
        assert!(full.quantile(1.0).is_some() && full.quantile(0.5).is_some());
    }

    proptest! {
        #[test]
        fn every_quantile_is_right_to_one_percent(
            mut nanos in prop::collection::vec((3.0..12.0_f64).prop_map(|digits| 10_f64.powf(digits) as u64), 1..200),
            q in 0.0..=1.0_f64,
        ) {
            let got = of(nanos.iter().copied()).quantile(q).expect("something was observed");
            nanos.sort_unstable();
            let exact = nanos[(q * (nanos.len() - 1) as f64) as usize] as f64 / 1e9;
            prop_assert!((got - exact).abs() <= (RELATIVE_ERROR + 1e-9) * exact, "{} {}", got, exact);
        }

        #[test]
        fn a_count_above_lies_between_those_of_the_bounds(
            nanos in prop::collection::vec(1_000..1_000_000_u64, 0..200),
            bound in 1_000..1_000_000_u64,
        ) {
            let above = of(nanos.iter().copied()).count_above(bound as f64 / 1e9);
            let exact = |bound: f64| nanos.iter().filter(|nanos| **nanos as f64 > bound).count() as u64;
            prop_assert!(above <= exact(bound as f64 * (1.0 - 1e-9)));
            prop_assert!(above >= exact(bound as f64 * GROWTH * (1.0 + 1e-9)));
        }

        #[test]
        fn merging_is_observing_in_any_order(
            parts in prop::collection::vec(prop::collection::vec(any::<u32>(), 0..20), 1..6),
        ) {
            let all = of(parts.concat().into_iter().map(u64::from));
            let sketches: Vec<Sketch> = parts.iter().map(|part| of(part.iter().copied().map(u64::from))).collect();
            let (mut forward, mut backward) = (Sketch::default(), Sketch::default());
            sketches.iter().for_each(|part| forward.merge(part));
            sketches.iter().rev().for_each(|part| backward.merge(part));
            prop_assert_eq!(&all, &forward);
            prop_assert_eq!(&all, &backward);
            let text = serde_json::to_string(&all).unwrap();
            prop_assert_eq!(serde_json::from_str::<Sketch>(&text).unwrap(), all);
        }
    }
}

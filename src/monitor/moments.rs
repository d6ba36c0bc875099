//! Count, mean and variance of a stream, kept in one pass: the sufficient statistics of every test on means. Sums of
//! several replicas can be joined. It knows nothing of the tests.

use serde::{Deserialize, Serialize};

/// The first two moments of what was pushed. The default is that of nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Moments {
    pub count: u64,
    /// Nought where nothing was pushed.
    pub mean: f64,
    /// The sum of squared differences from the mean.
    pub m2: f64,
}

/// What is larger is no value: the square of what is may still be summed up.
pub const VALUE_MAX: f64 = 1e100;

// === impl Moments ===

impl Moments {
    /// Those of `trials` values of which `hits` are 1 and the others 0: m2 = hits (trials − hits) / trials. More hits
    /// than trials count as all.
    pub fn of_proportion(hits: u64, trials: u64) -> Self {
        if trials == 0 {
            return Self::default();
        }
        let hits = hits.min(trials);
        let mean = hits as f64 / trials as f64;
        Self { count: trials, mean, m2: mean * (trials - hits) as f64 }
    }

    /// Takes one value (Welford 1962); says whether it did: one value that is not finite, or whose square is not, would spoil all
    /// that follow.
    pub fn push(&mut self, value: f64) -> bool {
        if value.is_nan() || value.abs() > VALUE_MAX {
            return false;
        }
        self.count = self.count.saturating_add(1);
        let before = value - self.mean;
        self.mean += before / self.count as f64;
        self.m2 += before * (value - self.mean);
        true
    }

    /// As if the values of both had been pushed into one (Chan, Golub and LeVeque 1979), up to rounding.
    pub fn merge(&mut self, other: &Self) {
        if other.count == 0 {
            return;
        }
        let (own, others) = (self.count as f64, other.count as f64);
        let (difference, both) = (other.mean - self.mean, own + others);
        self.mean += difference * (others / both);
        self.m2 += other.m2 + difference * difference * (own * others / both);
        self.count = self.count.saturating_add(other.count);
    }

    /// The unbiased one, m2 / (count − 1); `None` below two values.
    pub fn variance(&self) -> Option<f64> {
        (self.count >= 2).then(|| self.m2 / (self.count - 1) as f64)
    }

    /// The squared standard error of the mean, variance / count; `None` below two values.
    pub fn error_squared(&self) -> Option<f64> {
        self.variance().map(|variance| variance / self.count as f64)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rollout::statistics::golden::{close, golden};

    fn of(values: &[f64]) -> Moments {
        let mut moments = Moments::default();
        for value in values {
            assert!(moments.push(*value));
        }
        moments
    }

    #[test]
    fn what_was_never_pushed_has_no_variance() {
        assert_eq!(Moments::default().variance(), None);
        assert_eq!(of(&[3.0]).variance(), None);
        assert_eq!(of(&[3.0, 3.0]).variance(), Some(0.0));
        assert_eq!(Moments::of_proportion(0, 0), Moments::default());
    }

    #[test]
    fn they_are_those_of_numpy() {
        for case in golden()["moments"].as_array().unwrap() {
            let values: Vec<f64> = serde_json::from_value(case["values"].clone()).unwrap();
            let moments = of(&values);
            close("mean", moments.mean, &case["mean"]);
            close("variance", moments.variance().unwrap(), &case["variance"]);
        }
    }

    #[test]
    fn what_is_not_finite_is_not_taken() {
        let mut moments = of(&[1.0, 2.0]);
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert!(!moments.push(value));
        }
        assert_eq!(moments, of(&[1.0, 2.0]));
    }

    #[test]
    fn they_survive_being_written_down() {
        let moments = of(&[0.1, 0.2, 0.7]);
        let text = serde_json::to_string(&moments).unwrap();
        assert_eq!(serde_json::from_str::<Moments>(&text).unwrap(), moments);
    }

    fn near(left: &Moments, right: &Moments) {
        let scale = left.mean.abs() + (left.m2 / left.count.max(1) as f64).sqrt();
        assert_eq!(left.count, right.count);
        assert!((left.mean - right.mean).abs() <= 1e-12 * scale, "{left:?} {right:?}");
        assert!((left.m2 - right.m2).abs() <= 1e-11 * scale * scale * left.count.max(1) as f64, "{left:?} {right:?}");
    }

    proptest! {
        #[test]
        fn merging_is_pushing_in_any_order(
            parts in prop::collection::vec(prop::collection::vec(-1e3..1e3_f64, 0..20), 1..6),
        ) {
            let all = of(&parts.concat());
            let mut forward = Moments::default();
            parts.iter().for_each(|part| forward.merge(&of(part)));
            let mut backward = Moments::default();
            parts.iter().rev().for_each(|part| backward.merge(&of(part)));
            near(&all, &forward);
            near(&all, &backward);
        }

        #[test]
        fn a_proportion_is_zeros_and_ones(hits in 0..50_u64, misses in 0..50_u64) {
            let values: Vec<f64> = (0..hits + misses).map(|place| f64::from(place < hits)).collect();
            near(&of(&values), &Moments::of_proportion(hits, hits + misses));
        }
    }
}

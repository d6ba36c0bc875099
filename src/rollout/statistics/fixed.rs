//! Tests with a fixed horizon, for the report at an experiment's end: the numbers that any textbook and statsmodels
//! give.
//!
//! They are not to be looked at while an experiment runs: of 100 looks at equal arms, one in three ends below 5 %. What
//! may be looked at stands in `sequential`.

use serde::{Deserialize, Serialize};

use crate::monitor::Moments;

use super::special::{normal_quantile, normal_tail, student_quantile, student_tail};

/// So many of so many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Proportion {
    pub hits: u64,
    pub trials: u64,
}

/// What one test found. The sign is that of treatment − control throughout.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub struct Comparison {
    /// Treatment − control, in the unit of the data.
    pub difference: f64,
    /// The confidence interval of the difference, at 1 − alpha.
    pub interval: (f64, f64),
    /// z of the pooled test, whatever the method for proportions, or Welch's t; always finite.
    pub statistic: f64,
    /// Two-sided.
    pub p_value: f64,
    pub method: Method,
}

/// Whose p-value it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Two proportions, with the pooled variance.
    PooledZ,
    /// Two proportions, by all tables with the same margins.
    FisherExact,
    /// Two means, with variances that may differ.
    WelchT,
}

/// With fewer expected in a cell of the table, the normal approximation is left for the exact test.
const EXPECTED_MIN: u128 = 10;
/// Tables this much more likely than the one that is there count as equally likely, for rounding: R's `fisher.test` has
/// it too.
const FISHER_SLACK: f64 = 1e-7;
/// A walk ends where weights are this small beside 1, that of the table which is there.
const FISHER_NEGLIGIBLE: f64 = f64::EPSILON * f64::EPSILON;

// === impl Method ===

impl Method {
    /// `pooled_z`
    pub fn as_str(self) -> &'static str {
        match self {
            Method::PooledZ => "pooled_z",
            Method::FisherExact => "fisher_exact",
            Method::WelchT => "welch_t",
        }
    }
}

/// Whether two proportions differ. z = (p₂ − p₁) / √(p (1−p) (1/n₁ + 1/n₂)) with the pooled p, as `proportions_ztest`
/// of statsmodels; Fisher's exact test where fewer than ten are expected in any cell. The interval is Newcombe's (1998,
/// method 10). `None` without trials in both arms, with more hits than trials, or where alpha is not inside (0, 1).
pub fn two_proportions(control: Proportion, treatment: Proportion, alpha: f64) -> Option<Comparison> {
    if !is_level(alpha) || !control.is_whole() || !treatment.is_whole() {
        return None;
    }
    let (n1, n2) = (control.trials as f64, treatment.trials as f64);
    let hits = control.hits as f64 + treatment.hits as f64;
    let pooled = hits / (n1 + n2);
    let difference = treatment.rate() - control.rate();
    let error = (pooled * (1.0 - pooled) * (1.0 / n1 + 1.0 / n2)).sqrt();
    // Without error all are hits, or none is: the arms are equal.
    let statistic = if error > 0.0 { difference / error } else { 0.0 };
    let (p_value, method) = match is_sparse(control, treatment) {
        true => (fisher_exact(control, treatment), Method::FisherExact),
        false => (two_sided(normal_tail(statistic.abs())), Method::PooledZ),
    };
    let interval = newcombe(control, treatment, normal_quantile(alpha / 2.0));
    Some(Comparison { difference, interval, statistic, p_value, method })
}

/// In whole numbers, so that hits counted as misses are the same question.
fn is_sparse(control: Proportion, treatment: Proportion) -> bool {
    let sum = |one: u64, other: u64| u128::from(one) + u128::from(other);
    let (hits, trials) = (sum(control.hits, treatment.hits), sum(control.trials, treatment.trials));
    let (fewest, rarest) = (u128::from(control.trials.min(treatment.trials)), hits.min(trials - hits));
    fewest.saturating_mul(rarest) < EXPECTED_MIN * trials
}

/// Whether two means differ, whatever their variances (Welch 1947): t = (m₂ − m₁) / √(v₁ + v₂) with v = s²/n and (v₁ +
/// v₂)² / (v₁²/(n₁−1) + v₂²/(n₂−1)) degrees of freedom, as `ttest_ind(equal_var=False)` of scipy. `None` below two
/// values in an arm, where neither varies, where the sums are not finite, or where alpha is not inside (0, 1).
pub fn welch(control: &Moments, treatment: &Moments, alpha: f64) -> Option<Comparison> {
    let (v1, v2) = (control.error_squared()?, treatment.error_squared()?);
    let difference = treatment.mean - control.mean;
    let error = (v1 + v2).sqrt();
    let statistic = difference / error;
    if !statistic.is_finite() || !error.is_finite() || !is_level(alpha) {
        return None;
    }
    // Shares of the variance, so that squares of tiny ones do not become nought.
    let (share1, share2) = (v1 / (v1 + v2), v2 / (v1 + v2));
    let freedom = 1.0 / (share1 * share1 / (control.count - 1) as f64 + share2 * share2 / (treatment.count - 1) as f64);
    let p_value = two_sided(student_tail(statistic.abs(), freedom));
    let reach = student_quantile(alpha / 2.0, freedom) * error;
    let interval = (difference - reach, difference + reach);
    Some(Comparison { difference, interval, statistic, p_value, method: Method::WelchT })
}

/// Spearman's rank correlation: Pearson's of the ranks, where ties share the mean of theirs. `None` below two pairs,
/// where a side is constant, or where a number is NaN, which has no rank.
pub fn spearman(pairs: &[(f32, f32)]) -> Option<f64> {
    if pairs.len() < 2 || pairs.iter().any(|(x, y)| x.is_nan() || y.is_nan()) {
        return None;
    }
    let left = ranks(&pairs.iter().map(|pair| pair.0).collect::<Vec<_>>());
    let right = ranks(&pairs.iter().map(|pair| pair.1).collect::<Vec<_>>());
    let mean = (pairs.len() + 1) as f64 / 2.0;
    let (mut xx, mut yy, mut xy) = (0.0, 0.0, 0.0);
    for (x, y) in left.iter().zip(&right) {
        xx += (x - mean) * (x - mean);
        yy += (y - mean) * (y - mean);
        xy += (x - mean) * (y - mean);
    }
    (xx > 0.0 && yy > 0.0).then(|| (xy / (xx.sqrt() * yy.sqrt())).clamp(-1.0, 1.0))
}

fn is_level(alpha: f64) -> bool {
    alpha > 0.0 && alpha < 1.0
}

fn two_sided(tail: f64) -> f64 {
    (2.0 * tail).min(1.0)
}

/// The probability, given the margins, of all tables no more likely than this one, as `fisher_exact` of scipy. From the
/// ratios of neighbouring tables: statrs' `fishers_exact` takes tails as 1 − cdf, and is wrong for arms of very
/// different sizes (8 of 30 against 300,000 of 1,000,000: 0.43 instead of 0.84).
fn fisher_exact(control: Proportion, treatment: Proportion) -> f64 {
    let hits = control.hits.saturating_add(treatment.hits);
    let (here, there) = (treatment.trials as f64, control.trials as f64);
    let least = hits.saturating_sub(control.trials);
    let most = hits.min(treatment.trials);
    // P(k + 1) / P(k), of k hits that fell into the treatment.
    let ratio = |k: u64| {
        let (k, hits) = (k as f64, hits as f64);
        (here - k) * (hits - k) / ((k + 1.0) * (there - hits + k + 1.0))
    };
    // Relative to the table that is there: a walk to both sides, each until what remains adds nothing.
    let walk = |steps: &mut dyn Iterator<Item = f64>| {
        let (mut weight, mut all, mut unlikely) = (1.0_f64, 0.0_f64, 0.0_f64);
        for step in steps {
            weight *= step;
            all += weight;
            unlikely += if weight <= 1.0 + FISHER_SLACK { weight } else { 0.0 };
            if step < 1.0 && weight < FISHER_NEGLIGIBLE {
                break;
            }
        }
        (all, unlikely)
    };
    let (all_up, unlikely_up) = walk(&mut (treatment.hits..most).map(ratio));
    let (all_down, unlikely_down) = walk(&mut (least..treatment.hits).rev().map(|k| 1.0 / ratio(k)));
    ((1.0 + unlikely_up + unlikely_down) / (1.0 + all_up + all_down)).min(1.0)
}

/// (d − √((p₂−l₂)² + (u₁−p₁)²), d + √((p₁−l₁)² + (u₂−p₂)²)) with Wilson's limits of each arm: `newcomb` of statsmodels'
/// `confint_proportions_2indep`.
fn newcombe(control: Proportion, treatment: Proportion, z: f64) -> (f64, f64) {
    let (p1, p2) = (control.rate(), treatment.rate());
    let ((low1, high1), (low2, high2)) = (control.wilson(z), treatment.wilson(z));
    let difference = p2 - p1;
    (difference - (p2 - low2).hypot(high1 - p1), difference + (p1 - low1).hypot(high2 - p2))
}

/// From 1 up; those of equal values are the mean of the places they take.
fn ranks(values: &[f32]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_unstable_by(|left, right| values[*left].total_cmp(&values[*right]));
    let mut ranks = vec![0.0; values.len()];
    let mut before = 0;
    // By `==`, which holds the two noughts for one where the order does not.
    for tied in order.chunk_by(|left, right| values[*left] == values[*right]) {
        for place in tied {
            ranks[*place] = before as f64 + (tied.len() + 1) as f64 / 2.0;
        }
        before += tied.len();
    }
    ranks
}

// === impl Proportion ===

impl Proportion {
    /// NaN without trials.
    pub fn rate(self) -> f64 {
        self.hits as f64 / self.trials as f64
    }

    fn is_whole(self) -> bool {
        self.trials > 0 && self.hits <= self.trials
    }

    /// Wilson's score interval (1927).
    fn wilson(self, z: f64) -> (f64, f64) {
        let (n, p, square) = (self.trials as f64, self.rate(), z * z);
        let centre = (p + square / (2.0 * n)) / (1.0 + square / n);
        let reach = z * (p * (1.0 - p) / n + square / (4.0 * n * n)).sqrt() / (1.0 + square / n);
        (centre - reach, centre + reach)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::rollout::statistics::golden::{close, close_in_ratio, golden};

    fn proportion(hits: u64, trials: u64) -> Proportion {
        Proportion { hits, trials }
    }

    fn moments(case: &Value) -> Moments {
        let values: Vec<f64> = serde_json::from_value(case.clone()).unwrap();
        let mut moments = Moments::default();
        values.into_iter().for_each(|value| assert!(moments.push(value)));
        moments
    }

    fn same(case: &Value, got: &Comparison) {
        close("difference", got.difference, &case["difference"]);
        close("statistic", got.statistic, &case["statistic"]);
        close("p", got.p_value, &case["p_value"]);
        close("low", got.interval.0, &case["interval"][0]);
        close("high", got.interval.1, &case["interval"][1]);
        assert_eq!(serde_json::to_value(got.method).unwrap(), case["method"]);
    }

    #[test]
    fn proportions_compare_as_in_statsmodels_and_scipy() {
        for case in golden()["proportions"].as_array().unwrap() {
            let [control, treatment] =
                ["control", "treatment"].map(|arm| serde_json::from_value(case[arm].clone()).unwrap());
            let alpha = case["alpha"].as_f64().unwrap();
            let got = two_proportions(control, treatment, alpha).expect("there are trials");
            same(case, &got);
            close_in_ratio("p", got.p_value, &case["p_value"]);
        }
    }

    #[test]
    fn means_compare_as_in_scipy() {
        for case in golden()["welch"].as_array().unwrap() {
            let (control, treatment) = (moments(&case["control"]), moments(&case["treatment"]));
            let got = welch(&control, &treatment, case["alpha"].as_f64().unwrap()).expect("they vary");
            same(case, &got);
        }
    }

    #[test]
    fn a_million_of_each_compare_as_in_scipy() {
        for case in golden()["welch_of_moments"].as_array().unwrap() {
            let [control, treatment] =
                ["control", "treatment"].map(|arm| serde_json::from_value(case[arm].clone()).unwrap());
            same(case, &welch(&control, &treatment, case["alpha"].as_f64().unwrap()).expect("they vary"));
        }
    }

    #[test]
    fn ranks_correlate_as_in_scipy() {
        for case in golden()["spearman"].as_array().unwrap() {
            let pairs: Vec<(f32, f32)> = serde_json::from_value(case["pairs"].clone()).unwrap();
            close("rho", spearman(&pairs).expect("they vary"), &case["rho"]);
        }
    }

    #[test]
    fn what_does_not_suffice_has_no_result() {
        let some = proportion(3, 50);
        assert_eq!(two_proportions(proportion(0, 0), some, 0.05), None);
        assert_eq!(two_proportions(some, proportion(0, 0), 0.05), None);
        assert_eq!(two_proportions(some, proportion(4, 3), 0.05), None);
        for alpha in [0.0, 1.0, -0.1, f64::NAN] {
            assert_eq!(two_proportions(some, some, alpha), None);
            assert_eq!(welch(&Moments::of_proportion(3, 9), &Moments::of_proportion(4, 9), alpha), None);
        }
        let constant = Moments::of_proportion(0, 10);
        assert_eq!(welch(&constant, &constant, 0.05), None, "neither varies");
        assert_eq!(welch(&Moments::of_proportion(1, 1), &Moments::of_proportion(4, 9), 0.05), None, "one value");
        let spoilt = Moments { count: 9, mean: 1.0, m2: f64::INFINITY };
        assert_eq!(welch(&spoilt, &Moments::of_proportion(4, 9), 0.05), None);
        assert_eq!(spearman(&[(1.0, 1.0)]), None);
        assert_eq!(spearman(&[(1.0, 1.0), (1.0, 2.0)]), None);
        assert_eq!(spearman(&[(1.0, 1.0), (f32::NAN, 2.0)]), None);
    }

    #[test]
    fn equal_arms_without_variance_are_equal() {
        for hits in [0, 40] {
            let got = two_proportions(proportion(hits, 40), proportion(hits, 40), 0.05).expect("there are trials");
            assert_eq!((got.p_value, got.statistic, got.method), (1.0, 0.0, Method::FisherExact));
        }
    }

    #[test]
    fn the_two_noughts_are_one_rank() {
        assert_eq!(ranks(&[0.0, -0.0, 1.0, -1.0]), [2.5, 2.5, 4.0, 1.0]);
    }

    fn arms() -> impl Strategy<Value = (Proportion, Proportion)> {
        let one = (1..400_u64).prop_flat_map(|trials| (0..=trials).prop_map(move |hits| proportion(hits, trials)));
        (one.clone(), one)
    }

    fn mirrored(one: &Comparison, other: &Comparison) {
        let near = |left: f64, right: f64| assert!((left - right).abs() < 1e-10, "{one:?} {other:?}");
        near(one.difference, -other.difference);
        near(one.statistic, -other.statistic);
        near(one.interval.0, -other.interval.1);
        near(one.interval.1, -other.interval.0);
        near(one.p_value, other.p_value);
        assert_eq!(one.method, other.method);
    }

    proptest! {
        #[test]
        fn swapping_the_arms_mirrors_proportions((control, treatment) in arms()) {
            let one = two_proportions(control, treatment, 0.05).unwrap();
            mirrored(&one, &two_proportions(treatment, control, 0.05).unwrap());
            prop_assert!((0.0..=1.0).contains(&one.p_value));
            prop_assert!(one.interval.0 <= one.difference && one.difference <= one.interval.1);
        }

        #[test]
        fn counting_misses_for_hits_mirrors_them_too((control, treatment) in arms()) {
            let miss = |arm: Proportion| proportion(arm.trials - arm.hits, arm.trials);
            let one = two_proportions(control, treatment, 0.05).unwrap();
            mirrored(&one, &two_proportions(miss(control), miss(treatment), 0.05).unwrap());
        }

        #[test]
        fn swapping_the_arms_mirrors_means(
            control in prop::collection::vec(-1e3..1e3_f64, 2..30),
            treatment in prop::collection::vec(-1e3..1e3_f64, 2..30),
        ) {
            let [control, treatment] = [control, treatment].map(|values| {
                let mut moments = Moments::default();
                values.into_iter().for_each(|value| assert!(moments.push(value)));
                moments
            });
            let (Some(one), Some(other)) = (welch(&control, &treatment, 0.05), welch(&treatment, &control, 0.05)) else {
                return Ok(());
            };
            prop_assert_eq!(one.difference, -other.difference);
            prop_assert_eq!(one.statistic, -other.statistic);
            prop_assert_eq!(one.interval.0, -other.interval.1);
            prop_assert!((one.p_value - other.p_value).abs() < 1e-12);
        }

        #[test]
        fn a_rank_correlation_knows_only_the_order(pairs in prop::collection::vec((-9..9_i32, -9..9_i32), 2..40)) {
            let plain: Vec<(f32, f32)> = pairs.iter().map(|(x, y)| (*x as f32, *y as f32)).collect();
            let bent: Vec<(f32, f32)> = plain.iter().map(|(x, y)| (x.powi(3), -y)).collect();
            match (spearman(&plain), spearman(&bent)) {
                (Some(one), Some(other)) => prop_assert!((one + other).abs() < 1e-12),
                (one, other) => prop_assert_eq!(one, other),
            }
        }
    }
}

//! Tests that may be looked at all the time: the chance that any look, ever, raises a false alarm is at most alpha.
//!
//! Each gives the logarithm of an e-value: how many times more likely the data are under a mixture of alternatives than
//! under "nothing is wrong" (Robbins 1970; Ville 1939 bounds its highest value ever by 1/alpha). Such values of data
//! that do not overlap multiply, so their logarithms add: stages with other shares are tested apart and added up. The
//! tests remember nothing; `Evidence` keeps the highest value, so that a p-value once reached stays.

use serde::{Deserialize, Serialize};

use crate::monitor::Moments;

use super::special::{beta_fraction, deviance, ln_binomial, stirling_error};

/// The highest evidence of one test so far. The default is that of no look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    /// Finite, so that JSON has a word for it, and never below nought: no look is no evidence.
    log_e_max: f64,
}

/// Variances are estimated: with fewer of each arm they are not to be trusted.
pub const ARM_MIN: u64 = 100;
/// The weight, in requests, of the belief that shares are as expected. It makes the test best at shares of a half that
/// are off by half a percent point, and of a hundredth by a tenth of one; grosser mismatches show early anyway.
const SHARE_CONCENTRATION: f64 = 10_000.0;

/// The log e-value against equal means, by a mixture of differences ~ N(0, tau2): with d = m₂ − m₁ and its variance v,
///
/// ln Λ = ½ ln(v / (v + τ²)) + τ² d² / (2 v (v + τ²))      (Robbins 1970; Johari, Pekelis and Walsh 2015)
///
/// v is the larger of s₁²/n₁ + s₂²/n₂ and s² (1/n₁ + 1/n₂) with the pooled s². They are the same for arms of one size.
/// With the first alone, a small arm that happened upon no rare error believes that it never errs: at a tenth of the
/// requests and errors in 0.5 % of them, 28 % of equal arms raised an alarm at 5 %. With the second alone, a wider
/// spread would pass for a shift.
///
/// It is two-sided: ask the sign of d. The bound on false alarms is that of large samples, as means become normal; for
/// rare errors `exceeds` has one that is exact. `tau2`, the square of the difference one wants to find, is fixed before
/// the start: to choose it by the data is to look without the guarantee. `None` below `ARM_MIN` in an arm, where
/// nothing varies, or where `tau2` is no positive number.
pub fn mean_difference(control: &Moments, treatment: &Moments, tau2: f64) -> Option<f64> {
    let (difference, v) = difference(control, treatment, tau2)?;
    let z_squared = difference * difference / v;
    Some(0.5 * (tau2 / (v + tau2) * z_squared - (tau2 / v).ln_1p()))
}

/// The differences that `mean_difference` does not refute at `alpha`; with probability 1 − alpha the true one lies
/// inside at every look. Its reach is √(2 v (v + τ²) / τ² · (ln(1/α) + ½ ln((v + τ²) / v))). `None` where that test has
/// none, or where alpha is not inside (0, 1).
pub fn confidence_sequence(control: &Moments, treatment: &Moments, tau2: f64, alpha: f64) -> Option<(f64, f64)> {
    let (difference, v) = difference(control, treatment, tau2)?;
    let needed = 0.5 * (tau2 / v).ln_1p() - alpha.ln();
    let reach = (2.0 * v * (v / tau2 + 1.0) * needed).sqrt();
    (alpha > 0.0 && alpha < 1.0).then_some((difference - reach, difference + reach))
}

/// The log e-value that more than `rate0` of a stream are hits: one-sided, so that no number of misses is evidence.
///
/// A mixture over θ in (rate0, 1) with density 1 / (θ ln(1/rate0)), a truncated Beta(0, 1): log-uniform, so that "twice
/// as often" costs the same for rare hits as for frequent ones. With X ~ Binomial(trials, rate0),
///
/// e = ∫ (θ/rate0)^hits ((1−θ)/(1−rate0))^misses dθ / (θ ln(1/rate0))
///
/// and, for hits above nought, e = P(X < hits) / (hits · P(X = hits) · ln(1/rate0)).
///
/// Without trials the logarithm is nought. Where no hit may be, rate0 ≤ 0, a single one is infinite evidence; no rate
/// is above rate0 ≥ 1, nor above NaN. More hits than trials count as all.
///
/// Against the errors of two arms: hits are the errors of the treatment, trials those of both, rate0 the treatment's
/// share of the requests. Errors that come in bursts are not the independent ones it asks for.
pub fn exceeds(hits: u64, trials: u64, rate0: f64) -> f64 {
    let hits = hits.min(trials);
    if trials == 0 || rate0 >= 1.0 || rate0.is_nan() {
        return 0.0;
    }
    if rate0 <= 0.0 {
        return if hits > 0 { f64::INFINITY } else { 0.0 };
    }
    let prior = (-rate0.ln()).ln();
    // The two parameters of the beta function that the integral is.
    let (a, b) = (hits as f64, (trials - hits) as f64 + 1.0);
    if hits == 0 || rate0 >= (a + 1.0) / (a + b + 2.0) {
        // Fewer than expected: the integral itself, as a fraction that has already lost the likelihood under rate0.
        let fraction = beta_fraction(b, a, 1.0 - rate0);
        return (-rate0).ln_1p() + fraction.ln() - b.ln() - prior;
    }
    let here = ln_binomial(hits, trials, rate0);
    let here_or_more = here.exp() * (1.0 - rate0) * beta_fraction(a, b, rate0);
    (-here_or_more).ln_1p() - here - a.ln() - prior
}

/// The log Bayes factor that requests were not shared out as `expected`: with x the counts, n their sum, p the shares
/// scaled to sum to one, A a concentration and α = A p,
///
/// ln B = ln Γ(A)/Γ(A + n) + Σ ln Γ(αᵢ + xᵢ)/Γ(αᵢ) − Σ xᵢ ln pᵢ      (Lindon and Malek 2020)
///
/// a Dirichlet mixture of multinomials against the one that is expected. Count what was assigned, not what was
/// answered, or a version that crashes hides itself. A count that is missing is nought, and so is a share that is
/// missing, not positive or not finite; a count where nought is expected is infinite evidence.
pub fn ratio_mismatch(counts: &[u64], expected: &[f64]) -> f64 {
    let share = |arm: usize| expected.get(arm).copied().filter(|share| share.is_finite()).unwrap_or(0.0).max(0.0);
    let count = |arm: usize| counts.get(arm).copied().unwrap_or(0);
    let scale: f64 = (0..expected.len()).map(share).sum();
    let prior = |arm: usize| if scale > 0.0 { SHARE_CONCENTRATION * (share(arm) / scale) } else { 0.0 };
    let arms = (0..counts.len().max(expected.len())).map(|arm| (count(arm), prior(arm)));
    if arms.clone().any(|(count, prior)| count > 0 && prior == 0.0) {
        return f64::INFINITY;
    }
    let all = SHARE_CONCENTRATION + counts.iter().map(|count| *count as f64).sum::<f64>();
    // Stirling's formula for each Γ: its large terms become deviances, which are small where the counts are as
    // expected.
    let total = 0.5 * (all / SHARE_CONCENTRATION).ln() - stirling_error(all) + stirling_error(SHARE_CONCENTRATION);
    let each = arms.filter(|(_, prior)| *prior > 0.0).map(|(count, prior)| {
        let posterior = prior + count as f64;
        let corrections = stirling_error(posterior) - stirling_error(prior) - 0.5 * (posterior / prior).ln();
        deviance(posterior, all * (prior / SHARE_CONCENTRATION)) + corrections
    });
    total + each.sum::<f64>()
}

/// The p-value that is valid at any look: min(1, exp(−log_e)).
pub fn p_value(log_e: f64) -> f64 {
    (-log_e).exp().min(1.0)
}

/// d and v of the two arms, where they suffice.
fn difference(control: &Moments, treatment: &Moments, tau2: f64) -> Option<(f64, f64)> {
    let apart = control.error_squared()? + treatment.error_squared()?;
    let (n1, n2) = (control.count as f64, treatment.count as f64);
    let pooled = (control.m2 + treatment.m2) / (n1 + n2 - 2.0) * (1.0 / n1 + 1.0 / n2);
    let v = apart.max(pooled);
    let difference = treatment.mean - control.mean;
    let suffice = control.count.min(treatment.count) >= ARM_MIN && v > 0.0 && v.is_finite() && difference.is_finite();
    (suffice && tau2 > 0.0 && tau2.is_finite()).then_some((difference, v))
}

// === impl Evidence ===

impl Evidence {
    /// Takes one look and returns the p-value from now on; to look twice at the same data changes nothing. NaN is no
    /// look.
    pub fn look(&mut self, log_e: f64) -> f64 {
        if log_e > self.log_e_max {
            self.log_e_max = log_e.min(f64::MAX);
        }
        self.p_value()
    }

    pub fn p_value(&self) -> f64 {
        p_value(self.log_e_max)
    }

    pub fn log_e_max(&self) -> f64 {
        self.log_e_max
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::rollout::statistics::golden::{close, golden, number};

    fn arms(case: &Value) -> [Moments; 2] {
        ["control", "treatment"].map(|arm| serde_json::from_value(case[arm].clone()).unwrap())
    }

    #[test]
    fn a_difference_of_means_is_its_integral() {
        for case in golden()["mean_difference"].as_array().unwrap() {
            let [control, treatment] = arms(case);
            let got = mean_difference(&control, &treatment, number(&case["tau2"])).expect("they suffice");
            close("log e", got, &case["log_e"]);
        }
    }

    #[test]
    fn a_worked_example_comes_out() {
        let arm = |mean| Moments { count: 1000, mean, m2: 0.095 / 2.0 * 999.0 };
        let log_e = mean_difference(&arm(0.05), &arm(0.07), 1e-3).expect("they suffice");
        assert!((log_e.exp() - 2.014_353_662_152).abs() < 1e-11);
        assert!((p_value(log_e) - 0.496_437_154_403).abs() < 1e-11);
    }

    #[test]
    fn exceeding_is_its_integral() {
        for case in golden()["exceeds"].as_array().unwrap() {
            let (hits, trials) = (case["hits"].as_u64().unwrap(), case["trials"].as_u64().unwrap());
            let rate0 = number(&case["rate0"]);
            close(&format!("{hits} of {trials} at {rate0}"), exceeds(hits, trials, rate0), &case["log_e"]);
        }
    }

    #[test]
    fn a_mismatch_of_shares_is_its_walk() {
        for case in golden()["ratio_mismatch"].as_array().unwrap() {
            let counts: Vec<u64> = serde_json::from_value(case["counts"].clone()).unwrap();
            let expected: Vec<f64> = serde_json::from_value(case["expected"].clone()).unwrap();
            close(&format!("{counts:?}"), ratio_mismatch(&counts, &expected), &case["log_e"]);
        }
    }

    #[test]
    fn what_does_not_suffice_has_no_evidence() {
        let enough = Moments::of_proportion(7, 100);
        let few = Moments::of_proportion(7, 99);
        let constant = Moments::of_proportion(0, 100);
        assert!(mean_difference(&constant, &enough, 1e-3).is_some(), "one arm may be constant");
        let refused = [(few, enough, 1e-3), (enough, few, 1e-3), (constant, constant, 1e-3)];
        let odd = [0.0, -1.0, f64::NAN, f64::INFINITY].map(|tau2| (enough, enough, tau2));
        for (control, treatment, tau2) in refused.into_iter().chain(odd) {
            assert_eq!(mean_difference(&control, &treatment, tau2), None);
            assert_eq!(confidence_sequence(&control, &treatment, tau2, 0.05), None);
        }
        for alpha in [0.0, 1.0, -1.0, f64::NAN] {
            assert_eq!(confidence_sequence(&enough, &enough, 1e-3, alpha), None);
        }
    }

    #[test]
    fn borders_of_a_rate_are_defined() {
        assert_eq!(exceeds(0, 0, 0.1), 0.0);
        assert_eq!((exceeds(0, 9, 0.0), exceeds(1, 9, 0.0), exceeds(1, 9, -1.0)), (0.0, f64::INFINITY, f64::INFINITY));
        assert_eq!((exceeds(9, 9, 1.0), exceeds(9, 9, 2.0), exceeds(9, 9, f64::NAN)), (0.0, 0.0, 0.0));
        assert_eq!(exceeds(12, 9, 0.5), exceeds(9, 9, 0.5));
        for rate0 in [f64::MIN_POSITIVE, 1e-300, 1e-12, 1.0 - f64::EPSILON / 2.0] {
            for (hits, trials) in [(0, 1), (0, 10), (0, 10_000_000), (1, 10), (10, 10), (10_000_000, 10_000_000)] {
                let log_e = exceeds(hits, trials, rate0);
                assert!(!log_e.is_nan() && (hits > 0 || log_e <= 0.0), "{hits} of {trials} at {rate0}: {log_e}");
            }
        }
    }

    #[test]
    fn borders_of_shares_are_defined() {
        assert_eq!(ratio_mismatch(&[], &[]), 0.0);
        assert_eq!(ratio_mismatch(&[0, 0], &[0.0, 0.0]), ratio_mismatch(&[], &[]));
        assert_eq!(ratio_mismatch(&[9, 1], &[1.0, 0.0]), f64::INFINITY);
        assert_eq!(ratio_mismatch(&[9, 1], &[1.0]), f64::INFINITY, "a share that is missing");
        assert_eq!(ratio_mismatch(&[9], &[0.5, 0.5]), ratio_mismatch(&[9, 0], &[0.5, 0.5]), "a count that is missing");
        for share in [-1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(ratio_mismatch(&[9, 1], &[1.0, share]), f64::INFINITY);
        }
        let alone = ratio_mismatch(&[900, 0], &[1.0, 0.0]);
        assert!(alone.abs() < 1e-12, "one arm takes all, as expected: {alone}");
    }

    #[test]
    fn evidence_is_kept_and_survives_being_written_down() {
        let mut evidence = Evidence::default();
        assert_eq!(evidence.p_value(), 1.0);
        let p_values = [-3.0, 2.0, 2.0, 1.0, f64::NAN, f64::NEG_INFINITY].map(|log_e| evidence.look(log_e));
        assert_eq!(p_values, [0.0, 2.0, 2.0, 2.0, 2.0, 2.0].map(p_value), "what was reached stays");
        assert_eq!(evidence.look(f64::INFINITY), 0.0);
        let text = serde_json::to_string(&evidence).unwrap();
        assert_eq!(serde_json::from_str::<Evidence>(&text).unwrap(), evidence);
        assert_eq!((p_value(-5.0), p_value(0.0), p_value(f64::INFINITY)), (1.0, 1.0, 0.0));
    }

    fn proportion() -> impl Strategy<Value = Moments> {
        (100..5_000_u64).prop_flat_map(|trials| (1..trials).prop_map(move |hits| Moments::of_proportion(hits, trials)))
    }

    proptest! {
        #[test]
        fn swapping_the_arms_mirrors_the_result(
            control in proportion(), treatment in proportion(), tau in 0.001..1.0_f64,
        ) {
            let tau2 = tau * tau;
            prop_assert_eq!(mean_difference(&control, &treatment, tau2), mean_difference(&treatment, &control, tau2));
            let (low, high) = confidence_sequence(&control, &treatment, tau2, 0.05).unwrap();
            prop_assert_eq!(confidence_sequence(&treatment, &control, tau2, 0.05), Some((-high, -low)));
        }

        #[test]
        fn the_sequence_leaves_out_nought_where_the_test_refutes_it(
            control in proportion(), treatment in proportion(), tau in 0.001..1.0_f64, alpha in 0.001..0.5_f64,
        ) {
            let p = p_value(mean_difference(&control, &treatment, tau * tau).unwrap());
            let (low, high) = confidence_sequence(&control, &treatment, tau * tau, alpha).unwrap();
            prop_assume!((p - alpha).abs() > 1e-9);
            prop_assert_eq!(p < alpha, low > 0.0 || high < 0.0);
        }

        #[test]
        fn no_more_than_expected_is_no_evidence(
            trials in 1..100_000_u64, rate0 in 0.000_1..0.999_f64, part in 0.0..=1.0_f64,
        ) {
            let hits = (trials as f64 * rate0 * part) as u64;
            prop_assert!(exceeds(hits, trials, rate0) <= 0.0);
        }

        #[test]
        fn one_more_hit_is_more_evidence(trials in 1..5_000_u64, rate0 in 0.000_1..0.999_f64, part in 0.0..1.0_f64) {
            let hits = (trials as f64 * part) as u64;
            prop_assume!(hits < trials);
            let (fewer, more) = (exceeds(hits, trials, rate0), exceeds(hits + 1, trials, rate0));
            prop_assert!(fewer <= more + 1e-9, "{} {}", fewer, more);
        }

        /// What makes it an e-value: the mean of the next one, under rate0, is the one before.
        #[test]
        fn the_next_hit_or_miss_is_a_fair_game(
            trials in 1..2_000_u64, rate0 in 0.001..0.999_f64, part in 0.0..=1.0_f64,
        ) {
            let hits = (trials as f64 * part) as u64;
            let now = exceeds(hits, trials, rate0);
            let [miss, hit] = [hits, hits + 1].map(|hits| (exceeds(hits, trials + 1, rate0) - now).exp());
            let next = rate0 * hit + (1.0 - rate0) * miss;
            prop_assert!((next - 1.0).abs() < 1e-8, "{} {} {}", next, hit, miss);
        }

        #[test]
        fn the_next_request_of_any_arm_is_a_fair_game(counts in prop::collection::vec(0..100_000_u64, 2..5)) {
            let shares: Vec<f64> = (1..=counts.len()).map(|place| place as f64).collect();
            let (now, all) = (ratio_mismatch(&counts, &shares), shares.iter().sum::<f64>());
            let next: f64 = (0..counts.len()).map(|arm| {
                let mut next = counts.clone();
                next[arm] += 1;
                shares[arm] / all * (ratio_mismatch(&next, &shares) - now).exp()
            }).sum();
            prop_assert!((next - 1.0).abs() < 1e-8, "{}", next);
        }

        #[test]
        fn arms_have_no_order(mut arms in prop::collection::vec((0..10_000_u64, 0.01..1.0_f64), 1..6)) {
            let of = |arms: &[(u64, f64)]| {
                let (counts, shares): (Vec<u64>, Vec<f64>) = arms.iter().copied().unzip();
                ratio_mismatch(&counts, &shares)
            };
            let forward = of(&arms);
            arms.reverse();
            prop_assert!((forward - of(&arms)).abs() <= 1e-9 * forward.abs().max(1.0));
        }

        #[test]
        fn a_look_that_is_repeated_changes_nothing(
            looks in prop::collection::vec((-20.0..20.0_f64, 1..4_usize), 1..20),
        ) {
            let (mut once, mut often) = (Evidence::default(), Evidence::default());
            for (log_e, times) in looks {
                let p = once.look(log_e);
                (0..times).for_each(|_| assert_eq!(often.look(log_e), p));
            }
            prop_assert_eq!(once, often);
        }
    }
}

//! Whether the tests hold what they promise: how often they raise a false alarm where arms are equal and one looks a
//! hundred times, and how soon they find what was planted. Seeds are fixed, so that each outcome is always the same
//! one.

use fastrand::Rng;
use statrs::distribution::{Binomial, DiscreteCDF};

use crate::monitor::Moments;

use super::{
    fixed::{Proportion, two_proportions},
    sequential::{exceeds, mean_difference, p_value, ratio_mismatch},
    special::ln_binomial,
};

const ALPHA: f64 = 0.05;
const RUNS: u64 = 10_000;
const RUNS_WITH_EFFECT: u64 = 1_000;
const LOOKS: u64 = 100;
/// How improbable an outcome must be before a test that keeps its promise may fail here.
const DOUBT: f64 = 1e-6;

/// X ~ Binomial(trials, rate) by the inverse of its distribution: a look's worth of requests in one draw.
struct Hits {
    trials: u64,
    /// P(X ≤ place).
    cumulative: Vec<f64>,
}

/// What one run has drawn so far.
#[derive(Default)]
struct Arms {
    control: Proportion,
    treatment: Proportion,
}

/// The errors of both arms, of 1,000 requests of which the treatment gets a share: how many were the treatment's?
struct Errors {
    share: f64,
    all: Hits,
    /// The treatment's part of so many.
    parts: Vec<Hits>,
}

// === impl Hits ===

impl Hits {
    fn new(trials: u64, rate: f64) -> Self {
        let probabilities = (0..=trials).map(|hits| ln_binomial(hits, trials, rate).exp());
        let cumulative = probabilities.scan(0.0, |sum, probability| {
            *sum += probability;
            Some(*sum)
        });
        Self { trials, cumulative: cumulative.collect() }
    }

    fn draw(&self, random: &mut Rng) -> u64 {
        let uniform = random.f64();
        let last = self.cumulative.len() - 1;
        self.cumulative[..last].partition_point(|cumulative| *cumulative <= uniform) as u64
    }

    fn add_to(&self, seen: &mut Proportion, random: &mut Rng) {
        seen.hits += self.draw(random);
        seen.trials += self.trials;
    }
}

// === impl Errors ===

impl Errors {
    fn new(share: f64, [control, treatment]: [f64; 2]) -> Self {
        let rate = (1.0 - share) * control + share * treatment;
        let parts = (0..=200).map(|errors| Hits::new(errors, share * treatment / rate)).collect();
        Self { share, all: Hits::new(1_000, rate), parts }
    }

    fn add_to(&self, seen: &mut Proportion, random: &mut Rng) {
        let errors = self.all.draw(random);
        self.parts[errors as usize].add_to(seen, random);
    }
}

/// Starts so many runs and gives the looks, from 1, at which those that raise an alarm raise it, sorted. A look draws
/// what came since the one before into the state of its run, and gives a p-value where there is one.
fn alarms<State: Default>(runs: u64, seed: u64, mut look: impl FnMut(&mut State, &mut Rng) -> Option<f64>) -> Vec<u64> {
    let mut random = Rng::with_seed(seed);
    let run = |_| {
        let mut state = State::default();
        (1..=LOOKS).find(|_| look(&mut state, &mut random).is_some_and(|p| p <= ALPHA))
    };
    let mut alarms: Vec<u64> = (0..runs).filter_map(run).collect();
    alarms.sort_unstable();
    alarms
}

/// The most false alarms that `RUNS` at `ALPHA` may give: more of them have a chance below `DOUBT`.
fn false_alarms_max() -> u64 {
    let alarms = Binomial::new(ALPHA, RUNS).expect("a share");
    (0..RUNS).find(|most| alarms.sf(*most) < DOUBT).expect("all of them are not exceeded")
}

#[track_caller]
fn keeps_its_promise(alarms: &[u64]) {
    assert!(alarms.len() as u64 <= false_alarms_max(), "{} false alarms of {RUNS}", alarms.len());
}

/// 99 in a hundred runs find it, half of all by this look.
#[track_caller]
fn finds(alarms: &[u64], median_max: u64) {
    assert!(alarms.len() as u64 >= RUNS_WITH_EFFECT * 99 / 100, "{} of {RUNS_WITH_EFFECT} found it", alarms.len());
    let median = alarms[RUNS_WITH_EFFECT as usize / 2];
    assert!(median <= median_max, "half of the runs needed {median} looks");
}

/// Shares of hits in two arms, of so many requests of each between two looks.
fn shares(runs: u64, seed: u64, steps: [u64; 2], rates: [f64; 2], tau2: f64) -> Vec<u64> {
    let [control, treatment] = [0, 1].map(|arm| Hits::new(steps[arm], rates[arm]));
    alarms(runs, seed, |arms: &mut Arms, random| {
        control.add_to(&mut arms.control, random);
        treatment.add_to(&mut arms.treatment, random);
        let [control, treatment] =
            [arms.control, arms.treatment].map(|arm| Moments::of_proportion(arm.hits, arm.trials));
        mean_difference(&control, &treatment, tau2).map(p_value)
    })
}

/// Means of squared exponentials: skewness 6.6, a long tail as latencies have. Those of the treatment are longer by a
/// factor.
fn skewed(runs: u64, seed: u64, steps: [u64; 2], factor: f64) -> Vec<u64> {
    alarms(runs, seed, |arms: &mut [Moments; 2], random| {
        for (arm, (step, factor)) in arms.iter_mut().zip(steps.into_iter().zip([1.0, factor])) {
            for _ in 0..step {
                let exponential = (1.0 - random.f64()).ln();
                assert!(arm.push(factor * exponential * exponential));
            }
        }
        mean_difference(&arms[0], &arms[1], 1.0).map(p_value)
    })
}

/// Errors of both arms, a tenth of the requests being the treatment's.
fn errors(runs: u64, seed: u64, rates: [f64; 2]) -> Vec<u64> {
    let errors = Errors::new(0.1, rates);
    alarms(runs, seed, |seen: &mut Proportion, random| {
        errors.add_to(seen, random);
        Some(p_value(exceeds(seen.hits, seen.trials, errors.share)))
    })
}

/// Errors of both arms in four stages of 25 looks, with more and more of the requests: the stages' evidence is added
/// up.
fn errors_in_stages(runs: u64, seed: u64, rates: [f64; 2]) -> Vec<u64> {
    let stages = [0.01, 0.05, 0.25, 0.5].map(|share| Errors::new(share, rates));
    alarms(runs, seed, |(looks, seen): &mut (usize, [Proportion; 4]), random| {
        let stage = *looks / 25;
        *looks += 1;
        stages[stage].add_to(&mut seen[stage], random);
        let log_e = stages.iter().zip(seen).map(|(stage, seen)| exceeds(seen.hits, seen.trials, stage.share));
        Some(p_value(log_e.sum()))
    })
}

/// Requests of one arm that are slower than what at most one in a hundred may be, 100 between two looks.
fn slow(runs: u64, seed: u64, rate: f64) -> Vec<u64> {
    let hits = Hits::new(100, rate);
    alarms(runs, seed, |seen: &mut Proportion, random| {
        hits.add_to(seen, random);
        Some(p_value(exceeds(seen.hits, seen.trials, 0.01)))
    })
}

/// Requests that went to the treatment, which should be a tenth of 1,000 between two looks.
fn assigned(runs: u64, seed: u64, share: f64) -> Vec<u64> {
    let hits = Hits::new(1_000, share);
    alarms(runs, seed, |seen: &mut Proportion, random| {
        hits.add_to(seen, random);
        Some(p_value(ratio_mismatch(&[seen.hits, seen.trials - seen.hits], &[0.1, 0.9])))
    })
}

#[test]
fn the_tolerance_is_the_binomial_one() {
    // Five standard deviations of 21.8 above 500 are 609.
    assert!((600..620).contains(&false_alarms_max()), "{}", false_alarms_max());
}

#[test]
fn a_fixed_test_does_not_bear_being_looked_at() {
    let hits = Hits::new(100, 0.05);
    let alarms = alarms(1_000, 1, |arms: &mut Arms, random| {
        hits.add_to(&mut arms.control, random);
        hits.add_to(&mut arms.treatment, random);
        two_proportions(arms.control, arms.treatment, ALPHA).map(|comparison| comparison.p_value)
    });
    assert!(alarms.len() > 300, "these simulations would not notice: {} of 1,000", alarms.len());
}

#[test]
fn equal_shares_raise_few_alarms() {
    keeps_its_promise(&shares(RUNS, 2, [100, 100], [0.05, 0.05], 1e-3));
}

#[test]
fn equal_shares_of_uneven_arms_raise_few_alarms() {
    keeps_its_promise(&shares(RUNS, 3, [900, 100], [0.05, 0.05], 1e-3));
}

#[test]
fn equal_rare_shares_of_uneven_arms_raise_few_alarms() {
    keeps_its_promise(&shares(RUNS, 4, [900, 100], [0.005, 0.005], 1e-4));
}

#[test]
fn equal_skewed_means_raise_few_alarms() {
    keeps_its_promise(&skewed(RUNS, 5, [20, 20], 1.0));
}

#[test]
fn equal_skewed_means_of_uneven_arms_raise_few_alarms() {
    keeps_its_promise(&skewed(RUNS, 6, [18, 6], 1.0));
}

#[test]
fn errors_of_equal_arms_raise_few_alarms() {
    keeps_its_promise(&errors(RUNS, 7, [0.02, 0.02]));
}

#[test]
fn errors_of_equal_arms_in_stages_raise_few_alarms() {
    keeps_its_promise(&errors_in_stages(RUNS, 8, [0.02, 0.02]));
}

#[test]
fn as_many_slow_requests_as_may_be_raise_few_alarms() {
    keeps_its_promise(&slow(RUNS, 9, 0.01));
}

#[test]
fn assignment_as_expected_raises_few_alarms() {
    keeps_its_promise(&assigned(RUNS, 10, 0.1));
}

#[test]
fn a_higher_share_is_found() {
    finds(&shares(RUNS_WITH_EFFECT, 11, [100, 100], [0.05, 0.08], 1e-3), 15);
}

#[test]
fn a_higher_share_of_a_small_arm_is_found() {
    finds(&shares(RUNS_WITH_EFFECT, 12, [900, 100], [0.05, 0.08], 1e-3), 15);
}

#[test]
fn a_longer_mean_is_found() {
    finds(&skewed(RUNS_WITH_EFFECT, 13, [20, 20], 1.5), 35);
}

#[test]
fn twice_the_errors_are_found() {
    finds(&errors(RUNS_WITH_EFFECT, 14, [0.02, 0.04]), 10);
}

#[test]
fn twice_the_slow_requests_are_found() {
    finds(&slow(RUNS_WITH_EFFECT, 15, 0.02), 15);
}

#[test]
fn a_tenth_too_many_assigned_is_found() {
    finds(&assigned(RUNS_WITH_EFFECT, 16, 0.11), 15);
}

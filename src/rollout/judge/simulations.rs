//! How often all rules together roll back what is as good as stable, and how many requests see a bad version before it is gone.
//! Seeds are fixed, so that each outcome is always the same one.

use std::time::Duration;

use fastrand::Rng;
use statrs::distribution::{Binomial, DiscreteCDF};

use super::*;
use crate::{model::Metric, monitor::Outcome};

/// How improbable an outcome must be before rules that keep their promise may fail here.
const DOUBT: f64 = 1e-6;
const RUNS: u64 = 2_000;
const RUNS_WITH_FAULT: usize = 200;

/// What a version does.
#[derive(Clone, Copy)]
struct Behaviour {
    error_rate: f64,
    /// Times that of stable; nought where latencies are left out.
    slowness: f64,
    non_finite: f64,
    degraded: f64,
    accuracy: Option<f64>,
}

/// How a rollout is looked at: so many ticks a step, so many requests a tick.
#[derive(Clone, Copy)]
struct Pace {
    ticks: u64,
    requests: u64,
}

const SOUND: Behaviour = Behaviour { error_rate: 0.01, slowness: 1.0, non_finite: 0.0, degraded: 0.0, accuracy: None };

// === impl Behaviour ===

impl Behaviour {
    fn serve(self, tally: &mut Tally, random: &mut Rng) {
        tally.assigned += 1;
        // Stable answers; its own count stays as it is.
        if self.degraded > 0.0 && random.f64() < self.degraded {
            tally.degraded += 1;
            return;
        }
        if random.f64() < self.error_rate {
            tally.errors += 1;
            return;
        }
        tally.answered += 1;
        tally.non_finite += u64::from(self.non_finite > 0.0 && random.f64() < self.non_finite);
        if self.slowness > 0.0 {
            // Squared exponentials: a long tail.
            let exponential = (1.0 - random.f64()).ln();
            tally.latency.observe(Duration::from_secs_f64(self.slowness * 1e-3 * (1.0 + exponential * exponential)));
        }
        if let Some(accuracy) = self.accuracy {
            let score = if random.f64() < accuracy { 0.8 } else { 0.2 };
            tally.outcomes.credit(score, &Outcome { label: Some(1.0), ..Outcome::default() });
        }
    }
}

/// The verdict that ends it, or `None` where all steps are over. Each step lasts as long as it takes.
fn rollout(plan: &Plan, [control, treatment]: [Behaviour; 2], pace: Pace, random: &mut Rng) -> Option<Verdict> {
    let mut periods = Vec::new();
    for (step, percent) in plan.steps.iter().enumerate().filter(|(_, percent)| **percent < WHOLE) {
        let share = percent / WHOLE;
        periods.push(nothing(step, share));
        for _ in 0..pace.ticks {
            let period = periods.last_mut()?;
            for _ in 0..pace.requests {
                match random.f64() < share {
                    true => treatment.serve(&mut period.treatment, random),
                    false => control.serve(&mut period.control, random),
                }
            }
            let verdict = judge(plan, &at_once(&periods));
            if verdict.decision == Decision::RollBack {
                return Some(verdict);
            }
        }
    }
    None
}

fn nothing(step: usize, share: f64) -> Period {
    let [control, treatment] = [Tally::default(), Tally::default()];
    Period { stage: Stage::Step(step), share: Some(share), control, treatment }
}

/// Long before the stage could be over.
fn at_once(periods: &[Period]) -> Situation<'_> {
    Situation { stage: Stage::Step(0), in_stage: Duration::ZERO, in_all: Duration::ZERO, periods }
}

/// The exposures, sorted, of runs that all end by that rule.
#[track_caller]
fn exposures(rule: &str, plan: &Plan, fault: Behaviour, pace: Pace) -> Vec<u64> {
    let mut random = Rng::with_seed(7);
    let control = Behaviour { slowness: fault.slowness.min(1.0), accuracy: fault.accuracy.and(Some(0.9)), ..SOUND };
    let found = (0..RUNS_WITH_FAULT).filter_map(|_| rollout(plan, [control, fault], pace, &mut random));
    let by_rule = found.filter(|verdict| verdict.rule == rule);
    let mut exposures: Vec<u64> = by_rule.map(|verdict| verdict.exposure).collect();
    exposures.sort_unstable();
    let (least, count) = (RUNS_WITH_FAULT * 9 / 10, exposures.len());
    assert!(count >= least, "{count} of {RUNS_WITH_FAULT} were rolled back by {rule}");
    println!(
        "{rule}: {count} of {RUNS_WITH_FAULT}, median {}, p90 {}",
        exposures[count / 2],
        exposures[count * 9 / 10]
    );
    exposures
}

#[track_caller]
fn is_found(rule: &str, plan: &Plan, fault: Behaviour, pace: Pace, median_max: u64) {
    let exposures = exposures(rule, plan, fault, pace);
    let median = exposures[exposures.len() / 2];
    assert!(median <= median_max, "half of the rollouts exposed {median} requests or more to {rule}");
}

/// Each rule where it is hardest: as many errors, slow and stood-in requests as are just allowed.
#[test]
fn a_version_as_good_as_stable_is_seldom_rolled_back() {
    let equal = Behaviour { error_rate: 0.05, non_finite: 0.02, accuracy: Some(0.9), ..SOUND };
    let treatment = Behaviour { degraded: 0.1, ..equal };
    let plan =
        Plan { max_error_rate: Some(0.05), max_latency_ratio: 1.0, metric: Some(Metric::Accuracy), ..Plan::default() };
    let (mut random, pace) = (Rng::with_seed(1), Pace { ticks: 4, requests: 200 });
    let ends: Vec<&str> = (0..RUNS)
        .filter_map(|_| rollout(&plan, [equal, treatment], pace, &mut random))
        .map(|verdict| verdict.rule)
        .collect();
    let promised = Binomial::new(plan.alpha, RUNS).expect("a share");
    let most = (0..RUNS).find(|most| promised.sf(*most) < DOUBT).expect("all of them are not exceeded");
    assert!(ends.len() as u64 <= most, "{} false alarms of {RUNS}: {ends:?}", ends.len());
}

/// The truth gets harder to predict while the share grows: put together, the version that came late would look worse.
#[test]
fn a_metric_that_falls_for_both_is_not_held_against_the_one_that_came_late() {
    let plan = Plan { metric: Some(Metric::Accuracy), ..Plan::default() };
    let is_worse = |periods: &[Period]| judge(&plan, &at_once(periods)).rule == "metric";
    let (mut random, mut alarms, mut alarms_pooled) = (Rng::with_seed(9), 0, 0);
    for _ in 0..100 {
        let mut periods = Vec::new();
        let mut is_alarmed = false;
        for (step, (share, accuracy)) in [(0.05, 0.95), (0.25, 0.85), (0.5, 0.7)].into_iter().enumerate() {
            let version = Behaviour { slowness: 0.0, accuracy: Some(accuracy), ..SOUND };
            let mut period = nothing(step, share);
            for _ in 0..2_000 {
                let arm = if random.f64() < share { &mut period.treatment } else { &mut period.control };
                version.serve(arm, &mut random);
            }
            periods.push(period);
            is_alarmed |= is_worse(&periods);
        }
        let sums = Sums::of(&periods);
        let pooled = Period { share: None, control: sums.control, treatment: sums.treatment, ..nothing(0, 0.0) };
        alarms += u64::from(is_alarmed);
        alarms_pooled += u64::from(is_worse(&[pooled]));
    }
    assert!(alarms <= 5 && alarms_pooled > 90, "{alarms} and, pooled, {alarms_pooled} of 100");
}

#[test]
fn a_version_that_always_fails_is_seen_by_a_handful() {
    let fault = Behaviour { error_rate: 1.0, slowness: 0.0, ..SOUND };
    is_found("error_rate", &Plan::default(), fault, Pace { ticks: 50, requests: 20 }, 8);
}

#[test]
fn a_version_that_answers_nan_is_seen_by_a_handful() {
    let fault = Behaviour { non_finite: 1.0, slowness: 0.0, ..SOUND };
    is_found("non_finite", &Plan::default(), fault, Pace { ticks: 50, requests: 20 }, 8);
}

#[test]
fn twice_the_errors_are_found() {
    let fault = Behaviour { error_rate: 0.02, slowness: 0.0, ..SOUND };
    is_found("error_rate", &Plan::default(), fault, Pace { ticks: 20, requests: 1_000 }, 3_000);
}

#[test]
fn five_times_the_errors_are_found() {
    let fault = Behaviour { error_rate: 0.05, slowness: 0.0, ..SOUND };
    is_found("error_rate", &Plan::default(), fault, Pace { ticks: 20, requests: 1_000 }, 500);
}

#[test]
fn half_as_long_again_is_found() {
    let fault = Behaviour { slowness: 1.5, ..SOUND };
    is_found("latency", &Plan::default(), fault, Pace { ticks: 20, requests: 500 }, 3_000);
}

#[test]
fn twice_as_long_is_found() {
    let fault = Behaviour { slowness: 2.0, ..SOUND };
    is_found("latency", &Plan::default(), fault, Pace { ticks: 20, requests: 500 }, 1_000);
}

#[test]
fn worse_outcomes_are_found() {
    let fault = Behaviour { accuracy: Some(0.85), slowness: 0.0, ..SOUND };
    let plan = Plan { metric: Some(Metric::Accuracy), ..Plan::default() };
    is_found("metric", &plan, fault, Pace { ticks: 20, requests: 500 }, 3_000);
}

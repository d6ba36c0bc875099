//! What is counted, what is left out, and that the numbers are those of the tests.

use std::time::Duration;

use super::*;
use crate::{
    model::{Metric, Shadow, Sticky},
    monitor::{Moments, Outcome},
    rollout::statistics::{
        fixed::{Method, Proportion, two_proportions, welch},
        sequential::confidence_sequence,
    },
};

const STABLE_VERSION: Version = Version::new(1, 0, 0);
const CANARY_VERSION: Version = Version::new(1, 1, 0);

fn key(revision: u64, variant: &str, version: Version) -> Key {
    Key { revision, variant: variant.to_owned(), version }
}

fn route(weight: f64) -> Route {
    let canary = Variant { name: "canary".into(), version: CANARY_VERSION, weight, slots: Default::default() };
    Route { variants: vec![canary], ..Route::default() }
}

/// So many requests of which so many fail, each answer with a label that was met or not, and a reward.
fn tally(requests: u64, errors: u64, right: u64) -> Tally {
    let mut tally = Tally { assigned: requests, answered: requests - errors, errors, ..Tally::default() };
    for place in 0..tally.answered {
        tally.latency.observe(Duration::from_millis(1 + place % 100));
        let label = place % 2 == 0;
        let outcome = Outcome {
            label: Some(f64::from(label)),
            reward: Some((place % 7) as f64),
            metrics: vec![("clicks".into(), (place % 3) as f64)],
        };
        tally.outcomes.credit(if label == (place < right) { 0.9 } else { 0.1 }, &outcome);
    }
    tally
}

fn difference<'a>(report: &'a Report, metric: &str) -> &'a Difference {
    let found = report.pairs[0].differences.iter().find(|difference| difference.metric == metric);
    found.unwrap_or_else(|| panic!("{metric} is missing: {report:?}"))
}

#[test]
fn a_report_says_what_each_did_and_how_far_they_are_apart() {
    let (control, treatment) = (tally(9_000, 90, 8_000), tally(1_000, 12, 880));
    let counts =
        [(key(7, "stable", STABLE_VERSION), control.clone()), (key(7, "canary", CANARY_VERSION), treatment.clone())];
    let report = report(&counts, &route(10.0), 7, STABLE_VERSION, None);
    let [stable, canary] = &report.variants[..] else { panic!("two: {report:?}") };
    assert_eq!((stable.name.as_str(), stable.weight, stable.assigned), ("stable", 90.0, 9_000));
    assert_eq!((canary.name.as_str(), canary.weight, canary.error_rate), ("canary", 10.0, Some(0.012)));
    assert_eq!((canary.outcomes, canary.auc), (988, treatment.outcomes.scores.auc()));
    assert_eq!(canary.metrics.keys().collect::<Vec<_>>(), ["clicks"]);
    assert!((canary.latency_p95_seconds.unwrap() - 0.095).abs() < 0.002);
    assert!(report.sample_ratio_p.unwrap() > 0.5);

    let errors = difference(&report, "error_rate");
    let [one, other] = [(90, 9_000), (12, 1_000)].map(|(hits, trials)| Proportion { hits, trials });
    let expected = two_proportions(one, other, 0.05).unwrap();
    let fixed = errors.fixed_horizon.unwrap();
    assert_eq!((fixed.p_value, fixed.interval, fixed.method), (expected.p_value, expected.interval, Method::PooledZ));
    let reward = difference(&report, "reward");
    let expected = welch(&control.outcomes.reward, &treatment.outcomes.reward, 0.05).unwrap();
    assert_eq!(reward.fixed_horizon.unwrap().p_value, expected.p_value);
    let valid = reward.always_valid.unwrap();
    assert!(valid.interval.0 < expected.interval.0 && valid.interval.1 > expected.interval.1, "it is wider");
    let auc = difference(&report, "auc");
    assert_eq!((auc.fixed_horizon, auc.always_valid), (None, None));
    let names: Vec<&str> = report.pairs[0].differences.iter().map(|difference| difference.metric.as_str()).collect();
    let expected =
        ["error_rate", "non_finite", "accuracy", "log_loss", "brier", "squared_error", "reward", "clicks", "auc"];
    assert_eq!(names, expected);
    serde_json::to_string(&report).expect("plain data");
}

#[test]
fn a_recommendation_is_the_judges() {
    let advice = |control: Tally, treatment: Tally, plan: Option<&Plan>| {
        let counts = [(key(7, "stable", STABLE_VERSION), control), (key(7, "canary", CANARY_VERSION), treatment)];
        report(&counts, &route(10.0), 7, STABLE_VERSION, plan).pairs.remove(0).recommendation
    };
    let by = |said: &Recommendation| (said.advice, said.rule);
    let good = advice(tally(9_000, 90, 8_000), tally(1_000, 12, 880), None);
    assert_eq!(by(&good), (Advice::Promote, "passed"));
    assert_eq!(
        good.reason,
        "the experiment passed: error rate 1.2 % (12 of 1,000) against 1 % (90 of 9,000) of stable"
    );
    let errs = advice(tally(9_000, 90, 8_000), tally(1_000, 60, 880), None);
    assert_eq!(by(&errs), (Advice::RollBack, "error_rate"));
    let few = advice(tally(180, 0, 0), tally(20, 0, 0), None);
    assert_eq!(by(&few), (Advice::Wait, "min_samples"));
    assert_eq!(few.reason, "the experiment has 20 of 100 requests of the new version so far");
    let uneven = advice(tally(8_000, 80, 8_000), tally(2_000, 20, 2_000), None);
    assert_eq!(by(&uneven), (Advice::Investigate, "sample_ratio"));
    let measured = Plan { metric: Some(Metric::Accuracy), ..Plan::default() };
    let worse = advice(tally(9_000, 90, 8_000), tally(1_000, 10, 500), Some(&measured));
    assert_eq!(by(&worse), (Advice::RollBack, "metric"));
}

#[test]
fn only_what_stable_did_beside_the_variant_counts() {
    let older = Version::new(0, 9, 0);
    let counts = [
        (key(1, "stable", STABLE_VERSION), tally(50_000, 25_000, 0)),
        (key(2, "stable", older), tally(1_000, 500, 0)),
        (key(2, "canary", CANARY_VERSION), tally(100, 0, 0)),
        (key(3, "stable", STABLE_VERSION), tally(1_000, 10, 900)),
        (key(3, "canary", older), tally(1_000, 900, 0)),
        (key(4, "stable", STABLE_VERSION), tally(950, 10, 900)),
        (key(4, "canary", CANARY_VERSION), tally(50, 1, 45)),
        (key(5, "stable", STABLE_VERSION), tally(500, 5, 450)),
        (key(5, "canary", CANARY_VERSION), tally(500, 5, 450)),
        (key(6, "stable", STABLE_VERSION), tally(800, 8, 700)),
        (key(6, "canary", CANARY_VERSION), Tally::default()),
    ];
    let report = report(&counts, &route(50.0), 5, STABLE_VERSION, None);
    let assigned: Vec<u64> = report.variants.iter().map(|variant| variant.assigned).collect();
    assert_eq!(assigned, [1_450, 550]);
    assert!(report.sample_ratio_p.unwrap() > 0.5, "the weights are those of the revision that holds");
}

#[test]
fn revisions_with_other_weights_do_not_confound() {
    // Both err alike, first in 1 % and then in 10 %; put together the canary's 7 % would stand against 1.9 %.
    let counts = [
        (key(1, "stable", STABLE_VERSION), tally(9_500, 95, 0)),
        (key(1, "canary", CANARY_VERSION), tally(500, 5, 0)),
        (key(2, "stable", STABLE_VERSION), tally(1_000, 100, 0)),
        (key(2, "canary", CANARY_VERSION), tally(1_000, 100, 0)),
    ];
    let report = report(&counts, &route(50.0), 2, STABLE_VERSION, None);
    let errors = difference(&report, "error_rate");
    assert!(errors.difference.abs() < 1e-12, "{errors:?}");
    assert!(errors.fixed_horizon.unwrap().p_value > 0.9);
    assert_eq!(report.pairs[0].recommendation.advice, Advice::Promote);
}

#[test]
fn swapping_the_arms_mirrors_the_differences() {
    let (one, other) = (tally(900, 30, 700), tally(1_100, 12, 1_000));
    let with = |stable: &Tally, canary: &Tally| {
        let counts =
            [(key(7, "stable", STABLE_VERSION), stable.clone()), (key(7, "canary", CANARY_VERSION), canary.clone())];
        report(&counts, &route(50.0), 7, STABLE_VERSION, None)
    };
    let (there, back) = (with(&one, &other), with(&other, &one));
    for (there, back) in there.pairs[0].differences.iter().zip(&back.pairs[0].differences) {
        assert_eq!((there.difference, &there.metric), (-back.difference, &back.metric));
        let p = |of: &Difference| of.always_valid.map(|valid| valid.p_value);
        assert_eq!(p(there), p(back));
        let fixed = |of: &Difference| of.fixed_horizon.map_or(1.0, |fixed| fixed.p_value);
        assert!((fixed(there) - fixed(back)).abs() < 1e-10);
    }
}

#[test]
fn who_sticks_is_not_counted_by_requests() {
    let counts =
        [(key(7, "stable", STABLE_VERSION), tally(500, 5, 0)), (key(7, "canary", CANARY_VERSION), tally(500, 5, 0))];
    let sticky = Sticky { attribute: Some("customer".into()), metadata: None, caller: false, salt: String::new() };
    let route = Route { sticky: Some(sticky), ..route(10.0) };
    let report = report(&counts, &route, 7, STABLE_VERSION, None);
    assert_eq!((report.sample_ratio_p, report.pairs[0].recommendation.advice), (None, Advice::Promote));
}

#[test]
fn a_shadow_is_reported_beside_the_answers() {
    let mut own = Tally::default();
    let compared = &mut own.compared;
    (compared.sent, compared.dropped, compared.failed, compared.rows, compared.agreed) = (10, 2, 1, 8, 6);
    compared.largest_difference = 0.5;
    compared.scores = [(0.1, 0.2), (0.3, 0.4), (0.5, 0.6)].into();
    for _ in 0..9 {
        compared.latency_of_stable.observe(Duration::from_millis(10));
        compared.latency.observe(Duration::from_millis(20));
    }
    let shadow = Shadow { version: CANARY_VERSION, sample: 20.0 };
    let route = Route { shadow: vec![shadow], ..Route::default() };
    let counts = [(key(3, "shadow", CANARY_VERSION), own.clone()), (key(4, "shadow", CANARY_VERSION), own)];
    let report = report(&counts, &route, 4, STABLE_VERSION, None);
    let [found] = &report.shadows[..] else { panic!("one: {report:?}") };
    assert_eq!((found.sent, found.dropped, found.failed, found.agreement), (20, 4, 2, Some(0.75)));
    assert_eq!((found.largest_difference, found.rank_correlation), (0.5, Some(1.0)));
    assert!((found.latency_p50_ratio.unwrap() - 2.0).abs() < 0.05);
    assert_eq!((report.pairs.len(), report.sample_ratio_p), (0, None));
}

#[test]
fn nothing_counted_is_a_report_too() {
    let report = report(&[], &route(10.0), 1, STABLE_VERSION, None);
    assert_eq!((report.variants.len(), report.variants[1].error_rate), (2, None));
    assert!(report.pairs[0].differences.is_empty());
    assert_eq!(report.pairs[0].recommendation.advice, Advice::Wait);
    let sequence = confidence_sequence(&Moments::default(), &Moments::default(), 1.0, 0.05);
    assert_eq!(sequence, None);
}

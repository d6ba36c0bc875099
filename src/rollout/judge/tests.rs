//! Situations and what must be said of them.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::{
    model::{Goal, Metric, ShadowStage},
    monitor::Outcome,
};

const STEP: Duration = Duration::from_secs(600);

/// `requests` of which so many fail; the others take 1 to 100 ms, times `slowness`.
fn arm(requests: u64, errors: u64, slowness: f64) -> Tally {
    let mut tally = Tally { assigned: requests, answered: requests - errors, errors, ..Tally::default() };
    for place in 0..tally.answered {
        let millis = 1.0 + (place * 37 % 100) as f64;
        tally.latency.observe(Duration::from_secs_f64(millis * slowness / 1e3));
    }
    tally
}

fn good(requests: u64) -> Tally {
    arm(requests, requests / 100, 1.0)
}

/// One period of the first step, a twentieth of the requests the treatment's.
fn period(control: Tally, treatment: Tally) -> Period {
    Period { stage: Stage::Step(0), share: Some(0.05), control, treatment }
}

/// At the end of the first step.
fn situation(periods: &[Period]) -> Situation<'_> {
    Situation { stage: Stage::Step(0), in_stage: STEP, in_all: STEP, periods }
}

fn verdict(plan: &Plan, control: Tally, treatment: Tally) -> Verdict {
    judge(plan, &situation(&[period(control, treatment)]))
}

/// So many right of so many labels.
fn with_labels(mut tally: Tally, right: u64, labels: u64) -> Tally {
    for place in 0..labels {
        let label = Some(f64::from(place % 2 == 0));
        let score = if (place % 2 == 0) == (place < right) { 0.8 } else { 0.2 };
        tally.outcomes.credit(score, &Outcome { label, ..Outcome::default() });
    }
    tally
}

fn with_rewards(mut tally: Tally, rewards: impl IntoIterator<Item = f64>) -> Tally {
    for reward in rewards {
        tally.outcomes.credit(f64::NAN, &Outcome { reward: Some(reward), ..Outcome::default() });
    }
    tally
}

#[track_caller]
fn says(verdict: &Verdict, decision: Decision, rule: &str) {
    assert_eq!((verdict.decision, verdict.rule), (decision, rule), "{}", verdict.message);
}

fn measured() -> Plan {
    Plan { metric: Some(Metric::Accuracy), ..Plan::default() }
}

#[test]
fn a_good_version_goes_on() {
    let said = verdict(&Plan::default(), good(3_800), good(200));
    says(&said, Decision::Advance, "passed");
    let expected = "the step of 5 % passed: error rate 1 % (2 of 200) against 1 % (38 of 3,800) of stable";
    assert_eq!((said.message.as_str(), said.exposure), (expected, 200));
}

#[test]
fn each_bad_version_goes_back_by_its_own_rule() {
    let nan = |tally: Tally, non_finite| Tally { non_finite, ..tally };
    let degraded = |tally: Tally, degraded| Tally { degraded, ..tally };
    let strict = Plan { max_error_rate: Some(0.02), ..measured() };
    for (rule, control, treatment) in [
        ("error_rate", good(3_800), arm(200, 20, 1.0)),
        ("error_rate", good(3_800), arm(5, 5, 1.0)),
        ("max_error_rate", arm(3_800, 190, 1.0), arm(400, 24, 1.0)),
        ("non_finite", good(3_800), nan(good(200), 4)),
        ("latency", good(3_800), arm(200, 2, 1.6)),
        ("degraded", good(3_800), degraded(good(200), 60)),
        ("metric", with_labels(good(7_600), 6_840, 7_600), with_labels(good(400), 300, 400)),
        ("metric", with_labels(good(3_800), 3_800, 3_800), with_labels(good(200), 0, 200)),
    ] {
        let said = verdict(&strict, control, treatment);
        says(&said, Decision::RollBack, rule);
        assert!(said.message.contains("p = ") && said.message.contains(" < 0.0083"), "{}", said.message);
    }
}

#[test]
fn a_verdict_tells_its_numbers() {
    let said = verdict(&Plan::default(), arm(9_000, 81, 1.0), arm(1_000, 41, 1.0));
    let expected = "error rate 4.1 % (41 of 1,000) against 0.9 % (81 of 9,000) of stable: p = ";
    assert!(said.message.starts_with(expected), "{}", said.message);
    let slow = verdict(&Plan::default(), good(3_800), arm(200, 2, 2.0)).message;
    assert!(slow.starts_with("p95 ") && slow.contains("took longer than 1.2 times that"), "{slow}");
}

#[test]
fn what_stable_does_too_is_no_fault() {
    let failing = verdict(&Plan::default(), arm(3_800, 1_900, 1.0), arm(200, 100, 1.0));
    says(&failing, Decision::Advance, "passed");
    says(&verdict(&Plan::default(), arm(3_800, 0, 9.0), arm(200, 0, 9.0)), Decision::Advance, "passed");
    let nan = |requests, non_finite| Tally { non_finite, ..good(requests) };
    says(&verdict(&Plan::default(), nan(3_800, 190), nan(200, 10)), Decision::Advance, "passed");
    // Twice as many errors may be allowed, and a few slower answers.
    let lenient = Plan { max_error_ratio: 3.0, max_latency_ratio: 2.0, ..Plan::default() };
    says(&verdict(&lenient, arm(38_000, 380, 1.0), arm(2_000, 40, 1.5)), Decision::Advance, "passed");
    says(&verdict(&Plan::default(), arm(38_000, 380, 1.0), arm(2_000, 40, 1.0)), Decision::RollBack, "error_rate");
}

#[test]
fn missing_data_never_pass() {
    let plan = measured();
    let nothing = judge(&plan, &situation(&[]));
    says(&nothing, Decision::Hold, "min_samples");
    assert_eq!(nothing.message, "the step of 5 % has 0 of 100 requests of the new version so far");
    // 99 of 1,980 are a twentieth.
    says(&verdict(&plan, good(1_881), good(99)), Decision::Hold, "min_samples");
    says(&verdict(&plan, good(3_800), good(200)), Decision::Hold, "metric_missing");
    let labelled = |requests, labels| with_labels(good(requests), labels / 10 * 9, labels);
    says(&verdict(&plan, labelled(3_800, 3_800), labelled(200, 90)), Decision::Hold, "metric_missing");
    says(&verdict(&plan, labelled(3_800, 90), labelled(200, 200)), Decision::Hold, "metric_missing");
    says(&verdict(&plan, labelled(3_800, 3_800), labelled(200, 200)), Decision::Advance, "passed");
    // A metric that no test can speak of does not pass, however few samples the plan wants.
    let hasty = Plan { min_samples: 10, ..plan };
    says(&verdict(&hasty, labelled(3_800, 3_800), labelled(200, 50)), Decision::Hold, "metric_missing");
    let own = Plan { metric: Some(Metric::Named("clicks".into())), goal: Some(Goal::Maximize), ..hasty };
    says(&verdict(&own, labelled(3_800, 3_800), labelled(200, 200)), Decision::Hold, "metric_missing");
}

#[test]
fn a_stage_counts_its_own_samples_and_all_evidence() {
    let earlier = period(good(3_800), good(200));
    let later = |control, treatment| Period { stage: Stage::Step(1), share: Some(0.25), control, treatment };
    let judged = |periods: &[Period], step| {
        judge(&Plan::default(), &Situation { stage: Stage::Step(step), ..situation(periods) })
    };
    says(&judged(&[earlier.clone(), later(good(150), good(50))], 1), Decision::Hold, "min_samples");
    says(&judged(&[earlier.clone(), later(good(600), good(200))], 1), Decision::Advance, "passed");
    // A tenth of the errors each: neither suffices alone.
    let weak = [period(good(3_800), arm(200, 8, 1.0)), later(good(600), arm(200, 9, 1.0))];
    assert_ne!(judged(&weak[..1], 0).decision, Decision::RollBack);
    assert_ne!(judged(&weak[1..], 1).decision, Decision::RollBack);
    says(&judged(&weak, 1), Decision::RollBack, "error_rate");
    assert_eq!(judged(&weak, 1).exposure, 400);
}

#[test]
fn the_last_step_has_nobody_to_compare_with() {
    let last = |treatment| Period { stage: Stage::Step(3), share: Some(1.0), control: Tally::default(), treatment };
    let judged =
        |plan: &Plan, treatment| judge(plan, &Situation { stage: Stage::Step(3), ..situation(&[last(treatment)]) });
    says(&judged(&Plan::default(), good(200)), Decision::Advance, "passed");
    says(&judged(&Plan::default(), good(50)), Decision::Hold, "min_samples");
    let limited = Plan { max_error_rate: Some(0.02), ..Plan::default() };
    says(&judged(&limited, arm(200, 20, 1.0)), Decision::RollBack, "max_error_rate");
}

#[test]
fn a_share_that_is_not_the_weights_stops_it() {
    let said = verdict(&Plan::default(), good(3_700), good(300));
    says(&said, Decision::Halt, "sample_ratio");
    let expected = "sample ratio mismatch: it was given 7.5 % (300 of 4,000) of requests, expected are 5 %: p = ";
    assert!(said.message.starts_with(expected), "{}", said.message);
    let errs = verdict(&Plan::default(), good(3_700), arm(300, 100, 1.0));
    says(&errs, Decision::RollBack, "error_rate");
    // It is not trusted that the metric is worse.
    let worse = verdict(&measured(), with_labels(good(3_700), 3_330, 3_700), with_labels(good(300), 30, 300));
    says(&worse, Decision::Halt, "sample_ratio");
    // Of callers who stick nothing is known.
    let sticky = Period { share: None, ..period(good(3_700), good(300)) };
    says(&judge(&Plan::default(), &situation(&[sticky])), Decision::Advance, "passed");
}

#[test]
fn time_is_kept() {
    let periods = [period(good(3_800), good(200))];
    let plan = Plan::default();
    let young = judge(&plan, &Situation { in_stage: STEP / 2, ..situation(&periods) });
    says(&young, Decision::Hold, "hold");
    assert_eq!(young.message, "the step of 5 % lasts 5m of 10m so far");
    let old = judge(&measured(), &Situation { in_all: plan.max_duration, ..situation(&periods) });
    says(&old, Decision::Halt, "max_duration");
    let expected = "inconclusive after 1day, max_duration is 1day: the step of 5 % has 0 of 100 outcomes with accuracy of the \
                    new version so far";
    assert_eq!(old.message, expected);
    let bad = [period(good(3_800), arm(200, 100, 1.0))];
    let bad = judge(&plan, &Situation { in_stage: Duration::ZERO, in_all: plan.max_duration, ..situation(&bad) });
    says(&bad, Decision::RollBack, "error_rate");
}

#[test]
fn a_margin_has_to_be_shown() {
    let plan = |margin| Plan { margin, ..measured() };
    let arms = |right: u64| (with_labels(good(38_000), 34_200, 38_000), with_labels(good(2_000), right, 2_000));
    let judged = |margin, right| {
        let (control, treatment) = arms(right);
        verdict(&plan(margin), control, treatment)
    };
    says(&judged(None, 1_790), Decision::Advance, "passed");
    says(&judged(Some(0.05), 1_790), Decision::Advance, "passed");
    says(&judged(Some(0.01), 1_790), Decision::Hold, "margin");
    // Three points worse is more than nothing, and less than five, though not shown to be.
    says(&judged(None, 1_740), Decision::RollBack, "metric");
    says(&judged(Some(0.05), 1_740), Decision::Hold, "margin");
    says(&judged(Some(0.05), 1_600), Decision::RollBack, "metric");
    says(&judged(Some(0.0), 2_000), Decision::Advance, "passed");
}

#[test]
fn less_is_better_of_what_is_minimised() {
    let own = |goal| Plan { metric: Some(Metric::Named("m".into())), goal: Some(goal), ..Plan::default() };
    let with = |mut tally: Tally, mean: f64| {
        for place in 0..tally.assigned {
            let metrics = vec![("m".to_owned(), mean + (place % 10) as f64)];
            tally.outcomes.credit(0.0, &Outcome { metrics, ..Outcome::default() });
        }
        tally
    };
    let judged = |goal, mean| verdict(&own(goal), with(good(3_800), 0.0), with(good(200), mean)).decision;
    assert_eq!(judged(Goal::Minimize, 2.0), Decision::RollBack);
    assert_eq!(judged(Goal::Minimize, -2.0), Decision::Advance);
    assert_eq!(judged(Goal::Maximize, -2.0), Decision::RollBack);
    assert_eq!(judged(Goal::Maximize, 2.0), Decision::Advance);
    let reward = Plan { metric: Some(Metric::Reward), ..Plan::default() };
    let said = verdict(&reward, with_rewards(good(3_800), vec![1.0; 3_800]), with_rewards(good(200), vec![0.0; 200]));
    says(&said, Decision::RollBack, "metric");
}

#[test]
fn a_shadow_is_judged_by_what_it_says() {
    let stage = ShadowStage { min_samples: 50, ..ShadowStage::default() };
    let plan = Plan { shadow: Some(stage), max_disagreement: Some(0.05), ..Plan::default() };
    let judged = |sent, failed, agreed, non_finite| {
        let mut treatment = Tally::default();
        treatment.compared.sent = sent;
        treatment.compared.failed = failed;
        treatment.compared.rows = sent - failed;
        treatment.compared.agreed = agreed;
        treatment.compared.non_finite = non_finite;
        (failed..sent).for_each(|_| treatment.compared.latency.observe(Duration::from_millis(1)));
        let periods = [Period { stage: Stage::Shadow, share: None, control: good(1_000), treatment }];
        judge(&plan, &Situation { stage: Stage::Shadow, ..situation(&periods) })
    };
    says(&judged(40, 0, 40, 0), Decision::Hold, "min_samples");
    says(&judged(100, 0, 98, 0), Decision::Advance, "passed");
    assert_eq!(judged(100, 0, 98, 0).exposure, 0, "nobody got its answers");
    says(&judged(100, 0, 70, 0), Decision::RollBack, "disagreement");
    says(&judged(100, 50, 50, 0), Decision::RollBack, "shadow_errors");
    says(&judged(100, 0, 98, 100), Decision::RollBack, "shadow_non_finite");
    assert!(judged(100, 0, 70, 0).message.contains("30 % (30 of 100) of rows, allowed is 5 %"));
}

#[test]
fn the_level_is_split_among_the_rules_that_are_set() {
    assert_eq!(level(&Plan::default()), 0.05 / 4.0);
    assert_eq!(level(&measured()), 0.05 / 5.0);
    let all = Plan {
        shadow: Some(ShadowStage::default()),
        max_disagreement: Some(0.1),
        max_error_rate: Some(0.1),
        ..measured()
    };
    assert_eq!(level(&all), 0.05 / 9.0);
}

fn any_arm(requests: std::ops::Range<u64>) -> impl Strategy<Value = Tally> {
    let parts = (requests, 0.0..0.3_f64, 0.0..0.1_f64, 0.0..0.3_f64, 0.5..2.0_f64, 0.0..1.0_f64);
    parts.prop_map(|(requests, errors, non_finite, degraded, slowness, right)| {
        let part = |share: f64, of: u64| (share * of as f64) as u64;
        let tally = arm(requests, part(errors, requests), slowness);
        let labels = tally.answered;
        let tally = with_labels(tally, part(right, labels), labels);
        Tally { non_finite: part(non_finite, labels), degraded: part(degraded, requests), ..tally }
    })
}

fn any_period() -> impl Strategy<Value = Period> {
    (any_arm(0..600), any_arm(0..200), prop::option::of(0.0..=1.0_f64), 0..3_usize)
        .prop_map(|(control, treatment, share, step)| Period { stage: Stage::Step(step), share, control, treatment })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn periods_have_no_order_and_an_idle_one_changes_nothing(
        mut periods in prop::collection::vec(any_period(), 0..4), minutes in 0..20_u64,
    ) {
        let plan = Plan { max_error_rate: Some(0.1), ..measured() };
        let at = |periods: &[Period]| {
            let in_stage = Duration::from_secs(60 * minutes);
            judge(&plan, &Situation { in_stage, in_all: in_stage, ..situation(periods) })
        };
        let said = at(&periods);
        prop_assert_eq!(&at(&periods), &said, "another look");
        periods.push(Period { share: Some(0.05), ..period(Tally::default(), Tally::default()) });
        periods.rotate_right(1);
        prop_assert_eq!(&at(&periods), &said, "an idle revision");
        periods.reverse();
        let turned = at(&periods);
        // The last digit of a sum may depend on its order.
        prop_assert_eq!((turned.decision, turned.rule, turned.exposure), (said.decision, said.rule, said.exposure));
    }

    #[test]
    fn more_errors_are_never_better(control in any_arm(0..600), own in any_arm(1..200), more in 0.0..1.0_f64) {
        let plan = Plan { max_error_rate: Some(0.1), ..Plan::default() };
        let before = judge(&plan, &situation(&[Period { share: None, ..period(control.clone(), own.clone()) }]));
        let more = (more * own.answered as f64) as u64;
        let worse = Tally { answered: own.answered - more, errors: own.errors + more, ..own };
        let worse = Tally { non_finite: worse.non_finite.min(worse.answered), ..worse };
        let after = judge(&plan, &situation(&[Period { share: None, ..period(control, worse) }]));
        let ends = |verdict: &Verdict| verdict.decision == Decision::RollBack;
        prop_assert!(!ends(&before) || before.rule == "non_finite" || ends(&after), "{before:?} {after:?}");
    }

    #[test]
    fn of_two_arms_at_most_one_is_worse(one in any_arm(0..400), other in any_arm(0..400)) {
        // Equal weights, so that either may be the new one; what names no control is left out.
        let plan = Plan { max_degraded: 0.9, alpha: 0.05, ..measured() };
        let judged = |control: &Tally, treatment: &Tally| {
            judge(&plan, &situation(&[Period { share: None, ..period(control.clone(), treatment.clone()) }]))
        };
        let (there, back) = (judged(&one, &other), judged(&other, &one));
        let by = |verdict: &Verdict| (verdict.decision == Decision::RollBack).then_some(verdict.rule);
        prop_assert!(by(&there).is_none() || by(&there) != by(&back), "{there:?} {back:?}");
    }

    #[test]
    fn a_minimised_metric_mirrors_a_maximised_one(rewards in prop::collection::vec((0.0..1.0_f64, 0.0..1.0_f64), 100..200)) {
        let with = |sign: f64, pick: fn(&(f64, f64)) -> f64| {
            let mut tally = good(rewards.len() as u64);
            for pair in &rewards {
                let metrics = vec![("m".to_owned(), sign * pick(pair))];
                tally.outcomes.credit(0.0, &Outcome { metrics, ..Outcome::default() });
            }
            tally
        };
        let judged = |goal, sign| {
            let plan = Plan { metric: Some(Metric::Named("m".into())), goal: Some(goal), ..Plan::default() };
            let (control, treatment) = (with(sign, |pair| pair.0), with(sign, |pair| pair.0 - pair.1));
            let one = Period { share: Some(0.5), ..period(control, treatment) };
            let said = judge(&plan, &situation(&[one]));
            (said.decision, said.rule)
        };
        prop_assert_eq!(judged(Goal::Maximize, 1.0), judged(Goal::Minimize, -1.0));
    }
}

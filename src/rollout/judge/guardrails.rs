//! What ends a rollout at once: one row for each rule. Each is a test that may be looked at all the time.
//!
//! A rule's evidence is the logarithm of an e-value. That of periods adds up: in each the shares were others, so counts of two
//! periods are never put together for a test, only for the sentence that tells people.

use crate::{
    model::Plan,
    monitor::Tally,
    rollout::{statistics::sequential::exceeds, words},
};

use super::{Period, Ruling, Situation};

/// One guardrail.
pub struct Guardrail {
    pub rule: &'static str,
    /// Whether the plan asks for it: fixed before the start, so the level can be split by their number.
    pub is_set: fn(&Plan) -> bool,
    /// The log e-value that it is broken.
    pub log_e: fn(&Plan, &[Period]) -> f64,
    /// What people are told.
    pub words: fn(&Plan, &Sums) -> String,
}

/// All periods together: for sentences, never for a test.
#[derive(Default)]
pub struct Sums {
    pub control: Tally,
    pub treatment: Tally,
}

/// In this order a verdict names them where several are broken.
pub const GUARDRAILS: [Guardrail; 8] = [
    Guardrail {
        rule: "error_rate",
        is_set: |_| true,
        log_e: |plan, periods| beyond_control(periods, plan.max_error_ratio, |tally| tally.errors, ended),
        words: |plan, sums| {
            let (own, control) = (&sums.treatment, &sums.control);
            let allowed = match plan.max_error_ratio {
                1.0 => String::new(),
                ratio => format!(", of which {} times is allowed", words::number(ratio)),
            };
            let (own, control) = (words::share(own.errors, ended(own)), words::share(control.errors, ended(control)));
            format!("error rate {own} against {control} of stable{allowed}")
        },
    },
    Guardrail {
        rule: "max_error_rate",
        is_set: |plan| plan.max_error_rate.is_some(),
        log_e: |plan, periods| {
            sum(periods, |_, own| exceeds(own.errors, ended(own), plan.max_error_rate.unwrap_or(1.0)))
        },
        words: |plan, sums| {
            let own = words::share(sums.treatment.errors, ended(&sums.treatment));
            format!("error rate {own}, allowed is {}", words::percent(plan.max_error_rate.unwrap_or(1.0)))
        },
    },
    Guardrail {
        rule: "non_finite",
        is_set: |_| true,
        log_e: non_finite,
        words: |_, sums| {
            let of = |tally: &Tally| words::share(tally.non_finite, tally.answered);
            format!("NaN or infinity in {} of answers against {} of stable", of(&sums.treatment), of(&sums.control))
        },
    },
    Guardrail { rule: "latency", is_set: |_| true, log_e: slower, words: latencies },
    Guardrail {
        rule: "degraded",
        is_set: |_| true,
        // Stable answers in its place, so nobody is harmed while it is being loaded: this one can wait for a sample.
        log_e: |plan, periods| match assigned(periods) {
            assigned if assigned < plan.min_samples => 0.0,
            _ => sum(periods, |_, own| exceeds(own.degraded, own.assigned, plan.max_degraded)),
        },
        words: |plan, sums| {
            let own = words::share(sums.treatment.degraded, sums.treatment.assigned);
            format!("stable answered {own} in its place, allowed is {}", words::percent(plan.max_degraded))
        },
    },
    Guardrail {
        rule: "shadow_errors",
        is_set: |plan| plan.shadow.is_some(),
        log_e: |plan, periods| {
            sum(periods, |_, own| exceeds(own.compared.failed, own.compared.sent, shadow_errors_max(plan)))
        },
        words: |plan, sums| {
            let compared = &sums.treatment.compared;
            let allowed = words::percent(shadow_errors_max(plan));
            format!("as a shadow it failed {}, allowed is {allowed}", words::share(compared.failed, compared.sent))
        },
    },
    Guardrail {
        rule: "shadow_non_finite",
        is_set: |plan| plan.shadow.is_some(),
        log_e: |plan, periods| {
            sum(periods, |_, own| exceeds(own.compared.non_finite, own.compared.latency.count(), plan.max_non_finite))
        },
        words: |plan, sums| {
            let compared = &sums.treatment.compared;
            let own = words::share(compared.non_finite, compared.latency.count());
            let allowed = words::percent(plan.max_non_finite);
            format!("as a shadow NaN or infinity in {own} of answers where callers got numbers, allowed is {allowed}")
        },
    },
    Guardrail {
        rule: "disagreement",
        is_set: |plan| plan.max_disagreement.is_some(),
        log_e: |plan, periods| {
            let most = plan.max_disagreement.unwrap_or(1.0);
            sum(periods, |_, own| {
                exceeds(own.compared.rows.saturating_sub(own.compared.agreed), own.compared.rows, most)
            })
        },
        words: |plan, sums| {
            let compared = &sums.treatment.compared;
            let differ = words::share(compared.rows.saturating_sub(compared.agreed), compared.rows);
            let allowed = words::percent(plan.max_disagreement.unwrap_or(1.0));
            format!("as a shadow it said something else for {differ} of rows, allowed is {allowed}")
        },
    },
];

/// The quantile that latencies are compared by.
const QUANTILE: f64 = 0.95;
/// With fewer answers of control in a period its quantile is not to be trusted.
const CONTROL_MIN: u64 = 100;
/// Where the plan names no error rate. A shadow is asked at the lowest priority, so that some are refused is no fault of its
/// own, and its errors are not held against those of stable.
const SHADOW_ERRORS_MAX: f64 = 0.1;

/// The first guardrail that is broken at that level.
pub fn broken(plan: &Plan, periods: &[Period], level: f64) -> Option<Ruling> {
    let set = GUARDRAILS.iter().filter(|guardrail| (guardrail.is_set)(plan));
    let mut found = set.map(|guardrail| (guardrail, (guardrail.log_e)(plan, periods)));
    let (guardrail, log_e) = found.find(|(_, log_e)| *log_e > -level.ln())?;
    let says = (guardrail.words)(plan, &Sums::of(periods));
    Some(Ruling::roll_back(guardrail.rule, format!("{says}: {}", super::below(log_e, level))))
}

/// Σ of the periods' evidence that more of the hits fall to the treatment than its share of what could have been hits, where
/// `ratio` times the control's rate is allowed: of all hits the treatment's share is then s r / (s r + 1 − s).
///
/// s is what was observed, so that it asks nothing of how requests were shared out. Given s, and arms that are alike, hits are
/// hypergeometric, which spreads no wider than the binomial that `exceeds` stands on (Hoeffding 1963).
fn beyond_control(periods: &[Period], ratio: f64, hits: fn(&Tally) -> u64, of: fn(&Tally) -> u64) -> f64 {
    sum(periods, |control, own| share_exceeds([hits(control), hits(own)], [of(control), of(own)], ratio))
}

/// The same of one period; control first.
fn share_exceeds(hits: [u64; 2], of: [u64; 2], ratio: f64) -> f64 {
    let (control, own) = (of[0] as f64, ratio * of[1] as f64);
    // Nobody to compare with.
    if of[0] == 0 || of[1] == 0 {
        return 0.0;
    }
    exceeds(hits[1], hits[0].saturating_add(hits[1]), own / (control + own))
}

/// Both must be shown: more than may be, and more than stable's. What stable answers with NaN is no fault of the new version.
fn non_finite(plan: &Plan, periods: &[Period]) -> f64 {
    let beyond_control = beyond_control(periods, 1.0, |tally| tally.non_finite, |tally| tally.answered);
    beyond_control.min(sum(periods, |_, own| exceeds(own.non_finite, own.answered, plan.max_non_finite)))
}

/// Whether more of the answers are slower than control's p95, times what is allowed, than of control's are slower than its p95.
///
/// By counts of both arms and not against the 5 % that p95 promises: it is an estimate, and that of 100 answers may well be the
/// p92. Durations of treatment are rounded up to a bucket's bound, at most 2.1 % in its favour.
fn slower(plan: &Plan, periods: &[Period]) -> f64 {
    sum(periods, |control, own| match control.latency.quantile(QUANTILE) {
        Some(quantile) if control.latency.count() >= CONTROL_MIN => {
            let slow =
                [control.latency.count_above(quantile), own.latency.count_above(plan.max_latency_ratio * quantile)];
            share_exceeds(slow, [control.latency.count(), own.latency.count()], 1.0)
        }
        _ => 0.0,
    })
}

fn latencies(plan: &Plan, sums: &Sums) -> String {
    let (own, control) = (&sums.treatment.latency, &sums.control.latency);
    let quantile = |of: Option<f64>| of.map_or("unknown".to_owned(), words::seconds);
    let (p95, p95_of_control) = (own.quantile(QUANTILE), control.quantile(QUANTILE));
    let bound = plan.max_latency_ratio * p95_of_control.unwrap_or(f64::NAN);
    let slow = words::share(own.count_above(bound), own.count());
    let (p95, ratio) = (quantile(p95), words::number(plan.max_latency_ratio));
    let p95_of_control = quantile(p95_of_control);
    format!(
        "p95 {p95} against {p95_of_control} of stable; {slow} took longer than {ratio} times that, expected are 5 %"
    )
}

fn shadow_errors_max(plan: &Plan) -> f64 {
    plan.max_error_rate.unwrap_or(SHADOW_ERRORS_MAX)
}

fn assigned(periods: &[Period]) -> u64 {
    periods.iter().fold(0, |sum, period| sum.saturating_add(period.treatment.assigned))
}

fn ended(tally: &Tally) -> u64 {
    tally.answered.saturating_add(tally.errors)
}

fn sum(periods: &[Period], log_e: impl Fn(&Tally, &Tally) -> f64) -> f64 {
    periods.iter().map(|period| log_e(&period.control, &period.treatment)).sum()
}

// === impl Sums ===

impl Sums {
    pub fn of(periods: &[Period]) -> Self {
        let mut sums = Self::default();
        for period in periods {
            // What stable did while nobody else was asked is no comparison.
            if period.treatment.assigned > 0 {
                sums.control.merge(&period.control);
            }
            sums.treatment.merge(&period.treatment);
        }
        sums
    }

    /// Those of the stage that it is in.
    pub fn of_stage(situation: &Situation) -> Self {
        let mut sums = Self::default();
        for period in situation.periods.iter().filter(|period| period.stage == situation.stage) {
            sums.control.merge(&period.control);
            sums.treatment.merge(&period.treatment);
        }
        sums
    }
}

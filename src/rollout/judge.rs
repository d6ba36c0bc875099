//! Whether a rollout goes on, waits, stops for a person or is undone. Pure: a plan and what was counted in, a verdict out. The
//! driver asks at every tick and does what it hears; to ask twice changes nothing.
//!
//! Rules in the order of their power: a guardrail that is broken ends the rollout at once; requests that were not shared out as
//! the weights say, or a rollout that took too long, stop it for a person; a success metric that is worse ends it; what is
//! missing waits. Only what is left goes on. Whatever is compared is compared with stable in the same period, never with what
//! stable did before.
//!
//! The level alpha is split evenly among the rules that may roll back (Bonferroni), and each is a test that may be looked at all
//! the time, so a version as good as stable is rolled back in at most that share of rollouts. The tests hold requests for
//! independent: where failures come in bursts that hit one version by chance, there are more false alarms than that.

mod guardrails;
mod quality;
#[cfg(test)]
mod simulations;
#[cfg(test)]
mod tests;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    metric::moments,
    statistics::sequential::{ARM_MIN, p_value, ratio_mismatch},
    words,
};
use crate::{catalog::STABLE, model::Plan, monitor::Tally};
use guardrails::{GUARDRAILS, Sums, broken};
use quality::Quality;

/// Where a rollout is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Nobody gets its answers.
    Shadow,
    /// By its place in the plan.
    Step(usize),
}

/// What was counted while one revision of the route held, by all replicas.
#[derive(Clone, Debug, PartialEq)]
pub struct Period {
    pub stage: Stage,
    /// Of the requests that the two shared, what should have gone to the treatment. `None` where it cannot be told by counts of
    /// requests: the weights are not known, or callers stick to a version, so that it is callers who were shared out.
    pub share: Option<f64>,
    pub control: Tally,
    /// In the shadow stage, that of the shadow.
    pub treatment: Tally,
}

/// All that is known of a rollout at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Situation<'a> {
    pub stage: Stage,
    /// Since the stage began, without pauses.
    pub in_stage: Duration,
    /// Since the rollout began, or was last resumed after it took too long; without pauses.
    pub in_all: Duration,
    /// Of all its stages, in any order.
    pub periods: &'a [Period],
}

/// What follows, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    pub decision: Decision,
    /// A stable word for programs: `error_rate`, `sample_ratio`, `min_samples`, …
    pub rule: &'static str,
    /// In words and numbers.
    pub message: String,
    /// Requests that callers got the treatment's answer, or failure, to.
    pub exposure: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// To the next stage; after the last step it becomes stable.
    Advance,
    /// Not yet.
    Hold,
    /// Stable gets all there is, and the version is rejected.
    RollBack,
    /// Inconclusive: it stays where it is until a person decides.
    Halt,
}

/// A verdict before the exposure is added.
struct Ruling {
    decision: Decision,
    rule: &'static str,
    message: String,
}

/// What is demanded before people are told that requests were not shared out as the weights say; the usual bar.
const MISMATCH_ALPHA: f64 = 0.001;
const WHOLE: f64 = 100.0;

/// The one verdict of that moment. `plan` has been checked.
pub fn judge(plan: &Plan, situation: &Situation) -> Verdict {
    let (periods, level) = (situation.periods, level(plan));
    let ruling = broken(plan, periods, level)
        .or_else(|| mismatch(periods))
        .or_else(|| worse(plan, periods, level))
        .or_else(|| too_long(plan, situation))
        .or_else(|| too_early(plan, situation))
        .or_else(|| too_few(plan, situation))
        .or_else(|| unshown(plan, situation, level))
        .unwrap_or_else(|| passed(plan, situation));
    Verdict { decision: ruling.decision, rule: ruling.rule, message: ruling.message, exposure: exposure(periods) }
}

/// The level of each rule that may roll back.
pub fn level(plan: &Plan) -> f64 {
    let guardrails = GUARDRAILS.iter().filter(|guardrail| (guardrail.is_set)(plan)).count();
    plan.alpha / (guardrails + usize::from(plan.metric.is_some())) as f64
}

/// How many requests the treatment itself answered or failed: what stable did in its place, nobody was exposed to.
pub fn exposure(periods: &[Period]) -> u64 {
    let seen = periods.iter().map(|period| period.treatment.assigned.saturating_sub(period.treatment.degraded));
    seen.fold(0, u64::saturating_add)
}

/// Counts of requests, so it asks nothing where callers stick; and nothing where one arm has all.
fn mismatch(periods: &[Period]) -> Option<Ruling> {
    let known =
        periods.iter().filter_map(|period| Some((period.share.filter(|share| *share > 0.0 && *share < 1.0)?, period)));
    let (mut log_e, mut own, mut all, mut expected) = (0.0, 0_u64, 0_u64, 0.0);
    for (share, Period { control, treatment, .. }) in known {
        log_e += ratio_mismatch(&[control.assigned, treatment.assigned], &[1.0 - share, share]);
        let both = control.assigned.saturating_add(treatment.assigned);
        (own, all) = (own.saturating_add(treatment.assigned), all.saturating_add(both));
        expected += share * both as f64;
    }
    (log_e > -MISMATCH_ALPHA.ln()).then(|| {
        let (own, expected) = (words::share(own, all), words::percent(expected / all as f64));
        let numbers = format!("it was given {own} of requests, expected are {expected}");
        Ruling::halt("sample_ratio", format!("sample ratio mismatch: {numbers}: {}", below(log_e, MISMATCH_ALPHA)))
    })
}

fn worse(plan: &Plan, periods: &[Period], level: f64) -> Option<Ruling> {
    let quality = Quality::of(plan, periods)?;
    let log_e = quality.worse()?;
    (log_e > -level.ln())
        .then(|| Ruling::roll_back("metric", format!("{} is worse: {}", quality.words(), below(log_e, level))))
}

fn too_long(plan: &Plan, situation: &Situation) -> Option<Ruling> {
    (situation.in_all >= plan.max_duration).then(|| {
        let (took, most) = (words::time(situation.in_all), words::time(plan.max_duration));
        let open = too_early(plan, situation)
            .or_else(|| too_few(plan, situation))
            .or_else(|| unshown(plan, situation, level(plan)))
            .unwrap_or_else(|| passed(plan, situation));
        Ruling::halt("max_duration", format!("inconclusive after {took}, max_duration is {most}: {}", open.message))
    })
}

fn too_early(plan: &Plan, situation: &Situation) -> Option<Ruling> {
    let hold = match (situation.stage, &plan.shadow) {
        (Stage::Shadow, Some(shadow)) => shadow.hold,
        _ => plan.hold,
    };
    (situation.in_stage < hold).then(|| {
        let (so_far, hold) = (words::time(situation.in_stage), words::time(hold));
        Ruling::hold("hold", format!("{} lasts {so_far} of {hold} so far", stage(plan, situation.stage)))
    })
}

/// Requests, and then outcomes, of this stage alone. What is missing never passes.
fn too_few(plan: &Plan, situation: &Situation) -> Option<Ruling> {
    let stage_name = stage(plan, situation.stage);
    let sums = Sums::of_stage(situation);
    let few = |rule, what: &str, of: &str, are: u64, wanted: u64| {
        let (count, all) = (words::count(are), words::count(wanted));
        (are < wanted).then(|| Ruling::hold(rule, format!("{stage_name} has {count} of {all} {what} of {of} so far")))
    };
    if let (Stage::Shadow, Some(shadow)) = (situation.stage, &plan.shadow) {
        let (compared, wanted) = (&sums.treatment.compared, shadow.min_samples);
        // Where nobody asks how often it disagrees, there need be nothing that could be compared.
        let rows = plan.max_disagreement.map_or(wanted, |_| compared.rows);
        return few("min_samples", "requests", "the shadow", compared.sent, wanted)
            .or_else(|| few("min_samples", "compared rows", "the shadow", rows, wanted));
    }
    let arms = [("the new version", &sums.treatment), (STABLE, &sums.control)];
    // Where the new version gets all, there is nobody left to wait for.
    let arms = &arms[..if gets_all(plan, situation.stage) { 1 } else { 2 }];
    let requests = arms.iter().find_map(|(name, tally)| {
        let ended = tally.answered.saturating_add(tally.errors);
        few("min_samples", "requests", name, ended, plan.min_samples)
    });
    requests.or_else(|| {
        let metric = plan.metric.as_ref()?;
        arms.iter().find_map(|(name, tally)| {
            let outcomes = moments(metric, tally).map_or(0, |moments| moments.count);
            few("metric_missing", &format!("outcomes with {metric}"), name, outcomes, plan.min_samples)
        })
    })
}

/// A margin asks for more than that nothing is known against the version. Nor does a metric pass that no test could say a word on.
fn unshown(plan: &Plan, situation: &Situation, level: f64) -> Option<Ruling> {
    if plan.metric.is_none() || situation.stage == Stage::Shadow {
        return None;
    }
    let compared = Quality::of(plan, situation.periods);
    let Some(quality) = compared.filter(|quality| quality.least() >= ARM_MIN) else {
        let message = format!("fewer than {ARM_MIN} outcomes of either version can be compared so far");
        return Some(Ruling::hold("metric_missing", message));
    };
    let margin = plan.margin?;
    let least = quality.least_improvement(level);
    (!least.is_some_and(|least| least > -margin)).then(|| {
        let shown = least.map_or("unknown".to_owned(), words::number);
        let numbers = format!("the improvement is at least {shown}, wanted is more than {}", words::number(-margin));
        Ruling::hold("margin", format!("{} is not shown to be as good: {numbers}", quality.words()))
    })
}

fn passed(plan: &Plan, situation: &Situation) -> Ruling {
    let sums = Sums::of_stage(situation);
    let share = |tally: &Tally| words::share(tally.errors, tally.answered.saturating_add(tally.errors));
    let message = match situation.stage {
        Stage::Shadow => {
            let compared = &sums.treatment.compared;
            let agreed = words::share(compared.agreed, compared.rows);
            format!("asked {} times as a shadow, said the same for {agreed} of rows", words::count(compared.sent))
        }
        Stage::Step(_) => {
            let versus = match gets_all(plan, situation.stage) {
                true => String::new(),
                false => format!(" against {} of stable", share(&sums.control)),
            };
            format!("error rate {}{versus}", share(&sums.treatment))
        }
    };
    let quality = Quality::of(plan, situation.periods).filter(|quality| quality.least() > 0);
    let quality = quality.map_or(String::new(), |quality| format!(", {}", quality.words()));
    let message = format!("{} passed: {message}{quality}", stage(plan, situation.stage));
    Ruling { decision: Decision::Advance, rule: "passed", message }
}

fn gets_all(plan: &Plan, stage: Stage) -> bool {
    matches!(stage, Stage::Step(step) if plan.steps.get(step).is_some_and(|percent| *percent >= WHOLE))
}

/// An experiment is judged by a plan without steps.
fn stage(plan: &Plan, stage: Stage) -> String {
    match stage {
        Stage::Shadow => "the shadow stage".to_owned(),
        Stage::Step(step) => match plan.steps.get(step) {
            Some(percent) => format!("the step of {} %", words::number(*percent)),
            None => "the experiment".to_owned(),
        },
    }
}

/// `p = 0.0003 < 0.0083`
fn below(log_e: f64, level: f64) -> String {
    format!("p = {} < {}", words::p_value(p_value(log_e)), words::p_value(level))
}

// === impl Decision ===

impl Decision {
    /// As it stands in route.yaml, in metrics and in what the webhook is told.
    pub fn as_str(self) -> &'static str {
        match self {
            Decision::Advance => "advance",
            Decision::Hold => "hold",
            Decision::RollBack => "roll_back",
            Decision::Halt => "halt",
        }
    }
}

// === impl Ruling ===

impl Ruling {
    fn roll_back(rule: &'static str, message: String) -> Self {
        Self { decision: Decision::RollBack, rule, message }
    }

    fn halt(rule: &'static str, message: String) -> Self {
        Self { decision: Decision::Halt, rule, message }
    }

    fn hold(rule: &'static str, message: String) -> Self {
        Self { decision: Decision::Hold, rule, message }
    }
}

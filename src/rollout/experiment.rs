//! What variants have done beside stable, as a report for people. Pure: counts and a route in, numbers out.
//!
//! A pair is stable and one variant. Of both only revisions count in which the variant had traffic beside the version that is
//! stable now: what stable did before the experiment, or another stable did, is no control. Counts of a variant add up over
//! those revisions, whatever its weight was; differences do not, for the weights were others: each revision is compared with
//! itself (`statistics::strata`).

mod differences;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

use super::{
    judge::{Decision, Period, Situation, Stage, judge},
    statistics::{
        fixed::spearman,
        sequential::{p_value, ratio_mismatch},
    },
};
use crate::{
    catalog::{SHADOW, STABLE},
    model::{Plan, Route, Variant, Version},
    monitor::{Compared, Key, Tally},
};
pub use differences::{AlwaysValid, Difference, FixedHorizon};

/// Of one model.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// Stable first, then in the route's order.
    pub variants: Vec<VariantReport>,
    /// Stable beside each variant, in the route's order.
    pub pairs: Vec<PairReport>,
    /// In the route's order.
    pub shadows: Vec<ShadowReport>,
    /// The chance, whenever one looks, of counts as far from the weights of the present revision as these; below 0.001 the
    /// comparison is not to be trusted. `None` where nobody shares, and where callers stick: then it is callers who are shared
    /// out, and nobody counts them.
    pub sample_ratio_p: Option<f64>,
}

/// What one variant did. A rate or a mean without anything to count is `None`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VariantReport {
    pub name: String,
    pub version: Version,
    /// In percent, at present.
    pub weight: f64,
    pub assigned: u64,
    pub answered: u64,
    pub errors: u64,
    pub error_rate: Option<f64>,
    pub degraded: u64,
    pub non_finite: u64,
    pub latency_p50_seconds: Option<f64>,
    pub latency_p95_seconds: Option<f64>,
    pub latency_p99_seconds: Option<f64>,
    pub outcomes: u64,
    pub accuracy: Option<f64>,
    pub log_loss: Option<f64>,
    pub auc: Option<f64>,
    pub brier: Option<f64>,
    pub squared_error: Option<f64>,
    pub reward: Option<f64>,
    /// Means of the callers' own metrics.
    pub metrics: BTreeMap<String, f64>,
}

/// Stable and one variant.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PairReport {
    pub variant: String,
    pub version: Version,
    /// Variant less stable, of each number that both have.
    pub differences: Vec<Difference>,
    /// The variant's p95 beside stable's.
    pub latency_p95_ratio: Option<f64>,
    pub recommendation: Recommendation,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Advice {
    Promote,
    Wait,
    RollBack,
    /// Something is wrong with the experiment itself.
    Investigate,
}

/// What the judge would say if this were the last look.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Recommendation {
    pub advice: Advice,
    /// Of the judge.
    pub rule: &'static str,
    pub reason: String,
}

/// A shadow's answers beside those that callers got in the same requests, whoever answered them: so of all revisions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ShadowReport {
    pub version: Version,
    /// In percent, at present.
    pub sample: f64,
    pub sent: u64,
    pub dropped: u64,
    pub failed: u64,
    pub rows: u64,
    /// The share of rows that say the same.
    pub agreement: Option<f64>,
    pub largest_difference: f64,
    /// Of the first outputs of the last rows.
    pub rank_correlation: Option<f64>,
    pub latency_p50_ratio: Option<f64>,
    pub latency_p95_ratio: Option<f64>,
}

type Counts = [(Key, Tally)];

/// `counts` are the sums of all replicas; `revision` is that of `route`, and `stable` who is stable in it. `plan` is what
/// recommendations go by; the default one where there is none.
pub fn report(counts: &Counts, route: &Route, revision: u64, stable: Version, plan: Option<&Plan>) -> Report {
    // Of the steps of a plan none is meant: it is one stage, and has a control.
    let plan = Plan { steps: Vec::new(), ..plan.cloned().unwrap_or_default() };
    let own = |variant: &Variant| periods(counts, variant, stable, |_| None);
    let control = concurrent_control(counts, &route.variants, stable);
    let first = VariantReport::of(STABLE, stable, weight_of_stable(route), &control);
    let others = route.variants.iter().map(|variant| {
        let tally = sum(own(variant).iter().map(|period| &period.treatment));
        VariantReport::of(&variant.name, variant.version, variant.weight, &tally)
    });
    let pairs = route.variants.iter().map(|variant| {
        let share = |of: u64| share(route, variant).filter(|_| of == revision);
        PairReport::of(variant, &periods(counts, variant, stable, share), &plan)
    });
    let shadows = route.shadow.iter().map(|shadow| {
        let own = counts.iter().filter(|(key, _)| key.variant == SHADOW && key.version == shadow.version);
        ShadowReport::of(shadow.version, shadow.sample, &sum(own.map(|(_, tally)| tally)).compared)
    });
    Report {
        variants: std::iter::once(first).chain(others).collect(),
        pairs: pairs.collect(),
        shadows: shadows.collect(),
        sample_ratio_p: sample_ratio(counts, route, revision, stable),
    }
}

/// In percent.
fn weight_of_stable(route: &Route) -> f64 {
    (100.0 - route.variants.iter().map(|variant| variant.weight).sum::<f64>()).max(0.0)
}

/// Of the requests that stable and the variant shared, what the variant should have.
fn share(route: &Route, variant: &Variant) -> Option<f64> {
    let both = variant.weight + weight_of_stable(route);
    (route.sticky.is_none() && both > 0.0).then(|| variant.weight / both)
}

/// One for each revision in which both had traffic; `share` says what the variant should have had of it.
fn periods(counts: &Counts, variant: &Variant, stable: Version, share: impl Fn(u64) -> Option<f64>) -> Vec<Period> {
    let own = counts
        .iter()
        .filter(|(key, tally)| key.variant == variant.name && key.version == variant.version && tally.assigned > 0);
    let beside = own.filter_map(|(key, tally)| {
        let control = stable_of(counts, key.revision, stable)?;
        Some(Period {
            stage: Stage::Step(0),
            share: share(key.revision),
            control: control.clone(),
            treatment: tally.clone(),
        })
    });
    beside.collect()
}

fn stable_of(counts: &Counts, revision: u64, stable: Version) -> Option<&Tally> {
    let is_it = |key: &Key| key.revision == revision && key.variant == STABLE && key.version == stable;
    counts.iter().find(|(key, _)| is_it(key)).map(|(_, tally)| tally)
}

/// Stable in all revisions in which any variant of today had traffic beside it, each counted once; in all that there are where
/// nobody shares with it.
fn concurrent_control(counts: &Counts, variants: &[Variant], stable: Version) -> Tally {
    let is_beside = |revision: u64| {
        variants.is_empty()
            || counts.iter().any(|(key, tally)| {
                let is_one = |variant: &Variant| variant.name == key.variant && variant.version == key.version;
                key.revision == revision && tally.assigned > 0 && variants.iter().any(is_one)
            })
    };
    let own =
        counts.iter().filter(|(key, _)| key.variant == STABLE && key.version == stable && is_beside(key.revision));
    sum(own.map(|(_, tally)| tally))
}

fn sample_ratio(counts: &Counts, route: &Route, revision: u64, stable: Version) -> Option<f64> {
    if route.sticky.is_some() || route.variants.is_empty() {
        return None;
    }
    let assigned = |name: &str, version: Version| {
        let is_it = |key: &Key| key.revision == revision && key.variant == name && key.version == version;
        counts.iter().filter(|(key, _)| is_it(key)).fold(0, |sum: u64, (_, tally)| sum.saturating_add(tally.assigned))
    };
    let arms = route.variants.iter().map(|variant| (assigned(&variant.name, variant.version), variant.weight));
    let (seen, expected): (Vec<u64>, Vec<f64>) =
        std::iter::once((assigned(STABLE, stable), weight_of_stable(route))).chain(arms).unzip();
    Some(p_value(ratio_mismatch(&seen, &expected)))
}

pub fn sum<'a>(tallies: impl Iterator<Item = &'a Tally>) -> Tally {
    tallies.fold(Tally::default(), |mut sum, tally| {
        sum.merge(tally);
        sum
    })
}

fn ratio(one: Option<f64>, other: Option<f64>) -> Option<f64> {
    let (one, other) = (one?, other?);
    (other > 0.0).then(|| one / other)
}

// === impl VariantReport ===

impl VariantReport {
    pub fn of(name: &str, version: Version, weight: f64, tally: &Tally) -> Self {
        let (latency, outcomes) = (&tally.latency, &tally.outcomes);
        let mean = |moments: &crate::monitor::Moments| (moments.count > 0).then_some(moments.mean);
        Self {
            name: name.to_owned(),
            version,
            weight,
            assigned: tally.assigned,
            answered: tally.answered,
            errors: tally.errors,
            error_rate: tally.error_rate(),
            degraded: tally.degraded,
            non_finite: tally.non_finite,
            latency_p50_seconds: latency.quantile(0.5),
            latency_p95_seconds: latency.quantile(0.95),
            latency_p99_seconds: latency.quantile(0.99),
            outcomes: outcomes.count,
            accuracy: outcomes.scores.accuracy(),
            log_loss: outcomes.scores.log_loss(),
            auc: outcomes.scores.auc(),
            brier: outcomes.scores.brier(),
            squared_error: mean(&outcomes.squared_error),
            reward: mean(&outcomes.reward),
            metrics: outcomes.named.iter().filter_map(|(name, moments)| Some((name.clone(), mean(moments)?))).collect(),
        }
    }
}

// === impl PairReport ===

impl PairReport {
    fn of(variant: &Variant, periods: &[Period], plan: &Plan) -> Self {
        let p95 = |arm: fn(&Period) -> &Tally| sum(periods.iter().map(arm)).latency.quantile(0.95);
        Self {
            variant: variant.name.clone(),
            version: variant.version,
            differences: differences::all(periods, plan),
            latency_p95_ratio: ratio(p95(|period| &period.treatment), p95(|period| &period.control)),
            recommendation: Recommendation::of(periods, plan),
        }
    }
}

// === impl Recommendation ===

impl Recommendation {
    /// An experiment lasts as long as people let it, so no time is asked for.
    fn of(periods: &[Period], plan: &Plan) -> Self {
        let last = Situation { stage: Stage::Step(0), in_stage: plan.hold, in_all: Duration::ZERO, periods };
        let verdict = judge(plan, &last);
        let advice = match verdict.decision {
            Decision::Advance => Advice::Promote,
            Decision::Hold => Advice::Wait,
            Decision::RollBack => Advice::RollBack,
            Decision::Halt => Advice::Investigate,
        };
        Self { advice, rule: verdict.rule, reason: verdict.message }
    }
}

// === impl ShadowReport ===

impl ShadowReport {
    pub fn of(version: Version, sample: f64, compared: &Compared) -> Self {
        let mut scores = compared.scores.clone();
        let quantiles = |q| ratio(compared.latency.quantile(q), compared.latency_of_stable.quantile(q));
        Self {
            version,
            sample,
            sent: compared.sent,
            dropped: compared.dropped,
            failed: compared.failed,
            rows: compared.rows,
            agreement: (compared.rows > 0).then(|| compared.agreed as f64 / compared.rows as f64),
            largest_difference: compared.largest_difference,
            rank_correlation: spearman(scores.make_contiguous()),
            latency_p50_ratio: quantiles(0.5),
            latency_p95_ratio: quantiles(0.95),
        }
    }
}

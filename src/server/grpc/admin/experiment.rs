//! The report of an experiment, as the protocol has it.

use crate::{
    catalog::ModelEntry,
    error::Result,
    model::Version,
    rollout::{
        Counts,
        experiment::{self, Advice},
    },
    server::proto::sconce::v1::{
        self as proto, AlwaysValid, Difference, FixedHorizon, GetExperimentResponse, PairReport, Recommendation,
        ShadowReport, VariantReport,
    },
};

/// Of the route that holds here, over the counts of all replicas.
pub async fn of(counts: &Counts, entry: &ModelEntry) -> Result<GetExperimentResponse> {
    let sums = counts.sums(&entry.name).await?.counts;
    let stable = entry.stable.unwrap_or(Version::new(0, 0, 0));
    let running = entry.route.running();
    let plan = running.map(|rollout| &rollout.plan);
    // What the same version did in an earlier rollout is not held against it.
    let since = running.map_or(0, |rollout| rollout.began);
    let sums: Vec<_> = sums.into_iter().filter(|(key, _)| key.revision >= since).collect();
    let report = experiment::report(&sums, &entry.route, entry.revision, stable, plan);
    Ok(GetExperimentResponse {
        model: entry.name.to_string(),
        revision: entry.revision,
        variants: report.variants.into_iter().map(variant).collect(),
        pairs: report.pairs.into_iter().map(pair).collect(),
        shadows: report.shadows.into_iter().map(shadow).collect(),
        sample_ratio_p_value: report.sample_ratio_p,
    })
}

pub fn variant(report: experiment::VariantReport) -> VariantReport {
    VariantReport {
        name: report.name,
        version: report.version.to_string(),
        weight: report.weight,
        assigned: report.assigned,
        answered: report.answered,
        errors: report.errors,
        error_rate: report.error_rate,
        degraded: report.degraded,
        non_finite: report.non_finite,
        latency_p50_seconds: report.latency_p50_seconds,
        latency_p95_seconds: report.latency_p95_seconds,
        latency_p99_seconds: report.latency_p99_seconds,
        outcomes: report.outcomes,
        accuracy: report.accuracy,
        log_loss: report.log_loss,
        auc: report.auc,
        brier: report.brier,
        squared_error: report.squared_error,
        reward: report.reward,
        metrics: report.metrics,
    }
}

fn pair(report: experiment::PairReport) -> PairReport {
    let advice = match report.recommendation.advice {
        Advice::Promote => proto::Advice::Promote,
        Advice::Wait => proto::Advice::Wait,
        Advice::RollBack => proto::Advice::RollBack,
        Advice::Investigate => proto::Advice::Investigate,
    };
    PairReport {
        variant: report.variant,
        version: report.version.to_string(),
        differences: report.differences.into_iter().map(difference).collect(),
        latency_p95_ratio: report.latency_p95_ratio,
        recommendation: Some(Recommendation {
            advice: advice.into(),
            rule: report.recommendation.rule.to_owned(),
            reason: report.recommendation.reason,
        }),
    }
}

fn difference(found: experiment::Difference) -> Difference {
    let fixed = found.fixed_horizon.map(|fixed| FixedHorizon {
        lower: fixed.interval.0,
        upper: fixed.interval.1,
        p_value: fixed.p_value,
        method: fixed.method.as_str().to_owned(),
    });
    let always = found.always_valid.map(|always| AlwaysValid {
        lower: always.interval.0,
        upper: always.interval.1,
        p_value: always.p_value,
    });
    Difference {
        metric: found.metric,
        stable: found.stable,
        variant: found.variant,
        difference: found.difference,
        fixed_horizon: fixed,
        always_valid: always,
    }
}

pub fn shadow(report: experiment::ShadowReport) -> ShadowReport {
    ShadowReport {
        version: report.version.to_string(),
        sample: report.sample,
        sent: report.sent,
        dropped: report.dropped,
        failed: report.failed,
        rows: report.rows,
        agreement: report.agreement,
        largest_difference: report.largest_difference,
        rank_correlation: report.rank_correlation,
        latency_p50_ratio: report.latency_p50_ratio,
        latency_p95_ratio: report.latency_p95_ratio,
    }
}

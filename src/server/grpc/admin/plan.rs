//! The plan of a rollout, as the protocol has it.

use std::time::Duration;

use crate::{
    error::{Error, Result},
    model::{Gates, Goal, Plan, ShadowStage},
    server::proto::sconce::v1::{self as proto, RolloutGates, RolloutPlan},
};

const NANOS_PER_SECOND: u32 = 1_000_000_000;

/// What is left out is so by default. INVALID_PLAN names the key.
pub fn read(asked: RolloutPlan) -> Result<Plan> {
    let default = Plan::default();
    let plan = Plan {
        steps: if asked.steps.is_empty() { default.steps } else { asked.steps },
        hold: duration("hold", asked.hold)?.unwrap_or(default.hold),
        min_samples: asked.min_samples.unwrap_or(default.min_samples),
        max_duration: duration("max_duration", asked.max_duration)?.unwrap_or(default.max_duration),
        shadow: asked.shadow.map(shadow).transpose()?,
        max_error_rate: asked.max_error_rate,
        max_error_ratio: asked.max_error_ratio.unwrap_or(default.max_error_ratio),
        max_latency_ratio: asked.max_latency_ratio.unwrap_or(default.max_latency_ratio),
        max_degraded: asked.max_degraded.unwrap_or(default.max_degraded),
        max_non_finite: asked.max_non_finite.unwrap_or(default.max_non_finite),
        max_disagreement: asked.max_disagreement,
        metric: asked.metric.map(|metric| metric.parse()).transpose()?,
        goal: asked.goal.as_deref().map(goal).transpose()?,
        margin: asked.margin,
        effect: asked.effect,
        alpha: asked.alpha.unwrap_or(default.alpha),
        gates: asked.gates.map(gates).transpose()?.unwrap_or_default(),
    };
    plan.check()?;
    Ok(plan)
}

fn shadow(asked: proto::ShadowStage) -> Result<ShadowStage> {
    let default = ShadowStage::default();
    Ok(ShadowStage {
        sample: asked.sample.unwrap_or(default.sample),
        hold: duration("shadow.hold", asked.hold)?.unwrap_or(default.hold),
        min_samples: asked.min_samples.unwrap_or(default.min_samples),
    })
}

fn gates(asked: RolloutGates) -> Result<Gates> {
    let max_load_time = duration("gates.max_load_time", asked.max_load_time)?;
    Ok(Gates { metrics: asked.metrics, max_size: asked.max_size_bytes, max_load_time })
}

/// By hand: the library's own conversion negates seconds that have no opposite.
fn duration(key: &str, asked: Option<prost_types::Duration>) -> Result<Option<Duration>> {
    let Some(prost_types::Duration { seconds, nanos }) = asked else { return Ok(None) };
    let nanos_of = |nanos| u32::try_from(nanos).ok().filter(|nanos| *nanos < NANOS_PER_SECOND);
    match (u64::try_from(seconds), nanos_of(nanos)) {
        (Ok(seconds), Some(nanos)) => Ok(Some(Duration::new(seconds, nanos))),
        _ => Err(wrong(format!("{key} is {seconds} s and {nanos} ns; expected is a duration, not below 0"))),
    }
}

fn goal(asked: &str) -> Result<Goal> {
    let known = [Goal::Maximize, Goal::Minimize].into_iter().find(|goal| goal.to_string() == asked);
    known.ok_or_else(|| wrong(format!("goal is '{asked}'; expected is maximize or minimize")))
}

fn wrong(what: String) -> Error {
    Error::invalid("INVALID_PLAN", what)
}

// === impl RolloutPlan ===

impl From<&Plan> for RolloutPlan {
    fn from(plan: &Plan) -> Self {
        let shadow = plan.shadow.as_ref().map(|shadow| proto::ShadowStage {
            sample: Some(shadow.sample),
            hold: written(shadow.hold),
            min_samples: Some(shadow.min_samples),
        });
        let gates = &plan.gates;
        let gates = (!gates.is_empty()).then(|| RolloutGates {
            metrics: gates.metrics.clone(),
            max_size_bytes: gates.max_size,
            max_load_time: gates.max_load_time.and_then(written),
        });
        Self {
            steps: plan.steps.clone(),
            hold: written(plan.hold),
            min_samples: Some(plan.min_samples),
            max_duration: written(plan.max_duration),
            shadow,
            max_error_rate: plan.max_error_rate,
            max_error_ratio: Some(plan.max_error_ratio),
            max_latency_ratio: Some(plan.max_latency_ratio),
            max_degraded: Some(plan.max_degraded),
            max_non_finite: Some(plan.max_non_finite),
            max_disagreement: plan.max_disagreement,
            metric: plan.metric.as_ref().map(ToString::to_string),
            goal: plan.goal.map(|goal| goal.to_string()),
            margin: plan.margin,
            effect: plan.effect,
            alpha: Some(plan.alpha),
            gates,
        }
    }
}

/// What a plan may last fits.
fn written(duration: Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(duration).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Metric;

    #[test]
    fn a_plan_comes_back_as_it_was() {
        let all = Plan {
            steps: vec![0.5, 12.25, 100.0],
            hold: Duration::from_millis(90_500),
            min_samples: 7,
            max_duration: Duration::from_secs(7_200),
            shadow: Some(ShadowStage { sample: 30.0, hold: Duration::from_secs(60), min_samples: 9 }),
            max_error_rate: Some(0.01),
            max_error_ratio: 1.5,
            max_latency_ratio: 3.0,
            max_degraded: 0.2,
            max_non_finite: 0.001,
            max_disagreement: Some(0.125),
            metric: Some(Metric::Named("pnl".into())),
            goal: Some(Goal::Minimize),
            margin: Some(0.25),
            effect: Some(2.0),
            alpha: 0.01,
            gates: Gates {
                metrics: [("auc".to_owned(), 0.6)].into(),
                max_size: Some(64 << 20),
                max_load_time: Some(Duration::from_secs(30)),
            },
        };
        for plan in [Plan::default(), all] {
            assert_eq!(read(RolloutPlan::from(&plan)).expect("it was right"), plan);
        }
        assert_eq!(read(RolloutPlan::default()).expect("all may be left out"), Plan::default());
        let shadow = Some(proto::ShadowStage::default());
        let shadowed = read(RolloutPlan { shadow, ..Default::default() }).expect("all may be left out");
        assert_eq!(shadowed.shadow, Some(ShadowStage::default()));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let before = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
        let shadow = |hold| Some(proto::ShadowStage { hold, ..Default::default() });
        let metrics = [("auc".to_owned(), f64::NAN)].into();
        let slow = RolloutGates { max_load_time: before(-1), ..Default::default() };
        let plan = RolloutPlan::default;
        for (asked, key) in [
            (RolloutPlan { hold: before(-1), ..plan() }, "hold"),
            (RolloutPlan { max_duration: before(i64::MIN), ..plan() }, "max_duration"),
            (RolloutPlan { hold: before(i64::MAX), ..plan() }, "hold"),
            (RolloutPlan { hold: Some(prost_types::Duration { seconds: 1, nanos: i32::MIN }), ..plan() }, "hold"),
            (RolloutPlan { shadow: shadow(before(-1)), ..plan() }, "shadow.hold"),
            (RolloutPlan { goal: Some("larger".into()), ..plan() }, "goal"),
            (RolloutPlan { metric: Some("auc".into()), ..plan() }, "metric"),
            (RolloutPlan { steps: vec![f64::NAN], ..plan() }, "steps"),
            (RolloutPlan { gates: Some(RolloutGates { metrics, ..Default::default() }), ..plan() }, "gates.metrics"),
            (RolloutPlan { gates: Some(slow), ..plan() }, "gates.max_load_time"),
        ] {
            let error = read(asked).expect_err(key);
            assert_eq!(error.reason(), "INVALID_PLAN");
            assert!(error.message().starts_with(key), "{key}: {}", error.message());
        }
    }
}

//! A rollout with the keys of the protocol, for scripts. Durations are protobuf's: `600s`.

use serde_json::{Value, json};

use crate::cli::{
    experiment::{shadow_to_json, variant_to_json},
    proto::{DescribeRolloutResponse, Rollout, RolloutPlan, RolloutVerdict},
};

pub fn of(described: &DescribeRolloutResponse) -> Value {
    json!({
        "model": described.model,
        "revision": described.revision,
        "rollout": described.rollout.as_ref().map(rollout),
    })
}

fn rollout(rollout: &Rollout) -> Value {
    let stages = rollout.stages.iter().map(|stage| json!({ "revision": stage.revision, "phase": stage.phase }));
    json!({
        "version": rollout.version,
        "control": rollout.control,
        "phase": rollout.phase,
        "running": rollout.running,
        "weight": rollout.weight,
        "began_revision": rollout.began_revision,
        "began_at": rollout.began_at,
        "phase_at": rollout.phase_at,
        "phase_seconds": rollout.phase_seconds,
        "total_seconds": rollout.total_seconds,
        "hold_seconds": rollout.hold_seconds,
        "paused": rollout.paused.as_ref().map(|paused| json!({
            "at": paused.at,
            "reason": paused.reason,
            "rule": paused.rule,
        })),
        "last_verdict": rollout.last_verdict.as_ref().map(verdict),
        "verdict": rollout.verdict.as_ref().map(verdict),
        "plan": rollout.plan.as_ref().map(plan),
        "stages": stages.collect::<Vec<_>>(),
        "variants": rollout.variants.iter().map(variant_to_json).collect::<Vec<_>>(),
        "shadow": rollout.shadow.as_ref().map(shadow_to_json),
        "ended_by": rollout.ended_by,
        "ended_because": rollout.ended_because,
    })
}

fn verdict(verdict: &RolloutVerdict) -> Value {
    json!({
        "decision": verdict.decision,
        "rule": verdict.rule,
        "message": verdict.message,
        "exposure": verdict.exposure,
        "time": verdict.time,
    })
}

fn plan(plan: &RolloutPlan) -> Value {
    json!({
        "steps": plan.steps,
        "hold": duration(plan.hold),
        "min_samples": plan.min_samples,
        "max_duration": duration(plan.max_duration),
        "shadow": plan.shadow.as_ref().map(|shadow| json!({
            "sample": shadow.sample,
            "hold": duration(shadow.hold),
            "min_samples": shadow.min_samples,
        })),
        "max_error_rate": plan.max_error_rate,
        "max_error_ratio": plan.max_error_ratio,
        "max_latency_ratio": plan.max_latency_ratio,
        "max_degraded": plan.max_degraded,
        "max_non_finite": plan.max_non_finite,
        "max_disagreement": plan.max_disagreement,
        "metric": plan.metric,
        "goal": plan.goal,
        "margin": plan.margin,
        "effect": plan.effect,
        "alpha": plan.alpha,
        "gates": plan.gates.as_ref().map(|gates| json!({
            "metrics": gates.metrics,
            "max_size_bytes": gates.max_size_bytes,
            "max_load_time": duration(gates.max_load_time),
        })),
    })
}

fn duration(duration: Option<prost_types::Duration>) -> Option<String> {
    duration.map(|prost_types::Duration { seconds, nanos }| format!("{}s", seconds as f64 + f64::from(nanos) / 1e9))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Plan;

    #[test]
    fn scripts_see_the_protocols_keys() {
        let plan = Plan { hold: std::time::Duration::from_millis(90_500), ..Plan::default() };
        let rollout = Rollout { phase: "step 1".into(), plan: Some(RolloutPlan::from(&plan)), ..Default::default() };
        let json = of(&DescribeRolloutResponse { revision: 3, rollout: Some(rollout), ..Default::default() });
        assert_eq!((&json["rollout"]["phase"], &json["rollout"]["plan"]["hold"]), (&json!("step 1"), &json!("90.5s")));
        assert_eq!((&json["rollout"]["paused"], &json["rollout"]["plan"]["metric"]), (&Value::Null, &Value::Null));
        assert_eq!(of(&DescribeRolloutResponse::default())["rollout"], Value::Null);
    }
}

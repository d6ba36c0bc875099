//! A rollout, as the protocol has it.

use std::time::Duration;

use crate::{
    catalog::ModelEntry,
    error::Result,
    model::{self, Pause, Phase, RouteChange, Ruled, StageBegun},
    rollout::{Counts, Heard, Operator, Progress},
    server::{
        grpc::admin::experiment::{self, variant},
        proto::sconce::v1::{
            DescribeRolloutResponse, Rollout, RolloutPause, RolloutPlan, RolloutStage, RolloutVerdict,
        },
    },
};

/// Of the route that was decided last, over the counts of all replicas.
pub async fn of(counts: &Counts, operator: &Operator, entry: &ModelEntry) -> Result<DescribeRolloutResponse> {
    let route = entry.pending.as_ref().map_or(&entry.route, |pending| &pending.route);
    let rollout = match &route.rollout {
        Some(rollout) => {
            let heard = Heard::of(counts, operator, &entry.name, rollout).await;
            Some(shown(Progress::of(entry, route, rollout, &heard)?))
        }
        None => None,
    };
    Ok(DescribeRolloutResponse { model: entry.name.to_string(), revision: entry.known_revision(), rollout })
}

/// `1.1.0 is being rolled out: step 1, 5 %`, for whoever looks at the model.
pub fn words(rollout: &model::Rollout) -> String {
    let model::Rollout { version, phase, .. } = rollout;
    let share = match phase {
        Phase::Step(_) => format!(", {} %", rollout.weight(*phase)),
        _ => String::new(),
    };
    let paused = if rollout.paused.is_some() { ", paused" } else { "" };
    format!("{version} is being rolled out: {phase}{share}{paused}")
}

fn shown(progress: Progress) -> Rollout {
    let Progress { rollout, weight, verdict, in_phase, in_all, variants, shadow, ended } = progress;
    let RouteChange { caller, reason, .. } = ended.unwrap_or_default();
    let running = rollout.is_running();
    // What became of it is no part of it.
    let total = if running { in_all } else { in_all.saturating_sub(in_phase) };
    Rollout {
        version: rollout.version.to_string(),
        control: rollout.control.to_string(),
        phase: rollout.phase.to_string(),
        running,
        weight,
        began_revision: rollout.began,
        hold_seconds: hold(&rollout).as_secs_f64(),
        plan: Some(RolloutPlan::from(&rollout.plan)),
        began_at: rollout.began_at,
        phase_at: rollout.phase_at,
        phase_seconds: in_phase.as_secs_f64(),
        total_seconds: total.as_secs_f64(),
        paused: rollout.paused.map(|Pause { at, reason, rule }| RolloutPause { at, reason, rule }),
        last_verdict: rollout.verdict.map(|Ruled { decision, rule, message, exposure, time }| RolloutVerdict {
            decision,
            rule,
            message,
            exposure,
            time,
        }),
        verdict: verdict.map(|verdict| RolloutVerdict {
            decision: verdict.decision.as_str().to_owned(),
            rule: verdict.rule.to_owned(),
            message: verdict.message,
            exposure: verdict.exposure,
            time: String::new(),
        }),
        stages: rollout.stages.iter().map(stage).collect(),
        variants: variants.into_iter().map(variant).collect(),
        shadow: shadow.map(experiment::shadow),
        ended_by: caller,
        ended_because: reason,
    }
}

fn stage(begun: &StageBegun) -> RolloutStage {
    RolloutStage { revision: begun.revision, phase: begun.phase.to_string() }
}

fn hold(rollout: &model::Rollout) -> Duration {
    match (rollout.phase, &rollout.plan.shadow) {
        (Phase::Shadow, Some(shadow)) => shadow.hold,
        (Phase::Step(_), _) => rollout.plan.hold,
        _ => Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ModelName, Plan, Route, ShadowStage, Version};

    fn rollout(phase: Phase) -> model::Rollout {
        let shadow = ShadowStage { hold: Duration::from_secs(60), ..ShadowStage::default() };
        model::Rollout {
            phase,
            phase_at: "2026-01-01T00:10:00Z".into(),
            verdict: Some(Ruled {
                decision: "advance".into(),
                rule: "passed".into(),
                message: "well".into(),
                exposure: 5,
                time: "2026-01-01T00:10:00Z".into(),
            }),
            stages: vec![StageBegun { revision: 4, phase: Phase::Step(0), share: Some(0.05) }],
            ..model::Rollout::begun(
                Version::new(2, 0, 0),
                Version::new(1, 0, 0),
                Plan { shadow: Some(shadow), ..Plan::default() },
                3,
                "2026-01-01T00:00:00Z",
            )
        }
    }

    #[test]
    fn each_phase_says_what_holds_in_it() {
        let entry = ModelEntry::new(ModelName::new("m").expect("a name"));
        let of = |phase| {
            let rollout = rollout(phase);
            let route = Route { rollout: Some(rollout.clone()), ..Route::default() };
            let progress = Progress::of(&entry, &route, &rollout, &Heard::default());
            shown(progress.expect("its times are times"))
        };
        let step = of(Phase::Step(1));
        assert_eq!((step.phase.as_str(), step.running, step.weight, step.hold_seconds), ("step 2", true, 25.0, 600.0));
        assert!(step.verdict.is_some(), "there is something to judge");
        assert_eq!(step.last_verdict.map(|verdict| (verdict.exposure, verdict.rule)), Some((5, "passed".into())));
        assert_eq!(step.stages, [RolloutStage { revision: 4, phase: "step 1".into() }]);
        assert_eq!(step.variants.iter().map(|variant| variant.name.as_str()).collect::<Vec<_>>(), ["stable", "canary"]);
        assert_eq!((of(Phase::Shadow).hold_seconds, of(Phase::Gates).hold_seconds), (60.0, 0.0));
        assert!(of(Phase::Gates).verdict.is_some(), "why it waits");
        let over = of(Phase::RolledBack);
        assert!(!over.running && over.verdict.is_none());
        assert_eq!(over.total_seconds, 600.0, "it does not go on when it is over");
    }

    #[test]
    fn one_line_says_where_it_is() {
        assert_eq!(words(&rollout(Phase::Step(0))), "2.0.0 is being rolled out: step 1, 5 %");
        let pause = Pause { at: "2026-01-01T00:11:00Z".into(), reason: String::new(), rule: String::new() };
        let paused = model::Rollout { paused: Some(pause), ..rollout(Phase::Shadow) };
        assert_eq!(words(&paused), "2.0.0 is being rolled out: shadow, paused");
    }
}

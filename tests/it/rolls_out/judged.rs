//! Real models beside each other under load: the good one comes to stable by itself, and each of the others is undone by the rule
//! that it breaks.

use sconce::model::{Phase, Stable, Version};

use super::{
    load::{Load, Manner, Seen},
    trial::{
        NEW, SCORER, STABLE, assert_exposure, assert_undone, changes, deploys, over, plan, record, seconds,
        stable_alone, told,
    },
};
use crate::{
    harness::{PATIENCE, Server, eventually},
    proto::*,
};

/// A new version that is undone, under load.
struct Undone {
    server: Server,
    rollout: Rollout,
    seen: Seen,
}

async fn undone(kind: &str, plan: RolloutPlan, has_outcomes: bool) -> Undone {
    let server = stable_alone(&[]).await;
    let outcomes_to = if has_outcomes { vec![server.inference().await] } else { Vec::new() };
    let load = Load::begin(&server, Manner { triggers: true, outcomes_to }).await;
    deploys(&server, kind, plan).await;
    let rollout = over(&server).await;
    let before = load.so_far();
    // A second's worth of calls later nobody has seen more of it than was on its way.
    eventually("calls go on", PATIENCE, async || (load.so_far().all() > before.all() + 500).then_some(())).await;
    let seen = load.end().await;
    let on_their_way = |seen: &Seen| seen.answered_by(NEW) + seen.failed();
    assert!(on_their_way(&seen) <= on_their_way(&before) + 8, "{before:?}, then {seen:?}");
    Undone { server, rollout, seen }
}

/// Everything that says so, says the same.
async fn assert_undone_by(rule: &str, undone: &Undone, most: u64) {
    let Undone { server, rollout, seen } = undone;
    let verdict = rollout.last_verdict.as_ref().expect("it was judged");
    assert_eq!(
        (&*rollout.phase, &*verdict.decision, &*verdict.rule),
        ("rolled_back", "roll_back", rule),
        "{verdict:?}"
    );
    let exposure = assert_exposure(server, seen, most).await;
    assert_eq!(exposure, verdict.exposure);

    let record = record(server);
    assert_undone(&record, Phase::RolledBack);
    let last = record.history.last().expect("it is written");
    assert_eq!(last.reason, verdict.message);
    assert!(last.change.ends_with(" rolled back") && last.caller.starts_with("sconce@"), "{last:?}");
    let deployed = record.history.iter().find(|entry| entry.change.starts_with("deploy 2.0.0"));
    assert!(deployed.is_some_and(|entry| (&*entry.caller, &*entry.reason) == ("tester", "a trial")), "{record:?}");

    let event = told(server, EventKind::RolledBack).await;
    assert_eq!((&*event.reason, &*event.message), (rule, &*verdict.message));
    assert_eq!((event.revision, &event.caller), (last.revision, &last.caller));
    let series = format!("sconce_rollout_verdicts_total{{model=\"{SCORER}\",decision=\"roll_back\",rule=\"{rule}\"}}");
    assert_eq!(server.metric(&series).await, Some(1.0));
    assert_eq!(server.metric("sconce_rollout_verdicts_total{decision=\"roll_back\"}").await, Some(1.0));
    server.reaches(SCORER, NEW, VersionState::Available).await;
    server.assert_unharmed().await;
}

#[tokio::test]
async fn a_good_version_comes_to_stable_by_itself_and_no_call_fails() {
    let server = stable_alone(&[]).await;
    let outcomes_to = vec![server.inference().await];
    let load = Load::begin(&server, Manner { triggers: true, outcomes_to }).await;
    let plan = RolloutPlan { metric: Some("accuracy".into()), ..plan(&[5.0, 50.0, 100.0]) };
    deploys(&server, "", plan).await;
    let rollout = over(&server).await;
    assert_eq!(rollout.phase, "promoted", "{:?}", rollout.last_verdict);
    let before = load.so_far().answered_by(NEW);
    eventually("it goes on as stable", PATIENCE, async || {
        (load.so_far().answered_by(NEW) > before + 200).then_some(())
    })
    .await;
    let seen = load.end().await;
    assert_eq!((seen.failed(), seen.degraded.len(), seen.non_finite), (0, 0, 0), "{seen:?}");
    assert_eq!(seen.answered.keys().collect::<Vec<_>>(), [STABLE, NEW]);
    let record = record(&server);
    assert_eq!(record.stable, Stable::Pinned(Version::new(2, 0, 0)));
    let moves = ["gates", "step 1", "step 2", "step 3"].map(|phase| format!("rollout 2.0.0: {phase} passed"));
    assert_eq!(changes(&record)[2..], moves);
    assert!(record.history[2..].iter().all(|entry| entry.caller.starts_with("sconce@") && !entry.reason.is_empty()));
    let event = told(&server, EventKind::Promoted).await;
    let last = record.history.last().expect("it is written");
    assert_eq!((&*event.reason, &event.message, &event.caller), ("passed", &last.reason, &last.caller));
    let series = format!("sconce_rollout_verdicts_total{{model=\"{SCORER}\",decision=\"advance\"}}");
    assert_eq!(server.metric(&series).await, Some(4.0));
    server.assert_unharmed().await;
}

#[tokio::test]
async fn one_that_errs_is_undone_by_its_errors() {
    let undone = undone("_errs", plan(&[5.0, 50.0, 100.0]), false).await;
    assert_undone_by("error_rate", &undone, 300).await;
    assert_eq!(undone.seen.failed.keys().collect::<Vec<_>>(), ["BACKEND_FAILED"]);
}

#[tokio::test]
async fn one_that_says_nan_is_undone_by_that() {
    let undone = undone("_nan", plan(&[5.0, 50.0, 100.0]), false).await;
    assert_undone_by("non_finite", &undone, 300).await;
    assert!(undone.seen.failed() == 0 && undone.seen.non_finite > 0, "{:?}", undone.seen);
}

#[tokio::test]
async fn one_that_is_slow_is_undone_by_its_latency() {
    let plan = RolloutPlan { max_latency_ratio: Some(1.2), ..plan(&[10.0, 50.0, 100.0]) };
    let undone = undone("_slow", plan, false).await;
    assert_undone_by("latency", &undone, 500).await;
    assert_eq!(undone.seen.failed(), 0);
}

#[tokio::test]
async fn one_whose_outcomes_are_worse_is_undone_by_them() {
    let metric = Some("accuracy".into());
    let plan = RolloutPlan { metric, min_samples: Some(200), hold: seconds(2), ..plan(&[10.0, 50.0, 100.0]) };
    let undone = undone("_worse", plan, true).await;
    assert_undone_by("metric", &undone, 1000).await;
    assert_eq!(undone.seen.failed(), 0);
    assert!(undone.seen.credited > 0);
}

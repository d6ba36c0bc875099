//! What comes before the first step, and people who step in.

use std::time::Duration;

use sconce::model::{Phase, Stable, Version};

use super::{
    load::{Load, Manner},
    trial::{
        NEW, SCORER, STABLE, assert_undone, changes, counted, deploy, deploys, described, over, plan, reaches, record,
        scorer, seconds, stable_alone, told,
    },
};
use crate::{
    harness::{PATIENCE, Server, assert_refused, call, eventually},
    proto::*,
};

/// Calls that make the minimum sample, all of them right.
async fn under_load(server: &Server) -> Load {
    Load::begin(server, Manner::default()).await
}

/// So long that whatever would move has moved: a few looks of the judge, beyond the hold.
async fn a_while() {
    tokio::time::sleep(Duration::from_secs(4)).await;
}

#[tokio::test]
async fn a_version_that_fails_its_example_never_gets_a_call() {
    let server = stable_alone(&[]).await;
    let load = under_load(&server).await;
    server.store.add(SCORER, NEW, scorer("_worse"));
    let answers = std::fs::read(crate::harness::fixture("onnx/scorer.json")).expect("a file");
    server.store.write(&format!("{SCORER}/{NEW}/example.json"), answers);
    server.admin().await.refresh(call(RefreshRequest {})).await.expect("it looks");
    let rollout = match deploy(&server, plan(&[50.0, 100.0])).await {
        Ok(_) => Some(over(&server).await),
        // It was quicker.
        Err(status) => {
            assert_refused("failed already", Err::<(), _>(status), tonic::Code::FailedPrecondition, "VERSION_FAILED");
            None
        }
    };
    if let Some(rollout) = rollout {
        let verdict = rollout.last_verdict.expect("it was judged");
        assert_eq!((&*rollout.phase, &*verdict.rule, verdict.exposure), ("rolled_back", "load", 0));
        assert!(verdict.message.contains("example"), "{}", verdict.message);
        assert_undone(&record(&server), Phase::RolledBack);
        assert_eq!(told(&server, EventKind::RolledBack).await.reason, "load");
        let again = deploy(&server, plan(&[50.0, 100.0])).await;
        assert_refused("failed", again, tonic::Code::FailedPrecondition, "VERSION_FAILED");
    }
    let seen = load.end().await;
    assert_eq!((seen.answered_by(STABLE), seen.failed()), (seen.all(), 0));
    server.assert_unharmed().await;
}

#[tokio::test]
async fn a_version_that_takes_longer_to_load_than_the_plan_allows_never_gets_a_call() {
    let server = stable_alone(&[]).await;
    let instant = prost_types::Duration { seconds: 0, nanos: 1_000_000 };
    let gates = Some(RolloutGates { max_load_time: Some(instant), ..Default::default() });
    deploys(&server, "", RolloutPlan { gates, ..plan(&[50.0, 100.0]) }).await;
    let verdict = over(&server).await.last_verdict.expect("it was judged");
    assert_eq!((&*verdict.decision, &*verdict.rule, verdict.exposure), ("roll_back", "max_load_time", 0));
    assert!(verdict.message.contains("at most 1ms is allowed"), "{}", verdict.message);
    assert_undone(&record(&server), Phase::RolledBack);
    server.assert_unharmed().await;
}

#[tokio::test]
async fn in_the_shadow_stage_nobody_gets_its_answers_and_then_it_goes_on() {
    let server = stable_alone(&[]).await;
    let load = under_load(&server).await;
    let shadow = Some(ShadowStage { sample: Some(50.0), hold: seconds(2), min_samples: Some(50) });
    deploys(&server, "", RolloutPlan { shadow, max_disagreement: Some(0.05), ..plan(&[50.0, 100.0]) }).await;
    reaches(&server, "shadow").await;
    let in_shadow = eventually("it is asked as a shadow", PATIENCE, async || {
        let answered = format!("sconce_shadow_requests_total{{model=\"{SCORER}\",result=\"answered\"}}");
        let seen = load.so_far();
        let phase = described(&server).await?.phase;
        (server.metric(&answered).await >= Some(20.0) && phase == "shadow").then_some(seen)
    })
    .await;
    assert_eq!(in_shadow.answered_by(NEW), 0);
    let rollout = over(&server).await;
    assert_eq!(rollout.phase, "promoted", "{:?}", rollout.last_verdict);
    let shadow = rollout.shadow.expect("it had such a stage");
    assert!(shadow.sent >= 50 && shadow.sample == 50.0 && shadow.agreement >= Some(0.95), "{shadow:?}");
    assert!(rollout.ended_by.starts_with("sconce@"), "{}", rollout.ended_by);
    let seen = load.end().await;
    assert!(seen.failed() == 0 && seen.degraded.is_empty() && seen.answered_by(NEW) > 0, "{seen:?}");
    let record = record(&server);
    let moves = ["gates", "shadow", "step 1", "step 2"].map(|phase| format!("rollout 2.0.0: {phase} passed"));
    assert_eq!(changes(&record)[2..], moves);
    server.assert_unharmed().await;
}

#[tokio::test]
async fn a_shadow_that_says_something_else_is_undone_before_anybody_sees_it() {
    let server = stable_alone(&[]).await;
    let load = under_load(&server).await;
    let shadow = Some(ShadowStage { sample: Some(50.0), hold: seconds(2), min_samples: Some(50) });
    deploys(&server, "_worse", RolloutPlan { shadow, max_disagreement: Some(0.05), ..plan(&[50.0, 100.0]) }).await;
    let rollout = over(&server).await;
    let verdict = rollout.last_verdict.clone().expect("it was judged");
    assert_eq!((&*rollout.phase, &*verdict.rule, verdict.exposure), ("rolled_back", "disagreement", 0), "{verdict:?}");
    let shadow = rollout.shadow.clone().expect("it had such a stage");
    assert!(shadow.sent >= 50 && shadow.agreement < Some(0.95), "{shadow:?}");
    assert_eq!(rollout.ended_because, verdict.message);
    let seen = load.end().await;
    assert_eq!((seen.answered_by(STABLE), counted(&rollout)), (seen.all(), 0));
    let record = record(&server);
    assert_undone(&record, Phase::RolledBack);
    assert_eq!(record.history.last().map(|entry| &*entry.change), Some("rollout 2.0.0: shadow rolled back"));
    server.assert_unharmed().await;
}

#[tokio::test]
async fn a_shadow_that_says_nan_is_undone_before_anybody_sees_it_and_its_counts_are_read_again() {
    let server = stable_alone(&[]).await;
    let load = Load::begin(&server, Manner { triggers: true, ..Manner::default() }).await;
    let shadow = Some(ShadowStage { sample: Some(50.0), hold: seconds(2), min_samples: Some(50) });
    deploys(&server, "_nan", RolloutPlan { shadow, ..plan(&[50.0, 100.0]) }).await;
    let rollout = over(&server).await;
    let verdict = rollout.last_verdict.clone().expect("it was judged");
    assert_eq!((&*rollout.phase, &*verdict.rule, verdict.exposure), ("rolled_back", "shadow_non_finite", 0));
    let seen = load.end().await;
    assert_eq!((seen.answered_by(STABLE), counted(&rollout)), (seen.all(), 0));
    let folder = server.store.path().join(SCORER).join(".sconce/counts");
    eventually("its counts are written", PATIENCE, async || {
        let file = std::fs::read_dir(&folder).ok()?.flatten().next()?;
        let text = std::fs::read_to_string(file.path()).ok()?;
        (text.contains("\"compared\"") && !text.contains("null")).then_some(())
    })
    .await;
    server.assert_unharmed().await;
}

#[tokio::test]
async fn a_pause_holds_it_where_it_is_and_it_goes_on_from_there() {
    let server = stable_alone(&[]).await;
    let load = under_load(&server).await;
    deploys(&server, "", plan(&[20.0, 100.0])).await;
    reaches(&server, "step 1").await;
    let asked = Some(Asked { reason: "lunch".into(), ..Default::default() });
    let request = PauseRolloutRequest { model: SCORER.into(), asked };
    server.admin().await.pause_rollout(call(request)).await.expect("it runs");
    a_while().await;
    let paused = described(&server).await.expect("there is one");
    assert_eq!((&*paused.phase, paused.paused.map(|pause| pause.reason)), ("step 1", Some("lunch".into())));
    assert_eq!(told(&server, EventKind::RolloutPaused).await.message, "lunch");
    let before = load.so_far().answered_by(NEW);
    eventually("callers get what they got", PATIENCE, async || {
        (load.so_far().answered_by(NEW) > before + 20).then_some(())
    })
    .await;
    let request = ResumeRolloutRequest { model: SCORER.into(), asked: None };
    server.admin().await.resume_rollout(call(request)).await.expect("it runs");
    assert_eq!(over(&server).await.phase, "promoted");
    assert_eq!(load.end().await.failed(), 0);
    let record = record(&server);
    let moves = ["rollout 2.0.0: gates passed", "pause", "resume"];
    assert_eq!(changes(&record)[2..5], moves);
    server.assert_unharmed().await;
}

/// One that a person decides about, whatever its plan still asks for.
async fn at_the_first_step() -> (Server, Load) {
    let server = stable_alone(&[]).await;
    let load = under_load(&server).await;
    deploys(&server, "", RolloutPlan { hold: seconds(120), ..plan(&[20.0, 100.0]) }).await;
    reaches(&server, "step 1").await;
    eventually("callers see it", PATIENCE, async || (load.so_far().answered_by(NEW) > 0).then_some(())).await;
    (server, load)
}

#[tokio::test]
async fn whoever_promotes_it_now_does_not_wait() {
    let (server, load) = at_the_first_step().await;
    let request = PromoteRequest { model: SCORER.into(), version: NEW.into(), asked: None };
    let done = server.admin().await.promote(call(request)).await.expect("it runs").into_inner();
    assert_eq!((&*done.stable, done.settled()), (NEW, Settled::Ready));
    assert_eq!(described(&server).await.expect("the last one").phase, "promoted");
    assert_eq!(record(&server).stable, Stable::Pinned(Version::new(2, 0, 0)));
    let before = load.so_far();
    eventually("all get it", PATIENCE, async || (load.so_far().all() > before.all() + 300).then_some(())).await;
    let seen = load.end().await;
    assert_eq!(seen.failed(), 0);
    assert!(seen.answered_by(STABLE) <= before.answered_by(STABLE) + 8, "{before:?}, then {seen:?}");
    server.assert_unharmed().await;
}

#[tokio::test]
async fn whoever_aborts_it_gives_stable_all_and_rejects_nothing() {
    let (server, load) = at_the_first_step().await;
    let asked = Asked { caller: "alice".into(), reason: "not today".into(), ..Default::default() };
    let request = AbortRolloutRequest { model: SCORER.into(), asked: Some(asked) };
    server.admin().await.abort_rollout(call(request)).await.expect("it runs");
    let ended = described(&server).await.expect("the last one");
    assert_eq!((&*ended.phase, &*ended.ended_by, &*ended.ended_because), ("aborted", "alice", "not today"));
    assert_eq!(told(&server, EventKind::RolloutAborted).await.caller, "alice");
    let before = load.so_far();
    eventually("all get stable", PATIENCE, async || (load.so_far().all() > before.all() + 300).then_some(())).await;
    let seen = load.end().await;
    assert_eq!(seen.failed(), 0);
    assert!(seen.answered_by(NEW) <= before.answered_by(NEW) + 8, "{before:?}, then {seen:?}");
    assert_undone(&record(&server), Phase::Aborted);
    deploy(&server, plan(&[100.0])).await.expect("it may be tried again");
    server.assert_unharmed().await;
}

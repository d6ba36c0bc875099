//! A model with a stable version, and another one that is deployed beside it: what all tests of judged rollouts begin with.

use sconce::model::{Phase, Route as Record, Stable, Version};
use tonic::{Response, Status};

use super::load::Seen;
use crate::{
    harness::{PATIENCE, Server, Store, call, eventually, fixture},
    proto::*,
};

pub const SCORER: &str = "scorer";
pub const STABLE: &str = "1.0.0";
pub const NEW: &str = "2.0.0";

/// A rollout at the desk: as fast as the judge looks, with samples that a few callers make.
pub fn plan(steps: &[f64]) -> RolloutPlan {
    RolloutPlan {
        steps: steps.to_vec(),
        hold: seconds(1),
        min_samples: Some(50),
        max_duration: seconds(600),
        // The machine that tests run on is busy: what is to be told apart by its latency is slower by far.
        max_latency_ratio: Some(20.0),
        ..Default::default()
    }
}

pub fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

/// The right scorer, which is pinned.
pub async fn stable_alone(options: &[&str]) -> Server {
    let store = Store::new().model(SCORER, STABLE, scorer(""));
    let server = Server::start(store, options).await;
    pins(&server).await;
    server
}

pub async fn pins(server: &Server) {
    let request = PromoteRequest { model: SCORER.into(), version: STABLE.into(), asked: None };
    server.admin().await.promote(call(request)).await.expect("it is there");
}

/// One of tests/fixtures/scorers.py: `""`, `_errs`, `_nan`, `_slow` or `_worse`.
pub fn scorer(kind: &str) -> std::path::PathBuf {
    fixture(&format!("onnx/scorer{kind}.onnx"))
}

/// Puts the new version into the store and deploys it, before it is loaded.
pub async fn deploys(server: &Server, kind: &str, plan: RolloutPlan) -> ChangeResponse {
    server.store.add(SCORER, NEW, scorer(kind));
    server.admin().await.refresh(call(RefreshRequest {})).await.expect("it looks");
    deploy(server, plan).await.expect("it may be deployed")
}

pub async fn deploy(server: &Server, plan: RolloutPlan) -> Result<ChangeResponse, Status> {
    let asked = Some(Asked { caller: "tester".into(), reason: "a trial".into(), ..Default::default() });
    let request = DeployRequest { model: SCORER.into(), version: NEW.into(), plan: Some(plan), asked };
    server.admin().await.deploy(call(request)).await.map(Response::into_inner)
}

/// `None` also while the store is away.
pub async fn described(server: &Server) -> Option<Rollout> {
    let request = DescribeRolloutRequest { model: SCORER.into() };
    server.admin().await.describe_rollout(call(request)).await.ok()?.into_inner().rollout
}

/// What a rollout has come to when it is over.
pub async fn over(server: &Server) -> Rollout {
    eventually("the rollout is over", 2 * PATIENCE, async || described(server).await.filter(|now| !now.running)).await
}

/// Waits until it is in that phase.
pub async fn reaches(server: &Server, phase: &str) -> Rollout {
    eventually(&format!("the rollout is at {phase}"), PATIENCE, async || {
        let now = described(server).await?;
        assert!(now.running || now.phase == phase, "it is over: {now:?}");
        (now.phase == phase).then_some(now)
    })
    .await
}

pub fn record(server: &Server) -> Record {
    let text = std::fs::read_to_string(server.store.path().join(SCORER).join("route.yaml")).expect("a file");
    Record::parse(&text).expect("it is right")
}

/// What stands in the store of one that was undone: stable has all, and the version is not taken for the latest again.
pub fn assert_undone(record: &Record, phase: Phase) {
    let rollout = record.rollout.as_ref().expect("it is kept");
    assert_eq!((rollout.phase, record.stable), (phase, Stable::Pinned(Version::new(1, 0, 0))));
    assert!(record.variants.is_empty() && record.shadow.is_empty(), "{record:?}");
    assert_eq!(record.rejected.contains(&Version::new(2, 0, 0)), phase == Phase::RolledBack);
}

/// The event of that kind about the new version, which the server remembers.
pub async fn told(server: &Server, kind: EventKind) -> Event {
    super::told(server, SCORER, NEW, kind).await
}

/// What the judge did, in order, as the history has it.
pub fn changes(record: &Record) -> Vec<&str> {
    record.history.iter().map(|entry| &*entry.change).collect()
}

/// Of the version, as the sums of all replicas are: what was given to it and not answered in its place.
pub fn counted(rollout: &Rollout) -> u64 {
    let canary = rollout.variants.iter().find(|variant| variant.name == "canary").expect("it is shown");
    canary.assigned - canary.degraded
}

/// All that callers saw of the version was counted, and the verdict knew of it but for what came while it was written.
pub async fn assert_exposure(server: &Server, seen: &Seen, most: u64) -> u64 {
    let by_callers = seen.answered_by(NEW) + seen.failed();
    let ended = eventually("all that callers saw is counted", PATIENCE, async || {
        described(server).await.filter(|rollout| counted(rollout) == by_callers)
    })
    .await;
    let exposure = ended.last_verdict.expect("it was judged").exposure;
    eprintln!("exposure {exposure}, seen by callers {by_callers} of {}", seen.all());
    assert!(0 < exposure && exposure <= by_callers, "{exposure} of {by_callers}");
    assert!(by_callers <= most, "{by_callers} callers saw it, at most {most} should");
    exposure
}

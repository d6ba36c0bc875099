//! What is asked of a rollout, and what is refused while one runs.

use sconce::{
    model::{self, Metric, Phase, Route, Slots, Stable, StageBegun, Version},
    rollout::CANARY,
};
use tonic::Code;

use super::{
    abort, asks, deploy, deploy_asked, described, is_at_most_at_the_first_step, pause, promote, record, resume,
    rollback, stable_beside, told, unhurried, written,
};
use crate::{
    harness::{
        PATIENCE, Server,
        adders::{ADDER, adders, answering, predict, version},
        assert_refused, call, eventually, fact,
    },
    proto::*,
};

fn number(number: u64) -> Version {
    Version::new(1, 0, number)
}

fn request_id(id: &str) -> Asked {
    Asked { request_id: id.into(), ..Default::default() }
}

#[tokio::test]
async fn a_deploy_is_written_and_shown_and_stable_goes_on_answering() {
    let server = stable_beside(2).await;
    assert_eq!(described(&server).await, None, "there never was one");
    let plan = RolloutPlan { metric: Some("accuracy".into()), max_error_rate: Some(0.01), ..unhurried() };
    let asked = Asked { caller: "tester".into(), reason: "a try".into(), ..request_id("one") };
    let done = deploy_asked(&server, 2, plan.clone(), asked.clone()).await.expect("it is right");
    assert_eq!((done.stable, done.repeated), (version(1), false));
    let again = deploy_asked(&server, 2, plan, asked).await.expect("it is right");
    assert_eq!((again.revision, again.repeated), (done.revision, true), "asked twice, made once");

    let shown = described(&server).await.expect("it is shown");
    assert_eq!((shown.version.clone(), shown.control.clone(), shown.running), (version(2), version(1), true));
    assert_eq!(shown.began_revision, done.revision);
    let phase: Phase = shown.phase.parse().expect("a phase");
    assert!(is_at_most_at_the_first_step(phase), "{phase}");
    let plan = shown.plan.expect("it is whole");
    assert_eq!((plan.max_error_rate, plan.max_latency_ratio, plan.steps.len()), (Some(0.01), Some(1.2), 4));
    let record = record(&server);
    let written = record.rollout.expect("a rollout");
    assert_eq!((written.began, written.version, written.control), (done.revision, number(2), number(1)));
    assert_eq!((written.plan.metric, written.plan.min_samples), (Some(Metric::Accuracy), 1_000_000));
    assert_eq!(record.stable, Stable::Pinned(number(1)));
    assert!(record.history.iter().any(|entry| entry.reason == "a try" && entry.change.starts_with("deploy 1.0.2")));
    let line = server.describe(ADDER).await.route.expect("it is shown").rollout;
    assert!(line.starts_with("1.0.2 is being rolled out: "), "{line}");
    let experiment = GetExperimentRequest { model: ADDER.into() };
    server.admin().await.get_experiment(call(experiment)).await.expect("a report beside a rollout");
    server.assert_unharmed().await;
}

#[tokio::test]
async fn without_a_plan_it_goes_by_the_models_own() {
    let store = adders(1..=2);
    let own = "canary: { steps: [2.5, 100], hold: 30m, min_samples: 1000000, gates: { max_size: 64MiB } }";
    store.write(&format!("{ADDER}/model.yaml"), own);
    let server = Server::start(store, &[]).await;
    promote(&server, 1).await.expect("it is there");
    let request = DeployRequest { model: ADDER.into(), version: version(2), plan: None, asked: None };
    server.admin().await.deploy(call(request)).await.expect("it is right");
    let plan = written(&server).plan;
    assert_eq!((plan.steps, plan.hold.as_secs(), plan.min_samples), (vec![2.5, 100.0], 1_800, 1_000_000));
    assert_eq!(plan.gates.max_size, Some(64 << 20));
    let shown = described(&server).await.expect("it is shown").plan.expect("it is whole");
    assert_eq!(shown.gates.expect("it has one").max_size_bytes, Some(64 << 20));
}

#[tokio::test]
async fn nobody_else_decides_about_the_traffic_while_it_runs() {
    let server = stable_beside(3).await;
    let refused = deploy(&server, 1, unhurried()).await;
    assert_refused("stable itself", refused, Code::FailedPrecondition, "ALREADY_STABLE");
    deploy(&server, 2, unhurried()).await.expect("it is right");
    let request = DeployRequest { model: ADDER.into(), version: version(3), plan: None, asked: None };
    let another = asks(&server, request, async |mut admin, request| admin.deploy(request).await).await;
    let request = SetRouteRequest { model: ADDER.into(), ..Default::default() };
    let route = asks(&server, request, async |mut admin, request| admin.set_route(request).await).await;
    let request = UnpinRequest { model: ADDER.into(), asked: None };
    let unpin = asks(&server, request, async |mut admin, request| admin.unpin(request).await).await;
    for (what, answer) in [
        ("another deploy", another),
        ("another route", route),
        ("unpin", unpin),
        ("promote another", promote(&server, 3).await),
        ("back to another", rollback(&server, Some(3)).await),
    ] {
        let status = assert_refused(what, answer, Code::FailedPrecondition, "ROLLOUT_RUNNING");
        assert_eq!(fact(&status, "version"), version(2), "{what}");
    }
    let request =
        SetLabelsRequest { model: ADDER.into(), set: [("next".to_owned(), version(2))].into(), ..Default::default() };
    let labels = asks(&server, request, async |mut admin, request| admin.set_labels(request).await).await;
    labels.expect("a label is nobody's share");
    assert!(is_at_most_at_the_first_step(written(&server).phase));
    server.assert_unharmed().await;
}

#[tokio::test]
async fn it_waits_for_a_person_and_goes_on() {
    let server = stable_beside(2).await;
    deploy(&server, 2, unhurried()).await.expect("it is right");
    let asked = Asked { reason: "lunch".into(), ..request_id("pause") };
    let done = pause(&server, asked.clone()).await.expect("it runs");
    let again = pause(&server, asked).await.expect("it was done");
    assert_eq!((again.revision, again.repeated), (done.revision, true));
    let paused = described(&server).await.expect("it is shown").paused.expect("it waits");
    assert_eq!((paused.reason.as_str(), paused.rule.as_str()), ("lunch", ""));
    assert_eq!(written(&server).paused.expect("it waits").reason, "lunch");
    let line = server.describe(ADDER).await.route.expect("it is shown").rollout;
    assert!(line.ends_with(", paused"), "{line}");
    let models =
        server.admin().await.list_models(call(ListModelsRequest::default())).await.expect("models").into_inner();
    assert_eq!(models.models[0].message, line, "among all models it is seen, too");

    resume(&server).await.expect("it runs");
    assert_eq!(written(&server).paused, None);
    assert_eq!(described(&server).await.expect("it is shown").paused, None);
    let idle = resume(&server).await.expect("it goes on as it is");
    assert_eq!(idle.time, "", "nothing had to be written");
    server.assert_unharmed().await;
}

#[tokio::test]
async fn an_aborted_version_may_be_deployed_again_and_a_rolled_back_one_is_rejected() {
    let server = stable_beside(2).await;
    deploy(&server, 2, unhurried()).await.expect("it is right");
    let done = abort(&server, request_id("abort")).await.expect("it runs");
    let again = abort(&server, request_id("abort")).await.expect("it was done");
    assert_eq!((again.revision, again.repeated), (done.revision, true));
    let aborted = record(&server);
    assert_eq!(aborted.rollout.map(|rollout| rollout.phase), Some(Phase::Aborted));
    assert!(aborted.rejected.is_empty() && aborted.variants.is_empty());
    let shown = described(&server).await.expect("the last one is shown");
    assert_eq!((shown.phase.as_str(), shown.running, shown.verdict), ("aborted", false, None));
    assert_eq!(answering(&server, None).await.expect("an answer"), 1);

    deploy(&server, 2, unhurried()).await.expect("once more");
    rollback(&server, None).await.expect("it runs");
    let undone = record(&server);
    assert_eq!(told(&server, ADDER, &version(2), EventKind::RolledBack).await.revision, undone.revision.unwrap_or(0));
    assert_eq!(undone.rollout.map(|rollout| rollout.phase), Some(Phase::RolledBack));
    assert_eq!(undone.stable, Stable::Pinned(number(1)));
    assert!(undone.rejected.contains(&number(2)) && undone.variants.is_empty());
    assert_eq!(answering(&server, None).await.expect("an answer"), 1);
    assert_eq!(server.describe(ADDER).await.route.expect("it is shown").rollout, "");
    server.assert_unharmed().await;
}

#[tokio::test]
async fn promoted_now_it_is_stable() {
    let server = stable_beside(2).await;
    deploy(&server, 2, unhurried()).await.expect("it is right");
    let done = promote(&server, 2).await.expect("it is on its way");
    assert_eq!((done.stable.as_str(), done.settled()), (version(2).as_str(), Settled::Ready));
    assert_eq!(answering(&server, None).await.expect("an answer"), 2);
    let promoted = record(&server);
    assert_eq!((promoted.stable, promoted.previous), (Stable::Pinned(number(2)), Some(number(1))));
    assert_eq!(promoted.rollout.map(|rollout| rollout.phase), Some(Phase::Promoted));
    assert!(promoted.variants.is_empty());
    let refused = abort(&server, Asked::default()).await;
    assert_refused("it is over", refused, Code::FailedPrecondition, "NO_ROLLOUT");
    server.assert_unharmed().await;
}

#[tokio::test]
async fn what_cannot_be_is_refused_by_name() {
    let store = adders(1..=2);
    store.write(&format!("{ADDER}/{}/model.onnx", version(9)), "no model");
    let server = Server::start(store, &[]).await;
    promote(&server, 1).await.expect("it is there");
    let nothing = [
        ("pause", pause(&server, Asked::default()).await),
        ("resume", resume(&server).await),
        ("abort", abort(&server, Asked::default()).await),
    ];
    for (what, answer) in nothing {
        assert_refused(what, answer, Code::FailedPrecondition, "NO_ROLLOUT");
    }
    let gates = RolloutGates { max_size_bytes: Some(0), ..Default::default() };
    for (plan, key) in [
        (RolloutPlan { steps: vec![50.0], ..unhurried() }, "steps"),
        (RolloutPlan { hold: Some(prost_types::Duration { seconds: i64::MIN, nanos: -1 }), ..unhurried() }, "hold"),
        (RolloutPlan { max_error_rate: Some(f64::NAN), ..unhurried() }, "max_error_rate"),
        (RolloutPlan { metric: Some("pnl".into()), ..unhurried() }, "goal"),
        (
            RolloutPlan { shadow: Some(ShadowStage { sample: Some(0.0), ..Default::default() }), ..unhurried() },
            "shadow",
        ),
        (RolloutPlan { gates: Some(gates), ..unhurried() }, "gates"),
    ] {
        let status = assert_refused(key, deploy(&server, 2, plan).await, Code::InvalidArgument, "INVALID_PLAN");
        assert!(status.message().contains(key), "{key}: {}", status.message());
    }
    server.failed(ADDER, &version(9)).await;
    let broken = deploy(&server, 9, unhurried()).await;
    assert_refused("broken", broken, Code::FailedPrecondition, "VERSION_FAILED");
    let absent = deploy(&server, 77, unhurried()).await;
    assert_refused("absent", absent, Code::NotFound, "VERSION_NOT_FOUND");
    let variants = vec![Variant { name: "b".into(), version: version(2), weight: 1.0, ..Default::default() }];
    let traffic = Some(Traffic { variants, ..Default::default() });
    let request = SetRouteRequest { model: ADDER.into(), traffic, asked: None };
    server.admin().await.set_route(call(request)).await.expect("it is right");
    let shared = deploy(&server, 2, unhurried()).await;
    assert_refused("shared", shared, Code::FailedPrecondition, "TRAFFIC_SHARED");
    assert_eq!(record(&server).rollout, None);
    server.assert_unharmed().await;
}

#[tokio::test]
async fn a_step_is_shown_with_what_was_counted_and_recommendations_go_by_its_plan() {
    let server = stable_beside(2).await;
    deploy(&server, 2, RolloutPlan { steps: vec![50.0, 100.0], ..unhurried() }).await.expect("it is right");
    pause(&server, Asked::default()).await.expect("it runs");
    // Paused, it moves no more. If it has not passed its gates yet, it is put at its first step as a person may do.
    let mut route = record(&server);
    let mut rollout = route.rollout.take().expect("a rollout");
    if rollout.phase == Phase::Gates {
        let revision = route.revision.expect("it is counted") + 1;
        rollout.phase = Phase::Step(0);
        rollout.stages.push(StageBegun { revision, phase: Phase::Step(0), share: Some(0.5) });
        let (name, version, weight, slots) = (CANARY.to_owned(), number(2), 50.0, Slots::default());
        route.variants.push(model::Variant { name, version, weight, slots });
        let route = Route { revision: Some(revision), rollout: Some(rollout), ..route };
        std::fs::write(server.store.path().join(ADDER).join("route.yaml"), route.to_yaml()).expect("a file");
    }
    eventually("the step holds", PATIENCE, async || {
        let shown = described(&server).await.expect("it is shown");
        let holds = server.describe(ADDER).await.route.expect("it is shown").rollout.contains("step 1, 50 %");
        (holds && (shown.phase.as_str(), shown.weight) == ("step 1", 50.0)).then_some(())
    })
    .await;
    let client = server.inference().await;
    let mut canary = 0;
    for call in 0..60 {
        canary += u64::from(predict(client.clone(), call).await.expect("an answer") == 2);
    }
    let shown = described(&server).await.expect("it is shown");
    let verdict = shown.verdict.expect("a step is judged");
    assert_eq!((verdict.decision.as_str(), verdict.rule.as_str(), verdict.exposure), ("hold", "hold", canary));
    assert_eq!(shown.hold_seconds, 600.0);
    let assigned: Vec<_> = shown.variants.iter().map(|variant| (variant.name.as_str(), variant.assigned)).collect();
    assert_eq!(assigned, [("stable", 60 - canary), (CANARY, canary)]);
    let request = GetExperimentRequest { model: ADDER.into() };
    let report = server.admin().await.get_experiment(call(request)).await.expect("a report").into_inner();
    let said = report.pairs[0].recommendation.clone().expect("it is there").reason;
    assert!(said.contains("1,000,000"), "by the plan's sample: {said}");
    server.assert_unharmed().await;
}

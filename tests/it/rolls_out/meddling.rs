//! What people do to the files while a rollout goes on, and replicas that are behind.

use std::{fs, time::Duration};

use sconce::model::Phase;

use super::{
    load::{Load, Manner},
    trial::{
        NEW, SCORER, STABLE, assert_undone, deploys, described, over, pins, plan, reaches, record, scorer, seconds,
        stable_alone,
    },
};
use crate::{
    harness::{PATIENCE, Server, Store, call, eventually, process, sconce},
    operators::gated,
    proto::*,
};

/// Rewrites route.yaml as a person would.
fn edits(server: &Server, from: &str, to: &str) {
    let file = server.store.path().join(SCORER).join("route.yaml");
    let text = fs::read_to_string(&file).expect("it is there");
    assert!(text.contains(from), "'{from}' is not in\n{text}");
    fs::write(&file, text.replacen(from, to, 1)).expect("it may be written");
}

async fn stopped(server: &Server) -> RolloutPause {
    eventually("the judge stops it", PATIENCE, async || described(server).await?.paused).await
}

fn held(steps: &[f64]) -> RolloutPlan {
    RolloutPlan { hold: seconds(600), max_duration: seconds(36_000), ..plan(steps) }
}

#[tokio::test]
async fn a_failing_version_goes_back_however_the_route_was_edited() {
    let server = stable_alone(&[]).await;
    let load = Load::begin(&server, Manner::default()).await;
    deploys(&server, "_nan", held(&[20.0, 100.0])).await;
    reaches(&server, "step 1").await;
    edits(&server, "weight: 20", "weight: 40");
    assert_eq!(stopped(&server).await.rule, "route_changed");
    load.triggers();
    let rollout = over(&server).await;
    assert_eq!(rollout.last_verdict.map(|verdict| verdict.rule).as_deref(), Some("non_finite"));
    assert_undone(&record(&server), Phase::RolledBack);
    load.end().await;
    server.assert_unharmed().await;
}

#[tokio::test]
async fn whoever_mended_the_route_may_have_it_go_on() {
    let server = stable_alone(&[]).await;
    let load = Load::begin(&server, Manner::default()).await;
    deploys(&server, "", RolloutPlan { hold: seconds(4), ..plan(&[20.0, 100.0]) }).await;
    reaches(&server, "step 1").await;
    edits(&server, "weight: 20", "weight: 60");
    assert_eq!(stopped(&server).await.rule, "route_changed");
    tokio::time::sleep(Duration::from_secs(3)).await;
    edits(&server, "weight: 60", "weight: 20");
    let request = ResumeRolloutRequest { model: SCORER.into(), asked: None };
    server.admin().await.resume_rollout(call(request)).await.expect("it goes on");
    let rollout = over(&server).await;
    assert_eq!(rollout.phase, "promoted", "{:?}", rollout.last_verdict);
    load.end().await;
    server.assert_unharmed().await;
}

#[tokio::test]
async fn a_version_whose_folder_is_gone_is_not_made_stable() {
    let server = stable_alone(&["--poll-interval=100ms"]).await;
    let load = Load::begin(&server, Manner::default()).await;
    deploys(&server, "", RolloutPlan { hold: seconds(3), ..plan(&[50.0, 100.0]) }).await;
    reaches(&server, "step 1").await;
    let folder = server.store.path().join(SCORER).join(NEW);
    let away = server.store.beside("away");
    fs::rename(&folder, &away).expect("it may be moved");
    assert_eq!(stopped(&server).await.rule, "source_missing");
    let seen = load.end().await;
    assert_eq!(seen.failed(), 0, "{seen:?}");
    server.assert_unharmed().await;
}

/// The child that opens versions on the second replica does not come to work until it may.
#[tokio::test]
async fn a_replica_that_loads_is_waited_for() {
    let store = Store::new().model(SCORER, STABLE, scorer(""));
    let first = Server::start(store, &[]).await;
    pins(&first).await;
    let (gate, child) = gated(&first.store);
    fs::write(&gate, "").expect("a file");
    let mut command = sconce();
    command.arg("serve").arg("--model-store").arg(first.store.path());
    let second = Server::launch(Store::new(), command, &[&child]).await;
    second.ready().await;
    second.settled().await;
    // The next child comes to the gate: the one that waits for more to do would not.
    fs::remove_file(&gate).expect("it is there");
    process::children(second.pid()).into_iter().for_each(|child| process::kill(child, rustix::process::Signal::KILL));
    // Other bytes than the stable one's, which the second replica knows already.
    deploys(&first, "_nan", plan(&[50.0, 100.0])).await;
    eventually("the second replica is waited for", PATIENCE, async || {
        described(&first).await?.verdict.filter(|verdict| verdict.rule == "replicas")
    })
    .await;
    let load = Load::begin(&first, Manner::default()).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(described(&first).await.map(|rollout| rollout.phase).as_deref(), Some("gates"));
    fs::write(&gate, "").expect("a file");
    let rollout = over(&first).await;
    assert_eq!(rollout.phase, "promoted", "{:?}", rollout.last_verdict);
    load.end().await;
    second.assert_unharmed().await;
}

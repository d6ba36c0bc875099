//! `on_new_version: canary`: nobody asks for anything.

use sconce::model::{Phase, Stable, Version};

use super::{
    load::{Load, Manner},
    told,
    trial::{NEW, SCORER, STABLE, changes, described, record, scorer},
};
use crate::{
    commands::text,
    harness::{
        PATIENCE, Server, Store,
        adders::{ADDER, adders, publish_adder, version},
        call, eventually, fixture, root,
    },
    proto::*,
};

const MODEL_YAML: &str = "on_new_version: canary\ncanary: { steps: [20, 100], hold: 1s, min_samples: 30, max_duration: \
                          10m, max_latency_ratio: 20, gates: { max_size: 1MiB } }\n";

/// The rollout of that version, once it is over.
async fn ended(server: &Server, version: &str) -> Rollout {
    eventually(&format!("{version} was rolled out or back"), 2 * PATIENCE, async || {
        described(server).await.filter(|rollout| rollout.version == version && !rollout.running)
    })
    .await
}

async fn comes(server: &Server, version: &str, kind: &str) {
    server.store.add(SCORER, version, scorer(kind));
    server.admin().await.refresh(call(RefreshRequest {})).await.expect("it looks");
}

#[tokio::test]
async fn what_is_published_is_tried_by_itself_and_taken_or_not() {
    let store = Store::new().model(SCORER, STABLE, scorer("")).file("scorer/model.yaml", MODEL_YAML);
    let server = Server::start(store, &[]).await;
    let load = Load::begin(&server, Manner { triggers: true, ..Manner::default() }).await;
    eventually("who answers is pinned", PATIENCE, async || {
        let stable = server.describe(SCORER).await.route.map(|route| route.stable);
        (stable.as_deref() == Some(STABLE)).then_some(())
    })
    .await;
    comes(&server, NEW, "").await;
    assert_eq!(ended(&server, NEW).await.phase, "promoted");
    comes(&server, "3.0.0", "_errs").await;
    let undone = ended(&server, "3.0.0").await;
    let verdict = undone.last_verdict.expect("it was judged");
    assert_eq!((&*undone.phase, &*verdict.rule), ("rolled_back", "error_rate"), "{}", verdict.message);
    let record = record(&server);
    assert_eq!(record.stable, Stable::Pinned(Version::new(2, 0, 0)));
    assert_eq!(record.rollout.as_ref().map(|rollout| rollout.phase), Some(Phase::RolledBack));
    let made = changes(&record);
    assert_eq!(made[0], "promote 1.0.0");
    assert_eq!(made.iter().filter(|change| change.starts_with("deploy ")).count(), 2, "{made:?}");
    let by_server = record.history.iter().all(|entry| entry.caller.starts_with("sconce@"));
    assert!(by_server && record.history[1].reason == "on_new_version: canary", "{:?}", record.history);
    let seen = load.end().await;
    assert!(seen.answered_by(NEW) > seen.answered_by("3.0.0") && seen.failed() > 0, "{seen:?}");
    server.assert_unharmed().await;
}

#[tokio::test]
async fn one_that_stables_callers_cannot_ask_is_not_tried_and_the_next_one_is() {
    let store = adders(1..=1).file(&format!("{ADDER}/model.yaml"), "on_new_version: canary\ncanary: { hold: 10m }\n");
    let server = Server::start(store, &[]).await;
    eventually("who answers is pinned", PATIENCE, async || {
        let stable = server.describe(ADDER).await.route.map(|route| route.stable);
        (stable == Some(version(1))).then_some(())
    })
    .await;
    server.store.add(ADDER, &version(2), fixture("onnx/tiny.onnx"));
    let refused = told(&server, ADDER, &version(2), EventKind::DeployRefused).await;
    assert_eq!(refused.reason, "SIGNATURE_INCOMPATIBLE", "{}", refused.message);
    publish_adder(&server.store, 3);
    eventually("the next one is on its way", PATIENCE, async || {
        let line = server.describe(ADDER).await.route?.rollout;
        line.starts_with(&version(3)).then_some(())
    })
    .await;
    server.assert_unharmed().await;
}

#[test]
fn the_demo_shows_a_bad_version_judged_and_undone() {
    let mut demo = std::process::Command::new(root().join("scripts/demo-canary.sh"));
    let demo = demo.arg(env!("CARGO_BIN_EXE_sconce")).env("SCONCE_NATIVE_DIR", crate::harness::native_dir());
    let ended = demo.output().expect("it runs");
    let said = text(&ended.stdout);
    assert!(ended.status.success(), "{said}{}", text(&ended.stderr));
    for words in ["1.2.0, rolled back after", "(non_finite): NaN or infinity in", "rejected: 1.2.0"] {
        assert!(said.contains(words), "'{words}' is not in\n{said}");
    }
}

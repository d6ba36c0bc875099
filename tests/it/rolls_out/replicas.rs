//! Three processes over one bucket: one rollout, one verdict for each phase, whoever of them is killed.

use rustix::process::Signal;
use sconce::model::{Phase, Stable, Version};

use super::{
    load::{Load, Manner, Seen},
    survives::route_in,
    trial::{
        NEW, SCORER, STABLE, assert_undone, changes, counted, deploy, described, over, pins, plan, reaches, scorer,
        seconds,
    },
};
use crate::{
    harness::{PATIENCE, Server, Store, call, eventually, process, s3::S3},
    proto::*,
};

/// Each knows the others' prediction ids, by a secret beside the bucket.
struct Replicas {
    servers: Vec<Server>,
    key: String,
    /// Of the secret.
    _beside: tempfile::TempDir,
}

const COUNT: usize = 3;

impl Replicas {
    async fn start(s3: &S3) -> Self {
        let beside = tempfile::tempdir().expect("a folder");
        let file = beside.path().join("key");
        std::fs::write(&file, "a secret of some thirty-two bytes").expect("a file");
        let key = format!("--prediction-id-key-file={}", file.display());
        let mut servers = Vec::new();
        for _ in 0..COUNT {
            servers.push(s3.serve(Store::new(), s3.port(), &[&key]).await);
        }
        Self { servers, key, _beside: beside }
    }

    /// Ends one without a word and starts it again, as the same replica.
    async fn kill(&mut self, place: usize, s3: &S3) {
        let mut server = self.servers.remove(place);
        process::kill(server.pid(), Signal::KILL);
        eventually("it ends", PATIENCE, async || server.exit_status()).await;
        let port = format!("--grpc-port={}", server.ports.grpc);
        let store = std::mem::replace(&mut server.store, Store::new());
        drop(server);
        self.servers.insert(place, s3.serve(store, s3.port(), &[&self.key, &port]).await);
    }

    /// Callers of each of them, who report what became of it to the others.
    async fn loads(&self, triggers: bool) -> Vec<Load> {
        let mut loads = Vec::new();
        for place in 0..COUNT {
            let mut outcomes_to = Vec::new();
            for other in [1, 2] {
                outcomes_to.push(self.servers[(place + other) % COUNT].inference().await);
            }
            loads.push(Load::begin(&self.servers[place], Manner { triggers, outcomes_to }).await);
        }
        loads
    }
}

/// Publishes both versions; the first is pinned before the other is there.
async fn stable_beside(s3: &S3, kind: &str) -> Replicas {
    let bytes = |kind: &str| std::fs::read(scorer(kind)).expect("a file");
    s3.publish(&format!("{SCORER}/{STABLE}"), &[("model.onnx", bytes(""))], false).await;
    let replicas = Replicas::start(s3).await;
    pins(&replicas.servers[0]).await;
    s3.publish(&format!("{SCORER}/{NEW}"), &[("model.onnx", bytes(kind))], false).await;
    for server in &replicas.servers {
        server.admin().await.refresh(call(RefreshRequest {})).await.expect("it looks");
    }
    replicas
}

async fn ended(loads: Vec<Load>) -> Vec<Seen> {
    let mut seen = Vec::new();
    for load in loads {
        seen.push(load.end().await);
    }
    seen
}

#[tokio::test]
async fn one_is_killed_after_each_phase_and_each_phase_is_judged_once() {
    let Some(s3) = S3::start().await else { return };
    let mut replicas = stable_beside(&s3, "").await;
    let loads = replicas.loads(false).await;
    let plan = RolloutPlan { hold: seconds(5), metric: Some("accuracy".into()), ..plan(&[20.0, 100.0]) };
    deploy(&replicas.servers[0], plan).await.expect("it may be deployed");
    for (victim, phase) in ["step 1", "step 2", "promoted"].into_iter().enumerate() {
        reaches(&replicas.servers[victim], phase).await;
        replicas.kill(victim, &s3).await;
    }
    let seen = ended(loads).await;
    for server in &replicas.servers {
        let rollout = described(server).await.expect("it is known");
        assert_eq!(rollout.phase, "promoted");
        eventually("it holds here", PATIENCE, async || {
            let described = server.describe(SCORER).await;
            (described.summary?.stable == NEW).then_some(())
        })
        .await;
        server.assert_unharmed().await;
    }
    let record = route_in(&s3).await;
    assert_eq!(record.stable, Stable::Pinned(Version::new(2, 0, 0)));
    let moves = ["gates", "step 1", "step 2"].map(|phase| format!("rollout 2.0.0: {phase} passed"));
    assert_eq!(changes(&record)[2..], moves, "each once");

    let sum = |of: fn(&Seen) -> u64| seen.iter().map(of).sum::<u64>();
    let (credited, again) = (sum(|seen| seen.credited), sum(|seen| seen.sent_again));
    let written = s3.outcomes_of(SCORER).await;
    eprintln!("{credited} outcomes acknowledged, {again} of them sent again, {written} written");
    assert!(credited > 0 && (credited..=credited + again).contains(&written), "{written} of {credited}, {again} again");
    // Only those failed that were called at a replica which was not there, or had only begun to be.
    let was_away = |word: &String| ["", "STARTING", "MODEL_LOADING"].contains(&&**word);
    assert!(seen.iter().all(|seen| seen.failed.keys().all(was_away)), "{seen:?}");
}

#[tokio::test]
async fn a_failing_version_is_undone_once_and_on_all_of_them() {
    let Some(s3) = S3::start().await else { return };
    let replicas = stable_beside(&s3, "_errs").await;
    let loads = replicas.loads(true).await;
    deploy(&replicas.servers[0], plan(&[10.0, 100.0])).await.expect("it may be deployed");
    let rollout = over(&replicas.servers[1]).await;
    let verdict = rollout.last_verdict.expect("it was judged");
    assert_eq!((&*rollout.phase, &*verdict.rule), ("rolled_back", "error_rate"), "{verdict:?}");
    for server in &replicas.servers {
        server.reaches(SCORER, NEW, VersionState::Available).await;
    }
    let seen = ended(loads).await;
    let record = route_in(&s3).await;
    assert_undone(&record, Phase::RolledBack);
    assert_eq!(changes(&record)[2..], ["rollout 2.0.0: gates passed", "rollout 2.0.0: step 1 rolled back"]);
    let by_callers: u64 = seen.iter().map(|seen| seen.answered_by(NEW) + seen.failed()).sum();
    eventually("each counted what its callers saw", PATIENCE, async || {
        (counted(&described(&replicas.servers[2]).await?) == by_callers).then_some(())
    })
    .await;
    eprintln!("exposure {}, seen by callers {by_callers}", verdict.exposure);
    assert!(0 < verdict.exposure && verdict.exposure <= by_callers && by_callers <= 500, "{seen:?}");
    let mut verdicts = 0.0;
    for server in &replicas.servers {
        verdicts += server.metric("sconce_rollout_verdicts_total{decision=\"roll_back\"}").await.unwrap_or(0.0);
        server.assert_unharmed().await;
    }
    assert_eq!(verdicts, 1.0);
}

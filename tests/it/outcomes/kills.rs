//! Replicas over one store, any of them killed at any step: no outcome that was acknowledged is lost.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::process::Signal;

use super::{another, key_of, outcome, predicted, record, restarted, started, streamed, written};
use crate::{
    harness::{PATIENCE, Server, Store, call, eventually, process, sconce},
    proto::{OutcomeResult, inference_client::InferenceClient},
};

const KILLS: u32 = 8;

#[tokio::test]
async fn a_replica_that_did_not_answer_credits_all_the_same() {
    let one = started().await;
    let other = another(&one).await;
    let ids = predicted(&one, 40).await;
    for id in &ids[..20] {
        let answer = record(&other, outcome(id, 1.0)).await.expect("an answer");
        assert_eq!((answer.result(), answer.durable), (OutcomeResult::Credited, true));
    }
    let (answers, end) = streamed(&other, ids[20..].iter().map(|id| outcome(id, 0.0)).collect()).await;
    assert!(end.is_none() && answers.last().expect("an answer").credited == 20);
    process::kill(other.pid(), Signal::KILL);
    assert_eq!(written(&one.store.path()), 40);
}

#[tokio::test]
async fn a_kill_right_after_the_answer_loses_nothing() {
    let mut server = started().await;
    let mut acknowledged = 0;
    for round in 0..KILLS {
        for id in predicted(&server, 1 + round as usize % 3).await {
            record(&server, outcome(&id, 1.0)).await.expect("an answer");
            acknowledged += 1;
        }
        server = restarted(server, Signal::KILL).await;
        assert_eq!(written(&server.store.path()), acknowledged, "round {round}");
    }
    record(&server, outcome(&predicted(&server, 1).await[0], 1.0)).await.expect("an answer");
    assert_eq!(written(&server.store.path()), acknowledged + 1, "and it counts on from there");
}

/// Reports outcomes of the ids, one after another, until they are all acknowledged: by whichever replica answers.
async fn report(ids: Vec<String>, ports: Arc<[AtomicU64; 2]>, acknowledged: Arc<AtomicU64>) {
    let mut turn = 0;
    for id in ids {
        let begun = Instant::now();
        while !is_taken(&id, ports[turn % 2].load(Ordering::Acquire)).await {
            assert!(begun.elapsed() < 4 * PATIENCE, "nobody takes an outcome");
            tokio::time::sleep(Duration::from_millis(10)).await;
            turn += 1;
        }
        acknowledged.fetch_add(1, Ordering::AcqRel);
        turn += 1;
    }
}

async fn is_taken(id: &str, port: u64) -> bool {
    let Ok(mut client) = InferenceClient::connect(format!("http://127.0.0.1:{port}")).await else {
        return false;
    };
    let Ok(answer) = client.record_outcome(call(outcome(id, 1.0))).await else {
        return false;
    };
    let answer = answer.into_inner();
    assert_ne!(answer.result(), OutcomeResult::UnknownId, "ids are good everywhere");
    answer.durable
}

#[tokio::test]
async fn of_outcomes_sent_while_replicas_are_killed_none_is_lost() {
    const REPORTERS: usize = 4;
    const EACH: usize = 60;
    let one = started().await;
    let other = another(&one).await;
    let ids = predicted(&one, REPORTERS * EACH).await;
    let ports = Arc::new([&one, &other].map(|server| AtomicU64::new(server.ports.grpc.into())));
    let acknowledged = Arc::new(AtomicU64::new(0));
    let done = AtomicBool::new(false);
    let reporters: Vec<_> =
        ids.chunks(EACH).map(|ids| tokio::spawn(report(ids.to_vec(), ports.clone(), acknowledged.clone()))).collect();
    let all_reported = async {
        for reporter in reporters {
            reporter.await.expect("every outcome was taken");
        }
        done.store(true, Ordering::Release);
    };
    let killing = kill_in_turn(one, other, ports, &acknowledged, &done);
    let ((one, other, kills), ()) = tokio::join!(killing, all_reported);
    assert_eq!(acknowledged.load(Ordering::Acquire), (REPORTERS * EACH) as u64);
    // One whose answer was lost with its replica may have been sent twice, each time a reporter waited.
    let sum = written(&one.store.path());
    let most = acknowledged.load(Ordering::Acquire) + u64::from(kills) * REPORTERS as u64;
    assert!((acknowledged.load(Ordering::Acquire)..=most).contains(&sum), "{sum} are written, {kills} kills");
    eprintln!("{kills} kills: {} acknowledged, {sum} written", acknowledged.load(Ordering::Acquire));
    drop(other);
}

/// Kills the one and the other in turn, each after a random while, and starts it anew under its old name.
async fn kill_in_turn(
    mut one: Server,
    mut other: Server,
    ports: Arc<[AtomicU64; 2]>,
    acknowledged: &AtomicU64,
    done: &AtomicBool,
) -> (Server, Server, u32) {
    let mut kills = 0;
    while !done.load(Ordering::Acquire) {
        let aim = acknowledged.load(Ordering::Acquire) + fastrand::u64(1..10);
        eventually("outcomes go on", 4 * PATIENCE, async || {
            (acknowledged.load(Ordering::Acquire) >= aim || done.load(Ordering::Acquire)).then_some(())
        })
        .await;
        // At any step: of a write, too.
        tokio::time::sleep(Duration::from_micros(fastrand::u64(..20_000))).await;
        if kills % 2 == 0 {
            one = restarted(one, Signal::KILL).await;
            ports[0].store(one.ports.grpc.into(), Ordering::Release);
        } else {
            other = relaunched(other, &one).await;
            ports[1].store(other.ports.grpc.into(), Ordering::Release);
        }
        kills += 1;
    }
    (one, other, kills)
}

/// The replica over another's store, killed and started anew with the same port.
async fn relaunched(server: Server, owner: &Server) -> Server {
    process::kill(server.pid(), Signal::KILL);
    eventually("it ends", PATIENCE, async || server.exit_status()).await;
    let port = format!("--grpc-port={}", server.ports.grpc);
    drop(server);
    let mut command = sconce();
    command.arg("serve").arg("--model-store").arg(owner.store.path());
    let server = Server::launch(Store::new(), command, &[&key_of(&owner.store), &port]).await;
    server.ready().await;
    server
}

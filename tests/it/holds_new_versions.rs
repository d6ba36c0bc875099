//! With `on_new_version: hold` a version that is published becomes ready and answers whoever names it; the others go on with
//! the one that answered until somebody promotes it.

use std::time::Duration;

use crate::{
    harness::{
        PATIENCE, Server,
        adders::{ADDER, adders, answer_of, answering, publish_adder, version},
        call, eventually,
    },
    proto::{predict_request::Select, *},
};

const OPTIONS: [&str; 1] = ["--poll-interval=20ms"];

fn numbered(number: u64) -> Option<Select> {
    Some(Select::Version(version(number)))
}

/// Fifty calls that name no version, spread over a second: each is answered by that one.
async fn answers_all(server: &Server, number: u64) {
    let mut client = server.inference().await;
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    for place in 0..50 {
        ticks.tick().await;
        assert_eq!(answer_of(&mut client, None).await.expect("an answer"), number, "call {place}");
    }
}

async fn promote(server: &Server, number: u64) {
    let request = PromoteRequest { model: ADDER.into(), version: version(number), asked: None };
    let promoted = server.admin().await.promote(call(request)).await.expect("it is right").into_inner();
    assert_eq!((promoted.settled(), promoted.stable), (Settled::Ready, version(number)));
}

#[tokio::test]
async fn a_version_that_is_held_answers_who_names_it_and_nobody_else_until_it_is_promoted() {
    let store = adders(1..=1).file("adder/model.yaml", "on_new_version: hold\n");
    let server = Server::start(store, &OPTIONS).await;
    assert_eq!(answering(&server, None).await.expect("an answer"), 1);
    publish_adder(&server.store, 2);
    server.reaches(ADDER, &version(2), VersionState::Ready).await;
    answers_all(&server, 1).await;
    assert_eq!(answering(&server, numbered(2)).await.expect("it is loaded"), 2);
    assert_eq!(answering(&server, numbered(1)).await.expect("it stays loaded"), 1);

    promote(&server, 2).await;
    answers_all(&server, 2).await;
    server.assert_unharmed().await;
}

#[tokio::test]
async fn a_server_that_is_told_to_hold_while_it_runs_does_so_from_then_on_and_after_a_restart() {
    let server = Server::start(adders(1..=1), &OPTIONS).await;
    publish_adder(&server.store, 2);
    server.reaches(ADDER, &version(1), VersionState::Available).await;
    assert_eq!(answering(&server, None).await.expect("an answer"), 2);
    server.store.write("adder/model.yaml", "on_new_version: hold\n");
    publish_adder(&server.store, 3);
    server.reaches(ADDER, &version(3), VersionState::Ready).await;
    answers_all(&server, 2).await;
    eventually("who answers is pinned", PATIENCE, async || {
        let stable = server.describe(ADDER).await.route.map(|route| route.stable);
        (stable == Some(version(2))).then_some(())
    })
    .await;
    let server = Server::start(server.into_store(), &OPTIONS).await;
    answers_all(&server, 2).await;

    server.store.write("adder/model.yaml", "on_new_version: serve\n");
    let request = UnpinRequest { model: ADDER.into(), asked: None };
    server.admin().await.unpin(call(request)).await.expect("it may be done");
    server.reaches(ADDER, &version(2), VersionState::Available).await;
    answers_all(&server, 3).await;
    server.assert_unharmed().await;
}

//! Operators who decide at once upon the same route: one of them wins, the others hear of it, and nothing is written twice.

use std::collections::BTreeSet;

use super::{OPTIONS, assert_moved, promote, upon, written};
use crate::{
    commands::{fails, run, succeeds, text},
    harness::{
        Server,
        adders::{ADDER, adders, answering, version},
        reason,
    },
};

const ROUNDS: u64 = 60;

async fn revision(server: &Server) -> u64 {
    server.describe(ADDER).await.route.expect("a route").revision
}

/// The two that are not stable.
fn others(stable: &str) -> [u64; 2] {
    let others: Vec<u64> = (1..=3).filter(|number| version(*number) != stable).collect();
    others.try_into().expect("three less one")
}

/// What the ids in the route's history are, the oldest first.
fn entries(server: &Server) -> Vec<String> {
    written(&server.store).history.into_iter().map(|entry| entry.request_id).collect()
}

/// Two decide upon the same revision, retry as a client does that lost its answer, and go on after reading.
async fn round(server: &Server, number: u64) {
    let (mut one, mut two) = (server.admin().await, server.admin().await);
    let shown = server.describe(ADDER).await;
    let route = shown.route.expect("a route");
    let before = route.revision;
    let [left, right] = others(&shown.summary.expect("a summary").stable);
    // Also where both mean the same, the second one decided upon what is no more.
    let right = if number % 3 == 2 { left } else { right };
    let ids = [format!("left-{number}"), format!("right-{number}")];
    let answers =
        tokio::join!(promote(&mut one, left, upon(before, &ids[0])), promote(&mut two, right, upon(before, &ids[1])));
    let left_won = answers.0.is_ok();
    let (won, lost) = if left_won { answers } else { (answers.1, answers.0) };
    let won = won.unwrap_or_else(|status| panic!("round {number}: nobody wins: {status}, {lost:?}"));
    assert_eq!((won.revision, won.repeated), (before + 1, false), "round {number}: {won:?}");
    assert_moved(&format!("round {number}"), lost, before + 1);

    let (winner, loser) = if left_won { (left, right) } else { (right, left) };
    let [winning, losing] = if left_won { [&ids[0], &ids[1]] } else { [&ids[1], &ids[0]] };
    let again =
        tokio::join!(promote(&mut one, winner, upon(before, winning)), promote(&mut two, loser, upon(before, losing)));
    let repeated = again.0.expect("it was done");
    assert_eq!(
        (repeated.repeated, repeated.revision, &repeated.stable, &repeated.time),
        (true, won.revision, &won.stable, &won.time),
        "round {number}: a repeat is answered as the first time"
    );
    assert_moved(&format!("round {number}, again"), again.1, before + 1);
    assert_eq!(written(&server.store).revision, Some(before + 1), "round {number}: a repeat wrote something");
    assert_eq!(entries(server).iter().filter(|entry| *entry == losing).count(), 0, "round {number}: {losing}");

    // Whoever lost reads, and decides anew: to what neither of them asked for, so that it is a change.
    let next = others(&version(winner)).into_iter().find(|next| *next != loser).expect("one of two");
    let read = revision(server).await;
    assert_eq!(read, before + 1, "round {number}: an answered promote is shown");
    let anew = promote(&mut two, next, upon(read, &format!("anew-{number}"))).await.expect("nobody else is there");
    assert_eq!((anew.revision, anew.repeated), (before + 2, false), "round {number}: {anew:?}");
    let late = promote(&mut one, winner, upon(before, winning)).await.expect("it was done");
    assert_eq!((late.repeated, late.revision), (true, won.revision), "round {number}: {late:?}");
    assert_eq!(
        answering(server, None).await.expect("an answer"),
        next,
        "a repeat does not bring back what it asked for"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_who_decide_upon_the_same_revision_one_wins() {
    let store = adders(1..=3).file("adder/model.yaml", "versions: all\n");
    let server = Server::start(store, &OPTIONS).await;
    for number in 0..ROUNDS {
        round(&server, number).await;
    }
    let route = written(&server.store);
    assert_eq!(route.revision, Some(2 * ROUNDS), "two writes a round");
    let ids: BTreeSet<&str> = route.history.iter().map(|entry| entry.request_id.as_str()).collect();
    assert_eq!(ids.len(), route.history.len(), "nothing is written twice: {:?}", route.history);
    server.assert_unharmed().await;
}

/// Reads, decides, and begins again where somebody else was first, until it has changed the route that often.
async fn insists(server: &Server, name: usize, changes: usize) -> (Vec<u64>, usize) {
    let mut admin = server.admin().await;
    let (mut revisions, mut lost) = (Vec::new(), 0);
    while revisions.len() < changes {
        let shown = server.describe(ADDER).await;
        let [next, _] = others(&shown.summary.expect("a summary").stable);
        let id = format!("{name}-{}", revisions.len());
        match promote(&mut admin, next, upon(shown.route.expect("a route").revision, &id)).await {
            Ok(answer) => revisions.push(answer.revision),
            Err(status) if reason(&status) == "REVISION_MOVED" => lost += 1,
            Err(status) => panic!("{id}: {status}"),
        }
    }
    (revisions, lost)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_who_insist_each_gets_its_turn_and_each_revision_is_one_change() {
    const OPERATORS: usize = 8;
    const CHANGES: usize = 10;
    let store = adders(1..=3).file("adder/model.yaml", "versions: all\n");
    let server = std::sync::Arc::new(Server::start(store, &OPTIONS).await);
    let operators: Vec<_> = (0..OPERATORS)
        .map(|name| {
            let server = server.clone();
            tokio::spawn(async move { insists(&server, name, CHANGES).await })
        })
        .collect();
    let (mut revisions, mut lost) = (Vec::new(), 0);
    for operator in operators {
        let (own, times) = operator.await.expect("no panic");
        assert!(own.is_sorted(), "an operator's own changes are in its order: {own:?}");
        revisions.extend(own);
        lost += times;
    }
    revisions.sort_unstable();
    eprintln!("{} changes by {OPERATORS} operators; {lost} came too late", revisions.len());
    assert_eq!(revisions, (1..=(OPERATORS * CHANGES) as u64).collect::<Vec<_>>(), "each revision is one answer's");
    assert!(lost > 0, "they never met");
    let ids: BTreeSet<String> = entries(&server).into_iter().collect();
    assert_eq!(ids.len(), OPERATORS * CHANGES, "each change stands once in the history");
    server.assert_unharmed().await;
}

#[tokio::test]
async fn the_command_line_hears_it_too() {
    let store = adders(1..=3).file("adder/model.yaml", "versions: all\n");
    let server = Server::start(store, &OPTIONS).await;
    for round in 0..4 {
        let before = revision(&server).await;
        let [left, right] = others(&server.describe(ADDER).await.summary.expect("a summary").stable);
        let expected = format!("--expected-revision={before}");
        let command = |number: u64| {
            let (version, id) = (version(number), format!("--request-id={number}-in-{round}"));
            run(&server, &["promote", ADDER, &version, &expected, &id, "--json"], "")
        };
        let outputs = std::thread::scope(|scope| {
            let both = [left, right].map(|number| scope.spawn(move || command(number)));
            both.map(|thread| thread.join().expect("no panic"))
        });
        let codes = [0, 1].map(|place: usize| outputs[place].status.code());
        assert!(codes == [Some(0), Some(1)] || codes == [Some(1), Some(0)], "round {round}: {outputs:?}");
        let lost = usize::from(codes[0] == Some(0));
        let (won, said) = (text(&outputs[1 - lost].stdout), text(&outputs[lost].stderr));
        let won: serde_json::Value = serde_json::from_str(&won).unwrap_or_else(|error| panic!("{won}: {error}"));
        assert_eq!(won["revision"], before + 1, "{won}");
        for words in ["ABORTED (REVISION_MOVED)", &format!("revision {}", before + 1)] {
            assert!(said.contains(words), "round {round}: '{words}' is not in {said}");
        }
        // The line that was refused is refused again, and goes through with what it was told.
        let (loser, id) = (version([left, right][lost]), format!("--request-id=anew-{round}"));
        fails(&server, &["promote", ADDER, &loser, &expected], 1, &["REVISION_MOVED"]);
        let expected = format!("--expected-revision={}", before + 1);
        succeeds(&server, &["promote", ADDER, &loser, &expected, &id], "");
        assert_eq!(written(&server.store).revision, Some(before + 2), "round {round}: two writes");
    }
}

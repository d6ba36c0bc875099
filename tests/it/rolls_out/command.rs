//! The command line: what is asked for, and what people and scripts see.

use std::{fs, process::Stdio};

use serde_json::Value;

use super::{described, is_at_most_at_the_first_step, record, stable_beside, written};
use crate::{
    commands::{fails, run, succeeds, text},
    harness::{
        PATIENCE, Server, Store,
        adders::{ADDER, answering, version},
        eventually, process, sconce,
    },
};

const UNHURRIED: [&str; 2] = ["--hold=10m", "--min-samples=1000000"];

#[tokio::test]
async fn a_rollout_is_begun_looked_at_and_steered_from_the_command_line() {
    let server = stable_beside(2).await;
    fails(&server, &["rollout", "status", ADDER], 1, &["ever rolled out"]);
    fails(&server, &["rollout", "promote", ADDER], 1, &["NO_ROLLOUT", "being rolled out"]);
    fs::write(server.store.beside("plan.yaml"), "{ steps: [10, 100], hold: 1m, max_error_rate: 0.2 }").expect("a file");
    let flags = ["deploy", ADDER, &version(2), "--plan=plan.yaml", "--reason=a try", UNHURRIED[0], UNHURRIED[1]];
    let said = succeeds(&server, &flags, "");
    assert!(said.contains("stable 1.0.1") && said.contains("rollout status adder --watch"), "{said}");
    let plan = written(&server).plan;
    assert_eq!((plan.steps, plan.hold.as_secs(), plan.max_error_rate), (vec![10.0, 100.0], 600, Some(0.2)));

    let shown = succeeds(&server, &["rollout", "status", ADDER], "");
    for words in ["adder: 1.0.2 beside 1.0.1", "· 100 %", "stable   1.0.1", "canary   1.0.2", "begun:"] {
        assert!(shown.contains(words), "'{words}' is not in\n{shown}");
    }
    let json = succeeds(&server, &["rollout", "status", ADDER, "--json"], "");
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!((&json["rollout"]["running"], &json["rollout"]["plan"]["hold"]), (&true.into(), &"600s".into()));
    assert!(succeeds(&server, &["describe", ADDER], "").contains("1.0.2 is being rolled out: "));

    succeeds(&server, &["rollout", "pause", ADDER, "--reason=lunch"], "");
    let paused = succeeds(&server, &["rollout", "status", ADDER], "");
    assert!(paused.contains("paused since") && paused.contains(": lunch"), "{paused}");
    succeeds(&server, &["rollout", "resume", ADDER], "");
    assert!(is_at_most_at_the_first_step(written(&server).phase));
    succeeds(&server, &["rollout", "promote", ADDER], "");
    assert_eq!(answering(&server, None).await.expect("an answer"), 2);
    let promoted = succeeds(&server, &["rollout", "status", ADDER, "--watch"], "");
    assert!(promoted.starts_with("1.0.2, promoted after "), "{promoted}");
}

#[tokio::test]
async fn who_watches_hears_each_change_and_how_it_ended() {
    let server = stable_beside(2).await;
    succeeds(&server, &["deploy", ADDER, &version(2), UNHURRIED[0], UNHURRIED[1]], "");
    succeeds(&server, &["rollout", "pause", ADDER, "--reason=first"], "");
    let watched = std::thread::scope(|threads| {
        let watcher = threads.spawn(|| run(&server, &["rollout", "status", ADDER, "--watch"], ""));
        succeeds(&server, &["rollout", "abort", ADDER, "--reason=not today"], "");
        watcher.join().expect("it ends")
    });
    let said = text(&watched.stdout);
    assert_eq!(watched.status.code(), Some(1), "{said}{}", text(&watched.stderr));
    assert!(
        said.lines()
            .last()
            .is_some_and(|line| line.starts_with("1.0.2, aborted after ") && line.ends_with(": not today")),
        "{said}"
    );
    assert!(!described(&server).await.expect("the last one").running);
    assert!(record(&server).variants.is_empty());
}

#[tokio::test]
async fn who_watches_hears_that_the_server_is_gone_and_follows_the_next_one() {
    let mut server = stable_beside(2).await;
    succeeds(&server, &["deploy", ADDER, &version(2), UNHURRIED[0], UNHURRIED[1]], "");
    let (said, told) = (server.store.beside("said"), server.store.beside("told"));
    let address = format!("127.0.0.1:{}", server.ports.grpc_admin);
    let mut watcher = sconce();
    watcher.args(["rollout", "status", ADDER, "--watch", "--json", "--server", &address]).stdin(Stdio::null());
    watcher.stdout(fs::File::create(&said).expect("a file")).stderr(fs::File::create(&told).expect("a file"));
    let mut watcher = watcher.spawn().expect("the program starts");
    let says = async |what: &str, file: &std::path::Path, words: &str| {
        let look = async || fs::read_to_string(file).is_ok_and(|text| text.contains(words)).then_some(());
        eventually(what, PATIENCE, look).await;
    };
    says("it watches", &said, "\"running\":true").await;
    process::kill(server.pid(), rustix::process::Signal::KILL);
    says("it hears that nobody answers", &told, "asked again").await;
    let store = std::mem::replace(&mut server.store, Store::new());
    let port = format!("--grpc-admin-port={}", server.ports.grpc_admin);
    drop(server);
    let server = Server::start(store, &[&port]).await;
    says("it hears the next one", &told, "it answers again").await;
    succeeds(&server, &["rollout", "abort", ADDER], "");
    let ended = eventually("it ends", PATIENCE, async || watcher.try_wait().expect("its own child")).await;
    assert_eq!(ended.code(), Some(1));
    let last = fs::read_to_string(&said).expect("a file");
    assert!(last.lines().last().is_some_and(|line| line.contains("\"phase\":\"aborted\"")), "{last}");
}

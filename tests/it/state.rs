//! Routes kept apart from artifacts: the store is only read, and everything that is decided lies where `--state` says.

use std::{fs, path::Path};

use rustix::process::Signal;
use tonic::{Code, Status};

use crate::{
    harness::{
        PATIENCE, Server, Store,
        adders::{ADDER, adders, answering, version},
        assert_refused, call, eventually, process,
        s3::S3,
        sconce,
        store::files,
    },
    proto::*,
};

const POLL: &str = "--poll-interval=20ms";

async fn promote(server: &Server, number: u64) -> Result<ChangeResponse, Status> {
    let request = PromoteRequest { model: ADDER.into(), version: version(number), asked: None };
    Ok(server.admin().await.promote(call(request)).await?.into_inner())
}

async fn answers(server: &Server, number: u64) {
    eventually(&format!("1.0.{number} answers"), PATIENCE, async || {
        (answering(server, None).await.expect("never without an answer") == number).then_some(())
    })
    .await;
}

async fn message(server: &Server) -> String {
    let listed = server.admin().await.list_models(call(ListModelsRequest::default())).await.expect("a list");
    let model = listed.into_inner().models.into_iter().find(|model| model.name == ADDER).expect("it is there");
    model.message
}

fn statuses(folder: &Path) -> usize {
    files(folder).iter().filter(|path| path.extension().is_some_and(|kind| kind == "json")).count()
}

async fn stopped(mut server: Server) -> Store {
    process::kill(server.pid(), Signal::TERM);
    let status = eventually("it ends", PATIENCE, async || server.exit_status()).await;
    assert!(status.success(), "{status}: {}", server.log());
    std::mem::replace(&mut server.store, Store::new())
}

#[tokio::test]
async fn what_is_decided_lies_there_and_the_store_is_only_read() {
    let store = adders(1..=3).file("adder/route.yaml", "stable: 1.0.1\n");
    let state = store.beside_folder("state");
    let (option, before) = (format!("--state={}", state.display()), files(&store.path()));
    let server = Server::start(store, &[&option, POLL, "--pre-stop-delay=0ms"]).await;
    assert_eq!(answering(&server, None).await.expect("an answer"), 3, "the store's own route is not followed");
    let said = message(&server).await;
    assert!(said.contains("route.yaml") && said.contains("state"), "and that is said: {said}");

    assert_eq!(promote(&server, 2).await.expect("it is right").settled(), Settled::Ready);
    assert_eq!(answering(&server, None).await.expect("an answer"), 2);
    eventually("its status", PATIENCE, async || (statuses(&state) == 1).then_some(())).await;
    fs::write(state.join("adder/route.new"), "stable: 1.0.1\n").expect("a file");
    fs::rename(state.join("adder/route.new"), state.join("adder/route.yaml")).expect("a rename");
    answers(&server, 1).await;
    assert_eq!(promote(&server, 2).await.expect("it is right").revision, 2, "on top of the hand edit");
    server.assert_unharmed().await;

    let store = stopped(server).await;
    assert_eq!(statuses(&state), 0, "a server that ended says nothing any more");
    assert_eq!(files(&store.path()), before, "nothing was written to the store");
    let server = Server::start(store, &[&option, POLL]).await;
    assert_eq!(answering(&server, None).await.expect("an answer"), 2, "it holds after a restart");
    assert_eq!(files(&server.store.path()), before);
}

#[tokio::test]
async fn without_it_status_lies_in_the_store_until_the_server_ends() {
    // Whoever writes the routes.
    let server = Server::start(adders(1..=1), &["--pre-stop-delay=0ms", "--routes=external"]).await;
    let model = server.store.path().join(ADDER);
    eventually("its status", PATIENCE, async || (statuses(&model.join(".sconce")) == 1).then_some(())).await;
    let store = stopped(server).await;
    assert_eq!(statuses(&store.path()), 0);
}

#[tokio::test]
async fn a_state_that_is_not_there_is_refused_and_one_that_goes_away_is_waited_for() {
    let store = adders(1..=2);
    let state = store.beside("state");
    let option = format!("--state={}", state.display());
    let refused = sconce().arg("serve").arg("--model-store").arg(store.path()).arg(&option).output().expect("it runs");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("state") && said.contains("make it first"), "{said}");
    fs::create_dir_all(state.join(ADDER)).expect("a folder");
    fs::write(state.join("adder/route.yaml"), "stable: 1.0.1\n").expect("a file");
    let server = Server::start(store, &[&option, POLL]).await;
    assert_eq!(answering(&server, None).await.expect("an answer"), 1);

    let away = state.with_extension("away");
    fs::rename(&state, &away).expect("a rename");
    assert_refused("away", promote(&server, 2).await, Code::Unavailable, "STORE_UNAVAILABLE");
    assert_eq!(answering(&server, None).await.expect("an answer"), 1, "what is loaded serves on");
    fs::rename(&away, &state).expect("a rename");
    eventually("a change again", PATIENCE, async || promote(&server, 2).await.ok()).await;
    assert_eq!(answering(&server, None).await.expect("an answer"), 2);
    server.assert_unharmed().await;
}

#[tokio::test]
async fn artifacts_in_a_folder_and_routes_in_a_bucket_that_two_servers_share() {
    let Some(s3) = S3::start().await else { return };
    let state = format!("--state={}/routes", s3.url());
    let mut servers = Vec::new();
    for _ in 0..2 {
        let store = adders(1..=2);
        let mut command = s3.command(s3.port(), &["serve", "--model-store"]);
        command.arg(store.path());
        let server = Server::launch(store, command, &[&state, POLL]).await;
        server.ready().await;
        servers.push(server);
    }
    assert_eq!(promote(&servers[0], 1).await.expect("it is right").revision, 1);
    for server in &servers {
        answers(server, 1).await;
        assert!(!files(&server.store.path()).iter().any(|path| path.ends_with("route.yaml")));
        server.assert_unharmed().await;
    }
}

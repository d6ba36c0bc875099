//! Who gets the traffic, whatever happens to route.yaml, to its store, and to those who write it.

mod by_hand;
mod clocks;
mod kills;
mod replicas;
mod sigterm;
mod storms;
mod stores;
mod two_operators;
mod untold;

use std::{fs, path::PathBuf};

use sconce::model;
use tonic::{Code, Status, transport::Channel};

use crate::{
    harness::{
        PATIENCE, Server, Store,
        adders::{ADDER, answering, version},
        assert_refused, call, eventually, fact,
    },
    proto::{admin_client::AdminClient, *},
};

/// Route changes are seen soon, and the log says why.
const OPTIONS: [&str; 1] = ["--poll-interval=20ms"];

/// Replaces route.yaml as a careful person does.
fn write_route(server: &Server, text: impl AsRef<[u8]>) {
    let beside = server.store.beside("route.yaml");
    fs::write(&beside, text).expect("a file");
    fs::rename(beside, route_file(&server.store)).expect("a rename");
}

fn route_file(store: &Store) -> PathBuf {
    store.path().join(ADDER).join("route.yaml")
}

/// What route.yaml says, which is whole at any moment.
#[track_caller]
fn written(store: &Store) -> model::Route {
    let text = fs::read_to_string(route_file(store)).expect("route.yaml is there");
    model::Route::parse(&text).unwrap_or_else(|wrong| panic!("route.yaml is not whole: {wrong}\n{text}"))
}

fn asked(request_id: &str) -> Asked {
    Asked { request_id: request_id.into(), caller: "tester".into(), ..Default::default() }
}

fn upon(revision: u64, request_id: &str) -> Asked {
    Asked { expected_revision: Some(revision), ..asked(request_id) }
}

/// A refusal that names the revision which holds.
#[track_caller]
fn assert_moved(what: &str, answer: Result<ChangeResponse, Status>, revision: u64) {
    let status = assert_refused(what, answer, Code::Aborted, "REVISION_MOVED");
    assert_eq!(fact(&status, "revision"), revision.to_string(), "{what}: {status}");
    assert!(status.message().contains(&format!("revision {revision}")), "{what}: {}", status.message());
}

async fn promote(admin: &mut AdminClient<Channel>, number: u64, asked: Asked) -> Result<ChangeResponse, Status> {
    let request = PromoteRequest { model: ADDER.into(), version: version(number), asked: Some(asked) };
    Ok(admin.promote(call(request)).await?.into_inner())
}

/// The one line that ListModels shows.
async fn summary(server: &Server) -> ModelSummary {
    let mut admin = server.admin().await;
    let listed = admin.list_models(call(ListModelsRequest::default())).await.expect("a list").into_inner();
    listed.models.into_iter().find(|model| model.name == ADDER).expect("the model is there")
}

/// Waits until the version answers calls that name none. Every call on the way is answered, too.
async fn answers(server: &Server, number: u64) {
    eventually(&format!("1.0.{number} answers"), PATIENCE, async || {
        let now = answering(server, None).await.expect("never without an answer");
        (now == number).then_some(())
    })
    .await;
}

/// Waits until the line of ListModels says all of this.
async fn says(server: &Server, words: &[&str]) -> String {
    eventually(&format!("ListModels says {words:?}"), PATIENCE, async || {
        let message = summary(server).await.message;
        words.iter().all(|word| message.contains(word)).then_some(message)
    })
    .await
}

//! Who gets the traffic, whatever happens to route.yaml, to its store, and to those who write it.

mod by_hand;

use std::fs;

use crate::{
    harness::{
        PATIENCE, Server,
        adders::{ADDER, answering},
        call, eventually,
    },
    proto::*,
};

/// Route changes are seen soon, and the log says why.
const OPTIONS: [&str; 1] = ["--poll-interval=20ms"];

/// Replaces route.yaml as a careful person does.
fn write_route(server: &Server, text: impl AsRef<[u8]>) {
    let beside = server.store.beside("route.yaml");
    fs::write(&beside, text).expect("a file");
    fs::rename(beside, server.store.path().join(ADDER).join("route.yaml")).expect("a rename");
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

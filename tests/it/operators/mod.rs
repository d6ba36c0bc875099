//! What operators do while the server runs: by gRPC and by the command line, and what they are told.

mod command_line;
mod events;
mod promote;
mod repository;
mod waiting;

use std::path::PathBuf;

use tonic::{Request, Status};

use crate::{
    harness::{
        Server, Store, call, fixture,
        tensors::{Form, floats},
    },
    proto::*,
};

/// A model of two versions, of which model.yaml selects the higher.
fn two_versions() -> Store {
    let tiny = fixture("onnx/tiny.onnx");
    Store::new().model("tiny", "1.0.0", &tiny).model("tiny", "1.1.0", &tiny)
}

fn asked(request_id: &str) -> Option<Asked> {
    Some(Asked {
        request_id: request_id.into(),
        reason: "a test".into(),
        caller: "tester".into(),
        ..Default::default()
    })
}

fn promotion(version: &str, asked: Option<Asked>) -> Request<PromoteRequest> {
    call(PromoteRequest { model: "tiny".into(), version: version.into(), asked })
}

async fn promote(server: &Server, version: &str, asked: Option<Asked>) -> Result<ChangeResponse, Status> {
    Ok(server.admin().await.promote(promotion(version, asked)).await?.into_inner())
}

/// The version that answers a call without one.
async fn answering(server: &Server) -> Result<String, Status> {
    let inputs = ["INPUT0", "INPUT1"].map(|name| floats(name, &[1, 16], &[1.0; 16]).to_sconce(Form::Raw));
    let request = PredictRequest { model: "tiny".into(), inputs: inputs.into(), ..Default::default() };
    Ok(server.predict(request).await?.served.expect("who answered").version)
}

async fn route(server: &Server) -> Route {
    server.describe("tiny").await.route.expect("a route")
}

/// A child that opens versions once the gate is there, and the options that make the server use it.
pub fn gated(store: &Store) -> (PathBuf, String) {
    let (gate, child) = (store.beside("gate"), store.beside("child.sh"));
    // It does not outlive the folder, whatever becomes of the server.
    let script = format!(
        "#!/bin/sh\nwhile [ -e \"$0\" ] && [ ! -e '{}' ]; do sleep 0.02; done\nexec '{}' \"$@\"\n",
        gate.display(),
        env!("CARGO_BIN_EXE_sconce")
    );
    std::fs::write(&child, script).expect("a file");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&child, mode).expect("set");
    let option = format!("--child-executable={}", child.display());
    (gate, option)
}

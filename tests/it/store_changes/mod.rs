//! The store changes while it is served.

mod copying;
mod faults;
mod many;

use crate::{
    harness::{
        PATIENCE, Server, Store, eventually, fixture, http,
        tensors::{Form, Values, fixture_examples},
    },
    proto::*,
};

fn request(version: &str) -> PredictRequest {
    let example = &fixture_examples("onnx/tiny").examples[0];
    PredictRequest {
        model: "tiny".into(),
        select: (!version.is_empty()).then(|| predict_request::Select::Version(version.into())),
        inputs: example.request.inputs.iter().map(|tensor| Values::of_example(tensor).to_sconce(Form::Raw)).collect(),
        ..Default::default()
    }
}

fn tiny() -> Store {
    Store::new().model("tiny", "1.0.0", fixture("onnx/tiny.onnx"))
}

/// With every look in the log.
const LOOKS: &str = "--log-level=info,sconce=trace";

/// How often the server has looked at the store; it logs `LOOKS`.
fn looks(server: &Server) -> usize {
    server.log().matches("looked at the store").count()
}

/// Whether changes are seen when they happen: on file systems that tell of them.
fn has_events(server: &Server) -> bool {
    let polled = server.log().contains("the store is polled");
    if polled {
        eprintln!("no events of the file system here: not tested\n{}", server.log());
    }
    !polled
}

async fn stable(server: &Server) -> String {
    server.predict(request("")).await.expect("an answer").served.expect("who served").version
}

#[tokio::test]
async fn a_model_that_comes_later_is_served() {
    let server = Server::start(Store::new(), &[]).await;
    let unknown = server.predict(request("")).await.expect_err("nothing is there");
    assert_eq!(unknown.code(), tonic::Code::NotFound);
    server.store.add("tiny", "1.0.0", fixture("onnx/tiny.onnx"));
    server.reaches("tiny", "1.0.0", VersionState::Ready).await;
    assert_eq!(stable(&server).await, "1.0.0");
}

#[tokio::test]
async fn a_higher_version_takes_over_and_the_lower_goes() {
    let server = Server::start(tiny(), &[]).await;
    server.store.add("tiny", "1.0.1", fixture("onnx/tiny.onnx"));
    // Never without an answer on the way.
    eventually("1.0.1 takes over", PATIENCE, async || (stable(&server).await == "1.0.1").then_some(())).await;
    server.reaches("tiny", "1.0.0", VersionState::Available).await;
    let gone = server.predict(request("1.0.0")).await.expect_err("`versions: latest: 1` does not select it");
    assert_eq!(gone.code(), tonic::Code::FailedPrecondition);
}

#[tokio::test]
async fn versions_order_as_numbers() {
    let store =
        tiny().model("tiny", "1.9.0", fixture("onnx/tiny.onnx")).model("tiny", "v1.10", fixture("onnx/tiny.onnx"));
    let server = Server::start(store, &[]).await;
    assert_eq!(stable(&server).await, "1.10.0");
}

#[tokio::test]
async fn a_removed_version_is_unloaded_unless_it_is_the_last() {
    let store = tiny().model("tiny", "2.0.0", fixture("onnx/tiny.onnx")).file("tiny/model.yaml", "versions: all\n");
    let server = Server::start(store, &[]).await;
    server.store.remove("tiny/2.0.0");
    eventually("2.0.0 is unloaded", PATIENCE, async || (stable(&server).await == "1.0.0").then_some(())).await;
    server.store.remove("tiny/1.0.0");
    // It serves on from its copy, and says what is missing.
    let status = eventually("the status says that its source is missing", PATIENCE, async || {
        let version = server.version("tiny", "1.0.0").await?;
        let text = format!("{} {} {}", version.reason, version.message, version.notes.join(" ")).to_lowercase();
        (text.contains("source_missing") || text.contains("source missing") || text.contains("gone")).then_some(version)
    })
    .await;
    assert_eq!(status.state(), VersionState::Ready);
    assert_eq!(stable(&server).await, "1.0.0");
}

#[tokio::test]
async fn a_store_that_shows_nothing_unloads_nothing() {
    let server = Server::start(tiny(), &[]).await;
    let away = server.store.beside("away");
    std::fs::rename(server.store.path(), &away).expect("a rename");
    eventually("the log says that the store cannot be listed", PATIENCE, async || {
        server.log().to_lowercase().contains("store").then_some(())
    })
    .await;
    assert_eq!(stable(&server).await, "1.0.0");
    let (status, _) = http::get(server.ports.http, "/readyz").await.expect("an answer");
    assert_eq!(status, 200, "a store that goes away later never makes the server unready");
    std::fs::rename(&away, server.store.path()).expect("a rename");
    server.store.add("tiny", "1.0.1", fixture("onnx/tiny.onnx"));
    server.reaches("tiny", "1.0.1", VersionState::Ready).await;
}

#[tokio::test]
async fn a_broken_version_leaves_the_old_one_and_the_other_models_alone() {
    let server = Server::start(tiny().model("scalar", "1.0.0", fixture("onnx/scalar.onnx")), &[]).await;
    let broken = server.store.beside("broken.onnx");
    std::fs::write(&broken, b"no model").expect("a file");
    server.store.add("tiny", "2.0.0", &broken);
    server.store.add("other", "1.0.0", &broken);
    server.failed("tiny", "2.0.0").await;
    server.failed("other", "1.0.0").await;
    assert_eq!(stable(&server).await, "1.0.0");
    server.reaches("scalar", "1.0.0", VersionState::Ready).await;
    let refused = server.predict(request("2.0.0")).await.expect_err("it failed");
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
}

#[tokio::test]
async fn the_same_version_with_other_bytes_is_an_error() {
    let server = Server::start(tiny(), &[]).await;
    let before = server.version("tiny", "1.0.0").await.expect("it is there");
    server.store.write("tiny/1.0.0/model.onnx", std::fs::read(fixture("onnx/slow.onnx")).expect("a fixture"));
    eventually("the change is noticed", PATIENCE, async || {
        let version = server.version("tiny", "1.0.0").await?;
        let said = format!("{}{}{}", version.reason, version.message, version.notes.join(""));
        (version.digest == before.digest && !said.is_empty()).then_some(())
    })
    .await;
    assert_eq!(stable(&server).await, "1.0.0");
}

#[tokio::test]
async fn what_is_being_copied_is_not_taken() {
    let server = Server::start(Store::new(), &["--settle-time=60s"]).await;
    let model = std::fs::read(fixture("onnx/tiny.onnx")).expect("a fixture");
    server.store.write("tiny/1.0.0/model.onnx", &model[..model.len() / 2]);
    server.store.write("other/1.0.0/model.onnx", &model);
    let digest = {
        use sha2::{Digest, Sha256};
        hex::encode(Sha256::digest(&model))
    };
    let yaml = format!("files: {{ model.onnx: {{ sha256: \"{digest}\", size: {} }} }}\n", model.len());
    server.store.write("whole/1.0.0/model.onnx", &model);
    server.store.write("whole/1.0.0/version.yaml", &yaml);
    // A version whose manifest is met needs no settling; one without is left alone meanwhile.
    server.reaches("whole", "1.0.0", VersionState::Ready).await;
    for model in ["tiny", "other"] {
        let version = server.version(model, "1.0.0").await;
        let taken =
            version.is_some_and(|version| matches!(version.state(), VersionState::Ready | VersionState::Failed));
        assert!(!taken, "{model} was taken before it settled");
    }
}

#[tokio::test]
async fn a_bad_model_yaml_keeps_the_last_good_one_and_is_shown() {
    let server = Server::start(tiny(), &[]).await;
    server.store.write("tiny/model.yaml", "batching: off\nno_such_key: 1\n");
    let message = eventually("the bad edit is shown", PATIENCE, async || {
        let described = server.describe("tiny").await;
        let said = described.summary?.message;
        said.contains("no_such_key").then_some(said)
    })
    .await;
    assert!(message.contains("model.yaml"), "{message}");
    assert_eq!(stable(&server).await, "1.0.0");
    server.store.write("tiny/model.yaml", "batching: off\n");
    eventually("the good one holds", PATIENCE, async || {
        let execution = server.version("tiny", "1.0.0").await?.execution?;
        (!execution.batching).then_some(())
    })
    .await;
}

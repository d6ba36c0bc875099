//! However many models there are, the server has the threads that it has for one, unless a model asks for more.

use std::collections::BTreeMap;

use crate::{
    harness::{
        PATIENCE, Server, Store, call, eventually, fixture, has_torch, process,
        tensors::{Form, Values, fixture_examples},
    },
    proto::*,
};

const MANY: usize = 24;
const TINY: &str = "onnx/tiny";

/// By name. Without those of the control plane, some of which come and go with what is read and resolved.
fn threads(server: &Server) -> BTreeMap<String, usize> {
    let mut threads = BTreeMap::new();
    let folders = std::fs::read_dir(format!("/proc/{}/task", server.pid())).expect("the process is there");
    for folder in folders.flatten() {
        // One may end while we look.
        if let Some((name, _)) = process::name_and_nice(&folder.path())
            && name != "control"
        {
            *threads.entry(name).or_default() += 1;
        }
    }
    threads
}

/// The first example of a fixture.
async fn ask(server: &Server, model: &str, fixture: &str) {
    let example = &fixture_examples(fixture).examples[0];
    let inputs = example.request.inputs.iter().map(|tensor| Values::of_example(tensor).to_sconce(Form::Raw));
    let request = PredictRequest { model: model.into(), inputs: inputs.collect(), ..Default::default() };
    let mut client = server.inference().await;
    client.predict(call(request)).await.expect("an answer");
}

async fn execution(server: &Server, model: &str) -> (VersionStatus, Execution) {
    let version = server.reaches(model, "1.0.0", VersionState::Ready).await;
    let execution = version.execution.clone().expect("how it runs");
    (version, execution)
}

#[tokio::test]
async fn many_models_have_the_threads_of_one() {
    let tiny = fixture("onnx/tiny.onnx");
    let server = Server::start(Store::new().model("m0", "1.0.0", &tiny), &["--cores=2"]).await;
    for _ in 0..8 {
        ask(&server, "m0", TINY).await;
    }
    let of_one = threads(&server);
    for number in 1..=MANY {
        server.store.add(&format!("m{number}"), "1.0.0", &tiny);
    }
    for number in 1..=MANY {
        let model = format!("m{number}");
        let (version, execution) = execution(&server, &model).await;
        assert_eq!((execution.instances, execution.intra_op_threads), (1, 1));
        assert!(version.notes.is_empty(), "{:?}", version.notes);
        for _ in 0..4 {
            ask(&server, &model, TINY).await;
        }
    }
    eventually("as many threads as before", PATIENCE, async || (threads(&server) == of_one).then_some(())).await;
}

#[tokio::test]
async fn a_model_has_the_pool_that_it_asks_for_while_it_is_there() {
    let tiny = fixture("onnx/tiny.onnx");
    let server = Server::start(Store::new().model("plain", "1.0.0", &tiny), &["--cores=2"]).await;
    ask(&server, "plain", TINY).await;
    let count = || threads(&server).values().sum::<usize>();
    let before = count();
    server.store.write("wide/model.yaml", "onnx: { intra_op_threads: 4 }\n");
    server.store.add("wide", "1.0.0", &tiny);
    let (version, execution) = execution(&server, "wide").await;
    assert_eq!(execution.intra_op_threads, 4);
    assert!(
        version.notes.iter().any(|note| note.contains("up to 4") && note.contains("2 cores")),
        "{:?}",
        version.notes
    );
    ask(&server, "wide", TINY).await;
    eventually("three threads more", PATIENCE, async || (count() == before + 3).then_some(())).await;
    server.store.remove("wide");
    eventually("as many threads as before", PATIENCE, async || (count() == before).then_some(())).await;
}

#[tokio::test]
async fn no_library_makes_threads_of_its_own() {
    let mut models = vec![("onnx", TINY, "onnx"), ("lightgbm", "lightgbm/multiclass", "txt")];
    models.extend(has_torch().then_some(("torch", "torch/plain", "pt")));
    let mut store = Store::new();
    for (model, example, extension) in &models {
        store = store.model(model, "1.0.0", fixture(&format!("{example}.{extension}")));
    }
    let server = Server::start(store, &["--cores=2"]).await;
    for (model, example, _) in models {
        execution(&server, model).await;
        for _ in 0..8 {
            ask(&server, model, example).await;
        }
    }
    // A thread has the name of the one that made it, unless it is given another: a core's or a loader's would be there twice.
    eventually("each thread once", PATIENCE, async || {
        let threads = threads(&server);
        let known = ["core-0", "core-1", "load-1", "load-2"].iter().all(|name| threads.contains_key(*name));
        let once = threads.iter().all(|(name, count)| *count == 1 && name != "load-open");
        (known && once).then_some(())
    })
    .await;
}

//! A store of a thousand models.

use std::{fs, time::Duration};

use super::*;
use crate::harness::{call, store};

const MODELS: usize = 1000;
/// For a debug build on a machine that has other things to do; `benches/RESULTS.md` has the figures.
const BOUND: Duration = Duration::from_secs(300);

#[tokio::test]
async fn a_thousand_models_of_three_versions_start() {
    let store = Store::new();
    let one = store.beside_folder("one");
    for version in ["1.0.0", "1.0.1", "1.0.2"] {
        fs::create_dir(one.join(version)).expect("a folder");
        fs::copy(fixture("onnx/tiny.onnx"), one.join(version).join("model.onnx")).expect("a copy");
    }
    for number in 0..MODELS {
        store::copy_folder(&one, &store.path().join(format!("tiny-{number}")));
    }
    let server = Server::begin(store, &[]).await;
    let mut admin = server.admin().await;
    eventually("every model serves its highest version", BOUND, async || {
        let listed = admin.list_models(call(ListModelsRequest::default())).await.expect("a list").into_inner();
        let ready = listed.models.iter().filter(|model| model.stable == "1.0.2").count();
        (ready == MODELS).then_some(())
    })
    .await;
    server.ready().await;
    assert!(!server.log().contains("failed to load"));
    let mut request = request("");
    request.model = format!("tiny-{}", MODELS - 1);
    let answer = server.predict(request).await.expect("an answer");
    assert_eq!(answer.served.expect("who served").version, "1.0.2");
}

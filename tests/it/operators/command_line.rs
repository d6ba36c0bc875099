//! Every verb of `sconce`, as a person and a script use it.

use serde_json::{Value, json};

use super::{answering, route, two_versions};
use crate::{
    commands::{fails, run, succeeds, text},
    harness::{PATIENCE, Server, Store, eventually},
    proto::VersionState,
};

#[track_caller]
fn changed(server: &Server, arguments: &[&str]) -> Value {
    let printed = succeeds(server, &[arguments, &["--json", "--caller=me"]].concat(), "");
    serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{printed}: {error}"))
}

#[tokio::test]
async fn each_verb_does_what_it_says() {
    let server = Server::start(two_versions(), &[]).await;
    let promoted = changed(&server, &["promote", "tiny", "1.0.0", "--reason=better", "--request-id=one"]);
    assert_eq!((&promoted["settled"], &promoted["revision"]), (&json!("ready"), &json!(1)));
    assert_eq!(answering(&server).await.expect("an answer"), "1.0.0");
    let repeated = changed(&server, &["promote", "tiny", "1.0.0", "--request-id=one"]);
    assert_eq!((&repeated["repeated"], &repeated["revision"]), (&json!(true), &json!(1)));
    assert_eq!((&repeated["time"], &repeated["stable"]), (&promoted["time"], &promoted["stable"]));

    assert_eq!(changed(&server, &["rollback", "tiny"])["stable"], "1.1.0");
    assert_eq!(answering(&server).await.expect("an answer"), "1.1.0");
    assert_eq!(route(&server).await.rejected, ["1.0.0"]);
    assert_eq!(changed(&server, &["unpin", "tiny"])["stable"], "latest");
    changed(&server, &["label", "tiny", "prod=1.1.0", "old=1.0.0"]);
    assert_eq!(route(&server).await.labels.len(), 2);
    changed(&server, &["label", "tiny", "--remove=old"]);
    assert_eq!(route(&server).await.labels, [("prod".to_owned(), "1.1.0".to_owned())].into());
    changed(&server, &["load", "tiny", "1.0.0"]);
    server.reaches("tiny", "1.0.0", VersionState::Ready).await;
    changed(&server, &["unload", "tiny", "1.0.0"]);
    server.reaches("tiny", "1.0.0", VersionState::Available).await;
    assert_eq!(changed(&server, &["unload", "tiny", "1.0.0"])["changed"], false);
    let ready = || server.log().matches("version ready").count();
    let before = ready();
    assert_eq!(changed(&server, &["reload", "tiny"])["settled"], "ready");
    assert!(ready() > before, "it is answered when the servables are made anew");
    changed(&server, &["disable", "tiny", "--reason=bad ticks"]);
    assert!(answering(&server).await.expect_err("it is disabled").message().contains("bad ticks"));
    changed(&server, &["enable", "tiny"]);
    eventually("it answers", PATIENCE, async || answering(&server).await.ok()).await;

    let people = succeeds(&server, &["describe", "tiny"], "");
    for words in ["prod → 1.1.0", "enable, by me", "the highest version that is ready"] {
        assert!(people.contains(words), "'{words}' is not in\n{people}");
    }
    let shown: Value = serde_json::from_str(&succeeds(&server, &["describe", "tiny", "--json"], "")).expect("JSON");
    assert_eq!(shown["route"]["history"].as_array().map(Vec::len), Some(10), "{}", shown["route"]);
    server.assert_unharmed().await;
}

#[tokio::test]
async fn an_unload_of_what_model_yaml_selects_says_why_it_stays() {
    let server = Server::start(two_versions().file("tiny/model.yaml", "versions: all"), &[]).await;
    let said = succeeds(&server, &["unload", "tiny", "v1"], "");
    assert!(said.contains("(it was so already)") && said.contains("1.0.0 stays loaded"), "{said}");
    assert!(said.contains("model.yaml selects it"), "{said}");
}

#[tokio::test]
async fn what_fails_says_why_and_ends_with_1() {
    let server = Server::start(two_versions(), &[]).await;
    fails(&server, &["promote", "tiny", "9.0.0"], 1, &["NOT_FOUND (VERSION_NOT_FOUND)", "1.1.0"]);
    fails(&server, &["promote", "other", "1.0.0"], 1, &["MODEL_NOT_FOUND", "the models are tiny"]);
    fails(&server, &["rollback", "tiny", "--expected-revision=7"], 1, &["ABORTED (REVISION_MOVED)"]);
    fails(&server, &["label", "tiny"], 2, &["NAME=VERSION"]);
    fails(&server, &["log-level", "sconce=loud"], 1, &["INVALID_LOG_LEVEL"]);
    fails(&server, &["models", "nosuch*"], 1, &["no model's name matches 'nosuch*'"]);
    let broken = server.store.beside("broken.onnx");
    std::fs::write(&broken, b"no model").expect("a file");
    server.store.add("tiny", "0.9.0", &broken);
    server.reaches("tiny", "0.9.0", VersionState::Available).await;
    fails(&server, &["promote", "tiny", "0.9.0"], 1, &["it is written", "LOAD_FAILED"]);
}

#[tokio::test]
async fn the_server_is_shown_and_its_log_is_turned() {
    let server = Server::start(two_versions(), &[]).await;
    let info: Value = serde_json::from_str(&succeeds(&server, &["info", "--json"], "")).expect("JSON");
    assert_eq!((&info["ready"], &info["ports"]["grpc"]), (&json!(true), &json!(server.ports.grpc)));
    let people = succeeds(&server, &["info"], "");
    for words in ["state      ready", "onnxruntime", "poll_interval", "flag", "info,sconce=debug"] {
        assert!(people.contains(words), "'{words}' is not in\n{people}");
    }
    assert_eq!(succeeds(&server, &["log-level"], ""), "info,sconce=debug\n");
    assert_eq!(succeeds(&server, &["log-level", "warn"], ""), "warn instead of info,sconce=debug\n");
    assert_eq!(succeeds(&server, &["log-level"], ""), "warn\n");
    server.store.write("tiny/1.2.0/model.onnx", "no model");
    assert!(succeeds(&server, &["refresh"], "").contains("was looked at"));
    assert!(server.version("tiny", "1.2.0").await.is_some(), "it was looked at");
}

#[tokio::test]
async fn watch_writes_a_line_for_each_event() {
    let server = Server::start(two_versions(), &[]).await;
    let people = succeeds(&server, &["watch", "--all", "-n", "3"], "");
    assert!(people.contains("1 model_appeared tiny\n") && people.contains("version_ready tiny 1.1.0\n"), "{people}");
    let output = run(&server, &["watch", "t*", "--after=1", "-n", "2", "--json"], "");
    let lines: Vec<Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
    let shown: Vec<(&str, u64)> = lines
        .iter()
        .skip(1)
        .map(|line| (line["kind"].as_str().unwrap_or_default(), line["sequence"].as_u64().unwrap_or_default()))
        .collect();
    assert_eq!(lines[0]["kind"], "started");
    assert_eq!(shown, [("version_loading", 2), ("version_ready", 3)]);
}

#[tokio::test]
async fn each_option_is_shown_with_who_said_it() {
    let store = Store::new().sample("early-signal");
    let config = store.beside("sconce.yaml");
    std::fs::write(&config, "defaults:\n  warmup_budget: 50ms\n  versions: all\n").expect("a file");
    let server = Server::start(store, &[&format!("--config={}", config.display())]).await;
    let model = server.describe("early-signal").await;
    let said = |key: &str| {
        let setting = model.settings.iter().find(|setting| setting.key == key).expect("it is listed");
        (setting.value.as_str(), setting.source.as_str())
    };
    assert_eq!(said("warmup_budget"), ("50ms", "defaults of the server"));
    assert_eq!(said("versions"), ("{ latest: 2 }", "model.yaml"));
    assert_eq!(said("batching.max_batch_size"), ("64", "default"));
    for version in &model.versions {
        assert!(version.settings.iter().any(|setting| setting.key == "inputs" && setting.source == "version.yaml"));
    }
}

//! Damaged artifacts: each sample cut at 100 places and altered at 200.
//!
//! With a version.yaml the checksum says so before anything is opened. Without one the throw-away child is what stands
//! between a library that crashes and the server.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::{
    harness::{
        Server, Store, call, eventually, has_torch, root,
        store::SAMPLES,
        tensors::{Form, Values, sample_examples},
    },
    proto::*,
};

const CUTS: usize = 100;
const CHANGES: usize = 200;

fn artifact(model: &str) -> (String, Vec<u8>) {
    let folder = root().join("model-store").join(model).join("1.0.0");
    let names = ["model.onnx", "model.pt", "model.txt"];
    let name = names.into_iter().find(|name| folder.join(name).exists()).expect("an artifact");
    (name.to_owned(), std::fs::read(folder.join(name)).expect("a sample"))
}

/// The artifact with each damage: first the cuts, then the changes, all at even distances.
fn damaged(whole: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let cuts = (0..CUTS).map(|place| whole[..place * whole.len() / CUTS].to_vec());
    let mut seed = fastrand::Rng::with_seed(whole.len() as u64);
    let changes = (0..CHANGES).map(move |place| {
        let mut changed = whole.to_vec();
        let at = place * whole.len() / CHANGES + seed.usize(0..whole.len() / CHANGES);
        // In text a digit is the most treacherous: the file still parses.
        changed[at] = match changed[at] {
            digit @ b'0'..=b'9' => b'0' + (digit - b'0' + seed.u8(1..10)) % 10,
            byte => byte ^ (1 << seed.u32(0..8)),
        };
        changed
    });
    cuts.chain(changes)
}

/// A store with a good version 9 of each model and its damaged ones below.
fn store(models: &[&str], with_checksums: bool) -> (Store, usize) {
    let mut store = Store::new();
    let mut count = 0;
    for model in models {
        store = store.sample(model);
        let samples = store.path().join(model);
        let good = samples.join("9.0.0");
        std::fs::rename(samples.join("1.0.0"), &good).expect("a rename");
        if samples.join("1.1.0").exists() {
            store.remove(&format!("{model}/1.1.0"));
        }
        let yaml = std::fs::read_to_string(samples.join("model.yaml")).expect("a model.yaml");
        let yaml: Vec<&str> = yaml.lines().filter(|line| !line.starts_with("versions:")).collect();
        store.write(&format!("{model}/model.yaml"), format!("{}\nversions: all\n", yaml.join("\n")));
        let (name, whole) = artifact(model);
        for (number, bytes) in damaged(&whole).enumerate() {
            let version = format!("{model}/1.0.{number}");
            store.write(&format!("{version}/{name}"), bytes);
            // The example would catch an artifact that merely answers otherwise; without it, the library is on its own.
            let besides = ["normalizer.json", "version.yaml", "example.json"].into_iter().take(if with_checksums {
                3
            } else {
                2
            });
            for beside in besides.filter(|beside| good.join(beside).exists()) {
                let text = std::fs::read_to_string(good.join(beside)).expect("a text");
                let text = if beside == "version.yaml" && !with_checksums { without_files(&text) } else { text };
                store.write(&format!("{version}/{beside}"), text);
            }
            count += 1;
        }
    }
    (store, count)
}

/// version.yaml without the checksums of the files.
fn without_files(yaml: &str) -> String {
    let mut kept = Vec::new();
    let mut inside = false;
    for line in yaml.lines() {
        inside = line == "files:" || (inside && line.starts_with([' ', '-']));
        if !inside {
            kept.push(line);
        }
    }
    kept.join("\n") + "\n"
}

async fn assert_good_ones_answer(server: &Server, models: &[&str]) {
    let mut client = server.inference().await;
    for model in models {
        let file = sample_examples(model, "1.0.0");
        let example = file.examples.iter().find(|example| !example.request.inputs.is_empty()).expect("a tensor");
        let request = PredictRequest {
            model: (*model).to_owned(),
            select: Some(predict_request::Select::Version("9.0.0".into())),
            inputs: example
                .request
                .inputs
                .iter()
                .map(|tensor| Values::of_example(tensor).to_sconce(Form::Raw))
                .collect(),
            ..Default::default()
        };
        let answer =
            client.predict(call(request)).await.unwrap_or_else(|status| panic!("{model}: {status}")).into_inner();
        for (ours, theirs) in answer.outputs.iter().zip(&example.response.outputs) {
            Values::of_sconce(ours).assert_is(model, &Values::of_example(theirs), example.rtol, example.atol);
        }
    }
}

/// Waits until every version is decided, while the good ones answer; then how many ended in which way.
async fn decided(server: &Server, models: &[&str], within: Duration) -> BTreeMap<String, usize> {
    for model in models {
        server.reaches(model, "9.0.0", VersionState::Ready).await;
    }
    let mut endings = BTreeMap::new();
    for model in models {
        let described = eventually(&format!("{model} is decided"), within, async || {
            assert_good_ones_answer(server, models).await;
            let described = server.describe(model).await;
            let is_open =
                |version: &VersionStatus| !matches!(version.state(), VersionState::Ready | VersionState::Failed);
            (!described.versions.iter().any(is_open)).then_some(described)
        })
        .await;
        for version in described.versions.iter().filter(|version| version.version != "9.0.0") {
            if version.state() == VersionState::Failed {
                assert!(!version.reason.is_empty() && !version.message.is_empty(), "{model}: {version:?}");
                assert!(!version.message.contains("/tmp"), "{model}: {}", version.message);
            }
            let ending = if version.reason.is_empty() { "served" } else { &version.reason };
            *endings.entry(format!("{model} {ending}")).or_default() += 1;
        }
    }
    assert_good_ones_answer(server, models).await;
    server.assert_unharmed().await;
    endings
}

fn samples() -> Vec<&'static str> {
    SAMPLES.into_iter().filter(|model| *model != "volatility-transformer" || has_torch()).collect()
}

#[tokio::test]
async fn a_checksum_that_does_not_match_is_all_that_is_looked_at() {
    let models = samples();
    let (store, count) = store(&models, true);
    assert_eq!(count, models.len() * (CUTS + CHANGES));
    let server = Server::begin(store, &["--loads-at-once=4"]).await;
    let endings = decided(&server, &models, Duration::from_secs(90)).await;
    let expected: BTreeMap<String, usize> =
        models.iter().map(|model| (format!("{model} DIGEST_MISMATCH"), CUTS + CHANGES)).collect();
    assert_eq!(endings, expected);
}

#[tokio::test]
async fn without_a_checksum_the_child_takes_the_damage() {
    let models = samples();
    let (store, count) = store(&models, false);
    assert_eq!(count, models.len() * (CUTS + CHANGES));
    let begun = Instant::now();
    let server = Server::begin(store, &["--child-time=5s"]).await;
    let endings = decided(&server, &models, Duration::from_secs(600)).await;
    eprintln!("{count} damaged versions in {:?}: {endings:#?}", begun.elapsed());
    assert_eq!(endings.values().sum::<usize>(), count);
}

//! What `sconce serve` prints once it serves: the models, the addresses, and lines to paste.

use std::{fmt::Write as _, path::Path};

use super::{
    paste,
    stored::{self, Stored},
    table::table,
};
use crate::{
    catalog::{ModelEntry, Snapshot, State, VersionEntry},
    config::{Config, Listening},
    store::Location,
    telemetry::logs::escape,
};

/// All that is shown.
pub struct Banner<'a> {
    pub snapshot: &'a Snapshot,
    pub listening: Listening,
    /// The store, or the one file.
    pub source: &'a Path,
    pub cores: usize,
    pub memory: u64,
    /// How this program was called, so that the lines call it the same way.
    pub program: &'a str,
    pub examples: Examples,
}

/// What the ready models bring to paste.
#[derive(Default)]
pub struct Examples {
    /// The first of the first model that has any.
    any: Option<Stored>,
    /// Of those whose tensors are short to write out, the first whose answer cannot be taken for a default.
    tensors: Option<Stored>,
}

/// Models that are looked into for examples: the banner of a store of thousands does not wait for them all.
const LOOKED_INTO_MAX: usize = 32;

/// The text, its last line ended.
pub fn banner(banner: &Banner<'_>) -> String {
    let mut text = format!("Sconce {} serves {}\n\n", env!("CARGO_PKG_VERSION"), banner.source.display());
    let models = sorted(banner.snapshot);
    let rows: Vec<[String; 5]> = models.iter().flat_map(|model| model_rows(model)).collect();
    text += &match rows.is_empty() {
        true => "no models yet; it goes on looking\n".to_string(),
        false => table(["MODEL", "VERSION", "PLATFORM", "STATE", ""], &rows),
    };
    let Listening { grpc, grpc_admin, http, metrics } = banner.listening;
    let _ = write!(
        text,
        "\ngRPC inference  {grpc}\ngRPC admin      {grpc_admin}\nHTTP health     http://{http}/readyz\n\
         metrics         http://{metrics}/metrics\ncores {}, a thread a run, memory {:.1} GiB\n",
        banner.cores,
        banner.memory as f64 / (1u64 << 30) as f64
    );
    let lines = lines(banner, &models);
    if !lines.is_empty() {
        let _ = write!(text, "\nTo paste:\n\n{}\n", lines.join("\n\n"));
    }
    text
}

fn lines(banner: &Banner<'_>, models: &[&ModelEntry]) -> Vec<String> {
    let address = banner.listening.grpc;
    let ready = models.iter().find_map(|model| Some((model.name.as_str(), ready_version(model)?.signature()?)));
    let mut lines = Vec::new();
    match (&banner.examples.any, ready) {
        (Some(stored), _) => {
            lines.push(paste::example_line(banner.program, stored, banner.source, address));
            lines.push(paste::predict_line(banner.program, stored, banner.source, address));
        }
        (None, Some((model, signature))) => lines.push(paste::grpcurl_line(model, signature, address)),
        (None, None) => {}
    }
    match (&banner.examples.tensors, ready) {
        (Some(stored), _) => lines.push(paste::python_example(stored, address)),
        (None, Some((model, signature))) => lines.push(paste::python_zeros(model, signature, address)),
        (None, None) => {}
    }
    lines
}

/// A line for each version that is or should be served, or one for a model that has none.
fn model_rows(model: &ModelEntry) -> Vec<[String; 5]> {
    let shown = model.versions.iter().rev().filter(|(_, version)| version.state != State::Available);
    let mut rows: Vec<[String; 5]> = shown
        .map(|(number, version)| {
            [
                model.name.to_string(),
                number.to_string(),
                version.platform.map(|platform| platform.to_string()).unwrap_or_default(),
                state(version.state).into(),
                why(version),
            ]
        })
        .collect();
    if let (true, message) = (rows.is_empty() || model.message.is_some(), model.message.clone()) {
        let message = message.unwrap_or_else(|| "no version to serve".into());
        rows.push([model.name.to_string(), String::new(), String::new(), String::new(), message]);
    }
    rows
}

fn state(state: State) -> &'static str {
    match state {
        State::Available => "available",
        State::Loading => "loading",
        State::Ready => "ready",
        State::Draining => "draining",
        State::Failed => "FAILED",
    }
}

/// What is wrong with a version, or was noticed; in one cell.
fn why(version: &VersionEntry) -> String {
    match &version.cause {
        Some(cause) => escape(cause.message()),
        None => version.notes.join("; "),
    }
}

fn sorted(snapshot: &Snapshot) -> Vec<&ModelEntry> {
    let mut models: Vec<&ModelEntry> = snapshot.models.values().map(|model| &**model).collect();
    models.sort_by(|a, b| a.name.cmp(&b.name));
    models
}

fn ready_version(model: &ModelEntry) -> Option<&VersionEntry> {
    model.versions.get(&model.stable?)
}

/// Whether all that the lines would print is 0, 0.5 and 1.
fn looks_like_a_default(stored: &Stored) -> bool {
    let is_round = |value: &serde_json::Value| value.as_f64().is_some_and(|value| [0.0, 0.5, 1.0].contains(&value));
    stored.example.response.outputs.first().is_none_or(|output| output.data.iter().all(is_round))
}

// === impl Examples ===

impl Examples {
    /// Looks into the store's folders of the ready models, in the order of their names.
    pub fn find(snapshot: &Snapshot, config: &Config) -> Self {
        let Some(store) = config.store.model_store.as_ref().and_then(Location::folder) else {
            return Self::default();
        };
        let mut examples = Self::default();
        let ready = sorted(snapshot).into_iter().filter(|model| model.is_ready());
        for model in ready.take(LOOKED_INTO_MAX) {
            let version = model.stable.map(|version| version.to_string());
            let Ok(all) = stored::all(store, model.name.as_str(), version.as_deref()) else {
                continue;
            };
            if examples.any.is_none() {
                examples.any = all.first().cloned();
            }
            let known = examples.tensors.take().into_iter();
            let short = known.chain(all).filter(|stored| paste::literal_elements(&stored.example).is_some());
            // The first of equals.
            examples.tensors = short.min_by_key(looks_like_a_default);
        }
        examples
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        error::Error,
        model::{ExampleFile, ModelName, Platform},
    };
    use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::SystemTime};

    fn version(state: State, cause: Option<Error>) -> VersionEntry {
        VersionEntry {
            platform: Some(Platform::Lightgbm),
            state,
            since: SystemTime::UNIX_EPOCH,
            cause,
            notes: vec![],
            settings: Default::default(),
            metrics: BTreeMap::new(),
            digest: String::new(),
            artifact_bytes: 0,
            memory_bytes: 0,
            gpu_bytes: 0,
            servable: None,
        }
    }

    fn snapshot() -> Snapshot {
        let name = ModelName::new("early").unwrap();
        let failed = version(State::Failed, Some(Error::internal("X", "cut\nshort")));
        let entry = ModelEntry {
            name: name.clone(),
            versions: [
                ("1".parse().unwrap(), version(State::Ready, None)),
                ("2".parse().unwrap(), failed),
                ("0.3".parse().unwrap(), version(State::Available, None)),
            ]
            .into(),
            stable: Some("1".parse().unwrap()),
            policy: Default::default(),
            route: Default::default(),
            revision: 0,
            pending: None,
            disabled: None,
            remade: false,
            settings: Default::default(),
            message: None,
            refused: Default::default(),
        };
        Snapshot { models: [(name, Arc::new(entry))].into(), ..Default::default() }
    }

    fn stored() -> Option<Stored> {
        let text = r#"{"examples": [{"request": {"inputs": [{"name": "a", "datatype": "FP64", "shape": [], "data": [0]}]},
            "response": {"outputs": [{"name": "p", "datatype": "FP64", "shape": [], "data": [0]}]}}]}"#;
        Some(Stored {
            model: ModelName::new("early").unwrap(),
            version: "1".parse().unwrap(),
            is_highest: true,
            file: "my store/early/1/example.json".into(),
            index: 0,
            example: ExampleFile::parse(text).unwrap().examples.remove(0),
        })
    }

    fn shown(examples: Examples) -> String {
        let address = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        banner(&Banner {
            snapshot: &snapshot(),
            listening: Listening {
                grpc: address(7070),
                grpc_admin: address(7071),
                http: address(8080),
                metrics: address(8082),
            },
            source: Path::new("my store"),
            cores: 2,
            memory: 3 << 29,
            program: "target/release/sconce",
            examples,
        })
    }

    #[test]
    fn an_answer_of_halves_looks_like_a_default() {
        let with = |data: serde_json::Value| {
            let mut stored = stored().unwrap();
            stored.example.response.outputs[0].data = data.as_array().unwrap().clone();
            looks_like_a_default(&stored)
        };
        assert!(with(serde_json::json!([0.5, 0, 1.0])));
        assert!(!with(serde_json::json!([0.5, 0.52])));
        assert!(!with(serde_json::json!(["up"])));
    }

    #[test]
    fn it_shows_what_is_served_and_what_is_not_and_why() {
        let text = shown(Examples::default());
        assert!(
            text.contains("early  2.0.0    lightgbm  FAILED  cut\\nshort\nearly  1.0.0    lightgbm  ready\n\n"),
            "{text}"
        );
        assert!(text.contains("gRPC inference  127.0.0.1:7070\n") && text.contains("memory 1.5 GiB"), "{text}");
        assert!(!text.contains("0.3.0") && !text.contains("To paste"), "{text}");
    }

    #[test]
    fn the_lines_name_the_program_the_store_and_the_address() {
        let text = shown(Examples { any: stored(), tensors: stored() });
        assert!(text.contains(
            "target/release/sconce example early --model-store 'my store' | grpcurl -plaintext -d @ 127.0.0.1:7070 sconce.v1.Inference/Predict\n"
        ), "{text}");
        assert!(text.contains("\ntarget/release/sconce predict early --example --model-store 'my store'\n"), "{text}");
        assert!(text.contains(r#"infer("early", [x], model_version="1.0.0")"#), "{text}");
        assert!(text.contains(r#"print(answer.as_numpy("p"))"#), "{text}");
        let older = stored().map(|stored| Stored { is_highest: false, ..stored });
        let text = shown(Examples { any: older, tensors: None });
        assert!(text.contains("example early --version 1.0.0 --model-store"), "{text}");
        assert!(text.contains("predict early --example --version 1.0.0 --model"), "{text}");
    }
}

//! What is swapped, what is asked of it, and how an answer tells whose it is.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use prost::Message;
use sconce::{
    cli::bench::wire::{Answer, MODEL_INFER, call, connect, frame, head},
    model::{ExampleFile, ExampleTensor},
    server::proto::inference::{ModelInferRequest, ModelInferResponse, model_infer_request::InferInputTensor},
};
use tokio::task::JoinSet;

use crate::{
    repository,
    versions::{Published, adder, publish},
};

/// A model of which every version is known by its number: `1.0.N`.
pub struct Target {
    pub model: String,
    store: PathBuf,
    kind: Kind,
}

enum Kind {
    /// Version N adds N · `OFFSET`: the answer itself says who gave it.
    Adder,
    Sample(Box<Sample>),
}

/// Copies of a version of the sample store.
struct Sample {
    files: Vec<(String, Vec<u8>)>,
    /// What its version.yaml says beside the files.
    about: String,
    /// Of its example, and the answer that must come.
    request: ModelInferRequest,
    answer: Vec<f64>,
    rtol: f64,
}

/// Requests, and whose answers they are.
pub struct Asking {
    messages: Vec<Bytes>,
    kind: Expected,
}

enum Expected {
    /// What each message's value is, before anything is added.
    Sums(Vec<f32>),
    Values {
        answer: Vec<f64>,
        rtol: f64,
    },
}

/// Connections that take turns.
#[derive(Clone)]
pub struct Clients {
    clients: Arc<[SendRequest<Bytes>]>,
    head: Arc<Request<()>>,
    asking: Arc<Asking>,
}

const CONNECTIONS: usize = 4;
/// Sums stay below 2^24: FP32 has them exactly.
const OFFSET: u64 = 10_000;
const VALUES: u64 = 1_000;
/// Of versions in the store: the publisher removes older ones, as publishers do.
const KEPT: u64 = 5;
const ATOL: f64 = 1e-6;

// === impl Target ===

impl Target {
    /// `folder` gets a store with version 1.
    pub fn adder(folder: &Path) -> Result<Self> {
        let target = Self { model: "adder".into(), store: folder.join("store"), kind: Kind::Adder };
        fs::create_dir_all(target.dir())?;
        target.publish(1)?;
        Ok(target)
    }

    /// `folder` gets a store with a copy of the highest version of a sample as version 1.
    pub fn sample(model: &str, folder: &Path) -> Result<Self> {
        let source = repository("model-store").join(model);
        let version = fs::read_dir(&source).with_context(|| format!("no sample model '{model}'"))?;
        let version = version.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).max();
        let version = version.context("the sample has no version")?;
        let mut files = Vec::new();
        for file in fs::read_dir(&version)? {
            let file = file?;
            files.push((file.file_name().to_string_lossy().into_owned(), fs::read(file.path())?));
        }
        files.retain(|(name, _)| name != "version.yaml");
        let about = without_files(&fs::read_to_string(version.join("version.yaml"))?);
        let example = ExampleFile::parse(&fs::read_to_string(version.join("example.json"))?)?.examples.remove(0);
        ensure!(!example.request.inputs.is_empty(), "the example of '{model}' is no tensors");
        let outputs = example.response.outputs.iter();
        let answer = outputs.flat_map(|output| &output.data).map(|value| value.as_f64().unwrap_or(f64::NAN));
        let target = Self {
            model: model.into(),
            store: folder.join("store"),
            kind: Kind::Sample(Box::new(Sample {
                files,
                about,
                request: request(model, &example.request.inputs)?,
                answer: answer.collect(),
                rtol: example.rtol,
            })),
        };
        fs::create_dir_all(target.dir())?;
        fs::copy(source.join("model.yaml"), target.dir().join("model.yaml"))?;
        target.publish(1)?;
        Ok(target)
    }

    pub fn store(&self) -> &Path {
        &self.store
    }

    fn dir(&self) -> PathBuf {
        self.store.join(&self.model)
    }

    pub fn version(number: u64) -> String {
        format!("1.0.{number}")
    }

    /// Writes the version and renames it into place. Blocks.
    pub fn publish(&self, number: u64) -> Result<Published> {
        let version = Self::version(number);
        Ok(match &self.kind {
            Kind::Adder => {
                let model = adder((number * OFFSET) as f32);
                publish(&self.dir(), &version, &[("model.onnx", &model)], "")?
            }
            Kind::Sample(sample) => {
                let files: Vec<(&str, &[u8])> =
                    sample.files.iter().map(|(name, bytes)| (&name[..], &bytes[..])).collect();
                publish(&self.dir(), &version, &files, &sample.about)?
            }
        })
    }

    /// Removes what no publisher would keep beside version `number`.
    pub fn prune(&self, number: u64) -> Result<()> {
        let old = self.dir().join(Self::version(number.saturating_sub(KEPT)));
        if old.exists() {
            fs::remove_dir_all(old)?;
        }
        Ok(())
    }

    pub fn asking(&self) -> Result<Asking> {
        Ok(match &self.kind {
            Kind::Adder => {
                let values: Vec<f32> = (0..VALUES).map(|value| value as f32).collect();
                let messages = values.iter().map(|value| frame(&adder_request(*value)));
                Asking { messages: messages.collect(), kind: Expected::Sums(values) }
            }
            Kind::Sample(sample) => Asking {
                messages: vec![frame(&sample.request)],
                kind: Expected::Values { answer: sample.answer.clone(), rtol: sample.rtol },
            },
        })
    }
}

/// `version.yaml` without what names its files: a copy gets its own.
fn without_files(text: &str) -> String {
    let mut inside = false;
    let kept = text.lines().filter(|line| {
        inside = line.starts_with("files:") || (inside && line.starts_with([' ', '#']));
        !inside
    });
    kept.fold(String::new(), |text, line| text + line + "\n")
}

fn adder_request(value: f32) -> ModelInferRequest {
    ModelInferRequest {
        model_name: "adder".into(),
        inputs: vec![InferInputTensor {
            name: "x".into(),
            datatype: "FP32".into(),
            shape: vec![1, 1],
            ..Default::default()
        }],
        raw_input_contents: vec![value.to_le_bytes().to_vec().into()],
        ..Default::default()
    }
}

fn request(model: &str, inputs: &[ExampleTensor]) -> Result<ModelInferRequest> {
    let mut request = ModelInferRequest { model_name: model.into(), ..Default::default() };
    for tensor in inputs {
        let shape = tensor.shape.iter().map(|&size| size as i64).collect();
        let raw = tensor.to_input()?.contents.into_bytes(&tensor.name, tensor.datatype)?;
        request.inputs.push(InferInputTensor {
            name: tensor.name.clone(),
            datatype: tensor.datatype.as_str().into(),
            shape,
            ..Default::default()
        });
        request.raw_input_contents.push(raw);
    }
    Ok(request)
}

// === impl Asking ===

impl Asking {
    /// The number of the version that answered, if the answer is one that this version gives.
    fn who_answered(&self, place: usize, answer: &[u8]) -> Result<u64> {
        let answer = ModelInferResponse::decode(answer)?;
        let number = answer.model_version.strip_prefix("1.0.").and_then(|number| number.parse::<u64>().ok());
        let number = number.with_context(|| format!("version '{}' answered", answer.model_version))?;
        let raw = answer.raw_output_contents.concat();
        let wide = answer.outputs.first().is_some_and(|output| output.datatype == "FP64");
        let found: Vec<f64> = match wide {
            true => raw.as_chunks().0.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect(),
            false => raw.as_chunks().0.iter().map(|&bytes| f64::from(f32::from_le_bytes(bytes))).collect(),
        };
        let right = match &self.kind {
            Expected::Sums(values) => found == [f64::from(values[place]) + (number * OFFSET) as f64],
            Expected::Values { answer, rtol } => {
                let close = |(found, wanted): (&f64, &f64)| (found - wanted).abs() <= ATOL + rtol * wanted.abs();
                found.len() == answer.len() && found.iter().zip(answer).all(close)
            }
        };
        ensure!(right, "{} answered {found:?}", answer.model_version);
        Ok(number)
    }
}

// === impl Clients ===

impl Clients {
    pub async fn connect(address: SocketAddr, asking: Asking) -> Result<Self> {
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS {
            clients.push(connect(address).await?);
        }
        Ok(Self {
            clients: clients.into(),
            head: Arc::new(head(&address.to_string(), MODEL_INFER, None)?),
            asking: Arc::new(asking),
        })
    }

    pub async fn ask(self, number: u64) -> Result<u64, String> {
        let turn = number as usize;
        let mut client = self.clients[turn % self.clients.len()].clone();
        let place = turn % self.asking.messages.len();
        let answer = call(&mut client, &self.head, &self.asking.messages[place], Answer::Keep).await;
        let who = answer.map_err(anyhow::Error::new).and_then(|answer| self.asking.who_answered(place, &answer));
        who.map_err(|error| format!("{error:#}"))
    }

    /// Calls a second with two in flight on each connection: what half of is a load that leaves room.
    pub async fn capacity(&self, measured: Duration) -> Result<f64> {
        let begun = Instant::now();
        let mut callers = JoinSet::new();
        for place in 0..2 * CONNECTIONS {
            let clients = self.clone();
            callers.spawn(async move {
                let mut calls = 0u64;
                while begun.elapsed() < measured {
                    let turn = place + 2 * CONNECTIONS * calls as usize;
                    let mut client = clients.clients[turn % CONNECTIONS].clone();
                    let message = &clients.asking.messages[turn % clients.asking.messages.len()];
                    call(&mut client, &clients.head, message, Answer::Drop).await?;
                    calls += 1;
                }
                anyhow::Ok(calls)
            });
        }
        let mut calls = 0;
        while let Some(done) = callers.join_next().await {
            calls += done??;
        }
        Ok(calls as f64 / begun.elapsed().as_secs_f64())
    }
}

//! What is measured: models, their requests, the answers that must come out, and the loads.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use prost::Message;
use sconce::{
    cli::bench::wire::frame,
    model::{Contents, DType, ExampleFile, ExampleTensor, Normalizer, Platform, TensorInput, VersionYaml, bytes_from},
};

use crate::{
    generator::{Load, Traffic},
    inference::{
        ModelInferRequest, ModelInferResponse, model_infer_request::InferInputTensor,
        model_infer_response::InferOutputTensor,
    },
    kept::ENTRIES_MAX,
    mlp::Mlp,
};

/// One model, called in one way.
pub struct Case {
    pub name: &'static str,
    /// The model's name, which is its folder in the bench's store.
    pub model: &'static str,
    pub platform: Platform,
    pub loads: Vec<Load>,
    /// One row each.
    pub requests: Vec<ModelInferRequest>,
    /// The answer to the first request, as the example file has it.
    pub answer: ModelInferResponse,
    /// How far an answer's values may be off, of 1 or of themselves where they are larger.
    tolerance: f64,
}

const LOADS: [Load; 5] = [load(1, 1), load(8, 1), load(8, 8), load(64, 1), load(64, 8)];
const ONE_LOAD: [Load; 1] = [load(64, 8)];
/// One in flight, to be held against the same with batching.
pub const ALONE: [Load; 1] = [load(1, 1)];

/// Different rows of early-signal, so that trees and branch predictors do not see one path over and over.
const ROWS: usize = 64;
const SEED: u64 = 7;
/// FP32 widened to FP64 takes the same paths through the trees: the values at their leaves are the same numbers.
pub const TOLERANCE: f64 = 1e-9;
const MLP_TOLERANCE: f64 = 1e-3;
const MLP_WIDTHS: [usize; 4] = [256, 1024, 1024, 16];

pub const TINY: &str = "tiny ONNX";
pub const UNBATCHED: &str = "tiny ONNX without batching";
pub const MLP: &str = "perceptron 256-1024-1024-16";

const TINY_ONNX: &str = "tests/fixtures/onnx/tiny.onnx";
const TINY_EXAMPLE: &str = "tests/fixtures/onnx/tiny.json";
const EARLY_SIGNAL: &str = "model-store/early-signal/1.0.0";
/// early-signal under a name of its own, with a model.yaml that keeps answers.
pub const KEPT_MODEL: &str = "early-signal-kept";

/// And under another, with a second version that is asked as a shadow.
pub const SHADOWED_MODEL: &str = "early-signal-shadowed";

const fn load(in_flight: usize, connections: usize) -> Load {
    Load { in_flight, connections }
}

pub fn all() -> Result<Vec<Case>> {
    Ok(vec![
        tiny(TINY, "tiny", &LOADS)?,
        tiny(UNBATCHED, "tiny-unbatched", &ALONE)?,
        early_signal("early-signal FP64", DType::Fp64, &LOADS)?,
        early_signal("early-signal FP32", DType::Fp32, &ONE_LOAD)?,
        perceptron()?,
    ])
}

/// Writes the models of all cases into `store`, one version each.
pub fn make_store(store: &Path) -> Result<()> {
    for model in ["tiny", "tiny-unbatched", "mlp"] {
        fs::create_dir_all(store.join(model).join("1"))?;
    }
    for model in ["tiny", "tiny-unbatched"] {
        fs::copy(repository(TINY_ONNX), store.join(model).join("1/model.onnx"))?;
    }
    fs::write(store.join("tiny-unbatched/model.yaml"), "batching: off\n")?;
    fs::write(store.join("mlp/1/model.onnx"), Mlp::new(&MLP_WIDTHS).onnx())?;
    let model_yaml = fs::read_to_string(repository(EARLY_SIGNAL).with_file_name("model.yaml"))?;
    let kept = format!("{model_yaml}\ncache: {{ ttl: 1h, max_entries: {ENTRIES_MAX} }}\n");
    let versions = [
        ("early-signal", "1.0.0", &model_yaml),
        (KEPT_MODEL, "1.0.0", &kept),
        (SHADOWED_MODEL, "1.0.0", &model_yaml),
        (SHADOWED_MODEL, "2.0.0", &model_yaml),
    ];
    for (model, version, yaml) in versions {
        let version = store.join(model).join(version);
        fs::create_dir_all(&version)?;
        for file in fs::read_dir(repository(EARLY_SIGNAL))? {
            let file = file?;
            fs::copy(file.path(), version.join(file.file_name()))?;
        }
        fs::write(store.join(model).join("model.yaml"), yaml)?;
    }
    let route = "stable: 1.0.0\nshadow: [{ version: 2.0.0, sample: 10 }]\n";
    fs::write(store.join(SHADOWED_MODEL).join("route.yaml"), route)?;
    Ok(())
}

/// A path from the root of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

// === impl Case ===

impl Case {
    pub fn traffic(&self) -> Arc<Traffic> {
        traffic(&self.requests, self.answer.clone(), self.tolerance)
    }

    /// The folder of the one version.
    pub fn version_dir(&self, store: &Path) -> PathBuf {
        let version = if self.model == "early-signal" { "1.0.0" } else { "1" };
        store.join(self.model).join(version)
    }
}

fn tiny(name: &'static str, model: &'static str, loads: &[Load]) -> Result<Case> {
    let example = ExampleFile::parse(&fs::read_to_string(repository(TINY_EXAMPLE))?)?.examples.remove(0);
    let inputs = example.request.inputs.iter().map(ExampleTensor::to_input);
    Ok(Case {
        name,
        model,
        platform: Platform::Onnx,
        loads: loads.into(),
        requests: vec![request(model, inputs.collect::<sconce::error::Result<_>>()?)?],
        answer: answer(&example.response.outputs)?,
        tolerance: TOLERANCE,
    })
}

/// The perceptron of SPEED's table: dear enough that its batches are what a core does.
fn perceptron() -> Result<Case> {
    let mlp = Mlp::new(&MLP_WIDTHS);
    let row = |number: usize| mlp.row(number as u64);
    let requests = (0..ROWS).map(|number| {
        let input = TensorInput {
            name: "x".into(),
            dtype: Some(DType::Fp32),
            shape: Some([1, MLP_WIDTHS[0]].into_iter().collect()),
            contents: Contents::Raw(bytes_from(row(number))),
        };
        request("mlp", vec![input])
    });
    let values: Vec<f32> = mlp.answer(&row(0)).into_iter().map(|value| value as f32).collect();
    let output = InferOutputTensor {
        name: "y".into(),
        datatype: "FP32".into(),
        shape: vec![1, values.len() as i64],
        ..InferOutputTensor::default()
    };
    let raw_output_contents = vec![bytes_from(values)];
    Ok(Case {
        name: MLP,
        model: "mlp",
        platform: Platform::Onnx,
        loads: ONE_LOAD.into(),
        requests: requests.collect::<Result<_>>()?,
        answer: ModelInferResponse { outputs: vec![output], raw_output_contents, ..ModelInferResponse::default() },
        tolerance: MLP_TOLERANCE,
    })
}

fn early_signal(name: &'static str, dtype: DType, loads: &[Load]) -> Result<Case> {
    let (requests, answer) = early_signal_requests("early-signal", dtype, ROWS)?;
    Ok(Case {
        name,
        model: "early-signal",
        platform: Platform::Lightgbm,
        loads: loads.into(),
        requests,
        answer,
        tolerance: TOLERANCE,
    })
}

/// One row each, and the first one's answer. The first is the example's, whose answer is known; the others are drawn around the
/// training data's mean.
pub fn early_signal_requests(
    model: &str,
    dtype: DType,
    rows: usize,
) -> Result<(Vec<ModelInferRequest>, ModelInferResponse)> {
    let read = |file: &str| fs::read_to_string(repository(EARLY_SIGNAL).join(file)).context(file.to_owned());
    let version = VersionYaml::parse(&read("version.yaml")?)?;
    let example = ExampleFile::parse(&read("example.json")?)?.examples.remove(0);
    let normalizer = Normalizer::parse(&read("normalizer.json")?)?;
    let input = version.inputs.unwrap_or_default().pop().context("version.yaml declares no input")?;
    ensure!(input.feature_names == normalizer.feature_names, "normalizer.json orders its features differently");
    let row = example.request.rows.first().context("the first example has no row")?;
    let known = input.feature_names.iter().map(|feature| row.get(feature).and_then(serde_json::Value::as_f64));
    let known: Vec<f64> = known.collect::<Option<_>>().context("the first example lacks a feature")?;

    let mut random = fastrand::Rng::with_seed(SEED);
    let mut drawn = || -> Vec<f64> {
        let features = normalizer.mean.iter().zip(&normalizer.scale);
        features.map(|(mean, scale)| mean + scale * (random.f64() * 4.0 - 2.0)).collect()
    };
    let rows = std::iter::once(known).chain(std::iter::repeat_with(&mut drawn).take(rows - 1));
    let requests = rows.map(|row| {
        let shape = [1, row.len()].into_iter().collect();
        let raw = match dtype {
            DType::Fp32 => bytes_from(row.iter().map(|&value| value as f32).collect()),
            _ => bytes_from(row),
        };
        let input = TensorInput {
            name: input.name.clone(),
            dtype: Some(dtype),
            shape: Some(shape),
            contents: Contents::Raw(raw),
        };
        request(model, vec![input])
    });
    Ok((requests.collect::<Result<_>>()?, answer(&example.response.outputs)?))
}

/// A tensor as the protocol has it: what it is in one place, its bytes in another.
struct Raw {
    name: String,
    datatype: String,
    shape: Vec<i64>,
    data: Bytes,
}

// === impl Raw ===

impl Raw {
    fn new(tensor: TensorInput) -> Result<Self> {
        let dtype = tensor.dtype.context("the bench's tensors have a type")?;
        let shape = tensor.shape.context("the bench's tensors have a shape")?;
        Ok(Self {
            datatype: dtype.as_str().into(),
            shape: shape.iter().map(|&size| size as i64).collect(),
            data: tensor.contents.into_bytes(&tensor.name, dtype)?,
            name: tensor.name,
        })
    }
}

fn request(model: &str, inputs: Vec<TensorInput>) -> Result<ModelInferRequest> {
    let mut request = ModelInferRequest { model_name: model.into(), ..ModelInferRequest::default() };
    for input in inputs {
        let raw = Raw::new(input)?;
        request.inputs.push(InferInputTensor {
            name: raw.name,
            datatype: raw.datatype,
            shape: raw.shape,
            ..InferInputTensor::default()
        });
        request.raw_input_contents.push(raw.data);
    }
    Ok(request)
}

/// The known answer, cut to its first row.
fn answer(outputs: &[ExampleTensor]) -> Result<ModelInferResponse> {
    let mut answer = ModelInferResponse::default();
    for output in outputs {
        let mut output = output.clone();
        let rows = std::mem::replace(output.shape.first_mut().context("an output without rows")?, 1);
        output.data.truncate(output.data.len() / rows.max(1));
        let raw = Raw::new(output.to_input()?)?;
        answer.outputs.push(InferOutputTensor {
            name: raw.name,
            datatype: raw.datatype,
            shape: raw.shape,
            ..InferOutputTensor::default()
        });
        answer.raw_output_contents.push(raw.data);
    }
    Ok(answer)
}

pub fn traffic(requests: &[ModelInferRequest], expected: ModelInferResponse, tolerance: f64) -> Arc<Traffic> {
    Arc::new(Traffic {
        messages: requests.iter().map(frame).collect(),
        check: Box::new(move |answer| check(&expected, answer, tolerance)),
    })
}

/// Whether an encoded answer holds the expected values.
fn check(expected: &ModelInferResponse, answer: &[u8], tolerance: f64) -> Result<()> {
    let answer = ModelInferResponse::decode(answer)?;
    ensure!(answer.outputs.len() == expected.outputs.len(), "{} outputs came", answer.outputs.len());
    for (place, output) in expected.outputs.iter().enumerate() {
        let found = &answer.outputs[place];
        ensure!(
            (&found.name, &found.datatype, &found.shape) == (&output.name, &output.datatype, &output.shape),
            "output '{}' came as '{}' {} {:?}",
            output.name,
            found.name,
            found.datatype,
            found.shape
        );
        let found = answer.raw_output_contents.get(place).context("an output without raw contents")?;
        let expected = values(&output.datatype, &expected.raw_output_contents[place])?;
        let found = values(&output.datatype, found)?;
        let equal = |(found, expected): (&f64, &f64)| (found - expected).abs() <= tolerance * expected.abs().max(1.0);
        ensure!(
            found.len() == expected.len() && found.iter().zip(&expected).all(equal),
            "output '{}' is {found:?} instead of {expected:?}",
            output.name
        );
    }
    Ok(())
}

fn values(datatype: &str, raw: &[u8]) -> Result<Vec<f64>> {
    Ok(match datatype {
        "FP32" => raw.as_chunks().0.iter().map(|&bytes| f64::from(f32::from_le_bytes(bytes))).collect(),
        "FP64" => raw.as_chunks().0.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect(),
        other => bail!("the bench reads no {other}"),
    })
}

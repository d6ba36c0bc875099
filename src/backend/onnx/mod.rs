//! ONNX models, run by ONNX Runtime on the CPU or, through its CUDA and TensorRT providers, on a GPU.
//!
//! `open` surveys the file (`proto`), refuses external data outside the version's folder (`external_data`), loads the
//! library (`library`) and the model, and takes the signature from it. The weights are loaded once; sessions share them
//! (`ffi::Model`). Every `unsafe` of the backend is in `ffi`.

mod divisions;
mod external_data;
mod ffi;
mod gpu_failure;
mod library;
mod proto;
mod session;

pub use ffi::forbid_telemetry;
pub use library::has_cuda;

use std::{panic::AssertUnwindSafe, path::Path, sync::Arc};

use ort::{
    ep,
    session::{Session as OrtSession, builder::GraphOptimizationLevel},
    value::{TensorElementType, ValueType},
};

use super::{Executable, OpenSpec, Session, declared, gpu, message::shortened};
use crate::{
    error::{Code, Error, Result},
    model::{DType, Device, Manifest, Platform, Signature, TensorSpec},
};

/// The reason of a model that the library does not take.
const LOAD_FAILED: &str = "LOAD_FAILED";

/// Protobuf's own limit.
const FILE_BYTES_MAX: u64 = (1 << 31) - 1;

struct Onnx {
    model: Arc<ffi::Model>,
    signature: Arc<Signature>,
    notes: Vec<String>,
    library: String,
    device: Device,
}

/// FAILED_PRECONDITION with `LOAD_FAILED`, `UNSUPPORTED_OPERATOR`, `UNSUPPORTED_INPUT`, `UNSUPPORTED_OUTPUT`,
/// `EXTERNAL_DATA_REFUSED`, or of the library itself; INVALID_ARGUMENT `INVALID_MANIFEST` where what is declared disagrees.
pub fn open(spec: OpenSpec<'_>, device: Device) -> Result<Arc<dyn Executable>> {
    Ok(Arc::new(Onnx::open(spec, device)?))
}

/// What the walk through the file leaves behind once its bytes are gone.
struct Surveyed {
    unsendable: Vec<String>,
    notes: Vec<String>,
}

fn survey(dir: &Path, artifact: &str) -> Result<Surveyed> {
    let file = external_data::read(dir, artifact, FILE_BYTES_MAX)?;
    let survey = proto::survey(&file).map_err(|broken| failed(LOAD_FAILED, &format!("not an ONNX model: {broken}")))?;
    external_data::check(dir, &survey.external)?;
    let note = |(operator, name): &(&str, &str)| {
        format!(
            "node '{}': integer {operator} by a divisor from the request; 0, or -1 under the smallest integer, ends the process",
            shortened(name)
        )
    };
    Ok(Surveyed {
        unsendable: survey.unsendable.iter().map(|&name| name.to_owned()).collect(),
        notes: survey.divisions.iter().take(8).map(note).collect(),
    })
}

/// The library is loaded once, and the CUDA build may have been installed since.
fn require_cuda(library: &library::Library) -> Result<()> {
    if library.cuda {
        return Ok(());
    }
    let what = "this process has loaded ONNX Runtime's build without CUDA; restart the server";
    Err(Error::new(Code::FailedPrecondition, "LIBRARY_UNUSABLE", what))
}

/// Who gets the parts of the graph, in order; the CPU takes what is left. One that cannot be had is an error: never a silent CPU.
fn providers(device: Device, manifest: &Manifest) -> Vec<ep::ExecutionProviderDispatch> {
    let Device::Cuda(number) = device else {
        return Vec::new();
    };
    let number = i32::from(number);
    let mut cuda = ep::CUDA::default()
        .with_device_id(number)
        // The trial of every algorithm of a convolution would be repeated for each new shape, and callers choose the shapes.
        .with_conv_algorithm_search(ep::cuda::ConvAlgorithmSearch::Heuristic)
        // FP32 is FP32: with TensorFloat-32 a product has ten bits of mantissa.
        .with_tf32(false);
    if let Some(limit) = manifest.gpu_memory_limit {
        // By powers of two it would stop well before the limit.
        cuda = cuda
            .with_memory_limit(usize::try_from(limit).unwrap_or(usize::MAX))
            .with_arena_extend_strategy(ep::ArenaExtendStrategy::SameAsRequested);
    }
    let tensorrt = manifest.tensorrt.then(|| ep::TensorRT::default().with_device_id(number).build().error_on_failure());
    tensorrt.into_iter().chain([cuda.build().error_on_failure()]).collect()
}

/// A run takes the thread that asks for it and no other, unless the model has a pool of its own, which sleeps between runs.
fn load(library: &library::Library, path: &Path, manifest: &Manifest, device: Device) -> Result<OrtSession> {
    let build = || -> ort::Result<OrtSession> {
        OrtSession::builder(&library.environment)?
            .with_execution_providers(providers(device, manifest))?
            .with_intra_threads(manifest.intra_op_threads)?
            .with_inter_threads(1)?
            .with_parallel_execution(false)?
            .with_intra_op_spinning(false)?
            .with_inter_op_spinning(false)?
            .with_optimization_level(GraphOptimizationLevel::All)?
            // A pattern is kept for each combination of shapes that ever came, and callers choose the shapes.
            .with_memory_pattern(false)?
            .commit_from_file(path)
    };
    // The crate panics at kinds of inputs and outputs that it does not know.
    let built = std::panic::catch_unwind(AssertUnwindSafe(build));
    built
        .map_err(|_| {
            failed(LOAD_FAILED, "an input or output is of a kind that ONNX Runtime's interface does not know")
        })?
        .map_err(|error| load_failure(error.message(), path, device))
}

fn load_failure(message: &str, path: &Path, device: Device) -> Error {
    const OPERATORS: [&str; 6] = [
        "No Op registered for",
        "is not a registered function/op",
        "Could not find an implementation for",
        "is under development",
        "No opset import for domain",
        "Unrecognized attribute",
    ];
    tracing::debug!("ONNX Runtime refuses the model: {message}");
    if device != Device::Cpu
        && let Some(error) = gpu_failure::of(message, device)
    {
        return error;
    }
    let message = message.replace(&*path.to_string_lossy(), "the model");
    let message = message.strip_prefix("Load model from the model failed:").unwrap_or(&message);
    match OPERATORS.iter().find_map(|words| message.find(words).map(|_| ())) {
        Some(()) => failed("UNSUPPORTED_OPERATOR", message),
        None => failed(LOAD_FAILED, message),
    }
}

fn failed(reason: &'static str, message: &str) -> Error {
    Error::new(Code::FailedPrecondition, reason, shortened(message))
}

fn inputs(session: &OrtSession, unsendable: &[String]) -> Result<Vec<TensorSpec>> {
    let spec = |outlet: &ort::value::Outlet| {
        tensor_spec(outlet, unsendable).map_err(|kind| {
            let what = format!("input '{}' is {kind}, which no request can carry", outlet.name());
            Error::new(Code::FailedPrecondition, "UNSUPPORTED_INPUT", what).with("tensor", outlet.name())
        })
    };
    session.inputs().iter().map(spec).collect()
}

/// The outputs that can be sent, and a note for each other.
fn outputs(session: &OrtSession, unsendable: &[String]) -> Result<(Vec<TensorSpec>, Vec<String>)> {
    let (mut sent, mut notes) = (Vec::new(), Vec::new());
    for outlet in session.outputs() {
        match tensor_spec(outlet, unsendable) {
            Ok(spec) => sent.push(spec),
            Err(kind) => {
                notes.push(format!("output '{}' is {kind} and is left out; {}", outlet.name(), remedy(outlet)))
            }
        }
    }
    if sent.is_empty() {
        let what = match notes.first() {
            Some(note) => format!("no output can be sent: {note}"),
            None => "the model has no output".into(),
        };
        return Err(Error::new(Code::FailedPrecondition, "UNSUPPORTED_OUTPUT", what));
    }
    Ok((sent, notes))
}

/// The tensor of an input or output, or what it is instead.
fn tensor_spec(outlet: &ort::value::Outlet, unsendable: &[String]) -> Result<TensorSpec, String> {
    match outlet.dtype() {
        ValueType::Tensor { .. } if unsendable.iter().any(|name| name == outlet.name()) => {
            Err("a sparse tensor".into())
        }
        ValueType::Tensor { ty, shape, .. } => {
            let dtype = dtype(*ty).ok_or_else(|| format!("a tensor of {ty}"))?;
            let shape: Vec<i64> = shape.iter().map(|&dim| dim.max(-1)).collect();
            Ok(TensorSpec::new(outlet.name(), dtype, &shape))
        }
        ValueType::Sequence(of) if of.is_map() => Err("a sequence of maps".into()),
        ValueType::Sequence(_) => Err("a sequence".into()),
        ValueType::Map { .. } => Err("a map".into()),
        ValueType::Optional(_) => Err("an optional value".into()),
    }
}

fn remedy(outlet: &ort::value::Outlet) -> &'static str {
    match outlet.dtype() {
        ValueType::Sequence(of) if of.is_map() => "convert the scikit-learn model with options={'zipmap': False}",
        ValueType::Map { .. } => "convert the scikit-learn model with options={'zipmap': False}",
        ValueType::Sequence(_) => "put ConcatFromSequence behind it to get a tensor",
        ValueType::Optional(_) => "put OptionalGetElement behind it to get a tensor",
        ValueType::Tensor { .. } => "put Cast behind it to get a type that can be sent",
    }
}

fn dtype(element: TensorElementType) -> Option<DType> {
    Some(match element {
        TensorElementType::Bool => DType::Bool,
        TensorElementType::Uint8 => DType::Uint8,
        TensorElementType::Uint16 => DType::Uint16,
        TensorElementType::Uint32 => DType::Uint32,
        TensorElementType::Uint64 => DType::Uint64,
        TensorElementType::Int8 => DType::Int8,
        TensorElementType::Int16 => DType::Int16,
        TensorElementType::Int32 => DType::Int32,
        TensorElementType::Int64 => DType::Int64,
        TensorElementType::Float16 => DType::Fp16,
        TensorElementType::Bfloat16 => DType::Bf16,
        TensorElementType::Float32 => DType::Fp32,
        TensorElementType::Float64 => DType::Fp64,
        TensorElementType::String => DType::Bytes,
        _ => return None,
    })
}

// === impl Onnx ===

impl Onnx {
    fn open(spec: OpenSpec<'_>, device: Device) -> Result<Self> {
        let artifact = Platform::Onnx.artifact();
        let surveyed = survey(spec.dir, artifact)?;
        let library = library::load(spec.native_dir)?;
        if device != Device::Cpu {
            require_cuda(&library)?;
            gpu::preload(spec.native_dir);
        }
        let session = load(&library, &spec.dir.join(artifact), spec.manifest, device)?;
        let inputs = inputs(&session, &surveyed.unsendable)?;
        let (outputs, unsent) = outputs(&session, &surveyed.unsendable)?;
        let names = |specs: &[TensorSpec]| specs.iter().map(|spec| spec.name.clone()).collect::<Vec<_>>();
        let (input_names, output_names) = (names(&inputs), names(&outputs));
        let signature = declared::merge(Signature { inputs, outputs }, spec.manifest)?;
        let model =
            ffi::Model::new(session, input_names.iter().map(|name| &**name), output_names.iter().map(|name| &**name));
        Ok(Self {
            model: Arc::new(model.map_err(|failure| failed(LOAD_FAILED, &failure.message))?),
            signature: Arc::new(signature),
            notes: [unsent, surveyed.notes].concat(),
            library: library.name,
            device,
        })
    }
}

impl Executable for Onnx {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }

    fn library(&self) -> &str {
        &self.library
    }

    fn device(&self) -> Device {
        self.device
    }

    fn session(&self) -> Result<Box<dyn Session>> {
        let session = session::OnnxSession::new(self.model.clone(), self.signature.clone(), self.device)?;
        Ok(Box::new(session))
    }
}

#[cfg(test)]
mod tests;

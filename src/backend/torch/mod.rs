//! TorchScript, through libtorch in a plugin of its own (`backends/torch`), loaded with the first model that needs it.
//!
//! An archive knows neither names, types nor shapes, so model.yaml or version.yaml declares them; `declaration` says how the
//! declared inputs become the arguments of `forward`. Its answer is a tensor, a tuple or a list (the declared outputs, in
//! order), or a dictionary (by name; what is not declared is left out). A run whose answer is not what is declared fails.
//!
//! One module is shared by all sessions: `forward` may run in many threads at once, on a GPU each in a stream of its own. It
//! cannot be interrupted.

#[allow(dead_code, reason = "one file for both sides")]
#[path = "../../../backends/torch/src/abi.rs"]
mod abi;
mod archive;
mod crc32;
mod declaration;
mod library;
mod refusal;
#[cfg(test)]
mod tests;

use std::{fs::File, sync::Arc};

use bytes::Bytes;

pub use self::library::has_cuda;
use self::{
    declaration::Plan,
    library::{Answer, Module, OutputBytes},
};
use super::{Call, Executable, OpenSpec, Session, View, declared::from_declared};
use crate::{
    error::{Code, Error, Result},
    model::{DType, Device, Platform, Signature, Tensor, TensorSpec},
};

/// The reason of an archive that is damaged or that libtorch does not take.
const LOAD_FAILED: &str = "LOAD_FAILED";
/// Outputs up to this are copied, so that libtorch has its memory back at once; larger ones are lent.
const COPIED_BYTES_MAX: usize = 4096;

struct Script {
    module: Module,
    signature: Signature,
    plan: Plan,
    device: Device,
}

struct ScriptSession {
    script: Arc<Script>,
    /// Aligned copies of inputs that came misaligned, by input.
    aligned: Vec<Vec<u64>>,
}

pub fn open(spec: OpenSpec<'_>, device: Device) -> Result<Arc<dyn Executable>> {
    Ok(Arc::new(Handle(Arc::new(Script::open(spec, device)?))))
}

/// What `runtime` holds; sessions hold the script itself.
struct Handle(Arc<Script>);

// === impl Script ===

impl Script {
    fn open(spec: OpenSpec<'_>, device: Device) -> Result<Self> {
        let artifact = Platform::Torchscript.artifact();
        let path = spec.dir.join(artifact);
        let mut file = File::open(&path).map_err(|error| {
            Error::new(Code::FailedPrecondition, LOAD_FAILED, format!("{artifact} cannot be read: {}", error.kind()))
        })?;
        // Before what is declared: to declare something is no cure for a file that may run code.
        archive::check(&mut file)?;
        let signature = from_declared(spec.manifest)?;
        for tensor in signature.inputs.iter().chain(&signature.outputs) {
            scalar_type(tensor.dtype).ok_or_else(|| {
                Error::invalid(
                    "INVALID_MANIFEST",
                    format!("'{}': TorchScript has no {} that this server can pass", tensor.name, tensor.dtype),
                )
            })?;
        }
        let library = library::get(spec.native_dir)?;
        let module = library.open(&path, device)?;
        let plan = declaration::plan(&module.declaration(), &signature.inputs)?;
        Ok(Self { module, signature, plan, device })
    }

    /// The tensors that were asked for, of an answer that has as many as are declared.
    fn outputs(&self, answer: Answer, wanted: &[usize]) -> Result<Vec<Tensor>> {
        let declared = &self.signature.outputs;
        let by_name = answer.count() > 0 && !answer.name(0).is_empty();
        if !by_name && answer.count() != declared.len() {
            return Err(mismatch(format!(
                "forward returned {} tensors, {} outputs are declared",
                answer.count(),
                declared.len()
            )));
        }
        let answer = Arc::new(answer);
        wanted
            .iter()
            .map(|&place| {
                let spec = &declared[place];
                let found = if by_name {
                    (0..answer.count())
                        .find(|&at| answer.name(at) == spec.name.as_bytes())
                        .ok_or_else(|| mismatch(format!("forward returned no output '{}'", spec.name)))?
                } else {
                    place
                };
                output(&answer, found, spec)
            })
            .collect()
    }
}

fn output(answer: &Arc<Answer>, place: usize, spec: &TensorSpec) -> Result<Tensor> {
    let (dtype, shape) = (answer.dtype(place), answer.shape(place));
    let dtype =
        dtype_of(dtype).ok_or_else(|| mismatch(format!("output '{}' has a type that cannot be sent", spec.name)))?;
    let fits =
        shape.len() == spec.shape.len() && shape.iter().zip(&spec.shape).all(|(&came, &said)| said < 0 || came == said);
    if dtype != spec.dtype || !fits {
        return Err(mismatch(format!(
            "output '{}' is declared {} {}, forward returned {dtype} {shape:?}",
            spec.name,
            spec.dtype,
            spec.shape_text()
        )));
    }
    let data = answer.data(place);
    let data = if data.len() <= COPIED_BYTES_MAX {
        Bytes::copy_from_slice(data)
    } else {
        Bytes::from_owner(OutputBytes { answer: answer.clone(), place })
    };
    let shape = shape.iter().map(|&dimension| dimension as usize).collect();
    Tensor::new(spec.name.clone(), dtype, shape, data)
}

fn mismatch(what: String) -> Error {
    Error::internal("OUTPUT_MISMATCH", what)
}

/// libtorch's number of a type (`c10::ScalarType`), for those that both sides have.
fn scalar_type(dtype: DType) -> Option<i32> {
    Some(match dtype {
        DType::Uint8 => 0,
        DType::Int8 => 1,
        DType::Int16 => 2,
        DType::Int32 => 3,
        DType::Int64 => 4,
        DType::Fp16 => 5,
        DType::Fp32 => 6,
        DType::Fp64 => 7,
        DType::Bool => 11,
        DType::Bf16 => 15,
        DType::Uint16 | DType::Uint32 | DType::Uint64 | DType::Bytes => return None,
    })
}

fn dtype_of(scalar: i32) -> Option<DType> {
    DType::ALL.into_iter().find(|&dtype| scalar_type(dtype) == Some(scalar))
}

// === impl Handle ===

impl Executable for Handle {
    fn signature(&self) -> &Signature {
        &self.0.signature
    }

    fn library(&self) -> &str {
        self.0.module.library().name()
    }

    fn device(&self) -> Device {
        self.0.device
    }

    fn session(&self) -> Result<Box<dyn Session>> {
        Ok(Box::new(ScriptSession { aligned: vec![Vec::new(); self.0.signature.inputs.len()], script: self.0.clone() }))
    }
}

// === impl ScriptSession ===

impl Session for ScriptSession {
    fn run(&mut self, call: &Call<'_>) -> Result<Vec<Tensor>> {
        let script = &*self.script;
        for (view, scratch) in call.inputs.iter().zip(&mut self.aligned) {
            if !is_aligned(view) {
                copy_aligned(view.data, scratch);
            }
        }
        let inputs = script
            .plan
            .order
            .iter()
            .map(|&place| {
                let view = &call.inputs[place];
                let data = if is_aligned(view) {
                    view.data
                } else {
                    &bytemuck::cast_slice(&self.aligned[place])[..view.data.len()]
                };
                abi::TensorView {
                    name: abi::Slice::of(script.signature.inputs[place].name.as_bytes()),
                    dtype: scalar_type(view.dtype).expect("the declared types were checked: this is a bug"),
                    shape: abi::Slice::of(bytemuck::cast_slice(view.shape)),
                    data: abi::Slice::of(data),
                }
            })
            .collect::<Vec<_>>();
        let answer = script.module.run(script.plan.passing, &inputs)?;
        script.outputs(answer, call.outputs)
    }
}

fn is_aligned(view: &View<'_>) -> bool {
    view.dtype.size().is_some_and(|size| view.data.as_ptr().addr().is_multiple_of(size))
}

fn copy_aligned(data: &[u8], scratch: &mut Vec<u64>) {
    scratch.resize(data.len().div_ceil(size_of::<u64>()), 0);
    bytemuck::cast_slice_mut(scratch)[..data.len()].copy_from_slice(data);
}

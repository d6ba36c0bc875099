//! ONE BATCH. The libraries that run models, each behind the same two types.
//!
//! An `Executable` is the opened artifact: the weights, once, shared by all. Each instance has a `Session` of its own: the
//! scratch, owned by one thread. A backend knows nothing of queues, requests, callers or the store; `runtime` calls it
//! to run batches, `lifecycle` to open versions (in the throw-away child first).
//!
//! Libraries are found and loaded on first use, from `native_dir`. One that is missing is an error of the version that needs
//! it (`LIBRARY_MISSING`), which says what to install.

mod declared;
pub mod gpu;
mod lightgbm;
mod message;
mod onnx;
#[cfg(test)]
pub mod scripted;
mod shortage;
#[cfg(test)]
mod testing;
mod torch;

use std::{path::Path, sync::Arc};

use crate::{
    error::{Code, Error, Result},
    model::{DType, Device, Manifest, Parameters, Platform, Signature, Tensor, repeated},
};

/// An opened artifact.
pub trait Executable: Send + Sync {
    /// Inputs and outputs, the declared ones merged in. `batch` is set where the first dimension is free and the manifest
    /// does not forbid it: whether rows may really be joined is for the child to show.
    fn signature(&self) -> &Signature;

    /// What was noticed and served nevertheless, e.g. an output that cannot be sent.
    fn notes(&self) -> &[String] {
        &[]
    }

    /// The library and its version, e.g. `onnxruntime 1.31.1`.
    fn library(&self) -> &str;

    /// Where it really runs, whatever was asked for.
    fn device(&self) -> Device {
        Device::Cpu
    }

    /// Whether a batch costs less than its rows one by one.
    fn gains_by_joining(&self) -> bool {
        true
    }

    /// Checks the caller's parameters before anything is queued. INVALID_ARGUMENT names the parameter.
    fn check_parameters(&self, _parameters: &Parameters) -> Result<()> {
        Ok(())
    }

    /// A session for one instance. Cheap beside the weights.
    fn session(&self) -> Result<Box<dyn Session>>;
}

/// The scratch of one instance.
pub trait Session: Send {
    /// Runs one batch. `call` was checked against the signature; the answer has one tensor for each of `call.outputs`, named.
    ///
    /// INTERNAL with reason `BACKEND_FAILED` where the library refuses the batch; RESOURCE_EXHAUSTED where memory is short,
    /// with `DEVICE_OUT_OF_MEMORY` where it is a GPU's. The session can be used again after either.
    fn run(&mut self, call: &Call<'_>) -> Result<Vec<Tensor>>;

    /// A handle that ends a run from another thread, where the library can. Asked for once, before the first run.
    fn stopper(&self) -> Option<Arc<dyn Stopper>> {
        None
    }
}

/// The reason of a run that was ended.
pub const RUN_STOPPED: &str = "RUN_STOPPED";

/// Ends the run that is going on in one session; that run returns an error. Harmless when none is.
pub trait Stopper: Send + Sync {
    fn stop(&self);
}

/// One batch for a session.
pub struct Call<'a> {
    /// In the signature's order.
    pub inputs: &'a [View<'a>],
    /// Places in the signature's outputs.
    pub outputs: &'a [usize],
    pub parameters: &'a Parameters,
}

/// A tensor that somebody else owns. The bytes may lie at any address: a backend copies where it needs alignment.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    pub dtype: DType,
    pub shape: &'a [usize],
    pub data: &'a [u8],
}

/// All that opening takes.
#[derive(Clone, Copy, Debug)]
pub struct OpenSpec<'a> {
    /// The private folder of the version, already verified.
    pub dir: &'a Path,
    pub manifest: &'a Manifest,
    /// Where the libraries are.
    pub native_dir: &'a Path,
}

/// Opens a version with the library of its platform.
pub fn open(spec: OpenSpec<'_>) -> Result<Arc<dyn Executable>> {
    let device = device_of(spec.manifest, spec.native_dir)?;
    match spec.manifest.platform {
        Platform::Onnx => onnx::open(spec, device),
        Platform::Lightgbm => lightgbm::open(spec),
        Platform::Torchscript => torch::open(spec, device),
    }
}

/// Where a version runs, of this machine and these libraries: what it asks for, or an error that names what is missing. `auto` is
/// the first GPU where there is one and the CUDA build of the library, else the CPU.
///
/// UNSUPPORTED_DEVICE, LIBRARY_MISSING or DEVICE_MISSING.
pub fn device_of(manifest: &Manifest, native_dir: &Path) -> Result<Device> {
    let (platform, asked) = (manifest.platform, &*manifest.device);
    refuse_device(platform, asked)?;
    let (library, cuda_build) = match platform {
        Platform::Lightgbm => return Ok(Device::Cpu),
        Platform::Onnx => ("ONNX Runtime", onnx::has_cuda(native_dir)),
        Platform::Torchscript => ("libtorch", torch::has_cuda(native_dir)),
    };
    match Device::parse(asked) {
        Some(Device::Cuda(number)) => {
            gpu::require(number)?;
            if !cuda_build {
                let what = format!("device {asked}: the CUDA build of {library}");
                return Err(library_missing(&what, "`make gpu-libraries` fetches it"));
            }
            Ok(Device::Cuda(number))
        }
        Some(Device::Cpu) => Ok(Device::Cpu),
        None if cuda_build && !gpu::all().is_empty() => Ok(Device::Cuda(0)),
        None => Ok(Device::Cpu),
    }
}

/// UNSUPPORTED_DEVICE for what no machine could serve models of the platform on; whether this machine has it, opening shows.
pub fn refuse_device(platform: Platform, device: &str) -> Result<()> {
    let gpu = matches!(Device::parse(device), Some(Device::Cuda(_)));
    let devices = match platform {
        _ if matches!(device, "auto" | "cpu") => return Ok(()),
        Platform::Onnx | Platform::Torchscript if gpu => return Ok(()),
        Platform::Onnx | Platform::Torchscript => "cpu or cuda:N",
        Platform::Lightgbm => "cpu",
    };
    let what = format!("device {device}: models of {platform} run on {devices}");
    Err(Error::new(Code::FailedPrecondition, "UNSUPPORTED_DEVICE", what))
}

/// The names of the parameters that a platform's backend takes.
pub fn parameters(platform: Platform) -> &'static [&'static str] {
    match platform {
        Platform::Lightgbm => &lightgbm::PARAMETERS,
        Platform::Onnx | Platform::Torchscript => &[],
    }
}

/// Whether any backend takes a parameter of that name: where callers' own words stand beside parameters, the name is taken.
pub fn is_parameter(name: &str) -> bool {
    let mut platforms = Platform::ALL.into_iter();
    platforms.any(|platform| parameters(platform).contains(&name))
}

/// INVALID_ARGUMENT names the parameters that there are.
pub fn refuse_unknown_parameters(platform: Platform, given: &Parameters) -> Result<()> {
    let known = parameters(platform);
    let Some((name, _)) = given.0.iter().find(|(name, _)| !known.contains(&name.as_str())) else {
        return Ok(());
    };
    let takes = match known {
        [] => "no parameters".to_owned(),
        names => format!("the parameters {}", names.join(", ")),
    };
    let message = format!("unknown parameter{}: models of {platform} take {takes}", repeated(name));
    Err(Error::invalid("UNKNOWN_PARAMETER", message))
}

/// The error of a library that is not there; `lifecycle` tries such a version again when the library may have come.
fn library_missing(library: &str, how: &str) -> Error {
    Error::new(Code::FailedPrecondition, LIBRARY_MISSING, format!("{library} is not in {NATIVE_FOLDER}; {how}"))
}

/// The same, of a library that is there and does not load: it may be half copied.
fn library_broken(library: &str) -> Error {
    let what = format!("{library} in {NATIVE_FOLDER} does not load; remove it and run `make`");
    Error::new(Code::FailedPrecondition, LIBRARY_MISSING, what)
}

/// In words: where it lies is not for callers.
const NATIVE_FOLDER: &str = "the folder of native libraries (--native-dir, SCONCE_NATIVE_DIR)";

pub use onnx::forbid_telemetry;

pub const LIBRARY_MISSING: &str = "LIBRARY_MISSING";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ModelYaml, VersionYaml};

    #[test]
    fn a_device_that_no_machine_has_for_a_platform_is_refused() {
        for platform in Platform::ALL {
            assert!(refuse_device(platform, "auto").is_ok() && refuse_device(platform, "cpu").is_ok());
            let refused = refuse_device(platform, "cuda:x").expect_err("no number");
            assert_eq!(refused.reason(), "UNSUPPORTED_DEVICE");
            assert_eq!(refuse_device(platform, "cuda:0").is_ok(), platform != Platform::Lightgbm);
        }
    }

    fn decided(platform: Platform, device: &str) -> Result<Device> {
        let nothing = tempfile::tempdir().expect("a folder");
        let yaml = ModelYaml::parse(&format!("instances: {{ device: {device} }}")).expect("a model.yaml");
        let manifest = Manifest::resolve(platform, yaml, VersionYaml::default()).expect("a manifest");
        device_of(&manifest, nothing.path())
    }

    #[test]
    fn without_a_cuda_build_auto_is_the_cpu_and_a_gpu_is_an_error() {
        for platform in Platform::ALL {
            assert_eq!(decided(platform, "auto").expect("decided"), Device::Cpu);
            assert_eq!(decided(platform, "cpu").expect("decided"), Device::Cpu);
        }
        for platform in [Platform::Onnx, Platform::Torchscript] {
            let missing = if gpu::all().is_empty() { "DEVICE_MISSING" } else { LIBRARY_MISSING };
            let error = decided(platform, "cuda:0").expect_err("it is not there");
            assert_eq!(error.reason(), missing, "{error}");
            let beyond = decided(platform, "cuda:250").expect_err("no machine has as many");
            assert_eq!(beyond.reason(), "DEVICE_MISSING", "{beyond}");
            assert!(beyond.message().contains("cuda:250"), "{beyond}");
        }
    }
}

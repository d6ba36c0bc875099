//! GPUS. Which there are, what of their memory is free, and where a model that asks for one runs.
//!
//! `ffi` asks NVIDIA's driver, which every machine with a GPU has, whatever else is installed. This knows nothing of models:
//! `backend::device_of` asks it before a version is opened, `lifecycle` for the memory. A process that must not touch a GPU,
//! the throw-away child, says so first thing with `forbid`.

mod ffi;

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

use crate::{
    error::{Code, Error, Result},
    model::Device,
};

/// A GPU of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// `NVIDIA H100 80GB HBM3`
    pub name: String,
}

/// The memory of a GPU, whoever uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuMemory {
    pub free: u64,
    pub total: u64,
}

/// What there is, looked for once: a driver does not come while a process runs.
static FOUND: OnceLock<Result<ffi::Driver, String>> = OnceLock::new();

/// From now on this process has no GPU. Without effect on one that has looked already.
pub fn forbid() {
    let _ = FOUND.set(Err("this process may not touch a GPU".into()));
}

fn found() -> Result<&'static ffi::Driver, &'static str> {
    FOUND.get_or_init(ffi::Driver::load).as_ref().map_err(String::as_str)
}

/// The GPUs that CUDA sees, in its order; none where there is no driver.
pub fn all() -> &'static [Gpu] {
    found().map_or(&[], |driver| driver.gpus())
}

/// DEVICE_MISSING says what there is instead.
pub fn require(number: u8) -> Result<()> {
    missing(number, found().map(|driver| driver.gpus())).map_or(Ok(()), Err)
}

/// `None` where it cannot be asked. The first call sets up CUDA on the device, which takes some memory there itself.
pub fn memory(number: u8) -> Option<GpuMemory> {
    found()
        .ok()?
        .memory(number)
        .inspect_err(|error| tracing::debug!(error, number, "no figures of the GPU's memory"))
        .ok()
}

/// The error of a GPU that is not there.
fn missing(number: u8, found: Result<&[Gpu], &str>) -> Option<Error> {
    let why = match found {
        Err(why) => format!("{why}; install NVIDIA's driver, or say device: cpu"),
        Ok([]) => "the driver shows no GPU (CUDA_VISIBLE_DEVICES may hide them)".to_owned(),
        Ok(gpus) if usize::from(number) < gpus.len() => return None,
        Ok(gpus) => {
            let named = |(number, gpu): (usize, &Gpu)| format!("cuda:{number} ({})", gpu.name);
            format!("this machine has {}", gpus.iter().enumerate().map(named).collect::<Vec<_>>().join(", "))
        }
    };
    let what = format!("device {}: {why}", Device::Cuda(number));
    Some(Error::new(Code::FailedPrecondition, "DEVICE_MISSING", what))
}

/// Loads NVIDIA's own libraries from `native_dir`, for the CUDA builds name them without saying where they are. What is not
/// there is left to the system's loader.
pub fn preload(native_dir: &Path) {
    static LOADED: OnceLock<()> = OnceLock::new();
    LOADED.get_or_init(|| {
        for path in libraries(&folder(native_dir)) {
            if let Err(error) = ffi::keep_loaded(&path) {
                tracing::warn!(%error, "a library of CUDA does not load");
            }
        }
    });
}

/// NVIDIA's libraries, as `make gpu-libraries` lays them down.
fn folder(native_dir: &Path) -> PathBuf {
    native_dir.join("cuda/lib")
}

/// By name: each looks for what it needs beside itself.
fn libraries(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| entry.path()).filter(|path| path.to_string_lossy().contains(".so")).collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_with_what_there_is() {
        let gpus = ["A", "B"].map(|name| Gpu { name: name.into() });
        assert!(missing(1, Ok(&gpus)).is_none());
        let said = |number, found| missing(number, found).expect("it is missing");
        let error = said(9, Ok(&gpus));
        assert_eq!((error.code(), error.reason()), (Code::FailedPrecondition, "DEVICE_MISSING"));
        assert_eq!(error.message(), "device cuda:9: this machine has cuda:0 (A), cuda:1 (B)");
        assert!(said(0, Ok(&[])).message().contains("CUDA_VISIBLE_DEVICES"));
        let none = said(0, Err("libcuda.so.1 is not on this machine"));
        assert!(none.message().contains("libcuda.so.1") && none.message().contains("install"), "{none}");
    }

    #[test]
    fn libraries_are_taken_in_order_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["libcudart.so.13", "libcublas.so.13", "LICENSE"] {
            std::fs::write(folder.path().join(name), "").expect("written");
        }
        let names = libraries(folder.path());
        let names: Vec<_> = names.iter().filter_map(|path| path.file_name()?.to_str()).collect();
        assert_eq!(names, ["libcublas.so.13", "libcudart.so.13"]);
        assert!(libraries(&folder.path().join("nowhere")).is_empty());
    }
}

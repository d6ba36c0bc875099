//! ONNX Runtime itself: found, judged by its version and loaded once a process, on the first ONNX model.
//!
//! `onnx::open` calls `load` for every model. Only a success is remembered: a library that was missing or too old is looked
//! for again by the next model, for it may have been installed since.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use ort::{environment::Environment, logging::LogLevel};

use super::ffi;
use crate::{
    backend::{library_broken, library_missing, message::shortened},
    error::{Code, Error, Result},
};

/// The loaded library. There is one environment a process, and it lives as long as the process.
#[derive(Clone)]
pub struct Library {
    pub environment: Environment,
    /// `onnxruntime 1.31.1`
    pub name: String,
    /// Whether it is the build for CUDA; it runs models on the CPU as well.
    pub cuda: bool,
}

/// In the order they are looked at: where both builds are there, the one for CUDA serves all.
const FOLDERS: [&str; 2] = ["onnxruntime-gpu", "onnxruntime"];
/// What the build for CUDA has beside the library, which loads it by itself.
const CUDA_PROVIDER: &str = "libonnxruntime_providers_cuda.so";

/// Older ones read any file of the machine through external data.
const OLDEST: [u64; 3] = [1, 24, 1];

static LOADED: Mutex<Option<Library>> = Mutex::new(None);

pub fn load(native_dir: &Path) -> Result<Library> {
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(library) = &*loaded {
        return Ok(library.clone());
    }
    let library = open(native_dir)?;
    tracing::info!(library = library.name, "loaded");
    Ok(loaded.insert(library).clone())
}

/// Whether the library that is there, or would be loaded, is the build for CUDA.
pub fn has_cuda(native_dir: &Path) -> bool {
    place(native_dir).is_some_and(|path| is_for_cuda(&path))
}

fn is_for_cuda(library: &Path) -> bool {
    library.with_file_name(CUDA_PROVIDER).is_file()
}

fn place(native_dir: &Path) -> Option<PathBuf> {
    FOLDERS.iter().find_map(|folder| find(&native_dir.join(folder)))
}

fn open(native_dir: &Path) -> Result<Library> {
    let path = place(native_dir).ok_or_else(|| library_missing("ONNX Runtime", "`make` fetches it"))?;
    let broken = |what: String| {
        tracing::warn!("ONNX Runtime does not load: {what}");
        library_broken("ONNX Runtime")
    };
    let version = ffi::version_of(&path).map_err(broken)?;
    check_version(&version)?;
    // Besides its errors, the crate panics where the library does not offer the API it asks for.
    let environment = std::panic::catch_unwind(|| {
        let builder = ort::init_from(&path).map_err(|error| error.to_string())?;
        let environment = builder.with_name("sconce").with_telemetry(false).with_logger(Arc::new(log)).build();
        environment.map_err(|error| error.to_string())
    });
    let environment = environment.unwrap_or_else(|_| Err("it lacks the API".into())).map_err(broken)?;
    environment.set_log_level(LogLevel::Warning);
    Ok(Library { environment, name: format!("onnxruntime {version}"), cuda: is_for_cuda(&path) })
}

/// `libonnxruntime.so.1.31.1` rather than the bare name, which need not be there.
fn find(folder: &Path) -> Option<PathBuf> {
    let names = std::fs::read_dir(folder).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let name = names.filter(|name| name.starts_with("libonnxruntime.so")).max_by_key(|name| numbers(name))?;
    std::path::absolute(folder.join(name)).ok()
}

fn check_version(version: &str) -> Result<()> {
    if numbers(version)[..] >= OLDEST[..] {
        return Ok(());
    }
    Err(Error::new(
        Code::FailedPrecondition,
        "LIBRARY_TOO_OLD",
        format!(
            "ONNX Runtime {} is too old: before 1.24.1 a model could read any file; install 1.24.1 or later",
            shortened(version)
        ),
    ))
}

fn numbers(text: &str) -> Vec<u64> {
    text.split('.').filter_map(|part| part.parse().ok()).collect()
}

/// ONNX Runtime's log, as ours.
fn log(level: LogLevel, _category: &str, _id: &str, _place: &str, message: &str) {
    match level {
        LogLevel::Fatal | LogLevel::Error => tracing::warn!(target: "sconce::onnxruntime", "{message}"),
        _ => tracing::debug!(target: "sconce::onnxruntime", "{message}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        for good in ["1.24.1", "1.24.10", "1.31.1", "1.100.0", "2.0.0"] {
            assert!(check_version(good).is_ok(), "{good}");
        }
        for old in ["1.24.0", "1.23.2", "1.9.9", "0.99.0", "", "nonsense"] {
            assert_eq!(check_version(old).expect_err(old).reason(), "LIBRARY_TOO_OLD");
        }
    }

    #[test]
    fn a_missing_library_says_so() {
        let empty = tempfile::tempdir().expect("a temporary folder");
        let error = open(empty.path()).err().expect("nothing is there");
        assert_eq!(error.reason(), crate::backend::LIBRARY_MISSING);
    }

    #[test]
    fn the_build_for_cuda_goes_first_and_is_known_by_its_provider() {
        let native = tempfile::tempdir().expect("a temporary folder");
        let put = |file: &str| {
            let path = native.path().join(file);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            std::fs::write(path, "").expect("written");
        };
        assert!(!has_cuda(native.path()) && place(native.path()).is_none());
        put("onnxruntime/libonnxruntime.so.1.31.1");
        assert!(!has_cuda(native.path()));
        put("onnxruntime-gpu/libonnxruntime.so.1.31.1");
        put("onnxruntime-gpu/libonnxruntime_providers_cuda.so");
        assert!(has_cuda(native.path()));
        assert!(place(native.path()).expect("it is there").starts_with(native.path().join("onnxruntime-gpu")));
    }
}

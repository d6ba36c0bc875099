//! What the server and its throw-away child say to each other: one JSON line each way for each version.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Mutex,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::trial::Recipe;
use crate::{
    error::{Code, Error},
    model::{Device, Manifest},
    store::PrivateDir,
};

/// One version to be opened and tried.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Job {
    /// The private folder of the version, already verified.
    pub dir: PathBuf,
    pub manifest: Manifest,
    pub native_dir: PathBuf,
    pub time_limit: Duration,
}

/// What the child found.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub enum Verdict {
    Passed(Report),
    Failed(Fault),
}

/// A version that passed.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Report {
    /// The library and its version.
    pub library: String,
    /// Whether requests joined were shown to answer as each alone.
    pub joinable: bool,
    /// Whether padded requests were shown to answer as unpadded ones.
    #[serde(default)]
    pub pads: bool,
    /// Both, in words for operators.
    pub batching_reason: String,
    /// Measured (rows, microseconds of one run), ascending by rows; empty where nothing ran.
    pub cost: Vec<(usize, f64)>,
    /// How inputs are made up that the version takes; for its warm-up.
    pub recipe: Option<Recipe>,
    /// The most memory the child ever held, and what it holds now; other versions' included.
    pub peak_bytes: u64,
    pub resident_bytes: u64,
    /// What the child grew by when it opened and tried this version.
    pub memory_bytes: u64,
    /// What a GPU lost when the server opened the version there and warmed it up; 0 where that is not known.
    #[serde(default)]
    pub gpu_bytes: u64,
}

/// An `Error` on its way between processes.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Fault {
    #[serde(with = "CodeWord")]
    code: Code,
    reason: String,
    message: String,
}

#[derive(Deserialize, Serialize)]
#[serde(remote = "Code")]
enum CodeWord {
    InvalidArgument,
    NotFound,
    Unavailable,
    ResourceExhausted,
    DeadlineExceeded,
    Cancelled,
    FailedPrecondition,
    Aborted,
    Internal,
    Unimplemented,
}

// === impl Job ===

impl Job {
    /// Of a version's copy. The child never touches a GPU, nor what only one can be told.
    pub fn new(copy: &PrivateDir, manifest: &Manifest, native_dir: &Path, time_limit: Duration) -> Self {
        Self {
            dir: copy.path().to_owned(),
            manifest: Manifest {
                device: Device::Cpu.to_string(),
                gpu_memory_limit: None,
                tensorrt: false,
                ..manifest.clone()
            },
            native_dir: native_dir.to_owned(),
            time_limit,
        }
    }
}

// === impl Fault ===

impl From<&Error> for Fault {
    fn from(error: &Error) -> Self {
        Self { code: error.code(), reason: error.reason().to_owned(), message: error.message().to_owned() }
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        Error::new(fault.code, interned(&fault.reason), fault.message)
    }
}

/// The reason as the `'static` word that errors carry. The words that exist are few; a child gone wrong cannot make us keep
/// more than a few.
fn interned(reason: &str) -> &'static str {
    const KEPT_MAX: usize = 128;
    static KEPT: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut kept = KEPT.lock().expect("no holder panics: this is a bug");
    match kept.get(reason) {
        Some(word) => word,
        None if kept.len() >= KEPT_MAX || reason.len() > 64 => "LOAD_FAILED",
        None => {
            let word: &'static str = Box::leak(reason.to_owned().into_boxed_str());
            kept.insert(word);
            word
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ModelYaml, Platform, VersionYaml};

    #[test]
    fn an_error_comes_through_as_it_went() {
        let error = Error::new(Code::FailedPrecondition, "LIBRARY_MISSING", "libtorch is not there");
        let line = serde_json::to_string(&Verdict::Failed(Fault::from(&error))).expect("plain data");
        let Ok(Verdict::Failed(fault)) = serde_json::from_str(&line) else {
            panic!("{line} does not read back");
        };
        let back = Error::from(fault);
        assert_eq!((back.code(), back.reason(), back.message()), (error.code(), error.reason(), error.message()));
    }

    #[test]
    fn a_job_comes_through_as_it_went() {
        let yaml = "warmup: [{zeros: 1}]\ninputs: [{name: x, dtype: FP64, shape: [-1, 2], feature_names: [a, b], \
                    features: {a: {missing: nan}}}]\nbatching: {max_queue: {bytes: 1MiB}, queue_timeout: 2s}";
        let model = ModelYaml::parse(yaml).expect("a model.yaml");
        let job = Job {
            dir: "d".into(),
            manifest: Manifest::resolve(Platform::Lightgbm, model, VersionYaml::default()).expect("a manifest"),
            native_dir: "n".into(),
            time_limit: Duration::from_secs(60),
        };
        let line = serde_json::to_string(&job).expect("plain data");
        let back: Job = serde_json::from_str(&line).expect("it reads back");
        assert_eq!(back.manifest, job.manifest);
    }
}

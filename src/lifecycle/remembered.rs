//! Passes of the child that still hold: the same bytes, options, library, device and limits need no second trial.

use std::{
    hash::{Hash, Hasher},
    io::Write,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};
use siphasher::sip::SipHasher13;

use super::{job::Report, probe_child::Limits};
use crate::model::{Manifest, Platform};

/// One small file for each pass, in a private folder.
#[derive(Clone, Debug)]
pub struct Remembered {
    folder: PathBuf,
}

/// What changes when a platform's library is installed or replaced: its files' names, sizes and times, as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LibraryStamp(u64);

/// To be raised when a trial looks at more than it did.
const TRIAL_REVISION: u32 = 1;

// === impl Remembered ===

impl Remembered {
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// A damaged file is as good as none.
    pub fn recall(&self, key: &str) -> Option<Report> {
        let text = std::fs::read(self.file(key)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Best effort: what is not remembered is tried again. No fsync, for the same reason.
    pub fn keep(&self, key: &str, report: &Report) {
        let kept = tempfile::NamedTempFile::new_in(&self.folder).and_then(|mut file| {
            file.write_all(&serde_json::to_vec(report)?)?;
            file.persist(self.file(key)).map_err(|error| error.error)?;
            Ok(())
        });
        if let Err(error) = kept {
            tracing::debug!(%error, "a pass could not be remembered");
        }
    }

    fn file(&self, key: &str) -> PathBuf {
        self.folder.join(format!("{key}.json"))
    }
}

/// All that a pass depends on, in one word.
pub fn key(digest: &str, manifest: &Manifest, native_dir: &Path, limits: Limits) -> String {
    let options = serde_json::to_vec(manifest).unwrap_or_default();
    let library = library_stamp(native_dir, manifest.platform);
    let rest = format!(
        "{} {limits:?} {TRIAL_REVISION} {}",
        library.0,
        env!("CARGO_PKG_VERSION")
    );
    let mut hasher = Sha256::new();
    for part in [digest.as_bytes(), &options, rest.as_bytes()] {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hex::encode(hasher.finalize())
}

/// Of the library that is there now.
pub fn library_stamp(native_dir: &Path, platform: Platform) -> LibraryStamp {
    let own = native_dir.join(match platform {
        Platform::Onnx => "onnxruntime",
        Platform::Lightgbm => "lightgbm",
        Platform::Torchscript => "torch",
    });
    let mut files: Vec<(PathBuf, u64, i64, i64)> = Vec::new();
    for folder in [native_dir, &own, &own.join("lib")] {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if let Ok(metadata) = std::fs::metadata(&path)
                && metadata.is_file()
            {
                files.push((path, metadata.size(), metadata.mtime(), metadata.mtime_nsec()));
            }
        }
    }
    files.sort();
    let mut hasher = SipHasher13::new();
    files.hash(&mut hasher);
    LibraryStamp(hasher.finish())
}

//! Passes of the child that still hold: the same bytes, options, library, device and limits need no second trial.

use std::{
    fs::File,
    hash::{Hash, Hasher},
    io::{Read, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
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
const TRIAL_REVISION: u32 = 3;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const AGE_MAX: Duration = Duration::from_secs(90 * 24 * 60 * 60);
const ENTRIES_MAX: usize = 20_000;

// === impl Remembered ===

impl Remembered {
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// A damaged file is as good as none.
    pub fn recall(&self, key: &str) -> Option<Report> {
        let mut file = File::open(self.file(key)).ok()?;
        let mut text = Vec::new();
        file.read_to_end(&mut text).ok()?;
        let now = SystemTime::now();
        let used = file.metadata().and_then(|metadata| metadata.modified());
        // Once a day is enough for a pass that is used not to be pruned.
        if used.is_ok_and(|used| age(used, now) > DAY) {
            let _ = file.set_modified(now);
        }
        serde_json::from_slice(&text).ok()
    }

    /// Forgets what nobody asked for in a long time, and the oldest of too many. It takes as long as there are files.
    pub fn prune(&self, now: SystemTime) {
        let mut kept: Vec<(SystemTime, PathBuf)> = Vec::new();
        for entry in std::fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            if let Ok(used) = entry.metadata().and_then(|metadata| metadata.modified()) {
                kept.push((used, entry.path()));
            }
        }
        kept.sort_unstable_by(|one, other| other.cmp(one));
        let young = kept.partition_point(|(used, _)| age(*used, now) <= AGE_MAX);
        for (_, path) in &kept[young.min(ENTRIES_MAX)..] {
            let _ = std::fs::remove_file(path);
        }
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
    let rest = format!("{} {limits:?} {TRIAL_REVISION} {}", library.0, env!("CARGO_PKG_VERSION"));
    let mut hasher = Sha256::new();
    for part in [digest.as_bytes(), &options, rest.as_bytes()] {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hex::encode(hasher.finalize())
}

/// Of the library that is there now.
pub fn library_stamp(native_dir: &Path, platform: Platform) -> LibraryStamp {
    let own: &[&str] = match platform {
        Platform::Onnx => &["onnxruntime", "onnxruntime-gpu", "cuda/lib"],
        Platform::Lightgbm => &["lightgbm"],
        Platform::Torchscript => &["torch", "torch/lib", "torch-gpu/lib", "cuda/lib"],
    };
    let mut files: Vec<(PathBuf, u64, i64, i64)> = Vec::new();
    for folder in std::iter::once(native_dir.to_owned()).chain(own.iter().map(|folder| native_dir.join(folder))) {
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

/// A file of the future is new.
fn age(used: SystemTime, now: SystemTime) -> Duration {
    now.duration_since(used).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_what_is_not_goes() {
        let folder = tempfile::tempdir().expect("a folder");
        let remembered = Remembered::new(folder.path().to_owned());
        let now = SystemTime::now();
        let last_used = |key: &str, used: SystemTime| {
            remembered.keep(key, &Report::default());
            let file = File::options().write(true).open(remembered.file(key)).expect("it is there");
            file.set_modified(used).expect("set");
        };
        let long_ago = now - AGE_MAX - DAY;
        last_used("unused", long_ago);
        last_used("used", long_ago);
        last_used("young", now);
        assert!(remembered.recall("used").is_some());
        remembered.prune(now);
        assert!(remembered.recall("used").is_some() && remembered.recall("young").is_some());
        assert!(remembered.recall("unused").is_none());
    }
}

//! The private folders of this process, and what outlives it.
//!
//! ```text
//! work_dir/            0700
//!   probed/            passes of the child
//!   run-XXXXXX/        of one process; `lock` is held while it lives
//!     copies/  empty/
//! ```

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

use crate::error::{Error, Result};

/// The folder of this process. It goes with the process, and if that was killed, when the next one starts.
#[derive(Debug)]
pub struct Work {
    run: tempfile::TempDir,
    probed: PathBuf,
    _lock: fs::File,
}

const RUN_PREFIX: &str = "run-";

// === impl Work ===

impl Work {
    pub fn open(work_dir: &Path) -> Result<Self> {
        Self::try_open(work_dir).map_err(|error| {
            Error::internal(
                "WORK_DIR_UNUSABLE",
                format!("the work folder '{}' cannot be used: {error}", work_dir.display()),
            )
        })
    }

    fn try_open(work_dir: &Path) -> io::Result<Self> {
        make_private(work_dir)?;
        sweep(work_dir)?;
        let run = tempfile::Builder::new().prefix(RUN_PREFIX).tempdir_in(work_dir)?;
        let lock = fs::File::create(run.path().join("lock"))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        let probed = work_dir.join("probed");
        for folder in [&probed, &run.path().join("copies"), &run.path().join("empty")] {
            make_private(folder)?;
        }
        Ok(Self {
            run,
            probed,
            _lock: lock,
        })
    }

    /// Where versions are copied to.
    pub fn copies(&self) -> PathBuf {
        self.run.path().join("copies")
    }

    /// Where children stand.
    pub fn empty(&self) -> PathBuf {
        self.run.path().join("empty")
    }

    pub fn probed(&self) -> PathBuf {
        self.probed.clone()
    }
}

/// `$XDG_CACHE_HOME/sconce`, `~/.cache/sconce`, or a folder of this user under the system's temporary one.
pub fn default_dir() -> PathBuf {
    let absolute = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    if let Some(cache) = absolute("XDG_CACHE_HOME") {
        return cache.join("sconce");
    }
    match absolute("HOME") {
        Some(home) => home.join(".cache/sconce"),
        None => std::env::temp_dir().join(format!("sconce-{}", rustix::process::getuid().as_raw())),
    }
}

fn make_private(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let metadata = fs::symlink_metadata(path)?;
    let ours = metadata.is_dir() && metadata.uid() == rustix::process::geteuid().as_raw();
    if !ours || metadata.mode() & 0o022 != 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "it must be a folder of this user that nobody else may write to",
        ));
    }
    Ok(())
}

/// Removes what processes left that were killed.
fn sweep(work_dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(work_dir)?.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(RUN_PREFIX) {
            continue;
        }
        // A run folder without a lock is being made this moment, or its process died right then: a stray empty folder.
        let Ok(lock) = fs::File::open(entry.path().join("lock")) else {
            continue;
        };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_process_left_is_swept_and_what_lives_is_not() {
        let root = tempfile::tempdir().expect("a folder");
        let root = root.path().join("work");
        let living = Work::open(&root).expect("opens");
        let dead = root.join("run-dead");
        fs::create_dir(&dead).expect("made");
        fs::write(dead.join("lock"), "").expect("written");
        let second = Work::open(&root).expect("opens");
        assert!(!dead.exists());
        assert!(living.copies().exists() && second.copies().exists());
    }

    #[test]
    fn a_folder_that_others_may_write_to_is_refused() {
        let root = tempfile::tempdir().expect("a folder");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        fs::set_permissions(root.path(), mode).expect("set");
        assert!(Work::open(root.path()).is_err());
    }
}

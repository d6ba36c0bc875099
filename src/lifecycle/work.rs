//! The private folders of this process, and what outlives it.
//!
//! ```text
//! work_dir/            0700
//!   probed/            passes of the child
//!   suspects/          versions that ran while a process died
//!   run-XXXXXX/        of one process; `lock` is held while it lives
//!     copies/  empty/
//! ```

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

use super::{
    black_box::{self, BlackBox},
    suspects,
};
use crate::{
    error::{Error, Result},
    runtime::Marker,
};

/// The folder of this process. It goes with the process, and if that was killed, when the next one starts.
#[derive(Debug)]
pub struct Work {
    work_dir: PathBuf,
    _black_box: Option<BlackBox>,
    marker: Marker,
    run: tempfile::TempDir,
    _lock: fs::File,
}

const RUN_PREFIX: &str = "run-";
const PROBED: &str = "probed";
const SUSPECTS: &str = "suspects";

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
        let folders = [work_dir.to_owned(), work_dir.join(PROBED), work_dir.join(SUSPECTS)];
        folders.iter().try_for_each(|folder| make_private(folder))?;
        sweep(work_dir)?;
        black_box::sweep_memory();
        let run = tempfile::Builder::new().prefix(RUN_PREFIX).tempdir_in(work_dir)?;
        let lock = fs::File::create(run.path().join("lock"))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        for folder in [run.path().join("copies"), run.path().join("empty")] {
            make_private(&folder)?;
        }
        let (black_box, marker) = match BlackBox::create(run.path()) {
            Ok((black_box, marker)) => (Some(black_box), marker),
            Err(error) => {
                tracing::warn!(%error, "should the server die, the next one will not know which versions were running");
                (None, Marker::none())
            }
        };
        Ok(Self { work_dir: work_dir.to_owned(), _black_box: black_box, marker, run, _lock: lock })
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
        self.work_dir.join(PROBED)
    }

    pub fn suspects(&self) -> PathBuf {
        self.work_dir.join(SUSPECTS)
    }

    /// In which this process marks what it runs.
    pub fn marker(&self) -> Marker {
        self.marker
    }
}

/// `$XDG_CACHE_HOME/sconce`, `~/.cache/sconce`, or a folder of this user under the system's temporary one.
pub fn default_dir() -> PathBuf {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
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

/// Removes what processes left that were killed, and writes down what they ran.
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
            suspects::accuse(&work_dir.join(SUSPECTS), &black_box::read(&entry.path()))?;
            black_box::remove(&entry.path());
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
    fn who_ran_in_a_process_that_died_is_suspected_and_nobody_else() {
        let root = tempfile::tempdir().expect("a folder");
        let root = root.path().join("work");
        let suspects = || super::suspects::Suspects::read(root.join(SUSPECTS)).count();
        let living = Work::open(&root).expect("opens");
        let running = living.marker().of(3).begin();
        drop(Work::open(&root).expect("opens"));
        assert_eq!(suspects(), 0, "it lives");
        // As a killed process leaves it: the folder, without its lock.
        let dead = root.join("run-dead");
        fs::create_dir(&dead).expect("made");
        fs::write(dead.join("lock"), "").expect("written");
        let (left, marker) = BlackBox::create(&dead).expect("it can be made");
        let crashed = marker.of(4).begin();
        drop(Work::open(&root).expect("opens"));
        assert_eq!(suspects(), 1);
        drop((running, crashed, left));
    }

    #[test]
    fn a_folder_that_others_may_write_to_is_refused() {
        let root = tempfile::tempdir().expect("a folder");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        fs::set_permissions(root.path(), mode).expect("set");
        assert!(Work::open(root.path()).is_err());
    }
}

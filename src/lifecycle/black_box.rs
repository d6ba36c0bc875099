//! Where the marker of a process lies, and what it says when the process is dead.
//!
//! In memory, where the system has a folder for that: a page of a file on a disk is written back every few seconds, and who
//! stores into it at that moment waits for the disk, which a core of the data plane must not (Evan Jones, "The Four Month
//! Bug: JVM statistics cause garbage collection pauses"). The name there says which run folder it belongs to.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, OFlags, flock};

use crate::runtime::Marker;

/// The marker file of this process. It goes when the process ends by itself.
#[derive(Debug)]
pub struct BlackBox {
    path: PathBuf,
    /// Locked while the process lives.
    _file: fs::File,
}

const MEMORY: &str = "/dev/shm";
const PREFIX: &str = "sconce-";

// === impl BlackBox ===

impl BlackBox {
    /// In memory, or else in the run folder.
    pub fn create(run: &Path) -> io::Result<(Self, Marker)> {
        let beside = in_run(run);
        match in_memory(run).map(|path| Self::create_at(&path)) {
            Some(Ok(made)) => Ok(made),
            _ => Self::create_at(&beside),
        }
    }

    fn create_at(path: &Path) -> io::Result<(Self, Marker)> {
        let mut options = fs::OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(path)?;
        let made = Self { path: path.to_owned(), _file: file.try_clone()? };
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        let marker = Marker::map(&file)?;
        Ok((made, marker))
    }
}

impl Drop for BlackBox {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// The tags of what ran when the process of this run folder died. To be asked while the folder's lock is held.
pub fn read(run: &Path) -> BTreeSet<u64> {
    let places = in_memory(run).into_iter().chain([in_run(run)]);
    let read = places.filter_map(|path| Marker::read(&open_own(&path).ok()?).ok());
    read.flatten().collect()
}

/// Removes it where it does not go with the run folder.
pub fn remove(run: &Path) {
    if let Some(path) = in_memory(run) {
        let _ = fs::remove_file(path);
    }
}

/// Removes what lies in memory for run folders that are gone.
pub fn sweep_memory() {
    for entry in fs::read_dir(MEMORY).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(run) = name.to_str().and_then(run_of) else {
            continue;
        };
        // In another container the folder may be there all the same: its process holds the lock.
        let dead = |file: fs::File| flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
        if !run.exists() && open_own(&entry.path()).is_ok_and(dead) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn in_run(run: &Path) -> PathBuf {
    run.join("running")
}

/// `None` for a path that makes no file's name.
fn in_memory(run: &Path) -> Option<PathBuf> {
    const NAME_BYTES_MAX: usize = 255;
    let run = fs::canonicalize(run).ok()?;
    let name = format!("{PREFIX}{}", run.to_str()?.replace('%', "%25").replace('/', "%2F"));
    (name.len() <= NAME_BYTES_MAX).then(|| Path::new(MEMORY).join(name))
}

fn run_of(name: &str) -> Option<PathBuf> {
    let path = name.strip_prefix(PREFIX)?.replace("%2F", "/").replace("%25", "%");
    path.starts_with('/').then(|| path.into())
}

/// Others may write to the folder, too.
fn open_own(path: &Path) -> io::Result<fs::File> {
    let mut options = fs::OpenOptions::new();
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = options.read(true).custom_flags(flags.bits() as i32).open(path)?;
    let metadata = file.metadata()?;
    match metadata.is_file() && metadata.uid() == rustix::process::geteuid().as_raw() {
        true => Ok(file),
        false => Err(io::ErrorKind::PermissionDenied.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ran_is_read_and_what_belongs_to_nobody_is_swept() {
        let run = tempfile::tempdir().expect("a folder");
        let (made, marker) = BlackBox::create(run.path()).expect("it can be made");
        let running = marker.of(5).begin();
        assert_eq!(read(run.path()), [5].into());
        let path = made.path.clone();
        sweep_memory();
        assert!(path.exists(), "its run folder is there");
        drop((running, made));
        assert!(!path.exists());
        // As a killed process leaves it, whose folder somebody removed.
        let lost = run.path().join("100%/run");
        fs::create_dir_all(&lost).expect("made");
        let name = in_memory(&lost).expect("a name");
        fs::remove_dir(&lost).expect("removed");
        if fs::write(&name, "").is_ok() {
            sweep_memory();
            assert!(!name.exists());
        }
    }
}

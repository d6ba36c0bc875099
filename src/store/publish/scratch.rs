//! A folder to work in, that goes with its owner however that ends: by its drop, or when the next one is made beside it.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

/// `.LABEL.tmp-NONCE`: its name begins with a dot, so that no server ever looks into it.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    /// Held while its owner lives. A lock of the folder itself, so that no file for it is ever published.
    _lock: File,
    is_kept: bool,
}

const MARK: &str = ".tmp-";

// === impl Scratch ===

impl Scratch {
    /// A new one inside `parent`, with this mode as far as the umask lets it. Those of dead processes beside it are removed.
    pub fn new(parent: &Path, label: &str, mode: u32) -> io::Result<Self> {
        sweep(parent)?;
        loop {
            let path = parent.join(format!(".{label}{MARK}{:016x}", fastrand::u64(..)));
            match DirBuilder::new().mode(mode).create(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                made => made?,
            }
            let lock = File::open(&path)?;
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                // Between its making and its locking somebody swept it.
                Err(rustix::io::Errno::WOULDBLOCK) => continue,
                Ok(()) if lock.metadata()?.nlink() == 0 => continue,
                // Some network file systems lock no folders: nobody can sweep there either.
                Ok(()) | Err(_) => return Ok(Self { path, _lock: lock, is_kept: false }),
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it its lasting name beside it. An error leaves nothing; it is `DirectoryNotEmpty` where somebody has the name.
    pub fn rename(mut self, name: &str) -> io::Result<()> {
        fs::rename(&self.path, self.path.with_file_name(name))?;
        self.is_kept = true;
        Ok(())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.is_kept {
            // What cannot be removed now is removed by whoever works here next.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Removes those whose owners are dead, which the kernel tells by their locks.
fn sweep(parent: &Path) -> io::Result<()> {
    for entry in fs::read_dir(parent)?.flatten() {
        let name = entry.file_name();
        let is_scratch = name.to_str().is_some_and(|name| name.starts_with('.') && name.contains(MARK));
        if !is_scratch || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        if let Ok(lock) = File::open(entry.path())
            && flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()
        {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).expect("a folder").flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn it_goes_with_its_owner_or_stays_under_its_lasting_name() {
        let parent = tempfile::tempdir().expect("a folder");
        let scratch = Scratch::new(parent.path(), "1.0.0", 0o700).expect("made");
        assert!(names(parent.path())[0].starts_with(".1.0.0.tmp-"));
        fs::write(scratch.path().join("a"), "a").expect("written");
        drop(scratch);
        assert!(names(parent.path()).is_empty());
        let scratch = Scratch::new(parent.path(), "1.0.0", 0o700).expect("made");
        fs::write(scratch.path().join("a"), "a").expect("written");
        scratch.rename("1.0.0").expect("renamed");
        assert_eq!(names(parent.path()), ["1.0.0"]);
        let second = Scratch::new(parent.path(), "1.0.0", 0o700).expect("made");
        assert_eq!(second.rename("1.0.0").expect_err("it is there").kind(), io::ErrorKind::DirectoryNotEmpty);
        assert_eq!(names(parent.path()), ["1.0.0"]);
    }

    #[test]
    fn what_a_dead_process_left_is_swept_and_what_lives_is_not() {
        let parent = tempfile::tempdir().expect("a folder");
        let dead = parent.path().join(".1.0.0.tmp-dead");
        fs::create_dir(&dead).expect("made");
        fs::write(dead.join("half"), "a").expect("written");
        let living = Scratch::new(parent.path(), "2.0.0", 0o700).expect("made");
        let second = Scratch::new(parent.path(), "2.0.0", 0o700).expect("made");
        assert!(!dead.exists());
        assert!(living.path().exists() && second.path().exists());
    }
}

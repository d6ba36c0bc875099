//! Versions that ran while a server died: until they have passed the child alone, they do not serve.
//!
//! Each is an empty file in a folder that outlives the process, named by the version's tag, so that a second death before
//! the trial forgets nobody.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard},
    time::SystemTime,
};

use sha2::{Digest, Sha256};

use crate::model::{ModelName, Version};

/// Those of one work folder, as they were when this process started.
#[derive(Debug)]
pub struct Suspects {
    folder: PathBuf,
    known: Mutex<BTreeMap<u64, Suspect>>,
}

#[derive(Clone, Copy, Debug)]
struct Suspect {
    /// When the death was noticed.
    noticed: SystemTime,
    /// Whether its name was logged: the tag alone tells nobody.
    named: bool,
    cleared: bool,
}

/// What the marker calls a version. Never 0.
pub fn tag(model: &ModelName, version: Version, digest: &str) -> u64 {
    let hash = Sha256::digest(format!("{model}/{version}/{digest}"));
    let first = hash.first_chunk().expect("a digest has 32 bytes: this is a bug");
    u64::from_ne_bytes(*first).max(1)
}

/// Writes down who ran when a server died.
pub fn accuse(folder: &Path, tags: &BTreeSet<u64>) -> io::Result<()> {
    for tag in tags {
        fs::write(file_of(folder, *tag), "")?;
    }
    Ok(())
}

// === impl Suspects ===

impl Suspects {
    pub fn read(folder: PathBuf) -> Self {
        let mut known = BTreeMap::new();
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let tag = name.to_str().and_then(|name| u64::from_str_radix(name, 16).ok());
            let noticed = entry.metadata().and_then(|metadata| metadata.modified());
            if let (Some(tag), Ok(noticed)) = (tag, noticed) {
                let suspect = Suspect { noticed, named: false, cleared: false };
                known.insert(tag, suspect);
            }
        }
        Self { folder, known: Mutex::new(known) }
    }

    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// Whether it must pass the child alone before it serves.
    pub fn holds(&self, tag: u64) -> bool {
        self.lock().get(&tag).is_some_and(|suspect| !suspect.cleared)
    }

    /// Names it in the log, once.
    pub fn name(&self, tag: u64, model: &ModelName, version: Version) {
        if let Some(suspect) = self.lock().get_mut(&tag)
            && !std::mem::replace(&mut suspect.named, true)
        {
            tracing::warn!(%model, %version, "version was running when a server died; the child tries it alone");
        }
    }

    pub fn clear(&self, tag: u64) {
        if let Some(suspect) = self.lock().get_mut(&tag) {
            suspect.cleared = true;
            let _ = fs::remove_file(file_of(&self.folder, tag));
        }
    }

    /// What operators are told of one that serves again.
    pub fn note(&self, tag: u64) -> Option<String> {
        let noticed = self.lock().get(&tag)?.noticed;
        Some(format!(
            "was running when the server died, as was noticed at {}; it has passed the child again, alone",
            humantime::format_rfc3339_seconds(noticed)
        ))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Suspect>> {
        self.known.lock().expect("no holder panics: this is a bug")
    }
}

fn file_of(folder: &Path, tag: u64) -> PathBuf {
    folder.join(format!("{tag:016x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suspect_stays_one_until_it_is_cleared_and_is_noted_from_then_on() {
        let folder = tempfile::tempdir().expect("a folder");
        let read = || Suspects::read(folder.path().to_owned());
        accuse(folder.path(), &[1, 2].into()).expect("written");
        let suspects = read();
        assert!(suspects.holds(1) && read().holds(2) && !suspects.holds(3));
        suspects.clear(1);
        assert!(!suspects.holds(1) && !read().holds(1) && read().holds(2));
        assert!(suspects.note(1).is_some() && read().note(1).is_none());
    }
}

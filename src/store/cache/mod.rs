//! Artifacts of a bucket on the local disk, by their content, so that nothing is fetched twice and a start needs no bucket.
//!
//! ```text
//! cache/         0700
//!   objects/     whole files, named by their sha256
//!   known/       the sha256 of an object in a certain state, where no version.yaml says it
//!   partial/     downloads that were cut off; the next try goes on where they end
//!   listings/    the last good listing of each store
//! ```
//!
//! What is not held by a version at work or a load goes when room is needed, the longest unused first. Several processes may
//! share the folder: what is whole is renamed into place. Nothing is opened from here; `verify` copies and hashes it again.

mod fetch;

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::SystemTime,
};

use crate::error::{Code, Error, Result};

pub(super) use fetch::fetch;

pub struct Cache {
    folder: PathBuf,
    bytes_max: u64,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// How often each file, by its path, is held by this process.
    held: BTreeMap<PathBuf, usize>,
    /// Room that downloads asked for and have not used yet.
    promised: u64,
}

/// A file that stays while somebody holds this.
#[derive(Debug)]
pub struct Held {
    path: PathBuf,
    state: Arc<Mutex<State>>,
}

/// Room for a download, until it is done.
struct Room {
    bytes: u64,
    state: Arc<Mutex<State>>,
}

/// One file that might go.
struct Candidate {
    path: PathBuf,
    used: SystemTime,
    bytes: u64,
}

// === impl Cache ===

impl Cache {
    /// Makes the folders where they are not there yet.
    pub fn open(folder: &Path, bytes_max: u64) -> Result<Self> {
        let cache = Self { folder: folder.to_owned(), bytes_max, state: Arc::default() };
        let made = ["objects", "known", "partial", "listings"]
            .into_iter()
            .try_for_each(|name| fs::DirBuilder::new().recursive(true).mode(0o700).create(cache.folder.join(name)));
        made.and_then(|()| cache.forget_what_is_gone()).map_err(|error| {
            let sentence = format!("the cache '{}' cannot be used: {error}", folder.display());
            Error::internal("CACHE_UNUSABLE", sentence)
        })?;
        Ok(cache)
    }

    /// Where the listing with this key is kept.
    pub fn listing(&self, key: &str) -> PathBuf {
        self.folder.join("listings").join(key)
    }

    /// Writes a small file whole or not at all.
    pub fn write_whole(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut file = tempfile::Builder::new().tempfile_in(self.folder.join("partial"))?;
        io::Write::write_all(&mut file, bytes)?;
        file.persist(path).map(drop).map_err(|error| error.error)
    }

    fn object(&self, sha256: &str) -> PathBuf {
        self.folder.join("objects").join(sha256.to_ascii_lowercase())
    }

    fn known(&self, key: &str) -> PathBuf {
        self.folder.join("known").join(key)
    }

    /// The sha256 of what was fetched under this key before.
    fn recall(&self, key: &str) -> Option<String> {
        let text = fs::read_to_string(self.known(key)).ok()?;
        is_sha256(&text).then_some(text)
    }

    /// A whole file, marked as used now.
    fn find(&self, sha256: &str) -> Option<Held> {
        let held = self.hold(self.object(sha256));
        let file = fs::OpenOptions::new().append(true).open(&held.path).ok()?;
        // Only the order of going depends on it.
        let _ = file.set_modified(SystemTime::now());
        Some(held)
    }

    fn hold(&self, path: PathBuf) -> Held {
        *self.lock().held.entry(path.clone()).or_default() += 1;
        Held { path, state: self.state.clone() }
    }

    /// Makes room for `bytes` more. Both folders are looked at anew: another process may use them too.
    fn reserve(&self, bytes: u64) -> Result<Room> {
        let mut state = self.lock();
        let mut files = self.files().map_err(|error| no_space_or(&error))?;
        files.sort_by_key(|file| file.used);
        let mut total: u64 = files.iter().map(|file| file.bytes).sum::<u64>() + state.promised;
        let idle: Vec<&Candidate> = files.iter().filter(|file| !state.held.contains_key(&file.path)).collect();
        let mut idle = idle.into_iter();
        while total.saturating_add(bytes) > self.bytes_max {
            let Some(oldest) = idle.next() else {
                let sentence = format!(
                    "the cache of artifacts has no room for {bytes} bytes more: all of its {} is used by versions that \
                     serve or load; set a larger cache_size",
                    bytesize::ByteSize(self.bytes_max)
                );
                return Err(Error::new(Code::ResourceExhausted, "NO_SPACE", sentence));
            };
            // Another process may have been faster.
            if fs::remove_file(&oldest.path).is_ok() {
                tracing::debug!(bytes = oldest.bytes, "the longest unused file left the cache");
            }
            total -= oldest.bytes;
        }
        state.promised += bytes;
        Ok(Room { bytes, state: self.state.clone() })
    }

    fn files(&self) -> io::Result<Vec<Candidate>> {
        let mut files = Vec::new();
        for folder in ["objects", "partial"] {
            for entry in fs::read_dir(self.folder.join(folder))? {
                let entry = entry?;
                // What went between the two calls takes no room.
                if let Ok(metadata) = entry.metadata() {
                    let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                    files.push(Candidate { path: entry.path(), used, bytes: metadata.len() });
                }
            }
        }
        Ok(files)
    }

    fn forget_what_is_gone(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.folder.join("known"))? {
            let path = entry?.path();
            let leads_to = fs::read_to_string(&path).unwrap_or_default();
            if !is_sha256(&leads_to) || !self.object(&leads_to).exists() {
                let _ = fs::remove_file(path);
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

// === impl Held ===

impl Held {
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its sha256, as its name says.
    pub fn sha256(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    /// Takes a file away that is not what its name says.
    pub fn discard(&self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        if let Some(count) = state.held.get_mut(&self.path) {
            *count -= 1;
            if *count == 0 {
                state.held.remove(&self.path);
            }
        }
    }
}

impl Room {
    /// Bytes that are on the disk are seen there.
    fn spend(&mut self, bytes: u64) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        lock(&self.state).promised -= bytes;
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        lock(&self.state).promised -= self.bytes;
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} held", self.held.len())
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().expect("no holder panics: this is a bug")
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// An error of the cache's folder, with the one that operators must act on told apart.
fn no_space_or(error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::new(
            Code::ResourceExhausted,
            "NO_SPACE",
            "the disk of the cache of artifacts (the folder cache in the work folder) is full; free some space, set a \
             smaller cache_size or another work folder",
        ),
        kind => Error::internal("CACHE_UNUSABLE", format!("the cache of artifacts cannot be used: {kind}")),
    }
}

/// A private file that may be there already.
fn open_private(path: &Path) -> io::Result<fs::File> {
    fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn put(cache: &Cache, letter: char, bytes: usize, age_s: u64) -> String {
        let sha256: String = std::iter::repeat_n(letter, 64).collect();
        let file = fs::File::create(cache.object(&sha256)).expect("a file");
        file.set_len(bytes as u64).expect("sized");
        file.set_modified(SystemTime::now() - Duration::from_secs(age_s)).expect("aged");
        sha256
    }

    #[test]
    fn the_longest_unused_goes_and_never_what_is_held() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = Cache::open(folder.path(), 100).expect("made");
        let [a, b, c] = [('a', 50), ('b', 30), ('c', 10)].map(|(letter, age)| put(&cache, letter, 30, age));
        let there = |sha: &String| cache.object(sha).exists();
        let _room = cache.reserve(10).expect("it fits");
        assert!(there(&a));
        let held = cache.hold(cache.object(&a));
        let _more = cache.reserve(20).expect("one goes");
        assert_eq!([&a, &b, &c].map(there), [true, false, true]);
        let error = cache.reserve(60).err().expect("the held one stays");
        assert_eq!(error.reason(), "NO_SPACE");
        assert!(error.message().contains("cache_size"), "{error}");
        drop(held);
        assert!(cache.find(&a).is_some() && cache.find(&b).is_none());
        cache.reserve(70).expect("nothing is held");
        assert!(!there(&a));
    }

    #[test]
    fn what_is_known_of_files_that_went_is_forgotten() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = Cache::open(folder.path(), 100).expect("made");
        let sha256 = put(&cache, 'a', 1, 0);
        cache.write_whole(&cache.known("k"), sha256.as_bytes()).expect("written");
        assert_eq!(Cache::open(folder.path(), 100).expect("made").recall("k"), Some(sha256.clone()));
        fs::remove_file(cache.object(&sha256)).expect("removed");
        assert_eq!(Cache::open(folder.path(), 100).expect("made").recall("k"), None);
    }
}

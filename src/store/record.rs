//! The records of a store: each model's route.yaml, replaced by compare-and-swap, and (`notes`) what each replica says of itself.
//!
//! Whole or not at all: what was acknowledged is on the disk, and nothing is ever half there. Knows bytes and their tags; what
//! they mean is the business of others. `rollout` writes through it, the watcher reads what was written.

mod notes;

use std::{
    collections::HashSet,
    fs::File,
    io::{self, Write},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use notes::Kept;
pub use notes::Note;

use cap_std::{ambient_authority, fs::Dir};
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

use super::{
    bucket::{Bucket, Etag, PutOutcome},
    files::{open_plain, read_text},
};
use crate::{
    error::{Code, Error, Result},
    model::ModelName,
};

/// Where the records are. Cheap to clone.
#[derive(Clone)]
pub struct Records(Arc<Place>);

enum Place {
    Folder(Folder),
    Bucket(Bucket, Kept),
    /// Nothing may be written here, and why.
    Closed(Error),
}

/// The folder of the store, or of `--state`. Cheap to clone.
#[derive(Clone)]
struct Folder {
    root: PathBuf,
    /// Of `--state`, the models whose folders were made or found here. Those of a store are people's: where one is gone, its
    /// store is away, as one that was unmounted, and nothing is to be written in its place.
    found: Option<Arc<Mutex<HashSet<ModelName>>>>,
}

/// A record as it was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// `None` where there is no file.
    pub text: Option<String>,
    pub tag: Tag,
}

/// What a record is told by. Another tag means other bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tag {
    Absent,
    Digest([u8; 32]),
    Object(Etag),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replaced {
    Written,
    /// Somebody else was first.
    Lost,
}

const ROUTE: &str = "route.yaml";
const OWN: &str = ".sconce";
const RETRY_LATER: Duration = Duration::from_secs(1);

// === impl Records ===

impl Records {
    /// Of a store: models whose folders are not there have no records.
    pub fn in_folder(root: impl Into<PathBuf>) -> Self {
        Self(Arc::new(Place::Folder(Folder { root: root.into(), found: None })))
    }

    /// Apart from the store: the models' folders are made here.
    pub fn in_state(root: impl Into<PathBuf>) -> Self {
        Self(Arc::new(Place::Folder(Folder { root: root.into(), found: Some(Arc::default()) })))
    }

    pub fn in_bucket(bucket: Bucket) -> Self {
        Self(Arc::new(Place::Bucket(bucket, Kept::default())))
    }

    /// Of a server whose routes are written elsewhere, or nowhere.
    pub fn closed(why: Error) -> Self {
        Self(Arc::new(Place::Closed(why)))
    }

    /// Why nothing can be written here, as far as one can tell without writing.
    pub fn closed_because(&self) -> Option<Error> {
        match &*self.0 {
            Place::Closed(why) => Some(why.clone()),
            Place::Bucket(..) => None,
            Place::Folder(Folder { root, .. }) => {
                let access = rustix::fs::access(root, rustix::fs::Access::WRITE_OK);
                access.err().filter(|errno| *errno != rustix::io::Errno::NOENT).map(|errno| trouble(&errno.into()))
            }
        }
    }

    /// The model's route.yaml as it stands.
    pub async fn read(&self, model: &ModelName) -> Result<Record> {
        match &*self.0 {
            Place::Closed(why) => Err(why.clone()),
            Place::Bucket(bucket, _) => read_object(bucket, model).await,
            Place::Folder(folder) => {
                let (folder, model) = (folder.clone(), model.clone());
                blocking(move || read_in(&folder.open(&model)?, &model)).await
            }
        }
    }

    /// Replaces the model's route.yaml, if it is still what `expected` tells.
    pub async fn replace(&self, model: &ModelName, expected: &Tag, text: String) -> Result<Replaced> {
        match &*self.0 {
            Place::Closed(why) => Err(why.clone()),
            Place::Bucket(bucket, _) => replace_object(bucket, model, expected, text).await,
            Place::Folder(folder) => {
                let (folder, model, expected) = (folder.clone(), model.clone(), expected.clone());
                blocking(move || replace_local(&folder.open(&model)?, &model, &expected, &text)).await
            }
        }
    }

    /// Has every replica look for what was replaced. A folder tells of it by itself, a bucket by its marker.
    pub async fn tell(&self) {
        let Place::Bucket(bucket, _) = &*self.0 else { return };
        // It is written all the same: where the marker fails, the others only learn of it later.
        if let Err(error) = bucket.touch_marker().await {
            tracing::debug!(%error, "the bucket's marker is not written");
        }
    }
}

// === impl Folder ===

impl Folder {
    /// The root, in which the model's folder is.
    fn open(&self, model: &ModelName) -> io::Result<Dir> {
        let root = Dir::open_ambient_dir(&self.root, ambient_authority())?;
        if let Some(found) = &self.found {
            let mut found = found.lock().expect("no holder panics: this is a bug");
            if !found.contains(model) {
                made(root.create_dir(model.as_str()))?;
                found.insert(model.clone());
            }
        }
        root.metadata(model.as_str())?;
        Ok(root)
    }
}

async fn read_object(bucket: &Bucket, model: &ModelName) -> Result<Record> {
    let Some(object) = bucket.get(&format!("{model}/{ROUTE}")).await? else {
        return Ok(Record { text: None, tag: Tag::Absent });
    };
    let text = String::from_utf8(object.bytes.to_vec())
        .map_err(|_| trouble(&io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8 text")))?;
    Ok(Record { text: Some(text), tag: Tag::Object(object.etag) })
}

async fn replace_object(bucket: &Bucket, model: &ModelName, expected: &Tag, text: String) -> Result<Replaced> {
    let expected = match expected {
        Tag::Object(etag) => Some(etag),
        Tag::Absent | Tag::Digest(_) => None,
    };
    match bucket.put_if(&format!("{model}/{ROUTE}"), text, expected).await? {
        PutOutcome::Lost => Ok(Replaced::Lost),
        PutOutcome::Written(_) => Ok(Replaced::Written),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.map_err(|_| Error::internal("RECORD", "a record's thread panicked: this is a bug"))?;
    done.map_err(|error| trouble(&error))
}

fn read_in(root: &Dir, model: &ModelName) -> io::Result<Record> {
    let path = format!("{model}/{ROUTE}");
    match open_plain(root, &path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Record { text: None, tag: Tag::Absent }),
        Err(error) => return Err(error),
        Ok(_) => {}
    }
    let text = read_text(root, &path).map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why))?;
    Ok(Record { tag: Tag::Digest(Sha256::digest(text.as_bytes()).into()), text: Some(text) })
}

/// flock, read, compare, write, fsync, rename, fsync the folder. Killed anywhere in between, the old file stands.
fn replace_local(store: &Dir, model: &ModelName, expected: &Tag, text: &str) -> io::Result<Replaced> {
    made(store.create_dir(format!("{model}/{OWN}")))?;
    let lock = store.create(format!("{model}/{OWN}/route.lock"))?.into_std();
    // Released with the file, also by the kernel when the process dies.
    flock(&lock, FlockOperation::LockExclusive)?;
    if read_in(store, model)?.tag != *expected {
        return Ok(Replaced::Lost);
    }
    let folder = store.open_dir(model.as_str())?;
    let temporary = format!("{OWN}/{ROUTE}.tmp");
    let written = write_durably(&folder, &temporary, text).and_then(|()| folder.rename(&temporary, &folder, ROUTE));
    if let Err(error) = written {
        let _ = folder.remove_file(&temporary);
        return Err(error);
    }
    sync_folder(&folder)?;
    Ok(Replaced::Written)
}

/// A folder that was there already is one.
fn made(created: io::Result<()>) -> io::Result<()> {
    created.or_else(|error| if error.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) })
}

/// What stands under a temporary name afterwards is as durable as the name that it is moved to.
fn write_durably(folder: &Dir, name: &str, text: &str) -> io::Result<()> {
    let mut file: File = folder.create(name)?.into_std();
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn sync_folder(folder: &Dir) -> io::Result<()> {
    // A handle of its own: that of a `Dir` may be good for names only.
    folder.open(".")?.sync_all()
}

/// What stands in the way of a record, without a path.
fn trouble(error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => Error::new(
            Code::FailedPrecondition,
            "STORE_READ_ONLY",
            "the store may not be written to from here: change route.yaml at its source, or start the server with --state",
        ),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::new(
            Code::ResourceExhausted,
            "NO_SPACE",
            "the disk of the store is full: nothing was changed; free some space and ask again",
        ),
        io::ErrorKind::InvalidData => Error::new(
            Code::FailedPrecondition,
            "ROUTE_UNREADABLE",
            format!("route.yaml cannot be read: {error}; mend it or remove it"),
        ),
        _ => Error::unavailable(
            "STORE_UNAVAILABLE",
            format!("the store cannot be reached ({}); what is loaded serves on", error.kind()),
            RETRY_LATER,
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn name() -> ModelName {
        ModelName::new("m").expect("a name")
    }

    fn store() -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a folder");
        fs::create_dir(root.path().join("m")).expect("a folder");
        root
    }

    #[tokio::test]
    async fn a_record_is_replaced_by_whoever_knew_the_last_one() {
        let root = store();
        let records = Records::in_folder(root.path());
        let before = records.read(&name()).await.expect("it can be read");
        assert_eq!(before.tag, Tag::Absent);
        let replace = |tag: Tag, text: &str| {
            let (records, text) = (records.clone(), text.to_owned());
            async move { records.replace(&name(), &tag, text).await.expect("it can be written") }
        };
        assert_eq!(replace(Tag::Absent, "a").await, Replaced::Written);
        assert_eq!(replace(Tag::Absent, "b").await, Replaced::Lost);
        let now = records.read(&name()).await.expect("it can be read");
        assert_eq!(now.text.as_deref(), Some("a"));
        assert_eq!(replace(now.tag, "b").await, Replaced::Written);
        assert_eq!(fs::read_to_string(root.path().join("m/route.yaml")).expect("there"), "b");
    }

    #[tokio::test]
    async fn of_many_who_start_from_the_same_record_one_wins() {
        let root = store();
        let records = Records::in_folder(root.path());
        let writers = (0..16).map(|writer| {
            let records = records.clone();
            tokio::spawn(async move { records.replace(&name(), &Tag::Absent, writer.to_string()).await })
        });
        let mut won = 0;
        for writer in writers.collect::<Vec<_>>() {
            won += usize::from(writer.await.expect("no panic").expect("no trouble") == Replaced::Written);
        }
        assert_eq!(won, 1);
    }

    #[tokio::test]
    async fn a_model_whose_folder_is_gone_gets_no_record() {
        let root = tempfile::tempdir().expect("a folder");
        let records = Records::in_folder(root.path());
        assert_eq!(records.read(&name()).await.expect_err("it is away").reason(), "STORE_UNAVAILABLE");
        let replaced = records.replace(&name(), &Tag::Absent, "a".into()).await;
        assert_eq!(replaced.expect_err("it is away").reason(), "STORE_UNAVAILABLE");
        assert!(records.write_status(&name(), "here", "{}".into()).await.is_err());
        assert_eq!(fs::read_dir(root.path()).expect("a folder").count(), 0, "nothing was made");
    }

    #[tokio::test]
    async fn where_nothing_may_be_written_it_is_said() {
        let why = Error::new(Code::FailedPrecondition, "ROUTES_EXTERNAL", "change it at its source");
        let records = Records::closed(why);
        assert_eq!(records.read(&name()).await.expect_err("closed").reason(), "ROUTES_EXTERNAL");
        assert!(records.closed_because().is_some());
    }
}

//! What each replica writes of itself, one file a model: its status, which goes when it ends, and its counts, which stay.
//!
//! Nobody else writes these files, so nothing is compared. `rollout` knows what stands in them.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use cap_std::fs::Dir;

use super::{OWN, Place, Records, blocking, made, sync_folder, write_durably};
use crate::{
    error::Result,
    model::ModelName,
    store::bucket::{Bucket, Entry, Etag},
};

/// What a replica said of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Note {
    pub replica: String,
    pub text: String,
}

/// Which of the files, named by its folder.
#[derive(Clone, Copy)]
enum Kind {
    Status,
    Counts,
}

/// Of a bucket: what its files said last, by path. Those of replicas that are gone never change again, and there may be many.
#[derive(Default)]
pub struct Kept(Mutex<HashMap<String, (Stamp, String)>>);

/// Some servers' lists have no tags.
type Stamp = (Etag, u64, i64);

const READ_AT_ONCE: usize = 8;

// === impl Kept ===

impl Kept {
    fn get(&self, entry: &Entry) -> Option<String> {
        let texts = self.texts();
        texts.get(&entry.path).filter(|(known, _)| *known == stamp(entry)).map(|(_, text)| text.clone())
    }

    fn keep(&self, entry: &Entry, text: String) {
        self.texts().insert(entry.path.clone(), (stamp(entry), text));
    }

    /// Of that folder, what is not there any more.
    fn forget_but(&self, folder: &str, entries: &[Entry]) {
        let there: HashSet<&str> = entries.iter().map(|entry| entry.path.as_str()).collect();
        self.texts().retain(|path, _| !path.starts_with(folder) || there.contains(path.as_str()));
    }

    fn texts(&self) -> MutexGuard<'_, HashMap<String, (Stamp, String)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Records ===

impl Records {
    /// What each replica has said of a model, those that are gone included.
    pub async fn statuses(&self, model: &ModelName) -> Result<Vec<String>> {
        let notes = match &*self.0 {
            Place::Closed(why) => return Err(why.clone()),
            Place::Bucket(bucket, kept) => objects_in(bucket, kept, model, Kind::Status).await?,
            Place::Folder(folder) => {
                let folder = folder.root.join(Kind::Status.folder(model));
                blocking(move || notes_in(&folder)).await?
            }
        };
        Ok(notes.into_iter().map(|note| note.text).collect())
    }

    /// Writes what this replica says of a model. It is not made durable.
    pub async fn write_status(&self, model: &ModelName, replica: &str, text: String) -> Result<()> {
        self.write(Kind::Status, model, replica, text).await
    }

    /// Takes away what this replica said of a model.
    pub async fn remove_status(&self, model: &ModelName, replica: &str) -> Result<()> {
        let path = Kind::Status.path(model, replica);
        match &*self.0 {
            Place::Closed(why) => Err(why.clone()),
            Place::Bucket(bucket, _) => bucket.delete(&path).await,
            Place::Folder(folder) => {
                let path = folder.root.join(path);
                blocking(move || fs::remove_file(path)).await
            }
        }
    }

    /// What each replica has counted of a model, those that are gone included; nothing where there are no records. The text
    /// of one that cannot be read is empty.
    pub async fn counts(&self, model: &ModelName) -> Result<Vec<Note>> {
        match &*self.0 {
            Place::Closed(_) => Ok(Vec::new()),
            Place::Bucket(bucket, kept) => objects_in(bucket, kept, model, Kind::Counts).await,
            Place::Folder(folder) => {
                let (folder, model) = (folder.clone(), model.clone());
                blocking(move || {
                    // A store that is away has not lost its counts.
                    folder.open(&model)?;
                    notes_in(&folder.root.join(Kind::Counts.folder(&model)))
                })
                .await
            }
        }
    }

    /// What this replica has counted of a model; `None` where it never did, or where there are no records.
    pub async fn own_counts(&self, model: &ModelName, replica: &str) -> Result<Option<String>> {
        let path = Kind::Counts.path(model, replica);
        match &*self.0 {
            Place::Closed(_) => Ok(None),
            Place::Bucket(bucket, _) => {
                let object = bucket.get(&path).await?;
                Ok(object.map(|object| String::from_utf8_lossy(&object.bytes).into_owned()))
            }
            Place::Folder(folder) => {
                let (folder, model) = (folder.clone(), model.clone());
                blocking(move || {
                    folder.open(&model)?;
                    match fs::read(folder.root.join(path)) {
                        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                        read => Ok(Some(String::from_utf8_lossy(&read?).into_owned())),
                    }
                })
                .await
            }
        }
    }

    /// Writes what this replica has counted of a model, in the place of what it wrote before: whole and durable, or not at all.
    pub async fn write_counts(&self, model: &ModelName, replica: &str, text: String) -> Result<()> {
        self.write(Kind::Counts, model, replica, text).await
    }

    async fn write(&self, kind: Kind, model: &ModelName, replica: &str, text: String) -> Result<()> {
        match &*self.0 {
            Place::Closed(why) => Err(why.clone()),
            Place::Bucket(bucket, _) => bucket.put(&kind.path(model, replica), text).await.map(drop),
            Place::Folder(folder) => {
                let (folder, model, replica) = (folder.clone(), model.clone(), replica.to_owned());
                blocking(move || {
                    let model = folder.open(&model)?.open_dir(model.as_str())?;
                    write_in(kind, &model, &replica, &text)
                })
                .await
            }
        }
    }
}

// === impl Kind ===

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Status => "status",
            Kind::Counts => "counts",
        }
    }

    fn is_durable(self) -> bool {
        match self {
            Kind::Status => false,
            Kind::Counts => true,
        }
    }

    fn folder(self, model: &ModelName) -> String {
        format!("{model}/{OWN}/{}", self.name())
    }

    fn path(self, model: &ModelName, replica: &str) -> String {
        format!("{}/{replica}.json", self.folder(model))
    }
}

fn write_in(kind: Kind, model: &Dir, replica: &str, text: &str) -> io::Result<()> {
    let own = open_made(model, OWN, kind.is_durable())?;
    let folder = open_made(&own, kind.name(), kind.is_durable())?;
    let name = format!("{replica}.json");
    let temporary = format!(".{name}.tmp");
    let written = match kind.is_durable() {
        true => write_durably(&folder, &temporary, text),
        false => folder.write(&temporary, text),
    };
    if let Err(error) = written.and_then(|()| folder.rename(&temporary, &folder, name)) {
        let _ = folder.remove_file(&temporary);
        return Err(error);
    }
    if kind.is_durable() { sync_folder(&folder) } else { Ok(()) }
}

/// A folder that is there afterwards, for good if need be.
fn open_made(parent: &Dir, name: &str, durable: bool) -> io::Result<Dir> {
    match parent.open_dir(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            made(parent.create_dir(name))?;
            if durable {
                sync_folder(parent)?;
            }
            parent.open_dir(name)
        }
        opened => opened,
    }
}

/// Of what cannot be read the text is empty.
fn notes_in(folder: &Path) -> io::Result<Vec<Note>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let note = |entry: fs::DirEntry| {
        let replica = replica_of(entry.file_name().to_str()?)?;
        let text = String::from_utf8_lossy(&fs::read(entry.path()).unwrap_or_default()).into_owned();
        Some(Note { replica, text })
    };
    Ok(entries.flatten().filter_map(note).collect())
}

fn stamp(entry: &Entry) -> Stamp {
    (entry.etag.clone(), entry.size, entry.modified_ns)
}

/// Only what changed since it was read last is read again.
async fn objects_in(bucket: &Bucket, kept: &Kept, model: &ModelName, kind: Kind) -> Result<Vec<Note>> {
    let folder = kind.folder(model);
    let entries = bucket.list(&folder).await?;
    kept.forget_but(&folder, &entries);
    let news: Vec<&Entry> = entries.iter().filter(|entry| kept.get(entry).is_none()).collect();
    for some in news.chunks(READ_AT_ONCE) {
        let reads = some.iter().map(|entry| {
            let (bucket, path) = (bucket.clone(), entry.path.clone());
            tokio::spawn(async move { bucket.get(&path).await })
        });
        for (entry, read) in some.iter().zip(reads.collect::<Vec<_>>()) {
            if let Some(object) = read.await.expect("a read does not panic: this is a bug")? {
                kept.keep(entry, String::from_utf8_lossy(&object.bytes).into_owned());
            }
        }
    }
    let note = |entry: &Entry| {
        let replica = entry.path.rsplit('/').next().and_then(replica_of)?;
        Some(Note { replica, text: kept.get(entry)? })
    };
    Ok(entries.iter().filter_map(note).collect())
}

/// `None` for what no replica wrote, or is still writing.
fn replica_of(file: &str) -> Option<String> {
    let name = file.strip_suffix(".json").filter(|name| !name.is_empty() && !name.starts_with('.'))?;
    Some(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> ModelName {
        ModelName::new("m").expect("a name")
    }

    #[tokio::test]
    async fn counts_are_replaced_by_their_replica_and_read_by_all() {
        let root = tempfile::tempdir().expect("a folder");
        fs::create_dir(root.path().join("m")).expect("a folder");
        let records = Records::in_folder(root.path());
        assert_eq!(records.counts(&name()).await.expect("it is there"), []);
        assert_eq!(records.own_counts(&name(), "a").await.expect("it is there"), None);
        for (replica, text) in [("a", "1"), ("b", "2"), ("a", "3")] {
            records.write_counts(&name(), replica, text.into()).await.expect("it can be written");
        }
        records.write_status(&name(), "a", "s".into()).await.expect("it can be written");
        fs::write(root.path().join("m/.sconce/counts/.c.json.tmp"), "half").expect("a file");
        let mut counts = records.counts(&name()).await.expect("they can be read");
        counts.sort_by(|one, other| one.replica.cmp(&other.replica));
        let note = |replica: &str, text: &str| Note { replica: replica.into(), text: text.into() };
        assert_eq!(counts, [note("a", "3"), note("b", "2")]);
        assert_eq!(records.own_counts(&name(), "a").await.expect("it can be read").as_deref(), Some("3"));
        assert_eq!(records.statuses(&name()).await.expect("they can be read"), ["s"]);
        records.remove_status(&name(), "a").await.expect("it is there");
        assert_eq!(records.counts(&name()).await.expect("they can be read").len(), 2, "counts stay");
    }

    #[tokio::test]
    async fn a_store_that_is_away_has_not_forgotten_its_counts() {
        let root = tempfile::tempdir().expect("a folder");
        let records = Records::in_folder(root.path());
        assert_eq!(records.own_counts(&name(), "a").await.expect_err("it is away").reason(), "STORE_UNAVAILABLE");
        assert_eq!(records.counts(&name()).await.expect_err("it is away").reason(), "STORE_UNAVAILABLE");
        let written = records.write_counts(&name(), "a", "1".into()).await;
        assert_eq!(written.expect_err("it is away").reason(), "STORE_UNAVAILABLE");
        assert_eq!(fs::read_dir(root.path()).expect("a folder").count(), 0, "nothing was made");
    }
}

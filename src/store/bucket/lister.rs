//! Looks at a bucket with as few requests as will do.
//!
//! A quiet bucket costs one conditional request for its marker, a small object that whoever writes replaces with a fresh
//! nonce. The whole listing comes when the marker is another one, from time to time for writers that know of no marker, and
//! each time where there is no marker at all.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    time::{Instant, SystemTime},
};

use sha2::{Digest, Sha256};
use tokio::{sync::Semaphore, task::JoinSet};

use super::{
    Bucket, Entry, Etag, IfChanged, Object,
    seen::{Seen, SeenObject, SeenText, wanted_texts},
};
use crate::{
    error::{Code, Error, Result},
    store::{
        Config, Remote,
        layout::{Moment, StoreListing, YAML_BYTES_MAX},
        looks::Looks,
        scanner::nanoseconds,
    },
};

/// What every writer replaces when it is done.
pub const MARKER: &str = ".sconce/changed";
/// Texts that are fetched at once.
const FETCHES: usize = 16;

pub(super) struct Lister {
    config: Config,
    remote: Arc<Remote>,
    looks: Looks,
    seen: Seen,
    /// The marker that the last whole listing came after.
    marker: Option<Etag>,
    listed_at: Option<Instant>,
    /// The last good listing of this store and these patterns.
    kept: PathBuf,
}

// === impl Bucket ===

impl Bucket {
    /// Tells every replica that something was written: the last act of a publish and of every change of a record.
    pub async fn touch_marker(&self) -> Result<()> {
        let mut nonce = [0; 16];
        getrandom::fill(&mut nonce)
            .map_err(|error| Error::internal("NO_RANDOMNESS", format!("no random number can be had: {error}")))?;
        self.put(MARKER, hex::encode(nonce)).await.map(drop)
    }
}

// === impl Lister ===

impl Lister {
    pub fn new(config: Config, remote: Arc<Remote>) -> Self {
        let models = format!("{}\n{:?}", remote.bucket().url(), config.models);
        let kept = remote.cache().listing(&hex::encode(Sha256::digest(models)));
        Self { config, remote, looks: Looks::default(), seen: Seen::default(), marker: None, listed_at: None, kept }
    }

    /// What the bucket holds; the listing that is known, where nothing says that there is another.
    pub async fn look(&mut self, now: Instant) -> Result<Arc<StoreListing>> {
        let bucket = self.remote.bucket();
        let read = match &self.marker {
            Some(known) => bucket.get_if_changed(MARKER, known).await?,
            None => bucket.get(MARKER).await?.map_or(IfChanged::Gone, IfChanged::Changed),
        };
        let marker = match read {
            IfChanged::Unchanged if !self.is_due(now) => return Ok(self.looks.last().clone()),
            IfChanged::Unchanged => self.marker.clone(),
            IfChanged::Changed(Object { etag, .. }) => Some(etag),
            IfChanged::Gone => None,
        };
        let objects = self.objects().await?;
        let seen = Seen { texts: self.texts(&objects).await?, objects };
        let moment = Moment { now, wall_ns: nanoseconds(SystemTime::now()) };
        let listing = self.take(&seen, moment)?;
        if seen != self.seen {
            self.keep(&seen);
        }
        tracing::debug!(
            objects = seen.objects.len(),
            requests = self.remote.bucket().requests(),
            "the bucket was listed as a whole"
        );
        // Only now: a marker whose listing failed must be seen as new again.
        (self.seen, self.marker, self.listed_at) = (seen, marker, Some(now));
        Ok(listing)
    }

    /// The last good listing of an earlier process; `None` where this one has seen a better one, or there is none.
    pub fn recall(&mut self, now: Instant) -> Option<(Arc<StoreListing>, SystemTime)> {
        if self.listed_at.is_some() || !self.looks.last().models.is_empty() {
            return None;
        }
        let text = std::fs::read(&self.kept).ok()?;
        let written = std::fs::metadata(&self.kept).and_then(|metadata| metadata.modified()).ok()?;
        let seen: Seen = serde_json::from_slice(&text).ok()?;
        let listing = self.take(&seen, Moment { now, wall_ns: nanoseconds(SystemTime::now()) }).ok()?;
        Some((listing, written))
    }

    fn take(&mut self, seen: &Seen, moment: Moment) -> Result<Arc<StoreListing>> {
        let listing = seen.listing(&self.config, self.looks.last(), moment);
        self.looks.take(listing).map_err(|error| Error::new(Code::FailedPrecondition, "STORE_EMPTY", error.to_string()))
    }

    /// Whether a whole listing is due although the marker has not changed.
    fn is_due(&self, now: Instant) -> bool {
        let settles = self.looks.last().is_settling(self.config.completeness);
        let is_old = |at: Instant| now.saturating_duration_since(at) >= self.config.relist_interval;
        settles || self.looks.is_doubtful() || self.listed_at.is_none_or(is_old)
    }

    /// Where patterns say which models are meant, only their folders are listed.
    async fn objects(&self) -> Result<Vec<SeenObject>> {
        let bucket = self.remote.bucket();
        let mut entries: Vec<Entry> = Vec::new();
        if self.config.models.is_all() {
            entries = bucket.list("").await?;
        } else {
            let folders = bucket.folders().await?;
            for folder in folders.iter().filter(|name| !name.starts_with('.') && self.config.models.admits(name)) {
                entries.extend(bucket.list(folder).await?);
            }
        }
        Ok(entries.iter().map(SeenObject::from).collect())
    }

    /// Those that are known are not fetched again.
    async fn texts(&self, objects: &[SeenObject]) -> Result<BTreeMap<String, SeenText>> {
        let mut texts = BTreeMap::new();
        let mut fetches = JoinSet::new();
        let turns = Arc::new(Semaphore::new(FETCHES));
        for object in wanted_texts(objects, &self.config) {
            match self.seen.texts.get(&object.path) {
                Some(known) if (known.size, known.state) == (object.size, object.state) => {
                    texts.insert(object.path.clone(), known.clone());
                }
                _ => {
                    let (bucket, object, turns) = (self.remote.bucket().clone(), object.clone(), turns.clone());
                    fetches.spawn(async move {
                        let _turn = turns.acquire_owned().await;
                        let text = fetch(&bucket, &object).await;
                        text.map(|text| text.map(|text| (object.path, text)))
                    });
                }
            }
        }
        while let Some(fetched) = fetches.join_next().await {
            let fetched = fetched.map_err(|_| Error::internal("LISTING_PANICKED", "reading a text panicked: a bug"))?;
            texts.extend(fetched?);
        }
        Ok(texts)
    }

    /// For a start without the bucket. That it cannot be kept harms nobody now.
    fn keep(&self, seen: &Seen) {
        let kept = serde_json::to_vec(seen).map_err(std::io::Error::other);
        if let Err(error) = kept.and_then(|text| self.remote.cache().write_whole(&self.kept, &text)) {
            tracing::warn!(%error, "the listing cannot be kept; without the bucket the next start will know no models");
        }
    }
}

/// `None` where the object went meanwhile. What the text is stamped with is what was read, not what was listed.
async fn fetch(bucket: &Bucket, object: &SeenObject) -> Result<Option<SeenText>> {
    if object.size > YAML_BYTES_MAX {
        let text = Err("it is larger than 1 MiB".into());
        return Ok(Some(SeenText { size: object.size, state: object.state, text }));
    }
    let Some(read) = bucket.get(&object.path).await? else {
        return Ok(None);
    };
    let text = match std::str::from_utf8(&read.bytes) {
        Ok(text) => Ok(text.into()),
        Err(_) => Err("it is not UTF-8 text".into()),
    };
    Ok(Some(SeenText { size: read.bytes.len() as u64, state: read.etag.state(), text }))
}

//! One bucket, or a folder in it: objects read, listed and written, each by one bounded request.
//!
//! Owns the client, its retries and its time limits, and turns what goes wrong into words without keys, signatures or
//! addresses with a query. Knows nothing of models. `lister` and `cache` read through it; `record` and `publish` write.

mod client;
mod count;
mod lister;
mod profile;
mod seen;
mod watch;
mod words;

use std::{
    fmt,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use bytes::Bytes;
use object_store::{
    Error as StoreError, GetOptions, GetRange, GetResult, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, UpdateVersion, path::Path,
};
use sha2::{Digest as _, Sha256};
use tokio_stream::StreamExt as _;

pub(in crate::store) use self::seen::has_stamp;
use self::words::trouble;
pub use self::{
    client::{Variables, install_tls},
    lister::MARKER,
    watch::{look_once, watch},
    words::STORE_UNAVAILABLE,
};
use crate::error::{Code, Error, Result};

/// A bucket, or a folder in it. All paths are from there on, with `/` between their parts. Clones share one client.
#[derive(Clone)]
pub struct Bucket(Arc<Inner>);

struct Inner {
    /// As a person wrote it; it holds no credentials, which `open` makes sure of.
    url: String,
    store: Box<dyn ObjectStore>,
    prefix: Path,
    /// Requests that were sent, tries that failed among them.
    requests: Arc<AtomicU64>,
}

/// Which state of an object this is: what a conditional request compares. Buckets name states in two ways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Etag {
    tag: Option<String>,
    /// Google's generation; the version of an object elsewhere.
    generation: Option<String>,
}

/// A small object, read whole.
#[derive(Clone, Debug)]
pub struct Object {
    pub bytes: Bytes,
    pub etag: Etag,
}

/// The answer to "give it to me if it is not the one I know".
#[derive(Clone, Debug)]
pub enum IfChanged {
    Unchanged,
    Gone,
    Changed(Object),
}

/// What came of a conditional write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PutOutcome {
    Written(Etag),
    /// The object is not in the state that was expected. It may be our own write that put it there: one that was applied
    /// and answered with a failure is tried again, and meets itself. Whoever cares reads again and looks for its nonce.
    Lost,
}

/// One line of a listing.
#[derive(Clone, Debug)]
pub struct Entry {
    /// From the root of the store.
    pub path: String,
    pub size: u64,
    pub etag: Etag,
    /// In nanoseconds of the bucket's clock.
    pub modified_ns: i64,
}

/// An object that is being read.
pub struct Download {
    pub size: u64,
    pub etag: Etag,
    result: GetResult,
}

/// The largest object that is read whole: texts and records, never artifacts.
pub const OBJECT_BYTES_MAX: u64 = 16 << 20;
/// Artifacts go up in parts of this size, so that no part takes long.
pub const PART_BYTES: usize = 8 << 20;
/// How long reading or writing one small object, or one page of a listing, may take with all its tries.
const SMALL_TIME_MAX: Duration = Duration::from_secs(10);
/// How long a whole listing may take.
const LIST_TIME_MAX: Duration = Duration::from_secs(120);
/// Objects in one listing; what has more is no model store.
const LIST_ENTRIES_MAX: usize = 1_000_000;

// === impl Bucket ===

impl Bucket {
    /// Makes a client for `s3://bucket/prefix`, `gs://…` or `az://…`. Nothing is sent yet.
    ///
    /// Credentials come from the environment and the files it names, never from the URL. INVALID_STORE_URL says what is
    /// wrong with the URL or with those settings.
    pub fn open(url: &str) -> Result<Self> {
        Self::open_in(url, &client::environment())
    }

    /// The same in an environment that is given, variable by variable.
    pub fn open_in(url: &str, variables: &Variables) -> Result<Self> {
        let requests = Arc::new(AtomicU64::new(0));
        let (store, prefix) = client::open(url, variables, requests.clone())?;
        Ok(Self(Arc::new(Inner { url: url.to_owned(), store, prefix, requests })))
    }

    pub fn url(&self) -> &str {
        &self.0.url
    }

    /// How many requests were sent so far, retries among them.
    pub fn requests(&self) -> u64 {
        self.0.requests.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// A small object, or `None` where there is none.
    pub async fn get(&self, path: &str) -> Result<Option<Object>> {
        match self.read(path, GetOptions::default()).await {
            Ok(object) => Ok(Some(object?)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.trouble(&error)),
        }
    }

    /// A small object where it is not the one that `known` names: one request, without a body when nothing has changed.
    pub async fn get_if_changed(&self, path: &str, known: &Etag) -> Result<IfChanged> {
        let options = GetOptions { if_none_match: known.tag.clone(), ..GetOptions::default() };
        match self.read(path, options).await {
            // A store without conditional requests answers with the object that we have.
            Ok(object) => object.map(|object| match object.etag == *known {
                true => IfChanged::Unchanged,
                false => IfChanged::Changed(object),
            }),
            Err(StoreError::NotModified { .. }) => Ok(IfChanged::Unchanged),
            Err(StoreError::NotFound { .. }) => Ok(IfChanged::Gone),
            Err(error) => Err(self.trouble(&error)),
        }
    }

    /// Begins to read an object from byte `from` on; `None` where there is none. What comes back says which object it is:
    /// who continues an earlier download compares its `etag` before using a byte.
    pub async fn download(&self, path: &str, from: u64) -> Result<Option<Download>> {
        let range = (from > 0).then_some(GetRange::Offset(from));
        let found = self.within(SMALL_TIME_MAX, self.0.store.get_opts(&self.at(path)?, range_options(range))).await;
        match found? {
            Ok(result) => Ok(Some(Download { size: result.meta.size, etag: Etag::of(&result.meta), result })),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.trouble(&error)),
        }
    }

    /// Bytes `range` of an object; `None` where there is none.
    pub async fn get_range(&self, path: &str, range: std::ops::Range<u64>) -> Result<Option<Object>> {
        match self.read(path, range_options(Some(GetRange::Bounded(range)))).await {
            Ok(object) => Ok(Some(object?)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.trouble(&error)),
        }
    }

    /// Writes an object whatever is there.
    pub async fn put(&self, path: &str, bytes: impl Into<Bytes>) -> Result<Etag> {
        let payload = PutPayload::from_bytes(bytes.into());
        let at = self.at(path)?;
        let written = self.0.store.put_opts(&at, payload, PutOptions::default());
        let written = self.within(SMALL_TIME_MAX, written).await?;
        written.map(Etag::of_put).map_err(|error| self.trouble(&error))
    }

    /// Writes an object only if it is the one that `expected` names, or with `None`, only if there is none.
    ///
    /// An error leaves open whether it was written, as `Lost` does.
    pub async fn put_if(&self, path: &str, bytes: impl Into<Bytes>, expected: Option<&Etag>) -> Result<PutOutcome> {
        let mode = expected.map_or(PutMode::Create, |known| PutMode::Update(known.clone().into()));
        let payload = PutPayload::from_bytes(bytes.into());
        let at = self.at(path)?;
        let written = self.0.store.put_opts(&at, payload, PutOptions::from(mode));
        match self.within(SMALL_TIME_MAX, written).await? {
            Ok(written) => Ok(PutOutcome::Written(Etag::of_put(written))),
            Err(
                StoreError::Precondition { .. } | StoreError::AlreadyExists { .. } | StoreError::NotModified { .. },
            ) => Ok(PutOutcome::Lost),
            Err(error) => Err(self.trouble(&error)),
        }
    }

    /// Writes an object of any size, in parts, from what `read` gives until it gives nothing. Nothing is there until all is.
    pub async fn upload(&self, path: &str, mut read: impl FnMut() -> std::io::Result<Bytes>) -> Result<Etag> {
        let at = self.at(path)?;
        let begun = self.0.store.put_multipart_opts(&at, PutMultipartOptions::default());
        let mut upload = self.within(SMALL_TIME_MAX, begun).await?.map_err(|error| self.trouble(&error))?;
        let parts = async {
            loop {
                let bytes = read().map_err(|error| {
                    Error::new(Code::FailedPrecondition, "UNREADABLE", format!("'{path}': {}", error.kind()))
                })?;
                if bytes.is_empty() {
                    break;
                }
                upload.put_part(bytes.into()).await.map_err(|error| self.trouble(&error))?;
            }
            upload.complete().await.map(Etag::of_put).map_err(|error| self.trouble(&error))
        };
        let written = parts.await;
        if written.is_err() {
            // Parts that are left cost their owner money. That it fails too is nothing new.
            let _ = self.within(SMALL_TIME_MAX, upload.abort()).await;
        }
        written
    }

    /// Removes an object; that there is none is as good.
    pub async fn delete(&self, path: &str) -> Result<()> {
        match self.within(SMALL_TIME_MAX, self.0.store.delete(&self.at(path)?)).await? {
            Ok(()) | Err(StoreError::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.trouble(&error)),
        }
    }

    /// All objects below `prefix` (`""` for all), a request for each thousand.
    pub async fn list(&self, prefix: &str) -> Result<Vec<Entry>> {
        let prefix = self.at(prefix)?;
        let mut pages = self.0.store.list(Some(&prefix));
        let mut entries = Vec::new();
        let all = async {
            while let Some(meta) = pages.next().await {
                let meta = meta.map_err(|error| self.trouble(&error))?;
                entries.extend(self.entry(&meta));
                if entries.len() > LIST_ENTRIES_MAX {
                    let sentence =
                        format!("the bucket holds more than {LIST_ENTRIES_MAX} objects there: no model store does");
                    return Err(Error::new(Code::ResourceExhausted, "TOO_MANY_OBJECTS", sentence));
                }
            }
            Ok(entries)
        };
        self.within(LIST_TIME_MAX, all).await?
    }

    /// The names of the folders at the root of the store, in one request for each thousand.
    pub async fn folders(&self) -> Result<Vec<String>> {
        let listed = self.within(LIST_TIME_MAX, self.0.store.list_with_delimiter(Some(&self.0.prefix))).await?;
        let listed = listed.map_err(|error| self.trouble(&error))?;
        Ok(listed.common_prefixes.iter().filter_map(|path| path.filename().map(ToOwned::to_owned)).collect())
    }

    /// The outer error is the caller's, the inner the store's.
    async fn read(&self, path: &str, options: GetOptions) -> Result<Result<Object>, StoreError> {
        let at = match self.at(path) {
            Ok(at) => at,
            Err(error) => return Ok(Err(error)),
        };
        let whole = async {
            let found = self.0.store.get_opts(&at, options).await?;
            let bytes = found.range.end - found.range.start;
            if bytes > OBJECT_BYTES_MAX {
                let sentence = format!("'{path}' has {bytes} bytes, at most {OBJECT_BYTES_MAX} are read at once");
                return Ok(Err(Error::new(Code::FailedPrecondition, "OBJECT_TOO_LARGE", sentence)));
            }
            let etag = Etag::of(&found.meta);
            Ok(Ok(Object { bytes: found.bytes().await?, etag }))
        };
        match self.within(SMALL_TIME_MAX, whole).await {
            Ok(read) => read,
            Err(error) => Ok(Err(error)),
        }
    }

    async fn within<T>(&self, time: Duration, work: impl Future<Output = T>) -> Result<T> {
        tokio::time::timeout(time, work)
            .await
            .map_err(|_| words::unavailable(&format!("no whole answer came within {} s", time.as_secs())))
    }

    /// Where a path of the store is in the bucket.
    fn at(&self, path: &str) -> Result<Path> {
        let whole = match self.0.prefix.as_ref() {
            "" => Path::parse(path),
            prefix if path.is_empty() => Path::parse(prefix),
            prefix => Path::parse(format!("{prefix}/{path}")),
        };
        whole.map_err(|_| Error::invalid("INVALID_PATH", format!("'{path}' cannot be the name of an object")))
    }

    fn entry(&self, meta: &ObjectMeta) -> Option<Entry> {
        let whole = meta.location.as_ref();
        let path = match self.0.prefix.as_ref() {
            "" => whole,
            prefix => whole.strip_prefix(prefix)?.strip_prefix('/')?,
        };
        Some(Entry {
            path: path.to_owned(),
            size: meta.size,
            etag: Etag::of(meta),
            modified_ns: meta.last_modified.timestamp_nanos_opt().unwrap_or(i64::MAX),
        })
    }

    fn trouble(&self, error: &StoreError) -> Error {
        trouble(error)
    }
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bucket({})", self.0.url)
    }
}

// === impl Etag ===

impl Etag {
    /// What tells this state from others of the same object, as text.
    pub fn as_text(&self) -> &str {
        self.tag.as_deref().or(self.generation.as_deref()).unwrap_or_default()
    }

    /// The same in a number. Answers of one store write one etag with and without quotes.
    pub(super) fn state(&self) -> u64 {
        let bare = self.as_text().trim_start_matches("W/").trim_matches('"');
        let digest = Sha256::digest(bare);
        digest.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
    }

    fn of(meta: &ObjectMeta) -> Self {
        // A bucket that names no state at all is compared by its clock, in the seconds that all its answers have.
        let tag = meta.e_tag.clone().or_else(|| Some(meta.last_modified.timestamp().to_string()));
        Self { tag, generation: meta.version.clone() }
    }

    fn of_put(written: object_store::PutResult) -> Self {
        Self { tag: written.e_tag, generation: written.version }
    }
}

impl From<Etag> for UpdateVersion {
    fn from(etag: Etag) -> Self {
        Self { e_tag: etag.tag, version: etag.generation }
    }
}

// === impl Download ===

impl Download {
    /// The rest of the object, piece by piece; `None` at its end. A connection that says nothing for a while is an error.
    pub fn pieces(self) -> impl tokio_stream::Stream<Item = Result<Bytes>> + Unpin + Send {
        self.result.into_stream().map(|piece| piece.map_err(|error| trouble(&error)))
    }
}

fn range_options(range: Option<GetRange>) -> GetOptions {
    GetOptions { range, ..GetOptions::default() }
}

//! A bucket at work: the client, the cache of what it gave, and threads of its own beside the serving path.
//!
//! `bucket::watch` lists with it; the loader's threads block on its downloads through `verify`.

use std::{fmt, path::Path};

use tokio::runtime::{Builder, Handle, Runtime};

use super::{Bucket, cache::Cache};
use crate::error::{Error, Result};

pub struct Remote {
    bucket: Bucket,
    cache: Cache,
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
}

// === impl Remote ===

impl Remote {
    pub fn open(bucket: Bucket, cache: &Path, cache_bytes: u64) -> Result<Self> {
        let cache = Cache::open(cache, cache_bytes)?;
        let runtime = Builder::new_multi_thread().worker_threads(1).thread_name("bucket").enable_all().build();
        let runtime =
            runtime.map_err(|error| Error::internal("THREAD", format!("no thread for the bucket: {error}")))?;
        Ok(Self { bucket, cache, runtime: Some(runtime) })
    }

    pub fn bucket(&self) -> &Bucket {
        &self.bucket
    }

    pub(super) fn cache(&self) -> &Cache {
        &self.cache
    }

    pub(super) fn handle(&self) -> &Handle {
        self.runtime.as_ref().expect("it is there until the drop: this is a bug").handle()
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        // Its last user may be a task, where waiting for threads is not allowed.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bucket.fmt(f)
    }
}

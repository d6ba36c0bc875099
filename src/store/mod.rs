//! ARTIFACTS AND RECORDS: what is on disk.
//!
//! `scanner` lists a store, `watcher` lists it again and again (at once where `events` come) and sends the news, `verify`
//! makes the private copy that is opened. Nothing outside the root is ever opened. Knows files and their names; knows nothing of what is loaded or
//! served. `lifecycle` reads the news and asks for copies.

pub mod bucket;
mod cache;
mod events;
mod file_system;
mod files;
mod layout;
mod location;
mod looks;
pub mod publish;
mod record;
mod refresh;
mod remote;
mod renames;
mod scanner;
mod single;
mod state;
mod verify;
mod watcher;

use std::{
    io,
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use crate::{error::Result, model::Patterns};

pub use bucket::{Bucket, Etag, IfChanged, Object, PutOutcome, install_tls};
pub use layout::{ModelFolder, Stamp, StoreFile, StoreListing, TextFile, VersionFolder, Walk, platform_of};
pub use location::Location;
pub use record::{Note, Record, Records, Replaced, Tag};
pub use refresh::{Answers, Asks, Refresh, refresh};
pub use remote::Remote;
pub use renames::Renames;
pub use scanner::Scanner;
pub use single::platform_of_file;
pub use verify::{PrivateDir, Verified, copy, digest};
pub use watcher::{News, watch};

/// Where the models are, and when a version there counts as whole.
#[derive(Clone, Debug)]
pub struct Config {
    /// A folder of models, the one file that is served alone, or a bucket.
    pub root: Location,
    /// The bucket at work, once `connect` opened it.
    pub remote: Option<Arc<Remote>>,
    /// Where routes are and status goes, if not here.
    pub state: Option<Box<Config>>,
    pub models: Patterns,
    pub poll_interval: Duration,
    /// How often a bucket is listed as a whole although its marker says that nothing changed.
    pub relist_interval: Duration,
    /// A folder without a full `version.yaml` is taken when nothing in it has changed for this long.
    pub settle: Duration,
    pub completeness: Completeness,
}

/// What makes a version complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Completeness {
    /// `version.yaml` with all that it names, or the settle time.
    #[default]
    Settle,
    /// Only `version.yaml` with all that it names.
    Manifest,
}

// === impl Config ===

impl Config {
    pub fn new(root: impl Into<Location>) -> Self {
        Self {
            root: root.into(),
            remote: None,
            state: None,
            models: Patterns::default(),
            poll_interval: Duration::from_secs(2),
            relist_interval: Duration::from_secs(300),
            settle: Duration::from_secs(2),
            completeness: Completeness::default(),
        }
    }

    /// Makes the client of a bucket, and the cache of its artifacts in a folder `cache` inside `work_dir`; of a folder,
    /// nothing. Nothing is sent yet.
    pub fn connect(mut self, work_dir: &Path, cache_bytes: u64) -> Result<Self> {
        if let Some(state) = self.state.take() {
            self.state = Some(Box::new(state.connect(work_dir, cache_bytes)?));
        }
        let Location::Bucket(url) = &self.root else {
            return Ok(self);
        };
        let remote = Remote::open(Bucket::open(url)?, &work_dir.join("cache"), cache_bytes)?;
        Ok(Self { remote: Some(Arc::new(remote)), ..self })
    }

    /// The folder or file; nowhere where the store is a bucket.
    pub(crate) fn folder(&self) -> &Path {
        match &self.root {
            Location::Folder(path) => path,
            Location::Bucket(_) => Path::new(""),
        }
    }
}

/// One look at the store, wherever it is. It blocks.
pub fn look_once(config: &Config) -> io::Result<Arc<StoreListing>> {
    match &config.state {
        Some(state) => state::look_at_both(config, state),
        None => look_once_at(config),
    }
}

fn look_once_at(config: &Config) -> io::Result<Arc<StoreListing>> {
    match &config.remote {
        Some(remote) => bucket::look_once(config, remote).map_err(io::Error::other),
        None => Scanner::new(config.clone()).scan(Instant::now(), SystemTime::now()),
    }
}

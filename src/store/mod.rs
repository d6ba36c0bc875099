//! ARTIFACTS AND RECORDS: what is on disk.
//!
//! `scanner` lists a store, `watcher` lists it again and again (at once where `events` come) and sends the news, `verify`
//! makes the private copy that is opened. Nothing outside the root is ever opened. Knows files and their names; knows nothing of what is loaded or
//! served. `lifecycle` reads the news and asks for copies.

pub mod bucket;
mod events;
mod file_system;
mod files;
mod layout;
mod looks;
mod record;
mod refresh;
mod renames;
mod scanner;
mod single;
mod verify;
mod watcher;

use std::{path::PathBuf, time::Duration};

use crate::model::Patterns;

pub use bucket::{Bucket, Etag, IfChanged, Object, PutOutcome};
pub use layout::{ModelFolder, Stamp, StoreFile, StoreListing, TextFile, VersionFolder, Walk, platform_of};
pub use record::{Record, Records, Replaced, Tag};
pub use refresh::{Answers, Asks, Refresh, refresh};
pub use renames::Renames;
pub use scanner::Scanner;
pub use single::platform_of_file;
pub use verify::{PrivateDir, Verified, copy, digest};
pub use watcher::{News, watch};

/// Where the models are, and when a version there counts as whole.
#[derive(Clone, Debug)]
pub struct Config {
    /// A folder of models, or the one file that is served alone.
    pub root: PathBuf,
    pub models: Patterns,
    pub poll_interval: Duration,
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
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            models: Patterns::default(),
            poll_interval: Duration::from_secs(2),
            settle: Duration::from_secs(2),
            completeness: Completeness::default(),
        }
    }
}

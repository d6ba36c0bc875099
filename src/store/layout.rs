//! What a store looks like: the listing, and what makes a version in it complete.
//!
//! Plain data and pure rules; `scanner` fills them from a folder. Parts that did not change between two listings are the
//! same `Arc`, so a reader finds what changed by comparing pointers.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use super::Completeness;
use crate::model::{ModelName, Platform, Version, VersionYaml};

/// Everything a store held at one look.
#[derive(Clone, Debug, Default)]
pub struct StoreListing {
    pub models: BTreeMap<ModelName, Arc<ModelFolder>>,
    /// What is at the root and is not a model, one sentence each.
    pub problems: Vec<String>,
}

/// One model's folder.
#[derive(Clone, Debug, Default)]
pub struct ModelFolder {
    pub model_yaml: Option<TextFile>,
    /// Who gets the traffic: what operators wrote.
    pub route_yaml: Option<TextFile>,
    pub versions: BTreeMap<Version, Arc<VersionFolder>>,
    /// What is in the folder and cannot be used, one sentence each.
    pub problems: Vec<String>,
}

/// One version's folder.
#[derive(Clone, Debug)]
pub struct VersionFolder {
    /// As it is written in the store: `v1.2` for 1.2.0.
    pub folder: String,
    /// By the name inside the version, `/` between folders.
    pub files: BTreeMap<String, StoreFile>,
    pub version_yaml: Option<TextFile>,
    /// Why it can never be served as it is: a reason word and a sentence.
    pub refused: Option<(&'static str, String)>,
    /// The youngest change of a file or of a folder's entries, in nanoseconds of the store's clock.
    pub newest_ns: i64,
    /// Since when (of our own clock) two looks showed the same.
    pub steady_since: Instant,
    /// Whether it may be taken.
    pub complete: bool,
    pub walk: Walk,
}

/// What a look that went through a version's folders remembers, so that the next one need not.
#[derive(Clone, Debug, Default)]
pub struct Walk {
    /// By path from the root of the store.
    pub folders: BTreeMap<String, Stamp>,
    /// What has a dot's name: never opened, but a copy that is under way shows in it. By path from the root of the store.
    pub hidden: BTreeMap<String, Stamp>,
    /// When it was, in nanoseconds of the wall clock.
    pub at_ns: i64,
}

/// One file of a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreFile {
    /// From the root of the store.
    pub path: String,
    pub stamp: Stamp,
}

/// What changes when a file changes. Compared for equality only: no clock has to be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub size: u64,
    pub modified_ns: i64,
    pub changed_ns: i64,
    pub inode: u64,
}

/// A small text that was read along with the listing.
#[derive(Clone, Debug)]
pub struct TextFile {
    pub stamp: Stamp,
    /// When it was read, in nanoseconds of the wall clock.
    pub read_ns: i64,
    /// Or why it cannot be read.
    pub text: Result<Arc<str>, String>,
}

/// The moment of a look, by both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub now: Instant,
    pub wall_ns: i64,
}

pub const FILES_MAX: usize = 10_000;
/// What changes again in the same tick of the store's clock keeps its stamp. No clock ticks more slowly.
const TICK_NS: i64 = 1_000_000_000;
pub const YAML_BYTES_MAX: u64 = 1 << 20;

// === impl StoreListing ===

impl StoreListing {
    /// Whether both came from looks that showed the same.
    pub fn is_same(&self, other: &StoreListing) -> bool {
        self.problems == other.problems
            && self.models.len() == other.models.len()
            && self
                .models
                .iter()
                .zip(&other.models)
                .all(|((name, folder), (other_name, other))| name == other_name && Arc::ptr_eq(folder, other))
    }

    /// Whether some version waits for its settle time, so that another look is due soon. One that has no file yet waits for
    /// more than time.
    pub fn is_settling(&self, completeness: Completeness) -> bool {
        let settles = |version: &Arc<VersionFolder>| !version.complete && !version.files.is_empty();
        completeness == Completeness::Settle && self.models.values().any(|model| model.versions.values().any(settles))
    }
}

// === impl ModelFolder ===

impl ModelFolder {
    /// Whether route.yaml is gone or empty that held something at the last look.
    pub(super) fn has_lost_route_of(&self, last: &ModelFolder) -> bool {
        let holds = |file: &Option<TextFile>| {
            file.as_ref().is_some_and(|file| file.text.as_ref().map_or(true, |text| !text.trim().is_empty()))
        };
        holds(&last.route_yaml) && !holds(&self.route_yaml)
    }

    pub(super) fn is_same(&self, other: &ModelFolder) -> bool {
        self.model_yaml == other.model_yaml
            && self.route_yaml == other.route_yaml
            && self.problems == other.problems
            && self.versions.len() == other.versions.len()
            && self
                .versions
                .iter()
                .zip(&other.versions)
                .all(|((number, folder), (other_number, other))| number == other_number && Arc::ptr_eq(folder, other))
    }
}

// === impl VersionFolder ===

impl VersionFolder {
    /// A folder in which nothing was found yet.
    pub fn new(folder: &str, now: Instant) -> Self {
        Self {
            folder: folder.to_owned(),
            files: BTreeMap::new(),
            version_yaml: None,
            refused: None,
            newest_ns: i64::MIN,
            steady_since: now,
            complete: false,
            walk: Walk::default(),
        }
    }

    /// The bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.values().map(|file| file.stamp.size).sum()
    }

    /// Whether the files are those of `other`, as far as a look can tell.
    pub fn has_files_of(&self, other: &VersionFolder) -> bool {
        self.files == other.files
    }

    pub(super) fn take_hidden(&mut self, path: &str, stamp: Stamp) {
        self.newest_ns = self.newest_ns.max(stamp.changed_ns);
        if self.walk.hidden.len() < FILES_MAX {
            self.walk.hidden.insert(path.to_owned(), stamp);
        }
    }

    /// Whether equal stamps of its folders and files mean that nothing has changed: it was taken as it is, and was not young
    /// when it was walked through.
    pub(super) fn can_be_told_by_stamps(&self) -> bool {
        self.complete && self.refused.is_none() && self.walk.at_ns.saturating_sub(self.newest_ns) > TICK_NS
    }

    pub(super) fn is_same(&self, other: &VersionFolder) -> bool {
        self.folder == other.folder
            && self.files == other.files
            && self.version_yaml == other.version_yaml
            && self.refused == other.refused
            && self.complete == other.complete
            // What the next look needs: a copy that is seen going on, or leave to look at stamps alone.
            && (self.complete || self.walk.hidden == other.walk.hidden)
            && self.can_be_told_by_stamps() == other.can_be_told_by_stamps()
    }

    /// Whether it may be taken at `moment`. A store's clock that runs ahead, or was set back, only costs the settle time.
    pub(super) fn is_complete(&self, moment: Moment, settle: Duration, completeness: Completeness) -> bool {
        if self.has_all_named_files() {
            return true;
        }
        if completeness == Completeness::Manifest || self.files.is_empty() {
            return false;
        }
        let settle_ns = i64::try_from(settle.as_nanos()).unwrap_or(i64::MAX);
        let old_at_first_sight = moment.wall_ns.saturating_sub(self.newest_ns) >= settle_ns;
        old_at_first_sight || moment.now.saturating_duration_since(self.steady_since) >= settle
    }

    /// Whether `version.yaml` names files, and each is there with the size it should have. The checksums are the copy's work.
    fn has_all_named_files(&self) -> bool {
        let Some(Ok(text)) = self.version_yaml.as_ref().map(|file| &file.text) else {
            return false;
        };
        let Ok(yaml) = VersionYaml::parse(text) else {
            return false;
        };
        !yaml.files.is_empty()
            && yaml.files.iter().all(|(name, entry)| {
                let size = self.files.get(name).map(|file| file.stamp.size);
                entry.size.is_some() && size == entry.size
            })
    }
}

// === impl TextFile ===

impl TextFile {
    /// Whether what was read under this stamp can be trusted to be what it still stamps: a file written again in the same
    /// tick of the store's clock keeps its stamp, so one that was young when read is read once more.
    pub(super) fn is_still(&self, stamp: Stamp) -> bool {
        self.stamp == stamp && self.read_ns.saturating_sub(stamp.changed_ns) > TICK_NS
    }
}

impl PartialEq for TextFile {
    /// When it was read does not matter.
    fn eq(&self, other: &Self) -> bool {
        self.stamp == other.stamp && self.text == other.text
    }
}

/// The platform that the files' names show.
pub fn platform_of(version: &VersionFolder) -> Option<Platform> {
    Platform::ALL.into_iter().find(|platform| version.files.contains_key(platform.artifact()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;
    const SETTLE: Duration = Duration::from_secs(2);

    fn stamp(size: u64) -> Stamp {
        Stamp { size, modified_ns: 0, changed_ns: 0, inode: 1 }
    }

    fn folder(version_yaml: Option<&str>, newest_ns: i64, steady_since: Instant) -> VersionFolder {
        let file = StoreFile { path: "m/1/model.onnx".into(), stamp: stamp(10) };
        VersionFolder {
            files: BTreeMap::from([("model.onnx".to_owned(), file)]),
            version_yaml: version_yaml.map(|text| TextFile { stamp: stamp(1), read_ns: 0, text: Ok(text.into()) }),
            newest_ns,
            ..VersionFolder::new("1", steady_since)
        }
    }

    #[test]
    fn a_full_manifest_needs_no_waiting_and_a_broken_promise_waits() {
        let now = Instant::now();
        let moment = Moment { now, wall_ns: 0 };
        let complete = |size: u64, name: &str| {
            let yaml = format!("files: {{ {name}: {{ sha256: ab, size: {size} }} }}");
            folder(Some(&yaml), 0, now).is_complete(moment, SETTLE, Completeness::Manifest)
        };
        assert!(complete(10, "model.onnx"));
        assert!(!complete(11, "model.onnx"));
        assert!(!complete(10, "other.onnx"));
        assert!(!folder(None, 0, now).is_complete(moment, SETTLE, Completeness::Manifest));
    }

    #[test]
    fn without_a_manifest_it_settles_by_either_clock() {
        let now = Instant::now();
        let complete = |newest_ns: i64, steady: Duration, wall_ns: i64| {
            let moment = Moment { now: now + steady, wall_ns };
            folder(None, newest_ns, now).is_complete(moment, SETTLE, Completeness::Settle)
        };
        assert!(complete(0, Duration::ZERO, 2 * SECOND), "old at first sight");
        assert!(!complete(0, Duration::ZERO, SECOND), "young");
        assert!(complete(0, SETTLE, SECOND), "two equal looks, settle apart");
        assert!(!complete(100 * SECOND, Duration::ZERO, SECOND), "the clock was set back");
        assert!(complete(100 * SECOND, SETTLE, SECOND), "and yet it does not wait for ever");
    }
}

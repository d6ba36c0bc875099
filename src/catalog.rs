//! What is served, as one immutable picture behind one pointer.
//!
//! `new` hands out the two ends: one `Publisher`, which is not `Clone` and belongs to the lifecycle manager, and a `Catalog`
//! that everybody reads. A request loads it once, takes the servables it needs and lets the picture go.

mod traffic;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::{ArcSwap, Guard};

pub use traffic::{Arm, ShadowArm, Standing, Traffic};

pub use crate::monitor::{SHADOW, STABLE};

use crate::{
    error::{Error, Result},
    model::{ModelName, OnNewVersion, Plan, Platform, Route, Setting, Signature, Version, VersionsPolicy, repeated},
    runtime::Servable,
};

/// Every model, version and route, as they stood at one moment.
#[derive(Default)]
pub struct Snapshot {
    pub models: HashMap<ModelName, Arc<ModelEntry>>,
    /// What routes look for in the metadata of calls; usually nothing.
    pub metadata_keys: Arc<[Arc<str>]>,
    /// Whether the first scan of the store is done.
    pub scanned: bool,
    /// Why the server is not ready, one line each; empty when it is.
    pub unready: Vec<String>,
    /// Why the store cannot be listed at present; what is loaded serves on.
    pub store_trouble: Option<String>,
}

/// One model.
pub struct ModelEntry {
    pub name: ModelName,
    pub versions: BTreeMap<Version, VersionEntry>,
    /// The version that answers a call without a version; always one that is ready.
    pub stable: Option<Version>,
    /// Which versions are loaded.
    pub policy: VersionsPolicy,
    /// Where the traffic goes.
    pub route: Arc<Route>,
    /// The same, with all that a pick needs at hand.
    pub traffic: Arc<Traffic>,
    /// Of the route; 0 where nobody decided anything yet.
    pub revision: u64,
    /// A newer route that is not taken here yet.
    pub pending: Option<Pending>,
    /// Why nobody gets an answer at present, where an operator said so.
    pub disabled: Option<String>,
    /// Whether servables of it are still to be made anew, with other options.
    pub remade: bool,
    /// What becomes of a version that is ready and higher than the one that answers.
    pub on_new_version: OnNewVersion,
    /// How a version comes to serve where nobody says it otherwise.
    pub canary: Arc<Plan>,
    /// Each option with who said it, but for what a version says of itself.
    pub settings: Arc<[Setting]>,
    /// What is wrong with the model as a whole, e.g. a bad model.yaml.
    pub message: Option<String>,
    /// Which files of people's are not taken; `message` has them, too.
    pub refused: Refused,
}

/// What is wrong with a model's files; the last good ones hold meanwhile.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Refused {
    pub model_yaml: Option<String>,
    pub route_yaml: Option<String>,
}

/// A route that waits for its stable version.
#[derive(Clone, Debug)]
pub struct Pending {
    pub route: Arc<Route>,
    pub revision: u64,
    pub version: Version,
    pub why: PendingWhy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PendingWhy {
    Loading,
    Failed,
    /// The store does not have it.
    Absent,
}

/// One version: where it stands, and the servable if it serves.
#[derive(Clone)]
pub struct VersionEntry {
    pub platform: Option<Platform>,
    pub state: State,
    pub since: SystemTime,
    /// A stable word and a sentence where something is wrong.
    pub cause: Option<Error>,
    /// What was noticed while it was loaded, and served nevertheless.
    pub notes: Vec<String>,
    pub metrics: BTreeMap<String, f64>,
    /// What its version.yaml says of options, which wins over the model's.
    pub settings: Arc<[Setting]>,
    /// sha256 over the names and digests of the version's files, in hexadecimal; empty until they were read.
    pub digest: String,
    pub artifact_bytes: u64,
    /// What it takes while it serves, as measured in the child, its files included; 0 where it does not serve.
    pub memory_bytes: u64,
    /// What a GPU lost when it was opened there; 0 on the CPU, and where that is not known.
    pub gpu_bytes: u64,
    /// How long this replica took to verify, open, try and warm it, waits for memory and for a GPU included; shorter where a pass
    /// of the child was remembered. Zero where it does not serve.
    pub load_time: Duration,
    pub servable: Option<Arc<Servable>>,
}

/// The life of a version, as operators see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// In the store; nothing asks for it to be served.
    Available,
    Loading,
    Ready,
    Draining,
    Failed,
}

/// The writing end. One there is, by type.
pub struct Publisher {
    current: Arc<ArcSwap<Snapshot>>,
    /// Tells those who follow (health watchers, metrics) that there is a new picture.
    changed: tokio::sync::watch::Sender<u64>,
}

/// The reading end.
#[derive(Clone)]
pub struct Catalog {
    current: Arc<ArcSwap<Snapshot>>,
    changed: tokio::sync::watch::Receiver<u64>,
}

pub fn new() -> (Publisher, Catalog) {
    let current = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
    let (sender, receiver) = tokio::sync::watch::channel(0);
    (Publisher { current: current.clone(), changed: sender }, Catalog { current, changed: receiver })
}

// === impl Publisher ===

impl Publisher {
    /// One store of one pointer; it cannot fail. Returns the picture that was current until now, for the reaper.
    pub fn publish(&self, snapshot: Snapshot) -> Arc<Snapshot> {
        let old = self.current.swap(Arc::new(snapshot));
        self.changed.send_modify(|count| *count += 1);
        old
    }
}

// === impl Catalog ===

impl Catalog {
    /// The current picture. Do not hold it across an await.
    pub fn load(&self) -> Guard<Arc<Snapshot>> {
        self.current.load()
    }

    /// Changes its value with each publication.
    pub fn changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.changed.clone()
    }
}

// === impl Snapshot ===

impl Snapshot {
    pub fn is_ready(&self) -> bool {
        self.scanned && self.unready.is_empty()
    }

    /// NOT_FOUND names the models that there are, when they are few.
    pub fn model(&self, name: &str) -> Result<&Arc<ModelEntry>> {
        self.models.get(name).ok_or_else(|| {
            let mut names: Vec<&str> = self.models.keys().map(ModelName::as_str).collect();
            names.sort_unstable();
            Error::not_found(
                "MODEL_NOT_FOUND",
                format!("there is no model{}; {}", repeated(name), few("models", &names)),
            )
        })
    }
}

// === impl ModelEntry ===

impl ModelEntry {
    /// A model of which nothing is known but its name.
    pub fn new(name: ModelName) -> Self {
        Self {
            name,
            versions: BTreeMap::new(),
            stable: None,
            policy: VersionsPolicy::default(),
            route: Arc::default(),
            traffic: Arc::new(Traffic::nothing()),
            revision: 0,
            pending: None,
            disabled: None,
            remade: false,
            on_new_version: OnNewVersion::default(),
            canary: Arc::default(),
            settings: Arc::default(),
            message: None,
            refused: Refused::default(),
        }
    }

    /// Whether a call without a version would be answered now.
    pub fn is_ready(&self) -> bool {
        self.disabled.is_none()
            && self
                .stable
                .is_some_and(|stable| self.versions.get(&stable).is_some_and(|version| version.servable.is_some()))
    }

    /// The revision that the store has, taken or not.
    pub fn known_revision(&self) -> u64 {
        self.pending.as_ref().map_or(self.revision, |pending| pending.revision)
    }

    /// NOT_FOUND for a version that the store does not have.
    pub fn version(&self, version: Version) -> Result<&VersionEntry> {
        self.versions.get(&version).ok_or_else(|| {
            let names: Vec<String> = self.versions.keys().rev().map(Version::to_string).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            Error::not_found(
                "VERSION_NOT_FOUND",
                format!("model '{}' has no version {version}; {}", self.name, few("versions", &names)),
            )
            .with("model", &self.name)
        })
    }
}

// === impl State ===

impl State {
    pub fn as_str(self) -> &'static str {
        match self {
            State::Available => "available",
            State::Loading => "loading",
            State::Ready => "ready",
            State::Draining => "draining",
            State::Failed => "failed",
        }
    }
}

// === impl PendingWhy ===

impl PendingWhy {
    pub fn as_str(self) -> &'static str {
        match self {
            PendingWhy::Loading => "loading",
            PendingWhy::Failed => "failed",
            PendingWhy::Absent => "absent",
        }
    }
}

// === impl VersionEntry ===

impl VersionEntry {
    /// A version of which nothing is known but where it stands.
    pub fn new(state: State) -> Self {
        Self {
            platform: None,
            state,
            since: SystemTime::UNIX_EPOCH,
            cause: None,
            notes: Vec::new(),
            metrics: BTreeMap::new(),
            settings: Arc::default(),
            digest: String::new(),
            artifact_bytes: 0,
            memory_bytes: 0,
            gpu_bytes: 0,
            load_time: Duration::ZERO,
            servable: None,
        }
    }

    /// The signature, once the artifact was opened.
    pub fn signature(&self) -> Option<&Signature> {
        self.servable.as_deref().map(Servable::signature)
    }
}

/// What the routes of these models look for in the metadata of calls.
pub fn metadata_keys<'a>(models: impl Iterator<Item = &'a Arc<ModelEntry>>) -> Arc<[Arc<str>]> {
    let keys: BTreeSet<&str> = models.flat_map(|entry| entry.route.metadata_keys()).collect();
    keys.into_iter().map(Arc::from).collect()
}

/// `there are a, b`, or only how many when they are many.
fn few(what: &str, names: &[&str]) -> String {
    match names.len() {
        0 => format!("there are no {what}"),
        1..=10 => format!("the {what} are {}", names.join(", ")),
        count => format!("there are {count} {what}"),
    }
}

//! Carries out what an operator asks for, once, and says what came of it.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use tokio::time::{Instant, timeout_at};

use super::{
    change::{Asked, Change, Known, repeat_of},
    replica::{Said, highest_revision, said_of},
};
use crate::{
    catalog::{Catalog, ModelEntry, PendingWhy, Snapshot, Standing, State, VersionEntry},
    error::{Code, Error, Result},
    model::{ModelName, Route, Stable, Version, fit},
    store::{Record, Records, Refresh, Replaced},
};

/// The one door for changes of traffic. Cheap to clone.
#[derive(Clone)]
pub struct Operator {
    records: Records,
    catalog: Catalog,
    /// To have the store looked at now rather than at the next poll.
    refresh: Refresh,
    /// The revisions written here that the catalog may not show yet.
    written: Arc<Mutex<HashMap<ModelName, u64>>>,
}

/// What stands in the store after a change.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    pub revision: u64,
    pub stable: Stable,
    /// Whether the same request had been carried out before.
    pub repeated: bool,
    /// RFC 3339; empty where nothing had to be changed.
    pub time: String,
    /// The versions whose readiness the caller may wait for.
    pub awaits: BTreeSet<Version>,
    /// The version that is being rolled out, or was last.
    pub rolls_out: Option<Version>,
    /// The version that was given up by it.
    pub rejects: Option<Version>,
    /// Whether it is the servables that are made anew which it waits for.
    pub remakes: bool,
}

/// What came of a change on this replica.
#[derive(Clone, Debug)]
pub enum Settled {
    /// It is in force.
    Ready,
    /// The version cannot be served; the old route holds on.
    Failed(Error),
    /// The time was up first: the change stands, and this is what it waits for.
    Pending(String),
}

/// What is known of a model when a call comes.
struct Shown {
    name: ModelName,
    known: Known,
    revision: u64,
}

/// Of a compare-and-swap that was lost to somebody who changed nothing that the caller can see.
const ATTEMPTS_MAX: usize = 8;
const RETRY_LATER: Duration = Duration::from_secs(1);

// === impl Operator ===

impl Operator {
    pub fn new(records: Records, catalog: Catalog, refresh: Refresh) -> Self {
        Self { records, catalog, refresh, written: Arc::default() }
    }

    /// Why no change can be written, where that is known beforehand.
    pub fn closed_because(&self) -> Option<Error> {
        self.records.closed_because()
    }

    /// Has the store looked at now; returns when what was found is known. UNAVAILABLE where it cannot be listed.
    pub async fn look_now(&self) -> Result<()> {
        self.refresh.look().await.map_err(|why| {
            let message = format!("the store cannot be listed ({why}); what is loaded serves on");
            Error::unavailable("STORE_UNAVAILABLE", message, RETRY_LATER)
        })
    }

    /// Writes the change into the model's route.
    ///
    /// A repeat of a request is answered as the first time and changes nothing. NOT_FOUND and FAILED_PRECONDITION for a
    /// version that is not there or failed; ABORTED `REVISION_MOVED` with the current revision where somebody else was
    /// first. An error means that nothing was changed, but for UNAVAILABLE: then ask again with the same request id.
    pub async fn change(&self, model: &str, change: Change, asked: Asked) -> Result<Written> {
        let shown = match self.look(model, &change) {
            // It may just have been published.
            Err(error) if error.code() == Code::NotFound && self.look_now().await.is_ok() => {
                self.look(model, &change)?
            }
            found => found?,
        };
        let last_written = self.last_written(&shown.name);
        let remakes = matches!(change, Change::Reload);
        for _ in 0..ATTEMPTS_MAX {
            let record = self.records.read(&shown.name).await?;
            let route = parse(&record)?;
            if let Some(entry) = repeat_of(&route, &change, &asked)? {
                // Whoever wrote it may have ended before the replicas were told.
                self.tell().await;
                let awaits = change.awaits(&Route { stable: entry.stable, ..Route::default() });
                let was = Written::nothing(&route, entry.revision, awaits);
                return Ok(Written { stable: entry.stable, repeated: true, time: entry.time.clone(), remakes, ..was });
            }
            let known = self.known_revision(&shown, &route).await?;
            let revision = revision_of(&route, known)?;
            let decided_upon = if change.is_of_a_rollout(&route) { revision } else { known.max(last_written) };
            let expected = asked.expected_revision.unwrap_or(decided_upon);
            if revision != expected {
                return Err(moved(model, expected, revision));
            }
            let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
            let Some(mut next) = change.apply(&route, revision, shown.known, &asked, time.clone())? else {
                let awaits = change.awaits(&route);
                return Ok(Written { remakes, ..Written::nothing(&route, revision, awaits) });
            };
            let nonce = nonce()?;
            next.nonce = Some(nonce.clone());
            if self.replace(&shown.name, &record, &next, &nonce).await? {
                self.note(&shown.name, revision + 1);
                tracing::info!(
                    model = %shown.name, %change, revision = revision + 1, caller = asked.caller, reason = asked.reason,
                    request_id = asked.request_id, "route changed"
                );
                self.tell().await;
                let awaits = change.awaits(&next);
                let rejects = next.rejected.difference(&route.rejected).next().copied();
                return Ok(Written { time, rejects, remakes, ..Written::nothing(&next, revision + 1, awaits) });
            }
        }
        let expected = asked.expected_revision.unwrap_or(shown.revision);
        Err(moved(model, expected, expected))
    }

    /// Waits until this replica follows the route of that revision and serves the version, until it is known that it will not,
    /// or until the time is up.
    pub async fn settled(&self, model: &str, written: &Written, deadline: Instant) -> Settled {
        let mut changes = self.catalog.changes();
        loop {
            let verdict = match self.catalog.load().model(model) {
                Ok(entry) => verdict(entry, written),
                Err(error) => Err(error.message().to_owned()),
            };
            let waits_for = match verdict {
                Ok(settled) => return settled,
                Err(waits_for) => waits_for,
            };
            match timeout_at(deadline, changes.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return Settled::Pending(waits_for),
            }
        }
    }

    /// What the replicas say of a version; nothing where they cannot be asked.
    pub async fn said_of(&self, model: &ModelName, version: Version) -> Vec<Said> {
        said_of(version, &self.records.statuses(model).await.unwrap_or_default())
    }

    /// What the call depends on, from one picture.
    fn look(&self, model: &str, change: &Change) -> Result<Shown> {
        let snapshot = self.catalog.load();
        let entry = find(&snapshot, model)?;
        for version in named(change) {
            let known = entry.version(version)?;
            if let (true, State::Failed) = (must_serve(change), known.state) {
                let why = known.cause.as_ref().map_or("it failed to load", Error::message);
                let message = format!("model '{model}' version {version} failed and cannot be given traffic: {why}");
                return Err(Error::new(Code::FailedPrecondition, "VERSION_FAILED", message).with("version", version));
            }
        }
        match change {
            Change::SetRoute(sharing) => check_fit(entry, sharing.variants.iter().map(|variant| variant.version))?,
            Change::Deploy(version, _) => check_fit(entry, [*version].into_iter())?,
            _ => {}
        }
        let pinned = match entry.pending.as_ref().map_or(entry.route.stable, |pending| pending.route.stable) {
            Stable::Pinned(version) => Some(version),
            Stable::Latest => None,
        };
        let answering = entry.stable.or(pinned);
        let below = entry.versions.iter().rev().find(|(version, known)| {
            known.state == State::Ready && Some(**version) < answering && !entry.route.rejected.contains(version)
        });
        let below = below.map(|(version, _)| *version);
        Ok(Shown { name: entry.name.clone(), known: Known { answering, below }, revision: entry.known_revision() })
    }

    /// Whether it was written. What was applied although the answer says otherwise is found by its nonce.
    async fn replace(&self, model: &ModelName, record: &Record, next: &Route, nonce: &str) -> Result<bool> {
        let replaced = self.records.replace(model, &record.tag, next.to_yaml()).await;
        if let Ok(Replaced::Written) = replaced {
            return Ok(true);
        }
        let now = self.records.read(model).await.and_then(|record| parse(&record));
        match (replaced, now) {
            (_, Ok(now)) if now.nonce.as_deref() == Some(nonce) => Ok(true),
            (Ok(_), _) => Ok(false),
            (Err(error), _) => Err(error),
        }
    }

    /// The revision that counts where the file has none: a person took the line out. This replica may have been started since,
    /// and know of no earlier one; the others would refuse what counts from nought.
    async fn known_revision(&self, shown: &Shown, route: &Route) -> Result<u64> {
        if route.revision.is_some() {
            return Ok(shown.revision);
        }
        let said = self.records.statuses(&shown.name).await?;
        Ok(shown.revision.max(highest_revision(&said)))
    }

    /// Has all replicas look at what stands in the store now.
    async fn tell(&self) {
        self.records.tell().await;
        self.refresh.hurry();
    }

    fn last_written(&self, model: &ModelName) -> u64 {
        self.written.lock().expect("no holder panics: this is a bug").get(model).copied().unwrap_or(0)
    }

    fn note(&self, model: &ModelName, revision: u64) {
        let mut written = self.written.lock().expect("no holder panics: this is a bug");
        let last = written.entry(model.clone()).or_default();
        *last = revision.max(*last);
    }
}

fn find<'a>(snapshot: &'a Snapshot, model: &str) -> Result<&'a Arc<ModelEntry>> {
    match snapshot.model(model) {
        Err(_) if !snapshot.scanned => {
            let trouble = snapshot.store_trouble.as_ref().map(|trouble| format!(", in vain so far: {trouble}"));
            let message = format!("the server is reading its model store{}", trouble.unwrap_or_default());
            Err(Error::unavailable("STARTING", message, RETRY_LATER))
        }
        found => found,
    }
}

// === impl Written ===

impl Written {
    /// All is as it was to be.
    fn nothing(route: &Route, revision: u64, awaits: BTreeSet<Version>) -> Self {
        Self {
            revision,
            stable: route.stable,
            repeated: false,
            time: String::new(),
            awaits,
            rolls_out: route.rollout.as_ref().map(|rollout| rollout.version),
            rejects: None,
            remakes: false,
        }
    }
}

/// Whether the versions that are to get a share can answer what stable's callers ask. Of one that is not loaded yet nobody
/// knows: it gets nothing before that is known.
fn check_fit(entry: &ModelEntry, versions: impl Iterator<Item = Version>) -> Result<()> {
    let signature = |version| entry.versions.get(&version).and_then(VersionEntry::signature);
    let Some(stable) = entry.stable.and_then(signature) else { return Ok(()) };
    for version in versions {
        if let Some(new) = signature(version) {
            fit(new, stable).map_err(|error| error.with("version", version))?;
        }
    }
    Ok(())
}

/// The versions that must be there.
fn named(change: &Change) -> Vec<Version> {
    match change {
        Change::Promote(version)
        | Change::Rollback(Some(version))
        | Change::Load(version)
        | Change::Deploy(version, _) => vec![*version],
        Change::SetLabels { set, .. } => set.values().copied().collect(),
        Change::SetRoute(sharing) => sharing.versions().collect(),
        _ => vec![],
    }
}

fn must_serve(change: &Change) -> bool {
    matches!(change, Change::Promote(_) | Change::Rollback(_) | Change::SetRoute(_) | Change::Deploy(..))
}

/// What a waiting caller is told; `Err` says what is still waited for.
fn verdict(entry: &ModelEntry, written: &Written) -> Result<Settled, String> {
    let Written { revision, ref awaits, .. } = *written;
    if entry.known_revision() < revision {
        return Err(format!("this replica has not read revision {revision} yet"));
    }
    if let Some(pending) = &entry.pending {
        return match (pending.why, awaits.contains(&pending.version)) {
            (PendingWhy::Failed, true) => Ok(Settled::Failed(cause(entry, pending.version))),
            (why, _) => Err(format!("version {} is {}", pending.version, why.as_str())),
        };
    }
    if written.remakes {
        return remade(entry);
    }
    let mut others = awaits.iter().map(|version| (*version, entry.versions.get(version).map(|known| known.state)));
    match others.find(|(_, state)| *state != Some(State::Ready)) {
        None => Ok(unfit(entry, awaits).map_or(Settled::Ready, Settled::Failed)),
        Some((version, Some(State::Failed))) => Ok(Settled::Failed(cause(entry, version))),
        // A newer route may have left it again.
        Some(_) if entry.revision > revision => Ok(Settled::Ready),
        Some((version, _)) => Err(format!("version {version} is loading")),
    }
}

/// Why a variant that is waited for gets nothing although it is ready.
fn unfit(entry: &ModelEntry, awaits: &BTreeSet<Version>) -> Option<Error> {
    let arms = entry.traffic.arms.iter().filter(|arm| awaits.contains(&arm.version));
    arms.into_iter().find_map(|arm| match &arm.standing {
        Standing::Incompatible(error) => Some(error.clone()),
        _ => None,
    })
}

/// Of a reload.
fn remade(entry: &ModelEntry) -> Result<Settled, String> {
    let failed = entry
        .versions
        .values()
        .filter(|version| version.state == State::Ready)
        .find_map(|version| version.cause.clone());
    match (entry.remade, failed) {
        (true, _) => Err("its servables are being made anew".to_owned()),
        (false, Some(error)) => Ok(Settled::Failed(error)),
        (false, None) => Ok(Settled::Ready),
    }
}

fn cause(entry: &ModelEntry, version: Version) -> Error {
    let cause = entry.versions.get(&version).and_then(|known| known.cause.clone());
    cause.unwrap_or_else(|| Error::new(Code::FailedPrecondition, "LOAD_FAILED", "it failed to load"))
}

fn parse(record: &Record) -> Result<Route> {
    Route::parse(record.text.as_deref().unwrap_or_default()).map_err(|error| {
        let message = format!("{}; mend it first: the last good route holds meanwhile", error.message());
        Error::new(Code::FailedPrecondition, "ROUTE_UNREADABLE", message)
    })
}

/// The revision of what stands in the store.
fn revision_of(route: &Route, shown: u64) -> Result<u64> {
    match route.revision {
        Some(revision) if revision < shown => Err(Error::new(
            Code::FailedPrecondition,
            "REVISION_WENT_BACK",
            format!(
                "route.yaml has revision {revision}, lower than {shown}, which holds on: take the line `revision` out to \
                 mean what is written there"
            ),
        )),
        revision => Ok(revision.unwrap_or(shown)),
    }
}

fn moved(model: &str, expected: u64, revision: u64) -> Error {
    let message = format!(
        "the route of model '{model}' has moved on to revision {revision}, {expected} was expected: look at it and ask again"
    );
    Error::new(Code::Aborted, "REVISION_MOVED", message).with("revision", revision)
}

fn nonce() -> Result<String> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes)
        .map_err(|error| Error::internal("RANDOM", format!("the system has no randomness: {error}")))?;
    Ok(hex::encode(bytes))
}

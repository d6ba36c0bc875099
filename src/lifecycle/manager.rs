//! The one actor that publishes: takes news, asks the policy, acts, publishes.
//!
//! It owns the ledger and the publisher, and never blocks: loads are with the loader's threads, looks with the watcher.

use std::{
    collections::HashMap,
    sync::{Arc, mpsc::SyncSender},
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

use super::{
    aspire,
    ledger::Ledger,
    loader::{LoadDone, LoadJob, Outcome},
    state::{ModelState, VersionState},
};
use crate::{
    catalog::{ModelEntry, Publisher, Snapshot, VersionEntry},
    model::ModelName,
    runtime::Servable,
    store::News,
    telemetry::Metrics,
};

pub struct Manager {
    pub ledger: Ledger<Servable>,
    pub news: watch::Receiver<News>,
    /// Loads to be done. The ledger gives out no more than there are threads, so there is always room.
    pub jobs: SyncSender<LoadJob>,
    pub done: mpsc::Receiver<LoadDone>,
    pub publisher: Publisher,
    /// Takes old pictures, which may hold the last handles of what was let go.
    pub bury: Box<dyn Fn(Arc<Snapshot>) + Send>,
    pub metrics: Arc<Metrics>,
    pub shown: Shown,
}

/// What was published last.
pub struct Shown {
    entries: HashMap<ModelName, Arc<ModelEntry>>,
    scanned: bool,
    /// Whether the server was ready once: models that come later do not make it unready.
    ready_once: bool,
    unready: Vec<String>,
    started: Instant,
}

/// How long, after the start, versions that may still be being copied keep the server from being ready.
const SETTLE_PATIENCE: Duration = Duration::from_secs(10);
const FAR: Duration = Duration::from_secs(3600);

// === impl Manager ===

impl Manager {
    /// Runs until the watcher or the loader is gone.
    pub async fn run(mut self) {
        while self.step().await {}
    }

    /// Waits for something to happen, and deals with it. False when nothing can happen any more.
    pub async fn step(&mut self) -> bool {
        let wake = self.wake();
        tokio::select! {
            changed = self.news.changed() => {
                if changed.is_err() {
                    return false;
                }
                self.take_news();
            }
            done = self.done.recv() => {
                let Some(done) = done else {
                    return false;
                };
                self.take_result(done);
                while let Ok(done) = self.done.try_recv() {
                    self.take_result(done);
                }
            }
            () = sleep_until(wake) => {}
        }
        self.ledger.plan(Instant::now().into_std(), SystemTime::now());
        while let Some(job) = self.ledger.next_job() {
            if self.jobs.try_send(job).is_err() {
                tracing::error!("the loader's threads are gone: this is a bug");
                return false;
            }
        }
        self.publish();
        true
    }

    fn wake(&self) -> Instant {
        let due = self.ledger.next_wake().map(Instant::from_std);
        let patience = (!self.shown.ready_once).then(|| self.shown.started + SETTLE_PATIENCE);
        let patience = patience.filter(|end| *end > Instant::now());
        let first = due.into_iter().chain(patience).min();
        first.unwrap_or_else(|| Instant::now() + FAR)
    }

    fn take_news(&mut self) {
        let news = self.news.borrow_and_update().clone();
        if let Some(listing) = news.listing {
            self.shown.scanned = true;
            self.ledger.take_listing(&listing, SystemTime::now());
        }
    }

    fn take_result(&mut self, done: LoadDone) {
        let (model, version) = (&done.model, done.version);
        match &done.outcome {
            Outcome::Loaded(loaded) => {
                self.metrics.load_finished(model.as_str(), "OK");
                tracing::info!(%model, %version, platform = %loaded.platform, "version ready");
            }
            Outcome::Rechecked(_) => {}
            Outcome::Failed { error, .. } => {
                self.metrics.load_finished(model.as_str(), error.reason());
                let state = self.ledger.models().get(model);
                let before = state.and_then(|state| state.versions.get(&version)?.failure.as_ref());
                let news = before.is_none_or(|failure| failure.error.reason() != error.reason());
                if news {
                    tracing::warn!(%model, %version, reason = error.reason(), %error, "version failed to load");
                } else {
                    tracing::debug!(%model, %version, reason = error.reason(), "version failed to load again");
                }
            }
        }
        self.ledger.take_result(done, Instant::now().into_std());
    }

    /// Publishes if anything changed that the picture shows.
    fn publish(&mut self) {
        let changed = self.ledger.take_changed();
        for name in &changed {
            match self.ledger.models().get(name) {
                Some(model) => {
                    let entry = Arc::new(entry_of(name, model));
                    self.shown.entries.insert(name.clone(), entry);
                }
                None => {
                    self.shown.entries.remove(name);
                }
            }
        }
        let unready = self.unready();
        let first = self.shown.scanned && !self.shown.ready_once && unready.is_empty();
        if changed.is_empty() && unready == self.shown.unready && !first {
            return;
        }
        self.shown.ready_once |= first;
        self.shown.unready.clone_from(&unready);
        let old = self.publisher.publish(Snapshot {
            models: self.shown.entries.clone(),
            scanned: self.shown.scanned,
            unready,
        });
        (self.bury)(old);
    }

    fn unready(&self) -> Vec<String> {
        if !self.shown.scanned {
            let trouble = self.news.borrow().trouble.clone();
            return trouble
                .map(|trouble| format!("the store cannot be listed: {trouble}"))
                .into_iter()
                .collect();
        }
        let mut unready = self.ledger.required_failed();
        if !self.shown.ready_once {
            let patient = Instant::now() < self.shown.started + SETTLE_PATIENCE;
            unready.extend(self.ledger.unsettled(patient));
        }
        unready
    }
}

// === impl Shown ===

impl Shown {
    pub fn nothing() -> Self {
        Self {
            entries: HashMap::new(),
            scanned: false,
            ready_once: false,
            unready: Vec::new(),
            started: Instant::now(),
        }
    }
}

fn entry_of(name: &ModelName, model: &ModelState<Servable>) -> ModelEntry {
    let ready = model.versions.iter().filter(|(_, version)| version.serving.is_some());
    let problems = model.folder.iter().flat_map(|folder| &folder.problems);
    let messages: Vec<&str> = model.message.iter().chain(problems).map(String::as_str).collect();
    ModelEntry {
        name: name.clone(),
        stable: aspire::stable(ready.map(|(number, _)| *number)),
        versions: model
            .versions
            .iter()
            .map(|(number, version)| (*number, version_entry(version)))
            .collect(),
        labels: Default::default(),
        revision: 0,
        message: (!messages.is_empty()).then(|| messages.join("; ")),
    }
}

fn version_entry(version: &VersionState<Servable>) -> VersionEntry {
    let loaded = version.serving.as_ref().map(|served| &served.loaded);
    let listed_bytes = version.source.as_ref().map_or(0, |source| source.bytes());
    VersionEntry {
        platform: version.platform(),
        state: version.shown,
        since: version.since,
        cause: version.cause(),
        notes: loaded.map(|loaded| loaded.notes.clone()).unwrap_or_default(),
        metrics: loaded.map(|loaded| loaded.metrics.clone()).unwrap_or_default(),
        digest: loaded.map(|loaded| loaded.digest.clone()).unwrap_or_default(),
        artifact_bytes: loaded.map_or(listed_bytes, |loaded| loaded.bytes),
        servable: loaded.map(|loaded| loaded.servable.clone()),
    }
}

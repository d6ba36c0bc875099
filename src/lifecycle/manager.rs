//! The one actor that publishes: takes news, asks the policy, acts, publishes.
//!
//! It owns the ledger and the publisher, and never blocks: loads are with the loader's threads, looks with the watcher.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, mpsc::SyncSender},
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

use super::{
    aspire, changes,
    ledger::Ledger,
    loader::{LoadDone, LoadJob, Outcome},
    model_state::ModelState,
    state::VersionState,
};
use crate::{
    catalog::{ModelEntry, Publisher, Refused, Snapshot, Traffic, VersionEntry, metadata_keys},
    model::{ModelName, Version},
    monitor::Scoreboard,
    runtime::Servable,
    store::{Answers, News},
    telemetry::{
        Events, Metrics,
        events::{Event, Kind},
    },
};

pub struct Manager {
    pub ledger: Ledger<Servable>,
    pub news: watch::Receiver<News>,
    /// Told when the news that somebody waits for are published.
    pub answers: Answers,
    /// Loads to be done. The ledger gives out no more than there are threads, so there is always room.
    pub jobs: SyncSender<LoadJob>,
    pub done: mpsc::Receiver<LoadDone>,
    pub publisher: Publisher,
    /// Takes old pictures, which may hold the last handles of what was let go.
    pub bury: Box<dyn Fn(Arc<Snapshot>) + Send>,
    pub metrics: Arc<Metrics>,
    /// Where the traffic of the routes is counted.
    pub scoreboard: Scoreboard,
    /// Told what a picture changed, once it is published.
    pub events: Events,
    pub shown: Shown,
}

/// What was published last.
pub struct Shown {
    entries: HashMap<ModelName, Arc<ModelEntry>>,
    scanned: bool,
    /// Whether the server was ready once: models that come later do not make it unready.
    ready_once: bool,
    unready: Vec<String>,
    /// Of the store's root, as they were logged.
    problems: Vec<String>,
    /// Why the store could not be listed, as it was told.
    trouble: Option<String>,
    /// Whether the picture does not show that yet.
    trouble_changed: bool,
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
        let mut answer = None;
        tokio::select! {
            changed = self.news.changed() => {
                if changed.is_err() {
                    return false;
                }
                answer = Some(self.take_news());
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
        if let Some((ask, trouble)) = answer {
            self.answers.answer(ask, trouble);
        }
        true
    }

    fn wake(&self) -> Instant {
        let due = self.ledger.next_wake().map(Instant::from_std);
        let patience = (!self.shown.ready_once).then(|| self.shown.started + SETTLE_PATIENCE);
        let patience = patience.filter(|end| *end > Instant::now());
        let first = due.into_iter().chain(patience).min();
        first.unwrap_or_else(|| Instant::now() + FAR)
    }

    /// Returns the ask that the news answer, and why the store could not be listed.
    fn take_news(&mut self) -> (u64, Option<String>) {
        let news = self.news.borrow_and_update().clone();
        self.take_trouble(news.trouble.clone());
        if let Some(listing) = news.listing {
            self.shown.scanned = true;
            if listing.problems != self.shown.problems {
                for problem in &listing.problems {
                    tracing::warn!(%problem, "the store holds something that is not a model");
                }
                self.shown.problems.clone_from(&listing.problems);
            }
            self.ledger.take_listing(&listing, SystemTime::now());
        }
        (news.asked, news.trouble)
    }

    fn take_trouble(&mut self, trouble: Option<String>) {
        if trouble == self.shown.trouble {
            return;
        }
        self.shown.trouble_changed = true;
        self.events.tell(match &trouble {
            Some(why) => Event::new(Kind::StoreTrouble).because("STORE_UNREADABLE", why),
            None => Event::new(Kind::StoreRecovered),
        });
        self.shown.trouble = trouble;
    }

    fn take_result(&mut self, done: LoadDone) {
        let (model, version) = (&done.model, done.version);
        match &done.outcome {
            Outcome::Loaded(loaded) => {
                self.metrics.load_finished(model.as_str(), "OK");
                tracing::info!(%model, %version, platform = %loaded.platform, took = ?loaded.load_time, "version ready");
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
        let mut events = Vec::new();
        for name in &changed {
            let entry = self.ledger.models().get(name).map(|model| Arc::new(entry_of(name, model, &self.scoreboard)));
            let old = match &entry {
                Some(entry) => self.shown.entries.insert(name.clone(), entry.clone()),
                None => self.shown.entries.remove(name),
            };
            events.extend(changes::diff(old.as_deref(), entry.as_deref()));
        }
        let unready = self.unready();
        let first = self.shown.scanned && !self.shown.ready_once && unready.is_empty();
        let trouble = std::mem::take(&mut self.shown.trouble_changed);
        if changed.is_empty() && unready == self.shown.unready && !first && !trouble {
            return;
        }
        self.shown.ready_once |= first;
        self.shown.unready.clone_from(&unready);
        let old = self.publisher.publish(Snapshot {
            metadata_keys: metadata_keys(self.shown.entries.values()),
            models: self.shown.entries.clone(),
            scanned: self.shown.scanned,
            unready,
            store_trouble: self.shown.trouble.clone(),
        });
        // After the picture: whoever hears of a version that is ready can call it.
        events.into_iter().for_each(|event| self.events.tell(event));
        (self.bury)(old);
    }

    fn unready(&self) -> Vec<String> {
        if !self.shown.scanned {
            let trouble = self.news.borrow().trouble.clone();
            return trouble.map(|trouble| format!("the store cannot be listed: {trouble}")).into_iter().collect();
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
            problems: Vec::new(),
            trouble: None,
            trouble_changed: false,
            started: Instant::now(),
        }
    }
}

fn entry_of(name: &ModelName, model: &ModelState<Servable>, scoreboard: &Scoreboard) -> ModelEntry {
    let (route, revision) = model.route.in_force();
    let problems = model.folder.iter().flat_map(|folder| &folder.problems);
    let there: Vec<Version> = model.folder.iter().flat_map(|folder| folder.versions.keys().copied()).collect();
    let policy = model.yaml.as_ref().and_then(|yaml| yaml.versions.clone());
    let selects_none = aspire::selects_none(policy.as_ref(), &there);
    let messages = model.message.iter().chain(model.route.message()).chain(&selects_none).chain(problems);
    let messages: Vec<&str> = messages.map(String::as_str).collect();
    let versions: BTreeMap<_, _> =
        model.versions.iter().map(|(number, version)| (*number, version_entry(version, model))).collect();
    let stable = model.stable();
    let traffic = Traffic::new(name, (&route, revision), stable, |version| versions.get(&version), scoreboard);
    ModelEntry {
        name: name.clone(),
        stable,
        versions,
        traffic: Arc::new(traffic),
        policy: policy.unwrap_or_default(),
        route,
        revision,
        pending: model.route.pending(),
        // At once: whoever disables a model does not wait for a version.
        disabled: model.route.wanted().disabled.as_ref().map(|disabled| disabled.reason.clone()),
        remade: model.is_remade(),
        on_new_version: model.on_new_version(),
        canary: model.canary().map(Arc::new).unwrap_or_default(),
        settings: model.settings.clone(),
        message: (!messages.is_empty()).then(|| messages.join("; ")),
        refused: Refused { model_yaml: model.message.clone(), route_yaml: model.route.message().cloned() },
    }
}

fn version_entry(version: &VersionState<Servable>, model: &ModelState<Servable>) -> VersionEntry {
    let loaded = version.serving.as_ref().map(|served| &served.loaded);
    let listed_bytes = version.source.as_ref().map_or(0, |source| source.bytes());
    let kept = version.serving.is_some() && version.retention.since().is_some();
    let kept = kept
        .then(|| format!("a higher version took its place; keep_previous keeps it for {:?}", model.keep_previous()));
    VersionEntry {
        platform: version.platform(),
        state: version.shown,
        since: version.since,
        cause: version.cause(),
        notes: loaded.into_iter().flat_map(|loaded| &loaded.notes).cloned().chain(kept).collect(),
        metrics: loaded.map(|loaded| loaded.metrics.clone()).unwrap_or_default(),
        settings: loaded.map(|loaded| loaded.settings.clone()).unwrap_or_default(),
        digest: loaded.map(|loaded| loaded.digest.clone()).unwrap_or_default(),
        artifact_bytes: loaded.map_or(listed_bytes, |loaded| loaded.bytes),
        memory_bytes: loaded.map_or(0, |loaded| loaded.memory_bytes),
        gpu_bytes: loaded.map_or(0, |loaded| loaded.gpu_bytes),
        load_time: loaded.map_or(Duration::ZERO, |loaded| loaded.load_time),
        servable: loaded.map(|loaded| loaded.servable.clone()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Mutex,
        mpsc::{Receiver, sync_channel},
    };

    use super::*;
    use crate::{
        catalog::{self, Catalog, State},
        error::{Code, Error},
        model::{ModelYaml, OnNewVersion, Plan},
        store::{ModelFolder, StoreListing, VersionFolder},
    };

    struct Ends {
        news: watch::Sender<News>,
        jobs: Receiver<LoadJob>,
        done: mpsc::Sender<LoadDone>,
        catalog: Catalog,
        buried: Arc<Mutex<usize>>,
    }

    fn manager() -> (Manager, Ends) {
        let (news_sender, news) = watch::channel(News::default());
        let (jobs, taken) = sync_channel(2);
        let (done_sender, done) = mpsc::channel(2);
        let (publisher, catalog) = catalog::new();
        let buried = Arc::new(Mutex::new(0));
        let count = buried.clone();
        let manager = Manager {
            ledger: Ledger::new(ModelYaml::default(), 2),
            news,
            answers: crate::store::refresh().2,
            jobs,
            done,
            publisher,
            bury: Box::new(move |_| *count.lock().expect("not poisoned") += 1),
            metrics: Metrics::new(),
            scoreboard: Scoreboard::default(),
            events: Events::new("test"),
            shown: Shown::nothing(),
        };
        let ends = Ends { news: news_sender, jobs: taken, done: done_sender, catalog, buried };
        (manager, ends)
    }

    fn listing(yaml: &str) -> StoreListing {
        let version = VersionFolder { complete: true, ..VersionFolder::new("1", std::time::Instant::now()) };
        let text = crate::store::TextFile {
            stamp: crate::store::Stamp { size: 0, modified_ns: 0, changed_ns: 0, inode: 0 },
            read_ns: 0,
            text: Ok(yaml.into()),
        };
        let folder = ModelFolder {
            route_yaml: None,
            model_yaml: Some(text),
            versions: [(Version::new(1, 0, 0), Arc::new(version))].into(),
            problems: vec!["folder 'x' is not a version".into()],
        };
        StoreListing { models: [(ModelName::new("m").expect("a name"), Arc::new(folder))].into(), problems: Vec::new() }
    }

    fn failed(job: LoadJob) -> LoadDone {
        LoadDone {
            model: job.model,
            version: job.version,
            source: job.source,
            options: job.options,
            outcome: Outcome::Failed {
                error: Error::new(Code::FailedPrecondition, "LOAD_CRASHED", "it crashed"),
                missing_library: None,
                short_bytes: 0,
            },
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_published_and_tried_again_when_its_time_comes() {
        let (mut manager, ends) = manager();
        ends.news.send_modify(|news| news.listing = Some(Arc::new(listing(""))));
        assert!(manager.step().await);
        assert!(!ends.catalog.load().is_ready(), "it is still loading");
        let job = ends.jobs.try_recv().expect("a load");
        ends.done.try_send(failed(job)).expect("there is room");
        assert!(manager.step().await);
        {
            let snapshot = ends.catalog.load();
            assert!(snapshot.is_ready(), "it came to an end: {:?}", snapshot.unready);
            let model = snapshot.model("m").expect("it is there");
            let version = &model.versions[&Version::new(1, 0, 0)];
            assert_eq!(version.state, State::Failed);
            assert_eq!(model.message.as_deref(), Some("folder 'x' is not a version"));
        }
        assert!(ends.jobs.try_recv().is_err());
        let begun = Instant::now();
        while ends.jobs.try_recv().is_err() {
            assert!(manager.step().await);
        }
        assert_eq!(begun.elapsed().as_secs(), 1);
        assert!(*ends.buried.lock().expect("not poisoned") >= 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_required_model_that_failed_makes_the_server_unready() {
        let (mut manager, ends) = manager();
        ends.news.send_modify(|news| news.listing = Some(Arc::new(listing("required: true"))));
        manager.step().await;
        let job = ends.jobs.try_recv().expect("a load");
        ends.done.try_send(failed(job)).expect("there is room");
        manager.step().await;
        assert_eq!(ends.catalog.load().unready, ["required model 'm' does not serve: it crashed"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_becomes_of_new_versions_is_published_and_a_bad_plan_keeps_the_last_good_one() {
        let (mut manager, ends) = manager();
        let said = async |manager: &mut Manager, yaml: &str| {
            ends.news.send_modify(|news| news.listing = Some(Arc::new(listing(yaml))));
            manager.step().await;
            let snapshot = ends.catalog.load();
            let model = snapshot.model("m").expect("it is there");
            (model.on_new_version, model.canary.steps.clone(), model.refused.model_yaml.clone())
        };
        let default = Plan::default().steps;
        assert_eq!(said(&mut manager, "").await, (OnNewVersion::Serve, default, None));
        let (word, steps, refused) = said(&mut manager, "on_new_version: canary\ncanary: { steps: [50, 100] }").await;
        assert_eq!((word, steps, refused), (OnNewVersion::Canary, vec![50.0, 100.0], None));
        let (word, steps, refused) = said(&mut manager, "on_new_version: hold\ncanary: { steps: [100, 50] }").await;
        assert_eq!((word, steps), (OnNewVersion::Canary, vec![50.0, 100.0]));
        assert!(refused.is_some_and(|why| why.contains("canary: steps")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_cannot_be_listed_is_said() {
        let (mut manager, ends) = manager();
        ends.news.send_modify(|news| news.trouble = Some("no such folder".into()));
        manager.step().await;
        let snapshot = ends.catalog.load();
        assert!(!snapshot.scanned);
        assert_eq!(snapshot.unready, ["the store cannot be listed: no such folder"]);
    }
}

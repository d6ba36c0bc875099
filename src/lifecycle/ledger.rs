//! All models at once: what is there, what should be, what is under way. No I/O; the time is an argument.
//!
//! News and results mark models; `plan` asks the policy about those alone, so the work is by what changed and not by what
//! there is.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Instant, SystemTime},
};

use super::{
    loader::{LoadDone, LoadJob, Outcome, Task},
    model_state::ModelState,
    policy::{self, Action, Urgency},
    state::{Failure, LoadState, Served, VersionState},
};
use crate::{
    model::{ModelName, ModelYaml, Version},
    store::StoreListing,
};

/// What the manager knows. `T` is the servable; tests use something simpler.
pub struct Ledger<T> {
    defaults: ModelYaml,
    models: BTreeMap<ModelName, ModelState<T>>,
    /// Models to ask the policy about.
    dirty: BTreeSet<ModelName>,
    /// Models whose published entry is out of date.
    changed: BTreeSet<ModelName>,
    /// Loads that wait for a free thread, the most urgent first.
    queue: BTreeSet<Ticket>,
    running: usize,
    running_max: usize,
    /// When to look at a model again.
    due: BTreeSet<(Instant, ModelName)>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Ticket {
    urgency: Urgency,
    bytes: u64,
    model: ModelName,
    version: Version,
    task: Task,
}

// === impl Ledger ===

impl<T> Ledger<T> {
    pub fn new(defaults: ModelYaml, running_max: usize) -> Self {
        Self {
            defaults,
            models: BTreeMap::new(),
            dirty: BTreeSet::new(),
            changed: BTreeSet::new(),
            queue: BTreeSet::new(),
            running: 0,
            running_max,
            due: BTreeSet::new(),
        }
    }

    pub fn models(&self) -> &BTreeMap<ModelName, ModelState<T>> {
        &self.models
    }

    /// Takes in a good listing.
    pub fn take_listing(&mut self, listing: &StoreListing, wall: SystemTime) {
        for (name, folder) in &listing.models {
            let model = self.models.entry(name.clone()).or_default();
            if model.folder.as_ref().is_some_and(|known| Arc::ptr_eq(known, folder)) {
                continue;
            }
            model.take_folder(folder, &self.defaults, wall);
            self.dirty.insert(name.clone());
        }
        for (name, model) in &mut self.models {
            if model.folder.is_some() && !listing.models.contains_key(name) {
                model.folder = None;
                model.versions.values_mut().for_each(|version| version.source = None);
                self.dirty.insert(name.clone());
            }
        }
    }

    /// Takes in what came of a load.
    pub fn take_result(&mut self, done: LoadDone<T>, now: Instant) {
        self.running -= 1;
        self.dirty.insert(done.model.clone());
        let Some(version) = self
            .models
            .get_mut(&done.model)
            .and_then(|model| model.versions.get_mut(&done.version))
        else {
            return;
        };
        version.load = LoadState::Idle;
        match done.outcome {
            Outcome::Loaded(loaded) => {
                version.failure = None;
                version.known_digest = Some(loaded.digest.clone());
                let old = version.serving.replace(Served {
                    loaded,
                    source: done.source,
                    options: done.options,
                    mutated: false,
                });
                version
                    .leaving
                    .extend(old.map(|old| Arc::downgrade(&old.loaded.servable)));
            }
            Outcome::Rechecked(digest) => {
                version.failure = None;
                if let Some(served) = &mut version.serving {
                    served.mutated = served.loaded.digest != digest;
                    served.source = done.source;
                }
            }
            Outcome::Failed { error, missing_library } => version.fail(Failure {
                error,
                source: done.source,
                options: done.options,
                attempts: 0,
                retry_at: now,
                missing_library,
            }),
        }
    }

    /// Asks the policy about every marked model, and does what it says.
    pub fn plan(&mut self, now: Instant, wall: SystemTime) {
        while let Some((when, _)) = self.due.first() {
            if *when > now {
                break;
            }
            let due = self.due.pop_first();
            self.dirty.extend(due.map(|(_, name)| name));
        }
        for name in std::mem::take(&mut self.dirty) {
            self.plan_model(&name, now, wall);
            self.changed.insert(name);
        }
    }

    fn plan_model(&mut self, name: &ModelName, now: Instant, wall: SystemTime) {
        let Some(model) = self.models.get_mut(name) else {
            return;
        };
        model.aspire();
        let keep_last = model.folder.is_some();
        let options = model.options.clone();
        loop {
            let versions = model.versions.iter();
            let views: Vec<_> = versions
                .map(|(number, version)| version.view(*number, &options, now))
                .collect();
            let Some(action) = policy::next_action(&views, keep_last) else {
                break;
            };
            act(name, model, action, &mut self.queue);
        }
        for version in model.versions.values_mut() {
            version.refresh(&options, wall);
        }
        model.versions.retain(|_, version| !version.is_gone());
        if let Some(when) = model.look_again(now) {
            self.due.insert((when, name.clone()));
        }
        if model.folder.is_none() && model.versions.is_empty() {
            self.models.remove(name);
        }
    }

    /// The next load to start, while a thread is free.
    pub fn next_job(&mut self) -> Option<LoadJob> {
        while self.running < self.running_max {
            let ticket = self.queue.pop_first()?;
            let Some(model) = self.models.get_mut(&ticket.model) else {
                continue;
            };
            let Some(version) = model.versions.get_mut(&ticket.version) else {
                continue;
            };
            version.load = LoadState::Idle;
            let Some(source) = version.source.clone() else {
                continue;
            };
            version.load = LoadState::Running;
            self.running += 1;
            return Some(LoadJob {
                model: ticket.model,
                version: ticket.version,
                task: ticket.task,
                source,
                options: model.options.clone(),
                known_digest: version.known_digest.clone(),
                missing_library: version.failure.as_ref().and_then(|failure| failure.missing_library),
            });
        }
        None
    }

    /// When `plan` should be called again although nothing came.
    pub fn next_wake(&self) -> Option<Instant> {
        self.due.first().map(|(when, _)| *when)
    }

    /// The models whose published entry is out of date; asked for once.
    pub fn take_changed(&mut self) -> BTreeSet<ModelName> {
        std::mem::take(&mut self.changed)
    }

    /// What keeps the server from being ready for the first time: models that have not come to an end yet. `patient` is
    /// whether versions that are still being copied are waited for, too.
    pub fn unsettled(&self, patient: bool) -> Vec<String> {
        let unsettled = self
            .models
            .iter()
            .filter(|(_, model)| !model.is_settled() || (patient && !model.serves() && model.is_settling()));
        unsettled
            .map(|(name, _)| format!("model '{name}' is loading"))
            .collect()
    }

    /// Models without which the server is not ready, and which failed.
    pub fn required_failed(&self) -> Vec<String> {
        let required = |model: &ModelState<T>| model.yaml.as_ref().and_then(|yaml| yaml.required) == Some(true);
        let failed = self
            .models
            .iter()
            .filter(|(_, model)| required(model) && !model.serves() && model.is_settled());
        failed
            .map(|(name, model)| {
                let causes = model.versions.values().rev().filter_map(VersionState::cause);
                let cause = causes.map(|error| format!(": {error}")).next().unwrap_or_default();
                format!("required model '{name}' does not serve{cause}")
            })
            .collect()
    }
}

fn act<T>(name: &ModelName, model: &mut ModelState<T>, action: Action, queue: &mut BTreeSet<Ticket>) {
    let (number, asked) = match action {
        Action::Load(number, urgency) => (number, Some((urgency, Task::Load))),
        Action::Recheck(number) => (number, Some((Urgency::Other, Task::Recheck))),
        Action::CallOff(number) | Action::Unload(number) => (number, None),
    };
    let Some(version) = model.versions.get_mut(&number) else {
        return;
    };
    match (action, asked) {
        (_, Some((urgency, task))) => {
            version.load = LoadState::Queued;
            queue.insert(Ticket {
                urgency,
                bytes: version.source.as_ref().map_or(0, |source| source.bytes()),
                model: name.clone(),
                version: number,
                task,
            });
        }
        (Action::Unload(_), None) => {
            let old = version.serving.take();
            version
                .leaving
                .extend(old.map(|old| Arc::downgrade(&old.loaded.servable)));
        }
        (_, None) => {
            version.load = LoadState::Idle;
            queue.retain(|ticket| ticket.model != *name || ticket.version != number);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        catalog::State,
        error::{Code, Error},
        lifecycle::loader::Loaded,
        model::Platform,
        store::{ModelFolder, Stamp, StoreFile, TextFile, VersionFolder},
    };

    /// A ledger, and a store and a loader that do as they are told.
    struct World {
        ledger: Ledger<u32>,
        now: Instant,
        yaml: &'static str,
        served: u32,
    }

    fn name() -> ModelName {
        ModelName::new("m").expect("a name")
    }

    fn stamp(inode: u64) -> Stamp {
        Stamp {
            size: 10,
            modified_ns: 0,
            changed_ns: 0,
            inode,
        }
    }

    fn version(inode: u64) -> Arc<VersionFolder> {
        let path = "m/1/model.onnx".to_owned();
        let stamp = stamp(inode);
        Arc::new(VersionFolder {
            folder: "1".into(),
            files: BTreeMap::from([("model.onnx".to_owned(), StoreFile { path, stamp })]),
            version_yaml: None,
            refused: None,
            newest_ns: 0,
            steady_since: Instant::now(),
            complete: true,
        })
    }

    impl World {
        fn new() -> Self {
            Self {
                ledger: Ledger::new(ModelYaml::default(), 2),
                now: Instant::now(),
                yaml: "",
                served: 0,
            }
        }

        /// The store shows these majors, each with an inode that stands for its bytes.
        fn list(&mut self, versions: &[(u64, u64)]) {
            let folder = ModelFolder {
                model_yaml: Some(TextFile {
                    stamp: stamp(self.yaml.len() as u64),
                    read_ns: 0,
                    text: Ok(self.yaml.into()),
                }),
                versions: versions
                    .iter()
                    .map(|&(major, inode)| (Version::new(major, 0, 0), version(inode)))
                    .collect(),
                problems: Vec::new(),
            };
            let listing = StoreListing {
                models: BTreeMap::from([(name(), Arc::new(folder))]),
                problems: Vec::new(),
            };
            self.take(&listing);
        }

        fn take(&mut self, listing: &StoreListing) {
            self.ledger.take_listing(listing, SystemTime::UNIX_EPOCH);
            self.plan();
        }

        fn plan(&mut self) {
            self.ledger.plan(self.now, SystemTime::UNIX_EPOCH);
        }

        fn wait(&mut self, seconds: u64) {
            self.now += Duration::from_secs(seconds);
            self.plan();
        }

        /// Runs every load there is; those of `broken` majors fail. Returns what was asked for.
        fn work(&mut self, broken: &[u64]) -> Vec<String> {
            let mut asked = Vec::new();
            while let Some(job) = self.ledger.next_job() {
                asked.push(format!("{:?} {}", job.task, job.version));
                let bytes = job.source.files["model.onnx"].stamp.inode.to_string();
                let known = job.known_digest.as_ref().is_some_and(|known| *known != bytes);
                let fails = known || broken.iter().any(|&major| Version::new(major, 0, 0) == job.version);
                let outcome = match job.task {
                    Task::Recheck => Outcome::Rechecked(bytes),
                    Task::Load if fails => Outcome::Failed {
                        error: Error::new(Code::FailedPrecondition, "LOAD_CRASHED", "it crashed"),
                        missing_library: None,
                    },
                    Task::Load => {
                        self.served += 1;
                        Outcome::Loaded(Loaded {
                            servable: Arc::new(self.served),
                            platform: Platform::Onnx,
                            digest: bytes,
                            bytes: 10,
                            notes: Vec::new(),
                            metrics: BTreeMap::new(),
                        })
                    }
                };
                let done = LoadDone {
                    model: job.model,
                    version: job.version,
                    source: job.source,
                    options: job.options,
                    outcome,
                };
                self.ledger.take_result(done, self.now);
                self.plan();
            }
            asked
        }

        fn shown(&self) -> Vec<(String, State)> {
            let model = &self.ledger.models()[&name()];
            let versions = model.versions.iter();
            versions
                .map(|(number, version)| (number.to_string(), version.shown))
                .collect()
        }

        fn ready(&self) -> Vec<String> {
            let ready = self.shown().into_iter().filter(|(_, state)| *state == State::Ready);
            ready.map(|(number, _)| number).collect()
        }
    }

    #[test]
    fn a_new_version_takes_over_and_the_old_one_goes() {
        let mut world = World::new();
        world.list(&[(1, 1)]);
        assert_eq!(world.work(&[]), ["Load 1.0.0"]);
        world.list(&[(1, 1), (2, 2)]);
        assert_eq!(world.ready(), ["1.0.0"], "until the new one is there");
        assert_eq!(world.work(&[]), ["Load 2.0.0"]);
        assert_eq!(world.ready(), ["2.0.0"]);
    }

    #[test]
    fn a_broken_new_version_leaves_the_old_one_in_place() {
        let mut world = World::new();
        world.list(&[(1, 1)]);
        world.work(&[]);
        world.list(&[(1, 1), (2, 2)]);
        world.work(&[2]);
        assert_eq!(
            world.shown(),
            [("1.0.0".to_owned(), State::Ready), ("2.0.0".to_owned(), State::Failed)]
        );
        world.list(&[(1, 1), (2, 3)]);
        assert_eq!(world.work(&[]), ["Load 2.0.0"], "its files changed");
        assert_eq!(world.ready(), ["2.0.0"]);
    }

    #[test]
    fn a_start_beside_a_broken_new_version_serves_the_old_one() {
        let mut world = World::new();
        world.list(&[(1, 1), (2, 2)]);
        assert!(!world.ledger.unsettled(false).is_empty());
        assert_eq!(world.work(&[2]), ["Load 2.0.0", "Load 1.0.0"]);
        assert_eq!(world.ready(), ["1.0.0"]);
        assert!(world.ledger.unsettled(false).is_empty());
    }

    #[test]
    fn what_failed_is_tried_again_with_growing_pauses() {
        let mut world = World::new();
        world.list(&[(1, 1)]);
        assert_eq!(world.work(&[1]).len(), 1);
        assert_eq!(world.work(&[1]).len(), 0, "not at once");
        world.wait(1);
        assert_eq!(world.work(&[1]).len(), 1);
        world.wait(1);
        assert_eq!(world.work(&[1]).len(), 0, "the second pause is longer");
        world.wait(1);
        assert_eq!(world.work(&[]).len(), 1);
        assert_eq!(world.ready(), ["1.0.0"]);
    }

    #[test]
    fn the_last_one_serves_on_when_its_source_is_gone_and_goes_with_its_model() {
        let mut world = World::new();
        world.list(&[(1, 1)]);
        world.work(&[]);
        world.list(&[]);
        assert_eq!(world.ready(), ["1.0.0"]);
        let cause = world.ledger.models()[&name()].versions[&Version::new(1, 0, 0)].cause();
        assert_eq!(cause.expect("it is said").reason(), "SOURCE_MISSING");
        world.take(&StoreListing::default());
        assert!(world.ledger.models().is_empty());
    }

    #[test]
    fn a_version_never_changes() {
        let mut world = World::new();
        world.list(&[(1, 1)]);
        world.work(&[]);
        world.list(&[(1, 2)]);
        assert_eq!(world.work(&[]), ["Recheck 1.0.0"]);
        assert_eq!(world.ready(), ["1.0.0"]);
        let cause = || world.ledger.models()[&name()].versions[&Version::new(1, 0, 0)].cause();
        assert_eq!(cause().expect("it is said").reason(), "VERSION_MUTATED");
    }

    #[test]
    fn other_options_make_other_servables_and_a_bad_edit_keeps_the_good_ones() {
        let mut world = World::new();
        world.list(&[(1, 1)]);
        world.work(&[]);
        world.yaml = "batching: off";
        world.list(&[(1, 1)]);
        assert_eq!(world.ready(), ["1.0.0"], "meanwhile the old one serves");
        assert_eq!(world.work(&[]), ["Load 1.0.0"]);
        world.yaml = "batchin: on";
        world.list(&[(1, 1)]);
        assert_eq!(world.work(&[]).len(), 0);
        let message = &world.ledger.models()[&name()].message;
        assert!(
            message.as_ref().is_some_and(|message| message.contains("batchin")),
            "{message:?}"
        );
        world.yaml = "versions: all\nbatching: off";
        world.list(&[(1, 1)]);
        assert_eq!(world.work(&[]).len(), 0, "this key needs no other servable");
    }

    #[test]
    fn a_drain_is_shown_until_the_last_request_is_done() {
        let mut world = World::new();
        world.list(&[(1, 1)]);
        world.work(&[]);
        let held = world.ledger.models()[&name()].versions[&Version::new(1, 0, 0)]
            .serving
            .as_ref()
            .map(|served| served.loaded.servable.clone());
        world.list(&[(1, 1), (2, 2)]);
        world.work(&[]);
        assert_eq!(world.shown()[0].1, State::Draining);
        drop(held);
        world.wait(1);
        assert_eq!(world.shown()[0].1, State::Available);
    }

    #[test]
    fn the_smallest_of_the_most_urgent_comes_first() {
        let mut world = World::new();
        let models = ["a", "b", "c"].into_iter().zip([30, 10, 20]).map(|(name, size)| {
            let mut folder = (*version(size)).clone();
            folder.files.values_mut().for_each(|file| file.stamp.size = size);
            let folder = ModelFolder {
                versions: BTreeMap::from([(Version::new(1, 0, 0), Arc::new(folder))]),
                ..ModelFolder::default()
            };
            (ModelName::new(name).expect("a name"), Arc::new(folder))
        });
        world.take(&StoreListing {
            models: models.collect(),
            problems: Vec::new(),
        });
        let mut next = || world.ledger.next_job().map(|job| job.model.to_string());
        assert_eq!(
            [next(), next(), next()],
            [Some("b".into()), Some("c".into()), None],
            "two at once"
        );
    }
}

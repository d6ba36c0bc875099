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
            let before = model.message.clone();
            let route_before = model.route.message().cloned();
            model.take_folder(folder, &self.defaults, wall);
            if let Some(reason) = model.route.message().filter(|message| Some(*message) != route_before.as_ref()) {
                tracing::warn!(model = %name, reason, "route.yaml is not taken; the last good one holds");
            }
            if let Some(reason) = model.message.as_ref().filter(|_| model.message != before) {
                let last_good_kept = model.yaml.is_some();
                tracing::warn!(model = %name, reason, last_good_kept, "model.yaml is not taken");
            }
            self.dirty.insert(name.clone());
        }
        for (name, model) in &mut self.models {
            if model.folder.is_some() && !listing.models.contains_key(name) {
                tracing::info!(model = %name, reason = "its folder is gone from the store", "model gone");
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
        let Some(version) = self.models.get_mut(&done.model).and_then(|model| model.versions.get_mut(&done.version))
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
                version.leaving.extend(old.map(|old| Arc::downgrade(&old.loaded.servable)));
            }
            Outcome::Rechecked(digest) => {
                version.failure = None;
                if let Some(served) = &mut version.serving {
                    served.mutated = served.loaded.digest != digest;
                    served.source = done.source;
                }
            }
            Outcome::Failed { error, missing_library, short_bytes } => {
                version.fail(Failure {
                    error,
                    source: done.source,
                    options: done.options,
                    attempts: 0,
                    retry_at: now,
                    missing_library,
                });
                self.release_kept(short_bytes);
            }
        }
    }

    /// Lets versions go that are only kept for a rollback, the longest kept first, until that much comes back or none is left.
    fn release_kept(&mut self, short_bytes: u64) {
        let models = self.models.iter_mut();
        let mut kept: Vec<_> = models.flat_map(|(name, model)| model.kept().map(move |kept| (kept, name))).collect();
        kept.sort_by_key(|((since, _), _)| *since);
        let mut back = 0;
        for ((_, version), name) in kept {
            if back >= short_bytes {
                break;
            }
            back += version.serving.as_ref().map_or(0, |served| served.loaded.memory_bytes);
            version.retention.release();
            self.dirty.insert(name.clone());
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
        model.settle_route();
        model.aspire();
        model.note_superseded(now);
        let (rules, keep) = (model.rules(), model.keep_previous());
        let options = model.options.clone();
        loop {
            let versions = model.versions.iter();
            let views: Vec<_> = versions.map(|(number, version)| version.view(*number, &options, keep, now)).collect();
            let Some(action) = policy::next_action(&views, rules) else {
                break;
            };
            act(name, model, action, &mut self.queue);
        }
        for (number, version) in &mut model.versions {
            if let Some(error) = version.trouble_to_log() {
                tracing::warn!(model = %name, version = %number, reason = error.reason(), %error, "version serves on");
            }
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
                missing_library: version.failure.as_ref().and_then(Failure::missing_library),
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
        unsettled.map(|(name, _)| format!("model '{name}' is loading")).collect()
    }

    /// Models without which the server is not ready, and which failed.
    pub fn required_failed(&self) -> Vec<String> {
        let required = |model: &ModelState<T>| model.yaml.as_ref().and_then(|yaml| yaml.required) == Some(true);
        let failed = self.models.iter().filter(|(_, model)| required(model) && !model.serves() && model.is_settled());
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
    if let (Action::Unload(_), Some(_)) = (action, &version.serving) {
        let reason = match &version.source {
            _ if model.folder.is_none() => "its model is gone from the store",
            None => "its folder is gone from the store",
            Some(_) => "another version took its place, or `versions:` does not select it",
        };
        tracing::info!(model = %name, version = %number, reason, "version unloaded");
    }
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
            version.leaving.extend(old.map(|old| Arc::downgrade(&old.loaded.servable)));
        }
        (_, None) => {
            version.load = LoadState::Idle;
            queue.retain(|ticket| ticket.model != *name || ticket.version != number);
        }
    }
}

#[cfg(test)]
mod tests;

//! One model, as the manager knows it: its folder, its options, its versions.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use super::{
    aspire::{self, Candidate},
    policy::Rules,
    route_state::RouteState,
    state::{LoadState, VersionState},
};
use crate::{
    catalog::PendingWhy,
    model::{ModelYaml, OnNewVersion, Plan, Setting, Version, VersionsPolicy, settings},
    store::{ModelFolder, TextFile},
};

/// One model.
pub struct ModelState<T> {
    /// `None` once it has gone from the store.
    pub folder: Option<Arc<ModelFolder>>,
    /// The last good model.yaml over the server's defaults; `None` until there was a good one.
    pub yaml: Option<ModelYaml>,
    /// Of it, what servables are made by. Another one means other servables.
    pub options: Arc<ModelYaml>,
    /// The same, with who said it.
    pub settings: Arc<[Setting]>,
    /// The model.yaml that `yaml` and `message` came from.
    pub read: Option<TextFile>,
    /// What is wrong with model.yaml.
    pub message: Option<String>,
    /// Who gets the traffic.
    pub route: RouteState,
    pub versions: BTreeMap<Version, VersionState<T>>,
}

/// How often what drains is looked at.
const DRAIN_LOOK: Duration = Duration::from_millis(100);

// === impl ModelState ===

impl<T> Default for ModelState<T> {
    fn default() -> Self {
        Self {
            folder: None,
            yaml: None,
            options: Arc::default(),
            settings: Arc::default(),
            read: None,
            message: None,
            route: RouteState::default(),
            versions: BTreeMap::new(),
        }
    }
}

impl<T> ModelState<T> {
    /// Whether every aspired version has come to an end of some kind. Not only one of them: a server that has just started
    /// must not answer with an old version because the new one takes a moment longer.
    pub fn is_settled(&self) -> bool {
        let mut aspired = self.versions.values().filter(|version| version.aspired);
        aspired.all(|version| version.serving.is_some() || version.failure.is_some())
    }

    /// Whether some servable is still to be made anew, with other options.
    pub fn is_remade(&self) -> bool {
        self.versions.values().any(|version| version.aspired && version.is_remade(&self.options))
    }

    pub fn serves(&self) -> bool {
        self.versions.values().any(|version| version.serving.is_some())
    }

    /// Whether some version of it is still being copied, as far as one can tell.
    pub fn is_settling(&self) -> bool {
        let sources = self.versions.values().filter_map(|version| version.source.as_ref());
        sources.into_iter().any(|source| !source.complete)
    }

    pub fn take_folder(&mut self, folder: &Arc<ModelFolder>, defaults: &ModelYaml, wall: SystemTime) {
        let reloads = self.route.wanted().reloads;
        self.route.take_file(folder.route_yaml.as_ref());
        if self.yaml.is_none() || self.read != folder.model_yaml || self.route.wanted().reloads != reloads {
            self.read = folder.model_yaml.clone();
            self.take_yaml(defaults);
        }
        for (number, source) in &folder.versions {
            let version = self.versions.entry(*number).or_insert_with(|| VersionState::new(wall));
            version.source = Some(source.clone());
        }
        for (number, version) in &mut self.versions {
            if !folder.versions.contains_key(number) {
                // The same number may come again with other bytes: it was away.
                version.source = None;
                version.known_digest = None;
            }
        }
        self.folder = Some(folder.clone());
    }

    /// A bad edit keeps the last good one, and is shown.
    fn take_yaml(&mut self, defaults: &ModelYaml) {
        let own = match read_yaml(self.read.as_ref()) {
            Ok(yaml) => yaml,
            Err(message) => {
                self.message = Some(message);
                return;
            }
        };
        let yaml = own.clone().over(defaults);
        self.message = aspire::aspired(yaml.versions.as_ref(), &[]).err().map(|error| error.message().to_owned());
        if self.message.is_some() {
            return;
        }
        let options = ModelYaml { reloads: self.route.wanted().reloads, ..yaml.of_servables() };
        if *self.options != options {
            self.options = Arc::new(options);
        }
        self.yaml = Some(yaml);
        self.settings = settings(&own, defaults).into();
    }

    pub fn aspire(&mut self) {
        let follows_latest = |yaml: &ModelYaml| matches!(yaml.versions, None | Some(VersionsPolicy::Latest(_)));
        let passes_over = self.yaml.as_ref().is_some_and(follows_latest);
        let candidates: Vec<Candidate> = self
            .versions
            .iter()
            .filter(|(number, version)| version.is_candidate() && !(passes_over && self.route.passes_over(**number)))
            .map(|(number, version)| Candidate { version: *number, failed: version.has_failed() })
            .collect();
        let mut aspired = match (&self.folder, &self.yaml) {
            (Some(_), Some(yaml)) => aspire::aspired(yaml.versions.as_ref(), &candidates).unwrap_or_default(),
            _ => BTreeSet::new(),
        };
        if self.folder.is_some() && self.yaml.is_some() {
            aspired.extend(self.named());
        }
        for (number, version) in &mut self.versions {
            version.aspired = aspired.contains(number);
        }
    }

    /// What the route names and can be served; while a new route waits, who answers stays, too.
    fn named(&self) -> BTreeSet<Version> {
        let mut named = self.route.named();
        if self.route.waits() {
            named.extend(self.stable());
        }
        let there = |number: &Version| {
            self.versions.get(number).is_some_and(|version| version.is_candidate() || version.serving.is_some())
        };
        named.into_iter().filter(there).collect()
    }

    /// The version that answers a call without one.
    pub fn stable(&self) -> Option<Version> {
        let ready = self.versions.iter().filter(|(_, version)| version.serving.is_some());
        self.route.stable(ready.map(|(number, _)| *number))
    }

    /// Takes a route that waited, where its stable is ready by now, and notes who answers.
    pub fn settle_route(&mut self) {
        let versions = &self.versions;
        let ready = |number| versions.get(&number).is_some_and(|version| version.serving.is_some());
        let why = |number| match versions.get(&number) {
            Some(version) if version.failure.is_some() => PendingWhy::Failed,
            Some(version) if version.source.is_some() => PendingWhy::Loading,
            _ => PendingWhy::Absent,
        };
        self.route.settle(ready, why);
        let holds = self.on_new_version() != OnNewVersion::Serve;
        let is_coming =
            |number| versions.get(&number).is_some_and(|version| version.is_candidate() && version.failure.is_none());
        let serving = versions.iter().filter(|(_, version)| version.serving.is_some()).map(|(number, _)| *number);
        let is_settled = self.is_settled();
        self.route.note_answering(holds, serving, is_coming, is_settled);
    }

    pub fn on_new_version(&self) -> OnNewVersion {
        self.yaml.as_ref().and_then(|yaml| yaml.on_new_version).unwrap_or_default()
    }

    /// What model.yaml says of rollouts.
    pub fn canary(&self) -> Option<Plan> {
        self.yaml.as_ref()?.canary.clone()
    }

    /// What holds for all its versions at once.
    pub fn rules(&self) -> Rules {
        let swap = self.yaml.as_ref().and_then(|yaml| yaml.swap_policy).unwrap_or_default();
        Rules { keep_last: self.folder.is_some(), swap }
    }

    /// How long a version stays whose place a higher one took.
    pub fn keep_previous(&self) -> Duration {
        self.yaml.as_ref().and_then(|yaml| yaml.keep_previous).unwrap_or_default()
    }

    /// Notes whose place a higher version has taken by now.
    pub fn note_superseded(&mut self, now: Instant) {
        let takes_over = |(_, version): &(_, &VersionState<T>)| version.aspired && version.serving.is_some();
        let highest = self.versions.iter().filter(takes_over).map(|(number, _)| *number).next_back();
        for (number, version) in &mut self.versions {
            let superseded = version.serving.is_some() && highest.is_some_and(|highest| *number < highest);
            version.retention.update(version.aspired, superseded, now);
        }
    }

    /// The versions that serve for a rollback alone, and since when.
    pub fn kept(&mut self) -> impl Iterator<Item = (Instant, &mut VersionState<T>)> {
        let serving = self.versions.values_mut().filter(|version| version.serving.is_some());
        serving.filter_map(|version| Some((version.retention.since()?, version)))
    }

    /// The first moment at which something is due without news: a load to be tried again, a look at what drains, or the end of
    /// a version that was kept.
    pub fn look_again(&self, now: Instant) -> Option<Instant> {
        let retries = self
            .versions
            .values()
            .filter(|version| version.aspired && version.load == LoadState::Idle)
            .filter_map(|version| version.failure.as_ref())
            .map(|failure| failure.retry_at);
        let drains = self.versions.values().any(|version| !version.leaving.is_empty()).then(|| now + DRAIN_LOOK);
        let kept = self.versions.values().filter(|version| version.serving.is_some());
        let ends = kept.filter_map(|version| version.retention.ends(self.keep_previous())).filter(|end| *end > now);
        retries.chain(drains).chain(ends).min()
    }
}

/// What people wrote, which may be nothing, or what is wrong with it.
pub fn read_yaml(file: Option<&TextFile>) -> Result<ModelYaml, String> {
    match file.map(|file| &file.text) {
        None => Ok(ModelYaml::default()),
        Some(Ok(text)) => ModelYaml::parse(text).map_err(|error| error.message().to_owned()),
        Some(Err(why)) => Err(format!("model.yaml: {why}")),
    }
}

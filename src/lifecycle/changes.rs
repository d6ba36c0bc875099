//! What happened between two pictures of a model, as events. Pure; the manager tells them when it publishes, and nobody
//! else tells what becomes of versions.

use std::sync::Arc;

use crate::{
    catalog::{ModelEntry, Refused, State, VersionEntry},
    model::{Route, Version},
    telemetry::events::{Event, Kind},
};

/// In the order in which an operator would tell it. `None` is a model that is not there.
pub fn diff(old: Option<&ModelEntry>, new: Option<&ModelEntry>) -> Vec<Event> {
    let mut events = Vec::new();
    if let (None, Some(new)) = (old, new) {
        events.push(Event::of_model(Kind::ModelAppeared, &new.name));
    }
    let versions = |entry: Option<&ModelEntry>| entry.map(|entry| entry.versions.keys().copied().collect::<Vec<_>>());
    let mut numbers: Vec<Version> = versions(old).into_iter().chain(versions(new)).flatten().collect();
    numbers.sort_unstable();
    numbers.dedup();
    for number in numbers {
        let before = old.and_then(|entry| entry.versions.get(&number));
        let after = new.and_then(|entry| entry.versions.get(&number));
        let Some(name) = new.or(old).map(|entry| &entry.name) else {
            continue;
        };
        let of_version = version_changes(before, after).into_iter();
        events.extend(of_version.map(|event| Event { model: name.to_string(), version: number.to_string(), ..event }));
    }
    if let Some(new) = new {
        let of_files = file_changes(old.map(|old| &old.refused), &new.refused);
        let of_model = of_files.into_iter().chain(route_changes(old, new));
        events.extend(of_model.map(|event| Event { model: new.name.to_string(), ..event }));
    }
    if let (Some(old), None) = (old, new) {
        events.push(Event::of_model(Kind::ModelGone, &old.name));
    }
    events
}

fn file_changes(old: Option<&Refused>, new: &Refused) -> Vec<Event> {
    let mut events = Vec::new();
    let before = old.and_then(|old| old.model_yaml.as_ref());
    match &new.model_yaml {
        Some(why) if before != Some(why) => {
            events.push(Event::new(Kind::ModelYamlRefused).because("INVALID_MANIFEST", why));
        }
        None if before.is_some() => events.push(Event::new(Kind::ModelYamlTaken)),
        _ => {}
    }
    let before = old.and_then(|old| old.route_yaml.as_ref());
    if let Some(why) = new.route_yaml.as_ref().filter(|why| before != Some(why)) {
        events.push(Event::new(Kind::RouteRefused).because("INVALID_MANIFEST", why));
    }
    events
}

/// The route that holds, and the one that waits. A model that nobody decided anything about has nothing to tell.
fn route_changes(old: Option<&ModelEntry>, new: &ModelEntry) -> Vec<Event> {
    let mut events = Vec::new();
    let undecided = Route::default();
    if *new.route != *old.map_or(&undecided, |old| &*old.route) {
        events.push(Event {
            revision: new.revision,
            version: new.stable.map(|stable| stable.to_string()).unwrap_or_default(),
            ..Event::new(Kind::RouteTaken)
        });
    }
    let waits = |entry: &ModelEntry| entry.pending.as_ref().map(|wait| (wait.revision, wait.version, wait.why));
    if let Some((revision, version, why)) = waits(new).filter(|wait| old.and_then(waits) != Some(*wait)) {
        events.push(Event {
            revision,
            version: version.to_string(),
            message: format!("version {version} is {}", why.as_str()),
            ..Event::new(Kind::RoutePending)
        });
    }
    events
}

/// What became of one version: its state first, then what is wrong beside its serving.
fn version_changes(old: Option<&VersionEntry>, new: Option<&VersionEntry>) -> Vec<Event> {
    let Some(new) = new else {
        let was_something = old.is_some_and(|old| old.state != State::Available);
        return was_something.then(|| Event::new(Kind::VersionUnloaded)).into_iter().collect();
    };
    let mut events: Vec<Event> = state_change(old, new).into_iter().collect();
    let reason = |entry: &VersionEntry| entry.cause.as_ref().map(|cause| cause.reason());
    if new.state == State::Ready && old.and_then(reason) != reason(new) {
        events.extend(trouble(new));
    }
    events
}

fn state_change(old: Option<&VersionEntry>, new: &VersionEntry) -> Option<Event> {
    let before = old.map_or(State::Available, |old| old.state);
    let kind = match new.state {
        State::Available => Kind::VersionUnloaded,
        State::Loading => Kind::VersionLoading,
        State::Ready => Kind::VersionReady,
        State::Draining => Kind::VersionDraining,
        State::Failed => Kind::VersionFailed,
    };
    if before == new.state {
        let old = old?;
        return match new.state {
            State::Ready if !same_servable(old, new) => {
                Some(Event { message: "it was made anew".into(), ..Event::new(kind) })
            }
            State::Failed if because(old) != because(new) => Some(failed(new)),
            _ => None,
        };
    }
    Some(if new.state == State::Failed { failed(new) } else { Event::new(kind) })
}

fn failed(entry: &VersionEntry) -> Event {
    let (reason, message) = because(entry).unwrap_or(("LOAD_FAILED", "it failed to load"));
    Event::new(Kind::VersionFailed).because(reason, message)
}

/// What is wrong with a version that serves: with its files, or with a second load beside it.
fn trouble(entry: &VersionEntry) -> Option<Event> {
    let (reason, message) = because(entry)?;
    let kind = match reason {
        "SOURCE_MISSING" => Kind::SourceMissing,
        "VERSION_MUTATED" => Kind::VersionMutated,
        _ => Kind::VersionFailed,
    };
    Some(Event::new(kind).because(reason, message))
}

fn because(entry: &VersionEntry) -> Option<(&str, &str)> {
    entry.cause.as_ref().map(|cause| (cause.reason(), cause.message()))
}

fn same_servable(old: &VersionEntry, new: &VersionEntry) -> bool {
    match (&old.servable, &new.servable) {
        (Some(old), Some(new)) => Arc::ptr_eq(old, new),
        (old, new) => old.is_none() == new.is_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        catalog::{Pending, PendingWhy},
        error::{Code, Error},
        model::{ModelName, Stable},
    };

    fn version(state: State, reason: Option<&'static str>) -> VersionEntry {
        VersionEntry {
            platform: None,
            state,
            since: std::time::SystemTime::UNIX_EPOCH,
            cause: reason.map(|reason| Error::new(Code::FailedPrecondition, reason, "a sentence")),
            notes: Vec::new(),
            settings: Default::default(),
            metrics: Default::default(),
            digest: String::new(),
            artifact_bytes: 0,
            memory_bytes: 0,
            gpu_bytes: 0,
            servable: None,
        }
    }

    fn model(versions: &[(u64, State, Option<&'static str>)]) -> ModelEntry {
        let entry = |(major, state, reason): &(u64, State, Option<&'static str>)| {
            (Version::new(*major, 0, 0), version(*state, *reason))
        };
        ModelEntry {
            name: ModelName::new("m").expect("a name"),
            versions: versions.iter().map(entry).collect(),
            stable: None,
            policy: Default::default(),
            route: Default::default(),
            revision: 0,
            pending: None,
            disabled: None,
            remade: false,
            settings: Default::default(),
            message: None,
            refused: Refused::default(),
        }
    }

    fn told(old: Option<&ModelEntry>, new: Option<&ModelEntry>) -> Vec<String> {
        let short = |event: Event| format!("{} {} {}", event.kind.as_str(), event.version, event.reason);
        diff(old, new).into_iter().map(|event| short(event).trim().to_owned()).collect()
    }

    #[test]
    fn a_swap_is_told_in_order() {
        let first = model(&[(1, State::Ready, None)]);
        let loading = model(&[(1, State::Ready, None), (2, State::Loading, None)]);
        let swapped = model(&[(1, State::Draining, None), (2, State::Ready, None)]);
        let done = model(&[(1, State::Available, None), (2, State::Ready, None)]);
        assert_eq!(told(None, Some(&first)), ["model_appeared", "version_ready 1.0.0"]);
        assert_eq!(told(Some(&first), Some(&loading)), ["version_loading 2.0.0"]);
        assert_eq!(told(Some(&loading), Some(&swapped)), ["version_draining 1.0.0", "version_ready 2.0.0"]);
        assert_eq!(told(Some(&swapped), Some(&done)), ["version_unloaded 1.0.0"]);
        assert_eq!(told(Some(&done), Some(&done)), [""; 0]);
        assert_eq!(told(Some(&done), None), ["version_unloaded 2.0.0", "model_gone"]);
    }

    #[test]
    fn a_failure_is_told_once_and_again_when_it_is_another() {
        let failed = |reason| model(&[(1, State::Failed, Some(reason))]);
        let (crashed, missing) = (failed("LOAD_CRASHED"), failed("MISSING_FILE"));
        assert_eq!(told(None, Some(&crashed)), ["model_appeared", "version_failed 1.0.0 LOAD_CRASHED"]);
        assert_eq!(told(Some(&crashed), Some(&crashed)), [""; 0]);
        assert_eq!(told(Some(&crashed), Some(&missing)), ["version_failed 1.0.0 MISSING_FILE"]);
    }

    #[test]
    fn what_is_wrong_with_a_version_that_serves_has_its_own_name() {
        let ready = model(&[(1, State::Ready, None)]);
        let troubled = |reason| model(&[(1, State::Ready, Some(reason))]);
        let (gone, other) = (troubled("SOURCE_MISSING"), troubled("VERSION_MUTATED"));
        assert_eq!(told(Some(&ready), Some(&gone)), ["source_missing 1.0.0 SOURCE_MISSING"]);
        assert_eq!(told(Some(&gone), Some(&gone)), [""; 0]);
        assert_eq!(told(Some(&gone), Some(&other)), ["version_mutated 1.0.0 VERSION_MUTATED"]);
        assert_eq!(told(Some(&other), Some(&ready)), [""; 0]);
    }

    #[test]
    fn a_route_waits_and_is_taken() {
        let one = model(&[(1, State::Ready, None)]);
        let two = Version::new(2, 0, 0);
        let route = Arc::new(Route { stable: Stable::Pinned(two), revision: Some(3), ..Route::default() });
        let pending = |why| Pending { route: route.clone(), revision: 3, version: two, why };
        let waits = ModelEntry { pending: Some(pending(PendingWhy::Loading)), ..model(&[(1, State::Ready, None)]) };
        let failed = ModelEntry { pending: Some(pending(PendingWhy::Failed)), ..model(&[(1, State::Ready, None)]) };
        let taken =
            ModelEntry { route: route.clone(), revision: 3, stable: Some(two), ..model(&[(1, State::Ready, None)]) };
        assert_eq!(told(Some(&one), Some(&waits)), ["route_pending 2.0.0"]);
        assert_eq!(told(Some(&waits), Some(&waits)), [""; 0]);
        assert_eq!(told(Some(&waits), Some(&failed)), ["route_pending 2.0.0"]);
        assert_eq!(told(Some(&failed), Some(&taken)), ["route_taken 2.0.0"]);
        assert_eq!(diff(Some(&failed), Some(&taken))[0].revision, 3);
    }

    #[test]
    fn a_file_that_is_not_taken_is_told_once() {
        let good = model(&[]);
        let refused = |why: &str| Refused { model_yaml: Some(why.into()), route_yaml: Some(why.into()) };
        let bad = ModelEntry { refused: refused("line 1"), ..model(&[]) };
        let told_of_bad = ["model_yaml_refused  INVALID_MANIFEST", "route_refused  INVALID_MANIFEST"];
        assert_eq!(told(Some(&good), Some(&bad)), told_of_bad);
        assert_eq!(told(Some(&bad), Some(&bad)), [""; 0]);
        assert_eq!(told(Some(&bad), Some(&good)), ["model_yaml_taken"]);
    }
}

//! Which version answers. Pure: a picture and a wish in, a servable out.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use crate::{
    catalog::{ModelEntry, Snapshot, State, VersionEntry},
    error::{Code, Error, Result},
    model::{RouteReason, Select, Served, Version, repeated},
    runtime::Servable,
};

/// The variant of a model without experiments, and of a version that the caller chose.
static STABLE: LazyLock<Arc<str>> = LazyLock::new(|| "stable".into());
static PINNED: LazyLock<Arc<str>> = LazyLock::new(|| "pinned".into());

const RETRY_WHILE_LOADING: Duration = Duration::from_secs(1);
/// An operator disabled it, and an operator will enable it.
const RETRY_WHILE_DISABLED: Duration = Duration::from_secs(10);

/// NOT_FOUND for what the store does not have; UNAVAILABLE for what is being loaded; FAILED_PRECONDITION for what failed.
pub fn pick(snapshot: &Snapshot, model: &str, select: &Select) -> Result<(Served, Arc<Servable>)> {
    let entry = match snapshot.model(model) {
        Err(_) if !snapshot.scanned => return Err(starting()),
        found => found?,
    };
    if let Some(why) = &entry.disabled {
        return Err(disabled(entry, why));
    }
    let (version, variant, reason) = match select {
        Select::Route => (stable(entry)?, &*STABLE, RouteReason::Stable),
        Select::Version(version) => (*version, &*PINNED, RouteReason::Pinned),
        Select::Label(label) => (labelled(entry, label)?, &*PINNED, RouteReason::Label),
    };
    let servable = entry.version(version)?.servable.as_ref().ok_or_else(|| not_serving(entry, version))?;
    let served =
        Served { model: entry.name.clone(), version, variant: variant.clone(), reason, revision: entry.revision };
    Ok((served, servable.clone()))
}

fn stable(entry: &ModelEntry) -> Result<Version> {
    let wanted = entry.pending.as_ref().map(|pending| pending.version);
    // A version on its way says more than one that failed: a moment later it may answer.
    let coming =
        || entry.versions.iter().rev().find(|(_, known)| known.state == State::Loading).map(|(version, _)| *version);
    let highest = || entry.versions.keys().next_back().copied();
    entry.stable.ok_or_else(|| match wanted.or_else(coming).or_else(highest) {
        Some(version) => not_serving(entry, version),
        None => {
            let why = entry.message.as_deref().unwrap_or("its folder holds no version");
            Error::new(Code::FailedPrecondition, "NO_VERSION", format!("model '{}': {why}", entry.name))
        }
    })
}

fn labelled(entry: &ModelEntry, label: &str) -> Result<Version> {
    entry.route.labels.get(label).copied().ok_or_else(|| {
        let names: Vec<&str> = entry.route.labels.keys().map(String::as_str).take(10).collect();
        let known = if names.is_empty() { "none".into() } else { names.join(", ") };
        Error::not_found(
            "LABEL_NOT_FOUND",
            format!("model '{}' has no label{}; there are: {known}", entry.name, repeated(label)),
        )
    })
}

/// Why a version that is known does not answer.
fn not_serving(entry: &ModelEntry, version: Version) -> Error {
    let (name, place) = (&entry.name, entry.versions.get(&version));
    let state = place.map(|known: &VersionEntry| known.state);
    match state {
        None => Error::new(
            Code::FailedPrecondition,
            "VERSION_ABSENT",
            format!("route.yaml of model '{name}' names version {version}, which the store does not have"),
        ),
        Some(State::Ready) => Error::new(
            Code::FailedPrecondition,
            "NO_STABLE_VERSION",
            match &entry.refused.route_yaml {
                Some(why) => {
                    format!("model '{name}' has no version for calls that name none, for it is not known: {why}")
                }
                None => format!(
                    "route.yaml of model '{name}' rejects every version that is ready; name a version or a label"
                ),
            },
        ),
        Some(State::Loading | State::Draining) => {
            let message = format!("model '{name}' version {version} is being loaded");
            Error::unavailable("MODEL_LOADING", message, RETRY_WHILE_LOADING)
        }
        Some(State::Available) => Error::new(
            Code::FailedPrecondition,
            "VERSION_NOT_LOADED",
            format!("model '{name}' version {version} is in the store but not selected by `versions:`"),
        ),
        Some(State::Failed) => {
            let cause = place.and_then(|known| known.cause.as_ref());
            let why = cause.map_or("it failed to load", Error::message);
            let message = format!("model '{name}' version {version} is not served: {why}");
            match cause {
                // What is missing may be on its way: the server tries again by itself.
                Some(cause) if cause.reason() == crate::backend::LIBRARY_MISSING => {
                    Error::unavailable(cause.reason(), message, RETRY_WHILE_LOADING)
                }
                Some(cause) => Error::new(Code::FailedPrecondition, cause.reason(), message),
                None => Error::new(Code::FailedPrecondition, "LOAD_FAILED", message),
            }
        }
    }
    .with("model", name)
    .with("version", version)
}

fn disabled(entry: &ModelEntry, why: &str) -> Error {
    let why = if why.is_empty() { "no reason was given" } else { why };
    let message = format!("model '{}' is disabled: {why}", entry.name);
    Error::unavailable("MODEL_DISABLED", message, RETRY_WHILE_DISABLED).with("model", &entry.name)
}

fn starting() -> Error {
    Error::unavailable("STARTING", "the server is reading its model store", RETRY_WHILE_LOADING)
}

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

/// NOT_FOUND for what the store does not have; UNAVAILABLE for what is being loaded; FAILED_PRECONDITION for what failed.
pub fn pick(snapshot: &Snapshot, model: &str, select: &Select) -> Result<(Served, Arc<Servable>)> {
    let entry = match snapshot.model(model) {
        Err(_) if !snapshot.scanned => return Err(starting()),
        found => found?,
    };
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
    // A version on its way says more than one that failed: a moment later it may answer.
    let coming = || entry.versions.iter().rev().find(|(_, known)| known.state == State::Loading);
    entry.stable.ok_or_else(|| match coming().or_else(|| entry.versions.iter().next_back()) {
        Some((&version, _)) => not_serving(entry, version),
        None => {
            let why = entry.message.as_deref().unwrap_or("its folder holds no version");
            Error::new(Code::FailedPrecondition, "NO_VERSION", format!("model '{}': {why}", entry.name))
        }
    })
}

fn labelled(entry: &ModelEntry, label: &str) -> Result<Version> {
    entry.labels.get(label).copied().ok_or_else(|| {
        let names: Vec<&str> = entry.labels.keys().map(String::as_str).take(10).collect();
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
        Some(State::Loading | State::Draining) | Some(State::Ready) | None => {
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

fn starting() -> Error {
    Error::unavailable("STARTING", "the server is reading its model store", RETRY_WHILE_LOADING)
}

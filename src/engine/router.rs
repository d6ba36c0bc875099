//! Which version answers. Pure: a picture, a wish and a draw in, a servable out.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use crate::{
    catalog::{Arm, ModelEntry, STABLE, Snapshot, Standing, State, Traffic, VersionEntry},
    error::{Code, Error, Result},
    model::{CALLER, Fit, ModelName, RouteReason, Select, Served, Slot, Source, Version, repeated, slot_of},
    monitor::Cell,
    runtime::Servable,
};

/// Who asks, as far as a route looks at it.
pub struct Caller<'a> {
    pub attributes: &'a [(String, String)],
    pub metadata: &'a [(Arc<str>, Box<str>)],
    /// Whether the data come as named features, which fit versions that tensors do not.
    pub names_features: bool,
}

/// What the route came to.
pub struct Picked {
    pub served: Served,
    pub servable: Arc<Servable>,
    /// Why it is not who should have answered.
    pub degraded: Option<&'static str>,
    /// Where the request counts; `None` where the caller named the version, or a rule did, which is no part of a comparison, and
    /// where it was given to somebody else: it would be one more for stable than the weights give it.
    pub cell: Option<Arc<Cell>>,
    /// Where it counts as given to somebody in whose place stable answers.
    pub instead_of: Option<Arc<Cell>>,
    /// Whether variants are compared, so that it is worth looking at each number of the answer.
    pub is_compared: bool,
    /// Of what the route gave to somebody, where there are shadows.
    pub shadows: Option<Arc<Traffic>>,
}

/// The names of what is no variant: all others are the route's own.
static STABLES: LazyLock<Arc<str>> = LazyLock::new(|| STABLE.into());
static PINNED: LazyLock<Arc<str>> = LazyLock::new(|| "pinned".into());
static RULE: LazyLock<Arc<str>> = LazyLock::new(|| "rule".into());

/// The variant is loading, failed or absent on this replica: stable answers.
const VARIANT_UNREADY: &str = "variant_unready";
/// The variant cannot answer what stable's callers ask: stable answers.
const VARIANT_INCOMPATIBLE: &str = "variant_incompatible";

/// This replica found that the variant fails: stable answers until the route says so, too.
const VARIANT_TAKEN_OUT: &str = "variant_taken_out";

const RETRY_WHILE_LOADING: Duration = Duration::from_secs(1);
/// An operator disabled it, and an operator will enable it.
const RETRY_WHILE_DISABLED: Duration = Duration::from_secs(10);

/// NOT_FOUND for what the store does not have; UNAVAILABLE for what is being loaded; FAILED_PRECONDITION for what failed.
///
/// `draw` gives a slot to a caller without a key.
pub fn pick(
    snapshot: &Snapshot,
    model: &str,
    select: &Select,
    caller: &Caller<'_>,
    draw: impl FnOnce() -> Slot,
) -> Result<Picked> {
    let entry = answering(snapshot, model)?;
    match select {
        Select::Route => by_route(entry, caller, draw),
        Select::Version(version) => answer(entry, *version, &PINNED, RouteReason::Pinned),
        Select::Label(label) => answer(entry, labelled(entry, label)?, &PINNED, RouteReason::Label),
    }
}

/// The same for somebody who asks about a version and not for an answer: without a version it is stable.
pub fn find(snapshot: &Snapshot, model: &str, select: &Select) -> Result<Picked> {
    let nobody = Caller { attributes: &[], metadata: &[], names_features: false };
    match select {
        Select::Route => by_stable(answering(snapshot, model)?, RouteReason::Stable),
        select => pick(snapshot, model, select, &nobody, || 0),
    }
}

fn answering<'a>(snapshot: &'a Snapshot, model: &str) -> Result<&'a Arc<ModelEntry>> {
    let entry = match snapshot.model(model) {
        Err(_) if !snapshot.scanned => return Err(starting()),
        found => found?,
    };
    match &entry.disabled {
        Some(why) => Err(disabled(entry, why)),
        None => Ok(entry),
    }
}

/// Rules first, then the caller's slot, then stable.
fn by_route(entry: &ModelEntry, caller: &Caller<'_>, draw: impl FnOnce() -> Slot) -> Result<Picked> {
    let traffic = &entry.traffic;
    if traffic.is_plain() {
        return by_stable(entry, RouteReason::Stable);
    }
    let rule = traffic.rules.iter().find(|rule| caller.says(rule.source()).is_some_and(|value| rule.matches(value)));
    if let Some(rule) = rule {
        let ready = entry.versions.get(&rule.version).is_some_and(|known| known.servable.is_some());
        return match ready {
            true => answer(entry, rule.version, &RULE, RouteReason::Rule),
            false => Ok(Picked { degraded: Some(VARIANT_UNREADY), cell: None, ..by_stable(entry, RouteReason::Rule)? }),
        };
    }
    if !traffic.is_split() {
        return by_stable(entry, RouteReason::Stable);
    }
    let (slot, reason) = match key_slot(&entry.name, traffic, caller) {
        Some(slot) => (slot, RouteReason::Sticky),
        None => (draw(), RouteReason::Draw),
    };
    let Some(arm) = traffic.arm(slot) else {
        return by_stable(entry, reason);
    };
    match arm.answers(caller) {
        Ok(servable) => Ok(Picked {
            served: served(entry, arm.version, &arm.name, reason),
            servable: servable.clone(),
            degraded: None,
            cell: Some(arm.cell.clone()),
            instead_of: None,
            is_compared: true,
            shadows: shadowed(entry),
        }),
        Err(why) => Ok(Picked {
            degraded: Some(why),
            cell: None,
            instead_of: Some(arm.cell.clone()),
            ..by_stable(entry, reason)?
        }),
    }
}

fn by_stable(entry: &ModelEntry, reason: RouteReason) -> Result<Picked> {
    let cell = Some(entry.traffic.stable.clone());
    Ok(Picked { cell, shadows: shadowed(entry), ..answer(entry, stable(entry)?, &STABLES, reason)? })
}

fn answer(entry: &ModelEntry, version: Version, variant: &Arc<str>, reason: RouteReason) -> Result<Picked> {
    let servable = entry.version(version)?.servable.as_ref().ok_or_else(|| not_serving(entry, version))?;
    Ok(Picked {
        served: served(entry, version, variant, reason),
        servable: servable.clone(),
        degraded: None,
        cell: None,
        instead_of: None,
        is_compared: entry.traffic.is_split(),
        shadows: None,
    })
}

fn shadowed(entry: &ModelEntry) -> Option<Arc<Traffic>> {
    (!entry.traffic.shadows.is_empty()).then(|| entry.traffic.clone())
}

fn served(entry: &ModelEntry, version: Version, variant: &Arc<str>, reason: RouteReason) -> Served {
    Served { model: entry.name.clone(), version, variant: variant.clone(), reason, revision: entry.revision }
}

fn key_slot(model: &ModelName, traffic: &Traffic, caller: &Caller<'_>) -> Option<Slot> {
    let sticky = traffic.sticky.as_ref()?;
    let key = caller.says(sticky.source()).filter(|key| !key.is_empty())?;
    Some(slot_of(model.as_str(), &sticky.salt, key))
}

// === impl Caller ===

impl Caller<'_> {
    fn says(&self, source: Source<'_>) -> Option<&str> {
        match source {
            Source::Attribute(name) => {
                self.attributes.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
            }
            Source::Metadata(name) => self.of_call(name),
            Source::Caller => self.of_call(CALLER),
        }
    }

    fn of_call(&self, name: &str) -> Option<&str> {
        self.metadata.iter().find(|(key, _)| **key == *name).map(|(_, value)| &**value)
    }
}

// === impl Arm ===

impl Arm {
    /// `Err` says why stable answers in its place.
    fn answers(&self, caller: &Caller<'_>) -> Result<&Arc<Servable>, &'static str> {
        if self.cell.is_taken_out() {
            return Err(VARIANT_TAKEN_OUT);
        }
        match &self.standing {
            Standing::Answers(servable, Fit::All) => Ok(servable),
            Standing::Answers(servable, Fit::NamedFeatures) if caller.names_features => Ok(servable),
            Standing::Answers(servable, Fit::Tensors) if !caller.names_features => Ok(servable),
            Standing::Answers(..) | Standing::Incompatible(_) => Err(VARIANT_INCOMPATIBLE),
            Standing::Unready => Err(VARIANT_UNREADY),
        }
    }
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

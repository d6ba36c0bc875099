//! A model and a version of it, as a caller of the Open Inference Protocol names them, found in one picture of the catalog.

use std::time::Duration;

use super::convert::oip::select;
use crate::{
    catalog::{ModelEntry, Snapshot},
    error::{Error, Result},
    model::{Select, Version},
    runtime::Servable,
};

/// A version that serves.
pub struct Found<'a> {
    pub model: &'a ModelEntry,
    pub servable: &'a Servable,
}

/// How soon a version that is being loaded may serve.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// NOT_FOUND where there is no such thing, UNAVAILABLE where it does not serve now.
pub fn find<'a>(snapshot: &'a Snapshot, model: &str, version: &str) -> Result<Found<'a>> {
    let entry = snapshot.model(model)?;
    let version = match select(version.to_owned())? {
        Select::Route => entry.stable.ok_or_else(|| not_ready(entry, None))?,
        Select::Version(version) => version,
        Select::Label(label) => *entry.labels.get(&label).ok_or_else(|| {
            Error::not_found("LABEL_NOT_FOUND", format!("model '{}' has no such label", entry.name))
                .with("model", &entry.name)
        })?,
    };
    let servable = entry
        .version(version)?
        .servable
        .as_deref()
        .ok_or_else(|| not_ready(entry, Some(version)))?;
    Ok(Found { model: entry, servable })
}

fn not_ready(model: &ModelEntry, version: Option<Version>) -> Error {
    let what = version.map(|version| format!(" version {version}")).unwrap_or_default();
    let message = format!("model '{}'{what} is not ready", model.name);
    Error::unavailable("NOT_READY", message, RETRY_AFTER).with("model", &model.name)
}

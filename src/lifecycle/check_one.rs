//! The check of one version before it is published: what a server would do with it, in the same order and in the same child.

use std::time::{Instant, SystemTime};

use super::{Config, aspire, job::Job, loader::manifest_of, model_state::read_yaml, probe::Prober, work::Work};
use crate::{
    error::{Error, Result},
    model::{ModelName, Version},
    store::{self, Scanner},
};

/// Reads what is written about the version, verifies its checksums, and unless told not to, opens it in the throw-away child
/// and runs its examples there. The error is the one that a server would show of it. It blocks, for as long as the child
/// takes.
pub fn check_version(
    config: &Config,
    store: &store::Config,
    (model, version): (&ModelName, Version),
    is_run: bool,
) -> Result<()> {
    let work = Work::open(&config.work_dir)?;
    let listing = Scanner::new(store.clone())
        .scan(Instant::now(), SystemTime::now())
        .map_err(|error| Error::invalid("STORE_UNREADABLE", format!("the store cannot be listed: {error}")))?;
    let folder = listing.models.get(model);
    let found = folder.and_then(|folder| Some((folder, folder.versions.get(&version)?)));
    let (folder, source) =
        found.ok_or_else(|| Error::not_found("VERSION_NOT_FOUND", format!("there is no {model} {version}")))?;
    let yaml = read_yaml(folder.model_yaml.as_ref()).map_err(|message| Error::invalid("INVALID_MANIFEST", message))?;
    aspire::aspired(yaml.versions.as_ref(), &[])?;
    let (manifest, version_yaml) = manifest_of(source, &yaml.over(&config.defaults))?;
    let copy = store::copy(store, source, &version_yaml.files, &work.copies())?;
    if is_run {
        let job = Job::new(&copy.dir, &manifest, &config.native_dir, config.child_time);
        Prober::new(config.probe(&work)).probe(&job)?;
    }
    Ok(())
}

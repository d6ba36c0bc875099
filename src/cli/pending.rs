//! Stands in for what is not written yet.

use std::process::ExitCode;

use crate::{
    catalog::Snapshot,
    config::{Config, Listening},
    error::Result,
    model::{ModelName, Version},
};

/// One thing that is wrong in a store.
pub struct Problem {
    pub model: Option<ModelName>,
    pub version: Option<Version>,
    pub file: Option<String>,
    pub line: Option<usize>,
    pub message: String,
}

/// `announce` is called once, when all ports are bound and the first look at the store is done.
pub fn serve(_config: Config, _announce: impl FnOnce(&Snapshot, Listening)) -> anyhow::Result<()> {
    anyhow::bail!("not written yet")
}

pub fn check(_config: &Config) -> Result<Vec<Problem>> {
    Ok(Vec::new())
}

pub fn run_child() -> ExitCode {
    ExitCode::FAILURE
}

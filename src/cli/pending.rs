//! Stands in for what is not written yet.

use std::process::ExitCode;

use crate::{
    config::Config,
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

pub fn serve(_config: Config) -> anyhow::Result<()> {
    anyhow::bail!("not written yet")
}

pub fn check(_config: &Config) -> Result<Vec<Problem>> {
    Ok(Vec::new())
}

pub fn run_child() -> ExitCode {
    ExitCode::FAILURE
}

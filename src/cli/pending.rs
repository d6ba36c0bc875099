//! Stands in for what is not written yet.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use crate::{config::Config, model::ModelYaml};

/// One thing that is wrong in a store.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Problem {
    pub model: Option<String>,
    pub version: Option<String>,
    pub file: Option<PathBuf>,
    pub line: Option<usize>,
    pub message: String,
}

pub fn serve(_config: Config) -> anyhow::Result<()> {
    anyhow::bail!("not written yet")
}

pub fn check(_store: &Path, _defaults: &ModelYaml) -> anyhow::Result<Vec<Problem>> {
    anyhow::bail!("not written yet")
}

pub fn run_child() -> anyhow::Result<ExitCode> {
    anyhow::bail!("not written yet")
}

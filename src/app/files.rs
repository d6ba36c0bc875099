//! The files that an operator named on the command line, beside the store.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use sha2::{Digest, Sha256};

use crate::{config::Config, engine::IdKey, rollout, server::Ports};

const ID_KEY_BYTES_MIN: usize = 16;

/// The first 16 bytes of the file's sha256, so that any secret of enough length will do.
pub fn id_key(config: &Config) -> anyhow::Result<IdKey> {
    let Some(file) = &config.telemetry.prediction_id_key_file else {
        return Ok(IdKey::random()?);
    };
    let secret = std::fs::read(file).with_context(|| format!("prediction_id_key_file {}", file.display()))?;
    let secret = secret.trim_ascii();
    anyhow::ensure!(
        secret.len() >= ID_KEY_BYTES_MIN,
        "prediction_id_key_file {}: {} bytes, at least {ID_KEY_BYTES_MIN} are needed; `head -c 32 /dev/urandom | base64` makes one",
        file.display(),
        secret.len()
    );
    let digest: [u8; 32] = Sha256::digest(secret).into();
    Ok(IdKey::new(digest.first_chunk().copied().context("a digest has 32 bytes")?))
}

/// Who is told of verdicts.
pub fn webhook(config: &Config) -> anyhow::Result<Option<rollout::Webhook>> {
    let Some(file) = &config.telemetry.rollout_webhook_file else { return Ok(None) };
    let named = || format!("rollout_webhook_file {}", file.display());
    let url = std::fs::read_to_string(file).with_context(named)?;
    Ok(Some(rollout::Webhook::start(&url).with_context(named)?))
}

/// Whole or not at all: whoever waits for the file reads it as soon as it is there.
pub fn write_ports(file: &Path, ports: Ports) -> anyhow::Result<()> {
    let mut beside = PathBuf::from(file);
    beside.as_mut_os_string().push(".tmp");
    let written = std::fs::write(&beside, serde_json::to_string(&ports)? + "\n");
    written.and_then(|()| std::fs::rename(&beside, file)).with_context(|| format!("ports_file {}", file.display()))
}

//! Ctrl-C and SIGTERM: the bench returns early, which drops its children and so ends them.

use anyhow::{Result, bail};
use tokio::signal::unix::{SignalKind, signal};

/// What the work gives, unless a signal comes first.
pub async fn unless_interrupted<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let mut terminated = signal(SignalKind::terminate())?;
    tokio::select! {
        done = work => done,
        _ = terminated.recv() => bail!("interrupted"),
        pressed = tokio::signal::ctrl_c() => {
            pressed?;
            bail!("interrupted")
        }
    }
}

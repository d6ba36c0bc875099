//! Carries the cells of each model to this replica's file: one writer for each model that has a ledger.
//!
//! An outcome that somebody waits for is written at once, together with all that came meanwhile; everything else every two
//! seconds where anything changed. The counts of a model are read back before they are first written: they go on from there.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

use super::{Inner, file, ledger::Ledger};
use crate::{
    error::{Error, Result},
    model::ModelName,
};

/// Between two writes of a model that nobody waits for.
const EVERY: Duration = Duration::from_secs(2);
/// Between any two: what comes meanwhile is written together.
const APART: Duration = Duration::from_millis(100);

pub async fn keep(inner: Arc<Inner>, end: impl Future<Output = ()>) {
    let (stop, stopped) = watch::channel(false);
    let mut writers: JoinSet<()> = JoinSet::new();
    let mut written: HashSet<ModelName> = HashSet::new();
    let mut end = std::pin::pin!(end);
    loop {
        inner.open_compared();
        let ledgers: Vec<Arc<Ledger>> = inner.ledgers().values().cloned().collect();
        for ledger in ledgers.into_iter().filter(|ledger| written.insert(ledger.model().clone())) {
            writers.spawn(write_on(inner.clone(), ledger, stopped.clone()));
        }
        tokio::select! {
            () = inner.opened.notified() => {}
            () = sleep(EVERY) => {}
            () = &mut end => break,
        }
    }
    stop.send_replace(true);
    writers.join_all().await;
}

/// Writes the counts of one model until `stopped`, and a last time then.
async fn write_on(inner: Arc<Inner>, ledger: Arc<Ledger>, mut stopped: watch::Receiver<bool>) {
    let mut last = None;
    loop {
        let next = Instant::now() + EVERY;
        let is_last = tokio::select! {
            () = ledger.waiting() => false,
            () = sleep_until(next) => false,
            _ = stopped.wait_for(|stopped| *stopped) => true,
        };
        step(&inner, &ledger, &mut last).await;
        if is_last {
            return;
        }
        tokio::select! {
            () = sleep(APART) => {}
            _ = stopped.wait_for(|stopped| *stopped) => {}
        }
    }
}

/// One attempt. `last` is what the cells had come to when they were written last.
async fn step(inner: &Inner, ledger: &Ledger, last: &mut Option<u64>) {
    let covered = ledger.asked();
    let result = write(inner, ledger, last).await;
    let trouble = result.as_ref().err().cloned();
    if ledger.tell(covered, result) {
        let model = ledger.model();
        match trouble {
            Some(error) => tracing::warn!(%model, %error, "the counts are not written; they are kept meanwhile"),
            None => tracing::info!(%model, "the counts are written again"),
        }
    }
}

async fn write(inner: &Inner, ledger: &Ledger, last: &mut Option<u64>) -> Result<()> {
    let model = ledger.model();
    if !inner.engine.catalog().load().models.contains_key(model) {
        // Its folder is not to come back for this.
        return Err(Error::unavailable("STORE_UNAVAILABLE", "the model is gone from the store", EVERY));
    }
    restore(inner, ledger).await?;
    let cells = inner.scoreboard.cells(model);
    let changes = cells.iter().map(|(_, cell)| cell.changes()).fold(0, u64::wrapping_add);
    if *last == Some(changes) || (last.is_none() && changes == 0) {
        return Ok(());
    }
    let cells = cells.into_iter().filter(|(_, cell)| cell.changes() > 0);
    let tallies: Vec<_> = cells.map(|(key, cell)| (key, cell.read())).collect();
    let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let text = file::write(&inner.replica, &time, &tallies)
        .map_err(|_| Error::internal("RECORD", "the counts cannot be put into words: this is a bug"))?;
    inner.records.write_counts(model, &inner.replica, text).await?;
    *last = Some(changes);
    Ok(())
}

/// Puts what this replica counted before it was started anew into the cells, once. What cannot be read is put aside, under
/// another name, and counts as missing until a person has looked at it.
async fn restore(inner: &Inner, ledger: &Ledger) -> Result<()> {
    let model = ledger.model();
    if *ledger.restored() {
        return Ok(());
    }
    let text = inner.records.own_counts(model, &inner.replica).await?;
    let before = match &text {
        None => Vec::new(),
        Some(text) => match inner.read(model, &inner.replica, text) {
            Some(cells) => cells,
            None => put_aside(inner, model, text).await.map(|()| Vec::new())?,
        },
    };
    let mut restored = ledger.restored();
    for (key, tally) in &before {
        inner.scoreboard.cell(model, key).restore(tally);
    }
    *restored = true;
    Ok(())
}

async fn put_aside(inner: &Inner, model: &ModelName, text: &str) -> Result<()> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let file = format!("{}.damaged-{}", inner.replica, since.as_secs());
    inner.records.write_counts(model, &file, text.to_owned()).await?;
    tracing::error!(%model, file, "the counts of this replica were put aside; mend or remove them");
    Ok(())
}

// === impl Inner ===

impl Inner {
    /// The models whose versions are compared are written whether outcomes come or not.
    fn open_compared(&self) {
        let snapshot = self.engine.catalog().load();
        for (name, entry) in &snapshot.models {
            if entry.traffic.is_split() || !entry.traffic.shadows.is_empty() {
                self.ledger(name);
            }
        }
    }
}

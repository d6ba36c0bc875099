//! Looks at a bucket again and again, and sends what changed: the counterpart of `store::watcher`, on the bucket's own
//! thread.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{sync::watch::Sender, task::JoinSet, time::Instant};

use super::lister::Lister;
use crate::{
    error::{Error, Result},
    store::{
        Asks, Config, News, Remote,
        layout::StoreListing,
        watcher::{take_listing, take_trouble},
    },
};

/// Runs until nobody listens any more.
pub async fn watch(config: Config, remote: Arc<Remote>, news: Sender<News>, asks: Asks) {
    // A set, so that it ends when this is dropped.
    let mut task = JoinSet::new();
    let handle = remote.handle().clone();
    task.spawn_on(run(config, remote, news, asks), &handle);
    let _ = task.join_next().await;
}

/// One look. It blocks.
pub fn look_once(config: &Config, remote: &Arc<Remote>) -> Result<Arc<StoreListing>> {
    let mut lister = Lister::new(config.clone(), remote.clone());
    remote.handle().block_on(lister.look(std::time::Instant::now()))
}

async fn run(config: Config, remote: Arc<Remote>, news: Sender<News>, mut asks: Asks) {
    let pause = config.poll_interval.max(Duration::from_millis(10));
    let mut lister = Lister::new(config, remote);
    loop {
        let asked = asks.taken();
        let now = Instant::now().into_std();
        let found = tokio::select! {
            found = lister.look(now) => found,
            () = news.closed() => return,
        };
        let recalled = found.is_err().then(|| lister.recall(now)).flatten();
        news.send_if_modified(|known| {
            known.looks += 1;
            // Whoever asked waits for an answer, whether there is something new or not.
            let is_awaited = std::mem::replace(&mut known.asked, asked) != asked;
            take(known, found, recalled) || is_awaited
        });
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = asks.come() => {}
            () = news.closed() => return,
        }
    }
}

/// Whether it is news.
fn take(
    known: &mut News,
    found: Result<Arc<StoreListing>, Error>,
    recalled: Option<(Arc<StoreListing>, SystemTime)>,
) -> bool {
    let error = match found {
        Ok(listing) => return take_listing(known, &listing),
        Err(error) => error.to_string(),
    };
    let Some((listing, written)) = recalled.filter(|_| known.listing.is_none()) else {
        return take_trouble(known, error);
    };
    known.listing = Some(listing);
    let written = humantime::format_rfc3339_seconds(written);
    tracing::warn!(%error, listed = %written, "the bucket cannot be listed; serving what it last held, from the cache");
    known.trouble = Some(error);
    true
}

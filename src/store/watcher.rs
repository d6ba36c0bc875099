//! Looks at the store again and again, and sends what changed.
//!
//! Polling works on every file system. Whatever else learns of changes sooner (events of the file system, an operator who
//! asks) has only to end `until_next_look` early: what is believed is always a whole look, never an event.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::watch::Sender,
    time::{Instant, sleep},
};

use super::{Config, Scanner, StoreListing};

/// What is known of the store.
#[derive(Clone, Debug, Default)]
pub struct News {
    /// The last good listing; `None` before the first.
    pub listing: Option<Arc<StoreListing>>,
    /// Why the last look failed. The listing holds all the same.
    pub trouble: Option<String>,
}

/// Runs until nobody listens any more.
pub async fn watch(config: Config, news: Sender<News>) {
    if let Some(remote) = config.remote.clone() {
        return super::bucket::watch(config, remote, news).await;
    }
    let mut scanner = Scanner::new(config.clone());
    loop {
        let looked = tokio::task::spawn_blocking(move || {
            let found = scanner.scan(Instant::now().into_std(), SystemTime::now());
            (scanner, found)
        });
        let Ok((back, found)) = looked.await else {
            // Only when the runtime goes down, or by a bug in the scanner, which has been logged.
            return;
        };
        scanner = back;
        news.send_if_modified(|known| match &found {
            Ok(listing) => take_listing(known, listing),
            Err(error) => take_trouble(known, error.to_string()),
        });
        let settling = found.is_ok_and(|listing| listing.is_settling());
        tokio::select! {
            () = until_next_look(&config, settling) => {}
            () = news.closed() => return,
        }
    }
}

async fn until_next_look(config: &Config, settling: bool) {
    const LOOKS_A_SETTLE: u32 = 4;
    let pause = match settling {
        true => config.poll_interval.min(config.settle / LOOKS_A_SETTLE),
        false => config.poll_interval,
    };
    sleep(pause.max(Duration::from_millis(10))).await;
}

/// Whether it is news.
pub(super) fn take_listing(known: &mut News, listing: &Arc<StoreListing>) -> bool {
    let recovered = known.trouble.take().is_some();
    if recovered {
        tracing::info!("the store can be read again");
    }
    let same = known.listing.as_ref().is_some_and(|old| Arc::ptr_eq(old, listing));
    known.listing = Some(listing.clone());
    recovered || !same
}

pub(super) fn take_trouble(known: &mut News, trouble: String) -> bool {
    let same = known.trouble.as_ref() == Some(&trouble);
    if !same {
        tracing::warn!(error = %trouble, "the store cannot be listed; what is loaded serves on");
    }
    known.trouble = Some(trouble);
    !same
}

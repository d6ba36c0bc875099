//! Looks at the store again and again, and sends what changed.
//!
//! Polling works on every file system. Whatever else learns of changes sooner (events of the file system, an operator who
//! asks) has only to end `until_next_look` early: what is believed is always a whole look, never an event.

use std::{
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::watch::Sender,
    time::{Instant, sleep, sleep_until},
};

use super::{Asks, Config, Scanner, StoreListing, events::Events};

/// What is known of the store.
#[derive(Clone, Debug, Default)]
pub struct News {
    /// The last good listing; `None` before the first.
    pub listing: Option<Arc<StoreListing>>,
    /// Why the last look failed. The listing holds all the same.
    pub trouble: Option<String>,
    /// How many looks there were. One that showed nothing new is counted, and is no news.
    pub looks: u64,
    /// The last ask that came before the last look began.
    pub asked: u64,
}

/// What looks at the store.
struct Looker {
    config: Config,
    scanner: Scanner,
    events: Events,
}

/// One look.
struct Look {
    found: io::Result<Arc<StoreListing>>,
    took: Duration,
}

/// What the pause after a look hangs on.
#[derive(Clone, Copy, Debug)]
struct Pace {
    poll_interval: Duration,
    settle: Duration,
    /// Whether events tell of all changes.
    has_events: bool,
    /// Whether a version waits for its settle time.
    is_settling: bool,
    /// Whether the last look failed, or something was gone for the first time.
    is_doubtful: bool,
    /// The time that the last look took.
    took: Duration,
}

/// How often a store is looked at that tells of its changes: in case it is wrong.
const FALLBACK_INTERVAL: Duration = Duration::from_secs(30);
/// Between an event and its look, so that a burst of events is one look.
const GATHER: Duration = Duration::from_millis(50);
/// The pause is at least this many times what the look took: looks have a tenth of one core, whatever is written.
const REST: u32 = 9;

/// Runs until nobody listens any more.
pub async fn watch(config: Config, news: Sender<News>, mut asks: Asks) {
    if let Some(remote) = config.remote.clone() {
        return super::bucket::watch(config, remote, news, asks).await;
    }
    let mut looker = Looker::new(config);
    loop {
        let asked = asks.taken();
        let looked = tokio::task::spawn_blocking(move || {
            let look = looker.look();
            (looker, look)
        });
        let Ok((back, look)) = looked.await else {
            // Only when the runtime goes down, or by a bug in the scanner, which has been logged.
            return;
        };
        looker = back;
        news.send_if_modified(|known| {
            known.looks += 1;
            // Whoever asked waits for an answer, whether there is something new or not.
            let is_awaited = std::mem::replace(&mut known.asked, asked) != asked;
            let is_news = match &look.found {
                Ok(listing) => take_listing(known, listing),
                Err(error) => take_trouble(known, error.to_string()),
            };
            is_awaited || is_news
        });
        tokio::select! {
            () = until_next_look(&looker.events, looker.pace(&look)) => {}
            () = asks.come() => {}
            () = news.closed() => return,
        }
    }
}

/// Returns when it is time for a look, or as soon as one is worth it.
async fn until_next_look(events: &Events, pace: Pace) {
    let end = Instant::now() + pace.pause();
    let signs = events.signs();
    let event = async {
        signs.come().await;
        sleep(pace.gather()).await;
    };
    let another_root = async {
        // Mounting sends no event.
        while !events.root_is_another() {
            sleep(pace.poll_interval.max(GATHER)).await;
        }
    };
    tokio::select! {
        () = sleep_until(end) => {}
        () = event => {}
        () = another_root => {}
    }
}

// === impl Looker ===

impl Looker {
    fn new(config: Config) -> Self {
        Self { scanner: Scanner::new(config.clone()), events: Events::new(config.folder()), config }
    }

    /// The watch is armed before the look: what changes meanwhile is found by the one or by the other.
    fn look(&mut self) -> Look {
        let begun = std::time::Instant::now();
        self.events.arm(begun);
        let signs = self.events.signs();
        let renames = signs.renames();
        let found = self.scanner.scan_with(&renames, begun, SystemTime::now());
        if let Ok(listing) = &found {
            signs.forget_taken(&renames, listing);
        }
        let took = begun.elapsed();
        tracing::trace!(?took, "looked at the store");
        Look { found, took }
    }

    fn pace(&self, look: &Look) -> Pace {
        let is_settling = |listing: &Arc<StoreListing>| listing.is_settling(self.config.completeness);
        Pace {
            poll_interval: self.config.poll_interval,
            settle: self.config.settle,
            has_events: self.events.work(),
            is_settling: look.found.as_ref().is_ok_and(is_settling),
            is_doubtful: look.found.is_err() || self.scanner.is_doubtful(),
            took: look.took,
        }
    }
}

// === impl Pace ===

impl Pace {
    /// Until the next look, if nothing happens.
    fn pause(&self) -> Duration {
        const LOOKS_A_SETTLE: u32 = 4;
        const PAUSE_MIN: Duration = Duration::from_millis(10);
        let pause = match self {
            Pace { is_settling: true, .. } => self.poll_interval.min(self.settle / LOOKS_A_SETTLE),
            Pace { has_events: true, is_doubtful: false, .. } => self.poll_interval.max(FALLBACK_INTERVAL),
            _ => self.poll_interval,
        };
        pause.max(PAUSE_MIN).max(self.rest())
    }

    /// Until the next look, once something happened.
    fn gather(&self) -> Duration {
        GATHER.max(self.rest())
    }

    fn rest(&self) -> Duration {
        (self.took * REST).min(FALLBACK_INTERVAL)
    }
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

#[cfg(test)]
mod tests;

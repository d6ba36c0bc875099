//! The events of the file system (inotify), which end the pause between two looks early.
//!
//! What an event says is never believed, but for one thing that no look can see: that a folder was renamed into place. Where
//! events may not tell of everything (`file_system`), or the kernel's limits are reached, there are none, and the watcher
//! polls. The log says once which it is.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use notify::{
    ErrorKind, Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode, ModifyKind, RenameMode},
};
use tokio::sync::Notify;

use super::{
    file_system::{Identity, check_sends_events},
    layout::StoreListing,
    renames::Renames,
};

/// The events of one store.
pub(super) struct Events {
    root: PathBuf,
    armed: Option<Armed>,
    signs: Arc<Signs>,
    refused: Refused,
    /// Why there are no events, as it was logged; `None` inside while there are some.
    said: Option<Option<String>>,
}

/// A watch that works, as long as the root is the same. Dropping it ends the watch.
struct Armed {
    identity: Identity,
    since: Instant,
    _watcher: RecommendedWatcher,
}

/// The last failures to arm a watch.
#[derive(Default)]
struct Refused {
    why: String,
    count: u32,
    retry_at: Option<Instant>,
    identity: Option<Identity>,
}

/// What the events told; written by the thread of `notify`, read by the watcher.
#[derive(Debug, Default)]
pub(super) struct Signs {
    told: Mutex<Told>,
    woken: Notify,
}

#[derive(Debug, Default)]
struct Told {
    renames: Renames,
    /// Folders may have come without being watched.
    lost: Option<Loss>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Loss {
    /// The root itself moved, or something else that a new watch makes good.
    Watch,
    /// The kernel's queue was too short.
    Queue,
    /// No folder more can be watched.
    Limit,
}

/// What one event means. Paths are those under the root.
#[derive(Debug, PartialEq, Eq)]
enum Sign {
    Nothing,
    Changed,
    Arrived(String),
    Written(String),
    Departed(String),
    Lost(Loss),
}

/// How long a watch must have held for an overflow not to be its own doing, and the first pause before it is tried again.
const PATIENCE: Duration = Duration::from_secs(30);
const RETRY_DOUBLINGS_MAX: u32 = 7;

// === impl Events ===

impl Events {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), armed: None, signs: Arc::default(), refused: Refused::default(), said: None }
    }

    /// Sees to it that the root is watched, where it can be; called before each look. Blocks while it goes through the folders.
    pub(super) fn arm(&mut self, now: Instant) {
        let identity = Identity::of(&self.root);
        let lost = self.signs.lock().lost.take();
        if let Some(armed) = &self.armed {
            if lost.is_none() && identity == Some(armed.identity) {
                return;
            }
            // After this watch every folder is opened once: where that alone fills the queue, it would do so again.
            let own_doing = now.saturating_duration_since(armed.since) < PATIENCE;
            self.armed = None;
            self.signs.lock().renames.forget_all();
            let why = match lost {
                Some(Loss::Limit) => limit_reached(),
                Some(Loss::Queue) if own_doing => "more events at once than fs.inotify.max_queued_events".to_owned(),
                _ => String::new(),
            };
            if !why.is_empty() {
                return self.refuse(why, identity, now);
            }
        } else if identity == self.refused.identity && self.refused.retry_at.is_some_and(|at| now < at) {
            return;
        }
        let Some(identity) = identity else {
            return;
        };
        match self.watcher() {
            Ok(watcher) => {
                self.armed = Some(Armed { identity, since: now, _watcher: watcher });
                self.say(None);
            }
            Err(why) => self.refuse(why, Some(identity), now),
        }
    }

    /// Whether all changes end the pause by themselves.
    pub(super) fn work(&self) -> bool {
        self.armed.is_some()
    }

    /// Whether the root is not the folder that is watched: mounted anew, replaced, gone. One system call.
    pub(super) fn root_is_another(&self) -> bool {
        self.armed.as_ref().is_some_and(|armed| Identity::of(&self.root) != Some(armed.identity))
    }

    pub(super) fn signs(&self) -> Arc<Signs> {
        self.signs.clone()
    }

    fn watcher(&self) -> Result<RecommendedWatcher, String> {
        if self.root.is_file() {
            return Err("one file costs nothing to look at".into());
        }
        // The watch follows no link, or one that leads out of the store would have the whole disk watched.
        let root = self.root.canonicalize().map_err(|error| error.to_string())?;
        check_sends_events(&root)?;
        let (signs, base) = (self.signs.clone(), root.clone());
        let config = notify::Config::default().with_follow_symlinks(false);
        let watcher = RecommendedWatcher::new(move |event| signs.take(sign_of(event, &base)), config);
        let mut watcher = watcher.map_err(|error| in_words(&error))?;
        watcher.watch(&root, RecursiveMode::Recursive).map_err(|error| in_words(&error))?;
        Ok(watcher)
    }

    fn refuse(&mut self, why: String, identity: Option<Identity>, now: Instant) {
        let count = if self.refused.why == why { self.refused.count + 1 } else { 0 };
        let pause = PATIENCE * (1 << count.min(RETRY_DOUBLINGS_MAX));
        self.refused = Refused { why: why.clone(), count, retry_at: Some(now + pause), identity };
        self.say(Some(why));
    }

    fn say(&mut self, why_polling: Option<String>) {
        match &why_polling {
            _ if self.said.as_ref() == Some(&why_polling) => {}
            Some(reason) => tracing::info!(reason, "the store is polled"),
            None => tracing::info!("the store is watched: the file system tells of changes"),
        }
        self.said = Some(why_polling);
    }
}

// === impl Signs ===

impl Signs {
    /// Returns when something happened since the last time that this returned.
    pub(super) async fn come(&self) {
        self.woken.notified().await;
    }

    /// The folders that were renamed into place, as far as it is known now.
    pub(super) fn renames(&self) -> Renames {
        self.lock().renames.clone()
    }

    /// After a good look that knew `known`.
    pub(super) fn forget_taken(&self, known: &Renames, listing: &StoreListing) {
        self.lock().renames.forget_taken(known, listing);
    }

    fn take(&self, sign: Sign) {
        let mut told = self.lock();
        match sign {
            Sign::Nothing => return,
            Sign::Changed => {}
            Sign::Arrived(path) => told.renames.take_arrival(&path),
            Sign::Written(path) => told.renames.take_write(&path),
            Sign::Departed(path) => told.renames.take_departure(&path),
            Sign::Lost(loss) => {
                told.renames.forget_all();
                told.lost = Some(loss);
            }
        }
        drop(told);
        self.woken.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an event means for a store at `root`, which has no link in it.
fn sign_of(event: notify::Result<Event>, root: &Path) -> Sign {
    let event = match event {
        Ok(event) if event.need_rescan() => return Sign::Lost(Loss::Queue),
        Ok(event) => event,
        Err(error) if matches!(error.kind, ErrorKind::MaxFilesWatch) => return Sign::Lost(Loss::Limit),
        Err(_) => return Sign::Lost(Loss::Watch),
    };
    let path = event.paths.last().and_then(|path| path.strip_prefix(root).ok()?.to_str());
    let Some(path) = path else {
        return Sign::Nothing;
    };
    let has_gone = matches!(event.kind, EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(RenameMode::From)));
    match event.kind {
        // Looks open folders, too.
        EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write) => Sign::Nothing,
        _ if path.is_empty() && has_gone => Sign::Lost(Loss::Watch),
        _ if path.is_empty() => Sign::Changed,
        // Where Kubernetes swaps a whole volume.
        _ if path.rsplit('/').next() == Some("..data") => Sign::Changed,
        _ if path.split('/').any(|name| name.starts_with('.')) => Sign::Nothing,
        EventKind::Modify(ModifyKind::Metadata(_)) => Sign::Changed,
        EventKind::Modify(ModifyKind::Name(RenameMode::To | RenameMode::Both)) => Sign::Arrived(path.to_owned()),
        _ if has_gone => Sign::Departed(path.to_owned()),
        _ => Sign::Written(path.to_owned()),
    }
}

fn limit_reached() -> String {
    "no more folders can be watched: fs.inotify.max_user_watches is reached".into()
}

/// Without the paths, which the log has already.
fn in_words(error: &notify::Error) -> String {
    match &error.kind {
        ErrorKind::MaxFilesWatch => limit_reached(),
        ErrorKind::Io(error) => format!("it cannot be watched: {error}"),
        _ => "it changed while the watch was set up".into(),
    }
}

#[cfg(test)]
mod tests;

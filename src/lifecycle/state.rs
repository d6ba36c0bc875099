//! One version, as the manager knows it. Plain data; the time is an argument.
//!
//! Serving and loading are two things: a version that serves may be loaded again beside itself, when its options change.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant, SystemTime},
};

use super::{
    loader::{Loaded, mutated},
    policy::{self, Serving, VersionView},
    remembered::LibraryStamp,
    retention::Retention,
};
use crate::{
    catalog::State,
    error::{Code, Error},
    model::{ModelYaml, Version},
    store::{VersionFolder, bucket::STORE_UNAVAILABLE, platform_of},
};

/// One version.
pub struct VersionState<T> {
    /// `None` once it has gone from the store.
    pub source: Option<Arc<VersionFolder>>,
    pub aspired: bool,
    pub retention: Retention,
    pub serving: Option<Served<T>>,
    pub load: LoadState,
    /// Of the last load, until one succeeds.
    pub failure: Option<Failure>,
    /// What requests may still hold of servables that were let go.
    pub leaving: Vec<Weak<T>>,
    /// Of the bytes that served: they must not change as long as the folder is there.
    pub known_digest: Option<String>,
    /// The trouble beside its serving that was logged last, so that each is logged once.
    pub logged: Option<&'static str>,
    pub shown: State,
    pub since: SystemTime,
}

/// A loaded version, and what it was loaded from.
pub struct Served<T> {
    pub loaded: Loaded<T>,
    pub source: Arc<VersionFolder>,
    pub options: Arc<ModelYaml>,
    /// Whether the files in the store are other bytes by now.
    pub mutated: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadState {
    Idle,
    Queued,
    Running,
}

/// A load that failed, and what it was about.
pub struct Failure {
    pub error: Error,
    pub source: Arc<VersionFolder>,
    pub options: Arc<ModelYaml>,
    pub attempts: u32,
    pub retry_at: Instant,
    /// The library's stamp, where the library is what is missing.
    pub missing_library: Option<LibraryStamp>,
}

const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LAST: Duration = Duration::from_secs(300);
const RETRY_STORE_LAST: Duration = Duration::from_secs(10);

// === impl VersionState ===

impl<T> VersionState<T> {
    pub fn new(wall: SystemTime) -> Self {
        Self {
            source: None,
            aspired: false,
            retention: Retention::No,
            serving: None,
            load: LoadState::Idle,
            failure: None,
            leaving: Vec::new(),
            known_digest: None,
            logged: None,
            shown: State::Available,
            since: wall,
        }
    }

    /// Whether it is there to be chosen. One that serves stays so while somebody touches its files.
    pub fn is_candidate(&self) -> bool {
        self.source.as_ref().is_some_and(|source| source.complete || self.serving.is_some())
    }

    /// Whether it failed by a fault of its own: a library that is still being installed is none.
    pub fn has_failed(&self) -> bool {
        let by_itself = |failure: &Failure| failure.missing_library.is_none();
        self.serving.is_none() && self.failure.as_ref().is_some_and(by_itself)
    }

    /// Whether nothing is left of it.
    pub fn is_gone(&self) -> bool {
        self.source.is_none() && self.serving.is_none() && self.load == LoadState::Idle && self.leaving.is_empty()
    }

    /// `keep` is what model.yaml says of versions whose place a higher one took.
    pub fn view(&self, version: Version, options: &Arc<ModelYaml>, keep: Duration, now: Instant) -> VersionView {
        VersionView {
            version,
            aspired: self.aspired,
            kept: self.source.is_some() && self.retention.holds(keep, now),
            draining: self.leaving.iter().any(|servable| servable.strong_count() > 0),
            serving: self.serving_view(options),
            load: match (self.load, &self.failure) {
                (LoadState::Queued, _) => policy::Load::Queued,
                (LoadState::Running, _) => policy::Load::Running,
                (LoadState::Idle, None) => policy::Load::Idle,
                (LoadState::Idle, Some(failure)) => {
                    policy::Load::Failed { due: now >= failure.retry_at || !self.is_about_this(failure, options) }
                }
            },
        }
    }

    fn serving_view(&self, options: &Arc<ModelYaml>) -> Serving {
        let Some(served) = &self.serving else {
            return Serving::No;
        };
        match &self.source {
            Some(source) if source.complete && !source.has_files_of(&served.source) => Serving::Touched,
            Some(_) if served.options != *options => Serving::Stale,
            _ => Serving::Current,
        }
    }

    /// Whether its servable is still to be made anew, with other options.
    pub fn is_remade(&self, options: &Arc<ModelYaml>) -> bool {
        let failed = self.failure.as_ref().is_some_and(|failure| self.is_about_this(failure, options));
        !failed && matches!(self.serving_view(options), Serving::Stale)
    }

    /// Whether a failure is of the files and options that are there now.
    fn is_about_this(&self, failure: &Failure, options: &Arc<ModelYaml>) -> bool {
        let same_files =
            self.source.as_ref().is_none_or(|source| !source.complete || source.has_files_of(&failure.source));
        same_files && failure.options == *options
    }

    pub fn fail(&mut self, failure: Failure) {
        let attempts = match &self.failure {
            Some(old) if old.source.has_files_of(&failure.source) && old.options == failure.options => old.attempts + 1,
            _ => 1,
        };
        let pause = match failure.missing_library {
            Some(_) => RETRY_FIRST,
            // A bucket that comes back is no reason to wait for minutes more.
            None if failure.error.reason() == STORE_UNAVAILABLE => pause_after(attempts).min(RETRY_STORE_LAST),
            None => pause_after(attempts),
        };
        self.failure = Some(Failure { attempts, retry_at: failure.retry_at + pause, ..failure });
    }

    /// Brings the shown state up to date.
    pub fn refresh(&mut self, options: &Arc<ModelYaml>, wall: SystemTime) {
        self.leaving.retain(|servable| servable.strong_count() > 0);
        let retried = self.failure.as_ref().is_some_and(|failure| self.is_about_this(failure, options));
        let shown = match self.load {
            _ if self.serving.is_some() => State::Ready,
            _ if retried => State::Failed,
            LoadState::Queued | LoadState::Running => State::Loading,
            LoadState::Idle if self.failure.is_some() => State::Failed,
            // It waits for what must go first.
            LoadState::Idle if self.aspired => State::Loading,
            LoadState::Idle if !self.leaving.is_empty() => State::Draining,
            LoadState::Idle => State::Available,
        };
        if shown != self.shown {
            (self.shown, self.since) = (shown, wall);
        }
    }

    /// What is wrong with it, whether it serves or not.
    pub fn cause(&self) -> Option<Error> {
        if let Some(failure) = &self.failure {
            return Some(failure.error.clone());
        }
        if let Some(trouble) = self.serving_trouble() {
            return Some(trouble);
        }
        let refused = self.source.as_ref()?.refused.as_ref()?;
        Some(Error::new(Code::FailedPrecondition, refused.0, refused.1.clone()))
    }

    /// What became of the files that a version which serves was loaded from.
    fn serving_trouble(&self) -> Option<Error> {
        let served = self.serving.as_ref()?;
        if served.mutated {
            return Some(mutated());
        }
        self.source.is_none().then(|| {
            Error::new(
                Code::FailedPrecondition,
                "SOURCE_MISSING",
                "its folder is gone from the store; it serves on from its copy",
            )
        })
    }

    /// The trouble beside its serving, where it is another than when this was asked last.
    pub fn trouble_to_log(&mut self) -> Option<Error> {
        let trouble = self.serving_trouble();
        let reason = trouble.as_ref().map(Error::reason);
        let news = std::mem::replace(&mut self.logged, reason) != reason;
        trouble.filter(|_| news)
    }

    pub fn platform(&self) -> Option<crate::model::Platform> {
        let served = self.serving.as_ref().map(|served| served.loaded.platform);
        served.or_else(|| platform_of(self.source.as_ref()?))
    }
}

// === impl Failure ===

impl Failure {
    /// What was said of the library, where that is what is missing.
    pub fn missing_library(&self) -> Option<(LibraryStamp, Error)> {
        Some((self.missing_library?, self.error.clone()))
    }
}

/// 1 s, 2 s, 4 s, … 5 min.
fn pause_after(attempts: u32) -> Duration {
    RETRY_FIRST.saturating_mul(2u32.saturating_pow(attempts.saturating_sub(1))).min(RETRY_LAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_five_minutes() {
        let pauses: Vec<u64> = (1..=10).map(|attempts| pause_after(attempts).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]);
        assert_eq!(pause_after(u32::MAX), RETRY_LAST);
    }
}

//! Opening and warming up in the server's own process, within a time.
//!
//! The child did the same before, so nothing should hang here. What does all the same is ended by the library where it can be
//! ended; where not, its thread is written off, the version with it, and the loader goes on with the next one.

use std::{
    collections::BTreeSet,
    panic::resume_unwind,
    path::PathBuf,
    sync::{
        Arc, Mutex, OnceLock,
        mpsc::{RecvTimeoutError, sync_channel},
    },
    time::{Duration, Instant},
};

use super::{job::Report, trial};
use crate::{
    backend::{self, Executable, OpenSpec, Session, Stopper},
    error::{Code, Error, Result},
    model::{Device, Manifest},
    runtime::Mark,
    store::PrivateDir,
};

/// Opens versions; one of all loader threads.
pub struct Opener {
    limit: Duration,
    /// Tags of versions whose threads were written off: each try would cost one more.
    hung: Mutex<BTreeSet<u64>>,
}

/// One version to be opened.
pub struct Opening {
    pub tag: u64,
    pub mark: Mark,
    /// Kept as long as the thread that opens it, however long that is.
    pub dir: Arc<PrivateDir>,
    pub manifest: Manifest,
    pub native_dir: PathBuf,
    pub report: Report,
}

/// A version that was opened and warmed up.
pub struct Opened {
    pub executable: Arc<dyn Executable>,
    /// What runs cost on a GPU, where the child does not measure them; (rows, microseconds), ascending by rows.
    pub cost: Option<Vec<(usize, f64)>>,
}

/// When the work must have come to an end, and what ends a run that has not.
pub struct Alarm {
    limit: Duration,
    deadline: Instant,
    /// There from the first run on.
    stopper: OnceLock<Arc<dyn Stopper>>,
}

/// Deeper than the child's, so that what passes there has room here.
const STACK_BYTES: usize = 4 << 20;
/// How long a run that was told to stop may take to do so.
const STOP_GRACE: Duration = Duration::from_secs(1);

// === impl Opener ===

impl Opener {
    pub fn new(limit: Duration) -> Self {
        Self { limit, hung: Mutex::default() }
    }

    /// LOAD_TIMEOUT and WARMUP_TIMEOUT where it does not come to an end; else the backend's own errors.
    pub fn open(&self, opening: Opening) -> Result<Opened> {
        let tag = opening.tag;
        self.watch(tag, move |alarm| {
            let _running = opening.mark.begin();
            let (dir, manifest) = (opening.dir.path(), &opening.manifest);
            let executable = backend::open(OpenSpec { dir, manifest, native_dir: &opening.native_dir })?;
            trial::warm_up(&*executable, manifest, &opening.report, alarm)?;
            let cost = match executable.device() {
                Device::Cpu => None,
                Device::Cuda(_) => trial::cost_here(&*executable, manifest, &opening.report, alarm)?,
            };
            Ok(Opened { executable, cost })
        })
    }

    /// On a thread of its own, so that the one that waits is never lost. Nice values are inherited.
    fn watch<T: Send + 'static>(&self, tag: u64, work: impl FnOnce(&Alarm) -> Result<T> + Send + 'static) -> Result<T> {
        if self.hung().contains(&tag) {
            return Err(written_off(self.limit));
        }
        let alarm = Arc::new(Alarm::new(self.limit));
        let (sender, answer) = sync_channel(1);
        let theirs = alarm.clone();
        let thread = std::thread::Builder::new()
            .name("load-open".into())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                // Nobody may be waiting any more.
                let _ = sender.send(work(&theirs));
            })
            .map_err(|error| Error::internal("THREAD", format!("could not start a thread to open it: {error}")))?;
        let answered = answer.recv_timeout(self.limit).or_else(|ending| match ending {
            RecvTimeoutError::Timeout => {
                alarm.ring();
                answer.recv_timeout(STOP_GRACE)
            }
            RecvTimeoutError::Disconnected => Err(ending),
        });
        match answered {
            Err(RecvTimeoutError::Timeout) => {
                tracing::error!("a thread that opened a version does not come back and is written off");
                self.hung().insert(tag);
                Err(alarm.error())
            }
            ended => {
                if let Err(panic) = thread.join() {
                    resume_unwind(panic);
                }
                ended.expect("a thread that did not panic has answered: this is a bug")
            }
        }
    }

    fn hung(&self) -> std::sync::MutexGuard<'_, BTreeSet<u64>> {
        self.hung.lock().expect("no holder panics: this is a bug")
    }
}

// === impl Alarm ===

impl Alarm {
    pub fn new(limit: Duration) -> Self {
        Self { limit, deadline: Instant::now() + limit, stopper: OnceLock::new() }
    }

    /// From now on the session's runs can be ended. Before its first run.
    pub fn watch(&self, session: &dyn Session) {
        if let Some(stopper) = session.stopper() {
            // A warm-up has one session; of a second one the first is watched.
            let _ = self.stopper.set(stopper);
        }
    }

    pub fn is_over(&self) -> bool {
        Instant::now() >= self.deadline
    }

    /// What is said once it is over.
    pub fn error(&self) -> Error {
        warmup_timeout(format!(
            "opening or warming it up in the server took longer than {:?}; see child_time",
            self.limit
        ))
    }

    fn ring(&self) {
        if let Some(stopper) = self.stopper.get() {
            stopper.stop();
        }
    }
}

fn warmup_timeout(message: String) -> Error {
    Error::new(Code::FailedPrecondition, "WARMUP_TIMEOUT", message)
}

fn written_off(limit: Duration) -> Error {
    warmup_timeout(format!(
        "it did not come back within {limit:?} when this server opened it; it is not tried again before a restart"
    ))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::SyncSender;

    use super::*;

    const SOON: Duration = Duration::from_millis(50);

    struct Bell(Mutex<SyncSender<()>>);

    impl Stopper for Bell {
        fn stop(&self) {
            // The run may have ended by itself.
            let _ = self.0.lock().expect("not poisoned").try_send(());
        }
    }

    #[test]
    fn what_comes_to_an_end_is_given_back() {
        let opener = Opener::new(Duration::from_secs(60));
        assert_eq!(opener.watch(1, |_| Ok(7)).expect("an answer"), 7);
        let refused = opener.watch(1, |_| Err::<(), _>(Error::internal("BACKEND_FAILED", "no")));
        assert_eq!(refused.expect_err("its own").reason(), "BACKEND_FAILED");
    }

    #[test]
    fn a_run_that_can_be_ended_is_and_may_be_tried_again() {
        let opener = Opener::new(SOON);
        for _ in 0..2 {
            let (bell, rung) = sync_channel(1);
            let error = opener.watch(1, move |alarm| {
                let _ = alarm.stopper.set(Arc::new(Bell(Mutex::new(bell))));
                rung.recv().expect("it is told to stop");
                assert!(alarm.is_over());
                Err::<(), _>(alarm.error())
            });
            assert_eq!(error.expect_err("it took too long").reason(), "WARMUP_TIMEOUT");
        }
        assert!(opener.hung().is_empty());
    }

    #[test]
    fn a_thread_that_does_not_come_back_is_written_off_with_its_version_alone() {
        let opener = Opener::new(SOON);
        let (end, never) = sync_channel::<()>(1);
        let error = opener.watch(1, move |_| Ok(never.recv().is_err()));
        assert_eq!(error.expect_err("it hangs").reason(), "WARMUP_TIMEOUT");
        let again = opener.watch(1, |_| Ok(true)).expect_err("it would cost one more thread");
        assert!(again.message().contains("restart"), "{again}");
        assert!(opener.watch(2, |_| Ok(true)).expect("another version"));
        drop(end);
    }

    #[test]
    #[should_panic(expected = "in the library")]
    fn a_panic_goes_on_where_it_is_caught() {
        let _ = Opener::new(Duration::from_secs(60)).watch::<()>(1, |_| panic!("in the library"));
    }
}

//! Load on a fixed schedule: a call is due when it is due, however long the calls before it take, and its latency counts from
//! that moment. So a server that stalls is seen with all the calls that would have come meanwhile.
//!
//! The swap bench measures with it, too.

use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
        mpsc::{RecvTimeoutError, SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

use tokio::{
    sync::{Notify, watch},
    task::{JoinHandle, JoinSet},
};

/// A load that runs.
pub struct OpenLoop {
    shared: Arc<Shared>,
    driver: JoinHandle<()>,
}

/// One call that was answered.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// When it should have been sent, since the load began.
    pub due: Duration,
    /// From then to the answer.
    pub latency: Duration,
    /// The number of the version that answered.
    pub version: u64,
}

/// All that came of a load.
#[derive(Debug, Default)]
pub struct Record {
    pub answered: Vec<Sample>,
    /// What went wrong, call by call.
    pub failed: Vec<String>,
}

/// Who answered first, by the number of the version.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct First {
    pub version: u64,
    pub at: Instant,
}

struct Shared {
    begun: Instant,
    over: AtomicBool,
    record: Mutex<Record>,
    newest: watch::Sender<First>,
}

/// A thread that wakes the load, exact to some microseconds. The runtime's own timer rounds up to whole milliseconds, which is
/// more than a call takes.
struct Ticker {
    woken: Arc<Notify>,
    /// Its end is the thread's.
    _alive: SyncSender<()>,
}

const TICK: Duration = Duration::from_millis(1);

// === impl OpenLoop ===

impl OpenLoop {
    /// Begins `rate` calls a second, spread evenly. `call` gets the number of the call and says which version answered, or
    /// what was wrong.
    pub fn begin<F>(rate: f64, call: impl Fn(u64) -> F + Send + 'static) -> io::Result<Self>
    where
        F: Future<Output = Result<u64, String>> + Send + 'static,
    {
        let begun = Instant::now();
        let shared = Arc::new(Shared {
            begun,
            over: AtomicBool::new(false),
            record: Mutex::default(),
            newest: watch::Sender::new(First { version: 0, at: begun }),
        });
        let driver = tokio::spawn(drive(rate, Ticker::new(TICK)?, shared.clone(), call));
        Ok(Self { shared, driver })
    }

    pub fn begun(&self) -> Instant {
        self.shared.begun
    }

    /// The highest version that has answered, and when its first answer came.
    pub fn newest(&self) -> watch::Receiver<First> {
        self.shared.newest.subscribe()
    }

    /// What has come so far.
    pub fn so_far(&self) -> MutexGuard<'_, Record> {
        self.shared.record()
    }

    /// Sends no more, and waits for what is under way.
    pub async fn end(self) -> Record {
        self.shared.over.store(true, Ordering::Relaxed);
        self.driver.await.expect("the load does not panic");
        std::mem::take(&mut self.shared.record())
    }
}

async fn drive<F>(rate: f64, ticker: Ticker, shared: Arc<Shared>, call: impl Fn(u64) -> F)
where
    F: Future<Output = Result<u64, String>> + Send + 'static,
{
    let mut calls = JoinSet::new();
    let mut number = 0;
    while !shared.over.load(Ordering::Relaxed) {
        ticker.tick().await;
        let passed = shared.begun.elapsed();
        loop {
            let due = Duration::from_secs_f64(number as f64 / rate);
            if due > passed {
                break;
            }
            let (answer, shared) = (call(number), shared.clone());
            calls.spawn(async move {
                let answer = answer.await;
                shared.take(due, answer);
            });
            number += 1;
        }
        while let Some(ended) = calls.try_join_next() {
            ended.expect("a call does not panic");
        }
    }
    while let Some(ended) = calls.join_next().await {
        ended.expect("a call does not panic");
    }
}

// === impl Shared ===

impl Shared {
    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().expect("no holder panics")
    }

    fn take(&self, due: Duration, answer: Result<u64, String>) {
        let at = Instant::now();
        let latency = (at - self.begun).saturating_sub(due);
        match answer {
            Ok(version) => {
                self.record().answered.push(Sample { due, latency, version });
                self.newest.send_if_modified(|first| {
                    let newer = version > first.version;
                    if newer {
                        *first = First { version, at };
                    }
                    newer
                });
            }
            Err(why) => self.record().failed.push(format!("{due:?} after the begin: {why}")),
        }
    }
}

// === impl Record ===

impl Record {
    /// The latency that this share of the calls due in any of `windows` (since the begin) stayed within.
    pub fn quantile(&self, share: f64, windows: &[(Duration, Duration)]) -> Option<Duration> {
        let inside = |due: Duration| windows.iter().any(|(from, to)| (*from..*to).contains(&due));
        let due = self.answered.iter().filter(|sample| inside(sample.due));
        let mut latencies: Vec<Duration> = due.map(|sample| sample.latency).collect();
        latencies.sort_unstable();
        let place = (latencies.len() as f64 * share).ceil() as usize;
        latencies.get(place.saturating_sub(1)).copied()
    }
}

// === impl Ticker ===

impl Ticker {
    fn new(period: Duration) -> io::Result<Self> {
        let woken = Arc::new(Notify::new());
        let (alive, ended) = sync_channel(0);
        let ticker = Self { woken: woken.clone(), _alive: alive };
        std::thread::Builder::new().name("ticker".into()).spawn(move || {
            let mut next = Instant::now();
            while let Err(RecvTimeoutError::Timeout) =
                ended.recv_timeout(next.saturating_duration_since(Instant::now()))
            {
                woken.notify_one();
                next += period;
            }
        })?;
        Ok(ticker)
    }

    /// Ticks that were missed are one: the schedule knows what is due.
    async fn tick(&self) {
        self.woken.notified().await;
    }
}

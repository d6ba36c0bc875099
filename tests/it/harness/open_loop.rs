//! Load on a fixed schedule: a call is due when it is due, however long the calls before it take, and its latency counts from
//! that moment. So a server that stalls is seen with all the calls that would have come meanwhile.
//!
//! The benches of swaps and of overload measure with it, too.

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

/// A load that runs. `A` is what a call makes of its answer: the number of the version that gave it, as a rule.
pub struct OpenLoop<A = u64> {
    shared: Arc<Shared<A>>,
    driver: JoinHandle<()>,
}

/// One call that was answered.
#[derive(Clone, Copy, Debug)]
pub struct Sample<A = u64> {
    /// When it should have been sent, since the load began.
    pub due: Duration,
    /// From then to the answer.
    pub latency: Duration,
    pub answer: A,
}

/// All that came of a load.
#[derive(Debug)]
pub struct Record<A = u64> {
    pub answered: Vec<Sample<A>>,
    /// What went wrong, call by call.
    pub failed: Vec<String>,
}

/// The first of the highest answers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct First<A = u64> {
    pub answer: A,
    pub at: Instant,
}

struct Shared<A> {
    begun: Instant,
    over: AtomicBool,
    record: Mutex<Record<A>>,
    newest: watch::Sender<First<A>>,
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

impl<A: Copy + Default + PartialOrd + Send + Sync + 'static> OpenLoop<A> {
    /// Begins `rate` calls a second, spread evenly. `call` gets the number of the call and says what was answered, or what was
    /// wrong.
    pub fn begin<F>(rate: f64, call: impl Fn(u64) -> F + Send + 'static) -> io::Result<Self>
    where
        F: Future<Output = Result<A, String>> + Send + 'static,
    {
        let begun = Instant::now();
        let shared = Arc::new(Shared {
            begun,
            over: AtomicBool::new(false),
            record: Mutex::default(),
            newest: watch::Sender::new(First { answer: A::default(), at: begun }),
        });
        let driver = tokio::spawn(drive(rate, Ticker::new(TICK)?, shared.clone(), call));
        Ok(Self { shared, driver })
    }

    pub fn begun(&self) -> Instant {
        self.shared.begun
    }

    /// The highest answer, and when the first like it came.
    pub fn newest(&self) -> watch::Receiver<First<A>> {
        self.shared.newest.subscribe()
    }

    /// What has come so far.
    pub fn so_far(&self) -> MutexGuard<'_, Record<A>> {
        self.shared.record()
    }

    /// Sends no more, and waits for what is under way.
    pub async fn end(self) -> Record<A> {
        self.shared.over.store(true, Ordering::Relaxed);
        self.driver.await.expect("the load does not panic");
        std::mem::take(&mut self.shared.record())
    }
}

async fn drive<A, F>(rate: f64, ticker: Ticker, shared: Arc<Shared<A>>, call: impl Fn(u64) -> F)
where
    A: Copy + PartialOrd + Send + Sync + 'static,
    F: Future<Output = Result<A, String>> + Send + 'static,
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

impl<A: Copy + PartialOrd> Shared<A> {
    fn record(&self) -> MutexGuard<'_, Record<A>> {
        self.record.lock().expect("no holder panics")
    }

    fn take(&self, due: Duration, answer: Result<A, String>) {
        let at = Instant::now();
        let latency = (at - self.begun).saturating_sub(due);
        match answer {
            Ok(answer) => {
                self.record().answered.push(Sample { due, latency, answer });
                self.newest.send_if_modified(|first| {
                    let newer = answer > first.answer;
                    if newer {
                        *first = First { answer, at };
                    }
                    newer
                });
            }
            Err(why) => self.record().failed.push(format!("{due:?} after the begin: {why}")),
        }
    }
}

// === impl Record ===

impl<A> Default for Record<A> {
    fn default() -> Self {
        Self { answered: Vec::new(), failed: Vec::new() }
    }
}

impl<A> Record<A> {
    /// The latency that this share of the calls due in any of `windows` (since the begin) stayed within.
    pub fn quantile(&self, share: f64, windows: &[(Duration, Duration)]) -> Option<Duration> {
        self.quantile_of(share, windows, |_| true)
    }

    /// The same of the calls with such answers alone.
    pub fn quantile_of(
        &self,
        share: f64,
        windows: &[(Duration, Duration)],
        such: impl Fn(&A) -> bool,
    ) -> Option<Duration> {
        let inside = |due: Duration| windows.iter().any(|(from, to)| (*from..*to).contains(&due));
        let due = self.answered.iter().filter(|sample| inside(sample.due) && such(&sample.answer));
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

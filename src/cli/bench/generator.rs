//! The generator: threads with a runtime each, which share the calls and the connections of one load. It keeps the time, and
//! hands out what has come so far; the loops themselves are next door.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use anyhow::Context;
use bytes::Bytes;
use rustix::time::{ClockId, clock_gettime};
use tokio::{
    signal::unix::Signal as Interrupts,
    sync::{oneshot, watch},
    time::MissedTickBehavior,
};

use super::{
    link::{Link, Target},
    loops,
    schedule::Arrivals,
    tally::Tally,
};

/// What all loads of a run have in common.
pub struct Job {
    pub target: Arc<Target>,
    /// Frames of requests, sent in turn.
    pub messages: Vec<Bytes>,
    pub threads: usize,
    pub warm_up: Duration,
    pub measured: Duration,
    /// How many calls of an open loop may wait for their answers.
    pub in_flight_max: usize,
}

/// How much is asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    pub pace: Pace,
    pub connections: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// A closed loop: so many callers, each of whom waits for an answer before it calls again.
    Closed { in_flight: usize },
    /// An open loop: so many calls a second, whatever becomes of those before.
    Open { rate: f64, arrivals: Arrivals },
}

/// What came of one load.
pub struct Measured {
    pub tally: Tally,
    /// How long was measured: less than was wanted where it was interrupted.
    pub time: Duration,
    /// The share of a CPU that the busiest thread of the generator used.
    pub busy: f64,
    pub interrupted: bool,
}

/// What has come until now.
pub struct SoFar {
    pub left: Duration,
    pub warming_up: bool,
    pub per_s: f64,
    pub p99: Duration,
    pub failed: u64,
    pub dropped: u64,
}

/// From when calls count, and until when they are sent.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub begin: Instant,
    pub counted: Instant,
    pub end: Instant,
}

#[derive(Clone, Copy, Debug)]
pub enum Signal {
    Wait,
    Go(Window),
    Over,
}

/// One thread's share.
pub struct Hand {
    pub job: Arc<Job>,
    pub pace: Pace,
    pub place: usize,
    pub threads: usize,
    pub links: Vec<Arc<Link>>,
    pub tally: Arc<Mutex<Tally>>,
    pub signal: watch::Receiver<Signal>,
}

/// A thread as the driver sees it.
struct Thread {
    tally: Arc<Mutex<Tally>>,
    /// Comes when its connections are there.
    ready: oneshot::Receiver<()>,
    /// The share of a CPU that it used.
    ended: oneshot::Receiver<anyhow::Result<f64>>,
}

const TICK: Duration = Duration::from_millis(250);
/// What is in flight at an interrupt has so long to be answered.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// Runs one load to its end, or until `interrupts` has one. `show` is told every quarter of a second how it goes.
pub async fn run(
    job: &Arc<Job>,
    load: Load,
    interrupts: &mut Interrupts,
    mut show: impl FnMut(SoFar),
) -> anyhow::Result<Measured> {
    let signal = watch::Sender::new(Signal::Wait);
    let mut threads = begin(job, load, &signal)?;
    for thread in &mut threads {
        if (&mut thread.ready).await.is_err() {
            // It ended instead, and says why.
            (&mut thread.ended).await.context(LOST)??;
        }
    }
    let window = Window::from(Instant::now(), job);
    signal.send_replace(Signal::Go(window));
    let tallies: Vec<Arc<Mutex<Tally>>> = threads.iter().map(|thread| thread.tally.clone()).collect();
    let ended = async {
        let mut busy: f64 = 0.0;
        for thread in threads {
            busy = busy.max(thread.ended.await.context(LOST)??);
        }
        anyhow::Ok(busy)
    };
    let mut ended = std::pin::pin!(ended);
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut interrupted_at = None;
    let busy = loop {
        tokio::select! {
            busy = &mut ended => break busy?,
            _ = interrupts.recv(), if interrupted_at.is_none() => {
                interrupted_at = Some(Instant::now());
                signal.send_replace(Signal::Over);
            }
            _ = ticks.tick() => match interrupted_at {
                // Whoever interrupts does not want to wait for what the server may never answer.
                Some(at) if at.elapsed() > LAST_WAIT => break 0.0,
                _ => show(so_far(&tallies, window)),
            },
        }
    };
    let mut tally = Tally::new();
    for one in &tallies {
        tally.add(&lock(one));
    }
    let end = interrupted_at.unwrap_or(window.end).min(window.end);
    let time = end.saturating_duration_since(window.counted);
    Ok(Measured { tally, time, busy, interrupted: interrupted_at.is_some() })
}

pub fn lock(tally: &Mutex<Tally>) -> MutexGuard<'_, Tally> {
    tally.lock().expect("no thread panics while it counts: this is a bug")
}

const LOST: &str = "a thread of the generator was lost: this is a bug";

// === impl Pace ===

impl Pace {
    /// How many calls may be in flight.
    fn width(self) -> usize {
        match self {
            Pace::Closed { in_flight } => in_flight,
            Pace::Open { .. } => usize::MAX,
        }
    }
}

// === impl Window ===

impl Window {
    fn from(begin: Instant, job: &Job) -> Self {
        let counted = begin + job.warm_up;
        Self { begin, counted, end: counted + job.measured }
    }
}

fn begin(job: &Arc<Job>, load: Load, signal: &watch::Sender<Signal>) -> anyhow::Result<Vec<Thread>> {
    let count = job.threads.min(load.connections).min(load.pace.width());
    let mut threads = Vec::new();
    for place in 0..count {
        let mut hand = Hand {
            job: job.clone(),
            pace: load.pace,
            place,
            threads: count,
            links: Vec::new(),
            tally: Arc::new(Mutex::new(Tally::new())),
            signal: signal.subscribe(),
        };
        let connections = (place..load.connections).step_by(count).count();
        let (is_ready, ready) = oneshot::channel();
        let (has_ended, ended) = oneshot::channel();
        threads.push(Thread { tally: hand.tally.clone(), ready, ended });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name(format!("bench-{place}")).spawn(move || {
            let busy = runtime.block_on(async move {
                for _ in 0..connections {
                    hand.links.push(Arc::new(Link::connect(hand.job.target.clone()).await?));
                }
                work(hand, is_ready).await
            });
            // Nobody may want to know any more.
            let _ = has_ended.send(busy);
        })?;
    }
    Ok(threads)
}

/// Waits for the word, loops, and says what share of a CPU this thread used meanwhile.
async fn work(hand: Hand, is_ready: oneshot::Sender<()>) -> anyhow::Result<f64> {
    let hand = Arc::new(hand);
    let _ = is_ready.send(());
    let word = *hand.signal.clone().wait_for(|signal| !matches!(signal, Signal::Wait)).await?;
    let Signal::Go(window) = word else {
        return Ok(0.0);
    };
    let (begun, cpu) = (Instant::now(), cpu_time());
    match hand.pace {
        Pace::Closed { in_flight } => loops::closed(&hand, window, in_flight).await?,
        Pace::Open { rate, arrivals } => loops::open(&hand, window, rate, arrivals).await?,
    }
    Ok(cpu_time().saturating_sub(cpu).as_secs_f64() / begun.elapsed().as_secs_f64())
}

/// What this thread has used.
fn cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

fn so_far(tallies: &[Arc<Mutex<Tally>>], window: Window) -> SoFar {
    let now = Instant::now();
    let warming_up = now < window.counted;
    let mut answered = 0;
    let mut so_far = SoFar {
        left: if warming_up { window.counted } else { window.end }.saturating_duration_since(now),
        warming_up,
        per_s: 0.0,
        p99: Duration::ZERO,
        failed: 0,
        dropped: 0,
    };
    for tally in tallies {
        let tally = lock(tally);
        answered += tally.answered;
        so_far.failed += tally.failed;
        so_far.dropped += tally.dropped + tally.unsent;
        // Of several threads the worst: near enough while it runs, and no histogram is copied under the loops' feet.
        so_far.p99 = so_far.p99.max(Duration::from_nanos(tally.latency_ns.value_at_quantile(0.99)));
    }
    let passed = now.min(window.end).saturating_duration_since(window.counted).as_secs_f64();
    if passed > 0.0 {
        so_far.per_s = answered as f64 / passed;
    }
    so_far
}

//! The generator against a small server that does as it is told: who sees a stall, and what is counted.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use clap::Command;
use prost::Message;
use tonic::{Request, Response, Status, Streaming};

use super::*;
use crate::cli::{
    bench::generator::Measured,
    proto::{
        PredictRequest, PredictResponse, RecordOutcomeRequest, RecordOutcomeResponse, RecordOutcomesResponse, Timing,
        inference_server::{Inference, InferenceServer},
    },
};

/// Answers at once, but for a stall: what comes between two moments after the first call is answered at its end.
struct Stalling {
    calls: AtomicU64,
    begun: std::sync::OnceLock<Instant>,
    stall: std::ops::Range<Duration>,
    /// Every call of this number is refused; none where it is 0.
    refused: u64,
}

#[tonic::async_trait]
impl Inference for Stalling {
    async fn predict(&self, _: Request<PredictRequest>) -> Result<Response<PredictResponse>, Status> {
        let number = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        let begun = *self.begun.get_or_init(Instant::now);
        if self.stall.contains(&begun.elapsed()) {
            tokio::time::sleep_until((begun + self.stall.end).into()).await;
        }
        if self.refused > 0 && number.is_multiple_of(self.refused) {
            return Err(Status::unavailable("busy"));
        }
        let timing = Some(Timing { queue_us: 1, compute_us: 2, batch_rows: 3 });
        Ok(Response::new(PredictResponse { timing, ..Default::default() }))
    }

    async fn record_outcome(
        &self,
        _: Request<RecordOutcomeRequest>,
    ) -> Result<Response<RecordOutcomeResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    type RecordOutcomesStream = tokio_stream::Empty<Result<RecordOutcomesResponse, Status>>;

    async fn record_outcomes(
        &self,
        _: Request<Streaming<RecordOutcomeRequest>>,
    ) -> Result<Response<Self::RecordOutcomesStream>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

const NO_STALL: std::ops::Range<Duration> = Duration::ZERO..Duration::ZERO;
const STALL: Duration = Duration::from_millis(200);
const MEASURED: Duration = Duration::from_millis(600);

/// Serves until the end of the test, on a thread that the generator does not share.
fn serve(stall: std::ops::Range<Duration>, refused: u64) -> String {
    let stalling = Stalling { calls: AtomicU64::new(0), begun: std::sync::OnceLock::new(), stall, refused };
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let serving = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let incoming = tonic::transport::server::TcpIncoming::from(listener);
            let server = tonic::transport::Server::builder().add_service(InferenceServer::new(stalling));
            server.serve_with_incoming(incoming).await.unwrap();
        });
    };
    std::thread::Builder::new().name("stalling".into()).spawn(serving).unwrap();
    address
}

/// The server is not told of the timeout: this one would answer a word of its own.
fn job(address: &str, timeout: Duration) -> Job {
    let target = Target {
        head: wire::head(address, Protocol::Sconce.method(), None).unwrap(),
        address: address.into(),
        timeout,
        read: Seen::of_sconce,
    };
    Job {
        target: Arc::new(target),
        messages: vec![wire::frame(&PredictRequest { model: "m".into(), ..Default::default() })],
        threads: 1,
        warm_up: Duration::ZERO,
        measured: MEASURED,
        in_flight_max: 1000,
    }
}

async fn measured(job: Job, pace: Pace, connections: usize) -> Measured {
    let mut interrupts = signal(SignalKind::user_defined1()).unwrap();
    generator::run(&Arc::new(job), Load { pace, connections }, &mut interrupts, |_| {}).await.unwrap()
}

fn open(rate: f64) -> Pace {
    Pace::Open { rate, arrivals: Arrivals::Constant }
}

/// Answers that took longer than this.
fn slower(measured: &Measured, than: Duration) -> u64 {
    let latency = &measured.tally.latency_ns;
    latency.count_between(than.as_nanos() as u64, u64::MAX)
}

#[tokio::test]
async fn a_stall_is_seen_with_every_call_that_was_due_meanwhile() {
    let begin = Duration::from_millis(200);
    let seen = measured(job(&serve(begin..begin + STALL, 0), Duration::from_secs(10)), open(1000.0), 4).await;
    let (sent, answered) = (seen.tally.sent, seen.tally.answered);
    assert_eq!((sent + seen.tally.unsent, answered), (600, sent), "asking does not stop while the server does");
    let slow = slower(&seen, STALL / 10);
    assert!(slow >= 150, "{slow} calls are slow, and 180 were due in the first nine tenths of the stall");
    let half = slower(&seen, STALL / 2);
    assert!(half >= 80, "{half} calls are very slow, and 100 were due in its first half");

    // The omission that the open loop is for: a caller who waits asks once in all that time.
    let job = job(&serve(begin..begin + STALL, 0), Duration::from_secs(10));
    let seen = measured(job, Pace::Closed { in_flight: 1 }, 1).await;
    let slow = slower(&seen, STALL / 2);
    assert!((1..10).contains(&slow), "{slow} slow calls, of which the stall is one");
}

#[tokio::test]
async fn a_call_that_finds_no_room_is_dropped_and_counted() {
    let begin = Duration::from_millis(100);
    let mut job = job(&serve(begin..begin + STALL, 0), Duration::from_secs(10));
    job.in_flight_max = 20;
    let tally = measured(job, open(1000.0), 4).await.tally;
    assert_eq!(tally.sent + tally.dropped + tally.unsent, 600, "every call that was due is somewhere");
    assert!(tally.dropped > 100, "{} dropped", tally.dropped);
    assert_eq!(tally.answered, tally.sent);
}

#[tokio::test]
async fn a_call_that_takes_too_long_fails_on_this_side_whatever_the_server_does() {
    let job = job(&serve(Duration::ZERO..Duration::from_secs(3600), 0), Duration::from_millis(50));
    let tally = measured(job, Pace::Closed { in_flight: 4 }, 2).await.tally;
    assert_eq!((tally.answered, tally.failed), (0, tally.sent));
    assert!(tally.failures.keys().all(|(code, _)| code == "DEADLINE_EXCEEDED"), "{:?}", tally.failures);
}

#[tokio::test]
async fn several_threads_share_callers_and_answers_are_read() {
    let mut job = job(&serve(NO_STALL, 10), Duration::from_secs(10));
    job.threads = 2;
    let tally = measured(job, Pace::Closed { in_flight: 5 }, 3).await.tally;
    assert_eq!(tally.sent, tally.answered + tally.failed);
    assert!(tally.failed * 9 <= tally.answered + 9 && tally.failed * 9 + 9 >= tally.answered, "every tenth");
    let busy = &tally.failures[&("UNAVAILABLE".to_string(), String::new())];
    assert_eq!((busy.count, busy.message.as_str()), (tally.failed, "busy"));
    assert_eq!((tally.batches, tally.batch_rows), (tally.answered, 3 * tally.answered));
}

#[tokio::test]
async fn an_interrupt_ends_it_with_what_came_until_then() {
    let mut job = job(&serve(NO_STALL, 0), Duration::from_secs(10));
    job.measured = Duration::from_secs(3600);
    let mut interrupts = signal(SignalKind::user_defined2()).unwrap();
    let mut shown = 0;
    let begun = Instant::now();
    let interrupt = |so_far: generator::SoFar| {
        shown += 1;
        if so_far.per_s > 0.0 && shown == 3 {
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::USR2).unwrap();
        }
    };
    let load = Load { pace: open(500.0), connections: 2 };
    let seen = generator::run(&Arc::new(job), load, &mut interrupts, interrupt).await.unwrap();
    assert!(seen.interrupted && seen.tally.answered > 0);
    assert!(seen.time < begun.elapsed() && seen.time > Duration::from_millis(250), "{:?}", seen.time);
}

#[tokio::test]
async fn where_nobody_listens_it_says_so() {
    let job = Arc::new(job("127.0.0.1:1", Duration::from_secs(10)));
    let mut interrupts = signal(SignalKind::user_defined1()).unwrap();
    let load = Load { pace: open(500.0), connections: 2 };
    let error = generator::run(&job, load, &mut interrupts, |_| {}).await.err().unwrap();
    assert!(format!("{error:#}").contains("cannot reach 127.0.0.1:1"), "{error:#}");
}

#[test]
fn an_answer_of_the_real_message_is_read() {
    let answer = PredictResponse { timing: Some(Timing::default()), ..Default::default() };
    assert!(Seen::of_sconce(&answer.encode_to_vec()).unwrap().timing.is_some());
}

#[derive(clap::Parser)]
struct Line {
    #[command(flatten)]
    args: BenchArgs,
}

fn parsed(arguments: &[&str]) -> Result<BenchArgs, String> {
    let line = <Line as clap::Parser>::try_parse_from([&["bench", "m"], arguments].concat());
    line.map(|line| line.args).map_err(|error| error.to_string())
}

#[test]
fn loads_follow_from_what_is_asked() {
    let names = |arguments: &[&str]| {
        let loads = parsed(arguments).unwrap().loads();
        loads.iter().map(Load::to_string).collect::<Vec<_>>()
    };
    assert_eq!(names(&[]), ["1 in flight over 1", "8 in flight over 8", "64 in flight over 8"]);
    assert_eq!(names(&["--concurrency=1000,4", "--connections=2"]), ["1000 in flight over 2", "4 in flight over 2"]);
    assert_eq!(names(&["--concurrency=1000"]), ["1000 in flight over 10"]);
    assert_eq!(names(&["--rate=500,0.5", "--arrivals=poisson"]), ["500/s Poisson over 8", "0.5/s Poisson over 8"]);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let refused = |arguments: &[&str], word: &str| {
        let text = parsed(arguments).err().unwrap_or_else(|| panic!("{arguments:?} is taken"));
        assert!(text.contains(word), "{arguments:?}: {text}");
    };
    refused(&["--rate=2e6"], "at most 1000000");
    refused(&["--rate=0"], "write 500");
    refused(&["--rate=nan"], "write 500");
    refused(&["--rate=5", "--concurrency=5"], "--concurrency");
    refused(&["--arrivals=poisson"], "--rate");
    refused(&["--duration=0s"], "write 10s");
    refused(&["--duration=2h"], "at most");
    refused(&["--timeout=0s"], "write 50ms");
    refused(&["--concurrency=0"], "0");
    refused(&["--data=x.csv", "--example"], "--example");
    BenchArgs::augment_args(Command::new("bench")).debug_assert();
}

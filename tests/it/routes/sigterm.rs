//! SIGTERM while there is work: a load that does not stop, a swap, a promote that waits. What is accepted is answered, and the
//! end comes in order and in time.

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::process::Signal;
use tokio::task::JoinHandle;
use tonic::{Code, Status, transport::Endpoint};

use super::{OPTIONS, asked, promote, written};
use crate::{
    harness::{
        PATIENCE, Server,
        adders::{ADDER, adders, answer_of, answering, predict, publish_adder, version},
        call, channel, eventually, fixture, http, process, reason,
        tensors::{Form, floats},
        versions::publish,
        was_given_up,
    },
    operators::gated,
    proto::{inference_client::InferenceClient, *},
};

/// Balancers have this long to turn away.
const DELAY: Duration = Duration::from_millis(2_000);
/// What a call may need from its caller to the server, on a busy machine in a debug build: it is sent before the delay ends and
/// comes when it has ended.
const WAY: Duration = Duration::from_millis(1_000);
const GRACE: Duration = Duration::from_secs(20);

/// A call that was not answered.
struct Refused {
    begun: Instant,
    status: Status,
}

/// Callers who go on until they are refused: four over connections that stay, one over a new one for each call.
struct Load {
    answers: Arc<AtomicU64>,
    callers: Vec<JoinHandle<Refused>>,
}

fn options() -> [String; 3] {
    let (delay, grace) = (DELAY.as_millis(), GRACE.as_secs());
    [OPTIONS[0].to_owned(), format!("--pre-stop-delay={delay}ms"), format!("--grace={grace}s")]
}

// === impl Load ===

impl Load {
    async fn begin(server: &Server) -> Self {
        let answers = Arc::new(AtomicU64::new(0));
        let mut callers = Vec::new();
        for place in 0..5 {
            let (answers, port) = (answers.clone(), server.ports.grpc);
            let mut kept = (place > 0).then_some(server.inference().await);
            callers.push(tokio::spawn(async move {
                loop {
                    let begun = Instant::now();
                    let answer = match &mut kept {
                        Some(client) => answer_of(client, None).await,
                        None => call_anew(port).await,
                    };
                    match answer {
                        Ok(_) => answers.fetch_add(1, Ordering::Relaxed),
                        Err(status) => return Refused { begun, status },
                    };
                }
            }));
        }
        let load = Self { answers, callers };
        load.more(20).await;
        load
    }

    fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }

    /// Waits for that many more answers.
    async fn more(&self, count: u64) {
        let enough = self.answers() + count;
        eventually("the load goes on", PATIENCE, async || (self.answers() >= enough).then_some(())).await;
    }

    /// Waits until all are refused, as only those may be who come when the delay after the signal is over.
    async fn assert_refused_late(self, signalled: Instant) {
        for (place, caller) in self.callers.into_iter().enumerate() {
            let Refused { begun, status } = caller.await.expect("no wrong answer");
            let after = begun.saturating_duration_since(signalled);
            assert!(after + WAY >= DELAY, "caller {place}, {after:?} after the signal: {status}");
            let said = (status.code(), reason(&status));
            // The server's own refusal, or the client's of a port where nobody listens or a connection that has ended.
            let expected = said == (Code::Unavailable, "DRAINING".into()) || (said.1.is_empty() && was_closed(&status));
            assert!(expected, "caller {place}: {said:?}: {status:?}");
        }
    }
}

async fn call_anew(port: u16) -> Result<u64, Status> {
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).expect("an address");
    let channel = endpoint.connect().await.map_err(|error| Status::unavailable(error.to_string()))?;
    answer_of(&mut InferenceClient::new(channel), None).await
}

fn was_closed(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled) || was_given_up(status)
}

/// Sends SIGTERM, and waits until `/readyz` says no, which it does long before the delay is over.
async fn terminate(server: &Server) -> Instant {
    let signalled = Instant::now();
    process::kill(server.pid(), Signal::TERM);
    eventually("/readyz says no", PATIENCE, async || {
        (http::get(server.ports.http, "/readyz").await.ok()?.0 == 503).then_some(())
    })
    .await;
    assert!(signalled.elapsed() < DELAY, "it said no only after {:?}", signalled.elapsed());
    signalled
}

/// Within the delay and the grace, and as told.
async fn ends_well(server: &Server, signalled: Instant) {
    let status = eventually("it ends", 2 * PATIENCE, async || server.exit_status()).await;
    let took = signalled.elapsed();
    assert!(status.success(), "it ended with {status}");
    assert!(took >= DELAY, "it ended before the delay was over, after {took:?}");
    assert!(took < DELAY + GRACE, "it ended after {took:?}, with nothing left to wait for");
    assert!(server.log().contains("stopped"), "it says that it ended in order");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_no_call_fails_until_the_delay_is_over() {
    let options = options();
    let server = Server::start(adders(1..=1), &options.each_ref().map(String::as_str)).await;
    let load = Load::begin(&server).await;
    let signalled = terminate(&server).await;
    let before = load.answers();
    load.more(20).await;
    let meanwhile = load.answers.clone();
    load.assert_refused_late(signalled).await;
    eprintln!("{} answers after health said no", meanwhile.load(Ordering::Relaxed) - before);
    ends_well(&server, signalled).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_accepted_during_the_delay_is_finished_after_it() {
    let slow = fs::read(fixture("onnx/slow.onnx")).expect("a fixture");
    let store = adders(1..=1).file("slow/model.yaml", "batching: { queue_timeout: 60s, max_queue: { rows: 10000 } }\n");
    publish(&store.path().join("slow"), "1.0.0", &[("model.onnx", &slow)], "").expect("a version");
    // Shorter than the work, also where each call has a core.
    const SHORT: Duration = Duration::from_millis(1_000);
    let server = Server::start(store, &["--pre-stop-delay=1s", "--grace=120s"]).await;
    let signalled = terminate(&server).await;
    // Seconds of work each: some of it has not begun when the delay is over.
    let calls: Vec<_> = (0..3)
        .map(|_| {
            let inputs = vec![floats("x", &[800, 8], &[0.5; 6_400]).to_sconce(Form::Raw)];
            let request = PredictRequest { model: "slow".into(), inputs, ..Default::default() };
            let port = server.ports.grpc;
            tokio::spawn(async move {
                let answer = InferenceClient::new(channel(port).await).predict(call(request)).await;
                (answer, Instant::now())
            })
        })
        .collect();
    let accepted = eventually("all are accepted", PATIENCE, async || {
        let (_, text) = http::get(server.ports.metrics, "/metrics").await.ok()?;
        text.contains("sconce_requests_in_flight 3").then_some(Instant::now())
    })
    .await;
    assert!(accepted < signalled + SHORT, "this machine is too slow to tell");
    let mut last = accepted;
    for call in calls {
        let (answer, at) = call.await.expect("no panic");
        answer.expect("what was accepted is answered");
        last = last.max(at);
    }
    eprintln!("the last of them was answered {:.1?} after the signal", last - signalled);
    assert!(last > signalled + SHORT, "there was too little work to tell");
    let status = eventually("it ends", PATIENCE, async || server.exit_status()).await;
    assert!(status.success(), "it ended with {status}");
}

/// A server whose children wait at a gate from now on.
async fn at_the_gate() -> (Server, PathBuf) {
    let store = adders(1..=2);
    let (gate, child) = gated(&store);
    fs::write(&gate, "").expect("a file");
    let mut options = options().to_vec();
    options.push(child);
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let server = Server::start(store, &options).await;
    fs::remove_file(&gate).expect("it is there");
    (server, gate)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_is_being_opened_holds_nothing_up() {
    let (server, gate) = at_the_gate().await;
    let load = Load::begin(&server).await;
    publish_adder(&server.store, 3);
    server.reaches(ADDER, &version(3), VersionState::Loading).await;
    let child = eventually("a child waits at the gate", PATIENCE, async || {
        process::children(server.pid()).into_iter().find(|pid| command_line(*pid).contains("child.sh"))
    })
    .await;
    let signalled = terminate(&server).await;
    load.assert_refused_late(signalled).await;
    ends_well(&server, signalled).await;
    // A child that comes to work now finds that nobody is there to work for.
    fs::write(&gate, "").expect("a file");
    eventually("the child ends, too", PATIENCE, async || command_line(child).is_empty().then_some(())).await;
}

/// Empty for a process that has ended.
fn command_line(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swaps_go_on_until_the_delay_is_over_and_no_call_notices() {
    let options = options();
    let server = Server::start(adders(1..=1), &options.each_ref().map(String::as_str)).await;
    let load = Load::begin(&server).await;
    publish_adder(&server.store, 2);
    let signalled = terminate(&server).await;
    let client = server.inference().await;
    eventually("the swap is done all the same", DELAY, async || {
        (predict(client.clone(), 1).await.expect("an answer") == 2).then_some(())
    })
    .await;
    load.assert_refused_late(signalled).await;
    ends_well(&server, signalled).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promote_that_waits_is_answered_and_holds_at_the_next_start() {
    let (server, gate) = at_the_gate().await;
    let load = Load::begin(&server).await;
    promote(&mut server.admin().await, 2, asked("first")).await.expect("it is right");
    publish_adder(&server.store, 3);
    server.reaches(ADDER, &version(3), VersionState::Loading).await;
    let mut admin = server.admin().await;
    let waiting = tokio::spawn(async move { promote(&mut admin, 3, asked("waiting")).await });
    eventually("it is written", PATIENCE, async || (written(&server.store).revision == Some(2)).then_some(())).await;
    let signalled = terminate(&server).await;
    let answer = waiting.await.expect("no panic").expect("whoever waits is answered");
    assert_eq!((answer.revision, answer.settled()), (2, Settled::Pending), "{answer:?}");
    assert!(answer.message.contains("going away"), "{answer:?}");
    assert!(signalled.elapsed() < DELAY + GRACE, "it was answered after {:?}", signalled.elapsed());
    load.assert_refused_late(signalled).await;
    ends_well(&server, signalled).await;

    fs::write(&gate, "").expect("a file");
    let store = server.into_store();
    assert_eq!(written(&store).history.last().map(|entry| entry.request_id.as_str()), Some("waiting"));
    let server = Server::start(store, &OPTIONS).await;
    assert_eq!(answering(&server, None).await.expect("an answer"), 3, "what was acknowledged holds");
    let again = promote(&mut server.admin().await, 3, asked("waiting")).await.expect("it was done");
    assert_eq!((again.repeated, again.revision, again.settled()), (true, 2, Settled::Ready), "{again:?}");
}

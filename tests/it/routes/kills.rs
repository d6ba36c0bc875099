//! The server is killed at any moment while operators promote: what was acknowledged is there, and nothing is half there.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::process::Signal;
use sconce::model::{HISTORY_MAX, Route};
use tokio::task::JoinHandle;
use tonic::Status;

use super::{OPTIONS, asked, promote, written};
use crate::{
    harness::{
        PATIENCE, Server, Store,
        adders::{ADDER, adders, answer_of, answering},
        eventually, process, reason,
    },
    proto::*,
};

/// Without a line for each call.
const QUIET: [&str; 2] = [OPTIONS[0], "--log-level=warn,sconce=info"];
const PROMOTES: usize = 100;
const KILLS: usize = 20;

/// What is known from answers alone.
#[derive(Default)]
struct Acknowledged {
    revision: u64,
    /// In the order of the answers.
    request_ids: Vec<String>,
}

/// How often a killed promote had been answered, was only written, and was not even that.
#[derive(Debug, Default)]
struct Tally {
    answered: usize,
    written: usize,
    lost: usize,
}

/// One who calls all the time. Every call is answered until the server is killed.
struct Caller {
    is_killed: Arc<AtomicBool>,
    task: JoinHandle<usize>,
}

// === impl Caller ===

impl Caller {
    async fn begin(server: &Server) -> Self {
        let mut client = server.inference().await;
        let is_killed = Arc::new(AtomicBool::new(false));
        let killed = is_killed.clone();
        let task = tokio::spawn(async move {
            let mut answers = 0;
            loop {
                match answer_of(&mut client, None).await {
                    Ok(_) => answers += 1,
                    Err(_) if killed.load(Ordering::Acquire) => return answers,
                    Err(status) => panic!("a live server does not answer: {status}"),
                }
            }
        });
        Self { is_killed, task }
    }

    async fn end(self) -> usize {
        self.task.await.expect("every call was answered rightly")
    }
}

// === impl Acknowledged ===

impl Acknowledged {
    fn take(&mut self, request_id: &str, answer: &ChangeResponse) {
        assert_eq!(answer.revision, self.revision + 1, "{request_id}: one promote is one revision: {answer:?}");
        self.revision = answer.revision;
        self.request_ids.push(request_id.to_owned());
    }

    /// Whether the store holds all that was acknowledged.
    fn assert_in(&self, route: &Route, what: &str) {
        let revision = route.revision.expect("the server wrote it");
        assert!(revision >= self.revision, "{what}: revision {} was acknowledged: {route:?}", self.revision);
        assert!(revision <= self.revision + 1, "{what}: one promote alone was under way: {route:?}");
        let entries: Vec<&str> = route.history.iter().map(|entry| entry.request_id.as_str()).collect();
        // The one under way may have pushed the oldest out.
        for request_id in self.request_ids.iter().rev().take(HISTORY_MAX - 1) {
            let count = entries.iter().filter(|entry| *entry == request_id).count();
            assert_eq!(count, 1, "{what}: the acknowledged promote {request_id} is in the history: {entries:?}");
        }
    }
}

/// What lies in the folder of the model beside its versions. Nothing but the route is to be taken for anything.
fn leftovers(store: &Store) -> Vec<String> {
    let names = std::fs::read_dir(store.path().join(ADDER)).expect("a folder").flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| !name.starts_with("1.0.") && name != "route.yaml" && name != ".sconce").collect()
}

/// Promotes, and kills the server after that time.
async fn promote_and_kill(
    server: &Server,
    caller: &Caller,
    number: u64,
    request_id: &str,
    after: Duration,
) -> Result<ChangeResponse, Status> {
    let mut admin = server.admin().await;
    let request_id = request_id.to_owned();
    let call = tokio::spawn(async move { promote(&mut admin, number, asked(&request_id)).await });
    let (pid, is_killed) = (server.pid(), caller.is_killed.clone());
    // A thread, because the runtime's timer rounds up to more than a promote takes.
    #[expect(clippy::disallowed_methods, reason = "nothing is waited for: the moment is what is drawn")]
    let kill = tokio::task::spawn_blocking(move || {
        std::thread::sleep(after);
        is_killed.store(true, Ordering::Release);
        process::kill(pid, Signal::KILL);
    });
    let answer = call.await.expect("no panic");
    kill.await.expect("no panic");
    eventually("the killed server is gone", PATIENCE, async || server.exit_status()).await;
    answer
}

/// Starts the server again, and asks for the same as before it was killed: it stands in the route once.
async fn restart_and_repeat(server: Server, number: u64, request_id: &str, known: &mut Acknowledged) -> Server {
    let store = server.into_store();
    let route = written(&store);
    known.assert_in(&route, request_id);
    let left = leftovers(&store);
    assert!(left.is_empty(), "{request_id}: something is left behind: {left:?}");
    let was_written = route.history.iter().any(|entry| entry.request_id == request_id);
    let server = Server::start(store, &QUIET).await;
    let shown = server.describe(ADDER).await;
    let (shown, message) = (shown.route.expect("a route"), shown.summary.expect("a summary").message);
    assert_eq!(
        (Some(shown.revision), shown.stable, message.as_str()),
        (route.revision, route.stable.to_string(), ""),
        "{request_id}: what is served after the restart is what is written"
    );
    let again = promote(&mut server.admin().await, number, asked(request_id)).await.expect("it may be asked again");
    assert_eq!(again.repeated, was_written, "{request_id}: {again:?}");
    if known.request_ids.last().is_none_or(|last| last != request_id) {
        known.take(request_id, &again);
    }
    let route = written(&server.store);
    known.assert_in(&route, request_id);
    assert_eq!(route.revision, Some(known.revision), "{request_id}: the repeat wrote nothing");
    assert_eq!(answering(&server, None).await.expect("an answer"), number, "{request_id} holds");
    server
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_any_moment_loses_nothing_that_was_acknowledged() {
    let seed = std::env::var("SCONCE_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("SCONCE_TEST_SEED={seed} kills at the same moments");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut server = Server::start(adders(1..=2), &QUIET).await;
    let mut caller = Caller::begin(&server).await;
    let (mut known, mut tally, mut answers) = (Acknowledged::default(), Tally::default(), 0);
    let mut usual = Duration::from_millis(20);
    // Version 2 answers at first, so each of these is a change.
    for place in 0..PROMOTES {
        let (number, request_id) = (1 + place as u64 % 2, format!("promote-{place}"));
        let is_killed = (place + 1) % (PROMOTES / KILLS) == 0;
        if !is_killed {
            let mut admin = server.admin().await;
            let begun = Instant::now();
            let answer = promote(&mut admin, number, asked(&request_id)).await.expect("it is right");
            usual = (usual + begun.elapsed()) / 2;
            assert_eq!(answer.settled(), Settled::Ready, "{request_id}: {answer:?}");
            known.take(&request_id, &answer);
            assert_eq!(answering(&server, None).await.expect("an answer"), number, "{request_id} holds");
            continue;
        }
        let after = usual.mul_f64(1.5 * random.f64());
        let answer = promote_and_kill(&server, &caller, number, &request_id, after).await;
        match &answer {
            Ok(answer) => known.take(&request_id, answer),
            // The client's own word for a connection that broke; a refusal of the server would have a reason.
            Err(status) => assert_eq!(reason(status), "", "{request_id} was refused: {status}"),
        }
        let is_written = written(&server.store).history.iter().any(|entry| entry.request_id == request_id);
        *match (answer, is_written) {
            (Ok(_), _) => &mut tally.answered,
            (Err(_), true) => &mut tally.written,
            (Err(_), false) => &mut tally.lost,
        } += 1;
        answers += caller.end().await;
        server = restart_and_repeat(server, number, &request_id, &mut known).await;
        caller = Caller::begin(&server).await;
    }
    assert_eq!(known.revision, PROMOTES as u64, "each promote was written once: {:?}", known.request_ids);
    let route = written(&server.store);
    assert_eq!(route.history.len(), PROMOTES.min(HISTORY_MAX));
    eprintln!("{PROMOTES} promotes, about {usual:.1?} each; killed ones: {tally:?}; {answers} answers meanwhile");
    assert!(answers > 0, "the caller was alive");
    server.assert_unharmed().await;
    caller.is_killed.store(true, Ordering::Release);
    drop(server);
    caller.end().await;
}

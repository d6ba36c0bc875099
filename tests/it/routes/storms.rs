//! Many operators and machines change one model's route at once and without a pause: whoever is refused is told why, callers
//! of the model notice nothing, and the server is afterwards what it was before.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tonic::{Code, Status, transport::Channel};

use super::{OPTIONS, asked, promote, route_file, written};
use crate::{
    harness::{
        PATIENCE, Server,
        adders::{ADDER, adders, answering, predict, version},
        assert_discreet, call, eventually,
        open_loop::OpenLoop,
        process, reason,
    },
    proto::{admin_client::AdminClient, *},
};

const CALLERS: usize = 32;
/// Of each caller: 32,768 in all. Without optimisation reading a route of a hundred changes takes the server several
/// milliseconds a call, and the whole storm minutes: a sixteenth of it must do there.
const CALLS: usize = if cfg!(debug_assertions) { 64 } else { 1024 };
/// After so many of them everything has been done once: a tenth, or what takes as long where there are few.
const FIRST: usize = if CALLS / 10 > 32 { CALLS / 10 } else { 32 };
const VERSIONS: u64 = 4;
/// Calls of Predict a second, meanwhile.
const RATE: f64 = 50.0;

/// What it may hold more of after the storm than after its first part. Its memory goes up and down by half of this from one
/// storm to the next, as the allocator keeps pages and gives them back; a servable or a route that stays for each change would
/// be more after a whole storm.
const MORE_THREADS: usize = 8;
const MORE_FILES: usize = 8;
const MORE_MEMORY: u64 = 128 << 20;

/// What a server has of the system.
#[derive(Clone, Copy, Debug)]
struct Held {
    threads: usize,
    files: usize,
    memory: u64,
}

/// Reason and code, as docs/errors.md has them.
struct Documented(BTreeSet<(String, String)>);

/// One who asks for one thing after another.
struct Caller {
    name: String,
    admin: AdminClient<Channel>,
    random: fastrand::Rng,
    last: Option<Done>,
    seen: Arc<Mutex<Seen>>,
}

/// A change that was made.
#[derive(Clone)]
struct Done {
    ask: Ask,
    request_id: String,
    revision: u64,
}

#[derive(Clone, Copy, Debug)]
enum Ask {
    Promote(u64),
    Load(u64),
    Unload(u64),
}

/// What all callers were answered.
#[derive(Default)]
struct Seen {
    /// Of the changes that were written.
    revisions: Vec<u64>,
    nothing_to_do: usize,
    repeated: usize,
    refused: BTreeMap<String, usize>,
}

// === impl Documented ===

impl Documented {
    fn read() -> Self {
        let page = include_str!("../../../docs/errors.md");
        let rows =
            page.lines().map(|line| line.split('|').map(|cell| cell.trim().trim_matches('`')).collect::<Vec<_>>());
        let rows = rows.filter(|cells| cells.len() >= 4).map(|cells| (cells[1].to_owned(), cells[2].to_owned()));
        Self(rows.collect())
    }

    fn assert_has(&self, what: &str, status: &Status) {
        let code = match status.code() {
            Code::Aborted => "ABORTED",
            Code::FailedPrecondition => "FAILED_PRECONDITION",
            Code::NotFound => "NOT_FOUND",
            Code::Unavailable => "UNAVAILABLE",
            other => panic!("{what}: {other:?} is no answer to an operator who asks rightly: {status}"),
        };
        let row = (reason(status), code.to_owned());
        assert!(self.0.contains(&row), "{what}: docs/errors.md lacks {row:?}: {status}");
        assert_discreet(what, status);
    }
}

// === impl Caller ===

impl Caller {
    async fn storm(mut self, calls: usize, documented: &Documented) -> Self {
        for number in 0..calls {
            let again = self.last.clone().filter(|_| self.random.u8(..16) == 0);
            let (ask, request_id) = match &again {
                Some(done) => (done.ask, done.request_id.clone()),
                None => (self.any(), format!("{}-{number}-{}", self.name, self.random.u32(..))),
            };
            // Most do not wait: the storm is of writes.
            let asked = Asked { no_wait: self.random.u8(..8) > 0, ..asked(&request_id) };
            let answer = self.ask(ask, asked).await;
            let mut seen = self.seen.lock().expect("no holder panics");
            match answer {
                Err(status) => {
                    documented.assert_has(&format!("{ask:?}"), &status);
                    *seen.refused.entry(reason(&status)).or_default() += 1;
                }
                Ok(answer) if answer.repeated => {
                    let done = again.unwrap_or_else(|| panic!("{request_id} was never asked for before: {answer:?}"));
                    assert_eq!(answer.revision, done.revision, "{request_id}: {answer:?}");
                    seen.repeated += 1;
                }
                Ok(answer) if answer.time.is_empty() => seen.nothing_to_do += 1,
                Ok(answer) => {
                    if let Some(done) = again {
                        let forgotten = done.revision + sconce::model::HISTORY_MAX as u64;
                        assert!(answer.revision > forgotten, "{request_id} was written twice: {answer:?}");
                    }
                    seen.revisions.push(answer.revision);
                    self.last = Some(Done { ask, request_id, revision: answer.revision });
                }
            }
        }
        self
    }

    fn any(&mut self) -> Ask {
        let number = self.random.u64(1..=VERSIONS);
        match self.random.u8(..3) {
            0 => Ask::Promote(number),
            1 => Ask::Load(number),
            _ => Ask::Unload(number),
        }
    }

    async fn ask(&mut self, ask: Ask, asked: Asked) -> Result<ChangeResponse, Status> {
        let (model, asked) = (ADDER.to_owned(), Some(asked));
        let answer = match ask {
            Ask::Promote(number) => {
                let request = PromoteRequest { model, version: version(number), asked };
                self.admin.promote(call(request)).await?
            }
            Ask::Load(number) => {
                let request = LoadVersionRequest { model, version: version(number), asked };
                self.admin.load_version(call(request)).await?
            }
            Ask::Unload(number) => {
                let request = UnloadVersionRequest { model, version: version(number), asked };
                self.admin.unload_version(call(request)).await?
            }
        };
        Ok(answer.into_inner())
    }
}

/// Lets all callers storm at once, and returns them.
async fn storm(callers: Vec<Caller>, calls: usize, documented: &Arc<Documented>) -> Vec<Caller> {
    let storming = callers.into_iter().map(|caller| {
        let documented = documented.clone();
        tokio::spawn(async move { caller.storm(calls, &documented).await })
    });
    let mut callers = Vec::new();
    for caller in storming.collect::<Vec<_>>() {
        callers.push(caller.await.expect("every answer is a right one"));
    }
    callers
}

/// Brings the model where the same is loaded each time, and returns the number of writes that took.
async fn calm(server: &Server, round: usize) -> Vec<u64> {
    let mut admin = server.admin().await;
    let mut revisions = Vec::new();
    let mut take = |answer: ChangeResponse| {
        if !answer.time.is_empty() {
            revisions.push(answer.revision);
        }
    };
    for number in [1, 2] {
        take(
            promote(&mut admin, number, asked(&format!("calm-{round}-{number}"))).await.expect("nobody else is there"),
        );
    }
    for number in (1..=VERSIONS).filter(|number| *number > 2) {
        let request = UnloadVersionRequest { model: ADDER.into(), version: version(number), asked: Some(asked("")) };
        take(admin.unload_version(call(request)).await.expect("nobody needs it").into_inner());
    }
    // The highest is what model.yaml selects.
    for number in 3..VERSIONS {
        server.reaches(ADDER, &version(number), VersionState::Available).await;
    }
    server.settled().await;
    revisions
}

fn held(server: &Server) -> Held {
    let threads = std::fs::read_dir(format!("/proc/{}/task", server.pid())).expect("it lives").count();
    let files = process::open_files(server.pid()).len();
    Held { threads, files, memory: process::resident_bytes(server.pid()) }
}

/// What it holds once the threads that have nothing to do are gone.
async fn held_at_rest(server: &Server) -> Held {
    /// Longer than an idle thread of the runtime lives.
    const STILL: Duration = Duration::from_secs(11);
    let mut last = held(server);
    let mut since = Instant::now();
    eventually("the server rests", 2 * PATIENCE, async || {
        let now = held(server);
        if (now.threads, now.files) != (last.threads, last.files) {
            (last, since) = (now, Instant::now());
        }
        (since.elapsed() >= STILL).then_some(now)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_changes_at_once_leave_the_server_as_it_was() {
    // A connection that is closed for its age while a call is on its way is none of this test's business.
    let options = [OPTIONS[0], "--log-level=warn", "--max-connection-age=1h"];
    let server = Server::start(adders(1..=VERSIONS), &options).await;
    let (documented, seen) = (Arc::new(Documented::read()), Arc::new(Mutex::new(Seen::default())));
    let mut callers = Vec::new();
    for place in 0..CALLERS {
        let (name, admin) = (format!("caller-{place}"), server.admin().await);
        callers.push(Caller {
            name,
            admin,
            random: fastrand::Rng::with_seed(place as u64),
            last: None,
            seen: seen.clone(),
        });
    }
    let client = server.inference().await;
    let load = OpenLoop::begin(RATE, move |number| predict(client.clone(), number)).expect("a timer");
    let begun = Instant::now();
    callers = storm(callers, FIRST, &documented).await;
    let mut calmed = calm(&server, 0).await;
    let before = held_at_rest(&server).await;
    let first = begun.elapsed();
    callers = storm(callers, CALLS - FIRST, &documented).await;
    let took = begun.elapsed();
    calmed.extend(calm(&server, 1).await);
    let after = held_at_rest(&server).await;
    let record = load.end().await;

    let seen = std::mem::take(&mut *seen.lock().expect("no holder panics"));
    eprintln!(
        "{} calls in {took:.1?} ({first:.1?} for the first {FIRST} of each): {} written, {} repeated, {} had nothing to do, refused: {:?}; \
         {} answers meanwhile; held {before:?}, then {after:?}",
        CALLERS * CALLS,
        seen.revisions.len(),
        seen.repeated,
        seen.nothing_to_do,
        seen.refused,
        record.answered.len(),
    );
    assert!(
        record.failed.is_empty(),
        "callers of the model noticed: {:?}",
        &record.failed[..record.failed.len().min(5)]
    );
    let mut revisions = [seen.revisions, calmed].concat();
    revisions.sort_unstable();
    assert_eq!(revisions, (1..=revisions.len() as u64).collect::<Vec<_>>(), "each revision is one answered change");
    let route = written(&server.store);
    assert_eq!(route.revision, Some(revisions.len() as u64));
    assert_eq!(route.history.len(), sconce::model::HISTORY_MAX, "the history is bounded");
    let bytes = std::fs::metadata(route_file(&server.store)).expect("it is there").len();
    assert!(bytes < 64 << 10, "route.yaml has {bytes} bytes");
    assert!(after.threads <= before.threads + MORE_THREADS, "threads leak: {before:?}, {after:?}");
    assert!(after.files <= before.files + MORE_FILES, "open files leak: {before:?}, {after:?}");
    assert!(after.memory <= before.memory + MORE_MEMORY, "memory leaks: {before:?}, {after:?}");
    assert_eq!(answering(&server, None).await.expect("an answer"), 2);
    server.assert_unharmed().await;
    drop(callers);
}

//! Asked for more than it can give, the server refuses what is too much at once and says when to come back; nothing is lost and
//! nothing left over, and who calls afterwards notices nothing.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::task::JoinSet;
use tonic::{Code, Status, transport::Channel};

use crate::{
    clients::go_overloads,
    harness::{
        PATIENCE, Server, Store, call, eventually, fixture,
        open_loop::OpenLoop,
        process::resident_bytes,
        reason, retry_after,
        tensors::{Form, floats},
    },
    proto::{inference_client::InferenceClient, *},
};

/// How a call may end.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
enum Ending {
    #[default]
    Answered,
    /// UNAVAILABLE, with a hint when to come back.
    Refused,
    /// Its own deadline passed.
    Expired,
}

const CONNECTIONS: usize = 8;
const OVERLOAD: Duration = Duration::from_secs(3);
/// Calls due for each that can be answered.
const TIMES: f64 = 3.0;
/// Calls whose deadline is far too short for a queue, one in so many.
const HASTY: u64 = 5;
/// What may come and go with some thousand calls; a queue without bound would soon be past it.
const GROWTH_MAX: u64 = 128 << 20;

/// One row takes some milliseconds, and the queue has room for a few.
fn slow() -> Store {
    let store = Store::new().model("slow", "1.0.0", fixture("onnx/slow.onnx"));
    store.file("slow/model.yaml", "batching: { max_batch_size: 4, max_queue: { rows: 32 } }")
}

fn slow_row() -> PredictRequest {
    let inputs = vec![floats("x", &[1, 8], &[0.5; 8]).to_sconce(Form::Raw)];
    PredictRequest { model: "slow".into(), inputs, ..Default::default() }
}

/// So many rows of a cheap model.
fn tiny_rows(rows: usize) -> PredictRequest {
    let raw = Bytes::from(vec![0; rows * 16 * 4]);
    let inputs = ["INPUT0", "INPUT1"].map(|name| Tensor {
        name: name.into(),
        shape: vec![i64::try_from(rows).expect("a few"), 16],
        raw: raw.clone(),
        ..Default::default()
    });
    PredictRequest { model: "tiny".into(), inputs: inputs.into(), ..Default::default() }
}

async fn connections(server: &Server) -> Vec<InferenceClient<Channel>> {
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(server.inference().await);
    }
    clients
}

fn ending(answer: Result<(), Status>) -> Result<Ending, String> {
    let Err(status) = answer else {
        return Ok(Ending::Answered);
    };
    let said = (status.code(), reason(&status));
    match (said.0, said.1.as_str()) {
        (Code::Unavailable, "QUEUE_FULL" | "QUEUE_TIMEOUT" | "OVERLOADED") => match retry_after(&status) {
            Some(_) => Ok(Ending::Refused),
            None => Err(format!("{said:?} without a word when to come back")),
        },
        (Code::DeadlineExceeded, "DEADLINE_EXCEEDED") => Ok(Ending::Expired),
        _ => Err(status.to_string()),
    }
}

async fn ask(mut client: InferenceClient<Channel>, request: PredictRequest) -> Result<Ending, String> {
    ending(client.predict(call(request)).await.map(drop))
}

/// Answers a second to some callers who wait for them.
async fn capacity(clients: &[InferenceClient<Channel>]) -> f64 {
    const MEASURED: Duration = Duration::from_secs(1);
    let begun = Instant::now();
    let mut callers = JoinSet::new();
    for client in clients.iter().cycle().take(2 * CONNECTIONS) {
        let client = client.clone();
        callers.spawn(async move {
            let mut answered = 0u32;
            while begun.elapsed() < MEASURED {
                assert_eq!(ask(client.clone(), slow_row()).await, Ok(Ending::Answered), "there is room for so few");
                answered += 1;
            }
            answered
        });
    }
    let answered: u32 = callers.join_all().await.into_iter().sum();
    f64::from(answered) / begun.elapsed().as_secs_f64()
}

/// Calls by how they ended, as the server counts them.
async fn counted(server: &Server, model: &str) -> [f64; 3] {
    let mut counts = [0.0; 3];
    for (count, code) in counts.iter_mut().zip(["OK", "UNAVAILABLE", "DEADLINE_EXCEEDED"]) {
        let series = format!("sconce_requests_total{{model=\"{model}\",code=\"{code}\"}}");
        *count = server.metric(&series).await.unwrap_or_default();
    }
    counts
}

/// Who calls now is answered, and nothing waits or is worked on any more.
async fn assert_normal(server: &Server, request: PredictRequest) {
    for _ in 0..20 {
        server.predict(request.clone()).await.expect("an answer after the overload");
    }
    let queue = format!("sconce_queue_rows{{model=\"{}\"}}", request.model);
    assert_eq!(server.metric(&queue).await, Some(0.0), "the queue is empty");
    eventually("nothing is in flight", PATIENCE, async || {
        (server.metric("sconce_requests_in_flight").await == Some(0.0)).then_some(())
    })
    .await;
    server.assert_unharmed().await;
}

#[tokio::test]
async fn three_times_too_much_adds_up_and_leaves_nothing_behind() {
    let server = Server::start(slow(), &["--cores=1", "--log-level=info"]).await;
    let clients = connections(&server).await;
    let rate = TIMES * capacity(&clients).await;
    let (before, memory_before) = (counted(&server, "slow").await, resident_bytes(server.pid()));

    let sent = Arc::new(AtomicU64::new(0));
    let counter = sent.clone();
    let load = OpenLoop::begin(rate, move |number| {
        counter.fetch_add(1, Ordering::Relaxed);
        let timeout_ms = if number.is_multiple_of(HASTY) { 10 } else { 0 };
        let client = clients[number as usize % CONNECTIONS].clone();
        ask(client, PredictRequest { timeout_ms, ..slow_row() })
    });
    let load = load.expect("a timer");
    let mut memory_most = memory_before;
    while load.begun().elapsed() < OVERLOAD {
        tokio::time::sleep(Duration::from_millis(50)).await;
        memory_most = memory_most.max(resident_bytes(server.pid()));
    }
    let record = load.end().await;
    assert!(record.failed.is_empty(), "{} calls ended otherwise: {:?}", record.failed.len(), record.failed.first());
    let of = |ending| record.answered.iter().filter(|sample| sample.answer == ending).count() as u64;
    let (answered, refused, expired) = (of(Ending::Answered), of(Ending::Refused), of(Ending::Expired));
    let sent = sent.load(Ordering::Relaxed);
    assert_eq!(sent, answered + refused + expired, "every call ends once");
    assert!(answered > 0 && refused > 0, "{answered} answered, {refused} refused, {expired} expired");
    // What the server says of it.
    let after = counted(&server, "slow").await;
    let counted = [after[0] - before[0], after[1] - before[1], after[2] - before[2]];
    assert_eq!(counted, [answered, refused, expired].map(|count| count as f64));
    let grown = memory_most.saturating_sub(memory_before);
    assert!(grown < GROWTH_MAX, "{} MiB more while it was overloaded", grown >> 20);
    assert_normal(&server, slow_row()).await;
    server.assert_memory_is_back(memory_before, 64 << 20).await;
}

/// The queue has room for thousands, which would take seconds; nobody is let in who would wait in vain.
#[tokio::test]
async fn a_queue_that_takes_too_long_is_full() {
    let store = Store::new().model("slow", "1.0.0", fixture("onnx/slow.onnx"));
    let store = store
        .file("slow/model.yaml", "batching: { max_batch_size: 4, queue_timeout: 500ms, max_queue: { rows: 100000 } }");
    let server = Server::start(store, &["--cores=1", "--log-level=info"]).await;
    let clients = connections(&server).await;
    let rate = TIMES * capacity(&clients).await;
    let timeouts = Arc::new(AtomicU64::new(0));
    let counter = timeouts.clone();
    let load = OpenLoop::begin(rate, move |number| {
        let (mut client, counter) = (clients[number as usize % CONNECTIONS].clone(), counter.clone());
        async move {
            let answer = client.predict(call(slow_row())).await.map(drop);
            let in_vain = answer.as_ref().is_err_and(|status| reason(status) == "QUEUE_TIMEOUT");
            counter.fetch_add(u64::from(in_vain), Ordering::Relaxed);
            ending(answer)
        }
    });
    let load = load.expect("a timer");
    tokio::time::sleep(OVERLOAD).await;
    let record = load.end().await;
    assert!(record.failed.is_empty(), "{} calls ended otherwise: {:?}", record.failed.len(), record.failed.first());
    let refused = record.answered.iter().filter(|sample| sample.answer == Ending::Refused).count() as u64;
    let timeouts = timeouts.load(Ordering::Relaxed);
    // It is a prediction, and the machine of a test has other things to do: half of all were in vain without it.
    assert!(refused > 0 && timeouts * 5 < refused, "{refused} refused, {timeouts} of them after they had waited");
    assert_normal(&server, slow_row()).await;
}

/// All of these at once over some connections: answered and refused.
async fn at_once(server: &Server, calls: usize, request: &PredictRequest) -> (usize, usize) {
    let clients = connections(server).await;
    let mut all = JoinSet::new();
    for client in clients.iter().cycle().take(calls) {
        all.spawn(ask(client.clone(), request.clone()));
    }
    let endings = all.join_all().await;
    let of = |ending| endings.iter().filter(|came| **came == Ok(ending)).count();
    let (answered, refused) = (of(Ending::Answered), of(Ending::Refused));
    assert_eq!(answered + refused, calls, "{:?}", endings.iter().find(|came| came.is_err()));
    (answered, refused)
}

#[tokio::test]
async fn calls_over_the_limit_of_those_in_flight_are_refused_before_they_are_read() {
    const IN_FLIGHT: usize = 16;
    let server = Server::start(slow(), &["--cores=1", "--max-requests-in-flight=16", "--log-level=info"]).await;
    let (answered, refused) = at_once(&server, 400, &slow_row()).await;
    assert!(answered >= IN_FLIGHT && refused > 0, "{answered} answered, {refused} refused");
    let by_reason = server.metric("sconce_refused_total{reason=\"OVERLOADED\"}").await;
    assert_eq!(by_reason, Some(refused as f64));
    assert_normal(&server, slow_row()).await;
}

#[tokio::test]
async fn a_large_message_that_is_refused_unread_costs_its_connection_nothing() {
    let store = slow().model("tiny", "1.0.0", fixture("onnx/tiny.onnx"));
    let server = Server::start(store, &["--cores=1", "--max-requests-in-flight=4", "--log-level=info"]).await;
    // 512 KiB, which is many frames.
    let large = tiny_rows(4096);
    let (mut answered, mut refused) = (0, 0);
    for _ in 0..4 {
        let (more, less) = at_once(&server, 100, &large).await;
        (answered, refused) = (answered + more, refused + less);
    }
    assert!(answered > 0 && refused > 0, "{answered} answered, {refused} refused");
    assert_normal(&server, large).await;
}

#[tokio::test]
async fn a_cheap_model_under_a_flood_answers_or_refuses_everybody() {
    let store = Store::new().model("tiny", "1.0.0", fixture("onnx/tiny.onnx"));
    let server = Server::start(store, &["--cores=1", "--max-requests-in-flight=64", "--log-level=info"]).await;
    server.predict(tiny_rows(1)).await.expect("an answer");
    let before = resident_bytes(server.pid());
    let mut answered = 0;
    for _ in 0..5 {
        answered += at_once(&server, 1_000, &tiny_rows(1)).await.0;
    }
    assert!(answered > 0);
    assert_normal(&server, tiny_rows(1)).await;
    server.assert_memory_is_back(before, 64 << 20).await;
}

/// Callers as they are written with Go and the service config of deploy/: they obey the hints, and give up in the end.
#[tokio::test]
async fn go_clients_that_retry_come_back_when_they_are_told_to() {
    let store = Store::new().model("slow", "1.0.0", fixture("onnx/slow.onnx"));
    let store = store.file("slow/model.yaml", "batching: { max_batch_size: 4, max_queue: { rows: 8 } }");
    let server = Server::start(store, &["--cores=1", "--log-level=info"]).await;
    let Some(said) = go_overloads(&server).await else {
        return;
    };
    let count = |name: &str| said[name].as_u64().unwrap_or_else(|| panic!("no '{name}' in {said}"));
    assert_eq!(count("calls"), count("answered") + count("refused") + count("otherwise"), "{said}");
    assert_eq!((count("otherwise"), count("hintless"), count("too_soon")), (0, 0, 0), "{said}");
    assert!(count("answered") > 0 && count("refused") > 0, "{said}");
    assert!(count("attempts") > count("calls") + 10, "some are tried again: {said}");
    assert_eq!(count("attempts") - 10, count("answered") + count("refusals"), "{said}");
    assert_eq!(count("afterwards"), 10, "{said}");
    assert_normal(&server, slow_row()).await;
}

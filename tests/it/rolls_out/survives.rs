//! Rollouts beyond what happens to the server, its store, and those who are told.

use std::sync::{Arc, Mutex};

use rustix::process::Signal;
use sconce::model::{Phase, Route as Record};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::{
    load::{Load, Manner},
    trial::{
        NEW, SCORER, STABLE, assert_undone, changes, counted, deploy, deploys, described, over, pins, plan, reaches,
        record, scorer, seconds, stable_alone, told,
    },
};
use crate::{
    harness::{PATIENCE, Server, Store, call, eventually, process, s3::S3},
    proto::*,
};

/// Ends it without a word and starts it again over the same store, with the same ports: the same replica.
async fn killed(mut server: Server) -> Server {
    process::kill(server.pid(), Signal::KILL);
    eventually("it ends", PATIENCE, async || server.exit_status()).await;
    let port = format!("--grpc-port={}", server.ports.grpc);
    let store = std::mem::replace(&mut server.store, Store::new());
    drop(server);
    Server::start(store, &[&port]).await
}

#[tokio::test]
async fn a_kill_in_the_middle_of_a_step_and_it_goes_on_where_it_was() {
    let server = stable_alone(&[]).await;
    let load = Load::begin(&server, Manner::default()).await;
    deploys(&server, "", RolloutPlan { hold: seconds(3), ..plan(&[20.0, 100.0]) }).await;
    let before = reaches(&server, "step 1").await;
    eventually("callers see it", PATIENCE, async || (load.so_far().answered_by(NEW) > 20).then_some(())).await;
    assert_eq!(load.end().await.failed(), 0);
    let server = killed(server).await;
    let after = described(&server).await.expect("it is known");
    assert_eq!((&*after.phase, &after.phase_at), ("step 1", &before.phase_at));
    let load = Load::begin(&server, Manner::default()).await;
    assert_eq!(over(&server).await.phase, "promoted");
    let seen = load.end().await;
    assert_eq!((seen.failed(), seen.degraded.len()), (0, 0), "{seen:?}");
    let record = record(&server);
    let moves = ["gates", "step 1", "step 2"].map(|phase| format!("rollout 2.0.0: {phase} passed"));
    assert_eq!(changes(&record)[2..], moves, "each once");
    server.assert_unharmed().await;
}

pub async fn route_in(s3: &S3) -> Record {
    let object = s3.bucket(s3.port()).get(&format!("{SCORER}/route.yaml")).await.expect("an answer");
    Record::parse(&String::from_utf8_lossy(&object.expect("it is there").bytes)).expect("it is right")
}

#[tokio::test]
async fn with_the_store_away_a_failing_version_is_taken_out_here_and_undone_when_it_is_back() {
    let Some(mut s3) = S3::start().await else { return };
    let bytes = |kind: &str| std::fs::read(scorer(kind)).expect("a file");
    s3.publish(&format!("{SCORER}/{STABLE}"), &[("model.onnx", bytes(""))], false).await;
    let server = s3.serve(Store::new(), s3.port(), &[]).await;
    pins(&server).await;
    s3.publish(&format!("{SCORER}/{NEW}"), &[("model.onnx", bytes("_errs"))], false).await;
    server.admin().await.refresh(call(RefreshRequest {})).await.expect("it looks");
    let load = Load::begin(&server, Manner::default()).await;
    deploy(&server, RolloutPlan { hold: seconds(300), ..plan(&[20.0, 100.0]) }).await.expect("it may be deployed");
    reaches(&server, "step 1").await;
    eventually("callers see it", PATIENCE, async || (load.so_far().answered_by(NEW) > 20).then_some(())).await;
    assert_eq!(load.so_far().failed(), 0);

    s3.stop();
    let begun = std::time::Instant::now();
    load.triggers();
    let taken_out = || load.so_far().degraded.get("variant_taken_out").copied().unwrap_or(0);
    eventually("stable answers in its place", PATIENCE, async || (taken_out() > 0).then_some(())).await;
    let (took, before) = (begun.elapsed(), load.so_far());
    eventually("calls go on", PATIENCE, async || (taken_out() > 100).then_some(())).await;
    let later = load.so_far();
    assert!(later.failed() <= before.failed() + 8, "{before:?}, then {later:?}");
    eprintln!("taken out after {took:?}: {} calls failed of {}", later.failed(), later.all());
    assert!(later.failed() <= 300, "{later:?}");
    assert_eq!(later.degraded.len(), 1, "{later:?}");

    s3.resume().await;
    let rollout = eventually("it is written", 2 * PATIENCE, async || {
        described(&server).await.filter(|rollout| rollout.phase == "rolled_back")
    })
    .await;
    let verdict = rollout.last_verdict.clone().expect("it was judged");
    assert_eq!((&*verdict.decision, &*verdict.rule), ("roll_back", "error_rate"), "{verdict:?}");
    let record = route_in(&s3).await;
    assert_undone(&record, Phase::RolledBack);
    assert_eq!(told(&server, EventKind::RolledBack).await.reason, "error_rate");
    let seen = load.end().await;
    assert_eq!(counted(&rollout), seen.answered_by(NEW) + seen.failed(), "none is lost: {seen:?}");
    assert!(verdict.exposure > 0 && verdict.exposure <= counted(&rollout), "{verdict:?}");
    server.assert_unharmed().await;
}

/// A door that takes notes.
async fn listens(listener: TcpListener, notes: Arc<Mutex<Vec<Value>>>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        if let Some(note) = read(&mut stream).await {
            notes.lock().expect("a lock").push(note);
        }
        let answer = "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.expect("written");
    }
}

/// The body of one POST.
async fn read(stream: &mut TcpStream) -> Option<Value> {
    let mut text = Vec::new();
    loop {
        let mut piece = [0; 4096];
        let count = stream.read(&mut piece).await.ok()?;
        if count == 0 {
            return None;
        }
        text.extend_from_slice(&piece[..count]);
        let whole = String::from_utf8_lossy(&text).into_owned();
        let (head, body) = whole.split_once("\r\n\r\n").unwrap_or_default();
        if let Ok(note) = serde_json::from_str(body) {
            assert!(head.starts_with("POST /hook?key=s3cret "), "{head}");
            return Some(note);
        }
    }
}

#[tokio::test]
async fn a_webhook_is_told_of_each_verdict() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/hook?key=s3cret\n", listener.local_addr().expect("bound"));
    let notes: Arc<Mutex<Vec<Value>>> = Arc::default();
    let listening = tokio::spawn(listens(listener, notes.clone()));
    let beside = tempfile::tempdir().expect("a folder");
    let file = beside.path().join("hook");
    std::fs::write(&file, url).expect("a file");
    let server = stable_alone(&[&format!("--rollout-webhook-file={}", file.display())]).await;
    let load = Load::begin(&server, Manner { triggers: true, ..Manner::default() }).await;
    deploys(&server, "_errs", plan(&[20.0, 100.0])).await;
    let rollout = over(&server).await;
    let notes = eventually("it is told", PATIENCE, async || {
        let notes = notes.lock().expect("a lock").clone();
        (notes.len() >= 2).then_some(notes)
    })
    .await;
    load.end().await;
    let said = |note: &Value| ["phase", "decision", "rule"].map(|key| note[key].as_str().unwrap_or("").to_owned());
    let said: Vec<_> = notes.iter().map(said).collect();
    assert_eq!(said, [["gates", "advance", "gates"], ["step 1", "roll_back", "error_rate"]]);
    let verdict = rollout.last_verdict.expect("it was judged");
    let last = &notes[1];
    assert_eq!((&last["message"], &last["exposure"]), (&verdict.message.into(), &verdict.exposure.into()));
    assert_eq!((&last["model"], &last["version"], &last["control"]), (&SCORER.into(), &NEW.into(), &STABLE.into()));
    assert_eq!(Some(&last["revision"]), record(&server).revision.map(Value::from).as_ref());
    assert!(!server.log().contains("s3cret"), "the address may be a secret");
    listening.abort();
    server.assert_unharmed().await;
}

//! The events: what happened is told once, in order, to whoever asks from where they were.

use tonic::Streaming;

use super::{asked, promote, two_versions};
use crate::{
    harness::{Server, call, fixture},
    proto::{watch_events_response::What, *},
};

/// More than a replica remembers.
const MANY: u64 = 4_200;

async fn watch(server: &Server, request: WatchEventsRequest) -> (Started, Streaming<WatchEventsResponse>) {
    let mut stream = server.admin().await.watch_events(call(request)).await.expect("a stream").into_inner();
    match next(&mut stream).await {
        What::Started(started) => (started, stream),
        other => panic!("{other:?} comes before the start"),
    }
}

async fn next(stream: &mut Streaming<WatchEventsResponse>) -> What {
    let told = stream.message().await.expect("no error").expect("it goes on");
    told.what.expect("something is told")
}

async fn event(stream: &mut Streaming<WatchEventsResponse>) -> Event {
    match next(stream).await {
        What::Event(event) => event,
        other => panic!("{other:?} is no event"),
    }
}

/// All up to the one of that kind and version.
async fn up_to(stream: &mut Streaming<WatchEventsResponse>, kind: EventKind, version: &str) -> Vec<Event> {
    let mut events = Vec::new();
    loop {
        let event = event(stream).await;
        let found = (event.kind(), event.version.as_str()) == (kind, version);
        events.push(event);
        if found {
            return events;
        }
    }
}

#[tokio::test]
async fn a_swap_is_told_with_who_asked_for_it() {
    let server = Server::start(two_versions(), &[]).await;
    let (started, mut stream) = watch(&server, WatchEventsRequest::default()).await;
    promote(&server, "1.0.0", asked("one")).await.expect("it is right");
    let events = up_to(&mut stream, EventKind::RouteTaken, "1.0.0").await;
    let sequences: Vec<u64> = events.iter().map(|event| event.sequence).collect();
    let expected: Vec<u64> = (started.last_sequence + 1..).take(events.len()).collect();
    assert_eq!(sequences, expected, "none is left out: {events:?}");
    let of = |kind: EventKind| events.iter().find(|event| event.kind() == kind).unwrap_or_else(|| panic!("{kind:?}"));
    let promoted = of(EventKind::Promoted);
    assert_eq!((promoted.caller.as_str(), promoted.request_id.as_str()), ("tester", "one"));
    assert_eq!((promoted.message.as_str(), promoted.revision), ("a test", 1));
    assert_eq!(of(EventKind::VersionReady).version, "1.0.0");
    assert_eq!(of(EventKind::RouteTaken).revision, 1);
    assert!(events.iter().all(|event| event.replica == started.replica && event.time.is_some()));

    // Who was away goes on where it was.
    let from = WatchEventsRequest {
        replica: started.replica.clone(),
        after_sequence: Some(promoted.sequence - 1),
        ..Default::default()
    };
    let (again, mut stream) = watch(&server, from).await;
    assert!(!again.another_replica);
    assert_eq!(event(&mut stream).await, *promoted);
}

#[tokio::test]
async fn failures_and_refused_files_are_told() {
    let server = Server::start(two_versions(), &[]).await;
    let (_, mut stream) = watch(&server, WatchEventsRequest { models: "t*".into(), ..Default::default() }).await;
    let broken = server.store.beside("broken.onnx");
    std::fs::write(&broken, b"no model").expect("a file");
    server.store.add("other", "1.0.0", fixture("onnx/tiny.onnx"));
    server.store.add("tiny", "2.0.0", &broken);
    let events = up_to(&mut stream, EventKind::VersionFailed, "2.0.0").await;
    let failed = events.last().expect("it is there");
    assert!(!failed.reason.is_empty() && !failed.message.is_empty(), "{failed:?}");
    assert!(events.iter().all(|event| event.model == "tiny"), "{events:?}");
    server.store.write("tiny/model.yaml", "no_such_key: 1\n");
    let refused = up_to(&mut stream, EventKind::ModelYamlRefused, "").await.pop().expect("it is there");
    assert!(refused.message.contains("no_such_key"), "{refused:?}");
}

#[tokio::test]
async fn whoever_comes_too_late_is_told_how_much_it_missed() {
    let server = Server::start(two_versions(), &["--log-level=error"]).await;
    let mut admin = server.admin().await;
    for _ in 0..MANY {
        let request = SetLogLevelRequest { level: "error".into(), caller: "tester".into() };
        admin.set_log_level(call(request)).await.expect("it is a level");
    }
    let from_the_start = WatchEventsRequest { after_sequence: Some(0), ..Default::default() };
    let (started, mut stream) = watch(&server, from_the_start).await;
    let What::Missed(missed) = next(&mut stream).await else { panic!("nothing is missed") };
    assert!(missed.count >= MANY - 4_096, "{missed:?}");
    assert_eq!(event(&mut stream).await.sequence, missed.count + 1);
    assert!(started.last_sequence >= MANY);

    // A number of another start means nothing here.
    let other = WatchEventsRequest { replica: "gone-0".into(), after_sequence: Some(1), ..Default::default() };
    let (started, mut stream) = watch(&server, other).await;
    assert!(started.another_replica);
    assert!(matches!(next(&mut stream).await, What::Missed(_)));
    server.assert_unharmed().await;
}

#[tokio::test]
async fn a_stream_does_not_hold_up_the_end_of_the_server() {
    let server = Server::start(two_versions(), &[]).await;
    let (_, mut stream) = watch(&server, WatchEventsRequest::default()).await;
    crate::harness::process::kill(server.pid(), rustix::process::Signal::TERM);
    assert_eq!(event(&mut stream).await.kind(), EventKind::Draining);
    while let Ok(Some(_)) = stream.message().await {}
    crate::harness::eventually("the server ends", crate::harness::PATIENCE, async || server.exit_status()).await;
}

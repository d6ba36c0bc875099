//! Changes of a route by gRPC: made once, upon what the caller saw, and waited for no longer than the caller does.

use std::time::Duration;

use tonic::Code;

use super::{answering, asked, gated, promote, promotion, route, two_versions};
use crate::{
    harness::{PATIENCE, Server, assert_refused, call, eventually, fixture},
    proto::*,
};

#[tokio::test]
async fn a_promote_holds_when_it_is_answered_and_a_repeat_writes_nothing() {
    let server = Server::start(two_versions(), &[]).await;
    assert_eq!(answering(&server).await.expect("an answer"), "1.1.0");
    let first = promote(&server, "1.0.0", asked("one")).await.expect("it is right");
    assert_eq!(first.settled(), Settled::Ready, "{first:?}");
    assert_eq!((first.revision, first.stable.as_str(), first.repeated), (1, "1.0.0", false));
    assert_eq!(answering(&server).await.expect("an answer"), "1.0.0");

    let again = promote(&server, "1.0.0", asked("one")).await.expect("it is right");
    assert_eq!((again.revision, again.stable.as_str(), again.repeated), (1, "1.0.0", true));
    assert_eq!(again.time, first.time);
    let route = route(&server).await;
    assert_eq!((route.revision, route.history.len()), (1, 1), "{route:?}");
    let entry = &route.history[0];
    assert_eq!((entry.caller.as_str(), entry.reason.as_str(), entry.request_id.as_str()), ("tester", "a test", "one"));
    assert!(route.decided_by.contains("promote 1.0.0"), "{}", route.decided_by);

    let reused = promote(&server, "1.1.0", asked("one")).await;
    assert_refused("another change", reused, Code::InvalidArgument, "REQUEST_ID_REUSED");
    server.assert_unharmed().await;
}

#[tokio::test]
async fn who_decided_upon_an_old_revision_is_told_the_current_one() {
    let server = Server::start(two_versions(), &[]).await;
    promote(&server, "1.0.0", asked("one")).await.expect("it is right");
    let late = Asked { expected_revision: Some(0), ..asked("two").expect("it is there") };
    let status = assert_refused("late", promote(&server, "1.1.0", Some(late)).await, Code::Aborted, "REVISION_MOVED");
    assert!(status.message().contains("revision 1"), "{}", status.message());
    let right = Asked { expected_revision: Some(1), ..asked("three").expect("it is there") };
    assert_eq!(promote(&server, "1.1.0", Some(right)).await.expect("it is right").revision, 2);
}

#[tokio::test]
async fn what_was_just_published_is_found_without_waiting_for_a_poll() {
    let store = two_versions();
    let server = Server::start(store, &["--poll-interval=1h", "--settle-time=0s"]).await;
    server.store.add("tiny", "1.2.0", fixture("onnx/tiny.onnx"));
    let promoted = promote(&server, "1.2.0", None).await.expect("it is there");
    assert_eq!((promoted.settled(), promoted.stable.as_str()), (Settled::Ready, "1.2.0"));
    assert_eq!(answering(&server).await.expect("an answer"), "1.2.0");
}

#[tokio::test]
async fn what_is_not_there_or_failed_is_not_promoted() {
    let store = two_versions();
    let broken = store.beside("broken.onnx");
    std::fs::write(&broken, b"no model").expect("a file");
    let server = Server::start(store.model("tiny", "2.0.0", &broken), &[]).await;
    server.failed("tiny", "2.0.0").await;
    assert_refused("absent", promote(&server, "9.0.0", None).await, Code::NotFound, "VERSION_NOT_FOUND");
    assert_refused("failed", promote(&server, "2.0.0", None).await, Code::FailedPrecondition, "VERSION_FAILED");
    assert_refused("no version", promote(&server, "newest", None).await, Code::InvalidArgument, "INVALID_VERSION");
    let unknown = PromoteRequest { model: "other".into(), version: "1.0.0".into(), asked: None };
    let unknown = server.admin().await.promote(call(unknown)).await;
    assert_refused("no model", unknown, Code::NotFound, "MODEL_NOT_FOUND");
    assert_eq!(route(&server).await.revision, 0);
    assert_eq!(answering(&server).await.expect("an answer"), "1.1.0");
}

#[tokio::test]
async fn a_deadline_ends_the_waiting_and_not_the_promote() {
    let store = two_versions();
    let (gate, child) = gated(&store);
    std::fs::write(&gate, "").expect("a file");
    let server = Server::start(store, &[&child]).await;
    // A trial that was passed is remembered by its bytes: other bytes are opened in a child again.
    server.store.write("tiny/1.0.0/note.txt", "other bytes");
    std::fs::remove_file(&gate).expect("it is there");
    let mut request = promotion("1.0.0", asked("one"));
    request.set_timeout(Duration::from_millis(1_000));
    let answer = server.admin().await.promote(request).await.expect("an answer before the deadline").into_inner();
    assert_eq!((answer.settled(), answer.revision), (Settled::Pending, 1), "{answer:?}");
    assert!(answer.message.contains("1.0.0"), "{answer:?}");
    assert_eq!(answering(&server).await.expect("an answer"), "1.1.0", "the old one serves");
    assert!(route(&server).await.pending.contains("loading"));

    std::fs::write(&gate, "").expect("a file");
    eventually("the promote holds", PATIENCE, async || (answering(&server).await.ok()? == "1.0.0").then_some(())).await;
}

#[tokio::test]
async fn a_version_that_fails_while_it_is_waited_for_is_said_and_the_old_one_serves() {
    let store = two_versions();
    let broken = store.beside("broken.onnx");
    std::fs::write(&broken, b"no model").expect("a file");
    let server = Server::start(store.model("tiny", "0.9.0", &broken), &[]).await;
    let answer = promote(&server, "0.9.0", asked("one")).await.expect("it is written");
    assert_eq!(answer.settled(), Settled::Failed, "{answer:?}");
    assert!(answer.message.starts_with("LOAD_FAILED"), "{answer:?}");
    assert_eq!(answering(&server).await.expect("an answer"), "1.1.0");
    let back = promote(&server, "1.1.0", asked("two")).await.expect("it is right");
    assert_eq!(back.settled(), Settled::Ready);
}

#[tokio::test]
async fn a_disabled_model_answers_nobody_and_says_why() {
    let server = Server::start(two_versions(), &[]).await;
    let mut admin = server.admin().await;
    let disable = DisableModelRequest { model: "tiny".into(), asked: asked("one") };
    let answer = admin.disable_model(call(disable)).await.expect("it is right").into_inner();
    assert_eq!(answer.settled(), Settled::Ready, "{answer:?}");
    let status = assert_refused("disabled", answering(&server).await, Code::Unavailable, "MODEL_DISABLED");
    assert!(status.message().contains("a test"), "{}", status.message());
    let disabled = route(&server).await.disabled.expect("it is disabled");
    assert_eq!(disabled.reason, "a test");
    let enable = EnableModelRequest { model: "tiny".into(), asked: asked("two") };
    admin.enable_model(call(enable)).await.expect("it is right");
    assert_eq!(answering(&server).await.expect("an answer"), "1.1.0");
}

#[tokio::test]
async fn where_routes_are_written_elsewhere_every_change_says_so() {
    let server = Server::start(two_versions(), &["--routes=external"]).await;
    assert_refused("external", promote(&server, "1.0.0", None).await, Code::FailedPrecondition, "ROUTES_EXTERNAL");
    let info = server.admin().await.server_info(call(ServerInfoRequest {})).await.expect("info").into_inner();
    assert!(info.not_writable.contains("external") && info.ready, "{info:?}");
    let routes = info.settings.iter().find(|setting| setting.key == "routes").expect("it is no default");
    assert_eq!((routes.value.as_str(), routes.source.as_str()), ("external", "flag"));
    assert!(info.libraries.iter().any(|library| library.starts_with("onnxruntime")), "{info:?}");
}

//! People edit route.yaml: what is right is followed, what is wrong is shown, and somebody answers all the time.

use std::fs;

use tonic::Code;

use super::{OPTIONS, answers, says, summary, write_route};
use crate::{
    harness::{
        PATIENCE, Server,
        adders::{ADDER, adders, answering, publish_adder, version},
        assert_refused, eventually, fixture,
        versions::publish,
    },
    proto::{VersionState, predict_request::Select},
};

fn label(name: &str) -> Option<Select> {
    Some(Select::Label(name.into()))
}

#[tokio::test]
async fn what_is_written_is_followed() {
    let server = Server::start(adders(1..=3), &OPTIONS).await;
    assert_eq!(answering(&server, None).await.expect("an answer"), 3);
    write_route(&server, "stable: 1.0.1\n");
    answers(&server, 1).await;
    // A number pins: what is higher does not take over.
    publish_adder(&server.store, 4);
    server.reaches(ADDER, "1.0.4", VersionState::Ready).await;
    assert_eq!(answering(&server, None).await.expect("an answer"), 1);
    write_route(&server, "rejected: [1.0.4, 1.0.3]\n");
    answers(&server, 2).await;
    write_route(&server, "labels: { champion: 1.0.2, challenger: 1.0.1 }\nload: [1.0.3]\n");
    answers(&server, 4).await;
    for (name, number) in [("champion", 2), ("challenger", 1)] {
        server.reaches(ADDER, &version(number), VersionState::Ready).await;
        assert_eq!(answering(&server, label(name)).await.expect("an answer"), number);
    }
    let unknown = answering(&server, label("nobody")).await;
    assert_refused("a label that nothing has", unknown, Code::NotFound, "LABEL_NOT_FOUND");
    server.reaches(ADDER, "1.0.3", VersionState::Ready).await;
    assert_eq!(answering(&server, Some(Select::Version("1.0.3".into()))).await.expect("an answer"), 3);

    write_route(&server, "disabled: { reason: an audit }\n");
    let refused = eventually("nobody gets an answer", PATIENCE, async || answering(&server, None).await.err()).await;
    assert_refused("disabled", Err::<u64, _>(refused), Code::Unavailable, "MODEL_DISABLED");
    assert!(summary(&server).await.message.contains("an audit"));
    fs::remove_file(server.store.path().join(ADDER).join("route.yaml")).expect("it is there");
    eventually("no route is the route of nobody's decision", PATIENCE, async || {
        (answering(&server, None).await.ok()? == 4).then_some(())
    })
    .await;
    server.assert_unharmed().await;
}

#[tokio::test]
async fn what_is_wrong_is_shown_and_the_last_good_route_holds() {
    let server = Server::start(adders(1..=2), &OPTIONS).await;
    write_route(&server, "stable: 1.0.1\n");
    answers(&server, 1).await;
    let long = format!("stable: 1.0.2\n# {}\n", "x".repeat(4 << 20));
    for (what, text, words) in [
        ("a key that is none", "stabel: 1.0.2\n".into(), &["route.yaml", "stabel"][..]),
        ("no version", "stable: newest\n".into(), &["route.yaml", "newest"]),
        ("a label that looks like a version", "labels: { 1.0.2: 1.0.2 }\n".into(), &["route.yaml", "label"]),
        ("another shape", "- stable\n".into(), &["route.yaml"]),
        ("cut in the middle", b"stable: 1.0.2\nlabels: { champ".to_vec(), &["route.yaml"]),
        ("no text", b"stable: \xff\xfe\n".to_vec(), &["route.yaml"]),
        ("a key twice", b"stable: 1.0.2\nstable: 1.0.1\n".to_vec(), &["route.yaml"]),
        ("too long", long.into_bytes(), &["route.yaml"]),
    ] {
        let text: Vec<u8> = text;
        write_route(&server, text);
        let said = says(&server, words).await;
        assert!(said.len() < 1024, "{what}: {} bytes are said", said.len());
        assert_eq!(answering(&server, None).await.expect("an answer"), 1, "{what}");
        // Mended, and nothing is said any more.
        write_route(&server, "stable: 1.0.1\n");
        eventually(what, PATIENCE, async || summary(&server).await.message.is_empty().then_some(())).await;
    }
    let route = server.store.path().join(ADDER).join("route.yaml");
    fs::remove_file(&route).expect("it is there");
    fs::create_dir(&route).expect("a folder");
    says(&server, &["route.yaml"]).await;
    assert_eq!(answering(&server, None).await.expect("an answer"), 1, "a folder is no route");
    server.assert_unharmed().await;
}

#[tokio::test]
async fn a_revert_is_refused_until_its_revision_is_taken_out() {
    let server = Server::start(adders(1..=2), &OPTIONS).await;
    write_route(&server, "revision: 7\nstable: 1.0.2\n");
    eventually("revision 7 holds", PATIENCE, async || {
        (server.describe(ADDER).await.route?.revision == 7).then_some(())
    })
    .await;
    // `git revert` brings back the file of revision 6.
    write_route(&server, "revision: 6\nstable: 1.0.1\n");
    says(&server, &["route.yaml", "revision 6", "lower than 7"]).await;
    assert_eq!(answering(&server, None).await.expect("an answer"), 2);
    write_route(&server, "stable: 1.0.1\n");
    answers(&server, 1).await;
    assert_eq!(summary(&server).await.message, "");
    // A hand edit on top of what holds, so the next write of the server is 8.
    assert_eq!(server.describe(ADDER).await.route.expect("a route").revision, 7);
    write_route(&server, "revision: 7\nstable: 1.0.2\n");
    answers(&server, 2).await;
}

#[tokio::test]
async fn the_old_route_holds_while_the_new_stable_is_on_its_way() {
    let slow = fs::read(fixture("onnx/slow.onnx")).expect("a fixture");
    let store = adders(1..=1).file("adder/model.yaml", "warmup: [{ zeros: 1 }]\n");
    let server = Server::start(store, &OPTIONS).await;
    // It is not there yet.
    write_route(&server, "stable: 1.0.5\nlabels: { next: 1.0.5 }\n");
    says(&server, &["waits", "1.0.5", "absent"]).await;
    assert_eq!(answering(&server, None).await.expect("an answer"), 1);
    let refused = answering(&server, label("next")).await;
    assert!(refused.is_err(), "the label is not in force: {refused:?}");
    publish_adder(&server.store, 5);
    answers(&server, 5).await;
    assert_eq!(summary(&server).await.message, "");
    // It takes its time: seconds of warm-up, at some milliseconds a row.
    server.store.write("adder/model.yaml", "warmup: [{ zeros: 400 }]\n");
    let folder = server.store.path().join(ADDER);
    publish(&folder, "0.9.0", &[("model.onnx", &slow)], "").expect("a version");
    write_route(&server, "stable: 0.9.0\n");
    says(&server, &["waits", "0.9.0", "loading"]).await;
    assert_eq!(answering(&server, None).await.expect("an answer"), 5, "the old one serves meanwhile");
    server.reaches(ADDER, "0.9.0", VersionState::Ready).await;
    eventually("the new stable is in force", PATIENCE, async || {
        (summary(&server).await.stable == "0.9.0").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_stable_that_fails_changes_nothing_but_what_is_said() {
    let server = Server::start(adders(1..=2), &OPTIONS).await;
    let folder = server.store.path().join(ADDER);
    publish(&folder, "0.9.0", &[("model.onnx", b"no model")], "").expect("a version");
    write_route(&server, "stable: 0.9.0\n");
    says(&server, &["waits", "0.9.0", "failed"]).await;
    server.failed(ADDER, "0.9.0").await;
    assert_eq!(answering(&server, None).await.expect("an answer"), 2);
    // Somebody who sees it writes what is right.
    write_route(&server, "stable: 1.0.1\n");
    answers(&server, 1).await;
    assert!(!summary(&server).await.message.contains("waits"));
    server.assert_unharmed().await;
}

#[tokio::test]
async fn a_server_that_starts_over_a_route_it_cannot_read_does_not_guess() {
    let store = adders(1..=2).file("adder/route.yaml", "stable: 1.0.1\nrejected: [1.0.2\n");
    let server = Server::start(store, &OPTIONS).await;
    let refused = answering(&server, None).await;
    let status = assert_refused("the pin is not known", refused, Code::FailedPrecondition, "NO_STABLE_VERSION");
    assert!(status.message().contains("route.yaml"), "{}", status.message());
    let named = answering(&server, Some(Select::Version("1.0.2".into()))).await;
    assert_eq!(named.expect("whoever names a version knows what it wants"), 2);
    write_route(&server, "stable: 1.0.1\n");
    eventually("the route holds", PATIENCE, async || (answering(&server, None).await.ok()? == 1).then_some(())).await;
    server.assert_unharmed().await;
}

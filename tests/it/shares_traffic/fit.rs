//! A version that cannot answer what stable's callers ask gets none of their traffic.

use tonic::Code;

use super::{ask, pins, set, traffic, variant};
use crate::{
    harness::{
        PATIENCE, Server,
        adders::{ADDER, adders, version},
        assert_refused, eventually, fixture,
    },
    proto::*,
};

#[tokio::test]
async fn another_signature_is_refused_and_a_hand_edit_leaves_stable_to_answer() {
    let store = adders(1..=1);
    store.add(ADDER, &version(9), fixture("onnx/tiny.onnx"));
    let server = Server::start(store, &["--poll-interval=20ms"]).await;
    pins(&server, 1).await;
    let refused = set(&server, Traffic { variants: vec![variant("canary", 9, 5.0)], ..Default::default() }).await;
    let status = assert_refused("another signature", refused, Code::FailedPrecondition, "SIGNATURE_INCOMPATIBLE");
    assert!(status.message().contains("output 'y'") || status.message().contains("input 'x'"), "{}", status.message());

    let text = "stable: 1.0.1\nvariants: [{name: canary, version: 1.0.9, weight: 100}]\n";
    std::fs::write(server.store.path().join(ADDER).join("route.yaml"), text).expect("a file");
    let mut client = server.inference().await;
    let answered = eventually("stable stands in", PATIENCE, async || {
        let answered = ask(&mut client, &[], &[]).await.expect("never without an answer");
        (answered.degraded == ["variant_incompatible"]).then_some(answered)
    })
    .await;
    assert_eq!(answered.number, 1);
    let shown = traffic(&server).await;
    assert!(shown.variants[0].stood_in_for.contains("cannot be answered"), "{shown:?}");
}

#[tokio::test]
async fn what_does_not_fit_together_is_refused_by_name() {
    let server = Server::start(adders(1..=2), &[]).await;
    pins(&server, 1).await;
    let with = |variants: Vec<Variant>| Traffic { variants, ..Default::default() };
    for (what, traffic, names) in [
        ("too much", with(vec![variant("a", 2, 60.0), variant("b", 2, 50.0)]), "more than 100"),
        ("twice", with(vec![variant("a", 2, 1.0), variant("a", 2, 1.0)]), "'a'"),
        ("a name of ours", with(vec![variant("pinned", 2, 1.0)]), "variants[0].name"),
        ("no percentage", with(vec![variant("a", 2, f64::NAN)]), "'a': weight"),
        ("stable itself", with(vec![variant("a", 1, 5.0)]), "1.0.1"),
        ("no source", Traffic { sticky: Some(Sticky::default()), ..Default::default() }, "sticky"),
    ] {
        let status = assert_refused(what, set(&server, traffic).await, Code::InvalidArgument, "INVALID_ROUTE");
        assert!(status.message().contains(names), "{what}: {}", status.message());
    }
    let absent = set(&server, with(vec![variant("a", 77, 5.0)])).await;
    assert_refused("absent", absent, Code::NotFound, "VERSION_NOT_FOUND");
    assert!(traffic(&server).await.variants.is_empty());
}

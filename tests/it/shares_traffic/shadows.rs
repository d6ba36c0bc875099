//! Versions that are asked as well, and whose answers nobody gets.

use super::{ask, pins, sets};
use crate::{
    harness::{
        PATIENCE, Server, Store,
        adders::{ADDER, adders, version},
        call, eventually, fixture,
        tensors::{Form, floats},
    },
    proto::*,
};

const SLOW: &str = "slow";

fn shadow(number: u64, sample: f64) -> Traffic {
    Traffic { shadows: vec![Shadow { version: version(number), sample }], ..Default::default() }
}

#[tokio::test]
async fn a_shadow_is_asked_and_its_answers_are_nobodys() {
    let server = Server::start(adders(1..=2), &[]).await;
    pins(&server, 1).await;
    sets(&server, shadow(2, 100.0)).await;
    let mut client = server.inference().await;
    for _ in 0..50 {
        let answered = ask(&mut client, &[], &[]).await.expect("an answer");
        assert_eq!((answered.number, answered.reason, answered.degraded.len()), (1, RouteReason::Stable, 0));
    }
    let series =
        format!("sconce_shadow_requests_total{{model=\"{ADDER}\",version=\"{}\",result=\"answered\"}}", version(2));
    eventually("all fifty were asked", PATIENCE, async || (server.metric(&series).await == Some(50.0)).then_some(()))
        .await;
    server.assert_unharmed().await;
}

/// The shadow takes 4 ms a row, and more requests come than both can take: shadows are dropped.
#[tokio::test]
async fn a_slow_shadow_fails_nobody_and_is_dropped_when_too_many_are_on_their_way() {
    let store = Store::new();
    store.add(SLOW, "1.0.0", fixture("onnx/slow.onnx"));
    store.add(SLOW, "1.0.1", fixture("onnx/slow.onnx"));
    let server = Server::start(store, &[]).await;
    let mut admin = server.admin().await;
    let shadows = vec![Shadow { version: "1.0.0".into(), sample: 100.0 }];
    let traffic = Some(Traffic { shadows, ..Default::default() });
    admin.set_route(call(SetRouteRequest { model: SLOW.into(), traffic, asked: None })).await.expect("it is right");
    let client = server.inference().await;
    let calls = (0..8).map(|_| {
        let mut client = client.clone();
        tokio::spawn(async move {
            let x = floats("x", &[8, 8], &[0.5; 64]).to_sconce(Form::Raw);
            let request = PredictRequest { model: SLOW.into(), inputs: vec![x], ..Default::default() };
            for _ in 0..10 {
                let answer = client.predict(call(request.clone())).await.expect("an answer").into_inner();
                assert_eq!(answer.served.expect("it says who").version, "1.0.1");
            }
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.expect("every call is answered");
    }
    let count = async |result: &str| {
        let labels = format!("{{model=\"{SLOW}\",version=\"1.0.0\",result=\"{result}\"}}");
        server.metric(&format!("sconce_shadow_requests_total{labels}")).await.unwrap_or(0.0)
    };
    eventually("each was asked or dropped", PATIENCE, async || {
        (count("answered").await + count("failed").await + count("dropped").await == 80.0).then_some(())
    })
    .await;
    assert!(count("dropped").await > 0.0, "eight callers are more than it can follow");
    server.assert_unharmed().await;
}

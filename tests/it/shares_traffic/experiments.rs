//! What is reported of variants and shadows.

use super::{ask, by_attribute, pins, sets, variant};
use crate::{
    commands::succeeds,
    harness::{
        PATIENCE, Server,
        adders::{ADDER, adders, version},
        call, eventually,
    },
    proto::*,
};

async fn report(server: &Server) -> GetExperimentResponse {
    let request = GetExperimentRequest { model: ADDER.into() };
    server.admin().await.get_experiment(call(request)).await.expect("a report").into_inner()
}

#[tokio::test]
async fn what_each_variant_did_is_counted_whoever_was_asked() {
    let server = Server::start(adders(1..=3), &[]).await;
    pins(&server, 1).await;
    assert!(report(&server).await.pairs.is_empty());
    let shadows = vec![Shadow { version: version(3), sample: 100.0 }];
    sets(&server, Traffic { variants: vec![variant("canary", 2, 50.0)], shadows, ..Default::default() }).await;
    let mut client = server.inference().await;
    let mut canary = 0;
    for _ in 0..300 {
        canary += u64::from(ask(&mut client, &[], &[]).await.expect("an answer").variant == "canary");
    }
    let report = eventually("all shadows have answered", PATIENCE, async || {
        let report = report(&server).await;
        (report.shadows[0].sent == 300 && report.shadows[0].rows == 900).then_some(report)
    })
    .await;
    let [stable, tried] = &report.variants[..] else { panic!("{report:?}") };
    assert_eq!((stable.name.as_str(), stable.version.as_str()), ("stable", version(1).as_str()));
    assert_eq!((stable.assigned, stable.answered, stable.errors), (300 - canary, 300 - canary, 0));
    assert_eq!((tried.name.as_str(), tried.assigned, tried.answered, tried.weight), ("canary", canary, canary, 50.0));
    assert!(tried.latency_p50_seconds.is_some_and(|seconds| seconds > 0.0 && seconds < 10.0), "{tried:?}");
    assert!(report.sample_ratio_p_value.is_some_and(|p| p > 0.001), "{report:?}");
    let pair = &report.pairs[0];
    assert!(pair.differences.iter().any(|found| found.metric == "error_rate" && found.difference == 0.0), "{pair:?}");
    assert_ne!(pair.recommendation.as_ref().expect("it is there").advice(), Advice::RollBack, "{pair:?}");
    // Who adds 10,000 more is 10,000 or 20,000 away, and nothing else.
    let shadow = &report.shadows[0];
    assert_eq!((shadow.agreement, shadow.largest_difference), (Some(0.0), 20_000.0));
    assert_eq!(shadow.failed + shadow.dropped, 0);

    let people = succeeds(&server, &["experiment", ADDER], "");
    assert!(
        people.contains("canary 1.0.2 beside stable") && people.contains("shadow 1.0.3: asked 300 times"),
        "{people}"
    );
    server.assert_unharmed().await;
}

#[tokio::test]
async fn another_revision_with_the_same_variant_goes_on_counting() {
    let server = Server::start(adders(1..=2), &[]).await;
    pins(&server, 1).await;
    let shares = |weight| Traffic {
        variants: vec![variant("canary", 2, weight)],
        sticky: by_attribute("customer"),
        ..Default::default()
    };
    let mut client = server.inference().await;
    for (round, weight) in [20.0, 60.0].into_iter().enumerate() {
        sets(&server, shares(weight)).await;
        for customer in 0..100 {
            let key = format!("{round}-{customer}");
            ask(&mut client, &[("customer", &key)], &[]).await.expect("an answer");
        }
    }
    let report = report(&server).await;
    assert_eq!(report.variants.iter().map(|variant| variant.assigned).sum::<u64>(), 200);
    assert_eq!(report.sample_ratio_p_value, None, "it is callers who are given out");
}

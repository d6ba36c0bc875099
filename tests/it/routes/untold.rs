//! A bucket tells the replicas by its marker that something was written. A change that was written without it, because its
//! writer was killed or its answer was lost, is known to all as soon as somebody asks for it again.

use std::time::Instant;

use sconce::model::{Route, RouteChange, Stable, Version};

use super::{
    asked, promote,
    replicas::{OPTIONS, Place, Replicas},
};
use crate::{
    harness::{
        PATIENCE, Server, Store,
        adders::{ADDER, answering},
        eventually,
        s3::{Fault, Proxy, S3},
    },
    proto::*,
};

fn s3(place: &Place) -> &S3 {
    match place {
        Place::Bucket(s3) => s3,
        Place::Folder(_) => unreachable!("it is a bucket"),
    }
}

/// What a server that is killed between the route and the marker leaves.
async fn write_untold(s3: &S3, request_id: &str) {
    let (bucket, path) = (s3.bucket(s3.port()), format!("{ADDER}/route.yaml"));
    let object = bucket.get(&path).await.expect("an answer").expect("it is there");
    let mut route = Route::parse(&String::from_utf8_lossy(&object.bytes)).expect("a route");
    let revision = route.revision.expect("a server wrote it") + 1;
    route.revision = Some(revision);
    route.stable = Stable::Pinned(Version::new(1, 0, 2));
    route.history.push(RouteChange {
        revision,
        time: "2026-01-01T00:00:00Z".into(),
        change: "promote 1.0.2".into(),
        stable: route.stable,
        request_id: request_id.into(),
        ..RouteChange::default()
    });
    bucket.put(&path, route.to_yaml()).await.expect("written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_again_for_what_nobody_was_told_of_tells_all() {
    let Some(place) = Place::bucket().await else { return };
    let mut replicas = Replicas::start(place).await;
    replicas.promote_on(0, 1, "first").await;
    write_untold(s3(&replicas.place), "killed").await;
    let again = promote(&mut replicas.servers[1].admin().await, 2, asked("killed")).await.expect("it was done");
    assert_eq!((again.repeated, again.revision, again.settled()), (true, 2, Settled::Ready), "{again:?}");
    let does = async |server: &Server| answering(server, None).await.expect("never without an answer") == 2;
    replicas.all("1.0.2 answers", Instant::now(), does).await;
    assert_eq!(replicas.agree().await.revision, 2);
}

/// Waits until the server has written into the bucket all that it says of itself.
async fn says_no_more(s3: &S3, revision: u64) {
    let bucket = s3.bucket(s3.port());
    eventually("the server has said what it serves", PATIENCE, async || {
        let statuses = bucket.list(&format!("{ADDER}/.sconce/status")).await.expect("an answer");
        let object = bucket.get(&statuses.first()?.path).await.expect("an answer")?;
        let status: serde_json::Value = serde_json::from_slice(&object.bytes).ok()?;
        (status["revision"] == revision && status["pending"].is_null()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_whose_answer_was_lost_is_told_like_any_other() {
    let Some(place) = Place::bucket().await else { return };
    let through = Proxy::start(s3(&place), Fault::None).await;
    let writer = s3(&place).serve(Store::new(), through.port, &OPTIONS).await;
    promote(&mut writer.admin().await, 1, asked("first")).await.expect("it is right");
    says_no_more(s3(&place), 1).await;
    let other = s3(&place).serve(Store::new(), s3(&place).port(), &OPTIONS).await;
    through.set(Fault::SwallowOneAnswer);
    let answer = promote(&mut writer.admin().await, 2, asked("second")).await.expect("it is written");
    assert_eq!(through.fault(), Fault::None, "the answer was swallowed");
    assert_eq!((answer.revision, answer.settled()), (2, Settled::Ready), "{answer:?}");
    eventually("the other one follows", PATIENCE, async || {
        (answering(&other, None).await.expect("never without an answer") == 2).then_some(())
    })
    .await;
}

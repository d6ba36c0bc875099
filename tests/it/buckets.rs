//! The store is in a bucket, on a real S3 server; with it away, with it cutting connections, with it lying.

use std::time::Instant;

use sconce::store::{PutOutcome, bucket::MARKER};

use crate::{
    harness::{
        PATIENCE, Server, Store, call,
        disk::SmallDisk,
        eventually, fixture, http,
        s3::{Fault, Proxy, S3, SECRET, upload},
        tensors::{Form, Values, fixture_examples},
    },
    proto::*,
};

const MIB: usize = 1 << 20;

fn request() -> PredictRequest {
    let example = &fixture_examples("onnx/tiny").examples[0];
    PredictRequest {
        model: "tiny".into(),
        inputs: example.request.inputs.iter().map(|tensor| Values::of_example(tensor).to_sconce(Form::Raw)).collect(),
        ..Default::default()
    }
}

async fn stable(server: &Server) -> String {
    server.predict(request()).await.expect("an answer").served.expect("who served").version
}

async fn serves(server: &Server, version: &str) {
    eventually(&format!("{version} serves"), 2 * PATIENCE, async || {
        let answer = server.predict(request()).await.ok()?;
        (answer.served?.version == version).then_some(())
    })
    .await;
}

fn tiny() -> Vec<u8> {
    std::fs::read(fixture("onnx/tiny.onnx")).expect("a fixture")
}

/// Bytes that no two versions share.
fn filler(bytes: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..bytes).map(|_| random.u8(..)).collect()
}

/// A bucket with one version of `tiny`.
async fn bucket_with_tiny() -> Option<S3> {
    let s3 = S3::start().await?;
    s3.publish("tiny/1.0.0", &[("model.onnx", tiny())], false).await;
    Some(s3)
}

fn cache_bytes(store: &Store) -> u64 {
    let folders = ["objects", "partial"].map(|name| store.beside("work/cache").join(name));
    let files = folders.iter().flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten());
    files.filter_map(|file| Some(file.ok()?.metadata().ok()?.len())).sum()
}

#[tokio::test]
async fn a_new_version_is_served_and_a_quiet_bucket_costs_one_request_a_poll() {
    let Some(s3) = bucket_with_tiny().await else { return };
    let server = s3.serve(Store::new(), s3.port(), &[]).await;
    assert_eq!(stable(&server).await, "1.0.0");
    s3.publish("tiny/1.0.1", &[("model.onnx", tiny())], false).await;
    serves(&server, "1.0.1").await;
    server.settled().await;
    let before = s3.requests().len();
    eventually("twenty polls", PATIENCE, async || (s3.requests().len() >= before + 20).then_some(())).await;
    for (method, path) in &s3.requests()[before..] {
        // Its own status follows a change, once, and at its leisure.
        if path.contains("/.sconce/status/") {
            continue;
        }
        assert!(method == "GET" && path.ends_with(MARKER), "{method} {path}");
    }
    server.assert_unharmed().await;
}

#[tokio::test]
async fn who_writes_past_the_marker_asks_for_a_look() {
    let Some(s3) = bucket_with_tiny().await else { return };
    s3.publish("tiny/1.0.1", &[("model.onnx", tiny())], false).await;
    let server = s3.serve(Store::new(), s3.port(), &["--relist-interval=1h"]).await;
    assert_eq!(stable(&server).await, "1.0.1");
    s3.bucket(s3.port()).put("tiny/route.yaml", "stable: 1.0.0\n").await.expect("written");
    let polls = s3.requests().len() + 5;
    eventually("five polls", PATIENCE, async || (s3.requests().len() >= polls).then_some(())).await;
    assert_eq!(stable(&server).await, "1.0.1", "the marker said that nothing changed");
    server.admin().await.refresh(call(RefreshRequest::default())).await.expect("a look");
    serves(&server, "1.0.0").await;
}

#[tokio::test]
async fn without_a_marker_changes_are_seen_all_the_same() {
    let Some(s3) = S3::start().await else { return };
    let bucket = s3.bucket(s3.port());
    bucket.put("tiny/1/model.onnx", tiny()).await.expect("written");
    bucket.put("other/1/model.onnx", tiny()).await.expect("written");
    let server = s3.serve(Store::new(), s3.port(), &["--models=tin*"]).await;
    serves(&server, "1.0.0").await;
    bucket.put("tiny/2/model.onnx", tiny()).await.expect("written");
    serves(&server, "2.0.0").await;
    let others = s3.requests().into_iter().filter(|(method, path)| method == "GET" && path.contains("other"));
    assert_eq!(others.count(), 0, "--models says what is fetched");
}

#[tokio::test]
async fn it_starts_without_the_bucket_and_goes_on_when_it_is_back() {
    let Some(mut s3) = bucket_with_tiny().await else { return };
    let store = s3.serve(Store::new(), s3.port(), &[]).await.into_store();
    s3.stop();
    let server = s3.serve(store, s3.port(), &[]).await;
    assert_eq!(stable(&server).await, "1.0.0");
    assert!(server.log().contains("from the cache"), "{}", server.log());
    s3.resume().await;
    s3.publish("tiny/1.0.1", &[("model.onnx", tiny())], false).await;
    serves(&server, "1.0.1").await;
    assert!(server.log().contains("can be read again"), "{}", server.log());
}

#[tokio::test]
async fn it_serves_on_while_the_bucket_is_away() {
    let Some(mut s3) = bucket_with_tiny().await else { return };
    let server = s3.serve(Store::new(), s3.port(), &[]).await;
    s3.stop();
    eventually("the log says so", PATIENCE, async || server.log().contains("what is loaded serves on").then_some(()))
        .await;
    assert_eq!(stable(&server).await, "1.0.0");
    let (status, _) = http::get(server.ports.http, "/readyz").await.expect("an answer");
    assert_eq!(status, 200);
    s3.resume().await;
    s3.publish("tiny/1.0.1", &[("model.onnx", tiny())], false).await;
    serves(&server, "1.0.1").await;
}

#[tokio::test]
async fn a_download_that_is_cut_off_goes_on() {
    let Some(s3) = bucket_with_tiny().await else { return };
    const BYTES: usize = 8 * MIB;
    let proxy = Proxy::start(&s3, Fault::None).await;
    let server = s3.serve(Store::new(), proxy.port, &[]).await;
    let before = proxy.bytes();
    proxy.set(Fault::CutAfter(MIB as u64));
    s3.publish("tiny/1.0.1", &[("model.onnx", tiny()), ("weights.bin", filler(BYTES, 1))], false).await;
    serves(&server, "1.0.1").await;
    let passed = proxy.bytes() - before;
    assert!(passed < 2 * BYTES as u64, "{passed} bytes were fetched for {BYTES}: it began anew");

    // And over a restart: the part that an earlier process left is not fetched again.
    proxy.set(Fault::CutAfter(0));
    let weights = filler(BYTES, 2);
    s3.publish("tiny/1.0.2", &[("model.onnx", tiny()), ("weights.bin", weights.clone())], false).await;
    let store = server.into_store();
    let parts = store.beside("work/cache/partial");
    proxy.set(Fault::CutAfter(MIB as u64));
    let server = s3.begin(store, proxy.port, &[]).await;
    let long = |path: std::path::PathBuf| std::fs::metadata(path).is_ok_and(|found| found.len() > MIB as u64);
    eventually("a part", PATIENCE, async || {
        std::fs::read_dir(&parts).ok()?.flatten().any(|file| long(file.path())).then_some(())
    })
    .await;
    let store = server.into_store();
    proxy.set(Fault::None);
    let server = s3.begin(store, proxy.port, &[]).await;
    serves(&server, "1.0.2").await;
    assert!(server.log().contains("goes on where it was cut off"), "{}", server.log());
}

#[tokio::test]
async fn what_is_not_what_version_yaml_says_never_serves() {
    let Some(s3) = bucket_with_tiny().await else { return };
    let server = s3.serve(Store::new(), s3.port(), &[]).await;
    s3.publish("tiny/1.0.1", &[("model.onnx", tiny())], true).await;
    assert_eq!(server.failed("tiny", "1.0.1").await.reason, "DIGEST_MISMATCH");
    assert_eq!(stable(&server).await, "1.0.0");
    let checked = s3.command(s3.port(), &["check", &s3.url()]).output().expect("it runs");
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(said.contains("tiny 1.0.1: the sha256 of 'model.onnx'") && said.ends_with("1 problem\n"), "{said}");
    // And what was damaged in the cache is fetched again.
    let store = server.into_store();
    for file in std::fs::read_dir(store.beside("work/cache/objects")).expect("a folder").flatten() {
        std::fs::write(file.path(), vec![0; tiny().len()]).expect("written");
    }
    let server = s3.serve(store, s3.port(), &[]).await;
    serves(&server, "1.0.0").await;
}

#[tokio::test]
async fn the_cache_keeps_its_bound_and_says_when_it_is_too_small() {
    let Some(s3) = S3::start().await else { return };
    let version = |seed: u64, mib: usize| [("model.onnx", tiny()), ("weights.bin", filler(mib * MIB, seed))];
    s3.publish("tiny/1.0.0", &version(0, 1), false).await;
    let server = s3.serve(Store::new(), s3.port(), &["--cache-size=3MiB"]).await;
    for number in 1..=4 {
        s3.publish(&format!("tiny/1.0.{number}"), &version(number, 1), false).await;
        serves(&server, &format!("1.0.{number}")).await;
        let bytes = cache_bytes(&server.store);
        assert!(bytes <= 3 * MIB as u64, "{bytes} bytes in the cache");
    }
    s3.publish("tiny/1.0.9", &version(9, 4), false).await;
    let failed = server.failed("tiny", "1.0.9").await;
    assert_eq!(failed.reason, "NO_SPACE");
    assert!(failed.message.contains("cache"), "{}", failed.message);
    assert_eq!(stable(&server).await, "1.0.4");
}

#[tokio::test]
async fn two_servers_share_a_cache() {
    let Some(s3) = S3::start().await else { return };
    let files = [("model.onnx", tiny()), ("weights.bin", filler(8 * MIB, 1)), ("more.bin", filler(8 * MIB, 2))];
    s3.publish("tiny/1.0.0", &files, false).await;
    let (one, two) = (Store::new(), Store::new());
    one.beside_folder("work/cache");
    two.beside_folder("work");
    std::os::unix::fs::symlink(one.beside("work/cache"), two.beside("work/cache")).expect("a link");
    let (one, two) = tokio::join!(s3.serve(one, s3.port(), &[]), s3.serve(two, s3.port(), &[]));
    for server in [&one, &two] {
        serves(server, "1.0.0").await;
    }
    let whole: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
    let kept = cache_bytes(&one.store);
    assert!((whole as u64..whole as u64 + MIB as u64).contains(&kept), "{kept} bytes for {whole}: one copy, no parts");
}

#[tokio::test]
async fn a_full_disk_names_the_cache_and_the_old_version_serves() {
    let Some(s3) = bucket_with_tiny().await else { return };
    let store = Store::new();
    let Some(disk) = SmallDisk::mount(store.beside_folder("work/cache")) else { return };
    let server = s3.serve(store, s3.port(), &[]).await;
    s3.publish("tiny/1.0.1", &[("model.onnx", tiny()), ("weights.bin", filler(4 * MIB, 1))], false).await;
    let failed = server.failed("tiny", "1.0.1").await;
    assert_eq!(failed.reason, "NO_SPACE");
    assert!(failed.message.contains("disk of the cache"), "{}", failed.message);
    assert_eq!(stable(&server).await, "1.0.0");
    // The folder below can only go once nothing is mounted there.
    let store = server.into_store();
    drop(disk);
    drop(store);
}

#[tokio::test]
async fn no_log_holds_the_key() {
    let Some(s3) = bucket_with_tiny().await else { return };
    let store = Store::new();
    let proxy = Proxy::start(&s3, Fault::CutAfter(0)).await;
    let server = s3.begin(store, proxy.port, &["--log-level=trace,object_store=trace"]).await;
    eventually("a failure is logged", PATIENCE, async || server.log().contains("cannot be listed").then_some(())).await;
    proxy.set(Fault::None);
    server.ready().await;
    serves(&server, "1.0.0").await;
    assert!(!server.log().contains(SECRET));
    let (_, shown) = http::get(server.ports.http, "/readyz?verbose").await.expect("an answer");
    assert!(!shown.contains(SECRET), "{shown}");
    // Who has the wrong key hears that it is refused, and not which it was.
    let wrong = "wr0ng-k3y";
    let error = s3.bucket_with(s3.port(), wrong).get("a").await.expect_err("it is refused");
    assert!(error.message().contains("403") && !format!("{error:?}").contains(wrong), "{error:?}");
}

#[tokio::test]
async fn of_two_conditional_writes_one_is_lost() {
    let Some(s3) = S3::start().await else { return };
    let (one, two) = (s3.bucket(s3.port()), s3.bucket(s3.port()));
    let outcomes = tokio::join!(one.put_if("a", "1", None), two.put_if("a", "2", None));
    let written = |outcome: &sconce::error::Result<PutOutcome>| matches!(outcome, Ok(PutOutcome::Written(_)));
    assert!(written(&outcomes.0) != written(&outcomes.1), "{outcomes:?}");
    let known = one.get("a").await.expect("an answer").expect("it is there").etag;
    let outcomes = tokio::join!(one.put_if("a", "3", Some(&known)), two.put_if("a", "4", Some(&known)));
    assert!(written(&outcomes.0) != written(&outcomes.1), "{outcomes:?}");
    assert_eq!(one.put_if("a", "5", Some(&known)).await.expect("an answer"), PutOutcome::Lost);
    assert_eq!(one.put_if("a", "5", None).await.expect("an answer"), PutOutcome::Lost);
    one.delete("a").await.expect("removed");
    assert!(one.get("a").await.expect("an answer").is_none());
    assert_eq!(one.put_if("a", "6", Some(&known)).await.expect("an answer"), PutOutcome::Lost, "nothing is there");
}

#[tokio::test]
async fn a_write_whose_answer_was_lost_is_lost_and_there() {
    let Some(s3) = S3::start().await else { return };
    let proxy = Proxy::start(&s3, Fault::None).await;
    let bucket = s3.bucket(proxy.port);
    let first = bucket.put("a", "1").await.expect("written");
    proxy.set(Fault::SwallowOneAnswer);
    assert_eq!(bucket.put_if("a", "nonce", Some(&first)).await.expect("no error"), PutOutcome::Lost);
    assert_eq!(proxy.fault(), Fault::None, "the answer was swallowed");
    assert_eq!(&bucket.get("a").await.expect("an answer").expect("it is there").bytes[..], b"nonce");
}

#[tokio::test]
async fn a_dead_bucket_fails_in_seconds() {
    let Some(mut s3) = S3::start().await else { return };
    let bucket = s3.bucket(s3.port());
    s3.stop();
    let begun = Instant::now();
    let error = bucket.get("a").await.expect_err("nobody is there");
    assert_eq!((error.reason(), error.code()), ("STORE_UNAVAILABLE", sconce::error::Code::Unavailable));
    assert!(begun.elapsed().as_secs() < 11, "{:?}", begun.elapsed());
}

/// Prints what a whole listing costs; `cargo test --test it buckets -- --ignored --nocapture` does it for 3,000 objects too.
async fn measure_listing(objects: usize) {
    let Some(s3) = S3::start().await else { return };
    let bucket = s3.bucket(s3.port());
    for number in 0..objects {
        upload(&bucket, &format!("m{}/1.0.{}/model.onnx", number / 10, number % 10), b"x").await;
    }
    let before = bucket.requests();
    let begun = Instant::now();
    assert_eq!(bucket.list("").await.expect("listed").len(), objects);
    println!("{objects} objects: {} requests, {:?}", bucket.requests() - before, begun.elapsed());
}

#[tokio::test]
async fn a_listing_costs_a_request_for_each_thousand() {
    measure_listing(300).await;
}

#[tokio::test]
#[ignore = "a measurement"]
async fn a_listing_of_3000() {
    measure_listing(3000).await;
}

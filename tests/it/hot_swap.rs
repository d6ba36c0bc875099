//! A version takes over from another under load: nobody notices, but for the answers.

use std::time::{Duration, Instant};

use tonic::transport::Channel;

use crate::{
    harness::{
        PATIENCE, Server, Store,
        adders::{adders, predict, publish_adder, rows, version, who_answered},
        call, eventually, fixture, http,
        open_loop::OpenLoop,
        process,
        tensors::{Form, Values, floats},
        versions::publish,
    },
    proto::{inference_client::InferenceClient, oip, *},
};

const SWAPS: u64 = 200;
/// Of versions in the store: the publisher removes older ones, as publishers do.
const KEPT: u64 = 5;
/// From the moment when a version is complete, on a busy machine in a debug build.
const VISIBLE_WITHIN: Duration = Duration::from_secs(10);
/// The promise, held by the median of the swaps here, and by each in the bench.
const VISIBLE_USUALLY: Duration = Duration::from_secs(1);
const RATE_MAX: f64 = 300.0;
const MEMORY_SLACK: u64 = 64 << 20;

/// Calls a second with four at a time, measured for a moment.
async fn capacity(client: &InferenceClient<Channel>) -> f64 {
    const MEASURED: Duration = Duration::from_millis(500);
    let begun = Instant::now();
    let caller = async |place: u64| {
        let mut calls = 0;
        while begun.elapsed() < MEASURED {
            predict(client.clone(), place + 4 * calls).await.expect("an answer");
            calls += 1;
        }
        calls
    };
    let calls = tokio::join!(caller(0), caller(1), caller(2), caller(3));
    (calls.0 + calls.1 + calls.2 + calls.3) as f64 / begun.elapsed().as_secs_f64()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_swaps_under_load_fail_no_call_and_mix_no_answer() {
    let server = Server::start(adders(1..=1), &["--poll-interval=20ms", "--log-level=warn,sconce=info"]).await;
    let client = server.inference().await;
    let rate = (capacity(&client).await / 2.0).min(RATE_MAX);
    let memory = process::resident_bytes(server.pid());
    let load = OpenLoop::begin(rate, move |number| predict(client.clone(), number)).expect("a timer");
    let mut newest = load.newest();
    let mut visible_after = Vec::new();
    let mut copying = Duration::ZERO;
    let begun = Instant::now();
    for number in 2..2 + SWAPS {
        let published = publish_adder(&server.store, number);
        copying += published.copied - published.begun;
        let visible = tokio::time::timeout(PATIENCE, newest.wait_for(|first| first.answer >= number)).await;
        let Ok(Ok(first)) = visible.map(|seen| seen.map(|first| *first)) else {
            panic!("{} does not answer; failed calls: {:?}", version(number), load.so_far().failed);
        };
        visible_after.push(first.at.saturating_duration_since(published.complete));
        server.reaches("adder", &version(number - 1), VersionState::Available).await;
        if number > KEPT {
            server.store.remove(&format!("adder/{}", version(number - KEPT)));
        }
    }
    let took = begun.elapsed();
    let swapping = [(begun - load.begun(), load.begun().elapsed())];
    let record = load.end().await;

    assert!(
        record.failed.is_empty(),
        "{} calls failed: {:?}",
        record.failed.len(),
        &record.failed[..record.failed.len().min(5)]
    );
    visible_after.sort_unstable();
    let (median, worst) = (visible_after[visible_after.len() / 2], visible_after[visible_after.len() - 1]);
    // A machine that is shared holds no latency: it is shown here, and judged by the bench.
    let p99 = record.quantile(0.99, &swapping).unwrap_or_default();
    let answered = record.answered.len();
    eprintln!(
        "{SWAPS} swaps in {took:.1?} ({copying:.1?} of it copying), {answered} answers at {rate:.0}/s, p99 {p99:.1?}; visible after {median:.1?}, at most {worst:.1?}"
    );
    assert!(median < VISIBLE_USUALLY && worst < VISIBLE_WITHIN, "visible after {median:?}, at most {worst:?}");
    let mut versions: Vec<u64> = record.answered.iter().map(|sample| sample.answer).collect();
    versions.sort_unstable();
    versions.dedup();
    assert_eq!(versions, (1..2 + SWAPS).collect::<Vec<_>>(), "every version answered some call");
    server.assert_memory_is_back(memory, MEMORY_SLACK).await;
    server.assert_unharmed().await;
}

#[tokio::test]
async fn a_stream_goes_on_through_swaps_and_each_answer_is_one_versions() {
    const MESSAGES_A_SWAP: u64 = 10;
    let server = Server::start(adders(1..=1), &["--poll-interval=20ms"]).await;
    let (questions, asked) = tokio::sync::mpsc::channel(1);
    let mut oip = server.oip().await;
    let asked = tokio_stream::wrappers::ReceiverStream::new(asked);
    let mut answers = oip.model_stream_infer(asked).await.expect("a stream").into_inner();
    let mut seen = Vec::new();
    for number in 1..=10 {
        if number > 1 {
            publish_adder(&server.store, number);
        }
        let mut since_swap = 0;
        while since_swap < MESSAGES_A_SWAP {
            let input = rows(number);
            let mut request = oip::ModelInferRequest { model_name: "adder".into(), ..Default::default() };
            input.clone().into_oip(&mut request, Form::Raw);
            questions.send(request).await.expect("the stream is open");
            let answer = answers.message().await.expect("the stream is open").expect("an answer");
            assert_eq!(answer.error_message, "");
            let answer = answer.infer_response.expect("an answer");
            let output = &Values::of_oip(&answer)[0];
            seen.push(who_answered(&input, &answer.model_version, output).expect("a right answer"));
            since_swap += u64::from(seen.last() == Some(&number));
        }
    }
    assert!(seen.is_sorted(), "no answer comes from a version that was left: {seen:?}");
}

#[tokio::test]
async fn a_call_that_runs_ends_on_the_version_it_began_with() {
    let slow = std::fs::read(fixture("onnx/slow.onnx")).expect("a fixture");
    let store = Store::new().file("slow/model.yaml", "batching: {queue_timeout: 60s}\n");
    let publish_slow = |store: &Store, version: &str| {
        publish(&store.path().join("slow"), version, &[("model.onnx", &slow)], "").expect("a version");
    };
    publish_slow(&store, "1.0.0");
    let server = Server::start(store, &["--poll-interval=20ms"]).await;
    let ask = |rows: i64| {
        let values = vec![0.5; usize::try_from(8 * rows).expect("a count")];
        let inputs = vec![floats("x", &[rows, 8], &values).to_sconce(Form::Raw)];
        PredictRequest { model: "slow".into(), inputs, ..Default::default() }
    };
    let mut client = server.inference().await;
    // Seconds of work.
    let long = tokio::spawn(async move { client.predict(call(ask(500))).await });
    eventually("the long call runs", PATIENCE, async || {
        let (_, text) = http::get(server.ports.metrics, "/metrics").await.ok()?;
        text.contains("sconce_requests_in_flight 1").then_some(())
    })
    .await;
    publish_slow(&server.store, "1.1.0");
    eventually("the new version answers", PATIENCE, async || {
        let served = server.predict(ask(1)).await.expect("an answer").served.expect("who served");
        (served.version == "1.1.0").then_some(())
    })
    .await;
    let answer = long.await.expect("no panic").expect("an answer").into_inner();
    assert_eq!(answer.served.expect("who served").version, "1.0.0");
    let unloaded = async || {
        let status = server.version("slow", "1.0.0").await?;
        (status.state() == VersionState::Available).then_some(())
    };
    eventually("the old version goes when its last call has ended", PATIENCE, unloaded).await;
}

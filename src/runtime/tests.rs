//! The drivers of the queue, on real cores and threads, over a backend whose behaviour each test writes.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use super::{Config, Done, Marker, Runtime, Servable, ServableConfig, Work};
use crate::{
    backend::{
        Executable,
        scripted::{ENDED_FOR_ANOTHER, FAILS, FILLER, HANGS, PANICS, Scripted},
    },
    error::Result,
    model::{
        Device, Features, Manifest, ModelName, ModelYaml, Parameters, Placement, Platform, Priority, Tensor, Version,
        VersionYaml,
    },
    telemetry::Metrics,
};

struct Bench {
    runtime: Arc<Runtime>,
    servable: Arc<Servable>,
    runs: Arc<Mutex<Vec<Vec<f64>>>>,
    gate: Arc<Mutex<()>>,
}

/// One row costs `micros`; past the budget of 1 ms it belongs on threads.
fn bench(scripted: Scripted, micros: f64, yaml: &str) -> Bench {
    bench_on(1, scripted, micros, yaml)
}

fn bench_on(cores: usize, scripted: Scripted, micros: f64, yaml: &str) -> Bench {
    let runtime = Runtime::start(&Config { cores, loop_budget: Duration::from_millis(1) }).expect("it starts");
    let model = ModelYaml::parse(yaml).expect("good yaml");
    let manifest = Manifest::resolve(Platform::Onnx, model, VersionYaml::default()).expect("a good manifest");
    let (runs, gate) = (scripted.runs.clone(), scripted.gate.clone());
    let executable: Arc<dyn Executable> = Arc::new(scripted);
    let signature = executable.signature().clone();
    let servable = Servable::new(
        &runtime,
        ServableConfig {
            model: ModelName::new("m").expect("a name"),
            version: Version::new(1, 0, 0),
            features: Features::new(&signature, None).expect("no normalizer"),
            signature,
            manifest,
            executable,
            batching_reason: String::new(),
            pads: true,
            cost: vec![(1, micros), (2, micros * 2.0)],
            metrics: Metrics::new().version("m", "1.0.0"),
            mark: Marker::none().of(1),
        },
    );
    Bench { runtime, servable, runs, gate }
}

fn work(values: &[f64]) -> Work {
    Work {
        inputs: vec![Tensor::from_f64("x".into(), [values.len()].into_iter().collect(), values.to_vec())],
        rows: values.len(),
        outputs: vec![0],
        parameters: Parameters::default(),
        priority: Priority::Normal,
        deadline: None,
    }
}

fn values(done: Result<Done>) -> Result<Vec<f64>, &'static str> {
    done.map(|done| bytemuck::pod_collect_to_vec(&done.outputs[0].data)).map_err(|error| error.reason())
}

impl Bench {
    /// All of them decoded in one turn of the core's loop.
    fn together(&self, works: Vec<Work>) -> Vec<Result<Vec<f64>, &'static str>> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(works.len());
        let count = works.len();
        let servable = self.servable.clone();
        self.runtime.cores().spawn_on(
            0,
            Box::new(move || {
                for (place, work) in works.into_iter().enumerate() {
                    let (servable, sender) = (servable.clone(), sender.clone());
                    tokio::spawn(async move {
                        let done = values(run(servable, work).await);
                        sender.send((place, done)).expect("the test waits");
                    });
                }
            }),
        );
        let mut answers: Vec<_> = (0..count).map(|_| receiver.recv().expect("every work is answered")).collect();
        answers.sort_by_key(|(place, _)| *place);
        answers.into_iter().map(|(_, answer)| answer).collect()
    }

    fn runs(&self) -> Vec<Vec<f64>> {
        self.runs.lock().expect("no holder panics").clone()
    }
}

async fn run(servable: Arc<Servable>, work: Work) -> Result<Done> {
    servable.run(work)?.await
}

#[test]
fn requests_of_one_turn_are_one_batch_and_each_gets_its_own_rows() {
    let bench = bench(Scripted::new(true), 1.0, "");
    let answers = bench.together(vec![work(&[1.0]), work(&[2.0, 3.0]), work(&[4.0])]);
    assert_eq!(answers, [Ok(vec![2.0]), Ok(vec![4.0, 6.0]), Ok(vec![8.0])]);
    assert_eq!(bench.runs(), [vec![1.0, 2.0, 3.0, 4.0]]);
}

#[test]
fn a_model_on_a_gpu_has_threads_of_its_own_however_cheap_it_is() {
    for (device, place) in [(Device::Cpu, Placement::Loop), (Device::Cuda(0), Placement::Threads)] {
        let scripted = Scripted { device, ..Scripted::new(true) };
        let threads = scripted.threads.clone();
        // `defaults:` may say loop for all models.
        let bench = bench(scripted, 1.0, "instances: { placement: loop }");
        assert_eq!(bench.servable.placement(), place);
        assert_eq!(bench.together(vec![work(&[1.0])]), [Ok(vec![2.0])]);
        let own = threads.lock().expect("no holder panics").iter().all(|name| name.starts_with("run-m-"));
        assert_eq!(own, place == Placement::Threads, "{device}");
    }
}

#[test]
fn requests_too_large_together_are_answered_alone_and_only_one_too_large_alone_is_refused() {
    let scripted = Scripted { device: Device::Cuda(0), rows_max: 2, ..Scripted::new(true) };
    let bench = bench(scripted, 1.0, "batching: { max_delay: 200ms }");
    let answers = bench.together(vec![work(&[1.0]), work(&[2.0, 3.0]), work(&[4.0, 5.0, 6.0])]);
    assert_eq!(answers, [Ok(vec![2.0]), Ok(vec![4.0, 6.0]), Err("DEVICE_OUT_OF_MEMORY")]);
    assert_eq!(bench.runs()[0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "they were tried together");
}

#[test]
fn a_model_that_does_not_batch_runs_each_request_whole_and_alone() {
    let bench = bench(Scripted::new(false), 1.0, "");
    let answers = bench.together(vec![work(&[1.0, 2.0]), work(&[3.0])]);
    assert_eq!(answers, [Ok(vec![2.0, 4.0]), Ok(vec![6.0])]);
    assert_eq!(bench.runs(), [vec![1.0, 2.0], vec![3.0]]);
}

#[test]
fn rows_that_do_not_gain_by_joining_are_run_one_after_another() {
    let bench = bench(Scripted { gains_by_joining: false, ..Scripted::new(true) }, 1.0, "");
    bench.together(vec![work(&[1.0]), work(&[2.0])]);
    assert_eq!(bench.runs(), [vec![1.0], vec![2.0]]);
}

#[test]
fn only_the_guilty_request_gets_the_error() {
    for guilty in [FAILS, PANICS] {
        let bench = bench(Scripted::new(true), 1.0, "");
        let answers = bench.together(vec![work(&[1.0]), work(&[guilty]), work(&[3.0])]);
        let reason = if guilty == FAILS { "BACKEND_FAILED" } else { "BACKEND_PANICKED" };
        assert_eq!(answers, [Ok(vec![2.0]), Err(reason), Ok(vec![6.0])]);
    }
}

#[test]
fn an_instance_that_panics_is_made_anew_and_one_that_fails_is_not() {
    for micros in [1.0, 5000.0] {
        let scripted = Scripted::new(true);
        let sessions = scripted.sessions.clone();
        let made = || sessions.load(std::sync::atomic::Ordering::Relaxed);
        let bench = bench(scripted, micros, "");
        assert_eq!(bench.together(vec![work(&[FAILS])]), [Err("BACKEND_FAILED")]);
        assert_eq!(made(), 1);
        assert_eq!(bench.together(vec![work(&[PANICS])]), [Err("BACKEND_PANICKED")]);
        assert_eq!(made(), 2);
        assert_eq!(bench.together(vec![work(&[3.0])]), [Ok(vec![6.0])]);
    }
}

#[test]
fn batches_keep_to_the_largest_size() {
    let bench = bench(Scripted::new(true), 1.0, "batching: { max_batch_size: 2 }");
    bench.together((0..5).map(|value| work(&[f64::from(value)])).collect());
    assert_eq!(bench.runs().iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 1]);
}

#[test]
fn a_full_queue_refuses_at_once_with_a_hint_when_to_come_back() {
    let bench = bench(Scripted::new(true), 1.0, "batching: { max_batch_size: 2, max_queue: { rows: 3 } }");
    let answers = bench.together((0..5).map(|value| work(&[f64::from(value)])).collect());
    assert_eq!(answers.iter().filter(|answer| **answer == Err("QUEUE_FULL")).count(), 2);
    assert_eq!(bench.runs().concat(), [0.0, 1.0, 2.0]);
}

#[test]
fn dear_work_runs_on_threads_of_its_own_and_joins_what_waits_there() {
    let bench = bench(Scripted::new(true), 5000.0, "");
    assert_eq!(bench.servable.placement(), Placement::Threads);
    let held = bench.gate.lock().expect("no holder panics");
    let (servable, runs) = (bench.servable.clone(), bench.runs.clone());
    let asking = std::thread::Builder::new().spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let ask = |value: f64| tokio::spawn(run(servable.clone(), work(&[value])));
            let answers = [ask(1.0), ask(2.0), ask(3.0)];
            for (place, answer) in answers.into_iter().enumerate() {
                let answer = values(answer.await.expect("no panic"));
                assert_eq!(answer, Ok(vec![2.0 * (place as f64 + 1.0)]));
            }
        });
    });
    drop(held);
    asking.expect("it starts").join().expect("all answered");
    assert_eq!(runs.lock().expect("no holder panics").concat().len(), 3);
}

#[tokio::test]
#[expect(clippy::await_holding_lock, reason = "the gate stands between the test and the model's own thread")]
async fn work_that_waits_past_its_deadline_is_not_run() {
    let bench = bench(Scripted::new(false), 5000.0, "batching: { queue_timeout: 10s }");
    let held = bench.gate.lock().expect("no holder panics");
    let first = tokio::spawn(run(bench.servable.clone(), work(&[1.0])));
    tokio::task::yield_now().await;
    let late = Work { deadline: Some(Instant::now() + Duration::from_millis(20)), ..work(&[2.0]) };
    let late = values(run(bench.servable.clone(), late).await);
    assert_eq!(late, Err("DEADLINE_EXCEEDED"));
    drop(held);
    assert_eq!(values(first.await.expect("no panic")), Ok(vec![2.0]));
    assert_eq!(values(run(bench.servable.clone(), work(&[3.0])).await), Ok(vec![6.0]));
    assert_eq!(bench.runs(), [vec![1.0], vec![3.0]]);
}

#[tokio::test]
#[expect(clippy::await_holding_lock, reason = "the gate stands between the test and the model's own thread")]
async fn work_whose_caller_left_is_not_run() {
    let bench = bench(Scripted::new(false), 5000.0, "");
    let held = bench.gate.lock().expect("no holder panics");
    let first = tokio::spawn(run(bench.servable.clone(), work(&[1.0])));
    tokio::task::yield_now().await;
    let cancelled = tokio::spawn(run(bench.servable.clone(), work(&[2.0])));
    tokio::task::yield_now().await;
    cancelled.abort();
    assert!(cancelled.await.expect_err("it was cancelled").is_cancelled());
    drop(held);
    assert!(first.await.expect("no panic").is_ok());
    assert_eq!(values(run(bench.servable.clone(), work(&[3.0])).await), Ok(vec![6.0]));
    assert_eq!(bench.runs(), [vec![1.0], vec![3.0]]);
}

#[tokio::test]
async fn a_run_whose_only_caller_has_gone_is_ended() {
    let bench = bench(Scripted::new(false), 5000.0, "batching: { queue_timeout: 60s }");
    let left = tokio::spawn(run(bench.servable.clone(), work(&[HANGS])));
    while bench.runs().is_empty() {
        tokio::task::yield_now().await;
    }
    left.abort();
    assert_eq!(values(run(bench.servable.clone(), work(&[1.0])).await), Ok(vec![2.0]), "its thread is free again");
    assert_eq!(bench.runs(), [vec![HANGS], vec![1.0]], "and nothing is run again for nobody");
}

#[tokio::test]
#[expect(clippy::await_holding_lock, reason = "the gate stands between the test and the model's own thread")]
async fn a_batch_whose_callers_have_all_gone_is_ended() {
    let bench = bench(Scripted::new(true), 5000.0, "batching: { queue_timeout: 60s }");
    let held = bench.gate.lock().expect("no holder panics");
    let ask = |values: &[f64]| tokio::spawn(run(bench.servable.clone(), work(values)));
    let first = ask(&[1.0]);
    tokio::task::yield_now().await;
    while bench.servable.metrics().queue_rows.get() > 0 {
        tokio::task::yield_now().await;
    }
    let callers = [ask(&[HANGS]), ask(&[2.0])];
    tokio::task::yield_now().await;
    drop(held);
    assert_eq!(values(first.await.expect("no panic")), Ok(vec![2.0]));
    while bench.runs().len() < 2 {
        tokio::task::yield_now().await;
    }
    callers.iter().for_each(tokio::task::JoinHandle::abort);
    assert_eq!(values(run(bench.servable.clone(), work(&[3.0])).await), Ok(vec![6.0]));
    assert_eq!(bench.runs(), [vec![1.0], vec![HANGS, 2.0], vec![3.0]]);
}

#[tokio::test]
#[expect(clippy::await_holding_lock, reason = "the gate stands between the test and the model's own thread")]
async fn a_queue_timeout_is_unavailable_and_not_run() {
    let bench = bench(Scripted::new(false), 5000.0, "batching: { queue_timeout: 20ms }");
    let held = bench.gate.lock().expect("no holder panics");
    let first = tokio::spawn(run(bench.servable.clone(), work(&[1.0])));
    tokio::task::yield_now().await;
    assert_eq!(values(run(bench.servable.clone(), work(&[2.0])).await), Err("QUEUE_TIMEOUT"));
    drop(held);
    assert!(first.await.expect("no panic").is_ok());
}

#[test]
fn dropping_the_last_handle_frees_sessions_and_weights() {
    for micros in [1.0, 5000.0] {
        let bench = bench(Scripted::new(true), micros, "");
        bench.together(vec![work(&[1.0])]);
        let runs = Arc::downgrade(&bench.runs);
        let Bench { runtime, servable, runs: own, .. } = bench;
        drop((servable, own));
        let give_up = Instant::now() + Duration::from_secs(10);
        while runs.strong_count() > 0 {
            assert!(Instant::now() < give_up, "the weights are still held");
            std::thread::yield_now();
        }
        runtime.stop();
    }
}

#[test]
fn a_request_larger_than_a_batch_is_split_and_joined_again() {
    for micros in [1.0, 5000.0] {
        let bench = bench(Scripted::new(true), micros, "batching: { max_batch_size: 4, max_queue: { rows: 8 } }");
        let many: Vec<f64> = (0..11).map(f64::from).collect();
        let answers = bench.together(vec![work(&many)]);
        assert_eq!(answers, [Ok(many.iter().map(|value| value * 2.0).collect())]);
        assert_eq!(bench.runs().iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 3]);
    }
}

#[test]
fn the_error_of_one_part_is_the_error_of_the_whole() {
    let bench = bench(Scripted::new(true), 1.0, "batching: { max_batch_size: 2 }");
    let answers = bench.together(vec![work(&[1.0, 2.0, FAILS]), work(&[4.0])]);
    assert_eq!(answers, [Err("BACKEND_FAILED"), Ok(vec![8.0])]);
}

#[test]
fn a_batch_waits_for_its_delay_and_no_longer_in_the_loop_and_on_threads() {
    for micros in [1.0, 5000.0] {
        let bench = bench(Scripted::new(true), micros, "batching: { max_batch_size: 4, max_delay: 30ms }");
        let begun = Instant::now();
        assert_eq!(bench.together(vec![work(&[1.0]), work(&[2.0])]).len(), 2);
        assert!(begun.elapsed() >= Duration::from_millis(30), "{:?}", begun.elapsed());
        assert_eq!(bench.runs(), [vec![1.0, 2.0]]);
    }
}

#[test]
fn a_full_batch_waits_for_nothing() {
    for micros in [1.0, 5000.0] {
        let bench =
            bench(Scripted::new(true), micros, "batching: { max_batch_size: 4, max_delay: 59s, queue_timeout: 60s }");
        let begun = Instant::now();
        bench.together((0..4).map(|value| work(&[f64::from(value)])).collect());
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    }
}

#[test]
fn a_delay_below_the_timers_tick_is_kept() {
    let bench = bench(Scripted::new(true), 1.0, "batching: { max_delay: 300us }");
    let begun = Instant::now();
    for _ in 0..100 {
        bench.together(vec![work(&[1.0])]);
    }
    let mean = begun.elapsed() / 100;
    assert!((Duration::from_micros(300)..Duration::from_millis(50)).contains(&mean), "{mean:?}");
}

#[test]
fn where_a_model_runs_can_be_said() {
    let bench = bench(Scripted::new(true), 1.0, "instances: { placement: threads }");
    assert_eq!(bench.servable.placement(), Placement::Threads);
    assert_eq!(bench.together(vec![work(&[1.0])]), [Ok(vec![2.0])]);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    /// Requests of random sizes, some of which fail, some of which are split: each gets what is its own.
    #[test]
    fn rows_go_back_to_their_owners(
        sizes in proptest::collection::vec((1usize..9, proptest::bool::weighted(0.1)), 1..24),
        batch_max in 1usize..12,
    ) {
        let yaml = format!("batching: {{ max_batch_size: {batch_max}, max_queue: {{ rows: 4096 }} }}");
        let bench = bench(Scripted::new(true), 1.0, &yaml);
        let mut next = 0.0;
        let mut expected = Vec::new();
        let mut works = Vec::new();
        for (rows, fails) in sizes {
            let mut values: Vec<f64> = (0..rows).map(|row| next + row as f64).collect();
            next += 100.0;
            expected.push(if fails { Err("BACKEND_FAILED") } else { Ok(values.iter().map(|value| value * 2.0).collect()) });
            if fails {
                values[rows - 1] = FAILS;
            }
            works.push(work(&values));
        }
        proptest::prop_assert_eq!(bench.together(works), expected);
        bench.runtime.stop();
    }
}

fn padded_work(rows: usize, length: usize, first: f64) -> Work {
    let values = (0..rows * length).map(|place| first + place as f64).collect();
    let x = Tensor::from_f64("x".into(), [rows, length].into_iter().collect(), values);
    Work { inputs: vec![x], rows, ..work(&[]) }
}

#[test]
fn a_request_runs_at_the_size_that_it_becomes_joined_and_alone() {
    let bench = bench(Scripted::padded(), 1.0, "");
    let answers = bench.together(vec![padded_work(1, 3, 1.0), padded_work(1, 1, 5.0), padded_work(1, 5, 11.0)]);
    assert_eq!(answers, [Ok(vec![2.0, 4.0, 6.0]), Ok(vec![10.0]), Ok(vec![22.0, 24.0, 26.0, 28.0, 30.0])]);
    let filled = |values: &[f64], size: usize| [values, &vec![FILLER; size - values.len()][..]].concat();
    let joined = [filled(&[1.0, 2.0, 3.0], 4), filled(&[5.0], 4)].concat();
    assert_eq!(bench.runs(), [joined, filled(&[11.0, 12.0, 13.0, 14.0, 15.0], 8)]);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    /// Of random rows and lengths, some of which fail, some of which are split: each gets its own, at its own length.
    #[test]
    fn padded_rows_go_back_to_their_owners(
        requests in proptest::collection::vec((1usize..6, 0usize..9, proptest::bool::weighted(0.1)), 1..16),
        batch_max in 1usize..9,
    ) {
        let yaml = format!("batching: {{ max_batch_size: {batch_max}, max_queue: {{ rows: 4096 }} }}");
        let bench = bench(Scripted::padded(), 1.0, &yaml);
        let mut works = Vec::new();
        let mut expected = Vec::new();
        for ((rows, length, fails), first) in requests.into_iter().zip((1..).map(|place| f64::from(place) * 100.0)) {
            let mut work = padded_work(rows, length, first);
            let mut values: Vec<f64> = bytemuck::pod_collect_to_vec(&work.inputs[0].data);
            let fails = fails && length > 0;
            expected.push(if fails { Err("BACKEND_FAILED") } else { Ok(values.iter().map(|value| value * 2.0).collect()) });
            if fails {
                values[rows * length - 1] = FAILS;
                work.inputs[0].data = crate::model::bytes_from(values);
            }
            works.push(work);
        }
        proptest::prop_assert_eq!(bench.together(works), expected);
        for run in bench.runs() {
            proptest::prop_assert!(run.len() <= batch_max * 8 && run.len().is_multiple_of(4), "{run:?}");
        }
        bench.runtime.stop();
    }
}

#[test]
fn the_parts_of_a_request_wait_for_each_other_as_long_as_it_takes() {
    for micros in [1.0, 5000.0] {
        let scripted = Scripted { pause: Duration::from_millis(30), ..Scripted::new(true) };
        let bench = bench(scripted, micros, "batching: { max_batch_size: 1, queue_timeout: 50ms }");
        let many: Vec<f64> = (0..4).map(f64::from).collect();
        assert_eq!(bench.together(vec![work(&many)]), [Ok(vec![0.0, 2.0, 4.0, 6.0])]);
    }
}

#[test]
fn what_holds_up_a_core_is_ended_and_goes_on_elsewhere_and_harms_nobody_else() {
    let bench = bench(Scripted::new(true), 1.0, "");
    let late = Work { deadline: Some(Instant::now() + Duration::from_secs(1)), ..work(&[HANGS]) };
    let answers = bench.together(vec![work(&[1.0]), late, work(&[3.0])]);
    assert_eq!(answers, [Ok(vec![2.0]), Err("DEADLINE_EXCEEDED"), Ok(vec![6.0])]);
    assert_eq!(bench.servable.placement(), Placement::Threads, "it runs on its own from now on");
    assert!(bench.servable.metrics().core_holds.get() >= 1);
    // The thread comes back, too: its run was ended when nobody waited for it any more.
    assert_eq!(bench.together(vec![work(&[5.0])]), [Ok(vec![10.0])]);
}

#[test]
fn a_request_that_runs_whole_runs_where_the_whole_of_it_fits() {
    for (batch, large) in [(false, "run-m-0"), (true, "core-0")] {
        let scripted = Scripted::new(batch);
        let threads = scripted.threads.clone();
        // 64 rows fit the loop's budget of a millisecond, a thousand do not, whatever the first run has taught; in parts they do.
        let bench = bench(scripted, 2.0, "");
        bench.together(vec![work(&[1.0])]);
        let many: Vec<f64> = (0..1000).map(f64::from).collect();
        assert_eq!(bench.together(vec![work(&many)])[0].as_ref().map(Vec::len), Ok(1000));
        let threads = threads.lock().expect("no holder panics");
        assert_eq!(
            (threads.first().map(String::as_str), threads.last().map(String::as_str)),
            (Some("core-0"), Some(large))
        );
    }
}

#[test]
fn a_stop_that_was_meant_for_the_run_before_harms_nobody() {
    for micros in [1.0, 5000.0] {
        let bench = bench(Scripted::new(true), micros, "");
        assert_eq!(bench.together(vec![work(&[ENDED_FOR_ANOTHER])]), [Ok(vec![2.0 * ENDED_FOR_ANOTHER])]);
    }
}

/// What runs where, of works that come together on the first of two cores, once the second has taken part.
fn on_two_cores(scripted: Scripted, micros: f64, works: &[f64]) -> Vec<String> {
    let threads = scripted.threads.clone();
    let bench = bench_on(2, scripted, micros, "");
    let begun = Instant::now();
    loop {
        let answers = bench.together(works.iter().map(|value| work(&[*value])).collect());
        assert_eq!(answers, works.iter().map(|value| Ok(vec![2.0 * value])).collect::<Vec<_>>());
        let mut ran: Vec<String> = threads.lock().expect("no holder panics").drain(..).collect();
        ran.sort();
        if ran.iter().any(|thread| thread == "core-1") {
            assert!(bench.servable.metrics().handed_over.get() > 0);
            return ran;
        }
        // The other core may not have slept yet when it was asked for.
        assert!(begun.elapsed() < Duration::from_secs(30), "{ran:?}");
    }
}

#[test]
fn what_would_wait_for_a_turn_runs_on_a_core_that_has_nothing_to_do() {
    let pause = Duration::from_micros(600);
    let scripted = Scripted { gains_by_joining: false, pause, ..Scripted::new(true) };
    let ran = on_two_cores(scripted, 600.0, &[1.0, 2.0, 3.0]);
    assert!(ran.len() == 3 && ran.contains(&"core-0".to_owned()), "{ran:?}");
}

#[test]
fn a_dear_batch_leaves_the_core_that_decodes() {
    let scripted = Scripted { pause: Duration::from_micros(600), ..Scripted::new(true) };
    assert_eq!(on_two_cores(scripted, 150.0, &[1.0, 2.0, 3.0, 4.0]), ["core-1"]);
}

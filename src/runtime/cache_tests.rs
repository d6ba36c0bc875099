//! The kept answers on paused time: how long, how many, and who computes.

use std::{
    cell::Cell,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant as Moment},
};

use tokio::{
    task::{JoinHandle, LocalSet, spawn_local},
    time::{Instant, advance, sleep},
};

use super::*;
use crate::model::Timing;

const A: Digest = [1; 32];
const B: Digest = [2; 32];
const SECOND: Duration = Duration::from_secs(1);

/// A cache, and how often something was computed for it.
#[derive(Clone)]
struct Bench {
    cache: Rc<AnswerCache>,
    runs: Rc<Cell<usize>>,
}

fn bench(ttl: Duration, max_entries: usize, max_bytes: u64) -> Bench {
    let limits = CacheLimits { ttl, max_entries, max_bytes, key: vec![] };
    Bench { cache: Rc::new(AnswerCache::new(limits, Arc::default())), runs: Rc::default() }
}

fn plain() -> Bench {
    bench(60 * SECOND, 100, 1 << 20)
}

fn digest(number: usize) -> Digest {
    let mut digest = [0; 32];
    digest[..8].copy_from_slice(&number.to_le_bytes());
    digest
}

fn done(value: f64, elements: usize) -> Done {
    let values = vec![value; elements];
    let output = Tensor::from_f64("y".into(), [elements].into_iter().collect(), values);
    Done { outputs: vec![output], timing: Timing::default() }
}

/// Its first number, and how old it was where it was kept.
fn told(found: Result<Found>) -> Result<(f64, Option<Duration>), &'static str> {
    let first = |outputs: &[Tensor]| bytemuck::pod_read_unaligned(&outputs[0].data[..8]);
    match found {
        Ok(Found::Computed(done)) => Ok((first(&done.outputs), None)),
        Ok(Found::Kept { outputs, age }) => Ok((first(&outputs), Some(age))),
        Err(error) => Err(error.reason()),
    }
}

/// A deadline on the paused clock.
fn within(time: Duration) -> Option<Moment> {
    Some((Instant::now() + time).into_std())
}

impl Bench {
    /// The number of the run, after `takes`.
    async fn ask(
        &self,
        digest: Digest,
        deadline: Option<Moment>,
        takes: Duration,
    ) -> Result<(f64, Option<Duration>), &'static str> {
        self.ask_for(digest, deadline, takes, |run| Ok(done(run, 1))).await
    }

    async fn ask_for(
        &self,
        digest: Digest,
        deadline: Option<Moment>,
        takes: Duration,
        end: impl FnOnce(f64) -> Result<Done>,
    ) -> Result<(f64, Option<Duration>), &'static str> {
        let compute = async {
            self.runs.set(self.runs.get() + 1);
            let run = self.runs.get() as f64;
            sleep(takes).await;
            end(run)
        };
        told(self.cache.get_or_compute(&digest, deadline, compute).await)
    }

    fn spawn(
        &self,
        deadline: Option<Moment>,
        takes: Duration,
    ) -> JoinHandle<Result<(f64, Option<Duration>), &'static str>> {
        let bench = self.clone();
        spawn_local(async move { bench.ask(A, deadline, takes).await })
    }

    fn counted(&self) -> (u64, u64) {
        (self.cache.metrics.hits.get(), self.cache.metrics.misses.get())
    }

    fn held(&self) -> (i64, i64) {
        (self.cache.metrics.entries.get(), self.cache.metrics.bytes.get())
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_given_again_until_its_time_is_over_and_not_under_another_digest() {
    let bench = bench(10 * SECOND, 100, 1 << 20);
    assert_eq!(bench.ask(A, None, SECOND).await, Ok((1.0, None)));
    advance(3 * SECOND).await;
    assert_eq!(bench.ask(A, None, SECOND).await, Ok((1.0, Some(3 * SECOND))));
    assert_eq!(bench.ask(B, None, Duration::ZERO).await, Ok((2.0, None)));
    advance(7 * SECOND - Duration::from_millis(1)).await;
    assert!(matches!(bench.ask(A, None, SECOND).await, Ok((1.0, Some(_)))), "from when it was computed, not asked for");
    advance(Duration::from_millis(1)).await;
    assert_eq!(bench.ask(A, None, SECOND).await, Ok((3.0, None)));
    assert_eq!(bench.ask(A, None, SECOND).await, Ok((3.0, Some(Duration::ZERO))));
    assert_eq!(bench.counted(), (3, 3));
    assert_eq!(bench.held().0, 2, "the old one is gone");
}

#[tokio::test(start_paused = true)]
async fn equal_requests_at_once_are_computed_once() {
    LocalSet::new()
        .run_until(async {
            let bench = plain();
            let asked: Vec<_> = (0..50).map(|_| bench.spawn(None, SECOND)).collect();
            for (place, task) in asked.into_iter().enumerate() {
                let (value, age) = task.await.expect("no panic").expect("an answer");
                assert_eq!((value, age.is_some()), (1.0, place > 0));
            }
            assert_eq!((bench.runs.get(), bench.counted()), (1, (49, 1)));
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn where_the_one_that_computes_goes_away_the_next_does() {
    LocalSet::new()
        .run_until(async {
            let bench = plain();
            let asked: Vec<_> = (0..4).map(|_| bench.spawn(None, SECOND)).collect();
            advance(SECOND / 2).await;
            asked[0].abort();
            // One that only waits may go away as well.
            asked[2].abort();
            let mut answers = Vec::new();
            for task in asked {
                answers.extend(task.await.ok());
            }
            assert_eq!(answers.iter().filter(|answer| matches!(answer, Ok((2.0, None)))).count(), 1, "{answers:?}");
            assert_eq!(answers.iter().filter(|answer| matches!(answer, Ok((2.0, Some(_))))).count(), 1, "{answers:?}");
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_longer_than_until_its_own_deadline() {
    LocalSet::new()
        .run_until(async {
            let bench = plain();
            let begun = Instant::now();
            let first = bench.spawn(None, 10 * SECOND);
            let hasty = bench.spawn(within(2 * SECOND), 10 * SECOND);
            let patient = bench.spawn(within(20 * SECOND), 10 * SECOND);
            assert_eq!(hasty.await.expect("no panic"), Err("DEADLINE_EXCEEDED"));
            assert_eq!(begun.elapsed(), 2 * SECOND);
            assert_eq!(first.await.expect("no panic"), Ok((1.0, None)));
            assert!(matches!(patient.await.expect("no panic"), Ok((1.0, Some(_)))));
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn what_the_first_ran_out_of_is_not_the_others_trouble() {
    LocalSet::new()
        .run_until(async {
            let bench = plain();
            let hasty = {
                let bench = bench.clone();
                let late = |_| Err(Error::deadline_exceeded("before the answer came"));
                spawn_local(async move { bench.ask_for(A, within(SECOND), SECOND, late).await })
            };
            tokio::task::yield_now().await;
            let patient = bench.spawn(None, SECOND);
            assert_eq!(hasty.await.expect("no panic"), Err("DEADLINE_EXCEEDED"));
            assert_eq!(patient.await.expect("no panic"), Ok((2.0, None)));
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn an_error_reaches_who_waited_for_it_and_is_not_kept() {
    LocalSet::new()
        .run_until(async {
            let bench = plain();
            let fail = |_| Err(Error::internal("BACKEND_FAILED", "as the test says"));
            let failing = || {
                let bench = bench.clone();
                spawn_local(async move { bench.ask_for(A, None, SECOND, fail).await })
            };
            for task in [failing(), failing(), failing()] {
                assert_eq!(task.await.expect("no panic"), Err("BACKEND_FAILED"));
            }
            assert_eq!(bench.runs.get(), 1);
            assert_eq!(bench.ask(A, None, SECOND).await, Ok((2.0, None)));
            assert_eq!(bench.counted(), (0, 2));
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn neither_limit_is_ever_passed() {
    for (max_entries, max_bytes, elements) in
        [(1, 1 << 20, 1), (3, 1 << 20, 1), (100, 8 << 20, 1), (1000, 64 << 10, 100)]
    {
        let bench = bench(60 * SECOND, max_entries, max_bytes);
        for number in 0..300 {
            let end = |run| Ok(done(run, elements));
            assert!(bench.ask_for(digest(number), None, Duration::ZERO, end).await.is_ok());
            let (entries, bytes) = bench.held();
            assert!(entries <= max_entries as i64 && bytes <= max_bytes as i64, "{entries} entries, {bytes} bytes");
        }
        let (entries, bytes) = bench.held();
        let full = entries as f64 >= 0.9 * max_entries as f64 || bytes as f64 >= 0.9 * max_bytes as f64;
        assert!(full, "{entries} of {max_entries} entries, {bytes} of {max_bytes} bytes");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_larger_than_all_of_it_is_given_and_not_kept() {
    let bench = bench(60 * SECOND, 100, 64 << 10);
    let large = |run| Ok(done(run, 10_000));
    assert_eq!(bench.ask_for(A, None, Duration::ZERO, large).await, Ok((1.0, None)));
    assert_eq!(bench.held(), (0, 0));
    assert_eq!(bench.ask_for(A, None, Duration::ZERO, large).await, Ok((2.0, None)));
}

#[tokio::test(start_paused = true)]
async fn what_it_held_is_not_counted_when_it_is_gone() {
    let bench = plain();
    assert_eq!(bench.ask(A, None, Duration::ZERO).await, Ok((1.0, None)));
    let metrics = bench.cache.metrics.clone();
    assert!((metrics.entries.get(), metrics.bytes.get() > 0) == (1, true));
    drop(bench);
    assert_eq!((metrics.entries.get(), metrics.bytes.get()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_small_answer_does_not_hold_the_batch_that_it_was_cut_from() {
    let bench = plain();
    let batch = Bytes::from(vec![0u8; 1 << 16]);
    let row = Tensor { data: batch.slice(..8), ..done(0.0, 1).outputs.remove(0) };
    let end = |_| Ok(Done { outputs: vec![row], timing: Timing::default() });
    assert!(bench.ask_for(A, None, Duration::ZERO, end).await.is_ok());
    assert!(batch.is_unique());
}

#[test]
fn whoever_stays_is_answered_however_many_give_up_on_other_threads() {
    const THREADS: u64 = 4;
    const CALLS: usize = 3_000;
    let limits = CacheLimits { ttl: Duration::from_micros(50), max_entries: 4, max_bytes: 1 << 20, key: vec![] };
    let cache = Arc::new(AnswerCache::new(limits, Arc::default()));
    // Each a core: a runtime of its own.
    let cores: Vec<_> = (0..THREADS)
        .map(|seed| {
            let cache = cache.clone();
            let call = move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                runtime.block_on(LocalSet::new().run_until(call_and_give_up(cache, seed, CALLS)))
            };
            std::thread::Builder::new().name(format!("core-{seed}")).spawn(call).expect("a thread")
        })
        .collect();
    let answered: usize = cores.into_iter().map(|core| core.join().expect("no panic")).sum();
    assert!(answered >= CALLS, "{answered}");
    assert_eq!(cache.metrics.entries.get(), cache.slots.len() as i64);
}

/// Many calls at once under a few digests, of which every other one gives up at some point; how many were answered. Each answer is
/// its digest's own.
async fn call_and_give_up(cache: Arc<AnswerCache>, seed: u64, calls: usize) -> usize {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut open = Vec::new();
    for place in 0..calls {
        let (number, steps, fails) = (random.usize(..8), random.usize(..20), random.u8(..8) == 0);
        let cache = cache.clone();
        let task = spawn_local(async move {
            let compute = async {
                for _ in 0..steps {
                    tokio::task::yield_now().await;
                }
                if fails {
                    Err(Error::internal("BACKEND_FAILED", "as the test says"))
                } else {
                    Ok(done(number as f64, 1))
                }
            };
            match told(cache.get_or_compute(&digest(number), None, compute).await) {
                Ok((value, _)) => assert_eq!(value, number as f64),
                Err(reason) => assert_eq!(reason, "BACKEND_FAILED"),
            }
        });
        open.push((place % 2 == 0, task));
        if random.u8(..4) == 0 {
            tokio::task::yield_now().await;
            open.iter().filter(|(gives_up, _)| *gives_up).for_each(|(_, task)| task.abort());
        }
    }
    let mut answered = 0;
    for (gives_up, task) in open {
        let ended = tokio::time::timeout(30 * SECOND, task).await.expect("nobody is forgotten");
        assert!(ended.is_ok() || gives_up, "{ended:?}");
        answered += usize::from(ended.is_ok());
    }
    answered
}

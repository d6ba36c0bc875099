//! Callers who do not know of any version: what they see of which one, while a rollout goes on.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::task::{JoinHandle, JoinSet};
use tonic::transport::Channel;

use super::trial::SCORER;
use crate::{
    harness::{
        PATIENCE, Server, call, reason,
        tensors::{Form, Values, floats},
    },
    proto::{inference_client::InferenceClient, record_outcome_request::Prediction, *},
};

/// Calls without a version, until `end`.
pub struct Load {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

/// What the callers saw.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// By version, those that stable answered in another's place left out.
    pub answered: BTreeMap<String, u64>,
    /// By variant, likewise.
    pub variants: BTreeMap<String, u64>,
    /// By the reason of the stand-in.
    pub degraded: BTreeMap<String, u64>,
    /// By the status' stable word.
    pub failed: BTreeMap<String, u64>,
    pub non_finite: u64,
    /// Outcomes that were acknowledged.
    pub credited: u64,
    /// Outcomes that had to be sent again: whether the one who did not answer had counted them, nobody can tell.
    pub sent_again: u64,
}

/// How they call.
#[derive(Clone, Default)]
pub struct Manner {
    /// Whether rows come that some versions get wrong: every third one is.
    pub triggers: bool,
    /// Who is told what became of each prediction, the next one where one does not answer; nobody is where there are none.
    pub outcomes_to: Vec<InferenceClient<Channel>>,
}

struct Shared {
    seen: Mutex<Seen>,
    number: AtomicU64,
    triggers: AtomicBool,
    ends: AtomicBool,
}

const CALLERS: usize = 8;
/// Between two calls of one caller: the machine has other things to do.
const PAUSE: Duration = Duration::from_millis(4);
const TRIGGER: f32 = 100.0;

// === impl Load ===

impl Load {
    pub async fn begin(server: &Server, manner: Manner) -> Self {
        let shared = Arc::new(Shared {
            seen: Mutex::default(),
            number: AtomicU64::new(0),
            triggers: AtomicBool::new(manner.triggers),
            ends: AtomicBool::new(false),
        });
        let clients = [server.inference().await, server.inference().await];
        let callers = (0..CALLERS).map(|caller| {
            let (shared, client) = (shared.clone(), clients[caller % clients.len()].clone());
            tokio::spawn(calls(shared, client, manner.outcomes_to.clone()))
        });
        Self { tasks: callers.collect(), shared }
    }

    /// From now on rows come that some versions get wrong.
    pub fn triggers(&self) {
        self.shared.triggers.store(true, Relaxed);
    }

    pub fn so_far(&self) -> Seen {
        self.shared.seen().clone()
    }

    /// When the last call is over.
    pub async fn end(self) -> Seen {
        self.shared.ends.store(true, Relaxed);
        for task in self.tasks {
            task.await.expect("a caller does not panic");
        }
        self.shared.seen().clone()
    }
}

async fn calls(shared: Arc<Shared>, mut client: InferenceClient<Channel>, outcomes: Vec<InferenceClient<Channel>>) {
    let mut reports = JoinSet::new();
    while !shared.ends.load(Relaxed) {
        let number = shared.number.fetch_add(1, Relaxed);
        let row = row(number, shared.triggers.load(Relaxed));
        let inputs = vec![floats("x", &[1, 4], &row).to_sconce(Form::Raw)];
        let request = PredictRequest { model: SCORER.into(), inputs, ..Default::default() };
        match client.predict(call(request)).await {
            Ok(answer) => {
                let answer = answer.into_inner();
                let id = answer.prediction_ids.first().cloned().unwrap_or_default();
                shared.seen().note(answer);
                if !outcomes.is_empty() {
                    reports.spawn(report(shared.clone(), outcomes.clone(), id, label(number, &row)));
                }
            }
            Err(status) => {
                let word = reason(&status);
                *shared.seen().failed.entry(word).or_default() += 1;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
    while let Some(reported) = reports.join_next().await {
        reported.expect("nobody who reports panics");
    }
}

/// Acknowledged when it is written, which takes longer than an answer: nobody waits for it.
async fn report(shared: Arc<Shared>, to: Vec<InferenceClient<Channel>>, id: String, label: f64) {
    let prediction = Some(Prediction::PredictionId(id));
    let request = RecordOutcomeRequest { prediction, label: Some(label), ..Default::default() };
    let begun = Instant::now();
    for turn in 0.. {
        let mut client = to[turn % to.len()].clone();
        if let Ok(told) = client.record_outcome(call(request.clone())).await {
            let result = told.into_inner().result();
            assert!(matches!(result, OutcomeResult::Credited | OutcomeResult::Repeated), "{result:?}");
            let mut seen = shared.seen();
            seen.credited += 1;
            seen.sent_again += u64::from(turn > 0);
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "nobody takes an outcome");
        tokio::time::sleep(PAUSE).await;
    }
}

/// Another one for each number, and the same for the same number.
fn row(number: u64, triggers: bool) -> [f32; 4] {
    let kind = if triggers && number.is_multiple_of(3) { TRIGGER } else { 0.0 };
    let value = |place: u64| (mixed(number * 4 + place) % 2001) as f32 / 1000.0 - 1.0;
    [kind, value(1), value(2), value(3)]
}

/// As tests/fixtures/scorers.py has it: the truth, but for one row of ten.
fn label(number: u64, row: &[f32; 4]) -> f64 {
    let is_positive = 2.0 * row[1] - row[2] + row[3] > 0.0;
    f64::from(is_positive != mixed(number).is_multiple_of(10))
}

/// SplitMix64's finalizer.
fn mixed(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

// === impl Shared ===

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Seen ===

impl Seen {
    fn note(&mut self, answer: PredictResponse) {
        let served = answer.served.expect("it says who served");
        match answer.degraded {
            Some(degraded) => *self.degraded.entry(degraded.reasons.join(" ")).or_default() += 1,
            None => {
                *self.answered.entry(served.version).or_default() += 1;
                *self.variants.entry(served.variant).or_default() += 1;
            }
        }
        let numbers = answer.outputs.first().map(|output| Values::of_sconce(output).numbers()).unwrap_or_default();
        self.non_finite += u64::from(numbers.iter().any(|number| !number.is_finite()));
    }

    pub fn answered_by(&self, version: &str) -> u64 {
        self.answered.get(version).copied().unwrap_or(0)
    }

    pub fn failed(&self) -> u64 {
        self.failed.values().sum()
    }

    pub fn all(&self) -> u64 {
        self.answered.values().chain(self.degraded.values()).chain(self.failed.values()).sum()
    }
}

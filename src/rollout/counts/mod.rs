//! What the replicas counted: outcomes credited to the cells of those who predicted, the cells carried to the store, and the
//! sums of all replicas.
//!
//! `writer` writes each model's cells into one file of this replica's, cumulative, whose form is in `file`; `window` knows an
//! outcome again that comes twice. The edge records outcomes here and waits until they are durable; whoever judges versions
//! reads the sums. It decides nothing about traffic.

mod file;
mod ledger;
mod window;
mod writer;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;

use self::{ledger::Ledger, window::Window};
use crate::{
    catalog::ModelEntry,
    engine::Engine,
    error::{Code, Error, Result},
    model::{ModelName, Version, repeated},
    monitor::{Key, Outcome, Scoreboard, Tally},
    store::Records,
    telemetry::Metrics,
};

/// The counts of this replica and what becomes of them. Cheap to clone.
#[derive(Clone)]
pub struct Counts(Arc<Inner>);

struct Inner {
    /// Reads prediction ids, and knows the models.
    engine: Engine,
    scoreboard: Scoreboard,
    records: Records,
    /// The name of this replica's files.
    replica: String,
    metrics: Arc<Metrics>,
    /// Of the models that are written. One that nobody reports an outcome of, and whose route has one version, has none.
    ledgers: Mutex<HashMap<ModelName, Arc<Ledger>>>,
    /// There is a ledger without a writer.
    opened: Notify,
    window: Mutex<Window>,
    hasher: RandomState,
    /// Files that cannot be read, each said once.
    unreadable: Mutex<HashSet<(ModelName, String)>>,
}

/// What all replicas counted of a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sums {
    pub counts: Vec<(Key, Tally)>,
    /// Whose files cannot be read: what they counted is missing.
    pub unread: Vec<String>,
}

/// Which prediction somebody reports of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Claim {
    PredictionId(String),
    /// By what its answer said.
    Own {
        request_id: String,
        model: String,
        version: Version,
        variant: String,
    },
}

/// What was made of an outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    Credited,
    /// It counts already.
    Repeated,
    UnknownId,
}

/// An outcome that was taken.
pub struct Recorded {
    pub taken: Taken,
    /// Whose it is, where that is known.
    pub whose: Option<(ModelName, Key)>,
    receipt: Option<Receipt>,
}

/// That an outcome, and all that were taken of its model before, are to become durable.
#[derive(Clone)]
pub struct Receipt {
    ledger: Arc<Ledger>,
    number: u64,
}

/// A prediction that is known.
struct Due {
    model: ModelName,
    key: Key,
    score: f64,
}

/// Cells of one revision beyond which a variant that nobody has heard of gets none: names are the callers' own words.
const CELLS_OF_OWN_IDS_MAX: usize = 64;
/// How long whoever reports an outcome waits for the store.
const SETTLED_WITHIN: Duration = Duration::from_secs(5);
const RETRY_LATER: Duration = Duration::from_secs(1);

// === impl Counts ===

impl Counts {
    pub fn new(
        engine: Engine,
        scoreboard: Scoreboard,
        records: Records,
        replica: impl Into<String>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self(Arc::new(Inner {
            engine,
            scoreboard,
            records,
            replica: replica.into(),
            metrics,
            ledgers: Mutex::default(),
            opened: Notify::new(),
            window: Mutex::default(),
            hasher: RandomState::new(),
            unreadable: Mutex::default(),
        }))
    }

    /// Writes the counts until `end`, and a last time then.
    pub async fn keep(self, end: impl Future<Output = ()>) {
        writer::keep(self.0, end).await;
    }

    /// Counts an outcome at once; `settled` says when it is durable. UNAVAILABLE while the models are not known yet.
    pub fn record(&self, claim: &Claim, outcome: &Outcome) -> Result<Recorded> {
        let inner = &*self.0;
        let due = match claim {
            Claim::PredictionId(id) => inner.due_to(id)?,
            Claim::Own { model, version, variant, .. } => inner.due_to_own(model, *version, variant)?,
        };
        let Some(Due { model, key, score }) = due else {
            inner.metrics.outcome("", Taken::UnknownId.as_str());
            return Ok(Recorded { taken: Taken::UnknownId, whose: None, receipt: None });
        };
        let ledger = inner.ledger(&model);
        let fingerprint = inner.fingerprint(claim, outcome);
        let (taken, number) = {
            // Held until it is counted: whoever finds it in the window finds it in the cell, too.
            let mut window = inner.window.lock().unwrap_or_else(PoisonError::into_inner);
            let is_new = window.note(fingerprint);
            if is_new {
                inner.scoreboard.cell(&model, &key).credit(score, outcome);
            }
            (if is_new { Taken::Credited } else { Taken::Repeated }, ledger.ask())
        };
        inner.metrics.outcome(model.as_str(), taken.as_str());
        Ok(Recorded { taken, whose: Some((model, key)), receipt: Some(Receipt { ledger, number }) })
    }

    /// What is counted of a model on all replicas, by revision, variant and version: of this one as it stands, of the others as
    /// they wrote it last. What a replica that died had counted and not written is missing. UNAVAILABLE while the store is away.
    pub async fn sums(&self, model: &ModelName) -> Result<Sums> {
        let inner = &*self.0;
        let notes = inner.records.counts(model).await?;
        let known = inner.ledgers().get(model).cloned();
        // Neither may change between the two looks: what is read back from the own file is in the cells afterwards.
        let restored = known.as_ref().map(|ledger| ledger.restored());
        let is_restored = restored.as_deref().copied().unwrap_or(false);
        let live = inner.scoreboard.read(model);
        drop(restored);
        let mut sums: BTreeMap<Key, Tally> = BTreeMap::new();
        let mut unread = Vec::new();
        for (key, tally) in live {
            sums.insert(key, tally);
        }
        for note in notes.iter().filter(|note| !is_restored || note.replica != inner.replica) {
            match inner.read(model, &note.replica, &note.text) {
                Some(cells) => cells.iter().for_each(|(key, tally)| sums.entry(key.clone()).or_default().merge(tally)),
                None => unread.push(note.replica.clone()),
            }
        }
        Ok(Sums { counts: sums.into_iter().collect(), unread })
    }

    /// This one's name.
    pub fn replica(&self) -> &str {
        &self.0.replica
    }

    /// What this replica itself has counted, and read back.
    pub fn own(&self, model: &ModelName) -> Vec<(Key, Tally)> {
        self.0.scoreboard.read(model)
    }
}

// === impl Inner ===

impl Inner {
    /// Whose prediction an id is of; `None` where these servers did not make it, or its model is gone.
    fn due_to(&self, id: &str) -> Result<Option<Due>> {
        let Some(said) = self.engine.predicted(id) else {
            return Ok(None);
        };
        let is_known = self.entry(said.model.as_str())?.is_some();
        let key = Key { revision: said.revision, variant: said.variant, version: said.version };
        Ok(is_known.then(|| Due { model: said.model, key, score: said.score.into() }))
    }

    /// The same for what a caller says by itself: of the revision that is in force, and without a score.
    fn due_to_own(&self, model: &str, version: Version, variant: &str) -> Result<Option<Due>> {
        let Some(entry) = self.entry(model)? else {
            return Ok(None);
        };
        let key = Key { revision: entry.revision, variant: variant.to_owned(), version };
        let is_plain = !repeated(variant).is_empty();
        if !is_plain || !entry.versions.contains_key(&version) || !self.has_room(&entry.name, &key) {
            return Ok(None);
        }
        Ok(Some(Due { model: entry.name.clone(), key, score: f64::NAN }))
    }

    fn has_room(&self, model: &ModelName, key: &Key) -> bool {
        let cells = self.scoreboard.cells(model);
        let is_there = cells.iter().any(|(known, _)| known == key);
        is_there || cells.iter().filter(|(known, _)| known.revision == key.revision).count() < CELLS_OF_OWN_IDS_MAX
    }

    /// `None` for a model that the store does not have; UNAVAILABLE before the store was looked at.
    fn entry(&self, model: &str) -> Result<Option<Arc<ModelEntry>>> {
        let snapshot = self.engine.catalog().load();
        match snapshot.models.get(model) {
            None if !snapshot.scanned => {
                Err(Error::unavailable("STARTING", "the first look at the store is not done yet", RETRY_LATER))
            }
            entry => Ok(entry.cloned()),
        }
    }

    fn fingerprint(&self, claim: &Claim, outcome: &Outcome) -> u64 {
        let bits = |number: Option<f64>| number.map(f64::to_bits);
        let metrics: Vec<(&str, u64)> =
            outcome.metrics.iter().map(|(name, value)| (name.as_str(), value.to_bits())).collect();
        self.hasher.hash_one((claim, bits(outcome.label), bits(outcome.reward), metrics))
    }

    /// The model's ledger; from the first time on it is written.
    fn ledger(&self, model: &ModelName) -> Arc<Ledger> {
        let mut ledgers = self.ledgers();
        if let Some(ledger) = ledgers.get(model) {
            return ledger.clone();
        }
        let ledger = Arc::new(Ledger::new(model.clone()));
        ledgers.insert(model.clone(), ledger.clone());
        self.opened.notify_one();
        ledger
    }

    /// What stands in a replica's file; `None`, and said once, where it cannot be read.
    fn read(&self, model: &ModelName, replica: &str, text: &str) -> Option<Vec<(Key, Tally)>> {
        let read = file::read(text);
        if let Err(error) = &read {
            let mut said = self.unreadable.lock().unwrap_or_else(PoisonError::into_inner);
            if said.insert((model.clone(), replica.to_owned())) {
                tracing::warn!(%model, replica, %error, "a replica's counts cannot be read and are left out");
            }
        }
        read.ok()
    }

    /// Maps are whole after each step, so a panic elsewhere is no reason to stop counting.
    fn ledgers(&self) -> MutexGuard<'_, HashMap<ModelName, Arc<Ledger>>> {
        self.ledgers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Taken ===

impl Taken {
    pub fn as_str(self) -> &'static str {
        match self {
            Taken::Credited => "credited",
            Taken::Repeated => "repeated",
            Taken::UnknownId => "unknown",
        }
    }
}

// === impl Recorded ===

impl Recorded {
    /// `None` for what does not count.
    pub fn receipt(&self) -> Option<&Receipt> {
        self.receipt.as_ref()
    }
}

// === impl Receipt ===

impl Receipt {
    pub fn model(&self) -> &ModelName {
        self.ledger.model()
    }

    /// Returns when the outcome is durable, or with `false` where nothing can be written at all: then it counts until the server
    /// ends. An error says that it counts here and may be lost: whoever sends it again here does not count it twice.
    pub async fn settled(&self) -> Result<bool> {
        let waited = tokio::time::timeout(SETTLED_WITHIN, self.ledger.attempt(self.number)).await;
        match waited {
            Ok(Ok(())) => Ok(true),
            Ok(Err(error)) if error.code() == Code::FailedPrecondition => Ok(false),
            Ok(Err(error)) => Err(error),
            Err(_) => {
                let message = format!("the store did not take the counts within {SETTLED_WITHIN:?}; send it again");
                Err(Error::unavailable("COUNTS_UNWRITTEN", message, RETRY_LATER))
            }
        }
    }
}

#[cfg(test)]
mod tests;

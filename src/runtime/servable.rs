//! One version at work: where a request waits, and where it runs.
//!
//! Work whose predicted time fits the loop budget waits on the core that decoded it and runs there; work that does not goes
//! to the servable's own threads, which exist from the first such work on. Dropping the last handle is the drain: each core
//! hands over its session, the threads end, and the reaper frees the weights.

use std::{
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use smallvec::{SmallVec, smallvec};

use super::{
    Mark, Runtime,
    batch::{Pending, Pendings},
    cache::AnswerCache,
    cost::Cost,
    running::{Answering, Running},
    shared::Shared,
    split,
    threads::Threads,
    work::{Done, Outcome, Reply, Work, draining},
};
use crate::{
    backend::{self, Executable},
    error::Result,
    model::{Device, Features, Manifest, ModelName, Parameters, Placement, Signature, Version},
    telemetry::VersionMetrics,
};

/// All that a servable is made of.
pub struct ServableConfig {
    pub model: ModelName,
    pub version: Version,
    pub manifest: Manifest,
    pub executable: Arc<dyn Executable>,
    /// The executable's, with `batch` cleared everywhere where joining was not shown to be safe.
    pub signature: Signature,
    pub features: Features,
    /// Why requests are joined, or why not, in words for operators.
    pub batching_reason: String,
    /// Whether padded inputs were shown to answer as unpadded ones.
    pub pads: bool,
    /// Measured (rows, microseconds of one run), ascending by rows; from the child.
    pub cost: Vec<(usize, f64)>,
    pub metrics: Arc<VersionMetrics>,
    /// How its runs are marked.
    pub mark: Mark,
}

/// A version at work. Dropping the last handle is the drain.
pub struct Servable {
    shared: Arc<Shared>,
    threads: OnceLock<Threads>,
    runtime: Weak<Runtime>,
}

// === impl Servable ===

impl Servable {
    pub fn new(runtime: &Arc<Runtime>, config: ServableConfig) -> Arc<Self> {
        let shared = Arc::new(Shared {
            id: runtime.next_id(),
            joinable: config.signature.batches(),
            pads: config.pads && config.signature.batches() && config.signature.pads(),
            gains_by_joining: config.executable.gains_by_joining(),
            cost: Cost::new(&config.cost),
            cache: config.manifest.cache.clone().map(|limits| AnswerCache::new(limits, config.metrics.cache())),
            model: config.model,
            version: config.version,
            manifest: config.manifest,
            signature: config.signature,
            features: config.features,
            batching_reason: config.batching_reason,
            metrics: config.metrics,
            mark: config.mark,
            executable: config.executable,
            moved: AtomicBool::new(false),
            dear: AtomicBool::new(false),
        });
        Arc::new(Self { shared, threads: OnceLock::new(), runtime: Arc::downgrade(runtime) })
    }

    pub fn model(&self) -> &ModelName {
        &self.shared.model
    }

    pub fn version(&self) -> Version {
        self.shared.version
    }

    pub fn manifest(&self) -> &Manifest {
        &self.shared.manifest
    }

    pub fn signature(&self) -> &Signature {
        &self.shared.signature
    }

    pub fn features(&self) -> &Features {
        &self.shared.features
    }

    pub fn metrics(&self) -> &Arc<VersionMetrics> {
        &self.shared.metrics
    }

    /// The answers that it keeps; `None` where `model.yaml` does not ask for that.
    pub fn cache(&self) -> Option<&AnswerCache> {
        self.shared.cache.as_ref()
    }

    /// The library and its version.
    pub fn library(&self) -> &str {
        self.shared.executable.library()
    }

    /// Where it really runs.
    pub fn device(&self) -> Device {
        self.shared.executable.device()
    }

    pub fn batching_reason(&self) -> &str {
        &self.shared.batching_reason
    }

    /// Whether inputs are filled up to the sizes that model.yaml gives.
    pub fn pads(&self) -> bool {
        self.shared.pads
    }

    pub fn check_parameters(&self, parameters: &Parameters) -> Result<()> {
        backend::refuse_unknown_parameters(self.shared.manifest.platform, parameters)?;
        self.shared.executable.check_parameters(parameters)
    }

    /// The predicted time of one run of that many rows.
    pub fn predicted(&self, rows: usize) -> Duration {
        self.shared.cost.predict(rows)
    }

    /// The predicted time of what waits, as one run.
    pub fn waiting(&self) -> Duration {
        match usize::try_from(self.shared.metrics.queue_rows.get()) {
            Ok(rows) if rows > 0 => self.shared.cost.predict(rows),
            _ => Duration::ZERO,
        }
    }

    /// Where one row would run now.
    pub fn placement(&self) -> Placement {
        let budget = self.runtime.upgrade().map_or(Duration::ZERO, |runtime| runtime.loop_budget());
        self.place(1, budget)
    }

    /// Queues the work, waits for its batch and gives back its part.
    ///
    /// UNAVAILABLE `QUEUE_FULL` at once when there is no room; DEADLINE_EXCEEDED when its time is up, and then it was not run
    /// if it was still queued. Dropping the future takes the work out of the queue.
    ///
    /// What runs whole in the loop of a core is queued at once, not when it is first waited for.
    pub fn run(self: Arc<Self>, work: Work) -> Result<Running> {
        let runtime = self.runtime.upgrade().ok_or_else(draining)?;
        let splits = self.shared.joinable && work.rows > self.shared.manifest.max_batch_size;
        if splits || self.place(work.rows, runtime.loop_budget()) == Placement::Threads {
            return Ok(Running::other(async move { self.run_in_parts(work).await }));
        }
        let deadline = work.deadline;
        let (reply, answer) = Reply::channel();
        let pending = Pending { work, enqueued: Instant::now(), goes_on: false, reply, shared: self.shared.clone() };
        runtime.cores().submit(smallvec![pending])?;
        Ok(Running::Queued { answer: Answering::new(answer, deadline), servable: self })
    }

    /// On threads, or as several parts of which each is as large as a batch may be.
    async fn run_in_parts(&self, work: Work) -> Result<Done> {
        let runtime = self.runtime.upgrade().ok_or_else(draining)?;
        let deadline = work.deadline;
        let (rows, rows_max) = (work.rows, self.shared.manifest.max_batch_size);
        let (works, largest): (SmallVec<[Work; 1]>, usize) = match self.shared.joinable && rows > rows_max {
            true => (split::parts(work, &self.shared.signature, rows_max).into(), rows_max),
            false => (smallvec![work], rows),
        };
        let place = self.place(largest, runtime.loop_budget());
        let enqueued = Instant::now();
        let mut pendings = Pendings::new();
        let mut answers: SmallVec<[_; 1]> = SmallVec::new();
        for work in works {
            let (reply, answer) = Reply::channel();
            let goes_on = !pendings.is_empty();
            pendings.push(Pending { work, enqueued, goes_on, reply, shared: self.shared.clone() });
            answers.push(answer);
        }
        let mut parts: SmallVec<[Done; 1]> = SmallVec::new();
        match place {
            Placement::Loop => {
                runtime.cores().submit(pendings)?;
                for answer in answers {
                    parts.push(match Answering::new(answer, deadline).await? {
                        Outcome::Done(done) => done,
                        Outcome::Elsewhere(work) => self.run_on_threads(*work).await?,
                    });
                }
            }
            Placement::Threads => {
                let queue_deadline = enqueued + self.shared.manifest.queue_timeout;
                let threads = self.threads(&runtime);
                for (ticket, answer) in threads.submit(pendings)?.into_iter().zip(answers) {
                    let queue_deadline = parts.is_empty().then_some(queue_deadline);
                    parts.push(threads.wait(ticket, answer, deadline, queue_deadline).await?.done()?);
                }
            }
        }
        match parts.len() {
            1 => parts.pop().ok_or_else(draining),
            _ => split::join(parts, rows),
        }
    }

    /// What held up a core is run here, as long as somebody waits for it.
    pub async fn run_on_threads(&self, work: Work) -> Result<Done> {
        let runtime = self.runtime.upgrade().ok_or_else(draining)?;
        let (deadline, enqueued) = (work.deadline, Instant::now());
        let (reply, answer) = Reply::channel();
        let pending = Pending { work, enqueued, goes_on: true, reply, shared: self.shared.clone() };
        let threads = self.threads(&runtime);
        let ticket = threads.submit(smallvec![pending])?.pop().ok_or_else(draining)?;
        threads.wait(ticket, answer, deadline, None).await?.done()
    }

    /// They are there from the first work for them on.
    fn threads(&self, runtime: &Runtime) -> &Threads {
        self.threads.get_or_init(|| Threads::start(&self.shared, runtime.watchdog()))
    }

    fn place(&self, rows: usize, loop_budget: Duration) -> Placement {
        // A run on a GPU keeps its thread waiting, however short it is.
        if self.device() != Device::Cpu || self.shared.moved.load(Ordering::Relaxed) {
            return Placement::Threads;
        }
        if let Some(place) = self.shared.manifest.placement {
            return place;
        }
        match self.shared.is_dear(loop_budget) || self.shared.cost.predict(rows) > loop_budget {
            true => Placement::Threads,
            false => Placement::Loop,
        }
    }
}

impl Drop for Servable {
    fn drop(&mut self) {
        if let Some(threads) = self.threads.take() {
            threads.close();
        }
        if let Some(runtime) = self.runtime.upgrade() {
            runtime.retire(self.shared.clone());
        }
    }
}

//! ONE REQUEST: its phases, in order, in one readable function.
//!
//! Knows the catalog and the servables; knows nothing of protocols, sockets or the store. The edge calls `predict` with the
//! words of `model` and turns the answer back into its protocol.

mod cache;
mod prediction_id;
mod router;
mod shadow;

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use pin_project_lite::pin_project;

pub use prediction_id::{IdKey, Predicted};

use router::{Caller, Picked};
use shadow::Shadows;

use crate::{
    catalog::{Catalog, Snapshot},
    error::{Code, Error, Result},
    model::{Answer, CacheUse, Data, PredictRequest, SLOTS, Select, Served, Tensor, repeated},
    monitor::Cell,
    runtime::{Done, Running, Servable, Work},
    telemetry::Metrics,
};

/// Answers requests. Cheap to clone: one pointer.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

pin_project! {
    /// A request that waits for its answer.
    pub struct Predicting<'a> {
        call: Call<'a>,
        rows: usize,
        #[pin]
        answering: Answering,
    }
}

/// Whose answer it is.
struct Call<'a> {
    engine: &'a Engine,
    started: Instant,
    served: Served,
    servable: Arc<Servable>,
    degraded: Option<&'static str>,
    /// Where it counts, if anywhere.
    cell: Option<Arc<Cell>>,
    /// Who should have answered, where it is not who does.
    instead_of: Option<Arc<Cell>>,
    /// Whether its version is compared with others.
    is_compared: bool,
    /// Boxed: few calls have any.
    shadows: Option<Box<Shadows>>,
}

pin_project! {
    #[project = AnsweringProjection]
    enum Answering {
        Plain { #[pin] running: Running },
        /// Boxed: the calls of other models need not be as large as this.
        Kept { answer: Pin<Box<dyn Future<Output = Result<(Done, CacheUse)>> + Send>> },
    }
}

struct Inner {
    catalog: Catalog,
    metrics: Arc<Metrics>,
    id_key: IdKey,
}

// === impl Engine ===

impl Engine {
    pub fn new(catalog: Catalog, metrics: Arc<Metrics>, id_key: IdKey) -> Self {
        Self(Arc::new(Inner { catalog, metrics, id_key }))
    }

    pub fn catalog(&self) -> &Catalog {
        &self.0.catalog
    }

    /// Whose prediction an id is of; `None` where these servers did not make it.
    pub fn predicted(&self, id: &str) -> Option<Predicted> {
        self.0.id_key.read(id)
    }

    /// The version that would answer such a call now; stable where none is named. NOT_FOUND for what the store does not have, UNAVAILABLE for what is
    /// being loaded, FAILED_PRECONDITION for what failed.
    pub fn find(&self, model: &str, select: &Select) -> Result<(Served, Arc<Servable>)> {
        let picked = router::find(&self.0.catalog.load(), model, select)?;
        Ok((picked.served, picked.servable))
    }

    /// Who would answer this request now, counted nowhere.
    pub fn route(&self, request: &PredictRequest) -> Result<Served> {
        self.pick(&self.0.catalog.load(), request).map(|picked| picked.served)
    }

    /// One call of Predict.
    pub async fn predict(&self, request: PredictRequest) -> Result<Answer> {
        self.begin(request)?.await
    }

    /// One call of Predict, counted and timed, up to where it waits: whoever asks holds the waiting alone, not the request.
    pub fn begin(&self, request: PredictRequest) -> Result<Predicting<'_>> {
        let started = Instant::now();
        // 1. One picture: the servable is taken from it, and the picture let go, before the first await.
        let Picked { served, servable, degraded, cell, instead_of, is_compared, shadows } =
            self.find_counted(&request)?;
        if let Some(cell) = &cell {
            cell.assign();
        }
        let shadows = shadows.and_then(|traffic| shadow::choose(&traffic, &servable, &request));
        let call = Call { engine: self, started, served, servable, degraded, cell, instead_of, is_compared, shadows };
        let begun = begin(&call.servable, request, started);
        match begun {
            Ok((rows, answering)) => Ok(Predicting { call, rows, answering }),
            Err(error) => Err(call.failed(error)),
        }
    }

    fn pick(&self, snapshot: &Snapshot, request: &PredictRequest) -> Result<Picked> {
        let caller = Caller {
            attributes: &request.attributes,
            metadata: request.metadata.as_deref().unwrap_or_default(),
            names_features: !matches!(request.data, Data::Tensors(_)),
        };
        router::pick(snapshot, &request.model, &request.select, &caller, || fastrand::u16(..SLOTS as u16))
    }

    /// A call that finds nothing is counted too. An unknown name must not become a label of a metric: callers could make as
    /// many as they like. That of a model which is loading or failed is the store's own.
    fn find_counted(&self, request: &PredictRequest) -> Result<Picked> {
        let snapshot = self.0.catalog.load();
        self.pick(&snapshot, request).map_err(|error| {
            let known = snapshot.models.get(request.model.as_str()).map_or("", |entry| entry.name.as_str());
            self.0.metrics.request(known, "", error.code().as_str()).inc();
            let plain = !repeated(&request.model).is_empty();
            if plain { error.with("model", &request.model) } else { error }
        })
    }
}

/// What was asked of a servable: the count of rows, and the waiting.
fn begin(servable: &Arc<Servable>, request: PredictRequest, now: Instant) -> Result<(usize, Answering)> {
    // 2. An expired request is not run.
    if request.deadline.is_some_and(|deadline| deadline <= now) {
        return Err(Error::deadline_exceeded("before the request was looked at; it was not run"));
    }
    // 3. The data become the signature's tensors, normalised; everything that can be wrong with them is said here.
    let signature = servable.signature();
    servable.check_parameters(&request.parameters)?;
    let outputs = signature.select(&request.outputs)?;
    let bound = servable.features().bind(signature, request.data)?;
    let rows = bound.rows;
    // 4. The batch, or the answer that a version which keeps its answers gave to an equal request.
    let work = Work {
        inputs: bound.inputs,
        rows,
        outputs,
        parameters: request.parameters,
        priority: request.priority,
        deadline: request.deadline,
    };
    let answering = match servable.cache() {
        None => Answering::Plain { running: servable.clone().run(work)? },
        Some(_) => Answering::Kept { answer: Box::pin(cache::answer(servable.clone(), request.attributes, work)) },
    };
    Ok((rows, answering))
}

// === impl Call ===

impl Call<'_> {
    fn failed(&self, error: Error) -> Error {
        let metrics = self.servable.metrics();
        metrics.request_duration.observe(self.started.elapsed().as_secs_f64());
        metrics.failed(error.code()).inc();
        self.count_failed(&error);
        error.with("model", self.served.model.as_str()).with("version", self.served.version)
    }

    /// 5. The answer, and ids of its own by which its outcomes can be reported later.
    fn answered(&mut self, rows: usize, done: Done, cache: Option<CacheUse>) -> Answer {
        let took = self.started.elapsed();
        let metrics = self.servable.metrics();
        metrics.request_duration.observe(took.as_secs_f64());
        metrics.ok.inc();
        self.count_answered(took, &done.outputs);
        if let Some(shadows) = self.shadows.take() {
            shadows.ask(&done.outputs, took);
        }
        let prediction_ids = self.engine.0.id_key.issue(&self.served, rows, done.outputs.first());
        Answer {
            served: self.served.clone(),
            degraded: self.degraded.into_iter().collect(),
            outputs: done.outputs,
            rows,
            prediction_ids,
            timing: done.timing,
            cache,
        }
    }
}

/// What is counted of a call, for the comparison of variants.
impl Call<'_> {
    fn count_answered(&self, took: Duration, outputs: &[Tensor]) {
        if let Some(cell) = &self.cell {
            // Only where versions are compared: it is a look at every number.
            let is_finite = !self.is_compared || outputs.iter().all(Tensor::is_finite);
            cell.answer(took, is_finite);
        }
        self.count_stand_in();
    }

    fn count_stand_in(&self) {
        if let Some(cell) = &self.instead_of {
            cell.stand_in();
        }
    }

    /// What callers did wrong says nothing of the version, nor that they went away.
    fn count_failed(&self, error: &Error) {
        let is_ours = matches!(
            error.code(),
            Code::Internal | Code::Unavailable | Code::ResourceExhausted | Code::DeadlineExceeded
        );
        if is_ours {
            self.cell.iter().for_each(|cell| cell.fail());
            self.count_stand_in();
        }
    }
}

// === impl Predicting ===

impl Future for Predicting<'_> {
    type Output = Result<Answer>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        Poll::Ready(match ready!(this.answering.poll(cx)) {
            Ok((done, cache)) => Ok(this.call.answered(*this.rows, done, cache)),
            Err(error) => Err(this.call.failed(error)),
        })
    }
}

// === impl Answering ===

impl Future for Answering {
    type Output = Result<(Done, Option<CacheUse>)>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            AnsweringProjection::Plain { running } => running.poll(cx).map_ok(|done| (done, None)),
            AnsweringProjection::Kept { answer } => answer.as_mut().poll(cx).map_ok(|(done, used)| (done, Some(used))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        catalog::{self, ModelEntry},
        model::{Data, ModelName, Parameters, Priority},
    };

    #[tokio::test]
    async fn a_model_that_cannot_answer_is_counted_by_its_name_and_an_unknown_one_is_not() {
        let name = ModelName::new("known").expect("a name");
        let entry = ModelEntry::new(name.clone());
        let (publisher, catalog) = catalog::new();
        let models = [(name, Arc::new(entry))].into();
        publisher.publish(Snapshot { models, scanned: true, ..Snapshot::default() });
        let metrics = Metrics::new();
        let engine = Engine::new(catalog, metrics.clone(), IdKey::random().expect("the system has randomness"));
        for model in ["known", "unknown"] {
            let request = PredictRequest {
                model: model.into(),
                select: Select::Route,
                attributes: vec![],
                metadata: None,
                priority: Priority::Normal,
                parameters: Parameters::default(),
                data: Data::Tensors(vec![]),
                outputs: vec![],
                deadline: None,
            };
            assert!(engine.predict(request).await.is_err());
        }
        let text = metrics.encode();
        assert!(text.contains("{model=\"known\",version=\"\",code=\"FAILED_PRECONDITION\"} 1"), "{text}");
        assert!(text.contains("{model=\"\",version=\"\",code=\"NOT_FOUND\"} 1"), "{text}");
        assert!(!text.contains("unknown"), "{text}");
    }
}

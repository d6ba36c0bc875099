//! ONE REQUEST: its phases, in order, in one readable function.
//!
//! Knows the catalog and the servables; knows nothing of protocols, sockets or the store. The edge calls `predict` with the
//! words of `model` and turns the answer back into its protocol.

mod cache;
mod prediction_id;
mod router;

use std::{sync::Arc, time::Instant};

pub use prediction_id::IdKey;

use crate::{
    catalog::Catalog,
    error::{Error, Result},
    model::{Answer, PredictRequest, Select, Served, repeated},
    runtime::{Servable, Work},
    telemetry::Metrics,
};

/// Answers requests. Cheap to clone: one pointer.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

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

    /// The version that would answer such a call now. NOT_FOUND for what the store does not have, UNAVAILABLE for what is
    /// being loaded, FAILED_PRECONDITION for what failed.
    pub fn find(&self, model: &str, select: &Select) -> Result<(Served, Arc<Servable>)> {
        router::pick(&self.0.catalog.load(), model, select)
    }

    /// One call of Predict, counted and timed.
    pub async fn predict(&self, request: PredictRequest) -> Result<Answer> {
        let started = Instant::now();
        // 1. One picture: the servable is taken from it, and the picture let go, before the first await.
        let (served, servable) = self.find_counted(&request)?;
        let answer = self.answer(&served, &servable, request).await;
        let metrics = servable.metrics();
        metrics.request_duration.observe(started.elapsed().as_secs_f64());
        match answer {
            Ok(answer) => {
                metrics.ok.inc();
                Ok(answer)
            }
            Err(error) => {
                let (model, version) = (served.model.as_str(), served.version.to_string());
                self.0.metrics.request(model, &version, error.code().as_str()).inc();
                Err(error.with("model", model).with("version", version))
            }
        }
    }

    /// A call that finds nothing is counted too. An unknown name must not become a label of a metric: callers could make as
    /// many as they like. That of a model which is loading or failed is the store's own.
    fn find_counted(&self, request: &PredictRequest) -> Result<(Served, Arc<Servable>)> {
        let snapshot = self.0.catalog.load();
        router::pick(&snapshot, &request.model, &request.select).map_err(|error| {
            let known = snapshot.models.get(request.model.as_str()).map_or("", |entry| entry.name.as_str());
            self.0.metrics.request(known, "", error.code().as_str()).inc();
            let plain = !repeated(&request.model).is_empty();
            if plain { error.with("model", &request.model) } else { error }
        })
    }

    async fn answer(&self, served: &Served, servable: &Arc<Servable>, request: PredictRequest) -> Result<Answer> {
        // 2. An expired request is not run.
        if request.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
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
        let (done, cache) = match servable.cache() {
            None => (servable.clone().run(work).await?, None),
            Some(cache) => {
                // Boxed: the calls of other models need not be as large as this.
                let answer = Box::pin(cache::answer(servable, cache, &request.attributes, work));
                let (done, used) = answer.await?;
                (done, Some(used))
            }
        };
        // 5. The answer, and ids of its own by which its outcomes can be reported later.
        let prediction_ids = self.0.id_key.issue(served, rows, done.outputs.first());
        Ok(Answer {
            served: served.clone(),
            degraded: Vec::new(),
            outputs: done.outputs,
            rows,
            prediction_ids,
            timing: done.timing,
            cache,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        catalog::{self, ModelEntry, Snapshot},
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

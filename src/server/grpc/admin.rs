//! `sconce.v1.Admin`: what the catalog holds, read from one picture of it.

use tonic::{Request, Response, Status, async_trait};

use super::convert::sconce::data_type;
use crate::{
    catalog::{Catalog, ModelEntry, State, VersionEntry},
    model::{self, Patterns, Version},
    rollout::Operator,
    runtime::{Placement, Servable},
    server::{
        proto::sconce::v1::{
            DescribeModelRequest, DescribeModelResponse, Execution, ListModelsRequest, ListModelsResponse,
            ModelSummary, Route, TensorSpec, VersionState, VersionStatus, admin_server::Admin,
        },
        trouble,
    },
};

pub struct Catalogue {
    catalog: Catalog,
    #[expect(dead_code, reason = "the changing methods come next")]
    operator: Operator,
}

// === impl Catalogue ===

impl Catalogue {
    pub fn new(catalog: Catalog, operator: Operator) -> Self {
        Self { catalog, operator }
    }
}

#[async_trait]
impl Admin for Catalogue {
    async fn list_models(&self, request: Request<ListModelsRequest>) -> Result<Response<ListModelsResponse>, Status> {
        let Ok(patterns) = request.into_inner().pattern.parse::<Patterns>();
        let snapshot = self.catalog.load();
        let named = snapshot.models.values().filter(|model| patterns.admits(model.name.as_str()));
        let mut models: Vec<ModelSummary> = named.map(|model| summary(model)).collect();
        models.sort_unstable_by(|left, right| left.name.cmp(&right.name));
        Ok(Response::new(ListModelsResponse { models }))
    }

    async fn describe_model(
        &self,
        request: Request<DescribeModelRequest>,
    ) -> Result<Response<DescribeModelResponse>, Status> {
        let snapshot = self.catalog.load();
        let model = snapshot.model(&request.get_ref().model)?;
        let versions = model.versions.iter().rev();
        let labels = model.route.labels.iter();
        Ok(Response::new(DescribeModelResponse {
            summary: Some(summary(model)),
            versions: versions.map(|(version, entry)| version_status(*version, entry)).collect(),
            route: Some(Route {
                revision: model.revision,
                stable: model.route.stable.to_string(),
                labels: labels.map(|(label, version)| (label.clone(), version.to_string())).collect(),
            }),
        }))
    }
}

fn summary(model: &ModelEntry) -> ModelSummary {
    let ready = model.versions.iter().filter(|(_, entry)| entry.state == State::Ready);
    let highest = model.versions.values().rev();
    let shown = model.stable.and_then(|stable| model.versions.get(&stable));
    let platform = shown.into_iter().chain(highest).find_map(|entry| entry.platform);
    ModelSummary {
        name: model.name.as_str().to_owned(),
        platform: platform.map(|platform| platform.as_str().to_owned()).unwrap_or_default(),
        ready: model.is_ready(),
        stable: model.stable.map(|version| version.to_string()).unwrap_or_default(),
        ready_versions: ready.map(|(version, _)| version.to_string()).collect(),
        message: trouble::of(model).unwrap_or_default(),
    }
}

fn version_status(version: Version, entry: &VersionEntry) -> VersionStatus {
    let signature = entry.signature();
    let specs = |specs: &[model::TensorSpec]| specs.iter().map(spec).collect();
    VersionStatus {
        version: version.to_string(),
        state: state(entry.state) as i32,
        since: Some(entry.since.into()),
        reason: entry.cause.as_ref().map(|cause| cause.reason().to_owned()).unwrap_or_default(),
        message: entry.cause.as_ref().map(|cause| cause.message().to_owned()).unwrap_or_default(),
        notes: entry.notes.clone(),
        inputs: signature.map(|signature| specs(&signature.inputs)).unwrap_or_default(),
        outputs: signature.map(|signature| specs(&signature.outputs)).unwrap_or_default(),
        execution: entry.servable.as_deref().map(|servable| execution(servable, entry)),
        metrics: entry.metrics.iter().map(|(name, value)| (name.clone(), *value)).collect(),
        digest: entry.digest.clone(),
    }
}

fn state(state: State) -> VersionState {
    match state {
        State::Available => VersionState::Available,
        State::Loading => VersionState::Loading,
        State::Ready => VersionState::Ready,
        State::Draining => VersionState::Draining,
        State::Failed => VersionState::Failed,
    }
}

fn spec(spec: &model::TensorSpec) -> TensorSpec {
    TensorSpec {
        name: (*spec.name).to_owned(),
        dtype: data_type(spec.dtype) as i32,
        shape: spec.shape.clone(),
        batch: spec.batch,
        feature_names: spec.feature_names.iter().map(|name| (**name).to_owned()).collect(),
    }
}

fn execution(servable: &Servable, entry: &VersionEntry) -> Execution {
    let manifest = servable.manifest();
    let narrow = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let micros = |rows| servable.predicted(rows).as_secs_f64() * 1e6;
    Execution {
        platform: manifest.platform.as_str().to_owned(),
        library: servable.library().to_owned(),
        device: servable.device().to_owned(),
        batching: servable.signature().batches(),
        batching_reason: servable.batching_reason().to_owned(),
        max_batch_size: narrow(manifest.max_batch_size),
        placement: match servable.placement() {
            Placement::Loop => "loop",
            Placement::Threads => "threads",
        }
        .to_owned(),
        one_row_us: micros(1),
        full_batch_us: micros(manifest.max_batch_size),
        queue_rows: u32::try_from(servable.metrics().queue_rows.get()).unwrap_or_default(),
        max_queue_rows: narrow(manifest.max_queue_rows),
        artifact_bytes: entry.artifact_bytes,
        memory_bytes: entry.memory_bytes,
    }
}

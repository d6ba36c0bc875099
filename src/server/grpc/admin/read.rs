//! What the catalog holds, read from one picture of it.

use crate::{
    catalog::{ModelEntry, Snapshot, State, VersionEntry},
    model::{self, Patterns, RouteChange, Stable, Version},
    runtime::Servable,
    server::{
        grpc::{
            admin::{rollout, traffic},
            convert::sconce::data_type,
        },
        proto::sconce::v1::{
            self as proto, DescribeModelResponse, Disabled, Execution, ListModelsResponse, ModelSummary, Pad, Route,
            Setting, TensorSpec, VersionState, VersionStatus,
        },
        trouble,
    },
};

/// The models that match, by name.
pub fn list(snapshot: &Snapshot, pattern: &str) -> ListModelsResponse {
    let Ok(patterns) = pattern.parse::<Patterns>();
    let named = snapshot.models.values().filter(|model| patterns.admits(model.name.as_str()));
    let mut models: Vec<ModelSummary> = named.map(|model| summary(model)).collect();
    models.sort_unstable_by(|left, right| left.name.cmp(&right.name));
    ListModelsResponse { models }
}

pub fn describe(model: &ModelEntry) -> DescribeModelResponse {
    let versions = model.versions.iter().rev();
    DescribeModelResponse {
        summary: Some(summary(model)),
        versions: versions.map(|(version, entry)| version_status(*version, entry)).collect(),
        route: Some(route(model)),
        settings: settings(&model.settings),
    }
}

fn route(model: &ModelEntry) -> Route {
    let route = &model.route;
    let versions = |versions: &std::collections::BTreeSet<Version>| versions.iter().map(Version::to_string).collect();
    let disabled = model.disabled.clone();
    // What was decided is known from the store, whether it holds here already or not.
    let latest = model.pending.as_ref().map_or(route, |pending| &pending.route);
    Route {
        revision: model.revision,
        stable: route.stable.to_string(),
        labels: route.labels.iter().map(|(label, version)| (label.clone(), version.to_string())).collect(),
        decided_by: decided_by(model),
        previous: route.previous.map(|version| version.to_string()).unwrap_or_default(),
        rejected: versions(&route.rejected),
        load: versions(&route.load),
        disabled: disabled.map(|reason| Disabled { reason }),
        pending: pending(model).unwrap_or_default(),
        history: latest.history.iter().rev().map(change).collect(),
        traffic: Some(traffic::written(model)),
        latest_revision: model.known_revision(),
        rollout: latest.running().map(rollout::words).unwrap_or_default(),
    }
}

/// Why the version that answers is the one that does.
fn decided_by(model: &ModelEntry) -> String {
    let Some(stable) = model.stable else {
        return "no version answers".to_owned();
    };
    let pinned = match model.route.stable {
        Stable::Pinned(version) => Some(version),
        Stable::Latest => None,
    };
    match pinned {
        Some(version) if version == stable => {
            let entry = model.route.history.iter().rev().find(|entry| entry.stable == model.route.stable);
            let how = entry.map_or("by hand".to_owned(), |entry| entry.change.clone());
            format!("route.yaml pins {version} ({how}, revision {})", model.revision)
        }
        Some(version) => format!("route.yaml pins {version}, which is not ready here; {stable} was stable before"),
        None if model.route.rejected.is_empty() => "the highest version that is ready".to_owned(),
        None => "the highest version that is ready and was not rejected".to_owned(),
    }
}

fn pending(model: &ModelEntry) -> Option<String> {
    let pending = model.pending.as_ref()?;
    Some(format!("revision {} waits: version {} is {}", pending.revision, pending.version, pending.why.as_str()))
}

fn change(entry: &RouteChange) -> proto::RouteChange {
    proto::RouteChange {
        revision: entry.revision,
        time: entry.time.clone(),
        change: entry.change.clone(),
        stable: entry.stable.to_string(),
        caller: entry.caller.clone(),
        reason: entry.reason.clone(),
        request_id: entry.request_id.clone(),
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
        message: trouble::of(model).or_else(|| model.route.running().map(rollout::words)).unwrap_or_default(),
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
        settings: settings(&entry.settings),
    }
}

fn settings(settings: &[model::Setting]) -> Vec<Setting> {
    let setting = |setting: &model::Setting| Setting {
        key: setting.key.to_owned(),
        value: setting.value.clone(),
        source: setting.origin.as_str().to_owned(),
    };
    settings.iter().map(setting).collect()
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
        pad: spec.pad.as_ref().map(|pad| Pad {
            dim: u32::try_from(pad.dim).unwrap_or(u32::MAX),
            to: pad.to.iter().map(|&size| size as u64).collect(),
        }),
    }
}

fn execution(servable: &Servable, entry: &VersionEntry) -> Execution {
    let manifest = servable.manifest();
    let narrow = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let micros = |rows| servable.predicted(rows).as_secs_f64() * 1e6;
    Execution {
        platform: manifest.platform.as_str().to_owned(),
        library: servable.library().to_owned(),
        device: servable.device().to_string(),
        batching: servable.signature().batches(),
        batching_reason: servable.batching_reason().to_owned(),
        max_batch_size: narrow(manifest.max_batch_size),
        placement: match servable.placement() {
            model::Placement::Loop => "loop",
            model::Placement::Threads => "threads",
        }
        .to_owned(),
        one_row_us: micros(1),
        full_batch_us: micros(manifest.max_batch_size),
        queue_rows: u32::try_from(servable.metrics().queue_rows.get()).unwrap_or_default(),
        max_queue_rows: narrow(manifest.max_queue_rows),
        artifact_bytes: entry.artifact_bytes,
        memory_bytes: entry.memory_bytes,
        gpu_memory_bytes: entry.gpu_bytes,
        padding: servable.pads(),
        instances: narrow(manifest.instances),
        intra_op_threads: narrow(manifest.threads_of_a_run()),
    }
}

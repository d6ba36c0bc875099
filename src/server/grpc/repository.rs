//! Triton's statistics and model repository extensions of the Open Inference Protocol, where they are switched on. A model is
//! loaded and unloaded there as Triton's explicit mode has it; here that is a route which is enabled or disabled, so it
//! outlives the server and holds for every replica.

use std::collections::BTreeMap;

use super::admin::{Order, carry_out, patience};
use crate::{
    catalog::{ModelEntry, Snapshot, State, VersionEntry},
    engine::Engine,
    error::{Code, Error, Result},
    model::{Select, Version},
    rollout::{Asked, Change},
    server::{
        call::Arrival,
        control::Control,
        phase::Phases,
        proto::inference::{
            InferStatistics, ModelRepositoryParameter, ModelStatistics, ModelStatisticsRequest,
            ModelStatisticsResponse, RepositoryIndexRequest, RepositoryIndexResponse, RepositoryModelLoadRequest,
            RepositoryModelUnloadRequest, StatisticDuration, repository_index_response::ModelIndex,
        },
    },
    telemetry::metrics::Totals,
};

/// The extensions; they answer only where the configuration says so.
#[derive(Clone)]
pub struct Repository {
    pub engine: Engine,
    pub control: Control,
    pub phases: Phases,
    pub open: bool,
}

/// The published names of what is here.
pub const EXTENSIONS: [&str; 3] = ["statistics", "model_repository", "model_repository(unload_dependents)"];
/// The one parameter that means nothing here: no model depends on another.
const UNLOAD_DEPENDENTS: &str = "unload_dependents";

// === impl Repository ===

impl Repository {
    /// UNIMPLEMENTED where the extensions are switched off.
    fn check(&self, repository: &str) -> Result<()> {
        if !self.open {
            return Err(Error::new(
                Code::Unimplemented,
                "REPOSITORY_API_OFF",
                "the model repository and statistics extensions are switched off; --repository-api switches them on, and \
                 the admin port has the same and more",
            ));
        }
        match repository {
            "" => Ok(()),
            _ => Err(Error::invalid("UNKNOWN_REPOSITORY", "there is one model store; leave repository_name empty")),
        }
    }

    pub fn index(&self, request: &RepositoryIndexRequest) -> Result<RepositoryIndexResponse> {
        self.check(&request.repository_name)?;
        let snapshot = self.engine.catalog().load();
        let rows = in_order(&snapshot).into_iter().flat_map(rows);
        let models = rows.filter(|row| !request.ready || row.state == "READY").collect();
        Ok(RepositoryIndexResponse { models })
    }

    /// Lets the model answer, and waits until it does or is known not to.
    pub async fn load(&self, request: RepositoryModelLoadRequest, arrival: Arrival, caller: String) -> Result<()> {
        self.check(&request.repository_name)?;
        refuse_parameters(&request.parameters, |_| false)?;
        self.control.operator.look_now().await?;
        self.change(&request.model_name, Change::Enable, "loaded", arrival, caller).await?;
        let until = tokio::time::Instant::from_std(patience(arrival.at, arrival.deadline));
        let mut changes = self.engine.catalog().changes();
        loop {
            changes.borrow_and_update();
            let refused = match self.engine.find(&request.model_name, &Select::Route) {
                Ok(_) => return Ok(()),
                Err(error) if error.code() != Code::Unavailable => return Err(error),
                Err(error) => error,
            };
            match tokio::time::timeout_at(until, changes.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return Err(refused),
            }
        }
    }

    pub async fn unload(&self, request: RepositoryModelUnloadRequest, arrival: Arrival, caller: String) -> Result<()> {
        self.check(&request.repository_name)?;
        refuse_parameters(&request.parameters, |name| name == UNLOAD_DEPENDENTS)?;
        self.change(&request.model_name, Change::Disable, "unloaded", arrival, caller).await
    }

    async fn change(&self, model: &str, change: Change, what: &str, arrival: Arrival, caller: String) -> Result<()> {
        let who = if caller.is_empty() { "a caller without a name" } else { &caller };
        let reason = format!("{what} through the repository API by {who}");
        let order = Order {
            model: model.to_owned(),
            change,
            asked: Asked { caller, reason, request_id: String::new(), expected_revision: None },
            answer_by: patience(arrival.at, arrival.deadline),
            waits: true,
        };
        carry_out(&self.control, self.phases.clone(), order).await.map(drop)
    }

    pub fn statistics(&self, request: &ModelStatisticsRequest) -> Result<ModelStatisticsResponse> {
        self.check("")?;
        let snapshot = self.engine.catalog().load();
        let models = match request.name.as_str() {
            "" => in_order(&snapshot),
            name => vec![&**snapshot.model(name)?],
        };
        let wanted: Option<Version> = (!request.version.is_empty()).then(|| request.version.parse()).transpose()?;
        if let (Some(wanted), false) = (wanted, request.name.is_empty()) {
            models.iter().try_for_each(|model| model.version(wanted).map(drop))?;
        }
        let versions = models.iter().flat_map(|model| model.versions.iter().map(|version| (&model.name, version)));
        let versions = versions.filter(|(_, (version, _))| wanted.is_none_or(|wanted| wanted == **version));
        let model_stats = versions.filter_map(|(name, (version, entry))| {
            Some(statistics(name.as_str(), *version, entry.servable.as_deref()?.metrics().totals()))
        });
        Ok(ModelStatisticsResponse { model_stats: model_stats.collect() })
    }
}

fn in_order(snapshot: &Snapshot) -> Vec<&ModelEntry> {
    let mut models: Vec<&ModelEntry> = snapshot.models.values().map(|model| &**model).collect();
    models.sort_unstable_by(|left, right| left.name.cmp(&right.name));
    models
}

/// A model without a version is there, too.
fn rows(model: &ModelEntry) -> Vec<ModelIndex> {
    let row = |version: String, (state, reason): (&str, String)| ModelIndex {
        name: model.name.as_str().to_owned(),
        version,
        state: state.to_owned(),
        reason,
    };
    let versions = model.versions.iter().map(|(number, entry)| row(number.to_string(), standing(model, entry)));
    let rows: Vec<ModelIndex> = versions.collect();
    match rows.is_empty() {
        true => vec![row(String::new(), ("UNAVAILABLE", model.message.clone().unwrap_or_default()))],
        false => rows,
    }
}

/// In Triton's words.
fn standing(model: &ModelEntry, entry: &VersionEntry) -> (&'static str, String) {
    let cause = entry.cause.as_ref().map(|cause| cause.message().to_owned());
    match (entry.state, &model.disabled) {
        (State::Ready, Some(why)) => ("UNAVAILABLE", format!("unloaded: {why}")),
        (State::Ready, None) => ("READY", String::new()),
        (State::Loading, _) => ("LOADING", String::new()),
        (State::Draining, _) => ("UNLOADING", String::new()),
        (State::Failed, _) => ("UNAVAILABLE", cause.unwrap_or_default()),
        (State::Available, _) => ("UNAVAILABLE", cause.unwrap_or_else(|| "nothing asks for it".to_owned())),
    }
}

fn refuse_parameters(
    parameters: &BTreeMap<String, ModelRepositoryParameter>,
    is_known: impl Fn(&str) -> bool,
) -> Result<()> {
    match parameters.keys().all(|name| is_known(name)) {
        true => Ok(()),
        false => Err(Error::invalid(
            "OVERRIDE_REFUSED",
            "what a model is stands in the model store: a config or files that come with the call are not taken; publish a \
             version, or change model.yaml",
        )),
    }
}

fn statistics(name: &str, version: Version, totals: Totals) -> ModelStatistics {
    let duration = |(count, time): (u64, std::time::Duration)| {
        Some(StatisticDuration { count, ns: u64::try_from(time.as_nanos()).unwrap_or(u64::MAX) })
    };
    let (requests, request_time) = totals.requests;
    let none = Some(StatisticDuration::default());
    ModelStatistics {
        name: name.to_owned(),
        version: version.to_string(),
        last_inference: 0,
        inference_count: totals.rows,
        execution_count: totals.compute.0,
        inference_stats: Some(InferStatistics {
            success: duration((totals.ok, request_time)),
            fail: duration((requests.saturating_sub(totals.ok), std::time::Duration::ZERO)),
            queue: duration(totals.queue),
            compute_infer: duration(totals.compute),
            compute_input: none,
            compute_output: none,
            cache_hit: duration((totals.cache_hits, std::time::Duration::ZERO)),
            cache_miss: duration((totals.cache_misses, std::time::Duration::ZERO)),
        }),
        batch_stats: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::proto::inference::model_repository_parameter::ParameterChoice;

    #[test]
    fn overrides_are_refused_and_dependents_are_none() {
        let parameter = |name: &str| {
            let choice = Some(ParameterChoice::BoolParam(true));
            BTreeMap::from([(name.to_owned(), ModelRepositoryParameter { parameter_choice: choice })])
        };
        let unload = |name: &str| refuse_parameters(&parameter(name), |name| name == UNLOAD_DEPENDENTS);
        assert!(unload("unload_dependents").is_ok());
        assert_eq!(unload("config").expect_err("an override").reason(), "OVERRIDE_REFUSED");
        assert!(refuse_parameters(&BTreeMap::new(), |_| false).is_ok());
    }

    #[test]
    fn totals_are_told_in_nanoseconds() {
        let second = std::time::Duration::from_secs(1);
        let totals = Totals {
            ok: 2,
            requests: (3, second),
            queue: (3, second),
            compute: (1, second),
            rows: 9,
            cache_hits: 4,
            cache_misses: 5,
        };
        let told = statistics("m", Version::new(1, 0, 0), totals);
        assert_eq!((told.inference_count, told.execution_count), (9, 1));
        let stats = told.inference_stats.expect("they are there");
        assert_eq!(stats.success.expect("counted"), StatisticDuration { count: 2, ns: 1_000_000_000 });
        assert_eq!(stats.fail.expect("counted").count, 1);
        let cache = (stats.cache_hit.expect("counted").count, stats.cache_miss.expect("counted").count);
        assert_eq!(cache, (4, 5));
    }
}

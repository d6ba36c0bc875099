//! What is wrong with a model, in the one text that Admin and `/readyz` show.

use crate::catalog::ModelEntry;

/// Where the model is not ready, the cause of its highest failed version comes first, for that is what stands in the way; then
/// what is wrong with the model as a whole.
pub fn of(model: &ModelEntry) -> Option<String> {
    let failed = model.versions.iter().rev().find_map(|(version, entry)| Some((version, entry.cause.as_ref()?)));
    let failed = failed.map(|(version, cause)| format!("{version}: {cause}"));
    let trouble = match (failed, model.message.clone()) {
        (Some(failed), Some(message)) if !model.is_ready() => Some(format!("{failed}; {message}")),
        (failed, message) => message.or(failed),
    };
    let said: Vec<String> = disabled(model).into_iter().chain(waiting(model)).chain(trouble).collect();
    (!said.is_empty()).then(|| said.join("; "))
}

fn disabled(model: &ModelEntry) -> Option<String> {
    let why = model.disabled.as_ref()?;
    Some(if why.is_empty() { "disabled".into() } else { format!("disabled: {why}") })
}

fn waiting(model: &ModelEntry) -> Option<String> {
    let pending = model.pending.as_ref()?;
    Some(format!("revision {} waits: {} is {}", pending.revision, pending.version, pending.why.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        catalog::{State, VersionEntry},
        error::Error,
        model::{ModelName, Version},
    };
    use std::{collections::BTreeMap, time::SystemTime};

    #[test]
    fn what_stands_in_the_way_comes_first() {
        let failed = VersionEntry {
            platform: None,
            state: State::Failed,
            since: SystemTime::UNIX_EPOCH,
            cause: Some(Error::invalid("LOAD_FAILED", "no graph")),
            notes: vec![],
            settings: Default::default(),
            metrics: BTreeMap::new(),
            digest: String::new(),
            artifact_bytes: 0,
            memory_bytes: 0,
            gpu_bytes: 0,
            servable: None,
        };
        let mut model = ModelEntry {
            name: ModelName::new("m").expect("a name"),
            versions: [(Version::new(1, 0, 0), failed)].into(),
            stable: None,
            policy: Default::default(),
            route: Default::default(),
            revision: 0,
            pending: None,
            disabled: None,
            remade: false,
            settings: Default::default(),
            message: Some("route.yaml: no such version".into()),
            refused: Default::default(),
        };
        assert_eq!(of(&model).expect("two things"), "1.0.0: no graph; route.yaml: no such version");
        model.message = None;
        assert_eq!(of(&model).expect("one thing"), "1.0.0: no graph");
        model.versions.clear();
        assert_eq!(of(&model), None);
    }
}

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

    #[test]
    fn what_stands_in_the_way_comes_first() {
        let cause = Some(Error::invalid("LOAD_FAILED", "no graph"));
        let failed = VersionEntry { cause, ..VersionEntry::new(State::Failed) };
        let mut model = ModelEntry::new(ModelName::new("m").expect("a name"));
        model.versions.insert(Version::new(1, 0, 0), failed);
        model.message = Some("route.yaml: no such version".into());
        assert_eq!(of(&model).expect("two things"), "1.0.0: no graph; route.yaml: no such version");
        model.message = None;
        assert_eq!(of(&model).expect("one thing"), "1.0.0: no graph");
        model.versions.clear();
        assert_eq!(of(&model), None);
    }
}

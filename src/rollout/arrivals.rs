//! What `on_new_version` of model.yaml asks for when there is a version that nobody has decided about. Pure.

use super::change::Change;
use crate::{
    catalog::{ModelEntry, State},
    model::{OnNewVersion, Phase, Stable, Version},
};

/// Who answers is written down first, so that a server that starts beside a newer version knows who it was. Then the highest
/// version that is ready is tried, if it was not rejected: what somebody aborted does not come back by itself either, nor
/// anything older.
pub fn wanted(entry: &ModelEntry) -> Option<Change> {
    if entry.on_new_version == OnNewVersion::Serve || entry.pending.is_some() || entry.refused.route_yaml.is_some() {
        return None;
    }
    let (stable, route) = (entry.stable?, &entry.route);
    if route.stable == Stable::Latest {
        return Some(Change::Promote(stable));
    }
    let is_shared = !route.variants.is_empty() || !route.shadow.is_empty();
    if entry.on_new_version != OnNewVersion::Canary || is_shared || route.running().is_some() {
        return None;
    }
    let aborted = route.rollout.as_ref().filter(|rollout| rollout.phase == Phase::Aborted);
    let aborted = aborted.map(|rollout| rollout.version);
    let is_new = |version: Version| version > stable && Some(version) > aborted && !route.rejected.contains(&version);
    let mut ready = entry.versions.iter().filter(|(_, known)| known.state == State::Ready).map(|(version, _)| *version);
    let version = ready.rfind(|version| is_new(*version))?;
    Some(Change::Deploy(version, Box::new((*entry.canary).clone())))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        catalog::VersionEntry,
        model::{ModelName, Route},
    };

    /// Of a model whose stable is 1.0.0, and whose ready versions are these.
    fn asks(on_new_version: OnNewVersion, route: &str, ready: &[u64]) -> Option<String> {
        let v = |major| Version::new(major, 0, 0);
        let versions = ready.iter().map(|major| (v(*major), VersionEntry::new(State::Ready)));
        let entry = ModelEntry {
            versions: versions.collect(),
            stable: Some(v(1)),
            route: Arc::new(Route::parse(route).expect("a route")),
            on_new_version,
            ..ModelEntry::new(ModelName::new("m").expect("a name"))
        };
        let change = wanted(&entry)?.to_string();
        Some(change.split(" plan#").next().unwrap_or_default().to_owned())
    }

    fn rollout(version: u64, phase: &str) -> String {
        let at = "'2026-01-01T00:00:00Z'";
        format!(
            "stable: 1.0.0\nrollout: {{ version: {version}, control: 1.0.0, phase: {phase}, began: 2, began_at: {at}, \
             phase_at: {at}, plan: {{}} }}"
        )
    }

    #[test]
    fn who_answers_is_written_down_and_then_the_highest_new_one_is_tried() {
        let canary = |route: &str, ready: &[u64]| asks(OnNewVersion::Canary, route, ready);
        assert_eq!(canary("", &[1, 2]).as_deref(), Some("promote 1.0.0"));
        assert_eq!(canary("stable: 1.0.0", &[1, 2, 3]).as_deref(), Some("deploy 3.0.0"));
        assert_eq!(canary("stable: 1.0.0\nrejected: [3]", &[1, 2, 3]).as_deref(), Some("deploy 2.0.0"));
        assert_eq!(canary("stable: 1.0.0", &[1]), None);
        assert_eq!(canary("stable: 1.0.0\nshadow: [{version: 2}]", &[1, 2, 3]), None, "somebody is trying something");
        assert_eq!(asks(OnNewVersion::Hold, "", &[1, 2]).as_deref(), Some("promote 1.0.0"));
        assert_eq!(asks(OnNewVersion::Hold, "stable: 1.0.0", &[1, 2]), None);
        assert_eq!(asks(OnNewVersion::Serve, "", &[1, 2]), None);
    }

    #[test]
    fn what_was_tried_does_not_come_back_by_itself() {
        let canary = |route: &str, ready: &[u64]| asks(OnNewVersion::Canary, route, ready);
        assert_eq!(canary(&rollout(2, "step 1"), &[1, 2, 3]), None, "one at a time");
        assert_eq!(canary(&rollout(2, "aborted"), &[1, 2]), None);
        assert_eq!(canary(&rollout(2, "aborted"), &[1, 2, 3]).as_deref(), Some("deploy 3.0.0"));
        assert_eq!(canary(&rollout(3, "aborted"), &[1, 2, 3]), None, "nor does an older one");
        let undone = format!("{}\nrejected: [3]", rollout(3, "rolled_back"));
        assert_eq!(
            canary(&undone, &[1, 2, 3]).as_deref(),
            Some("deploy 2.0.0"),
            "a mended one may have a lower number"
        );
    }
}

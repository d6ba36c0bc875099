//! A change that was written, as an event.

use super::{
    change::{Asked, Change},
    judge::Decision,
    operator::Written,
};
use crate::{
    model::{Stable, Version},
    telemetry::events::{Event, Kind},
};

/// Told once, by the replica that wrote it.
pub fn event(model: &str, change: &Change, asked: &Asked, written: &Written) -> Event {
    let (kind, version) = match change {
        Change::Promote(version) => (Kind::Promoted, Some(*version)),
        Change::Rollback(_) => (Kind::RolledBack, written.rejects.or(written.awaits.first().copied())),
        Change::Unpin => (Kind::Unpinned, None),
        Change::SetLabels { .. } => (Kind::LabelsSet, None),
        Change::SetRoute(_) => (Kind::RouteSet, None),
        Change::Deploy(version, _) => (Kind::Deployed, Some(*version)),
        Change::Pause => (Kind::RolloutPaused, written.rolls_out),
        Change::Resume => (Kind::RolloutResumed, written.rolls_out),
        Change::Abort => (Kind::RolloutAborted, written.rolls_out),
        Change::Judged(judged) => (became(judged.verdict.decision, written, judged.version), Some(judged.version)),
        Change::Load(version) => (Kind::LoadAsked, Some(*version)),
        Change::Unload(version) => (Kind::UnloadAsked, Some(*version)),
        Change::Disable => (Kind::ModelDisabled, None),
        Change::Enable => (Kind::ModelEnabled, None),
        Change::Reload => (Kind::ReloadAsked, None),
    };
    let rule = match change {
        Change::Judged(judged) => judged.verdict.rule,
        _ => "",
    };
    Event {
        version: version.map(|version| version.to_string()).unwrap_or_default(),
        revision: written.revision,
        reason: rule.to_owned(),
        message: asked.reason.clone(),
        caller: asked.caller.clone(),
        request_id: asked.request_id.clone(),
        ..Event::of_model(kind, model)
    }
}

fn became(decision: Decision, written: &Written, version: Version) -> Kind {
    match decision {
        Decision::Advance if written.stable == Stable::Pinned(version) => Kind::Promoted,
        Decision::Advance | Decision::Hold => Kind::RolloutAdvanced,
        Decision::RollBack => Kind::RolledBack,
        Decision::Halt => Kind::RolloutPaused,
    }
}

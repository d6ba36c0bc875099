//! What a version must pass before anybody asks it anything. Pure.
//!
//! That it is ready says that its files are what version.yaml says, that it opened, was warmed up, and answered its example.json
//! right, on this replica.

use super::judge::{Decision, Verdict};
use crate::{
    catalog::{ModelEntry, State, VersionEntry},
    error::Error,
    model::{Rollout, fit},
};

pub fn pass(entry: &ModelEntry, rollout: &Rollout) -> Verdict {
    let version = rollout.version;
    let Some(known) = entry.versions.get(&version) else {
        return ruled(Decision::Hold, "absent", format!("version {version} is not in this replica's store yet"));
    };
    match known.state {
        State::Ready => {}
        State::Failed => {
            let why = known.cause.as_ref().map_or("it failed to load", Error::message);
            return ruled(Decision::RollBack, "load", format!("version {version} cannot be served: {why}"));
        }
        State::Available | State::Loading | State::Draining => {
            return ruled(Decision::Hold, "loading", format!("version {version} is being loaded"));
        }
    }
    match broken(entry, known, rollout) {
        Some((rule, message)) => ruled(Decision::RollBack, rule, message),
        None => ruled(Decision::Advance, "gates", format!("version {version} is verified, warm and passed its gates")),
    }
}

fn broken(entry: &ModelEntry, known: &VersionEntry, rollout: &Rollout) -> Option<(&'static str, String)> {
    let control = entry.versions.get(&rollout.control).and_then(VersionEntry::signature);
    if let (Some(new), Some(control)) = (known.signature(), control)
        && let Err(error) = fit(new, control)
    {
        return Some(("signature", error.message().to_owned()));
    }
    None
}

fn ruled(decision: Decision, rule: &'static str, message: String) -> Verdict {
    Verdict { decision, rule, message, exposure: 0 }
}

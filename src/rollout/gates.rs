//! What a version must pass before anybody asks it anything. Pure.
//!
//! That it is ready says that its files are what version.yaml says, that it opened, was warmed up, and answered its example.json
//! right, on this replica.

use std::time::Duration;

use super::{
    judge::{Decision, Verdict},
    replica::Said,
    words,
};
use crate::{
    backend::LIBRARY_MISSING,
    catalog::{ModelEntry, State, VersionEntry},
    error::Error,
    model::{Rollout, fit},
};

/// A replica that lives has read a new route by then.
const HEARD_WITHIN: Duration = Duration::from_secs(15);
/// One that has, and is not ready after that, may have been killed meanwhile: nobody would ever hear of it again.
const READY_WITHIN: Duration = Duration::from_secs(600);

/// `replicas` is what each says of the version, and `lasted` is how long all of it and this phase have.
pub fn pass(entry: &ModelEntry, rollout: &Rollout, replicas: &[Said], lasted: (Duration, Duration)) -> Verdict {
    let (in_all, in_phase) = lasted;
    let here = here(entry, rollout);
    let found = match here.decision {
        Decision::Advance => behind(rollout, replicas, in_phase).unwrap_or(here),
        _ => here,
    };
    if found.decision == Decision::Hold && in_all >= rollout.plan.max_duration {
        let message = format!("after {} still: {}", words::time(in_all), found.message);
        return ruled(Decision::Halt, "max_duration", message);
    }
    found
}

/// Another replica that would not answer by it yet: its callers would be stable's, which says nothing of the version. Who is
/// not heard of for a while is no more, and left its status behind.
fn behind(rollout: &Rollout, others: &[Said], in_phase: Duration) -> Option<Verdict> {
    let is_waited_for = |said: &&Said| {
        let has_heard = said.revision >= rollout.began;
        let within = if has_heard { READY_WITHIN } else { HEARD_WITHIN };
        in_phase < within && !(has_heard && said.state == State::Ready.as_str())
    };
    let Said { replica, state, revision } = others.iter().find(is_waited_for)?;
    let message = match *revision >= rollout.began {
        true => format!("version {} is {state} on replica {replica}", rollout.version),
        false => format!("replica {replica} has not said yet that it follows revision {}", rollout.began),
    };
    Some(ruled(Decision::Hold, "replicas", message))
}

/// On this replica.
fn here(entry: &ModelEntry, rollout: &Rollout) -> Verdict {
    let version = rollout.version;
    let Some(known) = entry.versions.get(&version) else {
        return ruled(Decision::Hold, "absent", format!("version {version} is not in this replica's store yet"));
    };
    match known.state {
        State::Ready => {}
        State::Failed => {
            let why = known.cause.as_ref().map_or("it failed to load", Error::message);
            // It may be on its way: the server tries again by itself.
            if known.cause.as_ref().is_some_and(|cause| cause.reason() == LIBRARY_MISSING) {
                return ruled(Decision::Hold, "loading", format!("version {version} waits for its library: {why}"));
            }
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
    let gates = &rollout.plan.gates;
    for (name, least) in &gates.metrics {
        let says = match known.metrics.get(name) {
            Some(found) if found >= least => continue,
            Some(found) => format!("{name} is {}", words::number(*found)),
            None => format!("version.yaml says nothing of {name}"),
        };
        return Some(("metrics", format!("{says}; at least {} is asked for", words::number(*least))));
    }
    if let Some(most) = gates.max_size.filter(|most| known.artifact_bytes > *most) {
        let (bytes, most) = (words::count(known.artifact_bytes), words::count(most));
        return Some(("max_size", format!("its files have {bytes} bytes, at most {most} are allowed")));
    }
    let most = gates.max_load_time.filter(|most| known.load_time > *most)?;
    let shown = |time: Duration| humantime::format_duration(Duration::from_millis(time.as_millis() as u64));
    let (took, most) = (shown(known.load_time), shown(most));
    Some(("max_load_time", format!("it took {took} to load, at most {most} is allowed")))
}

fn ruled(decision: Decision, rule: &'static str, message: String) -> Verdict {
    Verdict { decision, rule, message, exposure: 0 }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        error::Code,
        model::{Gates, ModelName, Plan, Route, Version},
        rollout::change::{Asked, Change, Known},
    };

    fn v(major: u64) -> Version {
        Version::new(major, 0, 0)
    }

    fn ready() -> VersionEntry {
        VersionEntry {
            metrics: [("accuracy".to_owned(), 0.6)].into(),
            artifact_bytes: 1000,
            load_time: Duration::from_secs(3),
            ..VersionEntry::new(State::Ready)
        }
    }

    fn found(known: Option<VersionEntry>, gates: Gates) -> (Decision, &'static str, String) {
        found_after(known, gates, Duration::from_secs(60))
    }

    fn found_after(known: Option<VersionEntry>, gates: Gates, lasted: Duration) -> (Decision, &'static str, String) {
        let plan = Plan { gates, ..Plan::default() };
        let deploy = Change::Deploy(v(2), Box::new(plan));
        let known_before = Known { answering: Some(v(1)), below: None };
        let time = "2026-01-01T00:00:00Z".to_owned();
        let route = deploy.apply(&Route::default(), 0, known_before, &Asked::default(), time);
        let route = route.expect("it may be done").expect("it changes something");
        let versions = known.map(|known| (v(2), known)).into_iter().collect();
        let rollout = route.rollout.clone().expect("it was begun");
        let name = ModelName::new("m").expect("a name");
        let entry = ModelEntry { versions, route: Arc::new(route), ..ModelEntry::new(name) };
        let verdict = pass(&entry, &rollout, &[], (lasted, lasted));
        (verdict.decision, verdict.rule, verdict.message)
    }

    #[test]
    fn what_is_not_ready_waits_and_what_failed_is_out() {
        let outcome = |known| {
            let (decision, rule, _) = found(known, Gates::default());
            (decision, rule)
        };
        assert_eq!(outcome(None), (Decision::Hold, "absent"));
        assert_eq!(outcome(Some(VersionEntry::new(State::Loading))), (Decision::Hold, "loading"));
        assert_eq!(outcome(Some(ready())), (Decision::Advance, "gates"));
        let missing = Some(Error::new(Code::Unavailable, LIBRARY_MISSING, "no libtorch"));
        let waiting = VersionEntry { cause: missing, ..VersionEntry::new(State::Failed) };
        assert_eq!(outcome(Some(waiting)), (Decision::Hold, "loading"));
        let cause = Some(Error::new(Code::FailedPrecondition, "EXAMPLE_MISMATCH", "example 1 is not right"));
        let failed = VersionEntry { cause, ..VersionEntry::new(State::Failed) };
        let (decision, rule, message) = found(Some(failed), Gates::default());
        assert_eq!((decision, rule), (Decision::RollBack, "load"));
        assert!(message.contains("example 1 is not right"), "{message}");
    }

    #[test]
    fn what_waits_for_too_long_waits_for_a_person_and_what_is_ready_goes_on() {
        let most = Plan::default().max_duration;
        let after = |known, lasted| {
            let (decision, rule, _) = found_after(known, Gates::default(), lasted);
            (decision, rule)
        };
        let loading = || Some(VersionEntry::new(State::Loading));
        assert_eq!(after(loading(), most - Duration::from_secs(1)), (Decision::Hold, "loading"));
        assert_eq!(after(loading(), most), (Decision::Halt, "max_duration"));
        assert_eq!(after(Some(ready()), most), (Decision::Advance, "gates"));
    }

    #[test]
    fn replicas_that_load_are_waited_for_and_those_that_are_gone_are_not() {
        let route = Change::Deploy(v(2), Box::default()).apply(
            &Route::default(),
            6,
            Known { answering: Some(v(1)), below: None },
            &Asked::default(),
            "2026-01-01T00:00:00Z".into(),
        );
        let rollout = route.expect("it may be done").and_then(|route| route.rollout).expect("it was begun");
        let waits = |revision: u64, state: &str, seconds| {
            let said = Said { replica: "b".into(), revision, state: state.into() };
            behind(&rollout, &[said], Duration::from_secs(seconds)).map(|verdict| verdict.message)
        };
        assert_eq!(waits(7, "LOADING", 20).as_deref(), Some("version 2.0.0 is LOADING on replica b"));
        assert_eq!(waits(7, State::Ready.as_str(), 0), None);
        assert_eq!(waits(7, "LOADING", 600), None);
        let unheard = waits(6, State::Ready.as_str(), 0);
        assert_eq!(unheard.as_deref(), Some("replica b has not said yet that it follows revision 7"));
        assert_eq!(waits(6, "LOADING", 15), None, "nor will it");
    }

    #[test]
    fn each_gate_lets_through_what_is_just_enough() {
        let metrics = |name: &str, least| Gates { metrics: [(name.to_owned(), least)].into(), ..Gates::default() };
        let size = |most| Gates { max_size: Some(most), ..Gates::default() };
        let time = |most| Gates { max_load_time: Some(Duration::from_secs(most)), ..Gates::default() };
        for gates in [metrics("accuracy", 0.6), size(1000), time(3)] {
            assert_eq!(found(Some(ready()), gates).0, Decision::Advance);
        }
        let broken = [
            (metrics("accuracy", 0.61), "metrics", "accuracy is 0.6"),
            (metrics("auc", 0.1), "metrics", "nothing of auc"),
            (size(999), "max_size", "1,000 bytes"),
            (time(2), "max_load_time", "it took 3s"),
        ];
        for (gates, rule, words) in broken {
            let (decision, by, message) = found(Some(ready()), gates);
            assert_eq!((decision, by), (Decision::RollBack, rule));
            assert!(message.contains(words), "{message}");
        }
    }
}

//! Where a rollout stands: its stages with what was counted in each, and what the gates or the judge make of them. The controller and
//! people hear the same.

use std::time::{Duration, SystemTime};

use tokio::time::timeout;

use super::{
    Counts, Operator, Sums,
    course::{CANARY, difference, is_as_written},
    experiment::{ShadowReport, VariantReport, sum},
    gates,
    judge::{Decision, Period, Situation, Stage, Verdict, judge},
    replica::Said,
};
use crate::{
    catalog::{ModelEntry, SHADOW, STABLE},
    error::Result,
    model::{ModelName, Phase, Rollout, Route, RouteChange, Version},
    monitor::{Key, Tally},
};

/// What is known beside the picture of this replica.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    /// The sums of all replicas, or what this one counted.
    pub counts: Vec<(Key, Tally)>,
    pub is_whole: bool,
    /// Whose counts cannot be read.
    pub unread: Vec<String>,
    /// While the version waits at its gates: what the other replicas say of it.
    pub replicas: Vec<Said>,
}

/// For people.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    pub rollout: Rollout,
    /// Of the phase, in percent.
    pub weight: f64,
    /// What the judge says at this moment; `None` before the first stage and after the last.
    pub verdict: Option<Verdict>,
    pub in_phase: Duration,
    pub in_all: Duration,
    /// Of all its steps: stable first.
    pub variants: [VariantReport; 2],
    /// Of its shadow stage, once that has begun.
    pub shadow: Option<ShadowReport>,
    /// Who ended it and why, as long as the history knows.
    pub ended: Option<RouteChange>,
}

/// After which the store counts as away.
const HEARD_WITHIN: Duration = Duration::from_secs(2);

// === impl Heard ===

impl Heard {
    pub async fn of(counts: &Counts, operator: &Operator, model: &ModelName, rollout: &Rollout) -> Self {
        let sums = timeout(HEARD_WITHIN, counts.sums(model)).await.ok().and_then(Result::ok);
        let replicas = match rollout.phase {
            Phase::Gates => {
                let said = timeout(HEARD_WITHIN, operator.said_of(model, rollout.version)).await.unwrap_or_default();
                said.into_iter().filter(|said| said.replica != counts.replica()).collect()
            }
            _ => Vec::new(),
        };
        let is_whole = sums.is_some();
        let Sums { counts, unread } = sums.unwrap_or_else(|| Sums { counts: counts.own(model), ..Sums::default() });
        Self { counts, is_whole, unread, replicas }
    }
}

/// What follows from where it is; `None` where it is over. `lasted` is in all, and in its phase.
pub fn verdict(
    entry: &ModelEntry,
    route: &Route,
    rollout: &Rollout,
    heard: &Heard,
    lasted: (Duration, Duration),
) -> Option<Verdict> {
    let (in_all, in_stage) = lasted;
    let found = match stage(rollout.phase) {
        Some(stage) => {
            let periods = periods(rollout, &heard.counts);
            judge(&rollout.plan, &Situation { stage, in_stage, in_all, periods: &periods })
        }
        None if rollout.phase == Phase::Gates => gates::pass(entry, rollout, &heard.replicas, lasted),
        None => return None,
    };
    let exposure = found.exposure;
    let instead = |decision, rule, message: &str| Verdict { decision, rule, message: message.to_owned(), exposure };
    let cause = entry.versions.get(&rollout.version).and_then(|known| known.cause.as_ref());
    Some(match found.decision {
        // That it fails needs nobody else's counts, and no weights.
        Decision::RollBack => found,
        _ if !is_as_written(route, rollout) => instead(
            Decision::Halt,
            "route_changed",
            &format!(
                "somebody else changed who gets the traffic: {}; edit route.yaml back and resume, or abort",
                difference(route, rollout)
            ),
        ),
        _ if !heard.is_whole => {
            instead(Decision::Hold, "store_unavailable", "the counts of the other replicas cannot be read")
        }
        Decision::Advance if !heard.unread.is_empty() => instead(
            Decision::Hold,
            "counts_unreadable",
            &format!("what was counted in .sconce/counts/{}.json cannot be read; mend or remove it", heard.unread[0]),
        ),
        Decision::Advance if cause.is_some_and(|cause| cause.reason() == SOURCE_MISSING) => instead(
            Decision::Halt,
            "source_missing",
            "the version's folder is gone: no replica that starts could load it; put it back and resume, or abort",
        ),
        _ => found,
    })
}

// === impl Progress ===

impl Progress {
    /// `route` is the one whose rollout it is.
    pub fn of(entry: &ModelEntry, route: &Route, rollout: &Rollout, heard: &Heard) -> Result<Self> {
        let (in_all, in_phase) = rollout.lasted(now())?;
        let verdict = verdict(entry, route, rollout, heard, (in_all, in_phase));
        let periods = periods(rollout, &heard.counts);
        let weight = rollout.weight(rollout.phase);
        let of_steps = || periods.iter().filter(|period| period.stage != Stage::Shadow);
        let control = sum(of_steps().map(|period| &period.control));
        let treatment = sum(of_steps().map(|period| &period.treatment));
        let variants = [
            VariantReport::of(STABLE, rollout.control, 100.0 - weight, &control),
            VariantReport::of(CANARY, rollout.version, weight, &treatment),
        ];
        let shadow = shadow(rollout, &periods);
        let ended = ended(route, rollout).cloned();
        Ok(Self { rollout: rollout.clone(), weight, verdict, in_phase, in_all, variants, shadow, ended })
    }
}

fn shadow(rollout: &Rollout, periods: &[Period]) -> Option<ShadowReport> {
    let plan = rollout.plan.shadow.as_ref()?;
    rollout.stages.iter().find(|begun| begun.phase == Phase::Shadow)?;
    let own = periods.iter().filter(|period| period.stage == Stage::Shadow).map(|period| &period.treatment);
    Some(ShadowReport::of(rollout.version, plan.sample, &sum(own).compared))
}

/// Its last stage is the end itself.
fn ended<'a>(route: &'a Route, rollout: &Rollout) -> Option<&'a RouteChange> {
    let end = rollout.stages.last().filter(|begun| !rollout.is_running() && begun.phase == rollout.phase)?;
    route.history.iter().find(|entry| entry.revision == end.revision)
}

/// The word of lifecycle for a version that is served from its copy.
const SOURCE_MISSING: &str = "SOURCE_MISSING";

pub fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// What the judge calls a phase; `None` where there is nothing to judge.
pub fn stage(phase: Phase) -> Option<Stage> {
    match phase {
        Phase::Shadow => Some(Stage::Shadow),
        Phase::Step(step) => Some(Stage::Step(step)),
        Phase::Gates | Phase::Promoted | Phase::RolledBack | Phase::Aborted => None,
    }
}

/// One for each revision that was a stage of this rollout. What was counted under a revision belongs to the stage that began
/// last before it: a label that somebody sets meanwhile makes a revision, and no stage.
pub fn periods(rollout: &Rollout, counts: &[(Key, Tally)]) -> Vec<Period> {
    let mut revisions: Vec<u64> = counts.iter().map(|(key, _)| key.revision).collect();
    revisions.sort_unstable();
    revisions.dedup();
    let of_revision = |revision: u64| {
        let begun = rollout.stage_of(revision)?;
        let stage = stage(begun.phase)?;
        let variant = if stage == Stage::Shadow { SHADOW } else { CANARY };
        let own = tally(counts, revision, variant, rollout.version);
        let control = tally(counts, revision, STABLE, rollout.control);
        Some(Period { stage, share: begun.share, control, treatment: own })
    };
    revisions.into_iter().filter_map(of_revision).collect()
}

fn tally(counts: &[(Key, Tally)], revision: u64, variant: &str, version: Version) -> Tally {
    let is_it = |key: &Key| key.revision == revision && key.variant == variant && key.version == version;
    counts.iter().find(|(key, _)| is_it(key)).map(|(_, tally)| tally.clone()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        catalog::{State, VersionEntry},
        error::{Code, Error},
        model::{Plan, ShadowStage, StageBegun},
        monitor::Compared,
    };

    fn key(revision: u64, variant: &str, major: u64) -> Key {
        Key { revision, variant: variant.into(), version: Version::new(major, 0, 0) }
    }

    fn assigned(assigned: u64) -> Tally {
        Tally { assigned, answered: assigned, ..Tally::default() }
    }

    fn rollout() -> Rollout {
        let begun = |revision, phase, share| StageBegun { revision, phase, share };
        Rollout {
            phase: Phase::Step(1),
            phase_at: "2026-01-01T00:10:00Z".into(),
            stages: vec![
                begun(5, Phase::Shadow, None),
                begun(6, Phase::Step(0), Some(0.05)),
                begun(9, Phase::Step(1), Some(0.25)),
            ],
            ..Rollout::begun(Version::new(2, 0, 0), Version::new(1, 0, 0), Plan::default(), 4, "2026-01-01T00:00:00Z")
        }
    }

    #[test]
    fn counts_are_of_the_stage_that_their_revision_was_of() {
        let counts = [
            (key(3, STABLE, 1), assigned(1000)),
            (key(5, STABLE, 1), assigned(50)),
            (key(5, SHADOW, 2), Tally { compared: Compared { sent: 40, ..Compared::default() }, ..Tally::default() }),
            (key(6, STABLE, 1), assigned(95)),
            (key(6, CANARY, 2), assigned(5)),
            (key(7, STABLE, 1), assigned(19)),
            (key(7, CANARY, 2), assigned(1)),
            (key(9, CANARY, 3), assigned(77)),
            (key(9, CANARY, 2), assigned(25)),
        ];
        let periods = periods(&rollout(), &counts);
        let short: Vec<_> = periods
            .iter()
            .map(|period| (period.stage, period.share, period.control.assigned, period.treatment.assigned))
            .collect();
        assert_eq!(
            short,
            [
                (Stage::Shadow, None, 50, 0),
                (Stage::Step(0), Some(0.05), 95, 5),
                (Stage::Step(0), Some(0.05), 19, 1),
                (Stage::Step(1), Some(0.25), 0, 25),
            ]
        );
        let change = |revision, caller: &str| RouteChange { revision, caller: caller.into(), ..RouteChange::default() };
        let history = vec![change(9, "sconce@a"), change(10, "alice"), change(11, "bob")];
        let route = Route { rollout: Some(rollout()), history, ..Route::default() };
        let entry = ModelEntry::new(ModelName::new("m").expect("a name"));
        let heard = Heard { counts: counts.to_vec(), is_whole: true, ..Heard::default() };
        let progress = Progress::of(&entry, &route, &rollout(), &heard).expect("times");
        assert_eq!(progress.variants.each_ref().map(|variant| variant.assigned), [114, 31]);
        assert_eq!((progress.weight, progress.verdict.map(|verdict| verdict.exposure)), (25.0, Some(31)));
        assert_eq!((progress.shadow, progress.ended), (None, None), "the plan has no such stage, and it runs");

        let plan = Plan { shadow: Some(ShadowStage { sample: 20.0, ..ShadowStage::default() }), ..Plan::default() };
        let mut over = Rollout { plan, phase: Phase::Aborted, ..rollout() };
        over.stages.push(StageBegun { revision: 10, phase: Phase::Aborted, share: None });
        let progress = Progress::of(&entry, &route, &over, &heard).expect("times");
        assert_eq!(progress.shadow.map(|shadow| (shadow.sample, shadow.sent)), Some((20.0, 40)));
        assert_eq!(progress.ended.map(|entry| entry.caller).as_deref(), Some("alice"));
    }

    #[test]
    fn what_is_missing_never_passes_and_what_is_broken_goes_back_all_the_same() {
        let at = |rollout: Rollout| {
            let variant = "variants: [{ name: canary, version: 2.0.0, weight: 25 }]";
            let route = Route::parse(&format!("stable: 1.0.0\n{variant}")).expect("a route");
            Route { rollout: Some(rollout), ..route }
        };
        let plan = Plan { steps: vec![5.0, 25.0, 100.0], min_samples: 10, ..Plan::default() };
        let rollout = Rollout { plan, ..rollout() };
        let arms = |errors: u64| {
            let own = Tally { errors, answered: 100 - errors, ..assigned(100) };
            vec![(key(9, STABLE, 1), assigned(300)), (key(9, CANARY, 2), own)]
        };
        let heard = |errors| Heard { counts: arms(errors), is_whole: true, ..Heard::default() };
        let mut entry = ModelEntry::new(ModelName::new("m").expect("a name"));
        let lasted = (Duration::from_secs(3_600), Duration::from_secs(3_600));
        let says = |entry: &ModelEntry, route: &Route, heard: &Heard| {
            let verdict = verdict(entry, route, &rollout, heard, lasted).expect("it runs");
            (verdict.decision, verdict.rule)
        };
        let route = at(rollout.clone());
        assert_eq!(says(&entry, &route, &heard(0)), (Decision::Advance, "passed"));
        let edited = Route { variants: Vec::new(), ..route.clone() };
        let away = |errors| Heard { is_whole: false, ..heard(errors) };
        let damaged = |errors| Heard { unread: vec!["b".into()], ..heard(errors) };
        assert_eq!(says(&entry, &edited, &heard(0)), (Decision::Halt, "route_changed"));
        assert_eq!(says(&entry, &route, &away(0)), (Decision::Hold, "store_unavailable"));
        assert_eq!(says(&entry, &route, &damaged(0)), (Decision::Hold, "counts_unreadable"));
        for (route, heard) in [(&edited, heard(90)), (&route, away(90)), (&route, damaged(90))] {
            assert_eq!(says(&entry, route, &heard), (Decision::RollBack, "error_rate"));
        }
        let cause = Some(Error::new(Code::FailedPrecondition, SOURCE_MISSING, "its folder is gone"));
        entry.versions.insert(rollout.version, VersionEntry { cause, ..VersionEntry::new(State::Ready) });
        assert_eq!(says(&entry, &route, &heard(0)), (Decision::Halt, "source_missing"));
    }
}

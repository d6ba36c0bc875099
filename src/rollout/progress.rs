//! Where a rollout stands: its stages with what was counted in each, and what the judge makes of them. Pure, but for the clock.

use std::time::{Duration, SystemTime};

use super::{
    course::CANARY,
    experiment::{VariantReport, sum},
    judge::{Period, Situation, Stage, Verdict, judge},
};
use crate::{
    catalog::{SHADOW, STABLE},
    error::Result,
    model::{Phase, Rollout, Version},
    monitor::{Key, Tally},
};

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
}

impl Progress {
    /// `counts` are the sums of all replicas.
    pub fn of(rollout: &Rollout, counts: &[(Key, Tally)]) -> Result<Self> {
        let (in_all, in_phase) = rollout.lasted(now())?;
        let periods = periods(rollout, counts);
        let verdict = stage(rollout.phase)
            .map(|stage| judge(&rollout.plan, &Situation { stage, in_stage: in_phase, in_all, periods: &periods }));
        let weight = rollout.weight(rollout.phase);
        let of_steps = || periods.iter().filter(|period| period.stage != Stage::Shadow);
        let control = sum(of_steps().map(|period| &period.control));
        let treatment = sum(of_steps().map(|period| &period.treatment));
        let variants = [
            VariantReport::of(STABLE, rollout.control, 100.0 - weight, &control),
            VariantReport::of(CANARY, rollout.version, weight, &treatment),
        ];
        Ok(Self { rollout: rollout.clone(), weight, verdict, in_phase, in_all, variants })
    }
}

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
    use crate::model::{Plan, StageBegun};

    fn key(revision: u64, variant: &str, major: u64) -> Key {
        Key { revision, variant: variant.into(), version: Version::new(major, 0, 0) }
    }

    fn assigned(assigned: u64) -> Tally {
        Tally { assigned, answered: assigned, ..Tally::default() }
    }

    fn rollout() -> Rollout {
        let begun = |revision, phase, share| StageBegun { revision, phase, share };
        Rollout {
            version: Version::new(2, 0, 0),
            control: Version::new(1, 0, 0),
            phase: Phase::Step(1),
            began: 4,
            began_at: "2026-01-01T00:00:00Z".into(),
            phase_at: "2026-01-01T00:10:00Z".into(),
            paused: None,
            paused_seconds: 0,
            paused_seconds_in_phase: 0,
            verdict: None,
            stages: vec![
                begun(5, Phase::Shadow, None),
                begun(6, Phase::Step(0), Some(0.05)),
                begun(9, Phase::Step(1), Some(0.25)),
            ],
            plan: Plan::default(),
        }
    }

    #[test]
    fn counts_are_of_the_stage_that_their_revision_was_of() {
        let counts = [
            (key(3, STABLE, 1), assigned(1000)),
            (key(5, STABLE, 1), assigned(50)),
            (key(5, SHADOW, 2), assigned(0)),
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
        let progress = Progress::of(&rollout(), &counts).expect("times");
        assert_eq!(progress.variants.each_ref().map(|variant| variant.assigned), [114, 31]);
        assert_eq!((progress.weight, progress.verdict.map(|verdict| verdict.exposure)), (25.0, Some(31)));
    }
}

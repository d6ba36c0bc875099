//! `rollout:` of route.yaml: a version on its way to stable, by plan, and how it came to where it is.
//!
//! One record, of the last rollout; a new one takes its place. What each stage was is kept by revision, because counts are.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{Plan, Version};
use crate::error::{Error, Result};

/// One rollout.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    pub version: Version,
    /// Who was stable when it began, and is until it ends well.
    pub control: Version,
    pub phase: Phase,
    /// The revision that it began with: its name.
    pub began: u64,
    /// RFC 3339, UTC.
    pub began_at: String,
    /// Since when it is in this phase.
    pub phase_at: String,
    /// Present while it waits for a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<Pause>,
    /// Of pauses that are over, since it began and since this phase began.
    #[serde(default)]
    pub paused_seconds: u64,
    #[serde(default)]
    pub paused_seconds_in_phase: u64,
    /// What moved it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Ruled>,
    /// Which revisions were which stage, the first ones first. Each holds until the next one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<StageBegun>,
    pub plan: Plan,
}

/// Written `gates`, `shadow`, `step 1`, `promoted`, `rolled_back`, `aborted`. Steps count from one there, and from nought here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nobody asks the version anything yet.
    Gates,
    Shadow,
    /// By its place in the plan.
    Step(usize),
    Promoted,
    RolledBack,
    Aborted,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StageBegun {
    pub revision: u64,
    pub phase: Phase,
    /// Of the requests that the two share, what the version should get. Absent where callers stick, and where it is not to be
    /// held against the counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Pause {
    pub at: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The rule by which the judge stopped; empty where a person did.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub rule: String,
}

/// A verdict that was carried out.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Ruled {
    /// `advance`, `roll_back` or `halt`.
    pub decision: String,
    pub rule: String,
    /// In words and numbers.
    pub message: String,
    /// Requests that callers got the version's answer, or failure, to.
    #[serde(default)]
    pub exposure: u64,
    pub time: String,
}

// === impl Rollout ===

impl Rollout {
    /// At its gates.
    pub fn begun(version: Version, control: Version, plan: Plan, revision: u64, time: &str) -> Self {
        Self {
            version,
            control,
            phase: Phase::Gates,
            began: revision,
            began_at: time.to_owned(),
            phase_at: time.to_owned(),
            paused: None,
            paused_seconds: 0,
            paused_seconds_in_phase: 0,
            verdict: None,
            stages: Vec::new(),
            plan,
        }
    }

    pub fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Gates | Phase::Shadow | Phase::Step(_))
    }

    /// Where it goes when this phase is passed.
    pub fn next(&self) -> Phase {
        match self.phase {
            Phase::Gates if self.plan.shadow.is_some() => Phase::Shadow,
            Phase::Gates | Phase::Shadow => Phase::Step(0),
            Phase::Step(step) if step + 1 < self.plan.steps.len() => Phase::Step(step + 1),
            Phase::Step(_) => Phase::Promoted,
            over => over,
        }
    }

    /// Its share of the traffic while that phase holds, in percent.
    pub fn weight(&self, phase: Phase) -> f64 {
        match phase {
            Phase::Step(step) => self.plan.steps.get(step).copied().unwrap_or(0.0),
            Phase::Promoted => 100.0,
            _ => 0.0,
        }
    }

    /// The stage that a revision was of.
    pub fn stage_of(&self, revision: u64) -> Option<&StageBegun> {
        self.stages.iter().rev().find(|stage| stage.revision <= revision)
    }

    /// Since it began and since its phase did, at a time, without pauses.
    pub fn lasted(&self, now: Duration) -> Result<(Duration, Duration)> {
        let pausing = match &self.paused {
            Some(pause) => now.saturating_sub(since_epoch(&pause.at)?),
            None => Duration::ZERO,
        };
        let since = |begin: &str, paused: u64| -> Result<Duration> {
            Ok(now
                .saturating_sub(since_epoch(begin)?)
                .saturating_sub(pausing.saturating_add(Duration::from_secs(paused))))
        };
        Ok((since(&self.began_at, self.paused_seconds)?, since(&self.phase_at, self.paused_seconds_in_phase)?))
    }

    /// INVALID_ROUTE says what is wrong with what somebody wrote.
    pub fn check(&self) -> Result<()> {
        let wrong = |what: String| Err(Error::invalid("INVALID_ROUTE", format!("rollout: {what}")));
        if let Err(error) = self.plan.check() {
            return wrong(format!("plan: {}", error.message()));
        }
        if let Err(error) = self.lasted(Duration::MAX) {
            return wrong(error.message().to_owned());
        }
        if matches!(self.phase, Phase::Step(step) if step >= self.plan.steps.len()) {
            return wrong(format!("phase is {}, the plan has {} steps", self.phase, self.plan.steps.len()));
        }
        if !self.stages.is_sorted_by_key(|stage| stage.revision) {
            return wrong("the revisions of its stages do not ascend".to_owned());
        }
        match self.version == self.control {
            true => wrong(format!("version and control are both {}", self.version)),
            false => Ok(()),
        }
    }
}

/// Of a time as RFC 3339 has it.
pub fn since_epoch(time: &str) -> Result<Duration> {
    let parsed = humantime::parse_rfc3339_weak(time).ok();
    let since = parsed.and_then(|time| time.duration_since(std::time::SystemTime::UNIX_EPOCH).ok());
    since.ok_or_else(|| Error::invalid("INVALID_ROUTE", format!("'{time}' is no time, e.g. 2026-01-31T12:00:00Z")))
}

// === impl Phase ===

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Phase::Gates => f.write_str("gates"),
            Phase::Shadow => f.write_str("shadow"),
            Phase::Step(step) => write!(f, "step {}", step + 1),
            Phase::Promoted => f.write_str("promoted"),
            Phase::RolledBack => f.write_str("rolled_back"),
            Phase::Aborted => f.write_str("aborted"),
        }
    }
}

impl FromStr for Phase {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let step = || text.strip_prefix("step ")?.parse::<usize>().ok()?.checked_sub(1);
        match text {
            "gates" => Ok(Phase::Gates),
            "shadow" => Ok(Phase::Shadow),
            "promoted" => Ok(Phase::Promoted),
            "rolled_back" => Ok(Phase::RolledBack),
            "aborted" => Ok(Phase::Aborted),
            _ => step().map(Phase::Step).ok_or_else(|| {
                let expected = "gates, shadow, step 1, step 2 …, promoted, rolled_back or aborted";
                Error::invalid("INVALID_ROUTE", format!("'{text}' is no phase of a rollout: {expected}"))
            }),
        }
    }
}

impl Serialize for Phase {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Phase {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(|error: Error| de::Error::custom(error.message()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rollout(phase: Phase) -> Rollout {
        Rollout {
            phase,
            phase_at: "2026-01-01T00:10:00Z".into(),
            stages: vec![
                StageBegun { revision: 4, phase: Phase::Shadow, share: None },
                StageBegun { revision: 7, phase: Phase::Step(0), share: Some(0.05) },
            ],
            ..Rollout::begun(Version::new(2, 0, 0), Version::new(1, 0, 0), Plan::default(), 3, "2026-01-01T00:00:00Z")
        }
    }

    fn at(time: &str) -> Duration {
        since_epoch(time).expect("a time")
    }

    #[test]
    fn a_rollout_goes_through_its_phases_and_reads_back() {
        let with_shadow = Plan { shadow: Some(super::super::ShadowStage::default()), ..Plan::default() };
        let mut on_its_way = Rollout { plan: with_shadow, ..rollout(Phase::Gates) };
        let mut seen = Vec::new();
        while on_its_way.is_running() {
            seen.push(on_its_way.phase.to_string());
            let yaml = serde_yaml_ng::to_string(&on_its_way).expect("plain data");
            assert_eq!(serde_yaml_ng::from_str::<Rollout>(&yaml).expect("as it was written"), on_its_way);
            on_its_way.phase = on_its_way.next();
        }
        assert_eq!(seen, ["gates", "shadow", "step 1", "step 2", "step 3", "step 4"]);
        assert_eq!(on_its_way.phase, Phase::Promoted);
        assert_eq!(rollout(Phase::Gates).next(), Phase::Step(0));
    }

    #[test]
    fn pauses_do_not_count() {
        let mut paused = rollout(Phase::Step(0));
        paused.paused_seconds = 120;
        paused.paused_seconds_in_phase = 60;
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        assert_eq!(paused.lasted(at("2026-01-01T00:20:00Z")).expect("times"), (minutes(18), minutes(9)));
        let reason = String::new();
        paused.paused = Some(Pause { at: "2026-01-01T00:15:00Z".into(), reason, rule: String::new() });
        assert_eq!(paused.lasted(at("2026-01-01T00:20:00Z")).expect("times"), (minutes(13), minutes(4)));
        assert_eq!(
            paused.lasted(Duration::ZERO).expect("times"),
            (Duration::ZERO, Duration::ZERO),
            "a clock that is wrong"
        );
    }

    #[test]
    fn a_revision_is_of_the_stage_that_began_last() {
        let rollout = rollout(Phase::Step(0));
        let stage = |revision| rollout.stage_of(revision).map(|stage| stage.phase);
        assert_eq!(
            [3, 4, 6, 7, 99].map(stage),
            [None, Some(Phase::Shadow), Some(Phase::Shadow), Some(Phase::Step(0)), Some(Phase::Step(0))]
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let refused = |rollout: Rollout| rollout.check().expect_err("it is wrong").message().to_owned();
        assert!(rollout(Phase::Step(3)).check().is_ok());
        assert!(refused(rollout(Phase::Step(4))).contains("step 5"));
        assert!(refused(Rollout { began_at: "yesterday".into(), ..rollout(Phase::Gates) }).contains("yesterday"));
        assert!(refused(Rollout { control: Version::new(2, 0, 0), ..rollout(Phase::Gates) }).contains("2.0.0"));
        let hurried = Plan { steps: vec![5.0], ..Plan::default() };
        assert!(refused(Rollout { plan: hurried, ..rollout(Phase::Gates) }).contains("steps"));
        let paused = Rollout { paused_seconds: u64::MAX, ..rollout(Phase::Gates) };
        assert!(paused.check().is_ok() && paused.lasted(Duration::MAX).is_ok(), "a number is no reason to panic");
        assert!("step 0".parse::<Phase>().is_err() && "step x".parse::<Phase>().is_err());
    }
}

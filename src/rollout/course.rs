//! The course of a rollout, as edits of the route. Pure.
//!
//! Each step is one write: the phase, the share of the traffic and what is known of how it came to that change together or not
//! at all.

use std::fmt;

use super::{
    change::{Known, Sharing, stable_of, take_out},
    judge::{Decision, Verdict},
};
use crate::{
    error::{Code, Error, Result},
    model::{Pause, Phase, Plan, Rollout, Route, Ruled, Shadow, Stable, StageBegun, Variant, Version, since_epoch},
};

/// The variant that a rollout makes.
pub const CANARY: &str = "canary";

/// When an edit is made, and what the revision becomes by it.
#[derive(Clone, Debug)]
pub struct Moment {
    pub revision: u64,
    /// RFC 3339, UTC.
    pub time: String,
}

/// What the judge found of a rollout where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    pub version: Version,
    /// Which rollout, and where it was then.
    pub began: u64,
    pub phase: Phase,
    pub verdict: Verdict,
}

/// Begins one.
pub fn deploy(next: &mut Route, known: Known, version: Version, plan: &Plan, moment: &Moment) -> Result<()> {
    plan.check()?;
    refuse_beside(next)?;
    let Some(control) = stable_of(next, known) else {
        let message = format!("nothing is stable that version {version} could be compared with; promote it instead");
        return Err(refused("NO_STABLE_VERSION", message));
    };
    if control == version {
        return Err(refused("ALREADY_STABLE", format!("version {version} is stable already")));
    }
    if !next.variants.is_empty() || !next.shadow.is_empty() {
        let message = "versions share the traffic with stable; give stable all of it first (SetRoute)";
        return Err(refused("TRAFFIC_SHARED", message));
    }
    next.rejected.remove(&version);
    next.stable = Stable::Pinned(control);
    next.rollout = Some(Rollout {
        version,
        control,
        phase: Phase::Gates,
        began: moment.revision,
        began_at: moment.time.clone(),
        phase_at: moment.time.clone(),
        paused: None,
        paused_seconds: 0,
        paused_seconds_in_phase: 0,
        verdict: None,
        stages: Vec::new(),
        plan: plan.clone(),
    });
    Ok(())
}

/// What somebody else decides about traffic waits until it is over.
pub fn refuse_beside(route: &Route) -> Result<()> {
    let Some(rollout) = route.running() else { return Ok(()) };
    let version = rollout.version;
    let message = format!(
        "version {version} is being rolled out ({}); wait for its end, promote it, roll it back or abort it first",
        rollout.phase
    );
    Err(refused("ROLLOUT_RUNNING", message).with("version", version))
}

/// Does what the judge decided, if the rollout is where it was judged.
pub fn carry_out(next: &mut Route, judged: &Judged, moment: &Moment) -> Result<()> {
    let rollout = running(next)?;
    if (rollout.began, rollout.phase) != (judged.began, judged.phase) {
        let message = format!("the rollout has moved on to {}", rollout.phase);
        return Err(Error::new(Code::Aborted, "ROLLOUT_MOVED", message));
    }
    let Verdict { decision, rule, message, exposure } = &judged.verdict;
    let ruled = |decision: &str| Ruled {
        decision: decision.to_owned(),
        rule: (*rule).to_owned(),
        message: message.clone(),
        exposure: *exposure,
        time: moment.time.clone(),
    };
    match decision {
        Decision::Hold => return Ok(()),
        Decision::Halt if rollout.paused.is_some() => return Ok(()),
        Decision::Halt => {
            rollout.paused = Some(Pause { at: moment.time.clone(), reason: message.clone(), rule: (*rule).to_owned() });
        }
        Decision::Advance if rollout.paused.is_some() => return Ok(()),
        Decision::Advance => {
            let to = rollout.next();
            enter(next, to, moment)?;
        }
        Decision::RollBack => undo(next, Phase::RolledBack, moment)?,
    }
    if let Some(rollout) = &mut next.rollout {
        rollout.verdict = Some(ruled(decision.as_str()));
    }
    Ok(())
}

/// Waits for a person; callers get what they got.
pub fn pause(next: &mut Route, reason: &str, moment: &Moment) -> Result<()> {
    let rollout = running(next)?;
    if rollout.paused.is_none() {
        rollout.paused = Some(Pause { at: moment.time.clone(), reason: reason.to_owned(), rule: String::new() });
    }
    Ok(())
}

/// Goes on. Whoever does so knows what the judge stopped for: a rollout that took too long has its time anew, and requests that
/// were shared out wrongly until now are not held against it.
pub fn resume(next: &mut Route, moment: &Moment) -> Result<()> {
    let rollout = running(next)?;
    let Some(pause) = rollout.paused.take() else { return Ok(()) };
    let now = since_epoch(&moment.time)?;
    let waited = now.saturating_sub(since_epoch(&pause.at)?).as_secs();
    rollout.paused_seconds += waited;
    rollout.paused_seconds_in_phase += waited;
    match pause.rule.as_str() {
        "max_duration" => rollout.paused_seconds = now.saturating_sub(since_epoch(&rollout.began_at)?).as_secs(),
        "sample_ratio" => {
            let last = rollout.stages.last().cloned();
            rollout.stages.iter_mut().for_each(|stage| stage.share = None);
            rollout.stages.extend(last.map(|last| StageBegun { revision: moment.revision, ..last }));
        }
        _ => {}
    }
    Ok(())
}

/// Stable gets all there is. The version may be deployed again.
pub fn abort(next: &mut Route, moment: &Moment) -> Result<()> {
    running(next)?;
    undo(next, Phase::Aborted, moment)
}

/// Makes it stable now, whatever is not known yet. `before`: the stable until then.
pub fn promote(next: &mut Route, moment: &Moment) -> Result<()> {
    running(next)?;
    enter(next, Phase::Promoted, moment)
}

/// Ends it for good: `latest` passes over the version from now on.
pub fn roll_back(next: &mut Route, moment: &Moment) -> Result<()> {
    running(next)?;
    undo(next, Phase::RolledBack, moment)
}

/// Whether the traffic is still what that phase wants: people may write route.yaml, too.
pub fn is_as_written(route: &Route, rollout: &Rollout) -> bool {
    let (version, phase) = (rollout.version, rollout.phase);
    let shadows = route.shadow.iter().filter(|shadow| shadow.version == version).count();
    let weights: Vec<f64> =
        route.variants.iter().filter(|variant| variant.version == version).map(|variant| variant.weight).collect();
    let others = route.variants.iter().any(|variant| variant.version != version);
    let wanted = match phase {
        Phase::Step(_) => vec![rollout.weight(phase)],
        _ => Vec::new(),
    };
    let is_shadow = usize::from(phase == Phase::Shadow);
    route.stable == Stable::Pinned(rollout.control) && weights == wanted && shadows == is_shadow && !others
}

fn running(route: &mut Route) -> Result<&mut Rollout> {
    let found = route.rollout.as_mut().filter(|rollout| rollout.is_running());
    found.ok_or_else(|| refused("NO_ROLLOUT", "nothing is being rolled out; deploy a version first"))
}

/// The phase, with the traffic that belongs to it.
fn enter(next: &mut Route, to: Phase, moment: &Moment) -> Result<()> {
    let rollout = running(next)?;
    let (version, control, weight) = (rollout.version, rollout.control, rollout.weight(to));
    let sample = rollout.plan.shadow.as_ref().map_or(0.0, |shadow| shadow.sample);
    let variant = Variant { name: CANARY.to_owned(), version, weight, slots: Default::default() };
    let sharing = Sharing {
        variants: if matches!(to, Phase::Step(_)) { vec![variant] } else { Vec::new() },
        sticky: next.sticky.clone(),
        rules: next.rules.clone(),
        shadow: if to == Phase::Shadow { vec![Shadow { version, sample }] } else { Vec::new() },
    };
    sharing.put_into(next, Some(control))?;
    if to == Phase::Promoted {
        next.previous = Some(control);
        next.stable = Stable::Pinned(version);
    }
    let share = (next.sticky.is_none() && matches!(to, Phase::Step(_))).then_some(weight / 100.0);
    begin(next, to, share, moment);
    Ok(())
}

/// Nobody gets it any more.
fn undo(next: &mut Route, to: Phase, moment: &Moment) -> Result<()> {
    let version = running(next)?.version;
    take_out(next, version);
    if to == Phase::RolledBack {
        next.rejected.insert(version);
        next.rules.retain(|rule| rule.version != version);
    }
    begin(next, to, None, moment);
    Ok(())
}

fn begin(next: &mut Route, phase: Phase, share: Option<f64>, moment: &Moment) {
    let Some(rollout) = &mut next.rollout else { return };
    rollout.phase = phase;
    rollout.phase_at.clone_from(&moment.time);
    rollout.paused = None;
    rollout.paused_seconds_in_phase = 0;
    rollout.stages.push(StageBegun { revision: moment.revision, phase, share });
}

fn refused(reason: &'static str, message: impl Into<String>) -> Error {
    Error::new(Code::FailedPrecondition, reason, message)
}

// === impl Judged ===

impl fmt::Display for Judged {
    /// `rollout 2.0.0: step 1 passed`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let done = match self.verdict.decision {
            Decision::Advance => "passed",
            Decision::Hold => "held",
            Decision::RollBack => "rolled back",
            Decision::Halt => "stopped",
        };
        write!(f, "rollout {}: {} {done}", self.version, self.phase)
    }
}

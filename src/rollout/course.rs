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
    let control = stable_of(next, known).filter(|control| !next.rejected.contains(control));
    let Some(control) = control else {
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
    next.rollout = Some(Rollout::begun(version, control, plan.clone(), moment.revision, &moment.time));
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
    let sticks = next.sticky.is_some();
    let rollout = running(next)?;
    let Some(pause) = end_pause(rollout, moment)? else { return Ok(()) };
    let now = since_epoch(&moment.time)?;
    match pause.rule.as_str() {
        "max_duration" => rollout.paused_seconds = now.saturating_sub(since_epoch(&rollout.began_at)?).as_secs(),
        "sample_ratio" | "route_changed" => {
            let last = rollout.stages.last().cloned();
            rollout.stages.iter_mut().for_each(|stage| stage.share = None);
            let share = last.as_ref().and_then(|last| last.share).filter(|_| !sticks);
            rollout.stages.extend(last.map(|last| StageBegun { revision: moment.revision, share, ..last }));
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

/// Makes it stable now, whatever is not known yet.
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
    let variants = route.variants.iter().map(|variant| (&*variant.name, variant.version, variant.weight));
    let shadows = route.shadow.iter().map(|shadow| (shadow.version, shadow.sample));
    let sample = rollout.plan.shadow.as_ref().map_or(0.0, |shadow| shadow.sample);
    let is_shared = match phase {
        Phase::Step(_) => variants.eq([(CANARY, version, rollout.weight(phase))]),
        _ => route.variants.is_empty(),
    };
    let is_shadowed = match phase {
        Phase::Shadow => shadows.eq([(version, sample)]),
        _ => route.shadow.is_empty(),
    };
    // A share that is to be held against the counts is one of requests, and not of callers.
    let has_share = rollout.stages.last().is_some_and(|stage| stage.share.is_some());
    let is_stuck = has_share && route.sticky.is_some();
    route.stable == Stable::Pinned(rollout.control) && is_shared && is_shadowed && !is_stuck
}

/// `there is stable 1.0.0, canary 2.0.0 20 %; the phase wants stable 1.0.0, canary 2.0.0 5 %`
pub fn difference(route: &Route, rollout: &Rollout) -> String {
    let (version, phase) = (rollout.version, rollout.phase);
    let mut there = vec![format!("stable {}", route.stable)];
    there.extend(route.variants.iter().map(|own| format!("{} {} {} %", own.name, own.version, own.weight)));
    there.extend(route.shadow.iter().map(|own| format!("shadow {} {} %", own.version, own.sample)));
    there.extend(route.sticky.iter().map(|sticky| format!("sticky by {}", sticky.source())));
    let mut wanted = vec![format!("stable {}", rollout.control)];
    match (phase, &rollout.plan.shadow) {
        (Phase::Step(_), _) => wanted.push(format!("{CANARY} {version} {} %", rollout.weight(phase))),
        (Phase::Shadow, Some(shadow)) => wanted.push(format!("shadow {version} {} %", shadow.sample)),
        _ => {}
    }
    format!("there is {}; the phase wants {}", there.join(", "), wanted.join(", "))
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
    begin(next, to, share, moment)
}

/// Nobody gets it any more.
fn undo(next: &mut Route, to: Phase, moment: &Moment) -> Result<()> {
    let version = running(next)?.version;
    take_out(next, version);
    if to == Phase::RolledBack {
        next.rejected.insert(version);
        next.rules.retain(|rule| rule.version != version);
    }
    begin(next, to, None, moment)
}

/// One that is over is added to those before.
fn end_pause(rollout: &mut Rollout, moment: &Moment) -> Result<Option<Pause>> {
    let Some(pause) = rollout.paused.take() else { return Ok(None) };
    let waited = since_epoch(&moment.time)?.saturating_sub(since_epoch(&pause.at)?).as_secs();
    rollout.paused_seconds = rollout.paused_seconds.saturating_add(waited);
    rollout.paused_seconds_in_phase = rollout.paused_seconds_in_phase.saturating_add(waited);
    Ok(Some(pause))
}

fn begin(next: &mut Route, phase: Phase, share: Option<f64>, moment: &Moment) -> Result<()> {
    let Some(rollout) = &mut next.rollout else { return Ok(()) };
    end_pause(rollout, moment)?;
    rollout.phase = phase;
    rollout.phase_at.clone_from(&moment.time);
    rollout.paused_seconds_in_phase = 0;
    rollout.stages.push(StageBegun { revision: moment.revision, phase, share });
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::ShadowStage,
        rollout::change::{Asked, Change},
    };

    fn v(major: u64) -> Version {
        Version::new(major, 0, 0)
    }

    fn plan() -> Plan {
        Plan { steps: vec![5.0, 50.0, 100.0], shadow: Some(ShadowStage::default()), ..Plan::default() }
    }

    const KNOWN: Known = Known { answering: Some(Version::new(1, 0, 0)), below: None };

    fn tried(route: &Route, change: Change, minute: u64) -> Result<Option<Route>> {
        let time = format!("2026-01-01T{:02}:{:02}:00Z", minute / 60, minute % 60);
        change.apply(route, route.revision.unwrap_or(0), KNOWN, &Asked::default(), time)
    }

    fn after(route: &Route, change: Change, minute: u64) -> Route {
        tried(route, change, minute).expect("it may be done").expect("it changes something")
    }

    fn refused(route: &Route, change: Change) -> &'static str {
        tried(route, change, 0).expect_err("it may not be done").reason()
    }

    fn judged(route: &Route, decision: Decision, rule: &'static str) -> Change {
        let rollout = route.rollout.as_ref().expect("there is one");
        let verdict = Verdict { decision, rule, message: format!("because of {rule}"), exposure: 17 };
        Change::Judged(Box::new(Judged {
            version: rollout.version,
            began: rollout.began,
            phase: rollout.phase,
            verdict,
        }))
    }

    fn deployed() -> Route {
        after(&Route::default(), Change::Deploy(v(2), Box::new(plan())), 0)
    }

    fn rollout(route: &Route) -> &Rollout {
        route.rollout.as_ref().expect("there is one")
    }

    /// Each state is read back from its own YAML, as every replica does.
    fn advanced(mut route: Route, times: u64) -> Route {
        for minute in 1..=times {
            let change = judged(&route, Decision::Advance, "passed");
            route = Route::parse(&after(&route, change, minute).to_yaml()).expect("as it was written");
            if let Some(rollout) = route.running() {
                assert!(is_as_written(&route, rollout), "{route:?}");
            }
        }
        route
    }

    #[test]
    fn a_good_version_goes_all_the_way() {
        let begun = deployed();
        assert_eq!((begun.stable, rollout(&begun).phase), (Stable::Pinned(v(1)), Phase::Gates));
        assert_eq!(
            (begun.named(), begun.passes_over(v(2))),
            ([v(1), v(2)].into(), true),
            "it is loaded and answers nobody"
        );
        assert!(begun.history[0].change.starts_with("deploy 2.0.0 plan#"));
        let shadowed = advanced(begun, 1);
        assert_eq!((shadowed.shadow.len(), shadowed.variants.len()), (1, 0));
        let first = advanced(shadowed.clone(), 1);
        assert_eq!((first.shadow.len(), first.variants[0].weight, first.variants[0].slots.len()), (0, 5.0, 500));
        let second = advanced(first.clone(), 1);
        assert_eq!((second.variants[0].weight, second.variants[0].slots.len()), (50.0, 5000));
        assert!(first.variants[0].slots.iter().all(|slot| second.variants[0].slots.iter().any(|other| other == slot)));
        let whole = advanced(second, 1);
        assert_eq!((whole.variants[0].slots.len(), whole.stable), (10_000, Stable::Pinned(v(1))));
        let done = advanced(whole, 1);
        assert_eq!((done.stable, done.previous, done.variants.len()), (Stable::Pinned(v(2)), Some(v(1)), 0));
        let stages: Vec<_> =
            rollout(&done).stages.iter().map(|stage| (stage.revision, stage.phase, stage.share)).collect();
        assert_eq!(
            stages,
            [
                (2, Phase::Shadow, None),
                (3, Phase::Step(0), Some(0.05)),
                (4, Phase::Step(1), Some(0.5)),
                (5, Phase::Step(2), Some(1.0)),
                (6, Phase::Promoted, None),
            ]
        );
        assert_eq!(done.history[5].change, "rollout 2.0.0: step 3 passed");
        let back = after(&done, Change::Rollback(None), 9);
        assert_eq!((back.stable, rollout(&back).phase), (Stable::Pinned(v(1)), Phase::RolledBack));
    }

    #[test]
    fn a_bad_one_is_rejected_and_an_aborted_one_is_not() {
        let rules = "rules: [{ attribute: a, equals: b, version: 1.0.0 }, { attribute: a, equals: c, version: 2.0.0 }]";
        let begun = Route::parse(rules).expect("a route");
        let first = advanced(after(&begun, Change::Deploy(v(2), Box::new(plan())), 0), 2);
        let verdict = judged(&first, Decision::RollBack, "error_rate");
        let back = after(&first, verdict.clone(), 7);
        assert_eq!((back.stable, back.variants.len(), back.rejected.contains(&v(2))), (Stable::Pinned(v(1)), 0, true));
        let said = rollout(&back).verdict.as_ref().expect("a verdict");
        assert_eq!((&*said.decision, &*said.rule, said.exposure), ("roll_back", "error_rate", 17));
        assert_eq!(back.named(), [v(1)].into(), "its memory comes back");
        assert_eq!(back.rules.iter().map(|rule| rule.version).collect::<Vec<_>>(), [v(1)]);
        assert_eq!(refused(&back, verdict), "NO_ROLLOUT");
        let by_person = after(&first, Change::Rollback(None), 7);
        assert_eq!((rollout(&by_person).phase, by_person.rejected.contains(&v(2))), (Phase::RolledBack, true));
        let aborted = after(&first, Change::Abort, 7);
        assert_eq!((rollout(&aborted).phase, aborted.rejected.is_empty()), (Phase::Aborted, true));
        assert_eq!(aborted.rules, begun.rules, "people gave it to these callers");
        let again = after(&back, Change::Deploy(v(2), Box::new(plan())), 8);
        assert!(again.rejected.is_empty() && again.running().is_some());
    }

    #[test]
    fn whoever_judged_an_earlier_phase_moves_nothing() {
        let first = advanced(deployed(), 2);
        let late = judged(&first, Decision::Advance, "passed");
        let second = after(&first, late.clone(), 5);
        assert_eq!(refused(&second, late.clone()), "ROLLOUT_MOVED");
        let anew = after(&after(&second, Change::Abort, 6), Change::Deploy(v(2), Box::new(plan())), 7);
        assert_eq!(refused(&advanced(anew, 2), late), "ROLLOUT_MOVED", "another rollout of the same version");
    }

    #[test]
    fn a_pause_holds_what_goes_on_and_not_what_goes_back() {
        let first = advanced(deployed(), 2);
        let paused = after(&first, Change::Pause, 10);
        assert!(rollout(&paused).paused.is_some() && paused.variants == first.variants);
        for decision in [Decision::Advance, Decision::Halt] {
            assert_eq!(tried(&paused, judged(&paused, decision, "x"), 11).expect("no error"), None);
        }
        assert_eq!(rollout(&after(&paused, judged(&paused, Decision::RollBack, "x"), 11)).phase, Phase::RolledBack);
        assert_eq!(tried(&paused, Change::Pause, 11).expect("no error"), None, "twice writes once");
        let resumed = after(&paused, Change::Resume, 15);
        assert_eq!((rollout(&resumed).paused_seconds, rollout(&resumed).paused_seconds_in_phase), (300, 300));
        assert_eq!(rollout(&after(&paused, Change::Abort, 15)).paused_seconds, 300, "a pause that an end ends");
        let second = after(&resumed, judged(&resumed, Decision::Advance, "passed"), 16);
        assert_eq!((rollout(&second).paused_seconds, rollout(&second).paused_seconds_in_phase), (300, 0));
    }

    #[test]
    fn who_resumes_knows_what_it_was_stopped_for() {
        let first = advanced(deployed(), 2);
        let late = after(&first, judged(&first, Decision::Halt, "max_duration"), 60);
        assert_eq!(rollout(&late).paused.as_ref().map(|pause| &*pause.rule), Some("max_duration"));
        let resumed = after(&late, Change::Resume, 90);
        let (in_all, _) =
            rollout(&resumed).lasted(since_epoch("2026-01-01T01:30:00Z").expect("a time")).expect("times");
        assert_eq!(in_all.as_secs(), 0, "its time begins anew");
        let uneven = after(&first, judged(&first, Decision::Halt, "sample_ratio"), 60);
        let resumed = after(&uneven, Change::Resume, 90);
        let shares: Vec<_> = rollout(&resumed).stages.iter().map(|stage| (stage.revision, stage.share)).collect();
        assert_eq!(shares, [(2, None), (3, None), (5, Some(0.05))], "what comes from now on is");
    }

    #[test]
    fn what_may_not_be_done_says_why() {
        let deploy = |version| Change::Deploy(version, Box::default());
        assert_eq!(refused(&Route::default(), deploy(v(1))), "ALREADY_STABLE");
        let nobody = deploy(v(2)).apply(&Route::default(), 0, Known::default(), &Asked::default(), "".into());
        assert_eq!(nobody.expect_err("nothing is stable").reason(), "NO_STABLE_VERSION");
        let shared = Route::parse("stable: 1.0.0\nshadow: [{version: 2}]").expect("a route");
        assert_eq!(refused(&shared, deploy(v(2))), "TRAFFIC_SHARED");
        let bad = Plan { steps: vec![50.0], ..Plan::default() };
        assert_eq!(refused(&Route::default(), Change::Deploy(v(2), Box::new(bad))), "INVALID_PLAN");
        let running = advanced(deployed(), 2);
        for change in [
            deploy(v(3)),
            Change::Promote(v(3)),
            Change::Rollback(Some(v(3))),
            Change::Unpin,
            Change::SetRoute(Box::default()),
        ] {
            assert_eq!(refused(&running, change), "ROLLOUT_RUNNING");
        }
        assert_eq!(refused(&running, Change::Unload(v(2))), "VERSION_IN_USE");
        for change in [Change::Pause, Change::Resume, Change::Abort] {
            assert_eq!(refused(&Route::default(), change), "NO_ROLLOUT");
        }
        let now = after(&running, Change::Promote(v(2)), 30);
        assert_eq!(
            (now.stable, now.previous, rollout(&now).phase),
            (Stable::Pinned(v(2)), Some(v(1)), Phase::Promoted)
        );
    }

    #[test]
    fn where_callers_stick_no_share_of_requests_is_expected() {
        let shares = |route: &str| {
            let route = Route::parse(route).expect("a route");
            let first = advanced(after(&route, Change::Deploy(v(2), Box::new(plan())), 0), 2);
            rollout(&first).stages.iter().map(|stage| stage.share).collect::<Vec<_>>()
        };
        assert_eq!(shares(""), [None, Some(0.05)]);
        assert_eq!(shares("sticky: { attribute: customer }"), [None, None]);
    }

    #[test]
    fn what_somebody_wrote_by_hand_is_noticed() {
        let running = advanced(deployed(), 2);
        let edits: [fn(&mut Route); 5] = [
            |route| route.variants[0].name = "beta".into(),
            |route| route.sticky = Route::parse("sticky: { attribute: customer }").expect("a route").sticky,
            |route| route.variants.clear(),
            |route| route.variants[0].weight = 90.0,
            |route| route.stable = Stable::Latest,
        ];
        for edit in edits {
            let mut route = running.clone();
            edit(&mut route);
            assert!(!is_as_written(&route, rollout(&running)));
        }
        let mut twice = running.clone();
        twice.variants[0].weight = 10.0;
        let said = difference(&twice, rollout(&running));
        assert_eq!(said, "there is stable 1.0.0, canary 2.0.0 10 %; the phase wants stable 1.0.0, canary 2.0.0 5 %");
        let shadowed = advanced(deployed(), 1);
        let edits: [fn(&mut Route); 3] = [
            |route| route.shadow[0].sample = 90.0,
            |route| route.shadow.clear(),
            |route| route.shadow.push(Shadow { version: v(3), sample: 10.0 }),
        ];
        for edit in edits {
            let mut route = shadowed.clone();
            edit(&mut route);
            assert!(!is_as_written(&route, rollout(&shadowed)));
        }
        let labelled = Change::SetLabels { set: [("a".into(), v(1))].into(), remove: vec![] };
        let labelled = after(&running, labelled, 40);
        assert!(is_as_written(&labelled, rollout(&labelled)));
    }
}

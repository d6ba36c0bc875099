//! A rollout as a picture of some lines, and as one line. Pure.

use std::{fmt::Write as _, time::Duration};

use crate::{
    cli::{
        experiment::{milliseconds, shadow_for_people, short},
        proto::{Rollout, RolloutVerdict, VariantReport},
        table::table,
    },
    telemetry::logs::escape,
};

/// Of the bar that shows how much of its time a phase has lasted.
const BAR_WIDTH: usize = 24;

/// All that is known of it.
pub fn picture(model: &str, rollout: &Rollout) -> String {
    let Rollout { version, control, .. } = rollout;
    let mut text = format!("{}: {} beside {}, {}\n", escape(model), escape(version), escape(control), place(rollout));
    let _ = writeln!(text, "  {}", way(rollout));
    if rollout.hold_seconds > 0.0 {
        let (lasted, hold) = (time(rollout.phase_seconds), time(rollout.hold_seconds));
        let _ = writeln!(text, "  {} {lasted} of {hold}", bar(rollout.phase_seconds / rollout.hold_seconds));
    }
    if let Some(paused) = &rollout.paused {
        let _ = writeln!(text, "  paused since {}{}", escape(&paused.at), said(&paused.rule, &paused.reason));
    }
    text.push('\n');
    text += &beside(rollout);
    if let Some(shadow) = &rollout.shadow {
        let _ = writeln!(text, "{}", escape(&shadow_for_people(shadow)));
    }
    text.push('\n');
    if let Some(verdict) = &rollout.verdict {
        let _ = writeln!(text, "now:    {}", sentence(verdict));
    }
    if let Some(verdict) = &rollout.last_verdict {
        let _ = writeln!(text, "last:   {}, {}", sentence(verdict), escape(&verdict.time));
    }
    if !rollout.ended_by.is_empty() {
        let _ = writeln!(text, "ended:  by {}", escape(&ended(rollout)));
    }
    let stages = rollout.stages.iter().map(|stage| format!("{} (revision {})", escape(&stage.phase), stage.revision));
    let stages: Vec<String> = stages.collect();
    if !stages.is_empty() {
        let _ = writeln!(text, "stages: {}", stages.join(", "));
    }
    let _ = writeln!(text, "begun:  {} (revision {})", escape(&rollout.began_at), rollout.began_revision);
    text
}

/// `1.1.0 at step 1, 5 %: hold (min_samples): the step of 5 % has 40 of 100 requests of the new version so far`
pub fn line(rollout: &Rollout) -> String {
    let what = match (&rollout.paused, &rollout.verdict) {
        (Some(paused), _) => format!(": paused{}", said(&paused.rule, &paused.reason)),
        (None, Some(verdict)) => format!(": {}", sentence(verdict)),
        (None, None) => match ended_by(rollout) {
            Some(verdict) => format!(": {}", sentence(verdict)),
            None if rollout.ended_by.is_empty() => String::new(),
            None => format!(" by {}", escape(&ended(rollout))),
        },
    };
    format!("{}, {}{what}", escape(&rollout.version), place(rollout))
}

/// What has to differ for another line to be worth it: numbers that grow do not.
pub fn standing(rollout: &Rollout) -> impl PartialEq + use<> {
    let verdict = rollout.verdict.as_ref().map(|verdict| (verdict.decision.clone(), verdict.rule.clone()));
    (rollout.began_revision, rollout.phase.clone(), rollout.paused.clone(), verdict)
}

/// `step 2, 25 % of the traffic`, `promoted after 1h`
fn place(rollout: &Rollout) -> String {
    let phase = escape(&rollout.phase).replace('_', " ");
    match (rollout.running, rollout.weight) {
        (false, _) => format!("{phase} after {}", time(rollout.total_seconds)),
        (true, 0.0) => format!("{phase}, nobody gets its answers yet"),
        (true, weight) => format!("{phase}, {weight} % of the traffic"),
    }
}

/// `✓ gates  ▶ 5 %  · 25 %  · 100 %`; ✗ is where it ended, » where somebody promoted it before its time.
fn way(rollout: &Rollout) -> String {
    let plan = rollout.plan.clone().unwrap_or_default();
    let steps = plan.steps.iter().enumerate().map(|(place, step)| (format!("step {}", place + 1), format!("{step} %")));
    let first = ["gates", "shadow"].map(|phase| (phase.to_owned(), phase.to_owned()));
    let first = first.into_iter().take(if plan.shadow.is_some() { 2 } else { 1 });
    let all: Vec<(String, String)> = first.chain(steps).collect();
    let place = |phase: &str| all.iter().position(|(name, _)| name == phase);
    // Where it was when it ended; its last stage is the end itself.
    let ended = || rollout.stages.iter().rev().find_map(|stage| place(&stage.phase)).unwrap_or(0);
    let (here, mark) = match rollout.phase.as_str() {
        "promoted" if ended() + 1 == all.len() => (all.len(), '✓'),
        // By a person, from there.
        "promoted" => (ended(), '»'),
        phase if rollout.running => (place(phase).unwrap_or(0), if rollout.paused.is_some() { '‖' } else { '▶' }),
        _ => (ended(), '✗'),
    };
    let shown = all.iter().enumerate().map(|(place, (_, name))| match place {
        place if place < here => format!("✓ {name}"),
        place if place == here => format!("{mark} {name}"),
        _ => format!("· {name}"),
    });
    shown.collect::<Vec<_>>().join("  ")
}

/// `[######------------------]`
fn bar(share: f64) -> String {
    let full = (share.clamp(0.0, 1.0) * BAR_WIDTH as f64) as usize;
    format!("[{}{}]", "#".repeat(full), "-".repeat(BAR_WIDTH - full))
}

/// The two versions, a row each.
fn beside(rollout: &Rollout) -> String {
    let metric = rollout.plan.as_ref().and_then(|plan| plan.metric.clone()).unwrap_or_default();
    let heading = metric.replace('_', " ").to_uppercase();
    let rows: Vec<[String; 9]> = rollout.variants.iter().map(|variant| row(variant, &metric)).collect();
    let headings = ["VARIANT", "VERSION", "REQUESTS", "ERRORS", "STOOD IN", "P50", "P95", "OUTCOMES", &heading];
    table(headings, &rows)
}

fn row(variant: &VariantReport, metric: &str) -> [String; 9] {
    [
        variant.name.clone(),
        variant.version.clone(),
        variant.assigned.to_string(),
        variant.error_rate.map_or("-".into(), |rate| format!("{} ({:.2} %)", variant.errors, rate * 100.0)),
        variant.degraded.to_string(),
        milliseconds(variant.latency_p50_seconds),
        milliseconds(variant.latency_p95_seconds),
        variant.outcomes.to_string(),
        mean(variant, metric),
    ]
}

/// Of the metric that the plan asks for; empty where it asks for none.
fn mean(variant: &VariantReport, metric: &str) -> String {
    let mean = match metric {
        "" => return String::new(),
        "accuracy" => variant.accuracy,
        "log_loss" => variant.log_loss,
        "brier" => variant.brier,
        "squared_error" => variant.squared_error,
        "reward" => variant.reward,
        own => variant.metrics.get(own).copied(),
    };
    mean.map_or("-".into(), short)
}

/// The verdict that ended it; `None` where a person did.
fn ended_by(rollout: &Rollout) -> Option<&RolloutVerdict> {
    rollout.last_verdict.as_ref().filter(|verdict| !rollout.running && verdict.time == rollout.phase_at)
}

/// `alice: not today`
fn ended(rollout: &Rollout) -> String {
    let why = if rollout.ended_because.is_empty() { String::new() } else { format!(": {}", rollout.ended_because) };
    format!("{}{why}", rollout.ended_by)
}

/// `roll back (error_rate): error rate 4.1 % (41 of 1,000) …; 41 requests saw it`
fn sentence(verdict: &RolloutVerdict) -> String {
    let RolloutVerdict { decision, rule, message, exposure, .. } = verdict;
    let decision = decision.replace('_', " ");
    escape(&format!("{decision} ({rule}): {message}; {exposure} requests saw the version"))
}

/// ` (max_duration): inconclusive after a day`
fn said(rule: &str, reason: &str) -> String {
    let rule = if rule.is_empty() { String::new() } else { format!(" ({rule})") };
    let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    escape(&format!("{rule}{reason}"))
}

/// `12m 5s`
fn time(seconds: f64) -> String {
    humantime::format_duration(Duration::from_secs(seconds as u64)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::proto::{RolloutPause, RolloutPlan, RolloutStage, ShadowReport, ShadowStage};

    fn verdict(decision: &str, rule: &str) -> RolloutVerdict {
        let (decision, rule) = (decision.into(), rule.into());
        RolloutVerdict { decision, rule, message: "it has 40 of 100".into(), exposure: 40, time: String::new() }
    }

    fn variant(name: &str, version: &str) -> VariantReport {
        VariantReport {
            name: name.into(),
            version: version.into(),
            assigned: 200,
            errors: 3,
            error_rate: Some(0.015),
            degraded: 1,
            latency_p50_seconds: Some(0.001),
            outcomes: 12,
            accuracy: Some(0.625),
            ..Default::default()
        }
    }

    fn rollout() -> Rollout {
        let stage = |revision, phase: &str| RolloutStage { revision, phase: phase.into() };
        Rollout {
            version: "1.1.0".into(),
            control: "1.0.0".into(),
            phase: "step 2".into(),
            running: true,
            weight: 25.0,
            began_revision: 4,
            began_at: "2026-11-22T10:00:00Z".into(),
            phase_at: "2026-11-22T10:20:00Z".into(),
            phase_seconds: 150.0,
            total_seconds: 1350.0,
            hold_seconds: 600.0,
            last_verdict: Some(RolloutVerdict { time: "2026-11-22T10:20:00Z".into(), ..verdict("advance", "passed") }),
            verdict: Some(verdict("hold", "min_samples")),
            plan: Some(RolloutPlan {
                steps: vec![5.0, 25.0, 100.0],
                shadow: Some(ShadowStage::default()),
                metric: Some("accuracy".into()),
                ..Default::default()
            }),
            stages: vec![stage(5, "shadow"), stage(6, "step 1"), stage(7, "step 2")],
            variants: vec![variant("stable", "1.0.0"), variant("canary", "1.1.0")],
            shadow: Some(ShadowReport { version: "1.1.0".into(), sent: 90, dropped: 2, ..Default::default() }),
            ..Default::default()
        }
    }

    #[test]
    fn a_step_is_a_picture() {
        let expected = "\
m: 1.1.0 beside 1.0.0, step 2, 25 % of the traffic
  ✓ gates  ✓ shadow  ✓ 5 %  ▶ 25 %  · 100 %
  [######------------------] 2m 30s of 10m

VARIANT  VERSION  REQUESTS  ERRORS      STOOD IN  P50      P95  OUTCOMES  ACCURACY
stable   1.0.0    200       3 (1.50 %)  1         1.00 ms  -    12        0.6250
canary   1.1.0    200       3 (1.50 %)  1         1.00 ms  -    12        0.6250
shadow 1.1.0: asked 90 times, 0 failed, 2 dropped

now:    hold (min_samples): it has 40 of 100; 40 requests saw the version
last:   advance (passed): it has 40 of 100; 40 requests saw the version, 2026-11-22T10:20:00Z
stages: shadow (revision 5), step 1 (revision 6), step 2 (revision 7)
begun:  2026-11-22T10:00:00Z (revision 4)
";
        assert_eq!(picture("m", &rollout()), expected);
    }

    #[test]
    fn the_way_shows_where_it_waits_and_where_it_ended() {
        let paused = Some(RolloutPause { reason: "lunch\n".into(), ..Default::default() });
        let paused = Rollout { paused, ..rollout() };
        assert_eq!(way(&paused), "✓ gates  ✓ shadow  ✓ 5 %  ‖ 25 %  · 100 %");
        assert!(picture("m", &paused).contains("  paused since : lunch\\n\n"), "{}", picture("m", &paused));
        let over = |phase: &str| Rollout { phase: phase.into(), running: false, verdict: None, ..rollout() };
        let mut promoted = over("promoted");
        promoted.stages.push(RolloutStage { revision: 8, phase: "promoted".into() });
        assert_eq!(way(&promoted), "✓ gates  ✓ shadow  ✓ 5 %  » 25 %  · 100 %", "by hand");
        promoted.stages.insert(3, RolloutStage { revision: 8, phase: "step 3".into() });
        assert_eq!(way(&promoted), "✓ gates  ✓ shadow  ✓ 5 %  ✓ 25 %  ✓ 100 %");
        let mut undone = over("rolled_back");
        undone.stages.push(RolloutStage { revision: 8, phase: "rolled_back".into() });
        assert_eq!(way(&undone), "✓ gates  ✓ shadow  ✓ 5 %  ✗ 25 %  · 100 %");
        let plan = Some(RolloutPlan { steps: vec![100.0], ..Default::default() });
        assert_eq!(way(&Rollout { plan, phase: "gates".into(), ..rollout() }), "▶ gates  · 100 %");
    }

    #[test]
    fn one_line_says_what_changed_and_numbers_that_grow_make_no_other() {
        let first = rollout();
        assert_eq!(
            line(&first),
            "1.1.0, step 2, 25 % of the traffic: hold (min_samples): it has 40 of 100; 40 requests saw the version"
        );
        let mut later = Rollout { phase_seconds: 151.0, ..rollout() };
        later.verdict.as_mut().expect("it is there").message = "it has 41 of 100".into();
        assert!(standing(&first) == standing(&later));
        later.verdict = Some(verdict("hold", "hold"));
        assert!(standing(&first) != standing(&later));
        let over = Rollout { phase: "rolled_back".into(), running: false, verdict: None, ..rollout() };
        let by_judge = Some(RolloutVerdict { time: over.phase_at.clone(), ..verdict("roll_back", "error_rate") });
        let by_judge = Rollout { last_verdict: by_judge, ..over.clone() };
        assert!(line(&by_judge).contains("rolled back after 22m 30s: roll back (error_rate)"), "{}", line(&by_judge));
        let by_hand = Rollout { phase_at: "2026-11-22T10:22:30Z".into(), ..over };
        assert_eq!(line(&by_hand), "1.1.0, rolled back after 22m 30s", "the last verdict was of another phase");
        let by_alice = Rollout { ended_by: "alice".into(), ended_because: "or not".into(), ..by_hand };
        assert_eq!(line(&by_alice), "1.1.0, rolled back after 22m 30s by alice: or not");
        assert!(picture("m", &by_alice).contains("\nended:  by alice: or not\n"), "{}", picture("m", &by_alice));
    }
}

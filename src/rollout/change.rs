//! What an operator asks for, as an edit of the route. Pure: the time and what is known are arguments.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use super::course::{self, Judged, Moment};
use crate::{
    error::{Code, Error, Result},
    model::{
        HISTORY_MAX, LABELS_MAX, Phase, Plan, Route, RouteChange, Rule, Shadow, Slots, Stable, Sticky, Variant,
        Version, allot, check_label, slot_of, slots_by_weight,
    },
};

/// One change of a model's traffic.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Makes the version stable, until somebody says otherwise.
    Promote(Version),
    /// Makes the version before stable, or this one, and rejects the one that is left.
    Rollback(Option<Version>),
    /// From now on the highest ready version that was not rejected.
    Unpin,
    SetLabels {
        set: BTreeMap<String, Version>,
        remove: Vec<String>,
    },
    /// Who shares the traffic with stable, all of it.
    SetRoute(Box<Sharing>),
    /// Brings a version to stable, by plan.
    Deploy(Version, Box<Plan>),
    /// Of the rollout that is on its way.
    Pause,
    Resume,
    Abort,
    /// What became of it.
    Judged(Box<Judged>),
    /// Loads a version that model.yaml does not select.
    Load(Version),
    /// Takes that back.
    Unload(Version),
    /// Nobody gets an answer until it is enabled again.
    Disable,
    Enable,
    /// Makes the servables anew, from the store.
    Reload,
}

/// Who shares a model's traffic with its stable version.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sharing {
    pub variants: Vec<Variant>,
    pub sticky: Option<Sticky>,
    pub rules: Vec<Rule>,
    pub shadow: Vec<Shadow>,
}

/// Who asks, and why.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Asked {
    /// As claimed.
    pub caller: String,
    pub reason: String,
    /// The same on a retry: the change is made once.
    pub request_id: String,
    /// The revision that the caller decided upon; `None`: what this replica showed when the call came.
    pub expected_revision: Option<u64>,
}

/// What of the model the edit depends on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Known {
    /// Who answers now.
    pub answering: Option<Version>,
    /// The highest ready version below it that was not rejected.
    pub below: Option<Version>,
}

const TEXT_BYTES_MAX: usize = 1024;

// === impl Change ===

impl Change {
    /// The route with the change made, without its history.
    fn edit(&self, route: &Route, known: Known, asked: &Asked, moment: &Moment) -> Result<Route> {
        let mut next = route.clone();
        let tried = route.running().map(|rollout| (rollout.version, rollout.control));
        match self {
            Change::Promote(version) if tried.is_some_and(|(tried, _)| tried == *version) => {
                course::promote(&mut next, moment)?;
            }
            Change::Rollback(wanted) if tried.is_some_and(|(_, control)| wanted.is_none_or(|to| to == control)) => {
                course::roll_back(&mut next, moment)?;
            }
            Change::Promote(_) | Change::Rollback(_) | Change::Unpin | Change::SetRoute(_) if tried.is_some() => {
                course::refuse_beside(route)?;
            }
            Change::Deploy(version, plan) => course::deploy(&mut next, known, *version, plan, moment)?,
            Change::Pause => course::pause(&mut next, &asked.reason, moment)?,
            Change::Resume => course::resume(&mut next, moment)?,
            Change::Abort => course::abort(&mut next, moment)?,
            Change::Judged(judged) => course::carry_out(&mut next, judged, moment)?,
            Change::Promote(version) => {
                let before = stable_of(route, known);
                next.rejected.remove(version);
                next.stable = Stable::Pinned(*version);
                next.previous = before.filter(|before| before != version).or(route.previous);
                take_out(&mut next, *version);
            }
            Change::Rollback(wanted) => roll_back(&mut next, *wanted, route, known, moment)?,
            Change::Unpin => next.stable = Stable::Latest,
            Change::SetLabels { set, remove } => {
                for label in set.keys() {
                    check_label(label)?;
                }
                next.labels.extend(set.iter().map(|(label, version)| (label.clone(), *version)));
                next.labels.retain(|label, _| !remove.contains(label));
                if next.labels.len() > LABELS_MAX {
                    return Err(Error::invalid("TOO_MANY_LABELS", format!("a model has at most {LABELS_MAX} labels")));
                }
            }
            Change::SetRoute(sharing) => sharing.put_into(&mut next, stable_of(route, known))?,
            Change::Load(version) => {
                next.load.insert(*version);
            }
            Change::Unload(version) => {
                next.load.remove(version);
                if next.named().contains(version) {
                    return Err(still_named(*version));
                }
            }
            Change::Disable => next.disabled = Some(crate::model::Disabled { reason: asked.reason.clone() }),
            Change::Enable => next.disabled = None,
            Change::Reload => next.reloads += 1,
        }
        Ok(next)
    }

    /// The route after the change, with the next revision and its line of history; `None` where all is so already.
    pub fn apply(
        &self,
        route: &Route,
        revision: u64,
        known: Known,
        asked: &Asked,
        time: String,
    ) -> Result<Option<Route>> {
        check_texts(asked)?;
        let moment = Moment { revision: revision + 1, time };
        let mut next = self.edit(route, known, asked, &moment)?;
        if next == *route {
            return Ok(None);
        }
        let Moment { revision, time } = moment;
        next.revision = Some(revision);
        next.history.push(RouteChange {
            revision,
            time,
            change: self.to_string(),
            stable: next.stable,
            caller: asked.caller.clone(),
            reason: asked.reason.clone(),
            request_id: asked.request_id.clone(),
        });
        let surplus = next.history.len().saturating_sub(HISTORY_MAX);
        next.history.drain(..surplus);
        Ok(Some(next))
    }

    /// Means the rollout that is on its way, wherever it is by now: it moves by itself, and nobody could name its revision.
    pub fn is_of_a_rollout(&self, route: &Route) -> bool {
        let tried = route.running().map(|rollout| rollout.version);
        match self {
            Change::Pause | Change::Resume | Change::Abort | Change::Judged(_) => true,
            Change::Rollback(_) => tried.is_some(),
            Change::Promote(version) => tried == Some(*version),
            _ => false,
        }
    }

    /// The versions whose readiness the caller waits for.
    pub fn awaits(&self, route: &Route) -> BTreeSet<Version> {
        match (self, route.stable) {
            (Change::Load(version), _) => [*version].into(),
            (Change::Promote(_) | Change::Rollback(_), Stable::Pinned(version)) => [version].into(),
            (Change::SetLabels { set, .. }, _) => set.values().copied().collect(),
            (Change::SetRoute(sharing), _) => sharing.versions().collect(),
            _ => BTreeSet::new(),
        }
    }
}

impl fmt::Display for Change {
    /// As it stands in the history, and as a retry is known by.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Promote(version) => write!(f, "promote {version}"),
            Change::Rollback(None) => f.write_str("rollback"),
            Change::Rollback(Some(version)) => write!(f, "rollback to {version}"),
            Change::Unpin => f.write_str("unpin"),
            Change::SetLabels { set, remove } => {
                f.write_str("labels")?;
                set.iter().try_for_each(|(label, version)| write!(f, " {label}={version}"))?;
                remove.iter().try_for_each(|label| write!(f, " -{label}"))
            }
            Change::SetRoute(sharing) => sharing.fmt(f),
            Change::Deploy(version, plan) => {
                let text = serde_json::to_vec(plan).unwrap_or_default();
                write!(f, "deploy {version} plan#{}", &blake3::hash(&text).to_hex()[..8])
            }
            Change::Pause => f.write_str("pause"),
            Change::Resume => f.write_str("resume"),
            Change::Abort => f.write_str("abort"),
            Change::Judged(judged) => judged.fmt(f),
            Change::Load(version) => write!(f, "load {version}"),
            Change::Unload(version) => write!(f, "unload {version}"),
            Change::Disable => f.write_str("disable"),
            Change::Enable => f.write_str("enable"),
            Change::Reload => f.write_str("reload"),
        }
    }
}

// === impl Sharing ===

impl Sharing {
    /// The versions that it names.
    pub fn versions(&self) -> impl Iterator<Item = Version> {
        let variants = self.variants.iter().map(|variant| variant.version);
        let others = self.rules.iter().map(|rule| rule.version).chain(self.shadow.iter().map(|shadow| shadow.version));
        variants.chain(others)
    }

    /// A variant that was there keeps its slots. What is new begins somewhere else for each version, so that it is not always the
    /// same callers who try what is new. INVALID_ROUTE says what is wrong.
    pub(super) fn put_into(&self, route: &mut Route, stable: Option<Version>) -> Result<()> {
        if let Some(stable) = stable.filter(|stable| self.tries(*stable)) {
            let message =
                format!("version {stable} is stable and cannot be tried beside itself; promote another first");
            return Err(Error::invalid("INVALID_ROUTE", message));
        }
        let had = std::mem::take(&mut route.variants);
        let slots = slots_by_weight(&had, 0)?;
        route.variants.clone_from(&self.variants);
        route.sticky.clone_from(&self.sticky);
        route.rules.clone_from(&self.rules);
        route.shadow.clone_from(&self.shadow);
        for variant in &mut route.variants {
            let known = had.iter().zip(&slots).find(|(known, _)| known.name == variant.name);
            variant.slots = known.map(|(_, slots)| slots.clone()).unwrap_or_default();
        }
        route.check_traffic()?;
        // Those who had a variant that is gone are not to fall to another one.
        let is_gone = |name: &str| self.variants.iter().all(|variant| variant.name != name);
        let gone = had.iter().zip(&slots).filter(|(known, _)| is_gone(&known.name)).map(|(_, slots)| (slots, 0));
        let wanted = route.variants.iter().map(|variant| (&variant.slots, variant.slots_wanted()));
        let wanted: Vec<(&Slots, usize)> = wanted.chain(gone).collect();
        let newest = self.variants.iter().map(|variant| variant.version).max();
        let begin = newest.map_or(0, |version| slot_of("", "variants", &version.to_string()));
        let slots = allot(&wanted, begin)?;
        for (variant, slots) in route.variants.iter_mut().zip(slots) {
            variant.slots = slots;
        }
        Ok(())
    }

    /// Whether that version is to be tried beside stable.
    fn tries(&self, version: Version) -> bool {
        self.variants.iter().any(|variant| variant.version == version)
            || self.shadow.iter().any(|shadow| shadow.version == version)
    }
}

impl fmt::Display for Sharing {
    /// `route canary=1.1.0:5 sticky=attribute:customer rules=2 shadow=1.2.0:10`; rules, which may be many, by their number and
    /// what they hash to.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("route")?;
        for Variant { name, version, weight, .. } in &self.variants {
            write!(f, " {name}={version}:{weight}")?;
        }
        if let Some(sticky) = &self.sticky {
            write!(f, " sticky={}", sticky.source())?;
            if !sticky.salt.is_empty() {
                write!(f, " salt={}", sticky.salt)?;
            }
        }
        if !self.rules.is_empty() {
            let text = serde_json::to_vec(&self.rules).unwrap_or_default();
            write!(f, " rules={}#{}", self.rules.len(), &blake3::hash(&text).to_hex()[..8])?;
        }
        self.shadow.iter().try_for_each(|Shadow { version, sample }| write!(f, " shadow={version}:{sample}"))?;
        if *self == Self::default() { f.write_str(" stable alone") } else { Ok(()) }
    }
}

/// To that version, or to the one before. The one that is left is rejected.
fn roll_back(next: &mut Route, wanted: Option<Version>, route: &Route, known: Known, moment: &Moment) -> Result<()> {
    let left = stable_of(route, known);
    let earlier = || route.previous.filter(|previous| !route.rejected.contains(previous));
    let target = wanted.or_else(earlier).or(known.below).filter(|target| Some(*target) != left);
    let target = target.ok_or_else(nothing_before)?;
    next.rejected.remove(&target);
    next.rejected.extend(left);
    next.stable = Stable::Pinned(target);
    next.previous = None;
    take_out(next, target);
    if let Some(left) = left {
        take_out(next, left);
        next.rules.retain(|rule| rule.version != left);
    }
    // It came to stable step by step, and that is over.
    if let Some(rollout) = next.rollout.as_mut().filter(|rollout| Some(rollout.version) == left) {
        rollout.phase = Phase::RolledBack;
        rollout.phase_at.clone_from(&moment.time);
    }
    Ok(())
}

/// What becomes stable shares nothing with itself, and what was rejected with nobody.
pub fn take_out(route: &mut Route, version: Version) {
    route.variants.retain(|variant| variant.version != version);
    route.shadow.retain(|shadow| shadow.version != version);
}

/// The earlier write of the same request. INVALID_ARGUMENT where the id stood for another change.
pub fn repeat_of<'a>(route: &'a Route, change: &Change, asked: &Asked) -> Result<Option<&'a RouteChange>> {
    if asked.request_id.is_empty() {
        return Ok(None);
    }
    let found = route.history.iter().rev().find(|entry| entry.request_id == asked.request_id);
    match found {
        Some(entry) if entry.change != change.to_string() => Err(Error::invalid(
            "REQUEST_ID_REUSED",
            format!("the request id was used for another change ({}); make up a new one", entry.change),
        )),
        found => Ok(found),
    }
}

pub fn stable_of(route: &Route, known: Known) -> Option<Version> {
    match route.stable {
        Stable::Pinned(version) => Some(version),
        Stable::Latest => known.answering,
    }
}

fn check_texts(asked: &Asked) -> Result<()> {
    for (what, text) in [("caller", &asked.caller), ("reason", &asked.reason), ("request_id", &asked.request_id)] {
        if text.len() > TEXT_BYTES_MAX {
            return Err(Error::invalid(
                "TEXT_TOO_LONG",
                format!("{what} has {} bytes, at most {TEXT_BYTES_MAX} are kept", text.len()),
            ));
        }
    }
    Ok(())
}

fn nothing_before() -> Error {
    Error::new(
        Code::FailedPrecondition,
        "NOTHING_TO_ROLL_BACK_TO",
        "no earlier version is known that was not rejected; name the version to roll back to",
    )
}

fn still_named(version: Version) -> Error {
    Error::new(
        Code::FailedPrecondition,
        "VERSION_IN_USE",
        format!(
            "version {version} is stable, the stable before it, has a label, or gets traffic by the route; change that first"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v(major: u64) -> Version {
        Version::new(major, 0, 0)
    }

    fn after(route: &Route, change: Change, known: Known) -> Route {
        let next = change.apply(route, route.revision.unwrap_or(0), known, &Asked::default(), "now".into());
        next.expect("it may be done").expect("it changes something")
    }

    #[test]
    fn promote_pins_and_keeps_the_one_before_and_rollback_rejects_what_it_leaves() {
        let known = Known { answering: Some(v(1)), below: None };
        let promoted = after(&Route::default(), Change::Promote(v(2)), known);
        assert_eq!((promoted.stable, promoted.previous), (Stable::Pinned(v(2)), Some(v(1))));
        assert_eq!(promoted.named(), [v(1), v(2)].into());
        let back = after(&promoted, Change::Rollback(None), Known { answering: Some(v(2)), below: Some(v(1)) });
        assert_eq!((back.stable, back.previous), (Stable::Pinned(v(1)), None));
        assert_eq!(back.rejected, [v(2)].into());
        let unpinned = after(&back, Change::Unpin, Known::default());
        assert_eq!(unpinned.pick([v(1), v(2)].into_iter()), Some(v(1)));
        let again = after(&unpinned, Change::Promote(v(2)), known);
        assert!(again.rejected.is_empty());
        assert_eq!(again.revision, Some(4));
        assert_eq!(again.history.len(), 4);
    }

    #[test]
    fn a_route_by_hand_keeps_its_callers_when_its_weight_is_changed() {
        let by_hand =
            Route::parse("stable: 1.0.0\nvariants: [{name: canary, version: 2.0.0, weight: 5}]").expect("a route");
        let known = Known { answering: Some(v(1)), below: None };
        let more = after(&by_hand, Change::SetRoute(Box::new(canary(v(2), 25.0))), known);
        assert_eq!(more.variants[0].slots.to_string(), "0-2499");
    }

    #[test]
    fn rollback_without_anything_before_is_refused_and_nothing_twice_writes() {
        let known = Known { answering: Some(v(1)), below: None };
        let asked = Asked::default();
        let refused = Change::Rollback(None).apply(&Route::default(), 0, known, &asked, String::new());
        assert_eq!(refused.expect_err("there is nothing").reason(), "NOTHING_TO_ROLL_BACK_TO");
        let promoted = after(&Route::default(), Change::Promote(v(1)), known);
        let twice = Change::Promote(v(1)).apply(&promoted, 1, known, &asked, String::new());
        assert_eq!(twice.expect("no error"), None);
    }

    #[test]
    fn what_traffic_needs_cannot_be_unloaded() {
        let route = Route::parse("stable: 2.0.0\nload: [2.0.0, 3.0.0]\nlabels: {old: 1.0.0}").expect("a route");
        let unload = |version| Change::Unload(version).apply(&route, 0, Known::default(), &Asked::default(), "".into());
        assert_eq!(unload(v(2)).expect_err("it is stable").reason(), "VERSION_IN_USE");
        assert_eq!(unload(v(1)).expect_err("it has a label").reason(), "VERSION_IN_USE");
        assert_eq!(unload(v(3)).expect("nobody needs it").expect("a change").load, [v(2)].into());
    }

    #[test]
    fn a_retry_is_known_by_its_id_and_an_id_stands_for_one_change() {
        let asked = Asked { request_id: "r1".into(), ..Default::default() };
        let written = Change::Promote(v(1)).apply(&Route::default(), 4, Known::default(), &asked, "now".into());
        let route = written.expect("it may be done").expect("it changes something");
        let found = repeat_of(&route, &Change::Promote(v(1)), &asked).expect("no error").expect("it was done");
        assert_eq!(found.revision, 5);
        let other = repeat_of(&route, &Change::Promote(v(2)), &asked).expect_err("another change");
        assert_eq!(other.reason(), "REQUEST_ID_REUSED");
        let fresh = Asked { request_id: "r2".into(), ..Default::default() };
        assert!(repeat_of(&route, &Change::Promote(v(1)), &fresh).expect("no error").is_none());
    }

    fn canary(version: Version, weight: f64) -> Sharing {
        let variant = Variant { name: "canary".into(), version, weight, slots: Default::default() };
        Sharing { variants: vec![variant], ..Sharing::default() }
    }

    #[test]
    fn a_canary_that_is_promoted_shares_nothing_with_itself_and_a_larger_weight_keeps_its_slots() {
        let known = Known { answering: Some(v(1)), below: None };
        let five = after(&Route::default(), Change::SetRoute(Box::new(canary(v(2), 5.0))), known);
        let ten = after(&five, Change::SetRoute(Box::new(canary(v(2), 10.0))), known);
        let (few, more) = (&five.variants[0].slots, &ten.variants[0].slots);
        assert_eq!((few.len(), more.len()), (500, 1_000));
        assert!(few.iter().all(|slot| more.iter().any(|other| other == slot)));
        assert_eq!(ten.history[1].change, "route canary=2.0.0:10");
        let promoted = after(&ten, Change::Promote(v(2)), known);
        assert!(promoted.variants.is_empty());
        let refused =
            Change::SetRoute(Box::new(canary(v(2), 5.0))).apply(&promoted, 3, known, &Asked::default(), "".into());
        assert_eq!(refused.expect_err("it is stable").reason(), "INVALID_ROUTE");
        let alone = after(&ten, Change::SetRoute(Box::default()), known);
        assert_eq!((alone.variants.len(), alone.history[2].change.as_str()), (0, "route stable alone"));
    }

    fn any_change() -> impl Strategy<Value = Change> {
        let version = || (1u64..6).prop_map(v);
        prop_oneof![
            version().prop_map(Change::Promote),
            proptest::option::of(version()).prop_map(Change::Rollback),
            Just(Change::Unpin),
            version().prop_map(|version| Change::SetLabels { set: [("a".into(), version)].into(), remove: vec![] }),
            Just(Change::SetLabels { set: BTreeMap::new(), remove: vec!["a".into()] }),
            version().prop_map(Change::Load),
            version().prop_map(Change::Unload),
            Just(Change::Disable),
            Just(Change::Enable),
            (version(), 0u32..=100)
                .prop_map(|(version, weight)| Change::SetRoute(Box::new(canary(version, weight.into())))),
            Just(Change::SetRoute(Box::default())),
            version().prop_map(|version| Change::Deploy(version, Box::default())),
            Just(Change::Pause),
            Just(Change::Resume),
            Just(Change::Abort),
        ]
    }

    proptest! {
        #[test]
        fn revisions_rise_by_one_and_the_stable_is_never_rejected(
            changes in proptest::collection::vec(any_change(), 0..200),
            answering in proptest::option::of((1u64..6).prop_map(v)),
        ) {
            let mut route = Route::default();
            let mut revision = 0;
            for change in changes {
                let known = Known { answering, below: None };
                let done = change.apply(&route, revision, known, &Asked::default(), "2026-01-01T00:00:00Z".into());
                if let Ok(Some(next)) = done {
                    revision += 1;
                    prop_assert_eq!(next.revision, Some(revision));
                    route = next;
                }
                if let Stable::Pinned(stable) = route.stable {
                    prop_assert!(!route.rejected.contains(&stable));
                }
                prop_assert!(route.history.len() <= HISTORY_MAX);
            }
        }
    }
}

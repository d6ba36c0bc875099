//! What to do next for one model. Pure.
//!
//! Two policies, as TensorFlow Serving's of those names. Availability-preserving: the new is loaded before the old is let go,
//! so a model that answers goes on answering. Resource-preserving: the old is drained and gone before the new is loaded, so a
//! model never takes memory twice. `next_action` is asked until it has nothing more to say.

use crate::model::{SwapPolicy, Version};

/// One version, as far as the policy cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VersionView {
    pub version: Version,
    pub aspired: bool,
    pub serving: Serving,
    pub load: Load,
    /// Not aspired any more, but to stay a while for a rollback.
    pub kept: bool,
    /// Requests still hold servables of it that were let go.
    pub draining: bool,
}

/// What holds for the model as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The model's folder is there, so its last ready version stays whatever happens.
    pub keep_last: bool,
    pub swap: SwapPolicy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serving {
    No,
    /// As the store says.
    Current,
    /// With options that have changed since.
    Stale,
    /// With files that look different now.
    Touched,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    Idle,
    /// In the queue: it may still be called off.
    Queued,
    Running,
    /// It failed, and whether its time has come again.
    Failed {
        due: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Load(Version, Urgency),
    /// Look whether the files that changed have other bytes.
    Recheck(Version),
    CallOff(Version),
    Unload(Version),
}

/// The order of the queue; within one, the smallest artifact comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// Nothing answers for the model.
    NothingServes,
    /// The version that is to answer next.
    Newest,
    Other,
    /// It failed before.
    Again,
}

/// The next thing to do, or `None` when all is as it should be or on its way.
///
/// `versions` ascend.
pub fn next_action(versions: &[VersionView], rules: Rules) -> Option<Action> {
    call_off(versions).or_else(|| match rules.swap {
        SwapPolicy::Availability => load(versions).or_else(|| unload(versions, rules.keep_last)),
        SwapPolicy::Resource => make_room(versions, rules.keep_last).or_else(|| match has_room(versions) {
            true => load(versions),
            false => None,
        }),
    })
}

fn call_off(versions: &[VersionView]) -> Option<Action> {
    versions.iter().find(|view| view.load == Load::Queued && !view.aspired).map(|view| Action::CallOff(view.version))
}

fn load(versions: &[VersionView]) -> Option<Action> {
    let serves = versions.iter().any(|view| view.serving != Serving::No);
    let newest = versions.iter().rev().find(|view| view.aspired)?.version;
    versions.iter().rev().filter(|view| view.aspired).find_map(|view| {
        let again = match view.load {
            Load::Idle => false,
            Load::Failed { due: true } => true,
            _ => return None,
        };
        let urgency = match (serves, view.version == newest) {
            _ if again => Urgency::Again,
            (false, true) => Urgency::NothingServes,
            (true, true) => Urgency::Newest,
            _ => Urgency::Other,
        };
        match view.serving {
            Serving::Current => None,
            Serving::Touched => Some(Action::Recheck(view.version)),
            Serving::No | Serving::Stale => Some(Action::Load(view.version, urgency)),
        }
    })
}

fn unload(versions: &[VersionView], keep_last: bool) -> Option<Action> {
    let serving = || versions.iter().filter(|view| view.serving != Serving::No);
    let still_to_come = versions
        .iter()
        .any(|view| view.aspired && view.serving == Serving::No && !matches!(view.load, Load::Failed { due: false }));
    if still_to_come && keep_last {
        return None;
    }
    // The highest of what serves is the last to go: it is the one that answers.
    let last = if serving().any(|view| view.aspired) || !keep_last {
        None
    } else {
        serving().next_back().map(|view| view.version)
    };
    let wanted = |view: &VersionView| view.aspired || (view.kept && keep_last);
    let goes = serving().find(|view| !wanted(view) && Some(view.version) != last);
    goes.map(|view| Action::Unload(view.version))
}

/// What goes although the new is not there yet: all that is not aspired, where something is, and what is to be loaded again
/// with other options.
fn make_room(versions: &[VersionView], keep_last: bool) -> Option<Action> {
    if !versions.iter().any(|view| view.aspired) {
        return unload(versions, keep_last);
    }
    let to_be_loaded = |view: &VersionView| {
        view.serving == Serving::Stale && matches!(view.load, Load::Idle | Load::Failed { due: true })
    };
    let goes = versions.iter().find(|view| view.serving != Serving::No && (!view.aspired || to_be_loaded(view)));
    goes.map(|view| Action::Unload(view.version))
}

/// Whether nothing of what went is left: no request that drains, and no load that nobody can call off any more.
fn has_room(versions: &[VersionView]) -> bool {
    !versions.iter().any(|view| view.draining || (view.load == Load::Running && !view.aspired))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const AVAILABILITY: Rules = Rules { keep_last: true, swap: SwapPolicy::Availability };
    const RESOURCE: Rules = Rules { keep_last: true, swap: SwapPolicy::Resource };

    fn view(major: u64, aspired: bool, serving: Serving, load: Load) -> VersionView {
        VersionView { version: Version::new(major, 0, 0), aspired, serving, load, kept: false, draining: false }
    }

    #[test]
    fn the_new_is_loaded_before_the_old_goes() {
        let old = view(1, false, Serving::Current, Load::Idle);
        let new = |serving, load| view(2, true, serving, load);
        let next = |new| next_action(&[old, new], AVAILABILITY);
        let (v1, v2) = (Version::new(1, 0, 0), Version::new(2, 0, 0));
        assert_eq!(next(new(Serving::No, Load::Idle)), Some(Action::Load(v2, Urgency::Newest)));
        assert_eq!(next(new(Serving::No, Load::Running)), None);
        assert_eq!(next(new(Serving::No, Load::Failed { due: false })), None);
        assert_eq!(next(new(Serving::Current, Load::Idle)), Some(Action::Unload(v1)));
    }

    #[test]
    fn to_preserve_memory_the_old_goes_and_drains_first() {
        let old = view(1, false, Serving::Current, Load::Idle);
        let drains = VersionView { serving: Serving::No, draining: true, ..old };
        let gone = VersionView { draining: false, ..drains };
        let new = view(2, true, Serving::No, Load::Idle);
        let next = |old| next_action(&[old, new], RESOURCE);
        assert_eq!(next(old), Some(Action::Unload(old.version)));
        assert_eq!(next(VersionView { kept: true, ..old }), Some(Action::Unload(old.version)), "it would take memory");
        assert_eq!(next(drains), None);
        assert_eq!(next(gone), Some(Action::Load(new.version, Urgency::NothingServes)));
        let stale = view(2, true, Serving::Stale, Load::Idle);
        assert_eq!(next_action(&[stale], RESOURCE), Some(Action::Unload(stale.version)));
    }

    #[test]
    fn the_last_one_stays_while_the_folder_is_there() {
        let last = [view(1, false, Serving::Current, Load::Idle)];
        for rules in [AVAILABILITY, RESOURCE] {
            assert_eq!(next_action(&last, rules), None);
            let gone = Rules { keep_last: false, ..rules };
            assert_eq!(next_action(&last, gone), Some(Action::Unload(Version::new(1, 0, 0))));
        }
    }

    #[test]
    fn what_is_kept_for_a_rollback_stays_until_it_is_not() {
        let old = view(1, false, Serving::Current, Load::Idle);
        let kept = VersionView { kept: true, ..old };
        let new = view(2, true, Serving::Current, Load::Idle);
        assert_eq!(next_action(&[kept, new], AVAILABILITY), None);
        assert_eq!(next_action(&[old, new], AVAILABILITY), Some(Action::Unload(old.version)));
        let gone = Rules { keep_last: false, ..AVAILABILITY };
        assert_eq!(next_action(&[kept, new], gone), Some(Action::Unload(old.version)), "with its model");
    }

    #[test]
    fn what_waits_and_is_not_wanted_any_more_is_called_off() {
        let waiting = [view(1, false, Serving::No, Load::Queued)];
        for rules in [AVAILABILITY, RESOURCE] {
            assert_eq!(next_action(&waiting, rules), Some(Action::CallOff(Version::new(1, 0, 0))));
        }
    }

    /// Aspired, serving, load, kept, draining.
    type Drawn = (bool, Serving, Load, bool, bool);

    fn any_view() -> impl Strategy<Value = Drawn> {
        let serving =
            prop_oneof![Just(Serving::No), Just(Serving::Current), Just(Serving::Stale), Just(Serving::Touched)];
        let load = prop_oneof![
            Just(Load::Idle),
            Just(Load::Queued),
            Just(Load::Running),
            any::<bool>().prop_map(|due| Load::Failed { due })
        ];
        (any::<bool>(), serving, load, any::<bool>(), any::<bool>())
    }

    fn any_rules() -> impl Strategy<Value = Rules> {
        let swap = prop_oneof![Just(SwapPolicy::Availability), Just(SwapPolicy::Resource)];
        (any::<bool>(), swap).prop_map(|(keep_last, swap)| Rules { keep_last, swap })
    }

    fn number(views: Vec<Drawn>) -> Vec<VersionView> {
        let numbered = views.into_iter().zip(1..);
        let draw = |((aspired, serving, load, kept, draining), major): (Drawn, u64)| VersionView {
            kept: kept && !aspired,
            draining,
            ..view(major, aspired, serving, load)
        };
        numbered.map(draw).collect()
    }

    /// The world after an action: what was asked for succeeds at once when `well`.
    fn act(views: &mut [VersionView], action: Action, well: bool) {
        let (Action::Load(version, _) | Action::Recheck(version) | Action::CallOff(version) | Action::Unload(version)) =
            action;
        let view = views.iter_mut().find(|view| view.version == version).expect("one of them");
        match action {
            Action::Load(..) if well => {
                (view.serving, view.load) = (Serving::Current, Load::Idle);
            }
            Action::Load(..) => view.load = Load::Failed { due: false },
            Action::Recheck(_) => view.serving = Serving::Current,
            Action::CallOff(_) => view.load = Load::Idle,
            Action::Unload(_) => (view.serving, view.draining) = (Serving::No, true),
        }
    }

    /// What was on its way arrives, failures come round again, drains end, and nothing is kept any longer. Whether that
    /// changed anything.
    fn pass_time(views: &mut [VersionView]) -> bool {
        let before = views.to_vec();
        for view in views.iter_mut() {
            (view.draining, view.kept) = (false, false);
            match view.load {
                Load::Running | Load::Queued => (view.serving, view.load) = (Serving::Current, Load::Idle),
                Load::Failed { .. } if view.aspired => view.load = Load::Failed { due: true },
                _ => {}
            }
        }
        views != before
    }

    proptest! {
        #[test]
        fn whoever_answers_goes_on_answering(
            views in proptest::collection::vec(any_view(), 0..6),
            outcomes in proptest::collection::vec(any::<bool>(), 40),
        ) {
            let mut views = number(views);
            let answers = |views: &[VersionView]| views.iter().any(|view| view.serving != Serving::No);
            let answered = answers(&views);
            let mut outcomes = outcomes.into_iter();
            while let Some(action) = next_action(&views, AVAILABILITY) {
                let well = outcomes.next().expect("it comes to rest: no action is asked for twice without end");
                act(&mut views, action, well);
                prop_assert!(!answered || answers(&views), "{action:?} left nobody to answer");
            }
        }

        #[test]
        fn to_preserve_memory_nothing_is_loaded_beside_what_is_to_go(
            views in proptest::collection::vec(any_view(), 0..6),
            outcomes in proptest::collection::vec(any::<bool>(), 80),
        ) {
            let mut views = number(views);
            let mut outcomes = outcomes.into_iter();
            for _ in 0..3 {
                while let Some(action) = next_action(&views, RESOURCE) {
                    if let Action::Load(version, _) = action {
                        let own = |view: &&VersionView| view.version == version;
                        prop_assert!(views.iter().find(own).is_some_and(|view| view.serving == Serving::No));
                        prop_assert!(!views.iter().any(|view| view.draining), "something still drains");
                        let to_go = |view: &VersionView| !view.aspired && view.serving != Serving::No;
                        prop_assert!(!views.iter().any(to_go), "something was not told to go yet");
                    }
                    let well = outcomes.next().expect("it comes to rest: no action is asked for twice without end");
                    act(&mut views, action, well);
                }
                pass_time(&mut views);
            }
        }

        #[test]
        fn when_all_goes_well_what_is_aspired_serves_and_nothing_else(
            views in proptest::collection::vec(any_view(), 0..6),
            rules in any_rules(),
        ) {
            let mut views = number(views);
            loop {
                while let Some(action) = next_action(&views, rules) {
                    act(&mut views, action, true);
                }
                if !pass_time(&mut views) {
                    break;
                }
            }
            let aspired = views.iter().any(|view| view.aspired);
            for view in &views {
                if view.aspired {
                    prop_assert_eq!(view.serving, Serving::Current);
                } else if aspired || !rules.keep_last {
                    prop_assert_eq!(view.serving, Serving::No);
                }
            }
        }
    }
}

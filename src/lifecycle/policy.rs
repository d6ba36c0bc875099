//! What to do next for one model. Pure.
//!
//! Availability-preserving, as TensorFlow Serving's policy of that name: the new is loaded before the old is let go, so a
//! model that answers goes on answering. `next_action` is asked until it has nothing more to say.

use crate::model::Version;

/// One version, as far as the policy cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VersionView {
    pub version: Version,
    pub aspired: bool,
    pub serving: Serving,
    pub load: Load,
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
/// `versions` ascend. `keep_last`: the model's folder is there, so its last ready version stays whatever happens.
pub fn next_action(versions: &[VersionView], keep_last: bool) -> Option<Action> {
    call_off(versions).or_else(|| load(versions)).or_else(|| unload(versions, keep_last))
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
    let goes = serving().find(|view| !view.aspired && Some(view.version) != last);
    goes.map(|view| Action::Unload(view.version))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn view(major: u64, aspired: bool, serving: Serving, load: Load) -> VersionView {
        VersionView { version: Version::new(major, 0, 0), aspired, serving, load }
    }

    #[test]
    fn the_new_is_loaded_before_the_old_goes() {
        let old = view(1, false, Serving::Current, Load::Idle);
        let new = |serving, load| view(2, true, serving, load);
        let next = |new| next_action(&[old, new], true);
        let (v1, v2) = (Version::new(1, 0, 0), Version::new(2, 0, 0));
        assert_eq!(next(new(Serving::No, Load::Idle)), Some(Action::Load(v2, Urgency::Newest)));
        assert_eq!(next(new(Serving::No, Load::Running)), None);
        assert_eq!(next(new(Serving::No, Load::Failed { due: false })), None);
        assert_eq!(next(new(Serving::Current, Load::Idle)), Some(Action::Unload(v1)));
    }

    #[test]
    fn the_last_one_stays_while_the_folder_is_there() {
        let last = [view(1, false, Serving::Current, Load::Idle)];
        assert_eq!(next_action(&last, true), None);
        assert_eq!(next_action(&last, false), Some(Action::Unload(Version::new(1, 0, 0))));
    }

    #[test]
    fn what_waits_and_is_not_wanted_any_more_is_called_off() {
        let waiting = [view(1, false, Serving::No, Load::Queued)];
        assert_eq!(next_action(&waiting, true), Some(Action::CallOff(Version::new(1, 0, 0))));
    }

    fn any_view() -> impl Strategy<Value = (bool, Serving, Load)> {
        let serving =
            prop_oneof![Just(Serving::No), Just(Serving::Current), Just(Serving::Stale), Just(Serving::Touched)];
        let load = prop_oneof![
            Just(Load::Idle),
            Just(Load::Queued),
            Just(Load::Running),
            any::<bool>().prop_map(|due| Load::Failed { due })
        ];
        (any::<bool>(), serving, load)
    }

    fn number(views: Vec<(bool, Serving, Load)>) -> Vec<VersionView> {
        let numbered = views.into_iter().zip(1..);
        numbered.map(|((aspired, serving, load), major)| view(major, aspired, serving, load)).collect()
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
            Action::Unload(_) => view.serving = Serving::No,
        }
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
            while let Some(action) = next_action(&views, true) {
                let well = outcomes.next().expect("it comes to rest: no action is asked for twice without end");
                act(&mut views, action, well);
                prop_assert!(!answered || answers(&views), "{action:?} left nobody to answer");
            }
        }

        #[test]
        fn when_all_goes_well_what_is_aspired_serves_and_nothing_else(
            views in proptest::collection::vec(any_view(), 0..6),
            keep_last: bool,
        ) {
            let mut views = number(views);
            loop {
                while let Some(action) = next_action(&views, keep_last) {
                    act(&mut views, action, true);
                }
                // What was on its way arrives; failures come round again.
                let busy = views.iter_mut().filter(|view| view.load != Load::Idle && view.aspired);
                let mut moved = false;
                for view in busy {
                    moved = true;
                    (view.serving, view.load) = (Serving::Current, Load::Idle);
                }
                if !moved {
                    break;
                }
            }
            let aspired = views.iter().any(|view| view.aspired);
            for view in &views {
                if view.aspired {
                    prop_assert_eq!(view.serving, Serving::Current);
                } else if aspired || !keep_last {
                    prop_assert_eq!(view.serving, Serving::No);
                }
            }
        }
    }
}

//! The route of one model, as the manager knows it: what the store wants, and what traffic follows here. Pure.
//!
//! A new route is taken when its stable is ready here; until then the old one holds.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    catalog::{Pending, PendingWhy},
    model::{Route, Stable, Version},
    store::TextFile,
};

/// The route of one model.
#[derive(Debug, Default)]
pub struct RouteState {
    /// The route.yaml that `wanted` and `message` came from.
    read: Option<TextFile>,
    /// The last good one.
    wanted: Arc<Route>,
    revision: u64,
    /// What traffic follows; `None` until there was one.
    taken: Option<(Arc<Route>, u64)>,
    waits: Option<PendingWhy>,
    /// Who answered last. None while versions are on their way at a start: the first that is ready is not the one to stay with.
    answered: Option<Version>,
    /// Whether `answered` answers on where the route says `latest`, whatever is higher.
    holds: bool,
    /// What is wrong with route.yaml.
    message: Option<String>,
}

// === impl RouteState ===

impl RouteState {
    /// Takes in route.yaml; whether it is another than before. A bad one, and one whose revision went down, keeps the last
    /// good one and is shown.
    pub fn take_file(&mut self, file: Option<&TextFile>) -> bool {
        if self.read.as_ref() == file {
            return false;
        }
        self.read = file.cloned();
        match read_route(file, self.revision) {
            Ok(route) => {
                self.revision = route.revision.unwrap_or(self.revision);
                self.wanted = Arc::new(route);
                self.message = None;
            }
            Err(message) => self.message = Some(message),
        }
        true
    }

    /// What the store wants.
    pub fn wanted(&self) -> &Arc<Route> {
        &self.wanted
    }

    pub fn message(&self) -> Option<&String> {
        self.message.as_ref()
    }

    /// Takes the wanted route, if its stable is ready. Where route.yaml cannot be read and never could, nobody knows what is wanted:
    /// none is taken then, for it may pin a version or reject one. `why` says of a version that is not, what it waits for.
    pub fn settle(&mut self, is_ready: impl Fn(Version) -> bool, why: impl Fn(Version) -> PendingWhy) {
        self.waits = match self.wanted.stable {
            Stable::Pinned(version) if !is_ready(version) => Some(why(version)),
            _ => None,
        };
        let is_known = self.message.is_none() || self.taken.is_some();
        if self.waits.is_none() && is_known {
            self.taken = Some((self.wanted.clone(), self.revision));
        }
    }

    /// Notes who answers now, for `latest` to stay with where `holds`. `is_coming` says of a version that is not ready, whether it is
    /// soon: then it is waited for. `is_settled` is whether every version has come to an end.
    pub fn note_answering(
        &mut self,
        holds: bool,
        ready: impl Iterator<Item = Version> + Clone,
        is_coming: impl Fn(Version) -> bool,
        is_settled: bool,
    ) {
        self.holds = holds;
        let stays = self.answered.is_some() || is_settled;
        let is_there =
            |version: &Version| ready.clone().any(|ready| ready == *version) || (holds && is_coming(*version));
        self.answered = self.answered.filter(is_there);
        if let Some(answering) = self.stable(ready).filter(|_| stays) {
            self.answered = Some(answering);
        }
    }

    /// The version that answers on although the route says `latest`.
    fn held(&self) -> Option<Version> {
        let (route, _) = self.taken.as_ref().filter(|(route, _)| self.holds && route.stable == Stable::Latest)?;
        self.answered.filter(|version| !route.passes_over(*version))
    }

    /// The version that answers, of those that are ready.
    pub fn stable(&self, mut ready: impl Iterator<Item = Version>) -> Option<Version> {
        if let Some(held) = self.held() {
            return ready.find(|version| *version == held);
        }
        match (&self.taken, self.waits) {
            (Some((route, _)), _) => route.pick(ready),
            // A server that starts beside a stable that cannot be served takes the one before it.
            (None, Some(PendingWhy::Failed | PendingWhy::Absent)) => {
                let allowed = self.wanted.previous.filter(|previous| !self.wanted.rejected.contains(previous))?;
                ready.into_iter().find(|version| *version == allowed)
            }
            (None, _) => None,
        }
    }

    /// The versions that are to be loaded whatever model.yaml says. While a new route waits, those of the old one too.
    pub fn named(&self) -> BTreeSet<Version> {
        let mut named = self.wanted.named();
        if let (Some((taken, _)), true) = (&self.taken, self.waits.is_some()) {
            named.extend(taken.named());
        }
        named.extend(self.held());
        named
    }

    /// Versions that `versions: latest` passes over.
    pub fn passes_over(&self, version: Version) -> bool {
        self.wanted.passes_over(version)
    }

    /// The route that traffic follows and its revision.
    pub fn in_force(&self) -> (Arc<Route>, u64) {
        self.taken.clone().unwrap_or_default()
    }

    /// The route that is not taken yet, and why.
    pub fn pending(&self) -> Option<Pending> {
        let (why, Stable::Pinned(version)) = (self.waits?, self.wanted.stable) else {
            return None;
        };
        Some(Pending { route: self.wanted.clone(), revision: self.revision, version, why })
    }

    pub fn waits(&self) -> bool {
        self.waits.is_some()
    }
}

/// The route with the revision that it has now.
fn read_route(file: Option<&TextFile>, known: u64) -> Result<Route, String> {
    let mut route = match file.map(|file| &file.text) {
        None => Route::default(),
        Some(Ok(text)) => Route::parse(text).map_err(|error| error.message().to_owned())?,
        Some(Err(why)) => return Err(format!("route.yaml: {why}")),
    };
    match route.revision {
        Some(revision) if revision < known => Err(format!(
            "route.yaml has revision {revision}, lower than {known}, which holds on: take the line `revision` out to mean \
             what is written there"
        )),
        revision => {
            route.revision = Some(revision.unwrap_or(known));
            Ok(route)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Stamp;

    fn v(major: u64) -> Version {
        Version::new(major, 0, 0)
    }

    fn file(text: &str) -> TextFile {
        let stamp = Stamp { size: text.len() as u64, modified_ns: 0, changed_ns: 0, inode: 1 };
        TextFile { stamp, read_ns: 0, text: Ok(text.into()) }
    }

    fn take(state: &mut RouteState, text: &str, ready: &[u64]) {
        state.take_file(Some(&file(text)));
        settle(state, ready);
    }

    fn settle(state: &mut RouteState, ready: &[u64]) {
        state.settle(|version| ready.iter().any(|major| v(*major) == version), |_| PendingWhy::Loading);
    }

    fn stable(state: &RouteState, ready: &[u64]) -> Option<Version> {
        state.stable(ready.iter().map(|major| v(*major)))
    }

    #[test]
    fn the_old_route_holds_until_the_new_stable_is_ready() {
        let mut state = RouteState::default();
        take(&mut state, "revision: 1\nstable: 1.0.0", &[1]);
        assert_eq!(stable(&state, &[1]), Some(v(1)));
        take(&mut state, "revision: 2\nstable: 2.0.0", &[1]);
        assert_eq!(stable(&state, &[1]), Some(v(1)));
        assert_eq!(state.pending().map(|pending| (pending.revision, pending.version)), Some((2, v(2))));
        assert_eq!(state.named(), [v(1), v(2)].into(), "who answers stays");
        settle(&mut state, &[1, 2]);
        assert_eq!((stable(&state, &[1, 2]), state.pending().is_some()), (Some(v(2)), false));
        assert_eq!(state.in_force().1, 2);
        assert_eq!(state.named(), [v(2)].into());
    }

    #[test]
    fn a_bad_file_keeps_the_last_good_route() {
        let mut state = RouteState::default();
        take(&mut state, "revision: 3\nstable: 1.0.0", &[1, 2]);
        take(&mut state, "stabel: 2.0.0", &[1, 2]);
        assert_eq!(stable(&state, &[1, 2]), Some(v(1)));
        assert!(state.message().is_some_and(|message| message.contains("stabel")));
        take(&mut state, "revision: 3\nstable: 2.0.0", &[1, 2]);
        assert_eq!(
            (stable(&state, &[1, 2]), state.message()),
            (Some(v(2)), None),
            "a hand edit under the same revision"
        );
    }

    #[test]
    fn a_revision_that_went_down_is_refused_and_a_file_without_one_is_not() {
        let mut state = RouteState::default();
        take(&mut state, "revision: 7\nstable: 2.0.0", &[1, 2]);
        take(&mut state, "revision: 5\nstable: 1.0.0", &[1, 2]);
        assert_eq!(stable(&state, &[1, 2]), Some(v(2)));
        assert!(state.message().is_some_and(|message| message.contains("revision 5")));
        take(&mut state, "stable: 1.0.0", &[1, 2]);
        assert_eq!((stable(&state, &[1, 2]), state.in_force().1), (Some(v(1)), 7));
    }

    /// Notes who answers, of these that are ready, and says it.
    fn note(state: &mut RouteState, holds: bool, ready: &[u64], coming: &[u64], is_settled: bool) -> Option<Version> {
        let is_coming = |version| coming.iter().any(|major| v(*major) == version);
        state.note_answering(holds, ready.iter().map(|major| v(*major)), is_coming, is_settled);
        stable(state, ready)
    }

    #[test]
    fn who_answers_is_held_where_latest_is_told_to() {
        let mut state = RouteState::default();
        take(&mut state, "", &[]);
        assert_eq!(note(&mut state, true, &[1], &[2], false), Some(v(1)));
        assert_eq!(note(&mut state, true, &[1, 2], &[], true), Some(v(2)), "it was not settled");
        assert_eq!(note(&mut state, true, &[1, 2, 3], &[], true), Some(v(2)));
        assert_eq!(state.named(), [v(2)].into(), "it stays loaded");
        assert_eq!(note(&mut state, true, &[3], &[2], false), None, "it is made anew");
        assert_eq!(note(&mut state, true, &[2, 3], &[], true), Some(v(2)));
        assert_eq!(note(&mut state, true, &[1, 3], &[], true), Some(v(3)), "it is gone");
        assert_eq!(note(&mut state, true, &[1, 2, 3], &[], true), Some(v(3)));
        assert_eq!(note(&mut state, false, &[3, 4], &[], true), Some(v(4)));
        assert_eq!(state.named(), [].into());
        assert_eq!(note(&mut state, true, &[4, 5], &[], true), Some(v(4)), "as it was when the word changed");
    }

    #[test]
    fn a_start_beside_a_stable_that_fails_takes_the_one_before() {
        let mut state = RouteState::default();
        state.take_file(Some(&file("revision: 2\nstable: 2.0.0\nprevious: 1.0.0")));
        state.settle(|version| version == v(1), |_| PendingWhy::Loading);
        assert_eq!(stable(&state, &[1]), None, "the stable may come any moment");
        state.settle(|version| version == v(1), |_| PendingWhy::Failed);
        assert_eq!(stable(&state, &[1]), Some(v(1)));
    }
}

//! What happened on this replica, by name and number: the last few thousand events, and those who follow them.
//!
//! One ring, of which every follower reads at its own pace: nobody's slowness keeps anybody waiting, and whoever falls behind
//! the ring is told how many events it missed. Knows nothing of what the events are about: names come as texts.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use tokio::sync::watch;

/// What may happen, each with its name in the protocol, which never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    VersionLoading,
    VersionReady,
    VersionFailed,
    VersionDraining,
    VersionUnloaded,
    ModelAppeared,
    ModelGone,
    ModelYamlRefused,
    ModelYamlTaken,
    RouteTaken,
    RouteRefused,
    RoutePending,
    Promoted,
    RolledBack,
    Unpinned,
    LabelsSet,
    RouteSet,
    Deployed,
    RolloutAdvanced,
    RolloutPaused,
    RolloutResumed,
    RolloutAborted,
    VariantTakenOut,
    DeployRefused,
    ModelDisabled,
    ModelEnabled,
    LoadAsked,
    UnloadAsked,
    ReloadAsked,
    StoreTrouble,
    StoreRecovered,
    SourceMissing,
    VersionMutated,
    LogLevelSet,
    Draining,
}

/// Something that happened. What does not apply is empty.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub kind: Kind,
    /// Rises by one from event to event, from 1 on.
    pub sequence: u64,
    pub time: SystemTime,
    pub model: String,
    pub version: String,
    /// Of route.yaml.
    pub revision: u64,
    /// A stable word where something is wrong, and the same in a sentence.
    pub reason: String,
    pub message: String,
    /// Who asked for it, as claimed.
    pub caller: String,
    pub request_id: String,
}

/// Where events are told and followed. Cheap to clone.
#[derive(Clone)]
pub struct Events(Arc<Inner>);

struct Inner {
    replica: String,
    ring: Mutex<Ring>,
    /// The sequence number of the last event, for those who wait for the next.
    last: watch::Sender<u64>,
}

struct Ring {
    /// The oldest first.
    events: VecDeque<Arc<Event>>,
    events_max: usize,
    /// Of the last event.
    sequence: u64,
}

/// Follows the events from a place on.
pub struct Follower {
    inner: Arc<Inner>,
    last: watch::Receiver<u64>,
    /// The last event that was told, or missed.
    after: u64,
}

/// What a follower is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    Event(Arc<Event>),
    /// That many were forgotten before they could be told.
    Missed(u64),
}

/// A few hours of a busy replica, in about a megabyte.
pub const REMEMBERED_MAX: usize = 4096;

// === impl Kind ===

impl Kind {
    /// `version_ready`
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::VersionLoading => "version_loading",
            Kind::VersionReady => "version_ready",
            Kind::VersionFailed => "version_failed",
            Kind::VersionDraining => "version_draining",
            Kind::VersionUnloaded => "version_unloaded",
            Kind::ModelAppeared => "model_appeared",
            Kind::ModelGone => "model_gone",
            Kind::ModelYamlRefused => "model_yaml_refused",
            Kind::ModelYamlTaken => "model_yaml_taken",
            Kind::RouteTaken => "route_taken",
            Kind::RouteRefused => "route_refused",
            Kind::RoutePending => "route_pending",
            Kind::Promoted => "promoted",
            Kind::RolledBack => "rolled_back",
            Kind::Unpinned => "unpinned",
            Kind::LabelsSet => "labels_set",
            Kind::RouteSet => "route_set",
            Kind::Deployed => "deployed",
            Kind::RolloutAdvanced => "rollout_advanced",
            Kind::RolloutPaused => "rollout_paused",
            Kind::RolloutResumed => "rollout_resumed",
            Kind::RolloutAborted => "rollout_aborted",
            Kind::VariantTakenOut => "variant_taken_out",
            Kind::DeployRefused => "deploy_refused",
            Kind::ModelDisabled => "model_disabled",
            Kind::ModelEnabled => "model_enabled",
            Kind::LoadAsked => "load_asked",
            Kind::UnloadAsked => "unload_asked",
            Kind::ReloadAsked => "reload_asked",
            Kind::StoreTrouble => "store_trouble",
            Kind::StoreRecovered => "store_recovered",
            Kind::SourceMissing => "source_missing",
            Kind::VersionMutated => "version_mutated",
            Kind::LogLevelSet => "log_level_set",
            Kind::Draining => "draining",
        }
    }
}

// === impl Event ===

impl Event {
    /// Of the whole server; it gets its number and its time when it is told.
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            sequence: 0,
            time: SystemTime::UNIX_EPOCH,
            model: String::new(),
            version: String::new(),
            revision: 0,
            reason: String::new(),
            message: String::new(),
            caller: String::new(),
            request_id: String::new(),
        }
    }

    pub fn of_model(kind: Kind, model: impl ToString) -> Self {
        Self { model: model.to_string(), ..Self::new(kind) }
    }

    pub fn of_version(kind: Kind, model: impl ToString, version: impl ToString) -> Self {
        Self { version: version.to_string(), ..Self::of_model(kind, model) }
    }

    pub fn because(self, reason: &str, message: impl Into<String>) -> Self {
        Self { reason: reason.to_owned(), message: message.into(), ..self }
    }
}

// === impl Events ===

impl Events {
    /// `name` is the replica's; to tell one start from the next, each gets a random end.
    pub fn new(name: &str) -> Self {
        Self::with_room(name, REMEMBERED_MAX)
    }

    fn with_room(name: &str, events_max: usize) -> Self {
        let replica = format!("{name}-{:08x}", fastrand::u32(..));
        let ring = Ring { events: VecDeque::new(), events_max, sequence: 0 };
        Self(Arc::new(Inner { replica, ring: Mutex::new(ring), last: watch::channel(0).0 }))
    }

    /// This start of this replica.
    pub fn replica(&self) -> &str {
        &self.0.replica
    }

    /// The sequence number of the last event; 0 before the first.
    pub fn last(&self) -> u64 {
        *self.0.last.borrow()
    }

    pub fn tell(&self, event: Event) {
        self.tell_at(event, SystemTime::now());
    }

    fn tell_at(&self, event: Event, time: SystemTime) {
        let mut ring = self.0.ring();
        ring.sequence += 1;
        let sequence = ring.sequence;
        if ring.events.len() == ring.events_max {
            ring.events.pop_front();
        }
        ring.events.push_back(Arc::new(Event { sequence, time, ..event }));
        // Under the lock, so that the numbers never go back.
        self.0.last.send_replace(sequence);
    }

    /// Follows what comes after that event; one that lies in the future counts as the last.
    pub fn follow(&self, after: u64) -> Follower {
        Follower { inner: self.0.clone(), last: self.0.last.subscribe(), after: after.min(self.last()) }
    }
}

// === impl Inner ===

impl Inner {
    /// Nothing in here can leave the ring half changed, so a panic elsewhere is no reason to stop telling.
    fn ring(&self) -> std::sync::MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Ring ===

impl Ring {
    /// What a follower is to be told after that event; `None` while there is nothing.
    fn after(&self, after: u64) -> Option<Told> {
        let oldest = self.sequence + 1 - self.events.len() as u64;
        let next = after + 1;
        if next < oldest {
            return Some(Told::Missed(oldest - next));
        }
        let place = usize::try_from(next - oldest).ok()?;
        self.events.get(place).cloned().map(Told::Event)
    }
}

// === impl Follower ===

impl Follower {
    /// The next event, or how many were missed; waits while there is none. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Told {
        loop {
            self.last.borrow_and_update();
            if let Some(told) = self.try_next() {
                return told;
            }
            self.last.changed().await.expect("the sender lives in what this holds: this is a bug");
        }
    }

    fn try_next(&mut self) -> Option<Told> {
        let told = self.inner.ring().after(self.after)?;
        self.after = match &told {
            Told::Event(event) => event.sequence,
            Told::Missed(count) => self.after + count,
        };
        Some(told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequences(follower: &mut Follower) -> Vec<Result<u64, u64>> {
        let told = std::iter::from_fn(|| follower.try_next());
        told.map(|told| match told {
            Told::Event(event) => Ok(event.sequence),
            Told::Missed(count) => Err(count),
        })
        .collect()
    }

    fn events(told: u64) -> Events {
        let events = Events::with_room("here", 3);
        (0..told).for_each(|_| events.tell(Event::of_model(Kind::ModelAppeared, "m")));
        events
    }

    #[test]
    fn a_follower_goes_on_where_it_was() {
        assert_eq!(sequences(&mut events(0).follow(0)), []);
        assert_eq!(sequences(&mut events(2).follow(0)), [Ok(1), Ok(2)]);
        assert_eq!(sequences(&mut events(2).follow(1)), [Ok(2)]);
        let events = events(2);
        let mut follower = events.follow(2);
        assert_eq!(sequences(&mut follower), []);
        events.tell(Event::new(Kind::Draining));
        assert_eq!(sequences(&mut follower), [Ok(3)]);
        let mut of_the_future = events.follow(100);
        events.tell(Event::new(Kind::Draining));
        assert_eq!(sequences(&mut of_the_future), [Ok(4)]);
    }

    #[test]
    fn whoever_comes_late_or_is_slow_is_told_how_many_it_missed() {
        assert_eq!(sequences(&mut events(7).follow(0)), [Err(4), Ok(5), Ok(6), Ok(7)]);
        assert_eq!(sequences(&mut events(7).follow(4)), [Ok(5), Ok(6), Ok(7)]);
        let events = events(1);
        let mut slow = events.follow(0);
        (0..5).for_each(|_| events.tell(Event::new(Kind::Draining)));
        assert_eq!(sequences(&mut slow), [Err(3), Ok(4), Ok(5), Ok(6)]);
    }

    #[test]
    fn each_start_is_another_replica() {
        let replicas = [Events::new("pod-1"), Events::new("pod-1")];
        assert!(replicas[0].replica().starts_with("pod-1-"));
        assert_ne!(replicas[0].replica(), replicas[1].replica());
    }

    #[tokio::test]
    async fn who_waits_is_woken() {
        let events = events(0);
        let mut follower = events.follow(0);
        let next = tokio::spawn(async move { follower.next().await });
        tokio::task::yield_now().await;
        events.tell(Event::of_version(Kind::VersionFailed, "m", "1.0.0").because("LOAD_CRASHED", "it crashed"));
        let told = next.await.expect("no panic");
        let Told::Event(event) = told else { panic!("{told:?}") };
        assert_eq!((event.model.as_str(), event.version.as_str()), ("m", "1.0.0"));
        assert_eq!((event.reason.as_str(), event.sequence), ("LOAD_CRASHED", 1));
        assert!(event.time > SystemTime::UNIX_EPOCH);
    }
}

//! `WatchEvents`: one follower of the events for each stream. A caller who does not read loses the oldest, and is told how
//! many, rather than keep them in memory here.

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::{
    model::Patterns,
    server::{
        phase::Phases,
        proto::sconce::v1::{
            self as proto, EventKind, Missed, Started, WatchEventsRequest, WatchEventsResponse,
            watch_events_response::What,
        },
    },
    telemetry::{
        Events,
        events::{Event, Follower, Kind, Told},
    },
};

/// Messages between the events and the wire; what does not fit waits in the ring.
const AHEAD_MAX: usize = 16;

/// Answers with what is remembered after `after_sequence`, and then with what comes, until nobody listens or the server
/// closes: a watcher must not hold up its end.
pub fn follow(
    events: &Events,
    phases: Phases,
    request: &WatchEventsRequest,
) -> ReceiverStream<Result<WatchEventsResponse, Status>> {
    // Whoever names models asks for what happens to them alone.
    let patterns = (!request.models.is_empty()).then(|| {
        let Ok(patterns) = request.models.parse::<Patterns>();
        patterns
    });
    let last = events.last();
    // A number without a replica is taken at its word: a person's.
    let another_replica =
        request.after_sequence.is_some() && !request.replica.is_empty() && request.replica != events.replica();
    let after = match request.after_sequence {
        None => last,
        Some(_) if another_replica => 0,
        Some(after) => after,
    };
    let started = Started { replica: events.replica().to_owned(), last_sequence: last, another_replica };
    let (tell, told) = mpsc::channel(AHEAD_MAX);
    let teller = Teller { replica: events.replica().to_owned(), patterns, tell };
    tokio::spawn(teller.run(started, events.follow(after), phases));
    ReceiverStream::new(told)
}

struct Teller {
    replica: String,
    /// `None` wants everything.
    patterns: Option<Patterns>,
    tell: mpsc::Sender<Result<WatchEventsResponse, Status>>,
}

// === impl Teller ===

impl Teller {
    async fn run(self, started: Started, mut follower: Follower, mut phases: Phases) {
        let mut next = Some(What::Started(started));
        loop {
            if let Some(what) = next.take()
                && self.tell.send(Ok(WatchEventsResponse { what: Some(what) })).await.is_err()
            {
                return;
            }
            tokio::select! {
                told = follower.next() => next = self.chosen(told),
                _ = phases.closing() => return,
                () = self.tell.closed() => return,
            }
        }
    }

    /// `None` for an event that is not asked for.
    fn chosen(&self, told: Told) -> Option<What> {
        let asked_for =
            |model: &str| self.patterns.as_ref().is_none_or(|patterns| !model.is_empty() && patterns.admits(model));
        match told {
            Told::Missed(count) => Some(What::Missed(Missed { count })),
            Told::Event(event) if asked_for(&event.model) => Some(What::Event(self.message(&event))),
            Told::Event(_) => None,
        }
    }

    fn message(&self, event: &Event) -> proto::Event {
        proto::Event {
            sequence: event.sequence,
            time: Some(event.time.into()),
            kind: kind(event.kind).into(),
            model: event.model.clone(),
            version: event.version.clone(),
            revision: event.revision,
            reason: event.reason.clone(),
            message: event.message.clone(),
            caller: event.caller.clone(),
            request_id: event.request_id.clone(),
            replica: self.replica.clone(),
        }
    }
}

fn kind(kind: Kind) -> EventKind {
    match kind {
        Kind::VersionLoading => EventKind::VersionLoading,
        Kind::VersionReady => EventKind::VersionReady,
        Kind::VersionFailed => EventKind::VersionFailed,
        Kind::VersionDraining => EventKind::VersionDraining,
        Kind::VersionUnloaded => EventKind::VersionUnloaded,
        Kind::ModelAppeared => EventKind::ModelAppeared,
        Kind::ModelGone => EventKind::ModelGone,
        Kind::ModelYamlRefused => EventKind::ModelYamlRefused,
        Kind::ModelYamlTaken => EventKind::ModelYamlTaken,
        Kind::RouteTaken => EventKind::RouteTaken,
        Kind::RouteRefused => EventKind::RouteRefused,
        Kind::RoutePending => EventKind::RoutePending,
        Kind::Promoted => EventKind::Promoted,
        Kind::RolledBack => EventKind::RolledBack,
        Kind::Unpinned => EventKind::Unpinned,
        Kind::LabelsSet => EventKind::LabelsSet,
        Kind::RouteSet => EventKind::RouteSet,
        Kind::Deployed => EventKind::Deployed,
        Kind::RolloutAdvanced => EventKind::RolloutAdvanced,
        Kind::RolloutPaused => EventKind::RolloutPaused,
        Kind::RolloutResumed => EventKind::RolloutResumed,
        Kind::RolloutAborted => EventKind::RolloutAborted,
        Kind::VariantTakenOut => EventKind::VariantTakenOut,
        Kind::DeployRefused => EventKind::DeployRefused,
        Kind::ModelDisabled => EventKind::ModelDisabled,
        Kind::ModelEnabled => EventKind::ModelEnabled,
        Kind::LoadAsked => EventKind::LoadAsked,
        Kind::UnloadAsked => EventKind::UnloadAsked,
        Kind::ReloadAsked => EventKind::ReloadAsked,
        Kind::StoreTrouble => EventKind::StoreTrouble,
        Kind::StoreRecovered => EventKind::StoreRecovered,
        Kind::SourceMissing => EventKind::SourceMissing,
        Kind::VersionMutated => EventKind::VersionMutated,
        Kind::LogLevelSet => EventKind::LogLevelSet,
        Kind::Draining => EventKind::Draining,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::phase::{self, Phase};
    use tokio_stream::StreamExt;

    /// `started 2`, `3 promoted m`, `missed 5`
    async fn next(stream: &mut ReceiverStream<Result<WatchEventsResponse, Status>>) -> Option<String> {
        let what = stream.next().await?.expect("no error").what.expect("something");
        Some(match what {
            What::Started(started) => format!("started {} {}", started.last_sequence, started.another_replica),
            What::Missed(missed) => format!("missed {}", missed.count),
            What::Event(event) => {
                let kind = event.kind().as_str_name().trim_start_matches("EVENT_KIND_").to_lowercase();
                format!("{} {kind} {}", event.sequence, event.model)
            }
        })
    }

    #[tokio::test]
    async fn a_stream_goes_on_where_it_ended_and_ends_with_the_server() {
        let events = Events::new("here");
        ["a", "b", "c"].iter().for_each(|model| events.tell(Event::of_model(Kind::Promoted, model)));
        let (phase, phases) = phase::new();
        let mut stream = follow(
            &events,
            phases.clone(),
            &WatchEventsRequest { replica: events.replica().into(), after_sequence: Some(1), models: "c*".into() },
        );
        assert_eq!(next(&mut stream).await.as_deref(), Some("started 3 false"));
        assert_eq!(next(&mut stream).await.as_deref(), Some("3 promoted c"));
        events.tell(Event::new(Kind::Draining));
        events.tell(Event::of_model(Kind::Promoted, "c2"));
        assert_eq!(next(&mut stream).await.as_deref(), Some("5 promoted c2"), "the server is no model");

        let request = WatchEventsRequest { replica: "gone-1".into(), after_sequence: Some(3), models: String::new() };
        let mut other = follow(&events, phases.clone(), &request);
        assert_eq!(next(&mut other).await.as_deref(), Some("started 5 true"));
        assert_eq!(next(&mut other).await.as_deref(), Some("1 promoted a"));

        let mut from_now = follow(&events, phases, &WatchEventsRequest::default());
        assert_eq!(next(&mut from_now).await.as_deref(), Some("started 5 false"));
        phase.send_replace(Phase::Closing { grace: std::time::Duration::ZERO });
        assert_eq!(next(&mut from_now).await, None);
    }

    #[test]
    fn the_protocol_has_the_names_that_the_log_has() {
        for (of_ours, of_protocol) in [(Kind::VersionReady, "VERSION_READY"), (Kind::ModelDisabled, "MODEL_DISABLED")] {
            assert_eq!(kind(of_ours).as_str_name(), format!("EVENT_KIND_{of_protocol}"));
            assert_eq!(of_ours.as_str().to_uppercase(), of_protocol);
        }
    }
}

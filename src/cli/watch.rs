//! `sconce watch`: what happens on a running server, as it happens.

use std::{process::ExitCode, time::SystemTime};

use clap::Args;
use serde_json::{Value, json};
use tonic::{Status, Streaming, transport::Channel};

use super::{
    client::{self, Failure},
    models::AdminArgs,
    print,
    proto::{Event, WatchEventsRequest, WatchEventsResponse, admin_client::AdminClient, watch_events_response::What},
};
use crate::telemetry::logs::escape;

/// Follow what happens on a running server: versions that load, fail and leave, and what operators do
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub struct WatchArgs {
    /// Only what happens to models whose names match, with * and ? (default: all, and the server itself)
    pattern: Option<String>,
    /// Begin with what the server remembers
    #[arg(long, conflicts_with = "after")]
    all: bool,
    /// Begin after the event of this number
    #[arg(long, value_name = "N")]
    after: Option<u64>,
    /// End after so many events
    #[arg(long, short = 'n', value_name = "EVENTS")]
    count: Option<u64>,
    #[command(flatten)]
    admin: AdminArgs,
}

const AFTER_HELP: &str = "\
A connection that ends is made anew and goes on where it ended; what could not be told is counted.
With --json each line is an object: {\"kind\": \"version_ready\", \"sequence\": 7, \"model\": …}.

Examples:
  sconce watch
  sconce watch 'fraud-*' --all
  sconce watch --json | jq 'select(.kind == \"version_failed\")'";

pub fn run(args: &WatchArgs) -> anyhow::Result<ExitCode> {
    client::block_on(async {
        let client = client::admin(&args.admin.server).await?;
        let mut request = WatchEventsRequest {
            replica: String::new(),
            after_sequence: if args.all { Some(0) } else { args.after },
            models: args.pattern.clone().unwrap_or_default(),
        };
        let mut left = args.count.unwrap_or(u64::MAX);
        while left > 0 {
            let mut events = open(&client, &request).await?;
            while left > 0 {
                let told = match events.message().await {
                    Ok(Some(told)) => told,
                    // The connection grew old or broke, or the server goes: asked again, it says which.
                    Ok(None) => break,
                    Err(status) if ended_by_the_way(&status) => break,
                    Err(status) => return Err(Failure::from(status).into()),
                };
                let Some(what) = told.what else { continue };
                follow(&mut request, &what);
                left -= u64::from(matches!(what, What::Event(_)));
                print(&line(&what, args.admin.json))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

async fn open(
    client: &AdminClient<Channel>,
    request: &WatchEventsRequest,
) -> Result<Streaming<WatchEventsResponse>, Failure> {
    client::with_retries(|| {
        let (mut client, request) = (client.clone(), request.clone());
        async move { client.watch_events(request).await }
    })
    .await
}

/// A stream that is cut off ends with what the library makes of it.
fn ended_by_the_way(status: &Status) -> bool {
    matches!(status.code(), tonic::Code::Unavailable | tonic::Code::Unknown | tonic::Code::Cancelled)
        || (status.code() == tonic::Code::Internal && status.details().is_empty())
}

/// Where the next stream is to go on.
fn follow(request: &mut WatchEventsRequest, what: &What) {
    match what {
        What::Started(started) => {
            request.replica.clone_from(&started.replica);
            if started.another_replica {
                request.after_sequence = Some(0);
            }
            request.after_sequence.get_or_insert(started.last_sequence);
        }
        What::Event(event) => request.after_sequence = Some(event.sequence),
        What::Missed(missed) => {
            request.after_sequence = Some(request.after_sequence.unwrap_or(0) + missed.count);
        }
    }
}

/// `version_ready`
pub fn kind(event: &Event) -> String {
    event.kind().as_str_name().trim_start_matches("EVENT_KIND_").to_ascii_lowercase()
}

fn line(what: &What, as_json: bool) -> String {
    if as_json {
        return to_json(what).to_string() + "\n";
    }
    let text = match what {
        What::Started(started) if started.another_replica => {
            format!("-- {}: another start of the server; what it remembers follows", started.replica)
        }
        What::Started(started) => format!("-- {}, after event {}", started.replica, started.last_sequence),
        What::Missed(missed) => format!("-- {} events were missed", missed.count),
        What::Event(event) => for_people(event),
    };
    escape(&text) + "\n"
}

/// `2026-11-21T15:00:00Z 7 version_failed early-signal 1.1.0 DIGEST_MISMATCH: a sentence (by alice)`
fn for_people(event: &Event) -> String {
    let mut words = vec![time(event).unwrap_or_default(), event.sequence.to_string(), kind(event)];
    words.extend([&event.model, &event.version].into_iter().cloned());
    if event.revision > 0 {
        words.push(format!("revision {}", event.revision));
    }
    words.push(match (event.reason.is_empty(), event.message.is_empty()) {
        (false, false) => format!("{}: {}", event.reason, event.message),
        _ => format!("{}{}", event.reason, event.message),
    });
    if !event.caller.is_empty() {
        words.push(format!("(by {})", event.caller));
    }
    words.retain(|word| !word.is_empty());
    words.join(" ")
}

fn time(event: &Event) -> Option<String> {
    let time = SystemTime::try_from(event.time?).ok()?;
    Some(humantime::format_rfc3339_millis(time).to_string())
}

fn to_json(what: &What) -> Value {
    match what {
        What::Started(started) => json!({
            "kind": "started",
            "replica": started.replica,
            "last_sequence": started.last_sequence,
            "another_replica": started.another_replica,
        }),
        What::Missed(missed) => json!({ "kind": "missed", "count": missed.count }),
        What::Event(event) => json!({
            "kind": kind(event),
            "sequence": event.sequence,
            "time": time(event),
            "model": event.model,
            "version": event.version,
            "revision": event.revision,
            "reason": event.reason,
            "message": event.message,
            "caller": event.caller,
            "request_id": event.request_id,
            "replica": event.replica,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::proto::{EventKind, Missed, Started};

    fn event(sequence: u64) -> What {
        What::Event(Event {
            sequence,
            time: Some(SystemTime::UNIX_EPOCH.into()),
            kind: EventKind::VersionFailed.into(),
            model: "m".into(),
            version: "1.1.0".into(),
            reason: "LOAD_FAILED".into(),
            message: "no\nmodel".into(),
            ..Default::default()
        })
    }

    #[test]
    fn an_event_is_one_line() {
        let text = "1970-01-01T00:00:00.000Z 7 version_failed m 1.1.0 LOAD_FAILED: no\\nmodel\n";
        assert_eq!(line(&event(7), false), text);
        let json: Value = serde_json::from_str(&line(&event(7), true)).unwrap();
        assert_eq!((&json["kind"], &json["sequence"]), (&json!("version_failed"), &json!(7)));
        assert_eq!(line(&What::Missed(Missed { count: 3 }), false), "-- 3 events were missed\n");
    }

    #[test]
    fn the_next_stream_goes_on_where_the_last_ended() {
        let mut request = WatchEventsRequest::default();
        let started = |replica: &str, last_sequence, another_replica| {
            What::Started(Started { replica: replica.into(), last_sequence, another_replica })
        };
        follow(&mut request, &started("a-1", 5, false));
        assert_eq!((request.replica.as_str(), request.after_sequence), ("a-1", Some(5)), "nothing came yet");
        follow(&mut request, &event(6));
        follow(&mut request, &What::Missed(Missed { count: 10 }));
        assert_eq!(request.after_sequence, Some(16));
        follow(&mut request, &started("a-2", 3, true));
        assert_eq!((request.replica.as_str(), request.after_sequence), ("a-2", Some(0)));
    }
}

//! What this replica serves, written beside the route for people and for the other replicas.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};
use tokio::{sync::Semaphore, task::JoinSet, time::sleep};

use crate::{
    catalog::{Catalog, ModelEntry, Snapshot, State},
    model::{ModelName, Version},
    store::Records,
};

/// However much changes, a model's status is written no more often.
const PAUSE: Duration = Duration::from_secs(1);
const REMOVED_AT_ONCE: usize = 16;

/// The name of this replica: its host's and its port's, so that it is the same after a restart.
pub fn name(port: u16) -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' };
    let host: String = host.trim_start_matches('.').chars().map(plain).take(100).collect();
    format!("{}-{port}", if host.is_empty() { "replica" } else { &host })
}

/// What was written of a model last. The picture itself is not kept alive: it holds what serves.
struct Last {
    entry: Weak<ModelEntry>,
    status: Value,
}

/// Writes `.sconce/status/REPLICA.json` of each model whenever it changes, and takes all away at the end: replicas whose names
/// never come again must not pile up.
pub async fn report(catalog: Catalog, records: Records, replica: String, end: impl Future<Output = ()>) {
    let mut last = HashMap::new();
    tokio::select! {
        () = write(&catalog, &records, &replica, &mut last) => {}
        () = end => {}
    }
    let mut removals = JoinSet::new();
    let turns = Arc::new(Semaphore::new(REMOVED_AT_ONCE));
    for model in last.into_keys() {
        let (records, replica, turns) = (records.clone(), replica.clone(), turns.clone());
        removals.spawn(async move {
            let _turn = turns.acquire_owned().await;
            if let Err(error) = records.remove_status(&model, &replica).await {
                tracing::debug!(%model, %error, "the status is not removed");
            }
        });
    }
    removals.join_all().await;
}

/// Runs until the catalog is gone. Each model that has a status is in `last`.
async fn write(catalog: &Catalog, records: &Records, replica: &str, last: &mut HashMap<ModelName, Last>) {
    let mut changes = catalog.changes();
    while changes.changed().await.is_ok() {
        for (model, status) in news(&catalog.load(), last) {
            let mut text = status;
            text["replica"] = json!(replica);
            text["time"] = json!(humantime::format_rfc3339_seconds(SystemTime::now()).to_string());
            if let Err(error) = records.write_status(&model, replica, format!("{text:#}\n")).await {
                // A store that cannot be written to serves all the same.
                tracing::debug!(%model, %error, "the status is not written");
            }
        }
        sleep(PAUSE).await;
    }
}

/// The highest revision that any replica has said it knows. What cannot be read says nothing.
pub fn highest_revision(statuses: &[String]) -> u64 {
    let read = statuses.iter().filter_map(|text| serde_json::from_str::<Value>(text).ok());
    let known = read.flat_map(|status| [status["revision"].as_u64(), status["pending"]["revision"].as_u64()]);
    known.flatten().max().unwrap_or(0)
}

/// What a replica said of one version.
#[derive(Clone, Debug, PartialEq)]
pub struct Said {
    pub replica: String,
    /// That it follows.
    pub revision: u64,
    /// As operators see it; `AVAILABLE` where it does not load the version.
    pub state: String,
}

/// What cannot be read says nothing.
pub fn said_of(version: Version, statuses: &[String]) -> Vec<Said> {
    let read = statuses.iter().filter_map(|text| serde_json::from_str::<Value>(text).ok());
    let said = |status: Value| {
        let state = status["versions"][version.to_string()]["state"].as_str();
        Some(Said {
            replica: status["replica"].as_str()?.to_owned(),
            revision: status["revision"].as_u64()?,
            state: state.unwrap_or(State::Available.as_str()).to_owned(),
        })
    };
    read.filter_map(said).collect()
}

/// The models whose status is another than the last one.
fn news(snapshot: &Snapshot, last: &mut HashMap<ModelName, Last>) -> Vec<(ModelName, Value)> {
    last.retain(|name, _| snapshot.models.contains_key(name));
    let mut news = Vec::new();
    for (name, entry) in &snapshot.models {
        let known = last.get(name);
        if known.is_some_and(|last| std::ptr::eq(last.entry.as_ptr(), Arc::as_ptr(entry))) {
            continue;
        }
        let status = status(entry);
        if known.is_none_or(|last| last.status != status) {
            news.push((name.clone(), status.clone()));
        }
        last.insert(name.clone(), Last { entry: Arc::downgrade(entry), status });
    }
    news
}

fn status(entry: &ModelEntry) -> Value {
    let versions: serde_json::Map<String, Value> = entry
        .versions
        .iter()
        .filter(|(_, version)| version.state != State::Available)
        .map(|(number, version)| {
            let reason = version.cause.as_ref().map(|cause| cause.reason());
            (number.to_string(), json!({ "state": version.state.as_str(), "reason": reason }))
        })
        .collect();
    json!({
        "revision": entry.revision,
        "stable": entry.stable.map(|version| version.to_string()),
        "pending": entry.pending.as_ref().map(|pending| json!({
            "revision": pending.revision,
            "version": pending.version.to_string(),
            "why": pending.why.as_str(),
        })),
        "versions": versions,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::VersionEntry;

    #[test]
    fn the_highest_revision_counts_whether_it_is_in_force_or_waits() {
        let said = |texts: &[&str]| highest_revision(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
        assert_eq!(said(&[]), 0);
        assert_eq!(said(&[r#"{"revision": 4, "pending": null}"#, r#"{"revision": 3, "pending": {"revision": 5}}"#]), 5);
        assert_eq!(said(&["half of a", r#"{"revision": "9"}"#, r#"{"revision": 2}"#]), 2);
    }

    #[test]
    fn what_was_written_of_a_version_is_read_back() {
        let (name, version) = (ModelName::new("m").expect("a name"), Version::new(2, 0, 0));
        let versions = [(version, VersionEntry::new(State::Loading))].into();
        let entry = ModelEntry { versions, revision: 7, ..ModelEntry::new(name) };
        let mut text = status(&entry);
        text["replica"] = json!("a");
        let statuses = [text.to_string(), "half of a".to_owned(), "{}".to_owned()];
        let said = |state: State| Said { replica: "a".into(), revision: 7, state: state.as_str().into() };
        assert_eq!(said_of(version, &statuses), [said(State::Loading)]);
        assert_eq!(said_of(Version::new(3, 0, 0), &statuses), [said(State::Available)]);
    }
}

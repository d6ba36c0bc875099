//! Replicas that count over one folder: what is acknowledged, what a death leaves, and the sums.

use std::{fs, path::Path};

use tokio::{sync::oneshot, task::JoinHandle};

use super::*;
use crate::{
    catalog::{self, ModelEntry, Publisher, Snapshot, State, VersionEntry},
    engine::IdKey,
    model::{RouteReason, Served, Tensor},
};

const KEY: [u8; 16] = [7; 16];

fn model() -> ModelName {
    ModelName::new("m").expect("a name")
}

fn version() -> Version {
    Version::new(1, 1, 0)
}

/// A prediction of that score, as some replica made it.
fn predicted(score: f64) -> Claim {
    let served =
        Served { model: model(), version: version(), variant: "canary".into(), reason: RouteReason::Draw, revision: 3 };
    let output = Tensor::from_f64("p".into(), [1].into_iter().collect(), vec![score]);
    Claim::PredictionId(IdKey::new(KEY).issue(&served, 1, Some(&output)).remove(0))
}

fn labelled(label: f64) -> Outcome {
    Outcome { label: Some(label), ..Outcome::default() }
}

/// A replica that writes its counts.
struct Replica {
    counts: Counts,
    metrics: Arc<Metrics>,
    end: oneshot::Sender<()>,
    writer: JoinHandle<()>,
    _publisher: Publisher,
}

impl Replica {
    fn start(name: &str, records: Records) -> Self {
        let mut entry = ModelEntry::new(model());
        entry.revision = 4;
        entry.versions.insert(version(), VersionEntry::new(State::Ready));
        let (publisher, catalog) = catalog::new();
        publisher.publish(Snapshot {
            models: [(model(), Arc::new(entry))].into(),
            scanned: true,
            ..Snapshot::default()
        });
        let metrics = Metrics::new();
        let engine = Engine::new(catalog, metrics.clone(), IdKey::new(KEY));
        let counts = Counts::new(engine, Scoreboard::default(), records, name, metrics.clone());
        let (end, ended) = oneshot::channel();
        let writer = tokio::spawn(counts.clone().keep(async { drop(ended.await) }));
        Self { counts, metrics, end, writer, _publisher: publisher }
    }

    async fn credited(&self, claim: &Claim, outcome: &Outcome) -> Result<bool> {
        let recorded = self.counts.record(claim, outcome).expect("the store was looked at");
        assert_ne!(recorded.taken, Taken::UnknownId);
        recorded.receipt().expect("it counts").settled().await
    }

    /// Outcomes of all replicas.
    async fn sum(&self) -> u64 {
        let sums = self.counts.sums(&model()).await.expect("the store is there").counts;
        sums.iter().map(|(_, tally)| tally.outcomes.count).sum()
    }

    async fn end(self) {
        drop(self.end);
        self.writer.await.expect("no panic");
    }

    /// As a kill would: nothing is written any more.
    async fn die(self) {
        self.writer.abort();
        let _ = self.writer.await;
    }
}

fn store() -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("a folder");
    fs::create_dir(root.path().join("m")).expect("a folder");
    root
}

fn files(root: &Path) -> usize {
    fs::read_dir(root.join("m/.sconce/counts")).map_or(0, Iterator::count)
}

#[tokio::test]
async fn what_was_acknowledged_outlives_the_replica_and_is_counted_on_from() {
    let root = store();
    let records = || Records::in_folder(root.path());
    for round in 1..=3 {
        let replica = Replica::start("a", records());
        assert_eq!(replica.sum().await, round - 1, "before anything is read back");
        assert!(replica.credited(&predicted(0.7), &labelled(1.0)).await.expect("the store is there"));
        assert_eq!(replica.sum().await, round);
        replica.die().await;
    }
    let replica = Replica::start("b", records());
    let sums = replica.counts.sums(&model()).await.expect("the store is there").counts;
    let [(key, tally)] = &sums[..] else { panic!("{sums:?}") };
    assert_eq!(*key, Key { revision: 3, variant: "canary".into(), version: version() });
    assert_eq!((tally.outcomes.count, tally.outcomes.scores.accuracy()), (3, Some(1.0)));
    replica.end().await;
    assert_eq!(files(root.path()), 1, "who counted nothing writes nothing");
}

#[tokio::test]
async fn any_replica_credits_and_all_see_the_sum() {
    let root = store();
    let replicas = ["a", "b", "c"].map(|name| Replica::start(name, Records::in_folder(root.path())));
    for (place, replica) in replicas.iter().enumerate() {
        for _ in 0..=place {
            assert!(replica.credited(&predicted(0.2), &labelled(0.0)).await.expect("the store is there"));
        }
    }
    for replica in replicas {
        assert_eq!(replica.sum().await, 6);
        replica.end().await;
    }
    assert_eq!(files(root.path()), 3);
}

#[tokio::test]
async fn an_outcome_that_comes_again_is_counted_once_and_another_one_too() {
    let root = store();
    let replica = Replica::start("a", Records::in_folder(root.path()));
    let claim = predicted(0.9);
    for _ in 0..3 {
        assert!(replica.credited(&claim, &labelled(1.0)).await.expect("the store is there"));
    }
    assert_eq!(replica.sum().await, 1);
    let reward = Outcome { reward: Some(2.0), ..Outcome::default() };
    assert!(replica.credited(&claim, &reward).await.expect("the store is there"), "it came later");
    assert_eq!(replica.sum().await, 2);
    let text = replica.metrics.encode();
    for line in ["{model=\"m\",result=\"credited\"} 2", "{model=\"m\",result=\"repeated\"} 2"] {
        assert!(text.contains(&format!("sconce_outcomes_total{line}")), "{text}");
    }
    replica.end().await;
}

#[tokio::test]
async fn forged_and_foreign_ids_are_counted_and_credited_to_nobody() {
    let root = store();
    let replica = Replica::start("a", Records::in_folder(root.path()));
    let own = |model: &str, version: Version, variant: &str| Claim::Own {
        request_id: "7".into(),
        model: model.into(),
        version,
        variant: variant.into(),
    };
    let unknown = [
        Claim::PredictionId("forged".into()),
        own("other", version(), "stable"),
        own("m", Version::new(9, 0, 0), "stable"),
        own("m", version(), "a\nb"),
        own("m", version(), ""),
    ];
    for claim in &unknown {
        let recorded = replica.counts.record(claim, &labelled(1.0)).expect("no error");
        assert!(recorded.taken == Taken::UnknownId && recorded.receipt().is_none(), "{claim:?}");
    }
    let text = replica.metrics.encode();
    assert!(
        text.contains("sconce_outcomes_total{model=\"\",result=\"unknown\"} 5") && !text.contains("forged"),
        "{text}"
    );
    let recorded = replica.counts.record(&own("m", version(), "stable"), &labelled(1.0)).expect("no error");
    assert_eq!(recorded.whose.expect("it is known").1.revision, 4, "the one in force");
    let many = (0..100).map(|number| own("m", version(), &format!("v{number}")));
    let taken =
        many.filter(|claim| replica.counts.record(claim, &labelled(1.0)).expect("no error").taken == Taken::Credited);
    assert_eq!(taken.count(), CELLS_OF_OWN_IDS_MAX - 1, "names are the callers' own");
    replica.end().await;
}

#[tokio::test]
async fn with_the_store_away_it_counts_and_says_so_once_it_is_back() {
    let root = store();
    let (here, away) = (root.path().join("m"), root.path().join("away"));
    let before = Replica::start("a", Records::in_folder(root.path()));
    before.credited(&predicted(0.7), &labelled(1.0)).await.expect("the store is there");
    before.end().await;
    fs::rename(&here, &away).expect("a rename");
    let replica = Replica::start("a", Records::in_folder(root.path()));
    let claim = predicted(0.7);
    for _ in 0..2 {
        let error = replica.credited(&claim, &labelled(1.0)).await.expect_err("it is away");
        assert_eq!((error.reason(), error.retry_after().is_some()), ("STORE_UNAVAILABLE", true));
    }
    assert!(replica.counts.sums(&model()).await.is_err(), "a sum without the others would be wrong");
    fs::rename(&away, &here).expect("a rename");
    assert!(replica.credited(&claim, &labelled(1.0)).await.expect("it is back"));
    assert_eq!(replica.sum().await, 2, "the one before, and this one once");
    replica.die().await;
    assert_eq!(Replica::start("b", Records::in_folder(root.path())).sum().await, 2);
}

#[tokio::test]
async fn where_nothing_can_be_written_it_counts_until_the_end() {
    let why = Error::new(Code::FailedPrecondition, "NO_STORE", "one file is served");
    let replica = Replica::start("a", Records::closed(why));
    assert!(!replica.credited(&predicted(0.7), &labelled(1.0)).await.expect("it counts"));
    assert_eq!(replica.sum().await, 1);
    replica.end().await;
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_left_out() {
    let root = store();
    let replica = Replica::start("a", Records::in_folder(root.path()));
    replica.credited(&predicted(0.7), &labelled(1.0)).await.expect("the store is there");
    fs::write(root.path().join("m/.sconce/counts/b.json"), "half of a").expect("a file");
    assert_eq!(replica.sum().await, 1);
    assert_eq!(replica.counts.sums(&model()).await.expect("the others'").unread, ["b"]);
    replica.end().await;
}

#[tokio::test]
async fn a_replica_that_cannot_read_its_own_file_puts_it_aside() {
    let root = store();
    let counts = root.path().join("m/.sconce/counts");
    fs::create_dir_all(&counts).expect("a folder");
    fs::write(counts.join("a.json"), "half of it").expect("a file");
    let replica = Replica::start("a", Records::in_folder(root.path()));
    replica.credited(&predicted(0.7), &labelled(1.0)).await.expect("it is written");
    let sums = replica.counts.sums(&model()).await.expect("the store is there");
    let [aside] = &sums.unread[..] else { panic!("{:?}", sums.unread) };
    assert!(aside.starts_with("a.damaged-"), "{aside}");
    assert_eq!(fs::read_to_string(counts.join(format!("{aside}.json"))).expect("a file"), "half of it");
    assert_eq!(replica.sum().await, 1);
    replica.end().await;
}

#[tokio::test]
async fn no_number_of_a_callers_makes_the_file_unreadable() {
    let root = store();
    let replica = Replica::start("a", Records::in_folder(root.path()));
    for reward in [1e200, -3e250, f64::MAX, f64::MIN, f64::NAN, f64::INFINITY, 1e100, -1e100] {
        let metrics = vec![("pnl".to_owned(), reward)];
        let outcome = Outcome { label: Some(reward), reward: Some(reward), metrics };
        replica.credited(&predicted(0.7), &outcome).await.expect("it is written");
    }
    replica.die().await;
    let replica = Replica::start("a", Records::in_folder(root.path()));
    replica.credited(&predicted(0.7), &labelled(1.0)).await.expect("it is read and written");
    let sums = replica.counts.sums(&model()).await.expect("the store is there");
    assert_eq!((sums.unread.len(), replica.sum().await), (0, 9));
    replica.end().await;
}

#[tokio::test]
async fn outcomes_that_come_together_are_written_together() {
    let root = store();
    let replica = Replica::start("a", Records::in_folder(root.path()));
    let begun = std::time::Instant::now();
    let all: Vec<Recorded> = (0..5_000)
        .map(|number| replica.counts.record(&predicted(0.5), &labelled(f64::from(number % 2))).expect("known"))
        .collect();
    for recorded in &all {
        assert!(recorded.receipt().expect("it counts").settled().await.expect("the store is there"));
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(replica.sum().await, 5_000);
    replica.end().await;
}

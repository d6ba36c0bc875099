//! The ledger against a store and a loader that do as they are told.

mod holds;
mod routes;

use std::time::Duration;

use super::*;
use crate::{
    catalog::State,
    error::{Code, Error},
    lifecycle::loader::Loaded,
    model::Platform,
    store::{ModelFolder, Stamp, StoreFile, TextFile, VersionFolder},
};

/// A ledger, and a store and a loader that do as they are told.
struct World {
    ledger: Ledger<u32>,
    now: Instant,
    yaml: &'static str,
    route: &'static str,
    served: u32,
}

fn name() -> ModelName {
    ModelName::new("m").expect("a name")
}

fn stamp(inode: u64) -> Stamp {
    Stamp { size: 10, modified_ns: 0, changed_ns: 0, inode }
}

fn version(inode: u64) -> Arc<VersionFolder> {
    let path = "m/1/model.onnx".to_owned();
    let stamp = stamp(inode);
    Arc::new(VersionFolder {
        files: BTreeMap::from([("model.onnx".to_owned(), StoreFile { path, stamp })]),
        complete: true,
        ..VersionFolder::new("1", Instant::now())
    })
}

impl World {
    fn new() -> Self {
        Self { ledger: Ledger::new(ModelYaml::default(), 2), now: Instant::now(), yaml: "", route: "", served: 0 }
    }

    /// The store shows these majors, each with an inode that stands for its bytes.
    fn list(&mut self, versions: &[(u64, u64)]) {
        let folder = ModelFolder {
            route_yaml: (!self.route.is_empty()).then(|| TextFile {
                stamp: stamp(self.route.len() as u64),
                read_ns: 0,
                text: Ok(self.route.into()),
            }),
            model_yaml: Some(TextFile { stamp: stamp(self.yaml.len() as u64), read_ns: 0, text: Ok(self.yaml.into()) }),
            versions: versions.iter().map(|&(major, inode)| (Version::new(major, 0, 0), version(inode))).collect(),
            problems: Vec::new(),
        };
        let listing = StoreListing { models: BTreeMap::from([(name(), Arc::new(folder))]), problems: Vec::new() };
        self.take(&listing);
    }

    fn take(&mut self, listing: &StoreListing) {
        self.ledger.take_listing(listing, SystemTime::UNIX_EPOCH);
        self.plan();
    }

    fn plan(&mut self) {
        self.ledger.plan(self.now, SystemTime::UNIX_EPOCH);
    }

    fn wait(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        self.plan();
    }

    /// Runs every load there is; those of `broken` majors fail. Returns what was asked for.
    fn work(&mut self, broken: &[u64]) -> Vec<String> {
        let mut asked = Vec::new();
        while let Some(job) = self.ledger.next_job() {
            asked.push(format!("{:?} {}", job.task, job.version));
            self.finish(job, broken);
        }
        asked
    }

    /// The end of one load.
    fn finish(&mut self, job: LoadJob, broken: &[u64]) {
        let bytes = job.source.files["model.onnx"].stamp.inode.to_string();
        let known = job.known_digest.as_ref().is_some_and(|known| *known != bytes);
        let fails = known || broken.iter().any(|&major| Version::new(major, 0, 0) == job.version);
        let outcome = match job.task {
            Task::Recheck => Outcome::Rechecked(bytes),
            Task::Load if fails => Outcome::Failed {
                error: Error::new(Code::FailedPrecondition, "LOAD_CRASHED", "it crashed"),
                missing_library: None,
                short_bytes: 0,
            },
            Task::Load => {
                self.served += 1;
                Outcome::Loaded(Loaded {
                    servable: Arc::new(self.served),
                    platform: Platform::Onnx,
                    digest: bytes,
                    bytes: 10,
                    memory_bytes: 10,
                    gpu_bytes: 0,
                    load_time: Duration::ZERO,
                    notes: Vec::new(),
                    settings: Default::default(),
                    metrics: BTreeMap::new(),
                })
            }
        };
        let done =
            LoadDone { model: job.model, version: job.version, source: job.source, options: job.options, outcome };
        self.ledger.take_result(done, self.now);
        self.plan();
    }

    fn shown(&self) -> Vec<(String, State)> {
        let model = &self.ledger.models()[&name()];
        let versions = model.versions.iter();
        versions.map(|(number, version)| (number.to_string(), version.shown)).collect()
    }

    fn ready(&self) -> Vec<String> {
        let ready = self.shown().into_iter().filter(|(_, state)| *state == State::Ready);
        ready.map(|(number, _)| number).collect()
    }
}

#[test]
fn a_new_version_takes_over_and_the_old_one_goes() {
    let mut world = World::new();
    world.list(&[(1, 1)]);
    assert_eq!(world.work(&[]), ["Load 1.0.0"]);
    world.list(&[(1, 1), (2, 2)]);
    assert_eq!(world.ready(), ["1.0.0"], "until the new one is there");
    assert_eq!(world.work(&[]), ["Load 2.0.0"]);
    assert_eq!(world.ready(), ["2.0.0"]);
}

#[test]
fn a_broken_new_version_leaves_the_old_one_in_place() {
    let mut world = World::new();
    world.list(&[(1, 1)]);
    world.work(&[]);
    world.list(&[(1, 1), (2, 2)]);
    world.work(&[2]);
    assert_eq!(world.shown(), [("1.0.0".to_owned(), State::Ready), ("2.0.0".to_owned(), State::Failed)]);
    world.list(&[(1, 1), (2, 3)]);
    assert_eq!(world.work(&[]), ["Load 2.0.0"], "its files changed");
    assert_eq!(world.ready(), ["2.0.0"]);
}

#[test]
fn a_start_beside_a_broken_new_version_serves_the_old_one() {
    let mut world = World::new();
    world.list(&[(1, 1), (2, 2)]);
    assert!(!world.ledger.unsettled(false).is_empty());
    assert_eq!(world.work(&[2]), ["Load 2.0.0", "Load 1.0.0"]);
    assert_eq!(world.ready(), ["1.0.0"]);
    assert!(world.ledger.unsettled(false).is_empty());
}

#[test]
fn what_failed_is_tried_again_with_growing_pauses() {
    let mut world = World::new();
    world.list(&[(1, 1)]);
    assert_eq!(world.work(&[1]).len(), 1);
    assert_eq!(world.work(&[1]).len(), 0, "not at once");
    world.wait(1);
    assert_eq!(world.work(&[1]).len(), 1);
    world.wait(1);
    assert_eq!(world.work(&[1]).len(), 0, "the second pause is longer");
    world.wait(1);
    assert_eq!(world.work(&[]).len(), 1);
    assert_eq!(world.ready(), ["1.0.0"]);
}

#[test]
fn the_last_one_serves_on_when_its_source_is_gone_and_goes_with_its_model() {
    let mut world = World::new();
    world.list(&[(1, 1)]);
    world.work(&[]);
    world.list(&[]);
    assert_eq!(world.ready(), ["1.0.0"]);
    let cause = world.ledger.models()[&name()].versions[&Version::new(1, 0, 0)].cause();
    assert_eq!(cause.expect("it is said").reason(), "SOURCE_MISSING");
    world.take(&StoreListing::default());
    assert!(world.ledger.models().is_empty());
}

#[test]
fn a_version_never_changes() {
    let mut world = World::new();
    world.list(&[(1, 1)]);
    world.work(&[]);
    world.list(&[(1, 2)]);
    assert_eq!(world.work(&[]), ["Recheck 1.0.0"]);
    assert_eq!(world.ready(), ["1.0.0"]);
    let cause = || world.ledger.models()[&name()].versions[&Version::new(1, 0, 0)].cause();
    assert_eq!(cause().expect("it is said").reason(), "VERSION_MUTATED");
}

#[test]
fn other_options_make_other_servables_and_a_bad_edit_keeps_the_good_ones() {
    let mut world = World::new();
    world.list(&[(1, 1)]);
    world.work(&[]);
    world.yaml = "batching: off";
    world.list(&[(1, 1)]);
    assert_eq!(world.ready(), ["1.0.0"], "meanwhile the old one serves");
    assert_eq!(world.work(&[]), ["Load 1.0.0"]);
    world.yaml = "batchin: on";
    world.list(&[(1, 1)]);
    assert_eq!(world.work(&[]).len(), 0);
    let message = &world.ledger.models()[&name()].message;
    assert!(message.as_ref().is_some_and(|message| message.contains("batchin")), "{message:?}");
    world.yaml = "versions: all\nbatching: off";
    world.list(&[(1, 1)]);
    assert_eq!(world.work(&[]).len(), 0, "this key needs no other servable");
}

#[test]
fn a_drain_is_shown_until_the_last_request_is_done() {
    let mut world = World::new();
    world.list(&[(1, 1)]);
    world.work(&[]);
    let held = world.ledger.models()[&name()].versions[&Version::new(1, 0, 0)]
        .serving
        .as_ref()
        .map(|served| served.loaded.servable.clone());
    world.list(&[(1, 1), (2, 2)]);
    world.work(&[]);
    assert_eq!(world.shown()[0].1, State::Draining);
    drop(held);
    world.wait(1);
    assert_eq!(world.shown()[0].1, State::Available);
}

#[test]
fn the_smallest_of_the_most_urgent_comes_first() {
    let mut world = World::new();
    let models = ["a", "b", "c"].into_iter().zip([30, 10, 20]).map(|(name, size)| {
        let mut folder = (*version(size)).clone();
        folder.files.values_mut().for_each(|file| file.stamp.size = size);
        let folder = ModelFolder {
            versions: BTreeMap::from([(Version::new(1, 0, 0), Arc::new(folder))]),
            ..ModelFolder::default()
        };
        (ModelName::new(name).expect("a name"), Arc::new(folder))
    });
    world.take(&StoreListing { models: models.collect(), problems: Vec::new() });
    let mut next = || world.ledger.next_job().map(|job| job.model.to_string());
    assert_eq!([next(), next(), next()], [Some("b".into()), Some("c".into()), None], "two at once");
}

#[test]
fn what_a_higher_one_replaced_is_kept_for_a_while() {
    let mut world = World::new();
    world.yaml = "keep_previous: 1h";
    world.list(&[(1, 1)]);
    world.work(&[]);
    world.list(&[(1, 1), (2, 2)]);
    world.work(&[]);
    assert_eq!(world.ready(), ["1.0.0", "2.0.0"]);
    world.wait(3599);
    assert_eq!(world.ready(), ["1.0.0", "2.0.0"]);
    assert!(world.ledger.next_wake().is_some_and(|when| when <= world.now + Duration::from_secs(1)));
    world.wait(1);
    assert_eq!(world.ready(), ["2.0.0"]);
}

#[test]
fn keeping_ends_at_once_when_nobody_asks_for_it_any_more() {
    let mut world = World::new();
    world.yaml = "keep_previous: 1h";
    world.list(&[(1, 1)]);
    world.work(&[]);
    world.list(&[(1, 1), (2, 2)]);
    world.work(&[]);
    world.yaml = "keep_previous: 0s";
    world.list(&[(1, 1), (2, 2)]);
    assert_eq!(world.work(&[]).len(), 0, "this key needs no other servable");
    assert_eq!(world.ready(), ["2.0.0"]);
}

#[test]
fn what_is_kept_goes_where_memory_is_short_and_the_load_is_tried_again() {
    let mut world = World::new();
    world.yaml = "keep_previous: 1h";
    world.list(&[(1, 1)]);
    world.work(&[]);
    world.list(&[(1, 1), (2, 2)]);
    world.work(&[]);
    world.list(&[(1, 1), (2, 2), (3, 3)]);
    let job = world.ledger.next_job().expect("a load");
    let error = Error::new(Code::ResourceExhausted, "INSUFFICIENT_MEMORY", "it needs more than there is");
    let outcome = Outcome::Failed { error, missing_library: None, short_bytes: 1 };
    let done = LoadDone { model: job.model, version: job.version, source: job.source, options: job.options, outcome };
    world.ledger.take_result(done, world.now);
    world.plan();
    assert_eq!(world.ready(), ["2.0.0"]);
    world.wait(1);
    assert_eq!(world.work(&[]), ["Load 3.0.0"]);
    assert_eq!(world.ready(), ["2.0.0", "3.0.0"], "2.0.0 is kept now");
}

#[test]
fn to_preserve_memory_the_old_one_is_drained_before_the_new_one_is_loaded() {
    let mut world = World::new();
    world.yaml = "swap_policy: resource";
    world.list(&[(1, 1)]);
    world.work(&[]);
    let held = world.ledger.models()[&name()].versions[&Version::new(1, 0, 0)]
        .serving
        .as_ref()
        .map(|served| served.loaded.servable.clone());
    world.list(&[(1, 1), (2, 2)]);
    assert_eq!(world.work(&[]).len(), 0, "a request still holds the old one");
    let expected = [("1.0.0".to_owned(), State::Draining), ("2.0.0".to_owned(), State::Loading)];
    assert_eq!(world.shown(), expected);
    drop(held);
    world.wait(1);
    assert_eq!(world.work(&[]), ["Load 2.0.0"]);
    assert_eq!(world.ready(), ["2.0.0"]);
    world.list(&[(1, 1), (2, 2), (3, 3)]);
    assert_eq!(world.work(&[3]), ["Load 3.0.0", "Load 2.0.0"], "what it replaced stands in for a broken one");
    assert_eq!(world.ready(), ["2.0.0"]);
}

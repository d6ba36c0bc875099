//! A version goes from one folder to another, and is looked at on the way.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::{Instant, SystemTime},
};

use super::*;
use crate::store::{Config, Scanner};

/// Ends a publish after so many looks at it.
struct After(AtomicI64);

impl Watch for After {
    fn moved(&self, _bytes: u64) {}

    fn is_stopped(&self) -> bool {
        self.0.fetch_sub(1, Ordering::Relaxed) <= 0
    }
}

fn never() -> After {
    After(AtomicI64::new(i64::MAX))
}

/// A version's folder, a store and a work folder.
struct World(tempfile::TempDir);

impl World {
    fn new() -> Self {
        let world = Self(tempfile::tempdir().expect("a folder"));
        for (name, text) in
            [("model.onnx", "m"), ("sub/weights", "w"), (".git/x", "no"), ("version.yaml", "library: x\n")]
        {
            world.write(&format!("out/{name}"), text);
        }
        fs::create_dir(world.at("store")).expect("made");
        world
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.at(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, text).expect("written");
    }

    fn store(&self) -> Place {
        Place::Folder(self.at("store"))
    }

    async fn stage(&self) -> Result<Staged> {
        let named = (ModelName::new("m").expect("a name"), Version::new(1, 2, 0));
        Staged::gather(&Source::Folder(self.at("out")), named, false, &self.at("work"), &never()).await
    }

    /// What is in the store, names that begin with a dot among them.
    fn listing(&self) -> Vec<String> {
        let mut names = Vec::new();
        let mut folders = vec![self.at("store")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).expect("a folder").flatten() {
                let path = entry.path();
                let name = path.strip_prefix(self.at("store")).expect("inside").to_string_lossy().into_owned();
                match path.is_dir() {
                    true => folders.push(path),
                    false => names.push(name),
                }
            }
        }
        names.sort();
        names
    }
}

const PUBLISHED: [&str; 3] = ["m/1.2.0/model.onnx", "m/1.2.0/sub/weights", "m/1.2.0/version.yaml"];

#[tokio::test]
async fn what_is_published_is_whole_and_a_repeat_changes_nothing() {
    let world = World::new();
    let staged = world.stage().await.expect("it can be copied");
    assert_eq!(world.store().standing(&staged, &never()).await.expect("it can be read"), Standing::Absent);
    world.store().send(&staged, &never()).await.expect("it can be sent");
    assert_eq!(world.listing(), PUBLISHED);
    assert_eq!(fs::read_to_string(world.at("out/version.yaml")).expect("there"), "library: x\n", "the original stays");
    // A server takes it at once, and calls it by the same digest.
    let config = Config { completeness: crate::store::Completeness::Manifest, ..Config::new(&world.at("store")) };
    let listing = Scanner::new(config.clone()).scan(Instant::now(), SystemTime::now()).expect("listed");
    let version = &listing.models["m"].versions[&Version::new(1, 2, 0)];
    assert!(version.complete);
    assert_eq!(crate::store::digest(&config, version).expect("hashed"), staged.digest());
    // Again, by another process: the same.
    let again = world.stage().await.expect("it can be copied");
    assert_eq!(again.digest(), staged.digest());
    assert_eq!(world.store().standing(&again, &never()).await.expect("the same"), Standing::Same);
    assert_eq!(world.store().send(&again, &never()).await.expect("somebody was first"), Standing::Same);
    drop((staged, again));
    assert_eq!(fs::read_dir(world.at("work")).expect("there").count(), 0, "nothing is left behind");
}

#[tokio::test]
async fn a_version_never_changes() {
    let world = World::new();
    world.store().send(&world.stage().await.expect("copied"), &never()).await.expect("sent");
    for (name, text) in [("model.onnx", "n"), ("more", ""), ("version.yaml", "library: y\n")] {
        let before = fs::read(world.at(&format!("out/{name}"))).ok();
        world.write(&format!("out/{name}"), text);
        let staged = world.stage().await.expect("copied");
        let refused = world.store().standing(&staged, &never()).await.expect_err("it differs");
        assert_eq!(refused.reason(), "VERSION_MUTATED");
        assert!(refused.message().contains(name), "{refused}");
        assert_eq!(world.store().send(&staged, &never()).await.expect_err("it differs").reason(), "VERSION_MUTATED");
        match before {
            Some(bytes) => fs::write(world.at(&format!("out/{name}")), bytes).expect("written"),
            None => fs::remove_file(world.at(&format!("out/{name}"))).expect("removed"),
        }
    }
    assert_eq!(world.listing(), PUBLISHED);
    fs::rename(world.at("store/m/1.2.0"), world.at("store/m/v1.2")).expect("renamed");
    let staged = world.stage().await.expect("copied");
    assert_eq!(world.store().standing(&staged, &never()).await.expect("by another name"), Standing::Same);
}

#[tokio::test]
async fn one_that_is_stopped_leaves_nothing_and_can_be_repeated() {
    let world = World::new();
    let staged = world.stage().await.expect("copied").with_model_yaml(Some("batching: off\n".into()), true);
    let staged = staged.expect("written");
    let mut looks = 0;
    loop {
        match world.store().send(&staged, &After(AtomicI64::new(looks))).await {
            Ok(_) => break,
            Err(error) => assert_eq!(error.reason(), "INTERRUPTED"),
        }
        assert!(world.listing().iter().all(|name| name == "m/model.yaml"), "{:?}", world.listing());
        looks += 1;
    }
    assert!(looks > 5, "it looked {looks} times");
    assert_eq!(world.listing()[..3], PUBLISHED);
}

#[tokio::test]
async fn what_a_version_may_not_hold_is_named() {
    let world = World::new();
    std::os::unix::fs::symlink("/etc/hostname", world.at("out/linked")).expect("linked");
    let refused = world.stage().await.expect_err("it leads out");
    assert!(refused.reason() == "UNSUPPORTED_FILE" && refused.message().contains("'linked'"), "{refused}");
    fs::remove_file(world.at("out/linked")).expect("removed");
    // A link that stays inside is the file it leads to.
    std::os::unix::fs::symlink("model.onnx", world.at("out/linked")).expect("linked");
    assert_eq!(world.stage().await.expect("copied").files().len(), 4);
    let named = (ModelName::new("m").expect("a name"), Version::new(1, 0, 0));
    let source = Source::Folder(world.at("out"));
    let refused = Staged::gather(&source, named, true, &world.at("work"), &never()).await;
    assert_eq!(refused.expect_err("it was never published").reason(), "NOT_PUBLISHED");
    assert_eq!(fs::read_dir(world.at("work")).expect("there").count(), 0, "nothing is left behind");
}

#[test]
fn a_version_in_a_bucket_is_found_by_its_number() {
    let find = |paths: &[&str]| {
        let name = ModelName::new("m").expect("a name");
        bucket::versions_in(paths.iter().map(|path| (*path, 1)), &name, Version::new(1, 2, 0))
    };
    let found = find(&["m/model.yaml", "m/v1.2/a/b", "m/v1.2/c", "m/1.3.0/c", "m/v1.2/.x", "m/v1.2/../c"]);
    let found = found.expect("one").expect("one");
    assert_eq!(found.path, "m/v1.2");
    assert_eq!(found.sizes.keys().collect::<Vec<_>>(), ["a/b", "c"]);
    assert_eq!(find(&["m/model.yaml", "n/1.2.0/c"]).expect("none"), None);
    assert_eq!(find(&["m/v1.2/c", "m/1.2.0/c"]).expect_err("two").reason(), "VERSION_MUTATED");
}

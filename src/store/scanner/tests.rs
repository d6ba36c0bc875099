//! The scanner over stores in temporary folders, with a clock that is ours.

use std::{fs, os::unix::fs::symlink, path::Path, time::Duration};

use super::*;

/// A store in a temporary folder, and a scanner whose clock is ours.
struct World {
    root: tempfile::TempDir,
    scanner: Scanner,
    now: Instant,
}

impl World {
    fn new() -> Self {
        let root = tempfile::tempdir().expect("a folder");
        let scanner = Scanner::new(Config::new(root.path()));
        let now = Instant::now();
        Self { root, scanner, now }
    }

    fn path(&self, path: &str) -> std::path::PathBuf {
        self.root.path().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("in a folder")).expect("made");
        fs::write(path, text).expect("written");
    }

    /// Returns when the clock of the file system has gone on.
    fn tick(&self) {
        let stamp = || {
            fs::write(self.path(".tick"), "").expect("written");
            stamp_of(&Metadata::from_just_metadata(fs::metadata(self.path(".tick")).expect("there"))).changed_ns
        };
        let before = stamp();
        while stamp() == before {}
    }

    fn scan_after(&mut self, seconds: u64) -> io::Result<Arc<StoreListing>> {
        self.now += Duration::from_secs(seconds);
        // A wall clock that stands still at the beginning of time: everything is young, only our own clock settles.
        self.scanner.scan(self.now, UNIX_EPOCH)
    }

    fn scan(&mut self) -> Arc<StoreListing> {
        self.scan_after(0).expect("it can be listed")
    }
}

fn versions(listing: &StoreListing, model: &str) -> Vec<String> {
    let model = &listing.models[model];
    model.versions.values().map(|version| version.folder.clone()).collect()
}

#[test]
fn models_and_versions_are_found_and_the_rest_is_named() {
    let mut world = World::new();
    world.write("a/model.yaml", "versions: all");
    world.write("a/v1.2/model.onnx", "x");
    world.write("a/1.10.0/sub/weights.bin", "xyz");
    world.write("a/latest/model.onnx", "x");
    world.write("a/.3.0.0.tmp/model.onnx", "x");
    world.write(".git/1/model.onnx", "x");
    world.write("not a name/1/model.onnx", "x");
    let listing = world.scan();
    assert_eq!(versions(&listing, "a"), ["v1.2", "1.10.0"]);
    let a = &listing.models["a"];
    assert_eq!(a.model_yaml.as_ref().map(|file| file.text.clone()), Some(Ok("versions: all".into())));
    assert_eq!(a.versions[&Version::new(1, 10, 0)].files["sub/weights.bin"].stamp.size, 3);
    assert!(a.problems[0].contains("'latest' is not a version"), "{:?}", a.problems);
    assert!(listing.problems[0].contains("'not a name'"), "{:?}", listing.problems);
    assert_eq!(listing.models.len(), 1);
}

#[test]
fn two_folders_of_one_version_are_refused() {
    let mut world = World::new();
    world.write("a/1/model.onnx", "x");
    world.write("a/v1.0.0/model.onnx", "x");
    let listing = world.scan();
    let refused = &listing.models["a"].versions[&Version::new(1, 0, 0)].refused;
    assert_eq!(refused.as_ref().map(|(reason, _)| *reason), Some("DUPLICATE_VERSION"));
    assert!(Arc::ptr_eq(&listing, &world.scan()), "and nothing is news");
}

#[test]
fn links_that_stay_inside_are_followed_and_others_refused() {
    let outside = tempfile::tempdir().expect("a folder");
    fs::write(outside.path().join("secret"), "s").expect("written");
    let mut world = World::new();
    // As Kubernetes lays out a volume.
    world.write("..2026_01/a/1/model.onnx", "x");
    symlink("..2026_01", world.path("..data")).expect("linked");
    symlink("..data/a", world.path("a")).expect("linked");
    world.write("b/1/model.onnx", "x");
    symlink(outside.path().join("secret"), world.path("b/1/data.bin")).expect("linked");
    symlink(Path::new("../../../secret"), world.path("b/1/other.bin")).expect("linked");
    symlink(outside.path(), world.path("c")).expect("linked");
    let listing = world.scan();
    assert_eq!(versions(&listing, "a"), ["1"]);
    let b = &listing.models["b"].versions[&Version::new(1, 0, 0)];
    assert_eq!(b.refused.as_ref().map(|(reason, _)| *reason), Some("UNSUPPORTED_FILE"));
    assert!(!listing.models.contains_key("c"), "and said: {:?}", listing.problems);
    assert_eq!(listing.problems.len(), 1);
}

#[test]
fn a_growing_folder_is_not_complete_until_it_stands_still() {
    let mut world = World::new();
    let complete = |listing: &StoreListing| listing.models["a"].versions[&Version::new(1, 0, 0)].complete;
    world.write("a/1/model.onnx", "x");
    assert!(!complete(&world.scan()));
    world.write("a/1/model.onnx", "xx");
    assert!(!complete(&world.scan_after(3).expect("listed")), "it changed meanwhile");
    assert!(!complete(&world.scan_after(1).expect("listed")));
    let settled = world.scan_after(1).expect("listed");
    assert!(complete(&settled));
    assert!(Arc::ptr_eq(&settled, &world.scan()), "what did not change is the same");
}

#[test]
fn what_is_gone_once_is_still_there_and_an_empty_store_is_not_believed() {
    let mut world = World::new();
    world.write("a/1/model.onnx", "x");
    world.write("a/2/model.onnx", "x");
    world.write("b/1/model.onnx", "x");
    world.scan();
    fs::remove_dir_all(world.path("a/1")).expect("removed");
    fs::remove_dir_all(world.path("b")).expect("removed");
    let first = world.scan();
    assert_eq!(versions(&first, "a"), ["1", "2"]);
    assert!(first.models.contains_key("b"));
    let second = world.scan();
    assert_eq!(versions(&second, "a"), ["2"]);
    assert!(!second.models.contains_key("b"));
    fs::remove_dir_all(world.path("a")).expect("removed");
    assert!(world.scan_after(1).is_err());
    assert!(world.scan_after(1).is_err());
}

#[test]
fn a_pipe_does_not_stop_the_look() {
    let mut world = World::new();
    world.write("a/1/model.onnx", "x");
    let pipe = world.path("a/1/pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).expect("made");
    let listing = world.scan();
    assert!(listing.models["a"].versions[&Version::new(1, 0, 0)].refused.is_some());
}

#[test]
fn what_stands_still_is_told_by_its_stamps_and_every_change_is_seen() {
    let mut world = World::new();
    world.write("a/1/model.onnx", "x");
    world.write("a/1/sub/weights.bin", "xyz");
    world.write("b/1/model.onnx", "x");
    let outside = tempfile::NamedTempFile::new().expect("a file");
    // Long after the files were written.
    let wall = SystemTime::now() + Duration::from_secs(3600);
    let one = Version::new(1, 0, 0);
    let mut last = world.scanner.scan(world.now, wall).expect("it can be listed");
    let mut changed = |world: &mut World| {
        let listing = world.scanner.scan(world.now, wall).expect("it can be listed");
        let is_same =
            |model: &str| Arc::ptr_eq(&listing.models[model].versions[&one], &last.models[model].versions[&one]);
        assert!(is_same("b"), "nobody touched it");
        let changed = !is_same("a");
        last = listing;
        changed
    };
    assert!(!changed(&mut world));
    world.write("a/1/model.onnx", "y");
    assert!(changed(&mut world), "written in place");
    assert!(!changed(&mut world));
    world.write("a/1/sub/more.bin", "");
    assert!(changed(&mut world), "added below");
    fs::remove_file(world.path("a/1/sub/more.bin")).expect("removed");
    assert!(changed(&mut world), "removed below");
    fs::remove_file(world.path("a/1/model.onnx")).expect("removed");
    symlink(outside.path(), world.path("a/1/model.onnx")).expect("linked");
    assert!(changed(&mut world), "a link that leads out");
}

/// The one version of model `a`.
fn version(listing: &StoreListing) -> &VersionFolder {
    &listing.models["a"].versions[&Version::new(1, 0, 0)]
}

/// Files a minute old to our clocks, with times of modification that lie far back: what tar, rsync -a and cp -p leave.
#[test]
fn times_that_a_copy_preserved_do_not_make_it_look_old() {
    let mut world = World::new();
    world.write("a/1/model.onnx", "x");
    let file = fs::File::options().write(true).open(world.path("a/1/model.onnx")).expect("opened");
    file.set_modified(UNIX_EPOCH).expect("set back");
    fs::File::open(world.path("a/1")).and_then(|folder| folder.set_modified(UNIX_EPOCH)).expect("set back");
    let wall = SystemTime::now();
    let mut complete = |wall: SystemTime| version(&world.scanner.scan(world.now, wall).expect("listed")).complete;
    assert!(!complete(wall), "it was written just now, whatever its times say");
    assert!(complete(wall + Duration::from_secs(60)));
}

#[test]
fn a_clock_that_is_set_back_unmakes_nothing_and_delays_by_the_settle_time_at_most() {
    let mut world = World::new();
    world.write("a/1/model.onnx", "x");
    let wall = SystemTime::now() + Duration::from_secs(60);
    let first = world.scanner.scan(world.now, wall).expect("listed");
    assert!(version(&first).complete);
    let hour = Duration::from_secs(3600);
    assert!(Arc::ptr_eq(&first, &world.scanner.scan(world.now, wall - hour).expect("listed")), "nothing is news");
    world.write("a/1/model.onnx", "xx");
    let mut complete = |seconds: u64| {
        world.now += Duration::from_secs(seconds);
        version(&world.scanner.scan(world.now, wall - hour).expect("listed")).complete
    };
    assert!(!complete(0));
    assert!(!complete(1));
    assert!(complete(1));
}

#[test]
fn what_was_renamed_into_place_is_complete_unless_it_was_written_to_since() {
    let renamed = |completeness: Completeness, path: &str, change: &dyn Fn(&World)| {
        let mut world = World::new();
        world.scanner.config.completeness = completeness;
        world.write("staging/1/model.onnx", "x");
        world.tick();
        fs::rename(world.path("staging"), world.path("a")).expect("renamed");
        change(&world);
        let mut renames = Renames::default();
        renames.take_arrival(path);
        version(&world.scanner.scan_with(&renames, world.now, UNIX_EPOCH).expect("listed")).complete
    };
    assert!(renamed(Completeness::Settle, "a", &|_| ()));
    assert!(!renamed(Completeness::Settle, "b", &|_| ()), "another one");
    assert!(!renamed(Completeness::Manifest, "a", &|_| ()), "a manifest is asked for");
    // The event of a write may come late; what it did is seen, at once and later.
    let written = |world: &World| world.write("a/1/model.onnx", "xy");
    assert!(!renamed(Completeness::Settle, "a", &written));
    assert!(!renamed(Completeness::Settle, "a", &|world| world.write("a/1/more.bin", "y")));
    assert!(!renamed(Completeness::Settle, "a", &|world| {
        world.tick();
        written(world);
    }));
    assert!(!renamed(Completeness::Settle, "a", &|world| {
        fs::rename(world.path("a"), world.path("away")).expect("renamed");
        symlink("away", world.path("a")).expect("linked");
    }));
}

#[test]
fn a_temporary_file_that_grows_in_a_version_keeps_it_from_settling() {
    for hidden in ["a/1/.model.bin.Xy12", "a/1/.~tmp~/model.bin"] {
        let mut world = World::new();
        world.write("a/1/model.onnx", "x");
        let mut text = String::new();
        for _ in 0..5 {
            text.push('x');
            world.write(hidden, &text);
            assert!(!version(&world.scan_after(1).expect("listed")).complete, "{hidden}");
        }
        world.scan_after(1).expect("listed");
        let settled = world.scan_after(2).expect("listed");
        assert!(version(&settled).complete, "{hidden} stands still");
        assert_eq!(version(&settled).files.len(), 1);
        world.write(hidden, "later");
        assert!(version(&world.scan_after(1).expect("listed")).complete, "what was taken stays");
    }
}

#[test]
fn a_route_that_is_gone_or_empty_is_believed_at_the_second_look() {
    for gone in [None, Some("")] {
        let root = tempfile::tempdir().expect("a folder");
        let route = root.path().join("m/route.yaml");
        std::fs::create_dir(root.path().join("m")).expect("made");
        std::fs::write(&route, "stable: 1.0.0").expect("written");
        let mut scanner = Scanner::new(Config::new(root.path()));
        let mut text = || {
            let listing = scanner.scan(Instant::now(), SystemTime::now()).expect("it can be listed");
            let file = listing.models["m"].route_yaml.as_ref().map(|file| file.text.clone().expect("readable"));
            (file.unwrap_or_default().to_string(), scanner.is_doubtful())
        };
        assert_eq!(text(), ("stable: 1.0.0".into(), false));
        match gone {
            None => std::fs::remove_file(&route).expect("removed"),
            Some(empty) => std::fs::write(&route, empty).expect("written"),
        }
        assert_eq!(text(), ("stable: 1.0.0".into(), true));
        assert_eq!(text(), (String::new(), false));
    }
}

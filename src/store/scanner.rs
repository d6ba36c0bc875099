//! One look at a store after the other, through a handle that cannot leave its root.
//!
//! A link inside that leads out of the root is refused; one that stays inside (Kubernetes' `..data`) is followed, and so is
//! the root itself. Names that begin with a dot are never looked at.

use std::{
    collections::{BTreeMap, HashSet},
    io,
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use cap_std::{
    ambient_authority,
    fs::{Dir, DirEntry, Metadata},
};

use super::{
    Config,
    files::{read_text, say, stamp_of},
    layout::{FILES_MAX, ModelFolder, Moment, Stamp, StoreFile, StoreListing, TextFile, VersionFolder},
    single,
};
use crate::model::{ModelName, Version};

/// Looks at a store, and remembers the last look.
pub struct Scanner {
    config: Config,
    last: Arc<StoreListing>,
    /// Models and versions that were gone at the last look, which is not enough to believe it.
    gone_once: HashSet<(ModelName, Option<Version>)>,
}

/// What one look needs everywhere.
struct Look<'a> {
    root: &'a Dir,
    config: &'a Config,
    moment: Moment,
}

/// Deep enough for anybody, and an end for links that go round.
const DEPTH_MAX: usize = 8;

// === impl Scanner ===

impl Scanner {
    pub fn new(config: Config) -> Self {
        Self {
            config,
            last: Arc::default(),
            gone_once: HashSet::new(),
        }
    }

    /// Lists the store. What was there before and is gone now stays in the listing until a second look confirms it; a look
    /// that shows no model at all, where there were some, is an error.
    pub fn scan(&mut self, now: Instant, wall: SystemTime) -> io::Result<Arc<StoreListing>> {
        let moment = Moment {
            now,
            wall_ns: nanoseconds(wall),
        };
        let seen = if self.config.root.is_file() {
            single::list(&self.config, &self.last, moment)?
        } else {
            // Opened anew each time: the store may have been mounted again, or the root be a link that moved.
            let root = Dir::open_ambient_dir(&self.config.root, ambient_authority())?;
            let look = Look {
                root: &root,
                config: &self.config,
                moment,
            };
            look.store(&self.last)?
        };
        if seen.models.is_empty() && !self.last.models.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "the store shows no model at all; what is loaded stays",
            ));
        }
        let listing = Arc::new(self.with_doubtful(seen));
        if !listing.is_same(&self.last) {
            self.last = listing;
        }
        Ok(self.last.clone())
    }

    /// Adds what is gone for the first time.
    fn with_doubtful(&mut self, mut seen: StoreListing) -> StoreListing {
        let before = std::mem::take(&mut self.gone_once);
        let mut doubt = |model: &ModelName, version: Option<Version>| {
            let key = (model.clone(), version);
            let first = !before.contains(&key);
            if first {
                self.gone_once.insert(key);
            }
            first
        };
        for (name, old) in &self.last.models {
            let Some(new) = seen.models.get_mut(name) else {
                if doubt(name, None) {
                    seen.models.insert(name.clone(), old.clone());
                }
                continue;
            };
            let gone = old
                .versions
                .iter()
                .filter(|(number, _)| !new.versions.contains_key(number))
                .filter(|(number, _)| doubt(name, Some(**number)));
            let gone: Vec<_> = gone.map(|(number, folder)| (*number, folder.clone())).collect();
            if !gone.is_empty() {
                Arc::make_mut(new).versions.extend(gone);
            }
            if new.is_same(old) {
                *new = old.clone();
            }
        }
        seen
    }
}

// === impl Look ===

impl Look<'_> {
    fn store(&self, last: &StoreListing) -> io::Result<StoreListing> {
        let mut listing = StoreListing::default();
        for entry in self.root.entries()? {
            let entry = entry?;
            let Some(name) = utf8_name(&entry, &mut listing.problems) else {
                continue;
            };
            if name.starts_with('.') || !self.config.models.admits(&name) {
                continue;
            }
            match self.metadata(&entry, &name) {
                Ok(metadata) if metadata.is_dir() => {}
                Ok(_) => continue,
                Err(error) => {
                    listing.problems.push(format!("'{name}': {}", say(&error)));
                    continue;
                }
            }
            let Ok(model) = ModelName::new(&name) else {
                listing.problems.push(format!(
                    "folder '{name}' is not a model: a name has 1 to 128 of A-Z a-z 0-9 . _ -"
                ));
                continue;
            };
            let before = last.models.get(&model);
            let folder = self.model(&name, before.map(Arc::as_ref));
            match folder {
                Ok(folder) => match before {
                    Some(before) if before.is_same(&folder) => listing.models.insert(model, before.clone()),
                    _ => listing.models.insert(model, Arc::new(folder)),
                },
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                // What cannot be read now has not gone: the last good look at it holds.
                Err(error) => {
                    let mut folder = before.map(|before| (**before).clone()).unwrap_or_default();
                    folder.problems = vec![format!("the folder cannot be read: {}", say(&error))];
                    listing.models.insert(model, Arc::new(folder))
                }
            };
        }
        listing.problems.sort();
        Ok(listing)
    }

    fn model(&self, model: &str, last: Option<&ModelFolder>) -> io::Result<ModelFolder> {
        let mut folder = ModelFolder::default();
        for entry in self.root.read_dir(model)? {
            let entry = entry?;
            let Some(name) = utf8_name(&entry, &mut folder.problems) else {
                continue;
            };
            if name.starts_with('.') {
                continue;
            }
            let path = format!("{model}/{name}");
            let metadata = match self.metadata(&entry, &path) {
                Ok(metadata) => metadata,
                Err(error) => {
                    folder.problems.push(format!("'{name}': {}", say(&error)));
                    continue;
                }
            };
            if name == "model.yaml" {
                let before = last.and_then(|last| last.model_yaml.as_ref());
                folder.model_yaml = Some(self.text(&path, &metadata, before));
            }
            if !metadata.is_dir() {
                continue;
            }
            let Ok(number) = name.parse::<Version>() else {
                folder.problems.push(format!(
                    "folder '{name}' is not a version: one to four numbers with dots between them"
                ));
                continue;
            };
            let before = last.and_then(|last| last.versions.get(&number));
            match self.version(&path, &name, before) {
                Ok(version) => insert_version(&mut folder, number, version),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    folder
                        .problems
                        .push(format!("version '{name}' cannot be read: {}", say(&error)));
                    folder.versions.extend(before.map(|before| (number, before.clone())));
                }
            }
        }
        folder.problems.sort();
        for (number, version) in &mut folder.versions {
            match last.and_then(|last| last.versions.get(number)) {
                Some(before) if before.is_same(version) => *version = before.clone(),
                _ => {}
            }
        }
        Ok(folder)
    }

    fn version(&self, path: &str, name: &str, last: Option<&Arc<VersionFolder>>) -> io::Result<Arc<VersionFolder>> {
        let mut version = VersionFolder {
            folder: name.to_owned(),
            files: BTreeMap::new(),
            version_yaml: None,
            refused: None,
            newest_ns: i64::MIN,
            steady_since: self.moment.now,
            complete: false,
        };
        self.walk(path, "", 0, &mut version)?;
        if let Some(file) = version.files.get("version.yaml") {
            let before = last.and_then(|last| last.version_yaml.as_ref());
            version.version_yaml = Some(self.text_stamped(&file.path, file.stamp, before));
        }
        Ok(finished(version, last, self.config, self.moment))
    }

    /// Takes in the files of one folder of a version and of those below it.
    fn walk(&self, path: &str, prefix: &str, depth: usize, version: &mut VersionFolder) -> io::Result<()> {
        if depth > DEPTH_MAX {
            version.refused = Some((
                "UNSUPPORTED_FILE",
                format!("folders are nested deeper than {DEPTH_MAX}"),
            ));
            return Ok(());
        }
        let folder = self.root.metadata(path)?;
        version.newest_ns = version.newest_ns.max(stamp_of(&folder).modified_ns);
        for entry in self.root.read_dir(path)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else {
                version.refused = Some(("UNSUPPORTED_FILE", "a file's name is not UTF-8".into()));
                continue;
            };
            if name.starts_with('.') {
                continue;
            }
            let (path, name) = (format!("{path}/{name}"), format!("{prefix}{name}"));
            let metadata = match self.metadata(&entry, &path) {
                Ok(metadata) => metadata,
                Err(error) => {
                    version.refused = Some(("UNSUPPORTED_FILE", format!("'{name}': {}", say(&error))));
                    continue;
                }
            };
            if metadata.is_dir() {
                self.walk(&path, &format!("{name}/"), depth + 1, version)?;
            } else if !metadata.is_file() {
                version.refused = Some(("UNSUPPORTED_FILE", format!("'{name}' is not a plain file")));
            } else if version.files.len() >= FILES_MAX {
                version.refused = Some(("UNSUPPORTED_FILE", format!("it has more than {FILES_MAX} files")));
                return Ok(());
            } else {
                let stamp = stamp_of(&metadata);
                version.newest_ns = version.newest_ns.max(stamp.changed_ns);
                version.files.insert(name, StoreFile { path, stamp });
            }
        }
        Ok(())
    }

    /// Of what an entry leads to.
    fn metadata(&self, entry: &DirEntry, path: &str) -> io::Result<Metadata> {
        match entry.file_type()?.is_symlink() {
            true => self.root.metadata(path),
            false => entry.metadata(),
        }
    }

    fn text(&self, path: &str, metadata: &Metadata, last: Option<&TextFile>) -> TextFile {
        self.text_stamped(path, stamp_of(metadata), last)
    }

    fn text_stamped(&self, path: &str, stamp: Stamp, last: Option<&TextFile>) -> TextFile {
        match last {
            Some(last) if last.is_still(stamp) => last.clone(),
            _ => TextFile {
                stamp,
                read_ns: self.moment.wall_ns,
                text: read_text(self.root, path).map(Into::into),
            },
        }
    }
}

/// The end of every look at a version: since when it stands still, and whether it may be taken.
pub(super) fn finished(
    mut version: VersionFolder,
    last: Option<&Arc<VersionFolder>>,
    config: &Config,
    moment: Moment,
) -> Arc<VersionFolder> {
    let unchanged = last.filter(|last| last.has_files_of(&version));
    if let Some(last) = unchanged {
        version.steady_since = last.steady_since;
    }
    version.complete =
        unchanged.is_some_and(|last| last.complete) || version.is_complete(moment, config.settle, config.completeness);
    Arc::new(version)
}

fn insert_version(folder: &mut ModelFolder, number: Version, version: Arc<VersionFolder>) {
    let Some(other) = folder.versions.get_mut(&number) else {
        folder.versions.insert(number, version);
        return;
    };
    // A folder's entries come in any order; the answer must not depend on it.
    let (first, second) = match other.folder < version.folder {
        true => (&*other, &version),
        false => (&version, &*other),
    };
    let sentence = format!(
        "folders '{}' and '{}' are the same version {number}",
        first.folder, second.folder
    );
    let both = VersionFolder {
        refused: Some(("DUPLICATE_VERSION", sentence)),
        ..(**first).clone()
    };
    *other = Arc::new(both);
}

fn utf8_name(entry: &DirEntry, problems: &mut Vec<String>) -> Option<String> {
    match entry.file_name().into_string() {
        Ok(name) => Some(name),
        Err(name) => {
            problems.push(format!("the name {name:?} is not UTF-8"));
            None
        }
    }
}

fn nanoseconds(wall: SystemTime) -> i64 {
    let since = wall.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
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
        assert_eq!(
            a.model_yaml.as_ref().map(|file| file.text.clone()),
            Some(Ok("versions: all".into()))
        );
        assert_eq!(
            a.versions[&Version::new(1, 10, 0)].files["sub/weights.bin"].stamp.size,
            3
        );
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
}

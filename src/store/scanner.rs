//! One look at a store after the other, through a handle that cannot leave its root.
//!
//! A link inside that leads out of the root is refused; one that stays inside (Kubernetes' `..data`) is followed, and so is
//! the root itself. Names that begin with a dot are never looked at.

use std::{
    io,
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use cap_std::{
    ambient_authority,
    fs::{Dir, DirEntry, Metadata},
};

use super::{
    Completeness, Config,
    files::{has_stamp, read_text, say, stamp_of, utf8_name},
    layout::{FILES_MAX, ModelFolder, Moment, Stamp, StoreFile, StoreListing, TextFile, VersionFolder},
    looks::Looks,
    renames::Renames,
    single,
};
use crate::model::{ModelName, Version};

/// Looks at a store, and remembers the last look.
pub struct Scanner {
    config: Config,
    looks: Looks,
}

/// What one look needs everywhere.
struct Look<'a> {
    root: &'a Dir,
    config: &'a Config,
    moment: Moment,
    renames: &'a Renames,
}

/// Deep enough for anybody, and an end for links that go round.
pub(super) const DEPTH_MAX: usize = 8;

// === impl Scanner ===

impl Scanner {
    pub fn new(config: Config) -> Self {
        Self { config, looks: Looks::default() }
    }

    /// Lists the store. What was there before and is gone now stays in the listing until a second look confirms it; a look
    /// that shows no model at all, where there were some, is an error.
    pub fn scan(&mut self, now: Instant, wall: SystemTime) -> io::Result<Arc<StoreListing>> {
        self.scan_with(&Renames::default(), now, wall)
    }

    /// `scan`, where it is known which folders were renamed into place: their versions need not settle.
    pub fn scan_with(&mut self, renames: &Renames, now: Instant, wall: SystemTime) -> io::Result<Arc<StoreListing>> {
        let moment = Moment { now, wall_ns: nanoseconds(wall) };
        let root = self.config.folder();
        let seen = if root.is_file() {
            single::list(&self.config, self.looks.last(), moment)?
        } else {
            // Opened anew each time: the store may have been mounted again, or the root be a link that moved.
            let root = Dir::open_ambient_dir(root, ambient_authority())?;
            let look = Look { root: &root, config: &self.config, moment, renames };
            look.store(self.looks.last())?
        };
        self.looks.take(seen)
    }

    /// Whether something was gone at the last look, so that another is due soon.
    pub fn is_doubtful(&self) -> bool {
        self.looks.is_doubtful()
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
                listing.problems.push(not_a_model(&name));
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
            if name == "route.yaml" {
                let before = last.and_then(|last| last.route_yaml.as_ref());
                folder.route_yaml = Some(self.text(&path, &metadata, before));
            }
            if !metadata.is_dir() {
                continue;
            }
            let Ok(number) = name.parse::<Version>() else {
                folder.problems.push(not_a_version(&name));
                continue;
            };
            let before = last.and_then(|last| last.versions.get(&number));
            match self.version(&path, &name, before) {
                Ok(version) => insert_version(&mut folder, number, version),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    folder.problems.push(format!("version '{name}' cannot be read: {}", say(&error)));
                    folder.versions.extend(before.map(|before| (number, before.clone())));
                }
            }
        }
        folder.problems.sort();
        keep_unchanged(&mut folder, last);
        Ok(folder)
    }

    fn version(&self, path: &str, name: &str, last: Option<&Arc<VersionFolder>>) -> io::Result<Arc<VersionFolder>> {
        if let Some(last) = last
            && last.folder == name
            && self.stands_still(last)
        {
            return Ok(last.clone());
        }
        let mut version = VersionFolder::new(name, self.moment.now);
        version.walk.at_ns = self.moment.wall_ns;
        self.walk(path, "", 0, &mut version)?;
        if let Some(file) = version.files.get("version.yaml") {
            let before = last.and_then(|last| last.version_yaml.as_ref());
            version.version_yaml = Some(self.text_stamped(&file.path, file.stamp, before));
        }
        let renamed = self.was_renamed_here(path, &version);
        Ok(finished(version, last, renamed, self.config, self.moment))
    }

    /// Whether the version, or its model with it, was renamed into place and is as it was then: a rename stamps the folder, and
    /// what comes after it something inside. So events that come late, or not at all, do no harm; and what was written in the
    /// same tick of the clock as the rename has to settle.
    fn was_renamed_here(&self, path: &str, version: &VersionFolder) -> bool {
        let Some(folder) = self.renames.through(path) else {
            return false;
        };
        let Ok(metadata) = self.root.symlink_metadata(folder) else {
            return false;
        };
        // A link that was renamed says nothing of what it leads to.
        let stamp = stamp_of(&metadata);
        metadata.is_dir() && version.newest_ns.max(stamp.modified_ns) < stamp.changed_ns
    }

    /// Whether a version is what it was, as far as stamps tell: a few system calls, where going through it takes many.
    fn stands_still(&self, last: &VersionFolder) -> bool {
        let files = last.files.values().map(|file| (&file.path, file.stamp));
        let folders = last.walk.folders.iter().map(|(path, stamp)| (path, *stamp));
        let mut stamps = folders.chain(files);
        last.can_be_told_by_stamps() && stamps.all(|(path, stamp)| has_stamp(self.root, path, stamp))
    }

    /// Takes in the files of one folder of a version and of those below it.
    fn walk(&self, path: &str, prefix: &str, depth: usize, version: &mut VersionFolder) -> io::Result<()> {
        if depth > DEPTH_MAX {
            version.refused = Some(("UNSUPPORTED_FILE", format!("folders are nested deeper than {DEPTH_MAX}")));
            return Ok(());
        }
        let stamp = stamp_of(&self.root.metadata(path)?);
        version.newest_ns = version.newest_ns.max(stamp.modified_ns);
        version.walk.folders.insert(path.to_owned(), stamp);
        for entry in self.root.read_dir(path)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else {
                version.refused = Some(("UNSUPPORTED_FILE", "a file's name is not UTF-8".into()));
                continue;
            };
            if name.starts_with('.') {
                self.walk_hidden(&entry, &format!("{path}/{name}"), version);
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

    /// What has a dot's name is no part of a version, but while it changes somebody is at work there: rsync writes a file
    /// under such a name, or in such a folder, for as long as the file takes.
    fn walk_hidden(&self, entry: &DirEntry, path: &str, version: &mut VersionFolder) {
        // An entry that cannot be looked at has gone meanwhile, as such do.
        let Ok(metadata) = entry.metadata() else {
            return;
        };
        version.take_hidden(path, stamp_of(&metadata));
        let inside = metadata.is_dir().then(|| self.root.read_dir(path)).and_then(Result::ok);
        for entry in inside.into_iter().flatten().flatten() {
            if let Ok(metadata) = entry.metadata() {
                version.take_hidden(&format!("{path}/{}", entry.file_name().to_string_lossy()), stamp_of(&metadata));
            }
        }
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
            _ => TextFile { stamp, read_ns: self.moment.wall_ns, text: read_text(self.root, path).map(Into::into) },
        }
    }
}

/// The end of every look at a version: since when it stands still, and whether it may be taken.
pub(super) fn finished(
    mut version: VersionFolder,
    last: Option<&Arc<VersionFolder>>,
    renamed: bool,
    config: &Config,
    moment: Moment,
) -> Arc<VersionFolder> {
    let unchanged = last.filter(|last| last.has_files_of(&version));
    if let Some(last) = unchanged.filter(|last| last.walk.hidden == version.walk.hidden) {
        version.steady_since = last.steady_since;
    }
    let renamed = renamed && config.completeness == Completeness::Settle && !version.files.is_empty();
    version.complete = unchanged.is_some_and(|last| last.complete)
        || renamed
        || version.is_complete(moment, config.settle, config.completeness);
    Arc::new(version)
}

/// Versions that are what they were become the same `Arc` again.
pub(super) fn keep_unchanged(folder: &mut ModelFolder, last: Option<&ModelFolder>) {
    for (number, version) in &mut folder.versions {
        match last.and_then(|last| last.versions.get(number)) {
            Some(before) if before.is_same(version) => *version = before.clone(),
            _ => {}
        }
    }
}

pub(super) fn not_a_model(folder: &str) -> String {
    format!("folder '{folder}' is not a model: a name has 1 to 128 of A-Z a-z 0-9 . _ -")
}

pub(super) fn not_a_version(folder: &str) -> String {
    format!("folder '{folder}' is not a version: one to four numbers with dots between them")
}

pub(super) fn insert_version(folder: &mut ModelFolder, number: Version, version: Arc<VersionFolder>) {
    let Some(other) = folder.versions.get_mut(&number) else {
        folder.versions.insert(number, version);
        return;
    };
    // A folder's entries come in any order; the answer must not depend on it.
    let (first, second) = match other.folder < version.folder {
        true => (&*other, &version),
        false => (&version, &*other),
    };
    let sentence = format!("folders '{}' and '{}' are the same version {number}", first.folder, second.folder);
    let both = VersionFolder { refused: Some(("DUPLICATE_VERSION", sentence)), ..(**first).clone() };
    *other = Arc::new(both);
}

pub(super) fn nanoseconds(wall: SystemTime) -> i64 {
    let since = wall.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;

//! Which folders were renamed into place, as the events of the file system tell.
//!
//! A folder that is renamed is whole at once: whoever renames it wrote it elsewhere. That holds until something inside is
//! written, or the folder goes. An event that never comes, because the folder above was made a moment ago and is not watched
//! yet, costs the settle time and no more. Paths are those under the root of the store: `m` for a model, `m/1` for a version.

use std::collections::HashMap;

use super::layout::StoreListing;

/// Plain data: events are told to it, a look asks it.
#[derive(Clone, Debug, Default)]
pub struct Renames {
    /// Models' and versions' folders, and the number of the event that brought each.
    arrived: HashMap<String, u64>,
    /// Versions in such folders, and the number of the last event that wrote into each.
    written: HashMap<String, u64>,
    events: u64,
}

// === impl Renames ===

impl Renames {
    /// Something was renamed to `path`. Inside a version that is writing: rsync renames file by file.
    pub fn take_arrival(&mut self, path: &str) {
        if depth(path) > 2 {
            return self.take_write(path);
        }
        self.events += 1;
        self.arrived.insert(path.to_owned(), self.events);
    }

    /// `path` was made or written, in place.
    pub fn take_write(&mut self, path: &str) {
        let Some(version) = version_of(path) else {
            // A model's folder, made anew.
            self.arrived.remove(path);
            return;
        };
        if self.through(version).is_some() {
            self.events += 1;
            self.written.insert(version.to_owned(), self.events);
        }
    }

    /// `path` was removed, or renamed to somewhere else.
    pub fn take_departure(&mut self, path: &str) {
        self.arrived.remove(path);
        if depth(path) > 2 {
            self.take_write(path);
        }
    }

    /// Events were lost, and one of them may have been a write.
    pub fn forget_all(&mut self) {
        self.arrived.clear();
        self.written.clear();
    }

    /// The folder whose renaming brought this version (`m/1`, by the names of the folders), unless it was written to since:
    /// its own or its model's.
    pub(super) fn through<'a>(&self, version: &'a str) -> Option<&'a str> {
        let model = version.split('/').next().unwrap_or_default();
        let arrivals = [version, model].into_iter().filter_map(|path| Some((*self.arrived.get(path)?, path)));
        let (arrived, path) = arrivals.max()?;
        let written = self.written.get(version).copied().unwrap_or_default();
        (arrived > written).then_some(path)
    }

    /// Lets go of what a look that knew `known` has no more use for: what it took, and what it did not find.
    pub(super) fn forget_taken(&mut self, known: &Renames, listing: &StoreListing) {
        let waits: Vec<String> = listing
            .models
            .iter()
            .flat_map(|(model, folder)| folder.versions.values().map(move |version| (model, version)))
            .filter(|(_, version)| !version.complete)
            .map(|(model, version)| format!("{model}/{}", version.folder))
            .collect();
        self.arrived.retain(|path, event| {
            let is_above = |version: &String| version.strip_prefix(path.as_str()).is_some_and(is_end_of_name);
            *event > known.events || waits.iter().any(is_above)
        });
        let arrived = &self.arrived;
        self.written.retain(|version, _| {
            let model = version.split('/').next().unwrap_or_default();
            arrived.contains_key(version) || arrived.contains_key(model)
        });
    }
}

fn is_end_of_name(rest: &str) -> bool {
    rest.is_empty() || rest.starts_with('/')
}

fn depth(path: &str) -> usize {
    path.split('/').count()
}

/// `m/1` of `m/1/sub/file`.
fn version_of(path: &str) -> Option<&str> {
    let (model, rest) = path.split_once('/')?;
    let version = rest.split('/').next()?;
    path.get(..model.len() + 1 + version.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renamed_folder_is_whole_until_it_is_written_to() {
        let mut renames = Renames::default();
        renames.take_arrival("m/1");
        assert_eq!(renames.through("m/1"), Some("m/1"));
        assert_eq!(renames.through("m/10"), None);
        renames.take_write("m/10/model.onnx");
        renames.take_write("m/model.yaml");
        assert_eq!(renames.through("m/1"), Some("m/1"), "others' affairs");
        renames.take_write("m/1/sub/file");
        assert_eq!(renames.through("m/1"), None);
        renames.take_departure("m/1");
        renames.take_arrival("m/1");
        assert_eq!(renames.through("m/1"), Some("m/1"), "another one was renamed there");
    }

    #[test]
    fn a_renamed_model_brings_its_versions_and_not_those_that_are_made_later() {
        let mut renames = Renames::default();
        renames.take_arrival("m");
        assert_eq!(renames.through("m/1"), Some("m"));
        renames.take_write("m/2");
        renames.take_write("m/2/model.onnx");
        assert_eq!(renames.through("m/2"), None);
        assert_eq!(renames.through("m/1"), Some("m"));
        renames.take_arrival("m/2");
        assert_eq!(renames.through("m/2"), Some("m/2"));
        renames.take_write("m");
        assert_eq!(renames.through("m/1"), None, "made anew under the same name");
    }

    #[test]
    fn files_that_are_renamed_into_a_version_are_writes() {
        let mut renames = Renames::default();
        renames.take_arrival("m/1/model.onnx");
        assert_eq!(renames.through("m/1"), None);
        renames.take_arrival("m/1");
        renames.take_arrival("m/1/model.onnx");
        assert_eq!(renames.through("m/1"), None);
    }

    #[test]
    fn what_a_look_took_or_did_not_find_is_forgotten_and_what_came_meanwhile_is_not() {
        let mut renames = Renames::default();
        renames.take_arrival("m");
        renames.take_write("m/2/model.onnx");
        let known = renames.clone();
        renames.take_arrival("n/1");
        renames.forget_taken(&known, &StoreListing::default());
        assert_eq!(renames.through("m/1"), None);
        assert_eq!(renames.through("n/1"), Some("n/1"));
        assert!(renames.written.is_empty());
    }
}

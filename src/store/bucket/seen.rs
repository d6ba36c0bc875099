//! From the objects of a bucket to the same listing that a folder gives. Pure: `lister` does the requests.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{Entry, Etag};
use crate::{
    model::{ModelName, Version},
    store::{
        Config,
        layout::{FILES_MAX, ModelFolder, Moment, Stamp, StoreFile, StoreListing, TextFile, VersionFolder},
        scanner::{DEPTH_MAX, finished, insert_version, keep_unchanged, not_a_model, not_a_version},
    },
};

/// What one listing of a bucket gave, with the texts in it. It is kept on disk for a start without the bucket.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Seen {
    pub objects: Vec<SeenObject>,
    /// By path.
    pub texts: BTreeMap<String, SeenText>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SeenObject {
    pub path: String,
    pub size: u64,
    /// `state_of` its etag.
    pub state: u64,
    pub modified_ns: i64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct SeenText {
    pub size: u64,
    pub state: u64,
    /// Or why it cannot be read.
    pub text: Result<Arc<str>, String>,
}

/// The stamp of an object: its clock says nothing, only its etag does.
pub fn stamp(size: u64, state: u64) -> Stamp {
    Stamp { size, modified_ns: 0, changed_ns: 0, inode: state }
}

/// Whether an object has the stamp of a listed file.
pub fn has_stamp(file: &StoreFile, size: u64, etag: &Etag) -> bool {
    file.stamp == stamp(size, etag.state())
}

/// The texts that a listing is read with.
pub(super) fn wanted_texts<'a>(objects: &'a [SeenObject], config: &Config) -> impl Iterator<Item = &'a SeenObject> {
    let wanted = move |object: &&SeenObject| {
        let parts: Vec<&str> = object.path.split('/').collect();
        let is_model = |name: &str| config.models.admits(name) && ModelName::new(name).is_ok();
        match parts[..] {
            [model, "model.yaml" | "route.yaml"] => is_model(model),
            [model, version, "version.yaml"] => is_model(model) && version.parse::<Version>().is_ok(),
            _ => false,
        }
    };
    objects.iter().filter(wanted)
}

// === impl Seen ===

impl Seen {
    /// By the rules of a folder: what begins with a dot is not looked at, what is no model or no version is named.
    pub fn listing(&self, config: &Config, last: &StoreListing, moment: Moment) -> StoreListing {
        let mut listing = StoreListing::default();
        for (name, objects) in self.folders() {
            if name.starts_with('.') || !config.models.admits(name) {
                continue;
            }
            let Ok(model) = ModelName::new(name) else {
                listing.problems.push(not_a_model(name));
                continue;
            };
            let before = last.models.get(&model);
            let folder = self.model(name, &objects, before.map(Arc::as_ref), config, moment);
            let folder = match before {
                Some(before) if before.is_same(&folder) => before.clone(),
                _ => Arc::new(folder),
            };
            listing.models.insert(model, folder);
        }
        listing.problems.sort();
        listing
    }

    /// The objects of each folder at the root, with what their names are inside.
    fn folders(&self) -> BTreeMap<&str, Vec<(&str, &SeenObject)>> {
        let inside = self.objects.iter().filter_map(|object| Some((object.path.split_once('/')?, object)));
        let mut folders: BTreeMap<&str, Vec<_>> = BTreeMap::new();
        for ((folder, rest), object) in inside {
            folders.entry(folder).or_default().push((rest, object));
        }
        folders
    }

    fn model(
        &self,
        model: &str,
        objects: &[(&str, &SeenObject)],
        last: Option<&ModelFolder>,
        config: &Config,
        moment: Moment,
    ) -> ModelFolder {
        let mut folder = ModelFolder {
            model_yaml: self.text(&format!("{model}/model.yaml")),
            route_yaml: self.text(&format!("{model}/route.yaml")),
            ..ModelFolder::default()
        };
        let mut versions: BTreeMap<&str, Vec<(&str, &SeenObject)>> = BTreeMap::new();
        for (name, object) in objects {
            if let Some((version, inside)) = name.split_once('/') {
                versions.entry(version).or_default().push((inside, object));
            }
        }
        for (name, objects) in versions.into_iter().filter(|(name, _)| !name.starts_with('.')) {
            let Ok(number) = name.parse::<Version>() else {
                folder.problems.push(not_a_version(name));
                continue;
            };
            let before = last.and_then(|last| last.versions.get(&number));
            let mut version = version_of(name, &objects, moment);
            version.version_yaml = self.text(&format!("{model}/{name}/version.yaml"));
            insert_version(&mut folder, number, finished(version, before, false, config, moment));
        }
        folder.problems.sort();
        keep_unchanged(&mut folder, last);
        folder
    }

    fn text(&self, path: &str) -> Option<TextFile> {
        let found = self.texts.get(path)?;
        Some(TextFile { stamp: stamp(found.size, found.state), read_ns: 0, text: found.text.clone() })
    }
}

fn version_of(name: &str, objects: &[(&str, &SeenObject)], moment: Moment) -> VersionFolder {
    let mut version = VersionFolder::new(name, moment.now);
    // Consoles make an empty object for a folder; it has the name of the folder.
    let folders: BTreeSet<&str> = objects.iter().filter_map(|(inside, _)| Some(inside.rsplit_once('/')?.0)).collect();
    for (inside, object) in objects {
        if inside.split('/').any(|part| part.starts_with('.')) || (object.size == 0 && folders.contains(inside)) {
            continue;
        }
        if inside.split('/').count() > DEPTH_MAX + 1 {
            version.refused = Some(("UNSUPPORTED_FILE", format!("folders are nested deeper than {DEPTH_MAX}")));
        } else if version.files.len() >= FILES_MAX {
            version.refused = Some(("UNSUPPORTED_FILE", format!("it has more than {FILES_MAX} files")));
        } else {
            version.newest_ns = version.newest_ns.max(object.modified_ns);
            let file = StoreFile { path: object.path.clone(), stamp: stamp(object.size, object.state) };
            version.files.insert((*inside).to_owned(), file);
        }
    }
    version
}

impl From<&Entry> for SeenObject {
    fn from(entry: &Entry) -> Self {
        Self { path: entry.path.clone(), size: entry.size, state: entry.etag.state(), modified_ns: entry.modified_ns }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn seen(paths: &[&str]) -> Seen {
        let object = |path: &&str| SeenObject { path: (*path).into(), size: 3, state: 1, modified_ns: 0 };
        Seen { objects: paths.iter().map(object).collect(), texts: BTreeMap::new() }
    }

    fn listing(seen: &Seen, config: &Config, last: &StoreListing) -> StoreListing {
        seen.listing(config, last, Moment { now: Instant::now(), wall_ns: 0 })
    }

    #[test]
    fn a_bucket_is_read_as_a_folder_is() {
        let paths = [
            "README.md",
            ".sconce/changed",
            "a/model.yaml",
            "a/v1.2/model.onnx",
            "a/1.10.0/sub/weights.bin",
            "a/1.10.0/.part",
            "a/latest/model.onnx",
            "a/.sconce/status",
            "not a name/1/model.onnx",
        ];
        let seen = seen(&paths);
        let config = Config::new(std::path::Path::new(""));
        let found = listing(&seen, &config, &StoreListing::default());
        let a = &found.models["a"];
        let files: Vec<_> = a.versions.values().flat_map(|version| version.files.values()).collect();
        assert_eq!(files.iter().map(|file| file.path.as_str()).collect::<Vec<_>>(), [paths[3], paths[4]]);
        assert!(a.problems.len() == 1 && a.problems[0].contains("'latest'"), "{:?}", a.problems);
        assert!(found.problems.len() == 1 && found.problems[0].contains("'not a name'"), "{:?}", found.problems);
        assert_eq!(wanted_texts(&seen.objects, &config).count(), 1);
        assert!(listing(&seen, &config, &found).is_same(&found));
    }

    #[test]
    fn an_object_with_another_etag_is_another_file() {
        let mut seen = seen(&["a/1/model.onnx"]);
        let config = Config::new(std::path::Path::new(""));
        let first = listing(&seen, &config, &StoreListing::default());
        seen.objects[0].state = 2;
        let second = listing(&seen, &config, &first);
        let version = |listing: &StoreListing| listing.models["a"].versions[&Version::new(1, 0, 0)].clone();
        assert!(!version(&second).has_files_of(&version(&first)));
    }

    #[test]
    fn it_reads_back_as_it_was_kept() {
        let mut seen = seen(&["a/model.yaml"]);
        let text = |text| SeenText { size: 1, state: 2, text };
        seen.texts.insert("a/model.yaml".into(), text(Ok("x".into())));
        seen.texts.insert("b/model.yaml".into(), text(Err("no".into())));
        let kept = serde_json::to_string(&seen).expect("plain data");
        assert_eq!(serde_json::from_str::<Seen>(&kept).expect("what was written"), seen);
    }
}

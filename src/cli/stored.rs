//! Examples as they lie in a store's folder, found without a server.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;

use crate::model::{Example, ExampleFile, ModelName, Version};

/// Which example of a store.
#[derive(Args, Clone)]
pub struct ExampleChoice {
    /// The folder of all models [env: SCONCE_MODEL_STORE] [default: model-store]
    #[arg(long, value_name = "DIR")]
    model_store: Option<PathBuf>,
    /// Which of the version's examples, from 0 (default: the first that fits)
    #[arg(long, value_name = "N")]
    index: Option<usize>,
}

/// One example of one version.
#[derive(Clone)]
pub struct Stored {
    pub model: ModelName,
    pub version: Version,
    /// Whether the commands take this version where none is named.
    pub is_highest: bool,
    /// The file it stands in, and its place there.
    pub file: PathBuf,
    pub index: usize,
    pub example: Example,
}

/// The folder that is meant where nobody says one.
pub const STORE: &str = "model-store";

// === impl ExampleChoice ===

impl ExampleChoice {
    /// The chosen example of `version`, or of the highest version that has any.
    pub fn find(&self, model: &str, version: Option<&str>, fits: impl Fn(&Example) -> bool) -> anyhow::Result<Stored> {
        let named = self.model_store.clone();
        let store = named.or_else(|| std::env::var_os("SCONCE_MODEL_STORE").map(PathBuf::from));
        let store = store.unwrap_or_else(|| STORE.into());
        match self.index {
            Some(index) => at(&store, model, version, index),
            None => find(&store, model, version, |_, example| fits(example)),
        }
    }
}

/// The first example that `wanted` takes, of `version` or else of the highest version that has examples.
pub fn find(
    store: &Path,
    model: &str,
    version: Option<&str>,
    wanted: impl Fn(usize, &Example) -> bool,
) -> anyhow::Result<Stored> {
    let all = all(store, model, version)?;
    let count = all.len();
    let place = all.first().map(|stored| stored.file.display().to_string());
    let found = all.into_iter().find(|stored| wanted(stored.index, &stored.example));
    found.with_context(|| {
        let place = place.unwrap_or_else(|| model.to_string());
        format!("{place}: none of its {count} examples is the one that is wanted")
    })
}

/// The example at that place, of `version` or else of the highest version that has examples.
fn at(store: &Path, model: &str, version: Option<&str>, index: usize) -> anyhow::Result<Stored> {
    let mut all = all(store, model, version)?;
    let Some(first) = all.first() else {
        bail!("{model} has no examples");
    };
    let (file, count) = (first.file.display().to_string(), all.len());
    match count {
        _ if index < count => Ok(all.swap_remove(index)),
        1 => bail!("{file}: it has 1 example, 0"),
        _ => bail!("{file}: it has {count} examples, 0 to {}", count - 1),
    }
}

/// Every example of `version` or else of the highest version that has examples.
pub fn all(store: &Path, model: &str, version: Option<&str>) -> anyhow::Result<Vec<Stored>> {
    let model = ModelName::new(model)?;
    let folder = store.join(model.as_str());
    let (version, file) = example_file(&folder, version.map(str::parse).transpose()?)?;
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let examples = ExampleFile::parse(&text).with_context(|| file.display().to_string())?;
    let (highest, _) = example_file(&folder, None)?;
    let stored = |(index, example)| Stored {
        model: model.clone(),
        version,
        is_highest: version == highest,
        file: file.clone(),
        index,
        example,
    };
    Ok(examples.examples.into_iter().enumerate().map(stored).collect())
}

fn example_file(folder: &Path, version: Option<Version>) -> anyhow::Result<(Version, PathBuf)> {
    let entries = std::fs::read_dir(folder)
        .with_context(|| format!("{} (--model-store names the folder of all models)", folder.display()))?;
    let versions = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        let found: Version = entry.file_name().to_str()?.parse().ok()?;
        let file = entry.path().join("example.json");
        (version.is_none_or(|version| version == found) && file.is_file()).then_some((found, file))
    });
    let highest = versions.max_by_key(|(version, _)| *version);
    highest.with_context(|| match version {
        Some(version) => format!("{}: version {version} has no example.json", folder.display()),
        None => format!("{}: no version has an example.json", folder.display()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> tempfile::TempDir {
        let store = tempfile::tempdir().unwrap();
        for version in ["v1.9", "1.10.0", "2.0.0", "junk"] {
            std::fs::create_dir_all(store.path().join("m").join(version)).unwrap();
        }
        let text = r#"{"examples": [{"request": {"rows": [{"a": 1}]}, "response": {"outputs": []}},
                                    {"request": {"inputs": []}, "response": {"outputs": []}}]}"#;
        for version in ["v1.9", "1.10.0", "junk"] {
            std::fs::write(store.path().join("m").join(version).join("example.json"), text).unwrap();
        }
        store
    }

    #[test]
    fn the_highest_version_with_an_example_is_taken() {
        let store = store();
        let stored = find(store.path(), "m", None, |_, _| true).unwrap();
        assert_eq!((stored.version.to_string().as_str(), stored.index), ("1.10.0", 0));
        assert!(stored.is_highest);
        let stored = find(store.path(), "m", Some("1.9"), |_, example| example.request.rows.is_empty()).unwrap();
        assert_eq!((stored.version.to_string().as_str(), stored.index), ("1.9.0", 1));
        assert!(!stored.is_highest);
    }

    #[test]
    fn an_index_is_counted_from_0() {
        let store = store();
        assert_eq!(at(store.path(), "m", None, 1).unwrap().index, 1);
        let text = at(store.path(), "m", None, 2).err().map(|error| error.to_string()).unwrap();
        assert!(text.ends_with("it has 2 examples, 0 to 1"), "{text}");
    }

    #[test]
    fn what_is_not_there_is_named() {
        let store = store();
        let message = |model: &str, version: Option<&str>| {
            find(store.path(), model, version, |_, _| false).err().map(|error| format!("{error:#}")).unwrap()
        };
        assert!(message("m", Some("2")).contains("version 2.0.0 has no example.json"));
        assert!(message("n", None).contains("--model-store"));
        assert!(message("../m", None).contains("a model's name"));
        assert!(message("m", None).contains("none of its 2 examples"));
    }
}

//! `sconce serve model.onnx`: one file as a store of one model with one version.

use std::{collections::BTreeMap, io, path::Path, sync::Arc};

use cap_std::{ambient_authority, fs::Dir};

use super::{
    Config,
    files::stamp_of,
    layout::{ModelFolder, Moment, StoreFile, StoreListing, VersionFolder},
    scanner::finished,
};
use crate::model::{ModelName, Platform, Version};

/// The folder of the file is the root; nothing else in it is looked at but what an ONNX file keeps beside itself.
pub(super) fn list(config: &Config, last: &StoreListing, moment: Moment) -> io::Result<StoreListing> {
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what.to_owned());
    let file = config
        .folder()
        .file_name()
        .and_then(|name| name.to_str())
        .ok_or_else(|| wrong("the file's name is not UTF-8"))?;
    let platform = platform_of_file(config.folder())?;
    let name = name_of(config.folder());
    let number = Version::new(1, 0, 0);
    let root = Dir::open_ambient_dir(root_of(config.folder()), ambient_authority())?;

    let beside = format!("{file}.data");
    let wanted = [(file, platform.artifact()), (&beside, &beside)];
    let mut version = VersionFolder::new(file, moment.now);
    for (path, inside) in wanted {
        match root.metadata(path) {
            Ok(metadata) if metadata.is_file() => {
                let stamp = stamp_of(&metadata);
                version.newest_ns = version.newest_ns.max(stamp.changed_ns);
                let path = path.to_owned();
                version.files.insert(inside.to_owned(), StoreFile { path, stamp });
            }
            Err(error) if path == file => return Err(error),
            _ => {}
        }
    }
    let before = last.models.get(&name);
    let last = before.and_then(|model| model.versions.get(&number));
    let version = match (last, finished(version, last, false, config, moment)) {
        (Some(last), version) if last.is_same(&version) => last.clone(),
        (_, version) => version,
    };
    let folder = ModelFolder { versions: BTreeMap::from([(number, version)]), ..ModelFolder::default() };
    let folder = match before {
        Some(before) if before.is_same(&folder) => before.clone(),
        _ => Arc::new(folder),
    };
    Ok(StoreListing { models: BTreeMap::from([(name, folder)]), problems: Vec::new() })
}

/// The folder that confines a store: the root itself, or the folder of the one file.
pub(super) fn root_of(root: &Path) -> &Path {
    match root.parent() {
        Some(parent) if root.is_file() && !parent.as_os_str().is_empty() => parent,
        _ if root.is_file() => Path::new("."),
        _ => root,
    }
}

/// By its extension, which is that of the platform's artifact; what has another is no model.
pub fn platform_of_file(path: &Path) -> io::Result<Platform> {
    let extension = |path: &Path| path.extension().map(ToOwned::to_owned);
    let own = extension(path);
    let found =
        Platform::ALL.into_iter().find(|platform| own.is_some() && extension(Path::new(platform.artifact())) == own);
    found.ok_or_else(|| {
        let what = "the file is no model: .onnx, .pt (TorchScript) and .txt (LightGBM) are";
        io::Error::new(io::ErrorKind::InvalidInput, what)
    })
}

/// The file's stem, or where that says nothing, the nearest folder's name that does.
fn name_of(path: &Path) -> ModelName {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let stem = absolute.file_stem().and_then(|stem| stem.to_str());
    let folders = absolute.ancestors().skip(1).filter_map(|folder| folder.file_name()?.to_str());
    stem.into_iter()
        .chain(folders)
        .filter(|name| *name != "model" && name.parse::<Version>().is_err())
        .map(|name| name.replace(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '.' | '_' | '-'), "-"))
        .find_map(|name| ModelName::new(name.trim_start_matches('.')).ok())
        .unwrap_or_else(|| ModelName::new("model").expect("a legal name: this is a bug"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_has_the_files_name_or_its_folders() {
        let name = |path: &str| name_of(Path::new(path)).to_string();
        assert_eq!(name("/a/churn.onnx"), "churn");
        assert_eq!(name("/a/churn/model.onnx"), "churn");
        assert_eq!(name("/a/churn/1.2.0/model.onnx"), "churn");
        assert_eq!(name("/a/my model (2).onnx"), "my-model--2-");
        assert_eq!(name("/model.onnx"), "model");
    }
}

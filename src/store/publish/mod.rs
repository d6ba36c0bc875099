//! PUBLISH: one version, into a store, whole or not at all.
//!
//! ```text
//! gather (copy and hash) ── plan (what version.yaml becomes) ── compare ── [lifecycle checks] ── send
//! ```
//!
//! What is checked is a copy of this process, and the same copy is sent. Owns the order of the writes, which is what a
//! server relies on; knows nothing of what a model is. `cli::publish` calls it, and shows what it says through `Watch`.

mod bucket;
mod folder;
mod gather;
mod plan;
mod scratch;

use std::{
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use self::{
    bucket::BucketVersion,
    plan::{Prints, VERSION_YAML},
    scratch::Scratch,
};
use super::Bucket;
use crate::{
    error::{Code, Error, Result},
    model::{ModelName, Version},
};

/// Follows a publish, and may end it.
pub trait Watch: Sync {
    /// So many bytes went on.
    fn moved(&self, bytes: u64);

    /// Whether somebody wants it to end.
    fn is_stopped(&self) -> bool;

    /// INTERRUPTED when it should end here. It is asked between any two pieces, and before what makes a version one.
    fn go_on(&self) -> Result<()> {
        match self.is_stopped() {
            false => Ok(()),
            true => Err(interrupted()),
        }
    }
}

/// A store, to publish to or from.
#[derive(Clone, Debug)]
pub enum Place {
    Folder(PathBuf),
    Bucket(Bucket),
}

/// One version's files where somebody made them, or in a store.
#[derive(Clone, Debug)]
pub enum Source {
    Folder(PathBuf),
    Bucket(Bucket, BucketVersion),
}

/// A version in a folder of this process: a little store of its own, with all that is known of what it holds.
#[derive(Debug)]
pub struct Staged {
    pub model: ModelName,
    pub version: Version,
    /// Every file but version.yaml.
    files: Prints,
    version_yaml: String,
    /// Goes along with it.
    model_yaml: Option<String>,
    scratch: Scratch,
}

/// How a store stands to a version, before it is sent or after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Absent,
    /// It is there, byte for byte.
    Same,
}

pub fn interrupted() -> Error {
    Error::new(
        Code::Cancelled,
        "INTERRUPTED",
        "interrupted: what is not there whole is nothing to a server; publish again",
    )
}

// === impl Place ===

impl Place {
    /// `s3://bucket/path`, `gs://…`, `az://…`, or a folder, which must be there.
    pub fn open(text: &str) -> Result<Self> {
        if text.contains("://") {
            return Bucket::open(text).map(Self::Bucket);
        }
        match Path::new(text).is_dir() {
            true => Ok(Self::Folder(text.into())),
            false => {
                let sentence = format!("there is no folder '{text}': make it first, or look at how it is written");
                Err(Error::invalid("STORE_UNREADABLE", sentence))
            }
        }
    }

    /// A version of this store. VERSION_NOT_FOUND.
    pub async fn source(&self, model: &ModelName, version: Version) -> Result<Source> {
        let found = match self {
            Self::Folder(root) => folder::find(root, model, version)?.map(Source::Folder),
            Self::Bucket(bucket) => {
                bucket::find(bucket, model, version).await?.map(|found| Source::Bucket(bucket.clone(), found))
            }
        };
        found.ok_or_else(|| Error::not_found("VERSION_NOT_FOUND", format!("the store has no {model} {version}")))
    }

    pub async fn model_yaml(&self, model: &ModelName) -> Result<Option<String>> {
        match self {
            Self::Folder(root) => folder::model_yaml(root, model),
            Self::Bucket(bucket) => bucket::model_yaml(bucket, model).await,
        }
    }

    /// Whether the version is there. VERSION_MUTATED where it is with other bytes.
    pub async fn standing(&self, staged: &Staged, watch: &dyn Watch) -> Result<Standing> {
        match self {
            Self::Folder(root) => folder::standing(root, staged, watch),
            Self::Bucket(bucket) => bucket::standing(bucket, staged).await,
        }
    }

    /// Puts the version there. `Same` where somebody else did so first; NO_SPACE, STORE_READ_ONLY, STORE_UNAVAILABLE and
    /// INTERRUPTED leave nothing that is served.
    pub async fn send(&self, staged: &Staged, watch: &dyn Watch) -> Result<Standing> {
        match self {
            Self::Folder(root) => folder::send(root, staged, watch),
            Self::Bucket(bucket) => bucket::send(bucket, staged, watch).await,
        }
    }
}

// === impl Staged ===

impl Staged {
    /// Copies a version's files into `work_dir`, hashing them, and works out its version.yaml; the originals stay as they
    /// are. With `is_published`, version.yaml must name them all already, and goes along byte for byte.
    pub async fn gather(
        source: &Source,
        (model, version): (ModelName, Version),
        is_published: bool,
        work_dir: &Path,
        watch: &dyn Watch,
    ) -> Result<Self> {
        let scratch = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(work_dir)
            .and_then(|()| Scratch::new(work_dir, "publish", 0o700))
            .map_err(|error| gather::uncopied(&error))?;
        let folder = scratch.path().join(model.as_str()).join(version.to_string());
        let mut target = |name: &str| gather::create(&folder, name).map(Some).map_err(|error| gather::uncopied(&error));
        let mut files = match source {
            Source::Folder(from) => gather::from_folder(from, watch, &mut target)?,
            Source::Bucket(bucket, found) => gather::from_bucket(bucket, found, watch, &mut target).await?,
        };
        if files.is_empty() {
            return Err(Error::new(Code::FailedPrecondition, "NO_ARTIFACT", "the folder of the version holds no file"));
        }
        let path = folder.join(VERSION_YAML);
        let written = files.remove(VERSION_YAML).and(folder::read_text(&path)?);
        let written = written.unwrap_or_default();
        if is_published && !plan::names_all(&written, &files)? {
            let sentence =
                "its version.yaml does not name every file, so it was never published there: publish it there first";
            return Err(Error::new(Code::FailedPrecondition, "NOT_PUBLISHED", sentence));
        }
        let version_yaml = plan::version_yaml(&written, &files)?;
        fs::write(&path, &version_yaml).map_err(|error| gather::uncopied(&error))?;
        Ok(Self { model, version, files, version_yaml, model_yaml: None, scratch })
    }

    /// The model.yaml that it is checked with, which goes along if `is_sent`.
    pub fn with_model_yaml(mut self, text: Option<String>, is_sent: bool) -> Result<Self> {
        if let Some(text) = &text {
            let path = self.root().join(self.model.as_str()).join("model.yaml");
            fs::write(path, text).map_err(|error| gather::uncopied(&error))?;
        }
        self.model_yaml = text.filter(|_| is_sent);
        Ok(self)
    }

    /// A store that holds this version alone.
    pub fn root(&self) -> &Path {
        self.scratch.path()
    }

    /// As a server shows it.
    pub fn digest(&self) -> String {
        let mut files = self.files.clone();
        files.insert(VERSION_YAML.to_owned(), plan::print_of(self.version_yaml.as_bytes()));
        plan::digest(&files)
    }

    /// Every file's name with its sha256 and size; version.yaml is the last.
    pub fn files(&self) -> Vec<(String, String, u64)> {
        let yaml = (VERSION_YAML.to_owned(), plan::print_of(self.version_yaml.as_bytes()));
        let files = self.files.clone().into_iter().chain([yaml]);
        files.map(|(name, print)| (name, print.sha256, print.size)).collect()
    }

    /// Of all files.
    pub fn bytes(&self) -> u64 {
        self.files.values().map(|print| print.size).sum::<u64>() + self.version_yaml.len() as u64
    }

    pub fn brings_model_yaml(&self) -> bool {
        self.model_yaml.is_some()
    }

    fn folder(&self) -> PathBuf {
        self.root().join(self.path())
    }

    /// From the root of a store.
    fn path(&self) -> String {
        format!("{}/{}", self.model, self.version)
    }
}

/// `Same`, or VERSION_MUTATED with the first thing that differs.
fn compared(staged: &Staged, there: &Prints, yaml: Option<&str>) -> Result<Standing> {
    let names = staged.files.keys().chain(there.keys());
    if let Some(name) = names.into_iter().find(|name| staged.files.get(*name) != there.get(*name)) {
        let what = match (staged.files.contains_key(name), there.contains_key(name)) {
            (true, true) => "differs",
            (true, false) => "is not there",
            _ => "is there only",
        };
        return Err(mutated(staged.version, &format!("'{name}' {what}")));
    }
    match yaml {
        Some(yaml) if plan::says_the_same(yaml, &staged.version_yaml) => Ok(Standing::Same),
        Some(_) => Err(mutated(staged.version, "its version.yaml says something else")),
        None => Err(mutated(staged.version, "it has no version.yaml")),
    }
}

fn mutated(version: Version, what: &str) -> Error {
    let sentence = format!(
        "the store has another {version} already ({what}): a version never changes; publish this as another version"
    );
    Error::new(Code::FailedPrecondition, "VERSION_MUTATED", sentence)
}

#[cfg(test)]
mod tests;

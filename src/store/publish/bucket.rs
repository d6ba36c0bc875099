//! A store that is a bucket: the artifacts first, then version.yaml, which names them all, then the marker that tells every
//! replica to look. Without version.yaml what lies there is nothing yet, and is written over by whoever publishes again.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
};

use bytes::Bytes;

use super::{
    Staged, Standing, Watch, compared, mutated,
    plan::{Print, Prints, VERSION_YAML},
};
use crate::{
    error::{Code, Error, Result},
    model::{ModelName, Version, VersionYaml},
    store::{Bucket, PutOutcome, bucket::PART_BYTES},
};

/// A version as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketVersion {
    /// From the root of the store, as it is written there.
    pub path: String,
    /// Bytes of each object by its name inside the version.
    pub sizes: BTreeMap<String, u64>,
}

/// What every writer replaces when it is done.
const MARKER: &str = ".sconce/changed";
/// What is not larger goes up in one request.
const WHOLE_BYTES_MAX: u64 = 1 << 20;

/// Where this version is in the bucket.
pub async fn find(bucket: &Bucket, model: &ModelName, version: Version) -> Result<Option<BucketVersion>> {
    let entries = bucket.list(model.as_str()).await?;
    versions_in(entries.iter().map(|entry| (entry.path.as_str(), entry.size)), model, version)
}

pub async fn model_yaml(bucket: &Bucket, model: &ModelName) -> Result<Option<String>> {
    read_text(bucket, &format!("{model}/model.yaml")).await
}

/// How the bucket stands to this version: what version.yaml there says of the files, and the sizes that they have.
pub async fn standing(bucket: &Bucket, staged: &Staged) -> Result<Standing> {
    let Some(there) = find(bucket, &staged.model, staged.version).await? else {
        return Ok(Standing::Absent);
    };
    if !there.sizes.contains_key(VERSION_YAML) {
        return match there.sizes.keys().find(|name| !staged.files.contains_key(*name)) {
            None if there.path == staged.path() => Ok(Standing::Absent),
            None => Err(mutated(staged.version, &format!("'{}' holds it, without a version.yaml", there.path))),
            Some(name) => Err(mutated(staged.version, &format!("'{name}' is there, without a version.yaml"))),
        };
    }
    let yaml = read_text(bucket, &format!("{}/{VERSION_YAML}", there.path)).await?;
    let said = VersionYaml::parse(yaml.as_deref().unwrap_or_default())?.files;
    let files = there.sizes.iter().filter(|(name, _)| name.as_str() != VERSION_YAML);
    let files: Prints = files
        .map(|(name, size)| {
            let sha256 = said.get(name).map(|entry| entry.sha256.to_ascii_lowercase()).unwrap_or_default();
            (name.clone(), Print { sha256, size: *size })
        })
        .collect();
    compared(staged, &files, yaml.as_deref())
}

/// Puts it there.
pub async fn send(bucket: &Bucket, staged: &Staged, watch: &dyn Watch) -> Result<Standing> {
    for (name, print) in &staged.files {
        watch.go_on()?;
        let file = File::open(staged.folder().join(name)).map_err(|error| super::gather::uncopied(&error))?;
        upload(bucket, &format!("{}/{name}", staged.path()), file, print.size, watch).await?;
    }
    if let Some(text) = &staged.model_yaml {
        bucket.put(&format!("{}/model.yaml", staged.model), text.clone()).await?;
    }
    watch.go_on()?;
    let came = seal(bucket, staged).await?;
    watch.moved(staged.version_yaml.len() as u64);
    touch_marker(bucket).await?;
    Ok(came)
}

/// Tells every replica that something was written.
pub async fn touch_marker(bucket: &Bucket) -> Result<()> {
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce)
        .map_err(|error| Error::internal("NO_RANDOMNESS", format!("no random number can be had: {error}")))?;
    bucket.put(MARKER, hex::encode(nonce)).await.map(drop)
}

/// Writes version.yaml, which makes it a version, unless somebody else did.
async fn seal(bucket: &Bucket, staged: &Staged) -> Result<Standing> {
    let path = format!("{}/{VERSION_YAML}", staged.path());
    let text = Bytes::from(staged.version_yaml.clone());
    match bucket.put_if(&path, text.clone(), None).await {
        Ok(PutOutcome::Written(_)) => Ok(Standing::Absent),
        // A request that was tried again meets its own first try: then the two are the same.
        Ok(PutOutcome::Lost) => standing(bucket, staged).await,
        // A bucket without conditional writes.
        Err(error) if error.code() == Code::Unimplemented => {
            bucket.put(&path, text).await?;
            Ok(Standing::Absent)
        }
        Err(error) => Err(error),
    }
}

async fn upload(bucket: &Bucket, path: &str, mut file: File, size: u64, watch: &dyn Watch) -> Result<()> {
    if size <= WHOLE_BYTES_MAX {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(|error| super::gather::uncopied(&error))?;
        bucket.put(path, bytes).await?;
        watch.moved(size);
        return Ok(());
    }
    let sent = bucket.upload(path, || {
        watch.go_on().map_err(|_| io::Error::from(io::ErrorKind::Interrupted))?;
        let mut part = Vec::with_capacity(PART_BYTES);
        Read::by_ref(&mut file).take(PART_BYTES as u64).read_to_end(&mut part)?;
        watch.moved(part.len() as u64);
        Ok(part.into())
    });
    // Whoever stopped it wants to hear that, not what came of it.
    sent.await.map(drop).map_err(|error| watch.go_on().err().unwrap_or(error))
}

async fn read_text(bucket: &Bucket, path: &str) -> Result<Option<String>> {
    let Some(object) = bucket.get(path).await? else {
        return Ok(None);
    };
    let text = String::from_utf8(object.bytes.to_vec());
    text.map(Some).map_err(|_| Error::invalid("INVALID_MANIFEST", format!("'{path}' is not UTF-8 text")))
}

/// The objects of this version among those of its model.
pub(super) fn versions_in<'a>(
    objects: impl Iterator<Item = (&'a str, u64)>,
    model: &ModelName,
    version: Version,
) -> Result<Option<BucketVersion>> {
    let mut found: Option<BucketVersion> = None;
    for (path, size) in objects {
        let Some((folder, name)) = path.strip_prefix(&format!("{model}/")).and_then(|rest| rest.split_once('/')) else {
            continue;
        };
        // No name that begins with a dot, and so none that leads out of a folder.
        let is_plain = name.split('/').all(|part| !part.is_empty() && !part.starts_with('.') && !part.contains('\\'));
        if !is_plain || folder.parse::<Version>().ok() != Some(version) {
            continue;
        }
        let path = format!("{model}/{folder}");
        let there = found.get_or_insert_with(|| BucketVersion { path: path.clone(), sizes: BTreeMap::new() });
        if there.path != path {
            return Err(mutated(version, "it has two folders there"));
        }
        there.sizes.insert(name.to_owned(), size);
    }
    Ok(found)
}

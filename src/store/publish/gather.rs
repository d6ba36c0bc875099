//! One version's files, from wherever they are, copied into a folder of this process and hashed on the way: what is checked
//! there is what is sent, whatever happens to the originals meanwhile.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::Path,
};

use cap_std::{ambient_authority, fs::Dir};
use sha2::{Digest, Sha256};
use tokio_stream::StreamExt as _;

use super::{
    Watch,
    bucket::BucketVersion,
    plan::{Print, Prints},
};
use crate::{
    error::{Code, Error, Result},
    store::{
        Bucket,
        files::{open_plain, say, stamp_of},
    },
};

/// Deep enough for anybody, and an end for links that go round.
const DEPTH_MAX: usize = 8;
const BUFFER_BYTES: usize = 256 << 10;

/// Goes through a version's folder; `target` gets each file's name and may say where its bytes are written to.
///
/// Names that begin with a dot are left out. A link is followed as long as it stays inside: UNSUPPORTED_FILE names one that
/// leads elsewhere, STILL_CHANGING a file that is being written.
pub fn from_folder(
    folder: &Path,
    watch: &dyn Watch,
    target: &mut dyn FnMut(&str) -> Result<Option<File>>,
) -> Result<Prints> {
    let root = Dir::open_ambient_dir(folder, ambient_authority()).map_err(|error| unreadable("the folder", &error))?;
    let mut names = Vec::new();
    list(&root, "", 0, &mut names)?;
    let mut prints = Prints::new();
    for name in names {
        let mut copy = target(&name)?;
        let print = copy_one(&root, &name, copy.as_mut(), watch)?;
        prints.insert(name, print);
    }
    Ok(prints)
}

/// Fetches a version's objects.
pub async fn from_bucket(
    bucket: &Bucket,
    version: &BucketVersion,
    watch: &dyn Watch,
    target: &mut dyn FnMut(&str) -> Result<Option<File>>,
) -> Result<Prints> {
    let mut prints = Prints::new();
    for name in version.sizes.keys() {
        let path = format!("{}/{name}", version.path);
        let gone = || Error::new(Code::FailedPrecondition, "MISSING_FILE", format!("'{name}' is not there any more"));
        let mut pieces = bucket.download(&path, 0).await?.ok_or_else(gone)?.pieces();
        let mut copy = target(name)?;
        let (mut hasher, mut size) = (Sha256::new(), 0);
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            watch.go_on()?;
            hasher.update(&piece);
            write(copy.as_mut(), &piece)?;
            size += piece.len() as u64;
            watch.moved(piece.len() as u64);
        }
        prints.insert(name.clone(), Print { sha256: hex::encode(hasher.finalize()), size });
    }
    Ok(prints)
}

/// A place for `name` inside `folder`.
pub fn create(folder: &Path, name: &str) -> io::Result<File> {
    let path = folder.join(name);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    File::create_new(path)
}

/// What stands in the way of the copy.
pub fn uncopied(error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => Error::new(
            Code::ResourceExhausted,
            "NO_SPACE",
            "the disk of the work folder is full; free some space or set another one (SCONCE_WORK_DIR)",
        ),
        _ => Error::internal("WORK_DIR_UNUSABLE", format!("the work folder cannot be used: {error}")),
    }
}

fn list(root: &Dir, prefix: &str, depth: usize, names: &mut Vec<String>) -> Result<()> {
    if depth > DEPTH_MAX {
        return Err(unsupported(&format!("folders are nested deeper than {DEPTH_MAX}")));
    }
    let place = if prefix.is_empty() { "." } else { prefix };
    let entries = root.read_dir(place).map_err(|error| unreadable(place, &error))?;
    for entry in entries {
        let name = entry.map_err(|error| unreadable(place, &error))?.file_name();
        let Some(name) = name.to_str() else {
            return Err(unsupported("a file's name is not UTF-8"));
        };
        if name.starts_with('.') {
            continue;
        }
        let path = format!("{prefix}{name}");
        let metadata = root.metadata(&path).map_err(|error| {
            unsupported(&format!("'{path}': {}; a version holds its files itself, not links to them", say(&error)))
        })?;
        if metadata.is_dir() {
            list(root, &format!("{path}/"), depth + 1, names)?;
        } else if metadata.is_file() {
            names.push(path);
        } else {
            return Err(unsupported(&format!("'{path}' is not a plain file")));
        }
        if names.len() > crate::store::layout::FILES_MAX {
            return Err(unsupported(&format!("it has more than {} files", crate::store::layout::FILES_MAX)));
        }
    }
    Ok(())
}

fn copy_one(root: &Dir, name: &str, mut copy: Option<&mut File>, watch: &dyn Watch) -> Result<Print> {
    let unreadable = |error: io::Error| unreadable(name, &error);
    let mut source = open_plain(root, name).map_err(unreadable)?;
    let before = stamp_of(&source.metadata().map_err(unreadable)?);
    let (mut hasher, mut size) = (Sha256::new(), 0);
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        watch.go_on()?;
        let count = source.read(&mut buffer).map_err(unreadable)?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
        write(copy.as_deref_mut(), &buffer[..count])?;
        size += count as u64;
        watch.moved(count as u64);
    }
    if stamp_of(&source.metadata().map_err(unreadable)?) != before {
        let sentence = format!("'{name}' changed while it was read: publish when it is whole");
        return Err(Error::new(Code::FailedPrecondition, "STILL_CHANGING", sentence));
    }
    Ok(Print { sha256: hex::encode(hasher.finalize()), size })
}

fn write(copy: Option<&mut File>, bytes: &[u8]) -> Result<()> {
    copy.map_or(Ok(()), |copy| copy.write_all(bytes)).map_err(|error| uncopied(&error))
}

fn unsupported(sentence: &str) -> Error {
    Error::new(Code::FailedPrecondition, "UNSUPPORTED_FILE", sentence)
}

fn unreadable(name: &str, error: &io::Error) -> Error {
    Error::new(Code::FailedPrecondition, "UNREADABLE", format!("'{name}': {}", say(error)))
}

//! Single files and entries under the root of a store: opened, stamped, read.

use std::io::{self, Read};

use cap_std::fs::{Dir, DirEntry, Metadata, MetadataExt, OpenOptions, OpenOptionsExt};
use rustix::fs::{AtFlags, StatxFlags, StatxTimestamp, statx};

use super::layout::{Stamp, YAML_BYTES_MAX};

pub(super) fn stamp_of(metadata: &Metadata) -> Stamp {
    Stamp {
        size: metadata.len(),
        modified_ns: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
        changed_ns: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
        inode: metadata.ino(),
    }
}

/// Whether what a path leads to still has this stamp: one system call, for what a look has been through before. Nothing is
/// opened, and a link that leads out of the root by now leads to another stamp.
pub(super) fn has_stamp(root: &Dir, path: &str, stamp: Stamp) -> bool {
    statx(root, path, AtFlags::empty(), StatxFlags::BASIC_STATS).is_ok_and(|found| {
        let ns = |time: StatxTimestamp| nanoseconds(time.tv_sec, time.tv_nsec.into());
        let found = Stamp {
            size: found.stx_size,
            modified_ns: ns(found.stx_mtime),
            changed_ns: ns(found.stx_ctime),
            inode: found.stx_ino,
        };
        found == stamp
    })
}

fn nanoseconds(seconds: i64, nanoseconds: i64) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}

/// Opens a plain file under the root; a pipe that somebody put there does not make us wait.
pub(super) fn open_plain(root: &Dir, path: &str) -> io::Result<cap_std::fs::File> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32);
    let file = root.open_with(path, &options)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a plain file")),
    }
}

pub(super) fn read_text(root: &Dir, path: &str) -> Result<String, String> {
    let mut text = String::new();
    open_plain(root, path)
        .and_then(|file| file.take(YAML_BYTES_MAX + 1).read_to_string(&mut text))
        .map_err(|error| say(&error))?;
    match text.len() as u64 > YAML_BYTES_MAX {
        true => Err("it is larger than 1 MiB".into()),
        false => Ok(text),
    }
}

/// A name that is not UTF-8 is a problem to be said.
pub(super) fn utf8_name(entry: &DirEntry, problems: &mut Vec<String>) -> Option<String> {
    match entry.file_name().into_string() {
        Ok(name) => Some(name),
        Err(name) => {
            problems.push(format!("the name {name:?} is not UTF-8"));
            None
        }
    }
}

/// An error of the file system in words without a path.
pub(super) fn say(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "it leads nowhere".into(),
        io::ErrorKind::PermissionDenied => "it may not be read, or leads out of the store".into(),
        io::ErrorKind::InvalidData => "it is not UTF-8 text".into(),
        _ => error.to_string(),
    }
}

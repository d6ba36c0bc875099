//! External data of an ONNX model: only plain files inside the version's own folder, whole and unshared.
//!
//! `onnx::open` checks every reference that `proto::survey` found before the library sees the model. The library makes
//! checks of its own, but follows hard links and has been wrong before. Files are opened part by part, never through a
//! symbolic link; what a version may name is what the copy of that version holds.

use std::{fs::File, io::Read, path::Path};

use rustix::{
    fd::OwnedFd,
    fs::{CWD, FileType, Mode, OFlags, fstat, open, openat},
    io::Errno,
};

use crate::error::{Code, Error, Result};

/// One reference, its values read.
#[derive(Debug, Default, PartialEq)]
struct Reference<'a> {
    location: &'a str,
    offset: u64,
    /// Absent: as long as the tensor.
    length: Option<u64>,
}

/// Checks the references of a whole model against the files in `dir`.
pub fn check(dir: &Path, references: &[Vec<(&str, &str)>]) -> Result<()> {
    let mut seen: Option<(&str, u64)> = None;
    for entries in references {
        let reference = Reference::parse(entries).map_err(refused)?;
        let size = match seen {
            Some((location, size)) if location == reference.location => size,
            _ => size_of(dir, reference.location)?,
        };
        seen = Some((reference.location, size));
        let end = reference.offset.checked_add(reference.length.unwrap_or(0));
        if end.is_none_or(|end| end > size) {
            return Err(refused(format!(
                "a tensor ends past the end of '{}', which has {size} bytes",
                shown(reference.location)
            )));
        }
    }
    Ok(())
}

/// The bytes of a plain file of the version, e.g. `model.onnx`. FAILED_PRECONDITION where it is missing or no plain file.
pub fn read(dir: &Path, name: &str, bytes_max: u64) -> Result<Vec<u8>> {
    let failed = |what: &str| Error::new(Code::FailedPrecondition, super::LOAD_FAILED, format!("{name}: {what}"));
    let file = open_plain(dir, name).map_err(|error| failed(words(error)))?;
    let stat = fstat(&file).map_err(|error| failed(words(error)))?;
    let size = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(failed("not a plain file"));
    }
    if size > bytes_max {
        return Err(failed("larger than 2 GiB, which is protobuf's limit; keep the weights as external data"));
    }
    let mut bytes = Vec::with_capacity(size as usize);
    File::from(file).take(bytes_max).read_to_end(&mut bytes).map_err(|_| failed("it cannot be read"))?;
    Ok(bytes)
}

fn size_of(dir: &Path, location: &str) -> Result<u64> {
    let name = shown(location);
    let file = open_plain(dir, location).map_err(|error| refused(format!("'{name}': {}", words(error))))?;
    let stat = fstat(&file).map_err(|error| refused(format!("'{name}': {}", words(error))))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(refused(format!("'{name}': not a plain file")));
    }
    if stat.st_nlink != 1 {
        return Err(refused(format!("'{name}': a hard link to a file that others may own")));
    }
    u64::try_from(stat.st_size).map_err(|_| refused(format!("'{name}': it has no size")))
}

/// Walks a checked location part by part, so that no link anywhere on the way is followed.
fn open_plain(dir: &Path, location: &str) -> rustix::io::Result<OwnedFd> {
    const THROUGH: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
    let mut folder = open(dir, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).or_else(|_| {
        // A relative folder of the process itself, as tests have it.
        openat(CWD, dir, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
    })?;
    let mut rest = location;
    while let Some((part, after)) = rest.split_once('/') {
        folder = openat(&folder, part, THROUGH, Mode::empty())?;
        rest = after;
    }
    // Without NONBLOCK a named pipe would wait for its writer.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    openat(&folder, rest, flags, Mode::empty())
}

fn words(error: Errno) -> &'static str {
    match error {
        Errno::NOENT => "no such file in the version's folder",
        Errno::LOOP | Errno::NOTDIR => "a symbolic link, or below one",
        Errno::NAMETOOLONG => "its name is too long",
        _ => "it cannot be opened",
    }
}

fn refused(what: impl Into<String>) -> Error {
    Error::new(Code::FailedPrecondition, "EXTERNAL_DATA_REFUSED", format!("external data: {}", what.into()))
}

fn shown(location: &str) -> String {
    location.chars().filter(|c| !c.is_control()).take(60).collect()
}

// === impl Reference ===

impl<'a> Reference<'a> {
    fn parse(entries: &[(&'a str, &'a str)]) -> std::result::Result<Self, String> {
        let mut reference = Reference::default();
        for (place, &(key, value)) in entries.iter().enumerate() {
            if entries[..place].iter().any(|&(earlier, _)| earlier == key) {
                return Err(format!("'{}' comes twice for one tensor", shown(key)));
            }
            match key {
                "location" => reference.location = plain(value)?,
                "offset" => reference.offset = number(key, value)?,
                "length" => reference.length = Some(number(key, value)?),
                // The digest of the version's files is checked where they are copied.
                "checksum" => {}
                _ => return Err(format!("unknown key '{}'", shown(key))),
            }
        }
        if reference.location.is_empty() {
            return Err("a tensor names no location".into());
        }
        Ok(reference)
    }
}

/// A relative name, each part of it ordinary.
fn plain(location: &str) -> std::result::Result<&str, String> {
    let ordinary = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(['\\', '\0']);
    if location.split('/').all(ordinary) {
        return Ok(location);
    }
    // What was asked for may be a path of this machine, which is nobody's business.
    Err("a location that is not a plain relative name inside the version's folder".into())
}

/// Digits alone: no sign, no spaces, no other base.
fn number(key: &str, value: &str) -> std::result::Result<u64, String> {
    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    let number = value.parse::<u64>().ok().filter(|&number| digits && i64::try_from(number).is_ok());
    number.ok_or_else(|| format!("its {key} is not a number of bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let version = dir.path().join("version");
        std::fs::create_dir_all(version.join("sub")).expect("a folder");
        std::fs::write(dir.path().join("outside"), [0; 64]).expect("a file");
        for name in ["w", "sub/w", "linked"] {
            std::fs::write(version.join(name), [0; 64]).expect("a file");
        }
        std::fs::hard_link(version.join("linked"), version.join("hard")).expect("a hard link");
        std::os::unix::fs::symlink(dir.path().join("outside"), version.join("soft")).expect("a link");
        std::os::unix::fs::symlink("sub", version.join("soft_folder")).expect("a link");
        dir
    }

    fn verdict(entries: &[(&str, &str)]) -> Result<()> {
        check(&folder().path().join("version"), &[entries.to_vec()])
    }

    #[test]
    fn plain_files_of_the_version_pass() {
        for good in [
            &[("location", "w")][..],
            &[("location", "sub/w"), ("offset", "32"), ("length", "32")],
            &[("length", "64"), ("location", "w"), ("checksum", "abc")],
            &[("location", "w"), ("offset", "64")],
        ] {
            verdict(good).unwrap();
        }
    }

    #[test]
    fn every_other_way_is_refused() {
        for (bad, says) in [
            (&[("location", "../outside")][..], "plain relative"),
            (&[("location", "/etc/passwd")], "plain relative"),
            (&[("location", "sub/../w")], "plain relative"),
            (&[("location", "./w")], "plain relative"),
            (&[("location", "sub//w")], "plain relative"),
            (&[("location", "sub\\w")], "plain relative"),
            (&[("location", "w\0")], "plain relative"),
            (&[("location", "")], "plain relative"),
            (&[("location", "*/_ORT_MEM_ADDR_/*"), ("offset", "1"), ("length", "8")], "no such file"),
            (&[("location", "soft")], "symbolic link"),
            (&[("location", "soft_folder/w")], "symbolic link"),
            (&[("location", "hard")], "hard link"),
            (&[("location", "sub")], "not a plain file"),
            (&[("location", "missing")], "no such file"),
            (&[("location", "w"), ("offset", "65")], "past the end"),
            (&[("location", "w"), ("offset", "60"), ("length", "5")], "past the end"),
            (&[("location", "w"), ("offset", "-1")], "offset is not"),
            (&[("location", "w"), ("offset", "+1")], "offset is not"),
            (&[("location", "w"), ("length", "0x10")], "length is not"),
            (&[("location", "w"), ("length", "9223372036854775808")], "length is not"),
            (
                &[("location", "w"), ("offset", "9223372036854775807"), ("length", "9223372036854775807")],
                "past the end",
            ),
            (&[("location", "w"), ("basepath", "/")], "unknown key 'basepath'"),
            (&[("location", "w"), ("location", "sub/w")], "comes twice"),
            (&[], "names no location"),
        ] {
            let error = verdict(bad).expect_err(says);
            assert_eq!(error.reason(), "EXTERNAL_DATA_REFUSED");
            assert!(error.message().contains(says), "{bad:?}: {error} should say {says}");
        }
    }
}

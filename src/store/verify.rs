//! The private copy of a version: the only bytes that are ever opened.
//!
//! What is hashed is what is opened: nobody else can write into the copy, no link in it leads anywhere, and taking the
//! store away cannot pull a mapped file from under a library.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
    time::Duration,
};

use cap_std::{
    ambient_authority,
    fs::{Dir, Metadata},
};
use sha2::{Digest, Sha256};

use super::{
    Config,
    cache::{Held, fetch},
    files::{open_plain, say, stamp_of},
    layout::{StoreFile, VersionFolder},
    single,
};
use crate::{
    error::{Code, Error, Result},
    model::FileEntry,
};

/// A folder that only this process can enter, and that goes when its last user is gone.
#[derive(Debug)]
pub struct PrivateDir {
    dir: tempfile::TempDir,
    /// What it was copied from stays in the cache as long: a restart may have to do without the bucket.
    held: Vec<Held>,
}

/// Where the bytes of a version come from.
enum Source<'a> {
    Folder(Dir),
    /// Files of a bucket, in the cache, by their names inside the version.
    Cache(BTreeMap<&'a str, Held>),
}

/// A version, copied and checked.
#[derive(Debug)]
pub struct Verified {
    pub dir: PrivateDir,
    /// sha256 over the names and digests of all files, in hexadecimal.
    pub digest: String,
    pub bytes: u64,
}

const BUFFER_BYTES: usize = 256 << 10;

// === impl PrivateDir ===

impl PrivateDir {
    /// A new one inside `parent`.
    pub fn new(parent: &Path) -> Result<Self> {
        tempfile::Builder::new()
            .prefix("v-")
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .tempdir_in(parent)
            .map(|dir| Self { dir, held: Vec::new() })
            .map_err(|error| trouble("the work folder", &error))
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// Copies a version into a new folder inside `work`, hashing while it copies.
///
/// `named` is what version.yaml says of the files. DIGEST_MISMATCH and MISSING_FILE name the file; STILL_CHANGING is a file
/// that is not the one that was listed.
pub fn copy(
    config: &Config,
    version: &VersionFolder,
    named: &BTreeMap<String, FileEntry>,
    work: &Path,
) -> Result<Verified> {
    check_named(version, named)?;
    let source = Source::open(config, version, named)?;
    let mut dir = PrivateDir::new(work)?;
    let mut made = "";
    let digest = each_file(&source, version, named, |name| {
        if let Some((folders, _)) = name.rsplit_once('/')
            && made != folders
        {
            let mut builder = fs::DirBuilder::new();
            builder.recursive(true).mode(0o700).create(dir.path().join(folders))?;
            made = folders;
        }
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        Ok(Some(options.open(dir.path().join(name))?))
    })?;
    dir.held = source.held();
    Ok(Verified { dir, digest, bytes: version.bytes() })
}

/// The digest of a version as it stands in the store, without a copy.
pub fn digest(config: &Config, version: &VersionFolder) -> Result<String> {
    let source = Source::open(config, version, &BTreeMap::new())?;
    each_file(&source, version, &BTreeMap::new(), |_| Ok(None))
}

fn check_named(version: &VersionFolder, named: &BTreeMap<String, FileEntry>) -> Result<()> {
    for (name, entry) in named {
        let Some(file) = version.files.get(name) else {
            return Err(failed("MISSING_FILE", format!("version.yaml names '{name}', which is not there")));
        };
        if entry.size.is_some_and(|size| size != file.stamp.size) {
            let size = entry.size.unwrap_or_default();
            return Err(failed(
                "DIGEST_MISMATCH",
                format!("'{name}' has {} bytes, version.yaml says {size}", file.stamp.size),
            ));
        }
    }
    Ok(())
}

/// Reads every file once, hashes it, writes it where `target` says, and returns the digest of all.
fn each_file<'a>(
    source: &Source,
    version: &'a VersionFolder,
    named: &BTreeMap<String, FileEntry>,
    mut target: impl FnMut(&'a str) -> io::Result<Option<fs::File>>,
) -> Result<String> {
    let mut total = Sha256::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    for (name, file) in &version.files {
        let mut copy = target(name).map_err(|error| trouble(&format!("the copy of '{name}'"), &error))?;
        let found = hash_file(source, name, file, copy.as_mut(), &mut buffer)?;
        if let Some(entry) = named.get(name)
            && !entry.sha256.eq_ignore_ascii_case(&found)
        {
            return Err(failed(
                "DIGEST_MISMATCH",
                format!("the sha256 of '{name}' is {found}, version.yaml says {}", entry.sha256),
            ));
        }
        total.update(name.as_bytes());
        total.update([0]);
        total.update(found.as_bytes());
        total.update([0]);
    }
    Ok(hex::encode(total.finalize()))
}

fn hash_file(
    source: &Source,
    name: &str,
    file: &StoreFile,
    mut copy: Option<&mut fs::File>,
    buffer: &mut [u8],
) -> Result<String> {
    let unreadable = |error: io::Error| trouble(&format!("'{name}'"), &error);
    let mut opened = source.file(name, file).map_err(unreadable)?;
    let mut hasher = Sha256::new();
    loop {
        let count = opened.read(buffer).map_err(unreadable)?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
        if let Some(copy) = copy.as_deref_mut() {
            copy.write_all(&buffer[..count]).map_err(|error| trouble(&format!("the copy of '{name}'"), &error))?;
        }
    }
    let found = hex::encode(hasher.finalize());
    source.check(name, file, &opened, &found)?;
    Ok(found)
}

// === impl Source ===

impl<'a> Source<'a> {
    /// Files of a bucket are fetched here, each that is not in the cache already.
    fn open(config: &Config, version: &'a VersionFolder, named: &BTreeMap<String, FileEntry>) -> Result<Self> {
        if let Some(remote) = &config.remote {
            let fetched = version
                .files
                .iter()
                .map(|(name, file)| Ok((name.as_str(), fetch(remote, name, file, named.get(name))?)));
            return Ok(Self::Cache(fetched.collect::<Result<_>>()?));
        }
        Dir::open_ambient_dir(single::root_of(config.folder()), ambient_authority())
            .map(Self::Folder)
            .map_err(|error| trouble("the store", &error))
    }

    fn file(&self, name: &str, file: &StoreFile) -> io::Result<fs::File> {
        match self {
            Self::Folder(root) => open_plain(root, &file.path).map(cap_std::fs::File::into_std),
            Self::Cache(held) => fs::File::open(held.get(name).ok_or(io::ErrorKind::NotFound)?.path()),
        }
    }

    /// Whether what was read is what was meant: in a folder the file that was listed, in the cache what its name says.
    fn check(&self, name: &str, file: &StoreFile, opened: &fs::File, found: &str) -> Result<()> {
        match self {
            Self::Folder(_) => {
                let metadata = Metadata::from_file(opened).map_err(|error| trouble(&format!("'{name}'"), &error))?;
                match stamp_of(&metadata) == file.stamp {
                    true => Ok(()),
                    false => Err(failed("STILL_CHANGING", format!("'{name}' changed while it was read"))),
                }
            }
            Self::Cache(held) => match held.get(name).filter(|held| held.sha256() != found) {
                None => Ok(()),
                Some(damaged) => {
                    damaged.discard();
                    let sentence = format!("'{name}' was damaged in the cache of artifacts; it is fetched again");
                    Err(Error::unavailable("CACHE_DAMAGED", sentence, Duration::from_secs(1)))
                }
            },
        }
    }

    fn held(self) -> Vec<Held> {
        match self {
            Self::Folder(_) => Vec::new(),
            Self::Cache(held) => held.into_values().collect(),
        }
    }
}

fn failed(reason: &'static str, message: String) -> Error {
    Error::new(Code::FailedPrecondition, reason, message)
}

fn trouble(what: &str, error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::new(
            Code::ResourceExhausted,
            "NO_SPACE",
            "the disk of the work folder is full; free some space or set another work folder",
        ),
        io::ErrorKind::NotFound => failed("MISSING_FILE", format!("{what}: it is not there any more")),
        _ => failed("UNREADABLE", format!("{what}: {}", say(error))),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Instant, SystemTime};

    use super::*;
    use crate::{
        model::{Version, VersionYaml},
        store::Scanner,
    };

    struct World {
        root: tempfile::TempDir,
        work: tempfile::TempDir,
        config: Config,
    }

    impl World {
        /// One version with a file in a folder of its own, under this version.yaml.
        fn new() -> Self {
            let root = tempfile::tempdir().expect("a folder");
            let version = root.path().join("a/1/sub");
            fs::create_dir_all(&version).expect("made");
            fs::write(version.join("w.bin"), "abc").expect("written");
            let config = Config::new(root.path());
            let work = tempfile::tempdir().expect("a folder");
            Self { root, work, config }
        }

        fn copy(&self, yaml: &str, meanwhile: impl FnOnce(&Path)) -> Result<Verified> {
            let listing =
                Scanner::new(self.config.clone()).scan(Instant::now(), SystemTime::now()).expect("it can be listed");
            meanwhile(self.root.path());
            let named = VersionYaml::parse(yaml).expect("a version.yaml").files;
            let version = &listing.models["a"].versions[&Version::new(1, 0, 0)];
            copy(&self.config, version, &named, self.work.path())
        }
    }

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn what_is_copied_is_what_was_promised_and_goes_with_its_last_user() {
        let world = World::new();
        let yaml = format!("files: {{ sub/w.bin: {{ sha256: {ABC}, size: 3 }} }}");
        let copied = world.copy(&yaml, |_| {}).expect("all is right");
        let path = copied.dir.path().to_owned();
        assert_eq!(fs::read(path.join("sub/w.bin")).expect("there"), b"abc");
        assert_eq!(copied.bytes, 3);
        assert_eq!(copied.digest, world.copy("", |_| {}).expect("all is right").digest);
        drop(copied);
        assert!(!path.exists());
    }

    #[test]
    fn each_broken_promise_has_its_reason() {
        let world = World::new();
        let reason = |yaml: &str| world.copy(yaml, |_| {}).expect_err("a promise is broken").reason();
        assert_eq!(reason("files: { sub/w.bin: { sha256: '00' } }"), "DIGEST_MISMATCH");
        assert_eq!(reason("files: { sub/w.bin: { sha256: '00', size: 4 } }"), "DIGEST_MISMATCH");
        assert_eq!(reason("files: { other: { sha256: '00' } }"), "MISSING_FILE");
        assert_eq!(fs::read_dir(world.work.path()).expect("there").count(), 0, "nothing is left behind");
    }

    #[test]
    fn what_changes_after_the_look_is_not_taken() {
        let world = World::new();
        let rewrite = |root: &Path| fs::write(root.join("a/1/sub/w.bin"), "abcd").expect("written");
        assert_eq!(world.copy("", rewrite).expect_err("it changed").reason(), "STILL_CHANGING");
        let remove = |root: &Path| fs::remove_file(root.join("a/1/sub/w.bin")).expect("removed");
        assert_eq!(world.copy("", remove).expect_err("it is gone").reason(), "MISSING_FILE");
    }
}

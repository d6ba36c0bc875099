//! A store that is a folder: a version is filled under a temporary name, made durable, and renamed into place, so that a
//! server sees it whole or not at all, whenever the power goes.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use super::{Staged, Standing, Watch, compared, gather, mutated, plan::VERSION_YAML, scratch::Scratch};
use crate::{
    error::{Code, Error, Result},
    model::{ModelName, Version},
    store::layout::YAML_BYTES_MAX,
};

const BUFFER_BYTES: usize = 1 << 20;

/// Where this version is in the store, as it is written there: `v1.2` for 1.2.0.
pub fn find(root: &Path, model: &ModelName, version: Version) -> Result<Option<PathBuf>> {
    let entries = match fs::read_dir(root.join(model.as_str())) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries.map_err(|error| trouble(&error))?,
    };
    let is_it = |name: &str| name.parse::<Version>().is_ok_and(|found| found == version);
    let mut found = entries.flatten().filter(|entry| entry.file_name().to_str().is_some_and(is_it));
    let first = found.next().map(|entry| entry.path());
    match found.next() {
        Some(_) => Err(mutated(version, "it has two folders there")),
        None => Ok(first),
    }
}

/// A model's model.yaml; `None` where there is none.
pub fn model_yaml(root: &Path, model: &ModelName) -> Result<Option<String>> {
    read_text(&root.join(model.as_str()).join("model.yaml"))
}

/// A small text; `None` where there is none.
pub fn read_text(path: &Path) -> Result<Option<String>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(|error| trouble(&error))?,
    };
    let mut text = String::new();
    file.take(YAML_BYTES_MAX + 1).read_to_string(&mut text).map_err(|error| trouble(&error))?;
    Ok(Some(text))
}

/// How the store stands to this version. It reads every byte of one that is there.
pub fn standing(root: &Path, staged: &Staged, watch: &dyn Watch) -> Result<Standing> {
    let Some(there) = find(root, &staged.model, staged.version)? else {
        return Ok(Standing::Absent);
    };
    let mut files = gather::from_folder(&there, watch, &mut |_| Ok(None))?;
    if files.is_empty() && there.ends_with(staged.version.to_string()) {
        // A rename goes over an empty folder.
        return Ok(Standing::Absent);
    }
    let yaml = files.remove(VERSION_YAML).and(read_text(&there.join(VERSION_YAML))?);
    compared(staged, &files, yaml.as_deref())
}

/// Puts it there. Whatever goes wrong, and wherever the process dies, the store has it whole or not at all.
pub fn send(root: &Path, staged: &Staged, watch: &dyn Watch) -> Result<Standing> {
    let folder = root.join(staged.model.as_str());
    let is_new = match fs::create_dir(&folder) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(error) => return Err(trouble(&error)),
    };
    let sent = send_into(root, &folder, staged, watch);
    if sent.is_err() && is_new {
        // It goes only if it is empty, and so nobody else's by now.
        let _ = fs::remove_dir(&folder);
    }
    sent
}

fn send_into(root: &Path, folder: &Path, staged: &Staged, watch: &dyn Watch) -> Result<Standing> {
    let name = staged.version.to_string();
    let scratch = Scratch::new(folder, &name, 0o777).map_err(|error| trouble(&error))?;
    fill(scratch.path(), staged, watch)?;
    sync_folder(root).map_err(|error| trouble(&error))?;
    if let Some(text) = &staged.model_yaml {
        // Before the version: it was checked with this one.
        write_whole(folder, "model.yaml", text).map_err(|error| trouble(&error))?;
    }
    watch.go_on()?;
    match scratch.rename(&name) {
        Ok(()) => {}
        Err(error) if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) => {
            // Somebody else was first.
            return standing(root, staged, watch);
        }
        Err(error) => return Err(trouble(&error)),
    }
    sync_folder(folder).map_err(|error| trouble(&error))?;
    Ok(Standing::Absent)
}

/// Every file and every folder made durable; version.yaml last.
fn fill(target: &Path, staged: &Staged, watch: &dyn Watch) -> Result<()> {
    let mut folders = BTreeSet::from([target.to_owned()]);
    for name in staged.files.keys() {
        copy(&staged.folder().join(name), target, name, watch)?;
        let path = target.join(name);
        folders.extend(path.ancestors().skip(1).take_while(|folder| folder.starts_with(target)).map(Path::to_owned));
    }
    folders.iter().try_for_each(|folder| sync_folder(folder)).map_err(|error| trouble(&error))?;
    copy(&staged.folder().join(VERSION_YAML), target, VERSION_YAML, watch)?;
    sync_folder(target).map_err(|error| trouble(&error))
}

fn copy(from: &Path, target: &Path, name: &str, watch: &dyn Watch) -> Result<()> {
    let mut from = File::open(from).map_err(|error| gather::uncopied(&error))?;
    let mut to = gather::create(target, name).map_err(|error| trouble(&error))?;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        watch.go_on()?;
        let count = from.read(&mut buffer).map_err(|error| gather::uncopied(&error))?;
        if count == 0 {
            break;
        }
        to.write_all(&buffer[..count]).map_err(|error| trouble(&error))?;
        watch.moved(count as u64);
    }
    to.sync_all().map_err(|error| trouble(&error))
}

/// One small file, whole or not at all.
fn write_whole(folder: &Path, name: &str, text: &str) -> io::Result<()> {
    let scratch = Scratch::new(folder, name, 0o777)?;
    let temporary = scratch.path().join(name);
    let mut file = File::create_new(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, folder.join(name))?;
    sync_folder(folder)
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// What stands in the way of a store, without a path.
fn trouble(error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => Error::new(
            Code::ResourceExhausted,
            "NO_SPACE",
            "the disk of the store is full, and nothing of it is there: free some space and publish again",
        ),
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => Error::new(
            Code::FailedPrecondition,
            "STORE_READ_ONLY",
            "the store may not be read or written to from here: look at its owner and at how it is mounted",
        ),
        _ => Error::new(
            Code::FailedPrecondition,
            "STORE_UNREADABLE",
            format!("the store cannot be worked with ({error}): see to it and publish again"),
        ),
    }
}

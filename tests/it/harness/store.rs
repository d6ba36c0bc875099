//! Model stores in temporary folders, built from fixtures, samples and text.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A store; its folder goes with it. Beside the store lies what the server writes.
pub struct Store {
    dir: tempfile::TempDir,
}

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A file of tests/fixtures.
pub fn fixture(name: &str) -> PathBuf {
    root().join("tests/fixtures").join(name)
}

pub const SAMPLES: [&str; 4] = ["early-signal", "momentum-lstm", "statistical-signal", "volatility-transformer"];

// === impl Store ===

impl Store {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("sconce-").tempdir().expect("a temporary folder");
        fs::create_dir(dir.path().join("store")).expect("a folder");
        Self { dir }
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// A place beside the store, for what is no model.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn beside_folder(&self, name: &str) -> PathBuf {
        let folder = self.beside(name);
        fs::create_dir_all(&folder).expect("a folder");
        folder
    }

    /// One version from one artifact, named by its extension. A model.yaml that belongs to the artifact (NAME.yaml) comes
    /// along.
    pub fn model(self, name: &str, version: &str, artifact: impl AsRef<Path>) -> Self {
        self.add(name, version, artifact);
        self
    }

    /// `model`, in a store that is being served.
    pub fn add(&self, name: &str, version: &str, artifact: impl AsRef<Path>) {
        let artifact = artifact.as_ref();
        let extension = artifact.extension().and_then(|extension| extension.to_str()).expect("an extension");
        // Renamed into place, as a publisher does it.
        let folder = self.beside_folder(&format!("{name}-{version}"));
        copy(artifact, &folder.join(format!("model.{extension}")));
        let place = self.path().join(name);
        fs::create_dir_all(&place).expect("a folder");
        let yaml = artifact.with_extension("yaml");
        if yaml.exists() {
            copy(&yaml, &place.join("model.yaml"));
        }
        fs::rename(folder, place.join(version)).expect("a rename");
    }

    /// Any file of the store, e.g. `tiny/model.yaml`.
    pub fn file(self, name: &str, contents: impl AsRef<[u8]>) -> Self {
        self.write(name, contents);
        self
    }

    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, contents).expect("a file");
    }

    /// One of `SAMPLES`, whole.
    pub fn sample(self, name: &str) -> Self {
        copy_folder(&root().join("model-store").join(name), &self.path().join(name));
        self
    }

    pub fn remove(&self, name: &str) {
        fs::remove_dir_all(self.path().join(name)).expect("a folder that is there");
    }
}

/// Every file below, names that begin with a dot among them, in order.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.path() {
            path if path.is_dir() => found.extend(files(&path)),
            path => found.push(path),
        }
    }
    found.sort();
    found
}

pub fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy_folder(&from, &to);
        } else {
            copy(&from, &to);
        }
    }
}

fn copy(from: &Path, to: &Path) {
    fs::copy(from, to).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
}

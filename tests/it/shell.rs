//! A shell like a reader's, in a folder like the repository's, where what documents and the server print is pasted.
//!
//! `sconce` is the one under test, `python3` the tests' own, `grpcurl` the real one where there is one.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use crate::{
    clients::python,
    harness::{Server, root, sconce},
};

/// A folder, and what is found on its `PATH`.
pub struct Shell {
    folder: tempfile::TempDir,
    /// The addresses of inference and of admin.
    server: [String; 2],
    has_grpcurl: bool,
    has_python: bool,
}

// === impl Shell ===

impl Shell {
    /// Clients talk to `server`, whose store is `model-store` here.
    pub fn beside(server: &Server) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let place = folder.path();
        fs::create_dir_all(place.join("target/release")).expect("a folder");
        fs::create_dir(place.join("bin")).expect("a folder");
        symlink(server.store.path(), place.join("model-store")).expect("a link");
        symlink(root().join("docs"), place.join("docs")).expect("a link");
        symlink(env!("CARGO_BIN_EXE_sconce"), place.join("target/release/sconce")).expect("a link");
        symlink(env!("CARGO_BIN_EXE_sconce"), place.join("bin/sconce")).expect("a link");
        let (python, grpcurl) = (python(), grpcurl());
        match (&grpcurl, &python) {
            (Some(grpcurl), _) => symlink(grpcurl, place.join("bin/grpcurl")).expect("a link"),
            (None, Some(python)) => {
                eprintln!("no grpcurl here: a reflection client in Python stands in for it");
                let script = root().join("tests/clients/python/grpcurl.py");
                program(&place.join("bin/grpcurl"), &[python, &script]);
            }
            (None, None) => eprintln!("no grpcurl here, and no Python to stand in for it: its lines are not run"),
        }
        if let Some(python) = &python {
            program(&place.join("bin/python3"), &[python]);
        }
        let address = |port: u16| format!("127.0.0.1:{port}");
        Self {
            server: [address(server.ports.grpc), address(server.ports.grpc_admin)],
            has_grpcurl: grpcurl.is_some() || python.is_some(),
            has_python: python.is_some(),
            folder,
        }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Whether all that the line calls is here.
    pub fn can_run(&self, line: &str) -> bool {
        (self.has_grpcurl || !line.contains("grpcurl")) && (self.has_python || !line.contains("python3"))
    }

    /// What the pasted lines print; they must succeed, each part of a pipe.
    #[track_caller]
    pub fn run(&self, lines: &str) -> String {
        let output = self.output(lines);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{lines}\n{}: {text}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        text
    }

    fn output(&self, lines: &str) -> Output {
        let mut command = Command::new("bash");
        // The environment of `sconce()`, without the developer's own settings.
        for (name, value) in sconce().get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let [inference, admin] = &self.server;
        command.env("SCONCE_SERVER", inference).env("SCONCE_ADMIN_SERVER", admin);
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", self.path().join("bin").display()));
        command.args(["-e", "-o", "pipefail", "-c", lines]).current_dir(self.path());
        command.output().expect("bash runs")
    }
}

/// On the path, or where `go install` puts it.
fn grpcurl() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join("go/bin"));
    let mut folders = std::env::split_paths(&path).chain(home);
    folders.find_map(|folder| Some(folder.join("grpcurl")).filter(|file| file.is_file()))
}

/// A program that hands its arguments on. A link would not do: a Python finds its packages by its own place.
fn program(file: &Path, words: &[&Path]) {
    let words: Vec<String> = words.iter().map(|word| format!("'{}'", word.display())).collect();
    fs::write(file, format!("#!/bin/sh\nexec {} \"$@\"\n", words.join(" "))).expect("a file");
    fs::set_permissions(file, fs::Permissions::from_mode(0o755)).expect("its mode");
}

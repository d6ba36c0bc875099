//! Reads the source and keeps what no compiler keeps: who may use whom, how long things are, where `unsafe` and the
//! protocols may stand. Each message says what to do instead.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// From the top of DESIGN's drawing to its bottom; `src/lib.rs` lists the modules in this order.
const LAYERS: [&str; 15] = [
    "cli",
    "app",
    "config",
    "server",
    "rollout",
    "engine",
    "lifecycle",
    "store",
    "catalog",
    "runtime",
    "backend",
    "monitor",
    "model",
    "telemetry",
    "error",
];

const FILE_LINES_MAX: usize = 400;
const FUNCTION_LINES_MAX: usize = 70;

/// Files that may be longer, each with its reason.
const LONG_FILES: [(&str, &str); 0] = [];

/// Where foreign functions are called, and memory is shared with the kernel; nowhere else is anything unsafe. A file or folder
/// that is named `ffi` needs no mention; the plugin is one through and through.
const FFI: [&str; 5] = [
    "src/backend/torch/library.rs",
    "src/runtime/malloc.rs",
    "src/runtime/marker.rs",
    "src/runtime/priority.rs",
    PLUGIN,
];
const PLUGIN: &str = "backends/torch/src/";

/// What the names of the protocol libraries begin with, and the folders that know them.
const PROTOCOLS: [&str; 3] = ["tonic", "prost", "hyper"];
const PROTOCOL_FOLDERS: [&str; 2] = ["src/server/", "src/cli/"];

/// One file of ours.
struct Source {
    /// From the repository's root, with `/`.
    path: String,
    text: String,
    /// Compiled for tests alone.
    is_test: bool,
}

#[test]
fn the_library_lists_its_modules_from_the_top_down() {
    let order = modules_of_the_library();
    let expected: Vec<&str> = LAYERS.into_iter().filter(|layer| order.iter().any(|name| name == layer)).collect();
    assert_eq!(
        order, expected,
        "src/lib.rs lists the modules in the order of DESIGN's drawing; a new one gets its place in LAYERS of this test"
    );
}

#[test]
fn modules_use_only_modules_below_them() {
    let mut wrong = Vec::new();
    for source in production() {
        let Some(own) = source.top_module().and_then(|name| place(&name)) else {
            continue;
        };
        for (line, used) in source.used_modules() {
            if place(&used).is_some_and(|used| used < own) {
                wrong.push(format!(
                    "{}:{line}: '{}' uses '{used}', which lies above it: move what both need down, or hand it in as an \
                     argument",
                    source.path, LAYERS[own]
                ));
            }
        }
    }
    report(&wrong);
}

#[test]
fn files_and_functions_are_short() {
    let mut wrong = Vec::new();
    for source in production() {
        let lines = source.code().lines().count();
        let excused = LONG_FILES.iter().any(|(path, _)| *path == source.path);
        if lines > FILE_LINES_MAX && !excused {
            wrong.push(format!(
                "{}: {lines} lines before its tests, past {FILE_LINES_MAX}: it does two things, give each a file",
                source.path
            ));
        }
        for (line, lines) in source.functions() {
            if lines > FUNCTION_LINES_MAX {
                wrong.push(format!(
                    "{}:{line}: a function of {lines} lines, past {FUNCTION_LINES_MAX}: name its steps and make them functions",
                    source.path
                ));
            }
        }
    }
    report(&wrong);
}

#[test]
fn unsafe_stands_in_the_ffi_files_alone() {
    let mut wrong = Vec::new();
    for source in sources() {
        let is_ffi = source.path.split(['/', '.']).any(|part| part == "ffi");
        if is_ffi || FFI.iter().any(|place| source.path.starts_with(place)) {
            continue;
        }
        for (line, text) in source.lines() {
            if words(&text).any(|word| word == "unsafe") {
                wrong.push(format!(
                    "{}:{line}: unsafe outside the FFI files: use a safe crate (rustix, bytemuck), or put the call into an \
                     ffi.rs that FFI of this test names",
                    source.path
                ));
            }
        }
    }
    report(&wrong);
}

#[test]
fn only_the_edge_and_the_clients_know_the_protocols() {
    let mut wrong = Vec::new();
    for source in production() {
        if !source.path.starts_with("src/") || PROTOCOL_FOLDERS.iter().any(|folder| source.path.starts_with(folder)) {
            continue;
        }
        for (line, text) in source.lines() {
            if let Some(library) = words(&text).find(|word| PROTOCOLS.iter().any(|name| word.starts_with(name))) {
                wrong.push(format!(
                    "{}:{line}: {library} outside src/server and src/cli: speak the words of `model`, and convert at the edge",
                    source.path
                ));
            }
        }
    }
    report(&wrong);
}

#[test]
fn what_is_banned_stays_out() {
    const BANS: [(&str, &str); 3] = [
        (".unwrap()", "return an Error, or `.expect(\"…: this is a bug\")` where it cannot happen"),
        ("thread::sleep", "wait for the event itself: a channel, or a condvar with a time-out"),
        ("std::process::exit", "it skips destructors, and so the drain: return an ExitCode from main"),
    ];
    let mut wrong = Vec::new();
    for source in production() {
        for (line, text) in source.lines() {
            for (banned, instead) in BANS {
                if text.contains(banned) {
                    wrong.push(format!("{}:{line}: {banned}: {instead}", source.path));
                }
            }
        }
    }
    report(&wrong);
}

#[test]
fn every_file_says_first_what_it_is() {
    let wrong: Vec<String> = sources()
        .iter()
        .filter(|source| !source.text.trim_start().starts_with("//!"))
        .map(|source| {
            format!(
                "{}: begin it with //!: what it owns, what it deliberately does not know, who calls it",
                source.path
            )
        })
        .collect();
    report(&wrong);
}

// === impl Source ===

impl Source {
    /// Without the unit tests at the bottom.
    fn code(&self) -> &str {
        let end = self.text.match_indices("#[cfg(test)]\n").find(|(at, mark)| {
            let after = self.text[at + mark.len()..].lines().next().unwrap_or_default();
            after.contains("mod ") && after.ends_with('{')
        });
        end.map_or(self.text.as_str(), |(at, _)| &self.text[..at])
    }

    /// The lines of the code with their numbers, without comments and without what stands in quotes.
    fn lines(&self) -> impl Iterator<Item = (usize, String)> {
        let bare = |line: &str| {
            let outside: String = line.split('"').step_by(2).collect();
            outside.split("//").next().unwrap_or_default().to_owned()
        };
        let lines = self.code().lines().enumerate();
        lines.map(move |(number, line)| (number + 1, bare(line)))
    }

    /// The module of the library that the file belongs to.
    fn top_module(&self) -> Option<String> {
        let inside = self.path.strip_prefix("src/")?;
        let name = inside.split('/').next()?.trim_end_matches(".rs");
        (name != "lib" && name != "main").then(|| name.to_owned())
    }

    /// How many `super::` lead from this file's module to the root.
    fn depth(&self) -> usize {
        let inside = self.path.trim_start_matches("src/").trim_end_matches(".rs");
        inside.trim_end_matches("/mod").split('/').count()
    }

    /// Each use of a module of the library, by `crate::` or by as many `super::` as lead to the root.
    fn used_modules(&self) -> Vec<(usize, String)> {
        let code: String = self.lines().map(|(_, line)| format!("{line}\n")).collect();
        let to_root = "super::".repeat(self.depth());
        let mut used = Vec::new();
        for prefix in ["crate::", &to_root] {
            for (at, _) in code.match_indices(prefix) {
                let line = code[..at].matches('\n').count() + 1;
                let longer = code[..at].ends_with("super::");
                if !longer {
                    used.extend(leading_names(&code[at + prefix.len()..]).into_iter().map(|name| (line, name)));
                }
            }
        }
        used
    }

    /// The line where each function begins, and how many lines it has. rustfmt puts its last brace under its first word.
    fn functions(&self) -> Vec<(usize, usize)> {
        let lines: Vec<&str> = self.code().lines().collect();
        let mut functions = Vec::new();
        for (number, line) in lines.iter().enumerate() {
            let indent = line.len() - line.trim_start().len();
            let is_function = !line.trim_start().starts_with("//") && words(line).any(|word| word == "fn");
            // A declaration without a body ends with a semicolon before any brace.
            let first_end = lines[number..].iter().find(|line| line.ends_with(['{', ';', '}']));
            if is_function && first_end.is_some_and(|line| line.ends_with('{')) {
                let last = format!("{}}}", " ".repeat(indent));
                let length = lines[number..].iter().position(|line| *line == last);
                functions.extend(length.map(|length| (number + 1, length + 1)));
            }
        }
        functions
    }
}

/// The first name of a path, or those of each path in a group: `a::B` gives a, `{a::B, c}` gives a and c.
fn leading_names(path: &str) -> Vec<String> {
    let name = |text: &str| text.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let Some(group) = path.strip_prefix('{') else {
        return vec![name(path)];
    };
    let mut names = Vec::new();
    let mut depth = 0;
    let mut begin = 0;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            ',' | '}' if depth == 0 => {
                names.push(name(&group[begin..at]));
                begin = at + 1;
                if c == '}' {
                    break;
                }
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
    names
}

fn place(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| *layer == module)
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_')
}

fn report(wrong: &[String]) {
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn modules_of_the_library() -> Vec<String> {
    let text = fs::read_to_string(root().join("src/lib.rs")).expect("src/lib.rs");
    let modules = text.lines().filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod "));
    modules.map(|module| module.trim_end_matches(';').to_owned()).collect()
}

/// What ships: the library, the program and the plugin.
fn production() -> Vec<Source> {
    let of_ours =
        |source: &Source| !source.is_test && (source.path.starts_with("src/") || source.path.starts_with(PLUGIN));
    sources().into_iter().filter(of_ours).collect()
}

fn sources() -> Vec<Source> {
    let mut files = vec![root().join("build.rs")];
    for folder in ["src", "backends/torch/src", "tests", "benches"] {
        collect(&root().join(folder), &mut files);
    }
    files.sort();
    let mut sources: Vec<Source> = files.iter().map(|file| read(file)).collect();
    let of_tests: Vec<String> = sources.iter().flat_map(test_modules).collect();
    for source in &mut sources {
        source.is_test |= of_tests
            .iter()
            .any(|module| source.path == format!("{module}.rs") || source.path.starts_with(&format!("{module}/")));
    }
    assert!(sources.len() > 20, "the source is not where this test looks for it");
    sources
}

/// The modules that a file declares for tests alone, as paths without `.rs`.
fn test_modules(source: &Source) -> Vec<String> {
    let folder = source.path.strip_suffix("/mod.rs").unwrap_or_else(|| source.path.trim_end_matches(".rs"));
    let folder = if folder == "src/lib" { "src" } else { folder };
    let lines: Vec<&str> = source.text.lines().collect();
    let mut modules = Vec::new();
    for (number, _) in lines.iter().enumerate().filter(|(_, line)| **line == "#[cfg(test)]") {
        let mut after = lines[number + 1..].iter();
        let mut next = after.next().copied().unwrap_or_default();
        if let Some(file) = next.strip_prefix("#[path = \"").and_then(|rest| rest.strip_suffix(".rs\"]")) {
            let (parent, _) = source.path.rsplit_once('/').unwrap_or_default();
            modules.push(format!("{parent}/{file}"));
            next = after.next().copied().unwrap_or_default();
        }
        let name = next.split("mod ").nth(1).and_then(|name| name.strip_suffix(';'));
        modules.extend(name.map(|name| format!("{folder}/{name}")));
    }
    modules
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

fn read(file: &Path) -> Source {
    let path = file.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned();
    let text = fs::read_to_string(file).expect("a source file is UTF-8");
    let is_test = path.starts_with("tests/") || path.starts_with("benches/");
    Source { path, text, is_test }
}

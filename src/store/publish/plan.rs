//! What will be published, worked out from the files alone: what version.yaml becomes, which digest the version has, and
//! whether what is there already is the same. Pure.

use std::collections::BTreeMap;

use serde_yaml_ng::{Mapping, Value};
use sha2::{Digest, Sha256};

use crate::{
    error::{Code, Error, Result},
    model::{FileEntry, VersionYaml, parse_yaml},
};

pub const VERSION_YAML: &str = "version.yaml";

/// A file's sha256 in hexadecimal, and its size in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Print {
    pub sha256: String,
    pub size: u64,
}

/// Files by their names inside the version, `/` between folders.
pub type Prints = BTreeMap<String, Print>;

/// The text of version.yaml that names every file of `files` with its checksum and size, and keeps all else that a person
/// wrote, comments included where that is possible. A text that names them all stays as it is, byte for byte; so this is
/// the same for the same files, whoever publishes them and however often.
///
/// DIGEST_MISMATCH is a checksum or size that is another one than the person wrote, MISSING_FILE a name without a file,
/// INVALID_MANIFEST a text that cannot be read.
pub fn version_yaml(written: &str, files: &Prints) -> Result<String> {
    let named = VersionYaml::parse(written)?.files;
    hold_promises(&named, files)?;
    let is_whole =
        files.iter().all(|(name, print)| named.get(name).is_some_and(|entry| entry.size == Some(print.size)));
    if is_whole && !files.is_empty() {
        return Ok(written.to_owned());
    }
    let wanted = with_files(written, files)?;
    let edited = replace_block(written, &block(files));
    match parse_yaml::<Value>(VERSION_YAML, &edited) {
        Ok(value) if value == Value::Mapping(wanted.clone()) => Ok(edited),
        // Not written in a way that can be edited line by line: the comments are lost, nothing else.
        _ => serde_yaml_ng::to_string(&wanted)
            .map_err(|error| Error::invalid("INVALID_MANIFEST", format!("version.yaml cannot be written: {error}"))),
    }
}

/// Whether version.yaml names every one of these files with checksum and size, which all are right. What was published
/// does.
pub fn names_all(written: &str, files: &Prints) -> Result<bool> {
    Ok(version_yaml(written, files)? == written)
}

/// Whether two texts of version.yaml say the same. How they are written does not matter.
pub fn says_the_same(one: &str, other: &str) -> bool {
    let read = |text: &str| parse_yaml::<Value>(VERSION_YAML, text).ok();
    one == other || read(one).is_some_and(|one| read(other) == Some(one))
}

/// The digest that a server shows of a version with these files, version.yaml among them.
pub fn digest(files: &Prints) -> String {
    let mut total = Sha256::new();
    for (name, print) in files {
        for part in [name, &print.sha256] {
            total.update(part.as_bytes());
            total.update([0]);
        }
    }
    hex::encode(total.finalize())
}

pub fn print_of(bytes: &[u8]) -> Print {
    Print { sha256: hex::encode(Sha256::digest(bytes)), size: bytes.len() as u64 }
}

/// Each file that is named is there, and is what was said of it.
fn hold_promises(named: &BTreeMap<String, FileEntry>, files: &Prints) -> Result<()> {
    let broken = |reason, sentence: String| Err(Error::new(Code::FailedPrecondition, reason, sentence));
    for (name, entry) in named {
        let Some(print) = files.get(name) else {
            return broken("MISSING_FILE", format!("version.yaml names '{name}', which is not there"));
        };
        if entry.size.is_some_and(|size| size != print.size) {
            let size = entry.size.unwrap_or_default();
            return broken("DIGEST_MISMATCH", format!("'{name}' has {} bytes, version.yaml says {size}", print.size));
        }
        if !entry.sha256.eq_ignore_ascii_case(&print.sha256) {
            let sentence = format!("the sha256 of '{name}' is {}, version.yaml says {}", print.sha256, entry.sha256);
            return broken("DIGEST_MISMATCH", sentence);
        }
    }
    Ok(())
}

/// What the text says, with `files:` as it has to be.
fn with_files(written: &str, files: &Prints) -> Result<Mapping> {
    let mut wanted = match parse_yaml::<Value>(VERSION_YAML, written)? {
        Value::Mapping(mapping) => mapping,
        _ => Mapping::new(),
    };
    let entry = |print: &Print| {
        let fields = [("sha256", Value::from(print.sha256.as_str())), ("size", Value::from(print.size))];
        Value::Mapping(fields.into_iter().map(|(key, value)| (key.into(), value)).collect())
    };
    let entries: Mapping = files.iter().map(|(name, print)| (name.as_str().into(), entry(print))).collect();
    wanted.insert("files".into(), Value::Mapping(entries));
    Ok(wanted)
}

fn block(files: &Prints) -> String {
    let mut block = String::from("files:\n");
    for (name, print) in files {
        // JSON's texts are YAML's, whatever stands in a name.
        let name = serde_json::to_string(name).expect("a text is JSON: this is a bug");
        block += &format!("  {name}:\n    sha256: \"{}\"\n    size: {}\n", print.sha256, print.size);
    }
    block
}

/// The text with its top-level `files:` replaced by `block`, or with `block` before all else but the comments at its head.
/// It may come out wrong where somebody writes YAML in another way, which the caller finds out by reading it.
fn replace_block(written: &str, block: &str) -> String {
    let lines: Vec<&str> = written.split_inclusive('\n').collect();
    let is_files = |line: &&str| line.split(':').next().is_some_and(|key| key.trim_end() == "files");
    let is_inside = |line: &&str| line.starts_with([' ', '\t', '-']) || line.trim().is_empty();
    let (before, after) = match lines.iter().position(is_files) {
        Some(at) => {
            let end = lines[at + 1..].iter().take_while(|line| is_inside(line)).count();
            (&lines[..at], &lines[at + 1 + end..])
        }
        None => {
            let head = lines.iter().take_while(|line| line.starts_with(['#', '\n'])).count();
            lines.split_at(head)
        }
    };
    let mut text = before.concat();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text + block + &after.concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn files(names: &[&str]) -> Prints {
        names.iter().map(|name| ((*name).to_owned(), print_of(name.as_bytes()))).collect()
    }

    fn reason(written: &str, files: &Prints) -> &'static str {
        version_yaml(written, files).expect_err("it is refused").reason()
    }

    #[test]
    fn what_a_person_wrote_stays() {
        let written = "# Target: up or down.\nlibrary: x 1 # exactly\nclasses: [down, up]\n";
        let text = version_yaml(written, &files(&["model.onnx"])).expect("it can be written");
        assert!(text.starts_with("# Target: up or down.\nfiles:\n  \"model.onnx\":\n"), "{text}");
        assert!(text.ends_with("library: x 1 # exactly\nclasses: [down, up]\n"), "{text}");
        assert_eq!(version_yaml(&text, &files(&["model.onnx"])).expect("good"), text);
    }

    #[test]
    fn a_text_that_names_some_files_comes_to_name_all() {
        let one = version_yaml("", &files(&["a"])).expect("good") + "# the end\nlibrary: y\n";
        let text = version_yaml(&one, &files(&["a", "b/c d"])).expect("good");
        assert_eq!(VersionYaml::parse(&text).expect("it reads").files.len(), 2);
        assert!(text.ends_with("# the end\nlibrary: y\n"), "{text}");
        // YAML in one line, and a document's marks: said in other lines, and nothing is lost.
        for written in ["{library: y}", "---\nlibrary: y\n...\n", "files: {}\nlibrary: y", "library: y"] {
            let text = version_yaml(written, &files(&["a"])).expect("good");
            let read = VersionYaml::parse(&text).expect("it reads");
            assert_eq!((read.files.len(), read.library.as_deref()), (1, Some("y")), "{text}");
        }
    }

    #[test]
    fn a_promise_that_does_not_hold_is_refused() {
        let there = files(&["a"]);
        assert_eq!(reason("files: { a: { sha256: '00' } }", &there), "DIGEST_MISMATCH");
        let sha256 = &there["a"].sha256;
        assert_eq!(reason(&format!("files: {{ a: {{ sha256: '{sha256}', size: 2 }} }}"), &there), "DIGEST_MISMATCH");
        assert_eq!(reason("files: { b: { sha256: '00' } }", &there), "MISSING_FILE");
        assert_eq!(reason("fils: {}", &there), "INVALID_MANIFEST");
        let capitals = format!("files: {{ a: {{ sha256: '{}', size: 1 }} }}", sha256.to_uppercase());
        assert!(names_all(&capitals, &there).expect("good"));
        assert!(!names_all("library: y", &there).expect("good"));
    }

    #[test]
    fn how_it_is_written_does_not_make_another_version() {
        assert!(says_the_same("library: y # z\n", "{\"library\": y}"));
        assert!(!says_the_same("library: y", "library: z"));
        assert!(!says_the_same("library: y", "library: ["));
    }

    proptest! {
        #[test]
        fn every_file_is_named_and_a_repeat_changes_nothing(
            names in proptest::collection::btree_set("[ -~äß]{1,20}", 1..6),
            before in 0..6_usize,
            library in "[ -~]{0,20}",
        ) {
            let all: Prints = names.iter().map(|name| (name.clone(), print_of(name.as_bytes()))).collect();
            let some: Prints = all.clone().into_iter().take(before).collect();
            let library = serde_json::to_string(&library).expect("JSON");
            let rest = format!("# why: because\nlibrary: {library}\n");
            let written = if some.is_empty() { rest } else { block(&some) + &rest };
            let text = version_yaml(&written, &all).expect("it can be written");
            let (now, then) = (VersionYaml::parse(&text).expect("it reads"), VersionYaml::parse(&written).expect("it reads"));
            let named: Prints = now.files.iter().map(|(name, entry)| {
                (name.clone(), Print { sha256: entry.sha256.clone(), size: entry.size.unwrap_or_default() })
            }).collect();
            prop_assert_eq!(&named, &all);
            prop_assert_eq!(VersionYaml { files: BTreeMap::new(), ..now }, VersionYaml { files: BTreeMap::new(), ..then });
            prop_assert!(text.contains("# why: because"));
            prop_assert_eq!(version_yaml(&text, &all).expect("again"), text);
        }
    }
}

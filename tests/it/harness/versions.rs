//! Versions that tell themselves apart by what they answer, and how a publisher puts them into a store.

use std::{fs, io, path::Path, time::Instant};

use sha2::{Digest, Sha256};

use super::wire;

/// When the parts of a publication were done.
#[derive(Clone, Copy, Debug)]
pub struct Published {
    /// Before the first byte was written.
    pub begun: Instant,
    /// Every file is there, still under a name that nobody looks at.
    pub copied: Instant,
    /// The folder has its name.
    pub complete: Instant,
}

/// An ONNX model: `y` = `x` + `offset`, FP32 [-1, 1]. Whoever sees an answer knows the model that gave it.
pub fn adder(offset: f32) -> Vec<u8> {
    const FLOAT: u64 = 1;
    let value_info = |name: &str| {
        let rows = wire::field(1, &wire::field(2, b"n"));
        let column = wire::field(1, &wire::number(1, 1));
        let tensor = [wire::number(1, FLOAT), wire::field(2, &[rows, column].concat())].concat();
        [wire::field(1, name.as_bytes()), wire::field(2, &wire::field(1, &tensor))].concat()
    };
    let node = [wire::field(1, b"x"), wire::field(1, b"offset"), wire::field(2, b"y"), wire::field(4, b"Add")].concat();
    let offset =
        [wire::number(1, 1), wire::number(2, FLOAT), wire::field(8, b"offset"), wire::field(9, &offset.to_le_bytes())];
    let graph = [
        wire::field(1, &node),
        wire::field(2, b"adder"),
        wire::field(5, &offset.concat()),
        wire::field(11, &value_info("x")),
        wire::field(12, &value_info("y")),
    ];
    [wire::number(1, 8), wire::field(7, &graph.concat()), wire::field(8, &wire::number(2, 13))].concat()
}

/// Writes a version with its `version.yaml` beside its place in the folder of the model, and renames it into place. `about` is
/// what `version.yaml` says beside the files.
pub fn publish(model: &Path, version: &str, files: &[(&str, &[u8])], about: &str) -> io::Result<Published> {
    let begun = Instant::now();
    let beside = model.join(format!(".{version}.tmp"));
    fs::create_dir_all(&beside)?;
    let mut yaml = format!("{about}\nfiles:\n");
    for (name, bytes) in files {
        fs::write(beside.join(name), bytes)?;
        let sha256 = hex::encode(Sha256::digest(bytes));
        yaml += &format!("  {name}: {{ sha256: \"{sha256}\", size: {} }}\n", bytes.len());
    }
    fs::write(beside.join("version.yaml"), yaml)?;
    let copied = Instant::now();
    fs::rename(beside, model.join(version))?;
    Ok(Published { begun, copied, complete: Instant::now() })
}

//! Artifacts that no fixture holds. Those of about a megabyte in memory are large enough that one which stays there shows.

use std::fmt::Write as _;

use super::{fixture, wire};

/// A side of the square of weights: 1 MiB of floats.
pub const SIDE: usize = 512;

/// `y = x · w` with `w` of SIDE × SIDE floats. The seed makes other bytes.
pub fn large_onnx(seed: u8) -> Vec<u8> {
    square_onnx(seed, SIDE)
}

/// The same of any side.
pub fn square_onnx(seed: u8, width: usize) -> Vec<u8> {
    const FLOAT: u64 = 1;
    let side = width as u64;
    let value_info = |name: &str| {
        let dims = [wire::field(2, b"n"), wire::number(1, side)].map(|dim| wire::field(1, &dim)).concat();
        let tensor = [wire::number(1, FLOAT), wire::field(2, &dims)].concat();
        [wire::field(1, name.as_bytes()), wire::field(2, &wire::field(1, &tensor))].concat()
    };
    let weights = [
        wire::number(1, side),
        wire::number(1, side),
        wire::number(2, FLOAT),
        wire::field(8, b"w"),
        wire::field(9, &weights(seed, width * width)),
    ];
    let node = [wire::field(1, b"x"), wire::field(1, b"w"), wire::field(2, b"y"), wire::field(4, b"MatMul")];
    let graph = [
        wire::field(1, &node.concat()),
        wire::field(2, b"large"),
        wire::field(5, &weights.concat()),
        wire::field(11, &value_info("x")),
        wire::field(12, &value_info("y")),
    ];
    [wire::number(1, 8), wire::field(7, &graph.concat()), wire::field(8, &wire::number(2, 13))].concat()
}

/// The trees of a fixture, many times over: 370 kB of text.
pub fn large_lightgbm(seed: u8) -> Vec<u8> {
    const TREES: usize = 500;
    let text = std::fs::read_to_string(fixture("lightgbm/regression.txt")).expect("a fixture");
    let (header, rest) = text.split_once("Tree=0\n").expect("a first tree");
    let (body, rest) = rest.split_once("Tree=1\n").expect("a second tree");
    let (_, tail) = rest.split_once("end of trees").expect("an end");
    let (mut sizes, mut trees) = (String::from("tree_sizes="), String::new());
    for index in 0..TREES {
        let gain = format!("split_gain=1{seed:03}");
        let tree = format!("Tree={index}\n{}", body.replacen("split_gain=1562", &gain, 1));
        let _ = write!(sizes, "{}{}", if index == 0 { "" } else { " " }, tree.len());
        trees += &tree;
    }
    let known = header.lines().filter(|line| !line.starts_with("tree_sizes=") && !line.is_empty());
    let known: Vec<&str> = known.collect();
    format!("{}\n{sizes}\n\n{trees}end of trees{tail}", known.join("\n")).into_bytes()
}

/// A linear layer of SIDE × SIDE floats, after `torch/plain.pt`.
pub fn large_torch(seed: u8) -> Vec<u8> {
    let old = std::fs::read(fixture("torch/plain.pt")).expect("a fixture");
    let side = u16::try_from(SIDE).expect("a short side").to_le_bytes();
    let wide = |small: &[u8], large: &[&[u8]]| (small.to_vec(), large.concat());
    let elements = u32::try_from(SIDE * SIDE).expect("few enough").to_le_bytes();
    // Pickle: K is a number of one byte, M of two, J of four; sizes and strides of the two tensors.
    let pickled = [
        wide(b"K\x08tQ", &[b"J", &elements, b"tQ"]),
        wide(b"(K\x02K\x04t(K\x04K\x01t", &[b"(M", &side, b"M", &side, b"t(M", &side, b"K\x01t"]),
        wide(b"K\x02tQ", &[b"M", &side, b"tQ"]),
        wide(b"(K\x02t(K\x01t", &[b"(M", &side, b"t(K\x01t"]),
    ];
    let entries = stored_entries(&old).into_iter().map(|(name, bytes)| {
        let bytes = match name.as_str() {
            "plain/data/0" => weights(seed, SIDE * SIDE),
            "plain/data/1" => weights(seed, SIDE),
            "plain/data.pkl" => pickled.iter().fold(bytes, |bytes, (old, new)| replaced(&bytes, old, new)),
            _ => bytes,
        };
        (name, bytes)
    });
    zip(&entries.collect::<Vec<_>>())
}

/// What `large_torch` takes and gives.
pub fn large_torch_yaml() -> String {
    let spec = |name| format!("[{{ name: {name}, dtype: FP32, shape: [-1, {SIDE}] }}]");
    format!("platform: torchscript\ninputs: {}\noutputs: {}\n", spec("x"), spec("y"))
}

/// ONNX's ConstantOfShape: as many zeros as the request asks for.
pub fn greedy() -> Vec<u8> {
    const FLOAT: u64 = 1;
    const INT64: u64 = 7;
    let value_info = |name: &str, kind: u64| {
        let dim = wire::field(1, &wire::field(2, b"n"));
        let tensor = [wire::number(1, kind), wire::field(2, &dim)].concat();
        [wire::field(1, name.as_bytes()), wire::field(2, &wire::field(1, &tensor))].concat()
    };
    let node = [wire::field(1, b"shape"), wire::field(2, b"y"), wire::field(4, b"ConstantOfShape")].concat();
    let graph = [
        wire::field(1, &node),
        wire::field(2, b"greedy"),
        wire::field(11, &value_info("shape", INT64)),
        wire::field(12, &value_info("y", FLOAT)),
    ];
    [wire::number(1, 8), wire::field(7, &graph.concat()), wire::field(8, &wire::number(2, 13))].concat()
}

fn weights(seed: u8, count: usize) -> Vec<u8> {
    (0..count).flat_map(|place| ((place % 251) as f32 / 1e4 + f32::from(seed)).to_le_bytes()).collect()
}

fn replaced(bytes: &[u8], old: &[u8], new: &[u8]) -> Vec<u8> {
    let at = bytes.windows(old.len()).position(|window| window == old).expect("a pickle as torch writes it");
    [&bytes[..at], new, &bytes[at + old.len()..]].concat()
}

/// Of a zip archive that compresses nothing, by its directory.
fn stored_entries(archive: &[u8]) -> Vec<(String, Vec<u8>)> {
    let short = |at: usize| usize::from(u16::from_le_bytes([archive[at], archive[at + 1]]));
    let long = |at: usize| short(at) | short(at + 2) << 16;
    let places = archive.windows(4).enumerate().filter(|(_, window)| *window == b"PK\x01\x02");
    let entries = places.map(|(at, _)| {
        let name = String::from_utf8_lossy(&archive[at + 46..at + 46 + short(at + 28)]).into_owned();
        let (size, local) = (long(at + 24), long(at + 42));
        let begin = local + 30 + short(local + 26) + short(local + 28);
        (name, archive[begin..begin + size].to_vec())
    });
    entries.collect()
}

fn zip(entries: &[(String, Vec<u8>)]) -> Vec<u8> {
    let (mut archive, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in entries {
        let size = u32::try_from(bytes.len()).expect("a short file").to_le_bytes();
        let length = u16::try_from(name.len()).expect("a short name").to_le_bytes();
        let offset = u32::try_from(archive.len()).expect("a short archive").to_le_bytes();
        let crc = crc32fast::hash(bytes).to_le_bytes();
        // Version, flags, stored, no time; checksum, both sizes, the name's length and no more fields.
        let common = [&[20, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &crc, &size, &size, &length, &[0, 0]].concat();
        archive.extend([b"PK\x03\x04", &common[..], name.as_bytes(), bytes].concat());
        directory.extend([b"PK\x01\x02\x14\0", &common[..], &[0; 10], &offset, name.as_bytes()].concat());
    }
    let count = u16::try_from(entries.len()).expect("few entries").to_le_bytes();
    let size = u32::try_from(directory.len()).expect("a short directory").to_le_bytes();
    let offset = u32::try_from(archive.len()).expect("a short archive").to_le_bytes();
    [&archive[..], &directory, b"PK\x05\x06\0\0\0\0", &count, &count, &size, &offset, &[0, 0]].concat()
}

//! A model that takes large images and gives little back: the mean of each channel.

use crate::wire::{field, number};

pub const CHANNELS: usize = 3;
pub const SIDE: usize = 224;

/// What `model.onnx` holds: `x` [-1, 3, 224, 224] → `y` [-1, 3, 1, 1].
pub fn onnx() -> Vec<u8> {
    let node = [field(1, b"x"), field(2, b"y"), field(4, b"GlobalAveragePool")].concat();
    let graph = [
        field(1, &node),
        field(2, b"image"),
        field(11, &value("x", [CHANNELS, SIDE, SIDE])),
        field(12, &value("y", [CHANNELS, 1, 1])),
    ];
    [number(1, 8), field(7, &graph.concat()), field(8, &number(2, 13))].concat()
}

/// FP32, of any number of rows.
fn value(name: &str, dims: [usize; 3]) -> Vec<u8> {
    let rows = field(1, &field(2, b"rows"));
    let dims = dims.into_iter().flat_map(|dim| field(1, &number(1, dim as u64)));
    let shape: Vec<u8> = rows.into_iter().chain(dims).collect();
    let tensor = [number(1, 1), field(2, &shape)].concat();
    [field(1, name.as_bytes()), field(2, &field(1, &tensor))].concat()
}

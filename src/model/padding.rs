//! A variable dimension, filled up to given sizes, so that requests of different lengths can share a batch; and what comes out,
//! cut back to the length that went in.
//!
//! Pure. `runtime` pads what it joins; the child of `lifecycle` shows by the same functions that it may.

use bytes::{Bytes, BytesMut};
use half::{bf16, f16};
use serde::{Deserialize, Deserializer, Serialize, de};

use super::{DType, Shape, Signature, Tensor, TensorSpec};

/// `pad:` of an input, as people write it.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PadYaml {
    /// The second dimension where it is not said; the first is that of the rows.
    #[serde(default = "second")]
    pub dim: usize,
    pub to: Vec<usize>,
    /// What it is filled up with.
    #[serde(default, deserialize_with = "finite")]
    pub value: f64,
}

/// `unpad:` of an output, as people write it.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct UnpadYaml {
    /// The input whose padded dimension it follows.
    pub like: String,
    /// The number of the input's padded dimension where it is not said.
    pub dim: Option<usize>,
}

/// How an input is padded.
#[derive(Clone, Debug, PartialEq)]
pub struct Pad {
    pub dim: usize,
    /// Ascending, at least one, none of them 0. The last is the most that a request may have.
    pub to: Vec<usize>,
    pub value: Filler,
}

/// One element, as little-endian bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Filler {
    bytes: [u8; 8],
    size: usize,
}

/// How an output is cut back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Unpad {
    pub dim: usize,
    /// The place in the signature of the input that it follows; that one pads.
    pub input: usize,
}

fn second() -> usize {
    1
}

/// The child reads the options as JSON, which knows no other numbers.
fn finite<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let value = f64::deserialize(deserializer)?;
    let wrong = || de::Error::custom("pad: value is a finite number");
    value.is_finite().then_some(value).ok_or_else(wrong)
}

// === impl Pad ===

impl Pad {
    /// What a dimension of that size becomes. Nothing is not padded, and what is too large stays what it is.
    pub fn size(&self, dim: usize) -> usize {
        if dim == 0 {
            return 0;
        }
        self.to.iter().copied().find(|size| *size >= dim).unwrap_or(dim)
    }

    pub fn largest(&self) -> usize {
        self.to.last().copied().unwrap_or(0)
    }

    /// The tensor's shape after padding.
    pub fn shape(&self, shape: &Shape) -> Shape {
        let mut padded = shape.clone();
        padded[self.dim] = self.size(shape[self.dim]);
        padded
    }

    /// The bytes that the tensor's elements take after padding.
    pub fn bytes(&self, tensor: &Tensor) -> usize {
        let dim = tensor.shape[self.dim];
        tensor.data.len().checked_div(dim).unwrap_or(0) * self.size(dim)
    }

    /// Copies the elements, and the filler between them, into `padded`, which has just the room. Returns the bytes of filler.
    pub fn copy(&self, tensor: &Tensor, padded: &mut [u8]) -> usize {
        let count = tensor.shape[..self.dim].iter().product::<usize>();
        if count == 0 || padded.is_empty() {
            return 0;
        }
        let (given, room) = (tensor.data.len() / count, padded.len() / count);
        for (place, block) in padded.chunks_exact_mut(room).enumerate() {
            let (elements, rest) = block.split_at_mut(given);
            elements.copy_from_slice(&tensor.data[place * given..(place + 1) * given]);
            self.value.fill(rest);
        }
        count * (room - given)
    }
}

// === impl Filler ===

impl Filler {
    /// `None` where the type has no such element.
    pub fn new(dtype: DType, value: f64) -> Option<Self> {
        macro_rules! int {
            ($kind:ty) => {{
                let whole = value as $kind;
                (whole as f64 == value).then(|| Self::of(&whole.to_le_bytes()))
            }};
        }
        match dtype {
            DType::Bool => (value == 0.0 || value == 1.0).then(|| Self::of(&[value as u8])),
            DType::Uint8 => int!(u8),
            DType::Uint16 => int!(u16),
            DType::Uint32 => int!(u32),
            DType::Uint64 => int!(u64),
            DType::Int8 => int!(i8),
            DType::Int16 => int!(i16),
            DType::Int32 => int!(i32),
            DType::Int64 => int!(i64),
            DType::Fp16 => Some(Self::of(&f16::from_f64(value).to_le_bytes())),
            DType::Bf16 => Some(Self::of(&bf16::from_f64(value).to_le_bytes())),
            DType::Fp32 => Some(Self::of(&(value as f32).to_le_bytes())),
            DType::Fp64 => Some(Self::of(&value.to_le_bytes())),
            DType::Bytes => None,
        }
    }

    fn of(element: &[u8]) -> Self {
        let mut bytes = [0; 8];
        bytes[..element.len()].copy_from_slice(element);
        Self { bytes, size: element.len() }
    }

    fn fill(&self, room: &mut [u8]) {
        let element = &self.bytes[..self.size];
        if element.iter().all(|byte| *byte == element[0]) {
            return room.fill(element[0]);
        }
        room.chunks_exact_mut(self.size).for_each(|place| place.copy_from_slice(element));
    }
}

// === impl TensorSpec ===

impl TensorSpec {
    /// Whether requests with such tensors may share a batch: of the padded dimension only what it becomes counts.
    pub fn joins(&self, mine: &[usize], theirs: &[usize], pads: bool) -> bool {
        let Some(pad) = self.pad.as_ref().filter(|_| pads) else {
            return mine[1..] == theirs[1..];
        };
        let mut dims = mine.iter().zip(theirs).enumerate().skip(1);
        mine.len() == theirs.len()
            && dims
                .all(|(dim, (&mine, &theirs))| mine == theirs || (dim == pad.dim && pad.size(mine) == pad.size(theirs)))
    }
}

// === impl Signature ===

impl Signature {
    pub fn pads(&self) -> bool {
        self.inputs.iter().any(|spec| spec.pad.is_some())
    }

    /// Whether there is anything to fill up in these inputs.
    pub fn needs_padding(&self, inputs: &[Tensor]) -> bool {
        let needs = |(spec, tensor): (&TensorSpec, &Tensor)| {
            spec.pad.as_ref().is_some_and(|pad| pad.size(tensor.shape[pad.dim]) != tensor.shape[pad.dim])
        };
        self.inputs.iter().zip(inputs).any(needs)
    }

    /// How long the dimension of these inputs is that an output follows, as it came and as it becomes.
    pub fn followed(&self, unpad: Unpad, inputs: &[Tensor]) -> Option<(usize, usize)> {
        let pad = self.inputs[unpad.input].pad.as_ref()?;
        let came = inputs[unpad.input].shape[pad.dim];
        Some((came, pad.size(came)))
    }

    /// An output for these inputs, cut back where it follows a padded dimension.
    pub fn unpadded(&self, output: usize, tensor: Tensor, inputs: &[Tensor]) -> Tensor {
        let Some(unpad) = self.outputs[output].unpad else {
            return tensor;
        };
        match self.followed(unpad, inputs) {
            Some((came, padded)) if came != padded && tensor.shape[unpad.dim] == padded => cut(tensor, unpad.dim, came),
            _ => tensor,
        }
    }
}

/// The tensor without what lies past the first `size` of a dimension.
pub fn cut(tensor: Tensor, dim: usize, size: usize) -> Tensor {
    let count = tensor.shape[..dim].iter().product::<usize>();
    let mut shape = tensor.shape.clone();
    shape[dim] = size;
    let data = match count {
        0 => Bytes::new(),
        count => {
            let all = tensor.data.len() / count;
            let of_one = all.checked_div(tensor.shape[dim]).unwrap_or(0);
            blocks(&tensor.data, count, all, of_one * size)
        }
    };
    Tensor { shape, data, ..tensor }
}

/// The first `kept` bytes of each block of `all`. Of one block nothing is copied.
fn blocks(data: &Bytes, count: usize, all: usize, kept: usize) -> Bytes {
    if count == 1 {
        return data.slice(..kept);
    }
    let mut left = BytesMut::with_capacity(count * kept);
    for place in 0..count {
        left.extend_from_slice(&data[place * all..place * all + kept]);
    }
    left.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::bytes_from;
    use proptest::prelude::*;

    fn pad(dim: usize, to: &[usize], dtype: DType, value: f64) -> Pad {
        Pad { dim, to: to.to_vec(), value: Filler::new(dtype, value).expect("it has such an element") }
    }

    fn tensor(shape: &[usize], values: Vec<i32>) -> Tensor {
        Tensor::new("x".into(), DType::Int32, Shape::from_slice(shape), bytes_from(values)).expect("a tensor")
    }

    fn padded(pad: &Pad, tensor: &Tensor) -> Tensor {
        let shape = pad.shape(&tensor.shape);
        let mut data = vec![0xaa; shape.iter().product::<usize>() * 4];
        pad.copy(tensor, &mut data);
        Tensor { shape, data: data.into(), ..tensor.clone() }
    }

    #[test]
    fn the_next_size_is_the_size() {
        let pad = pad(1, &[4, 8], DType::Int32, 0.0);
        for (came, becomes) in [(0, 0), (1, 4), (4, 4), (5, 8), (8, 8), (9, 9)] {
            assert_eq!(pad.size(came), becomes, "{came}");
        }
        assert_eq!(pad.largest(), 8);
    }

    #[test]
    fn each_row_is_filled_up_behind_its_own_elements() {
        let filled = padded(&pad(1, &[3], DType::Int32, -1.0), &tensor(&[2, 2], vec![1, 2, 3, 4]));
        assert_eq!(filled, tensor(&[2, 3], vec![1, 2, -1, 3, 4, -1]));
        let filled = padded(&pad(1, &[2], DType::Int32, 7.0), &tensor(&[2, 1, 2], vec![1, 2, 3, 4]));
        assert_eq!(filled, tensor(&[2, 2, 2], vec![1, 2, 7, 7, 3, 4, 7, 7]));
    }

    #[test]
    fn a_filler_is_an_element_of_its_type() {
        for (dtype, value, fits) in [
            (DType::Bool, 1.0, true),
            (DType::Bool, 2.0, false),
            (DType::Uint8, 255.0, true),
            (DType::Uint8, 256.0, false),
            (DType::Int64, -1.0, true),
            (DType::Int64, 0.5, false),
            (DType::Fp16, 0.5, true),
            (DType::Bytes, 0.0, false),
        ] {
            assert_eq!(Filler::new(dtype, value).is_some(), fits, "{dtype} {value}");
        }
    }

    #[test]
    fn lengths_join_where_they_become_the_same() {
        let spec = TensorSpec {
            pad: Some(pad(1, &[4, 8], DType::Int32, 0.0)),
            ..TensorSpec::new("x", DType::Int32, &[-1, -1, 2])
        };
        let joins = |mine: [usize; 3], theirs: [usize; 3]| spec.joins(&mine, &theirs, true);
        assert!(joins([1, 1, 2], [3, 4, 2]));
        assert!(!joins([1, 4, 2], [1, 5, 2]), "another size");
        assert!(!joins([1, 4, 2], [1, 4, 3]), "another dimension");
        assert!(!joins([1, 0, 2], [1, 1, 2]), "nothing is not padded");
        assert!(!spec.joins(&[1, 1, 2], &[1, 2, 2], false));
    }

    proptest! {
        /// Of any rank, along any dimension: what was padded is cut back to what it was.
        #[test]
        fn what_was_padded_is_cut_back(
            shape in proptest::collection::vec(0usize..4, 2..5),
            dim in 1usize..4,
            sizes in proptest::collection::btree_set(1usize..9, 1..4),
        ) {
            let dim = dim.min(shape.len() - 1);
            let given = tensor(&shape, (0..).take(shape.iter().product()).collect());
            let pad = pad(dim, &sizes.into_iter().collect::<Vec<_>>(), DType::Int32, -1.0);
            let filled = padded(&pad, &given);
            let fillers = bytemuck::pod_collect_to_vec::<u8, i32>(&filled.data).iter().filter(|value| **value == -1).count();
            prop_assert_eq!(fillers, filled.element_count() - given.element_count());
            prop_assert!(Tensor::new("x".into(), filled.dtype, filled.shape.clone(), filled.data.clone()).is_ok());
            prop_assert_eq!(cut(filled, dim, shape[dim]), given);
        }
    }
}

//! Inputs that nobody gave, made up by type and shape. Pure: the seed is an argument.

use bytes::Bytes;
use half::{bf16, f16};
use serde::{Deserialize, Serialize};

use crate::model::{DType, Shape, Signature, Tensor, TensorSpec, bytes_from, length_prefixed};

/// How inputs are made up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Recipe {
    style: Style,
    /// What every free dimension but the first becomes.
    free: usize,
    /// What those become that are padded, where it is another.
    #[serde(default)]
    padded: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
enum Style {
    /// Floats in -1..1, integers 1..8: a divisor of 0 would kill the child, and prove nothing.
    Random,
    /// Everything 0 or 1: what indexes a small table, or means yes and no.
    Bits,
    Ones,
    Zeros,
}

// === impl Recipe ===

impl Recipe {
    /// In the order to try them.
    pub fn all() -> impl Iterator<Item = Recipe> {
        const STYLES: [Style; 4] = [Style::Random, Style::Bits, Style::Ones, Style::Zeros];
        const FREE: [usize; 5] = [4, 1, 2, 8, 16];
        FREE.into_iter().flat_map(|free| STYLES.into_iter().map(move |style| Recipe { style, free, padded: None }))
    }

    pub fn zeros(self) -> Recipe {
        Recipe { style: Style::Zeros, ..self }
    }

    /// The same with so much in each padded dimension, as far as that may have it.
    pub fn long(self, padded: usize) -> Recipe {
        Recipe { padded: Some(padded), ..self }
    }

    /// All inputs of one request, with `rows` rows where they batch.
    pub fn make(self, signature: &Signature, rows: usize, seed: u64) -> Vec<Tensor> {
        self.make_request(signature, rows, seed, seed)
    }

    /// The same, but what does not batch depends on `round` alone: requests of one round may share a batch.
    pub fn make_request(self, signature: &Signature, rows: usize, seed: u64, round: u64) -> Vec<Tensor> {
        let inputs = signature.inputs.iter().zip(0u64..);
        inputs
            .map(|(spec, place)| {
                let seed = if spec.batch { seed } else { round };
                self.tensor(spec, rows, seed.wrapping_mul(31).wrapping_add(place))
            })
            .collect()
    }

    fn tensor(self, spec: &TensorSpec, rows: usize, seed: u64) -> Tensor {
        let dimensions = spec.shape.iter().enumerate();
        let shape: Shape = dimensions
            .map(|(place, &dim)| match usize::try_from(dim) {
                Ok(dim) => dim,
                Err(_) if place == 0 && spec.batch => rows,
                Err(_) => match (&spec.pad, self.padded) {
                    (Some(pad), Some(padded)) if pad.dim == place => padded.min(pad.largest()),
                    _ => self.free,
                },
            })
            .collect();
        let count = shape.iter().product();
        let mut random = fastrand::Rng::with_seed(seed);
        Tensor {
            name: spec.name.clone(),
            dtype: spec.dtype,
            data: self.elements(spec.dtype, count, &mut random),
            shape,
        }
    }

    fn elements(self, dtype: DType, count: usize, random: &mut fastrand::Rng) -> Bytes {
        macro_rules! ints {
            ($kind:ty) => {
                bytes_from((0..count).map(|_| self.int(random) as $kind).collect::<Vec<$kind>>())
            };
        }
        macro_rules! floats {
            ($kind:ty, $convert:expr) => {
                bytes_from((0..count).map(|_| $convert(self.float(random))).collect::<Vec<$kind>>())
            };
        }
        match dtype {
            DType::Bool => (0..count).map(|_| self.int(random) & 1).collect(),
            DType::Uint8 => ints!(u8),
            DType::Uint16 => ints!(u16),
            DType::Uint32 => ints!(u32),
            DType::Uint64 => ints!(u64),
            DType::Int8 => ints!(i8),
            DType::Int16 => ints!(i16),
            DType::Int32 => ints!(i32),
            DType::Int64 => ints!(i64),
            DType::Fp16 => floats!(f16, f16::from_f64),
            DType::Bf16 => floats!(bf16, bf16::from_f64),
            DType::Fp32 => floats!(f32, |value| value as f32),
            DType::Fp64 => floats!(f64, |value| value),
            DType::Bytes => {
                let words: Vec<String> = (0..count).map(|_| self.int(random).to_string()).collect();
                length_prefixed(&words)
            }
        }
    }

    fn int(self, random: &mut fastrand::Rng) -> u8 {
        match self.style {
            Style::Random => random.u8(1..8),
            Style::Bits => random.u8(0..2),
            Style::Ones => 1,
            Style::Zeros => 0,
        }
    }

    fn float(self, random: &mut fastrand::Rng) -> f64 {
        match self.style {
            Style::Random => random.f64() * 2.0 - 1.0,
            _ => f64::from(self.int(random)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_made_up_tensor_is_a_tensor(
            dtype in prop::sample::select(DType::ALL.to_vec()),
            shape in proptest::collection::vec(prop_oneof![Just(-1i64), 0i64..4], 0..4),
            rows in 1usize..5,
            seed: u64,
        ) {
            let mut spec = TensorSpec::new("x", dtype, &shape);
            spec.batch = spec.first_dimension_is_free();
            let signature = Signature { inputs: vec![spec], outputs: Vec::new() };
            for recipe in Recipe::all() {
                let made = recipe.make(&signature, rows, seed).remove(0);
                prop_assert_eq!(&made, &recipe.make(&signature, rows, seed)[0], "the seed decides");
                if signature.inputs[0].batch {
                    prop_assert_eq!(made.shape[0], rows);
                }
                prop_assert!(Tensor::new(made.name, made.dtype, made.shape, made.data).is_ok());
            }
        }
    }

    #[test]
    fn what_does_not_batch_is_the_same_for_a_round() {
        let mut x = TensorSpec::new("x", DType::Fp32, &[-1]);
        x.batch = true;
        let scale = TensorSpec::new("scale", DType::Fp32, &[8]);
        let signature = Signature { inputs: vec![x, scale], outputs: Vec::new() };
        let recipe = Recipe::all().next().expect("there are some");
        let one = recipe.make_request(&signature, 8, 1, 9);
        let other = recipe.make_request(&signature, 8, 2, 9);
        assert_ne!(one[0].data, other[0].data);
        assert_eq!(one[1].data, other[1].data);
    }
}

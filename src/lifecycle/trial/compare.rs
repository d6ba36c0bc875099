//! Whether two tensors are the same answer. Pure.

use half::{bf16, f16};

use crate::model::{DType, Tensor};

/// |a - b| <= atol + rtol * |b|, for floating types; everything else is exact.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    pub rtol: f64,
    pub atol: f64,
}

// === impl Tolerance ===

impl Tolerance {
    /// For the same rows run in another batch: kernels differ by batch size, and what cancels in a sum differs by the size
    /// of its terms, so the absolute part grows with the answer's largest value.
    pub fn of_kernels(dtype: DType, answers: &[f64]) -> Self {
        let largest =
            answers.iter().filter(|value| value.is_finite()).fold(1.0, |largest: f64, value| largest.max(value.abs()));
        let (rtol, atol) = match dtype {
            DType::Fp16 => (2e-3, 1e-3),
            DType::Bf16 => (1.6e-2, 8e-3),
            _ => (1e-5, 1e-6),
        };
        Self { rtol, atol: atol * largest }
    }

    fn holds(self, came: f64, expected: f64) -> bool {
        came == expected
            || (came.is_nan() && expected.is_nan())
            || (came - expected).abs() <= self.atol + self.rtol * expected.abs()
    }
}

/// The first element that differs, in words; `None` when all are equal. Type and shape are equal already.
pub fn first_difference(came: &Tensor, expected: &Tensor, tolerance: Tolerance) -> Option<String> {
    if let (Some(came), Some(expected)) = (floats(came), floats(expected)) {
        let place = came.iter().zip(&expected).position(|(&came, &expected)| !tolerance.holds(came, expected))?;
        return Some(format!("element {place} is {}, expected {}", came[place], expected[place]));
    }
    if came.data == expected.data {
        return None;
    }
    let place = match came.dtype.size() {
        Some(size) => {
            let pairs = came.data.chunks(size).zip(expected.data.chunks(size));
            pairs.take_while(|(came, expected)| came == expected).count()
        }
        None => {
            let pairs = came.strings().zip(expected.strings());
            pairs.take_while(|(came, expected)| came == expected).count()
        }
    };
    Some(format!("element {place} differs"))
}

/// The elements of a floating tensor as doubles.
pub fn floats(tensor: &Tensor) -> Option<Vec<f64>> {
    macro_rules! each {
        ($kind:ty, $size:literal) => {
            tensor
                .data
                .chunks_exact($size)
                .map(|bytes| <$kind>::from_le_bytes(bytes.try_into().expect("chunks of this size: this is a bug")))
                .map(f64::from)
                .collect()
        };
    }
    match tensor.dtype {
        DType::Fp16 => Some(each!(f16, 2)),
        DType::Bf16 => Some(each!(bf16, 2)),
        DType::Fp32 => Some(each!(f32, 4)),
        DType::Fp64 => Some(each!(f64, 8)),
        _ => None,
    }
}

/// Whether two answers to different requests show that the answer depends on the request.
pub fn tells_apart(one: &[Tensor], other: &[Tensor]) -> bool {
    one.iter().zip(other).any(|(one, other)| {
        let rows = one.data.len().min(other.data.len());
        let finite = floats(one).is_none_or(|values| values.iter().any(|value| value.is_finite()));
        finite && one.data[..rows] != other.data[..rows]
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Shape, length_prefixed};

    const EXACT: Tolerance = Tolerance { rtol: 0.0, atol: 0.0 };

    fn doubles(values: &[f64]) -> Tensor {
        Tensor::from_f64("y".into(), Shape::from_slice(&[values.len()]), values.to_vec())
    }

    #[test]
    fn nan_equals_nan_and_infinity_itself() {
        let values = doubles(&[f64::NAN, f64::INFINITY, -0.0]);
        assert_eq!(first_difference(&values, &doubles(&[f64::NAN, f64::INFINITY, 0.0]), EXACT), None);
        assert!(first_difference(&values, &doubles(&[0.0, f64::INFINITY, 0.0]), EXACT).is_some());
        assert!(first_difference(&values, &doubles(&[f64::NAN, f64::NEG_INFINITY, 0.0]), EXACT).is_some());
    }

    #[test]
    fn strings_are_compared_element_by_element() {
        let strings = |values: &[&str]| {
            let shape = Shape::from_slice(&[values.len()]);
            Tensor::new("y".into(), DType::Bytes, shape, length_prefixed(values)).expect("a tensor")
        };
        let difference = first_difference(&strings(&["a", "bc"]), &strings(&["a", "bd"]), EXACT);
        assert_eq!(difference.expect("they differ"), "element 1 differs");
    }

    #[test]
    fn what_cancels_in_large_sums_is_forgiven() {
        let tolerance = Tolerance::of_kernels(DType::Fp32, &[1e6, 0.001]);
        assert!(tolerance.holds(0.5, 0.001), "against answers of a million");
        assert!(!Tolerance::of_kernels(DType::Fp32, &[1.0]).holds(0.5, 0.001));
    }
}

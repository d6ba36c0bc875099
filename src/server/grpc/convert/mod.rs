//! Protocol to words and back, one file for each dialect. What both need stands here.
//!
//! Knows no model: whether names, types and shapes fit is for the signature to say. What is checked here is what only the
//! protocol can get wrong.

pub mod oip;
pub mod plain;
pub mod sconce;

use std::time::{Duration, Instant};

use bytemuck::{AnyBitPattern, pod_collect_to_vec};
use half::{bf16, f16};

use crate::{
    error::{Error, Result},
    model::{DType, Shape, Tensor, repeated},
    server::call::Arrival,
};

/// How the answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Raw,
    Typed,
    Rows,
}

const REQUEST_ID_BYTES_MAX: usize = 256;
/// More than any library here takes; a longer list is an attack on whoever multiplies it.
const RANK_MAX: usize = 32;
/// Of a shape that is refused.
const DIMS_SHOWN_MAX: usize = 8;

pub fn check_request_id(id: &str) -> Result<()> {
    if id.len() <= REQUEST_ID_BYTES_MAX {
        return Ok(());
    }
    Err(Error::invalid(
        "REQUEST_ID_TOO_LONG",
        format!("a request id has at most {REQUEST_ID_BYTES_MAX} bytes, {} came", id.len()),
    ))
}

/// Dimensions as a request says them: none is negative, none is left open.
pub fn shape(tensor: &str, dims: &[i64]) -> Result<Shape> {
    if dims.len() > RANK_MAX {
        let expected = format!("a shape has at most {RANK_MAX} dimensions");
        return Err(invalid_shape(tensor, &expected, dims));
    }
    let shape: Result<Shape, _> = dims.iter().map(|&dim| usize::try_from(dim)).collect();
    shape.map_err(|_| invalid_shape(tensor, "a dimension of a request cannot be negative", dims))
}

pub fn dims(shape: &[usize]) -> Vec<i64> {
    shape.iter().map(|&dim| dim as i64).collect()
}

/// The deadline that comes first: the call's, or `timeout` after its arrival.
pub fn earlier(arrival: Arrival, timeout: Option<Duration>) -> Option<Instant> {
    let own = timeout.and_then(|timeout| arrival.at.checked_add(timeout));
    match (arrival.deadline, own) {
        (Some(deadline), Some(own)) => Some(deadline.min(own)),
        (deadline, own) => deadline.or(own),
    }
}

/// Two types have no typed field, and an answer is raw or typed as a whole.
pub fn only_raw(tensor: &Tensor) -> bool {
    matches!(tensor.dtype, DType::Fp16 | DType::Bf16)
}

/// The elements of a tensor whose type is `T`; the bytes may lie at any address.
pub fn elements<T: AnyBitPattern + bytemuck::NoUninit>(tensor: &Tensor) -> Vec<T> {
    pod_collect_to_vec(&tensor.data)
}

/// The elements as doubles; `None` for BYTES. Beyond 2^53 integers lose their last digits.
pub fn doubles(tensor: &Tensor) -> Option<Vec<f64>> {
    fn wide<T: AnyBitPattern + bytemuck::NoUninit>(tensor: &Tensor, widen: impl Fn(T) -> f64) -> Vec<f64> {
        elements::<T>(tensor).into_iter().map(widen).collect()
    }
    Some(match tensor.dtype {
        DType::Bool | DType::Uint8 => wide::<u8>(tensor, f64::from),
        DType::Uint16 => wide::<u16>(tensor, f64::from),
        DType::Uint32 => wide::<u32>(tensor, f64::from),
        DType::Uint64 => wide::<u64>(tensor, |value| value as f64),
        DType::Int8 => wide::<i8>(tensor, f64::from),
        DType::Int16 => wide::<i16>(tensor, f64::from),
        DType::Int32 => wide::<i32>(tensor, f64::from),
        DType::Int64 => wide::<i64>(tensor, |value| value as f64),
        DType::Fp16 => wide::<f16>(tensor, f64::from),
        DType::Bf16 => wide::<bf16>(tensor, f64::from),
        DType::Fp32 => wide::<f32>(tensor, f64::from),
        DType::Fp64 => elements(tensor),
        DType::Bytes => return None,
    })
}

/// Adds a caller's own name as a fact, where it is plain enough to be said again.
pub fn with_name(error: Error, key: &'static str, name: &str) -> Error {
    match repeated(name).is_empty() {
        true => error,
        false => error.with(key, name),
    }
}

fn invalid_shape(tensor: &str, expected: &str, dims: &[i64]) -> Error {
    let shown: Vec<String> = dims.iter().take(DIMS_SHOWN_MAX).map(i64::to_string).collect();
    let more = if dims.len() > DIMS_SHOWN_MAX { ", …" } else { "" };
    let message = format!("tensor{}: {expected}; {} came: [{}{more}]", repeated(tensor), dims.len(), shown.join(", "));
    with_name(Error::invalid("INVALID_SHAPE", message), "tensor", tensor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earlier_deadline_wins() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let earlier = |deadline, timeout| earlier(Arrival { at: now, deadline }, timeout);
        assert_eq!(earlier(None, None), None);
        assert_eq!(earlier(Some(now + 2 * second), Some(second)), Some(now + second));
        assert_eq!(earlier(Some(now + second), Some(2 * second)), Some(now + second));
        assert_eq!(earlier(None, Some(Duration::MAX)), None);
    }

    #[test]
    fn a_shape_is_a_claim_that_is_checked() {
        assert_eq!(shape("x", &[2, 0, 3]).expect("fine")[..], [2, 0, 3]);
        let negative = shape("x", &[-1, 3]).expect_err("negative");
        assert_eq!(negative.reason(), "INVALID_SHAPE");
        assert_eq!(negative.message(), "tensor 'x': a dimension of a request cannot be negative; 2 came: [-1, 3]");
        let many = shape("no\nname", &[1; 33]).expect_err("too many");
        assert_eq!(many.message(), "tensor: a shape has at most 32 dimensions; 33 came: [1, 1, 1, 1, 1, 1, 1, 1, …]");
        assert!(many.metadata().is_empty(), "what is not plain is not repeated");
    }
}

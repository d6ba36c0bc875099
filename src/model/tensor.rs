//! A tensor as it travels: a type, a shape and little-endian bytes that nobody copies for nothing.

use std::{fmt, sync::Arc};

use bytes::Bytes;

use crate::error::{Error, Result};

/// The element types of the Open Inference Protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum DType {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Bf16,
    Fp32,
    Fp64,
    /// Strings of bytes: each element is its length as a little-endian u32 and that many bytes.
    Bytes,
}

/// A dense row-major tensor. `data` holds exactly the bytes that dtype and shape ask for: `Tensor::new` checks it,
/// and nothing below the engine ever sees one that was not checked.
#[derive(Clone, PartialEq)]
pub struct Tensor {
    pub name: Arc<str>,
    pub dtype: DType,
    pub shape: Shape,
    pub data: Bytes,
}

/// The dimensions; up to four without an allocation.
pub type Shape = smallvec::SmallVec<[usize; 4]>;

// === impl DType ===

impl DType {
    pub const ALL: [DType; 14] = [
        DType::Bool,
        DType::Uint8,
        DType::Uint16,
        DType::Uint32,
        DType::Uint64,
        DType::Int8,
        DType::Int16,
        DType::Int32,
        DType::Int64,
        DType::Fp16,
        DType::Bf16,
        DType::Fp32,
        DType::Fp64,
        DType::Bytes,
    ];

    /// Bytes of one element; `None` for BYTES, whose elements differ.
    pub fn size(self) -> Option<usize> {
        match self {
            DType::Bool | DType::Uint8 | DType::Int8 => Some(1),
            DType::Uint16 | DType::Int16 | DType::Fp16 | DType::Bf16 => Some(2),
            DType::Uint32 | DType::Int32 | DType::Fp32 => Some(4),
            DType::Uint64 | DType::Int64 | DType::Fp64 => Some(8),
            DType::Bytes => None,
        }
    }

    /// The protocol's name, e.g. `FP32`.
    pub fn as_str(self) -> &'static str {
        match self {
            DType::Bool => "BOOL",
            DType::Uint8 => "UINT8",
            DType::Uint16 => "UINT16",
            DType::Uint32 => "UINT32",
            DType::Uint64 => "UINT64",
            DType::Int8 => "INT8",
            DType::Int16 => "INT16",
            DType::Int32 => "INT32",
            DType::Int64 => "INT64",
            DType::Fp16 => "FP16",
            DType::Bf16 => "BF16",
            DType::Fp32 => "FP32",
            DType::Fp64 => "FP64",
            DType::Bytes => "BYTES",
        }
    }

    pub fn parse(name: &str) -> Option<DType> {
        Self::ALL.into_iter().find(|dtype| dtype.as_str() == name)
    }

    pub fn is_float(self) -> bool {
        matches!(self, DType::Fp16 | DType::Bf16 | DType::Fp32 | DType::Fp64)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

// === impl Tensor ===

impl Tensor {
    /// Checks that the bytes are what dtype and shape ask for.
    pub fn new(name: Arc<str>, dtype: DType, shape: Shape, data: Bytes) -> Result<Self> {
        let elements = element_count(&name, &shape)?;
        match dtype.size() {
            Some(size) => {
                let expected = elements.checked_mul(size).ok_or_else(|| shape_overflow(&name))?;
                if data.len() != expected {
                    return Err(Error::invalid(
                        "BYTE_COUNT_MISMATCH",
                        format!(
                            "tensor '{name}': {dtype} of shape {} takes {expected} bytes, {} came",
                            shape_text(&shape),
                            data.len()
                        ),
                    )
                    .with("tensor", &name));
                }
            }
            None => {
                let found = BytesElements::new(&data).try_fold(0usize, |count, element| element.map(|_| count + 1));
                if found != Some(elements) {
                    return Err(Error::invalid(
                        "BYTE_COUNT_MISMATCH",
                        format!(
                            "tensor '{name}': shape {} takes {elements} BYTES elements of a 4-byte length and its bytes each, {}",
                            shape_text(&shape),
                            found.map_or("a length points past the end".into(), |found| format!("{found} came"))
                        ),
                    )
                    .with("tensor", &name));
                }
            }
        }
        if dtype == DType::Bool && data.iter().any(|&byte| byte > 1) {
            return Err(Error::invalid(
                "INVALID_BOOL",
                format!("tensor '{name}': a BOOL byte is 0 or 1, another came"),
            )
            .with("tensor", &name));
        }
        Ok(Self { name, dtype, shape, data })
    }

    pub fn element_count(&self) -> usize {
        self.shape.iter().product()
    }

    /// The elements of a BYTES tensor.
    pub fn strings(&self) -> impl Iterator<Item = &[u8]> {
        BytesElements::new(&self.data).map(|element| element.expect("checked by Tensor::new: this is a bug"))
    }

    /// A tensor of doubles: the form rows and tables take.
    pub fn from_f64(name: Arc<str>, shape: Shape, values: Vec<f64>) -> Self {
        debug_assert_eq!(shape.iter().product::<usize>(), values.len());
        Self { name, dtype: DType::Fp64, shape, data: bytes_from(values) }
    }
}

impl fmt::Debug for Tensor {
    /// Never the data: they are the caller's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}{}", self.name, self.dtype, shape_text(&self.shape))
    }
}

/// The vector's memory itself as `Bytes`, without a copy. Little-endian machines only, as the crate is.
pub fn bytes_from<T: bytemuck::NoUninit + Send + 'static>(values: Vec<T>) -> Bytes {
    struct Owner<T>(Vec<T>);
    impl<T: bytemuck::NoUninit> AsRef<[u8]> for Owner<T> {
        fn as_ref(&self) -> &[u8] {
            bytemuck::cast_slice(&self.0)
        }
    }
    Bytes::from_owner(Owner(values))
}

/// `[2, 19]`, as messages write a shape.
pub fn shape_text(shape: &[usize]) -> String {
    format!("{shape:?}")
}

/// The product of the dimensions, or an error when it does not fit.
pub fn element_count(name: &str, shape: &[usize]) -> Result<usize> {
    // A zero anywhere makes an empty tensor, but the other dimensions must still multiply without overflow: they are
    // claims of the caller that later code multiplies again.
    let nonzero = shape.iter().filter(|&&dim| dim > 0).try_fold(1usize, |product, &dim| product.checked_mul(dim));
    match nonzero {
        Some(product) if product <= isize::MAX as usize => Ok(if shape.contains(&0) { 0 } else { product }),
        _ => Err(shape_overflow(name)),
    }
}

fn shape_overflow(name: &str) -> Error {
    Error::invalid("SHAPE_OVERFLOW", format!("tensor '{name}': the product of the dimensions is too large"))
        .with("tensor", name)
}

/// Walks the length-prefixed elements; `None` once for a length that points past the end.
pub struct BytesElements<'a> {
    rest: &'a [u8],
    broken: bool,
}

impl<'a> BytesElements<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        Self { rest: data, broken: false }
    }
}

impl<'a> Iterator for BytesElements<'a> {
    type Item = Option<&'a [u8]>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() || self.broken {
            return None;
        }
        let element = self.rest.split_first_chunk::<4>().and_then(|(length, rest)| {
            let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
            rest.split_at_checked(length)
        });
        match element {
            Some((element, rest)) => {
                self.rest = rest;
                Some(Some(element))
            }
            None => {
                self.broken = true;
                Some(None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tensor(dtype: DType, shape: &[usize], data: &[u8]) -> Result<Tensor> {
        Tensor::new("x".into(), dtype, Shape::from_slice(shape), Bytes::copy_from_slice(data))
    }

    #[test]
    fn a_byte_count_that_does_not_match_names_both() {
        let error = tensor(DType::Fp32, &[2, 3], &[0; 20]).expect_err("20 bytes are not 24");
        assert_eq!(error.reason(), "BYTE_COUNT_MISMATCH");
        assert!(error.message().contains("24 bytes, 20 came"), "{error}");
    }

    #[test]
    fn a_shape_that_overflows_is_refused_whatever_the_data() {
        for shape in [&[1usize << 32, 1 << 32][..], &[usize::MAX, 2], &[0, usize::MAX, 2], &[1 << 4, (1 << 60) + 2]] {
            assert_eq!(tensor(DType::Uint8, shape, &[]).expect_err("too large").reason(), "SHAPE_OVERFLOW");
        }
        // The elements fit but their bytes do not.
        assert!(tensor(DType::Fp64, &[1 << 61], &[]).is_err());
    }

    #[test]
    fn empty_tensors_and_scalars_are_tensors() {
        assert!(tensor(DType::Fp32, &[0, 4], &[]).is_ok());
        assert!(tensor(DType::Fp64, &[], &[0; 8]).is_ok());
        assert!(tensor(DType::Bytes, &[0], &[]).is_ok());
    }

    #[test]
    fn a_broken_length_prefix_is_refused() {
        assert!(tensor(DType::Bytes, &[1], &[5, 0, 0, 0, b'a']).is_err());
        assert!(tensor(DType::Bytes, &[1], &[1, 0, 0]).is_err());
        assert!(tensor(DType::Bytes, &[2], &[1, 0, 0, 0, b'a']).is_err());
        assert!(tensor(DType::Bytes, &[1], &[1, 0, 0, 0, b'a']).is_ok());
    }

    proptest! {
        #[test]
        fn the_product_agrees_with_wide_arithmetic(shape in proptest::collection::vec(0usize..1 << 40, 0..5)) {
            let nonzero: Option<u128> = shape.iter().filter(|&&dim| dim > 0)
                .try_fold(1u128, |product, &dim| product.checked_mul(dim as u128));
            let wide = nonzero.filter(|&product| product <= isize::MAX as u128);
            let expected = wide.map(|product| if shape.contains(&0) { 0 } else { product as usize });
            prop_assert_eq!(element_count("x", &shape).ok(), expected);
        }
    }
}

//! A tensor's elements as numbers, whatever their type.

use half::{bf16, f16};

use super::{DType, Tensor};

// === impl Tensor ===

impl Tensor {
    /// The first elements as doubles, integers of 64 bits rounded, truth values as 0 and 1; none of texts.
    pub fn first_numbers(&self, count: usize) -> Vec<f64> {
        let Some(size) = self.dtype.size() else { return Vec::new() };
        let data = &self.data[..self.data.len().min(count.saturating_mul(size))];
        match self.dtype {
            DType::Fp64 => elements(data, f64::from_le_bytes).collect(),
            DType::Fp32 => elements(data, |bytes| f64::from(f32::from_le_bytes(bytes))).collect(),
            DType::Fp16 => elements(data, |bytes| f64::from(f16::from_le_bytes(bytes))).collect(),
            DType::Bf16 => elements(data, |bytes| f64::from(bf16::from_le_bytes(bytes))).collect(),
            DType::Int64 => elements(data, |bytes| i64::from_le_bytes(bytes) as f64).collect(),
            DType::Int32 => elements(data, |bytes| f64::from(i32::from_le_bytes(bytes))).collect(),
            DType::Int16 => elements(data, |bytes| f64::from(i16::from_le_bytes(bytes))).collect(),
            DType::Int8 => elements(data, |bytes| f64::from(i8::from_le_bytes(bytes))).collect(),
            DType::Uint64 => elements(data, |bytes| u64::from_le_bytes(bytes) as f64).collect(),
            DType::Uint32 => elements(data, |bytes| f64::from(u32::from_le_bytes(bytes))).collect(),
            DType::Uint16 => elements(data, |bytes| f64::from(u16::from_le_bytes(bytes))).collect(),
            DType::Uint8 => elements(data, |bytes| f64::from(u8::from_le_bytes(bytes))).collect(),
            DType::Bool => elements(data, |[byte]: [u8; 1]| f64::from(byte != 0)).collect(),
            DType::Bytes => Vec::new(),
        }
    }

    /// Whether no element is a NaN or an infinity.
    pub fn is_finite(&self) -> bool {
        let data = &self.data[..];
        match self.dtype {
            DType::Fp64 => elements(data, f64::from_le_bytes).all(f64::is_finite),
            DType::Fp32 => elements(data, f32::from_le_bytes).all(f32::is_finite),
            DType::Fp16 => elements(data, f16::from_le_bytes).all(f16::is_finite),
            DType::Bf16 => elements(data, bf16::from_le_bytes).all(bf16::is_finite),
            _ => true,
        }
    }
}

fn elements<T, const N: usize>(data: &[u8], read: impl Fn([u8; N]) -> T) -> impl Iterator<Item = T> {
    let (elements, _) = data.as_chunks::<N>();
    elements.iter().map(move |bytes| read(*bytes))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn tensor(dtype: DType, data: &[u8]) -> Tensor {
        let count = data.len() / dtype.size().expect("a fixed size");
        Tensor::new("x".into(), dtype, [count].into_iter().collect(), Bytes::copy_from_slice(data)).expect("a tensor")
    }

    #[test]
    fn every_number_is_read_and_what_is_none_is_not() {
        let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        assert_eq!(tensor(DType::Fp32, &bytes(&[1.5, -2.0])).first_numbers(9), vec![1.5, -2.0]);
        assert_eq!(tensor(DType::Int16, &[255, 255, 2, 0]).first_numbers(9), vec![-1.0, 2.0]);
        assert_eq!(tensor(DType::Uint8, &[255]).first_numbers(9), vec![255.0]);
        assert_eq!(tensor(DType::Fp16, &f16::from_f32(0.5).to_le_bytes()).first_numbers(9), vec![0.5]);
        assert_eq!(tensor(DType::Bool, &[1, 0]).first_numbers(9), vec![1.0, 0.0]);
        assert_eq!(tensor(DType::Uint8, &[5, 6, 7]).first_numbers(2), vec![5.0, 6.0]);
        assert!(tensor(DType::Fp32, &bytes(&[1.0])).is_finite());
        assert!(!tensor(DType::Fp32, &bytes(&[1.0, f32::NAN])).is_finite());
        assert!(!tensor(DType::Bf16, &bf16::INFINITY.to_le_bytes()).is_finite());
        assert!(tensor(DType::Int64, &[255; 8]).is_finite());
    }
}

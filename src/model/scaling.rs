//! The z-score of `normalizer.json`, in double precision, over one input.

use super::{DType, Normalizer, Signature, Tensor, bytes_from};
use crate::error::{Error, Result};

/// (x - mean) / scale, by column of one input.
#[derive(Clone, Debug)]
pub struct Scaling {
    pub input: usize,
    mean: Vec<f64>,
    scale: Vec<f64>,
}

// === impl Scaling ===

impl Scaling {
    /// INVALID_MANIFEST where the normalizer names a feature that no input has.
    pub fn new(signature: &Signature, normalizer: &Normalizer) -> Result<Self> {
        let wrong = |message: String| Error::invalid("INVALID_MANIFEST", format!("normalizer.json: {message}"));
        let named = signature.inputs.iter().position(|spec| !spec.feature_names.is_empty());
        let input = match named {
            Some(input) => input,
            None if signature.inputs.len() == 1 => 0,
            None => {
                return Err(wrong("no input declares feature_names, so it is not clear which one it is for".into()));
            }
        };
        let spec = &signature.inputs[input];
        if !matches!(spec.dtype, DType::Fp32 | DType::Fp64) {
            return Err(wrong(format!("input '{}' is {}, not FP32 or FP64", spec.name, spec.dtype)));
        }
        let width = usize::try_from(spec.shape.last().copied().unwrap_or(-1)).unwrap_or(spec.feature_names.len());
        let (mut mean, mut scale) = (vec![0.0; width], vec![1.0; width]);
        for (place, name) in normalizer.feature_names.iter().enumerate() {
            let column = match spec.feature_names.is_empty() {
                true => place,
                false => spec.feature_names.iter().position(|known| **known == **name).unwrap_or(width),
            };
            if column >= width {
                return Err(wrong(format!("input '{}' has no feature '{name}'", spec.name)));
            }
            mean[column] = normalizer.mean[place];
            scale[column] = normalizer.scale[place];
        }
        Ok(Self { input, mean, scale })
    }

    pub fn apply(&self, tensor: &Tensor) -> Tensor {
        let columns = self.mean.iter().zip(&self.scale).cycle();
        let data = match tensor.dtype {
            DType::Fp64 => {
                let values = tensor.data.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().expect("8 bytes")));
                bytes_from(values.zip(columns).map(|(v, (mean, scale))| (v - mean) / scale).collect::<Vec<f64>>())
            }
            _ => {
                let values = tensor.data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("4 bytes")));
                let scaled = values.zip(columns).map(|(v, (mean, scale))| ((f64::from(v) - mean) / scale) as f32);
                bytes_from(scaled.collect::<Vec<f32>>())
            }
        };
        Tensor { data, ..tensor.clone() }
    }
}

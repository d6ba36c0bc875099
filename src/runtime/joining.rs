//! The rows of several requests as one tensor, filled up where the model pads; and each caller's rows of what comes out. Pure.

use bytes::Bytes;

use crate::model::{BytesElements, DType, Pad, Tensor};

/// How much was put together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filled {
    pub bytes: usize,
    /// Of these, what no caller sent.
    pub padding: usize,
}

/// Copies one input of all requests into the buffer. One of the two copies we allow ourselves; padding costs no further one.
pub fn join<'a>(tensors: impl Iterator<Item = &'a Tensor> + Clone, pad: Option<&Pad>, buffer: &mut Vec<u64>) -> Filled {
    let room = |tensor: &Tensor| pad.map_or(tensor.data.len(), |pad| pad.bytes(tensor));
    let length: usize = tensors.clone().map(room).sum();
    buffer.resize(length.div_ceil(8), 0);
    let mut rest: &mut [u8] = &mut bytemuck::cast_slice_mut(buffer)[..length];
    let mut padding = 0;
    for tensor in tensors {
        let (own, others) = std::mem::take(&mut rest).split_at_mut(room(tensor));
        match pad {
            Some(pad) if own.len() != tensor.data.len() => padding += pad.copy(tensor, own),
            _ => own.copy_from_slice(&tensor.data),
        }
        rest = others;
    }
    Filled { bytes: length, padding }
}

/// Cuts the rows of one output off its front, one caller after another.
pub struct Cutter {
    rest: Bytes,
    template: Tensor,
    /// Bytes of a row; `None` for BYTES.
    row_bytes: Option<usize>,
}

// === impl Cutter ===

impl Cutter {
    pub fn new(output: Tensor, rows: usize) -> Self {
        let row_bytes = match output.dtype {
            DType::Bytes => None,
            _ => Some(output.data.len() / rows.max(1)),
        };
        Self { rest: output.data.clone(), row_bytes, template: Tensor { data: Bytes::new(), ..output } }
    }

    pub fn cut(&mut self, rows: usize) -> Tensor {
        let length = self.row_bytes.map_or_else(
            || {
                let elements = rows * self.template.shape[1..].iter().product::<usize>();
                BytesElements::new(&self.rest).take(elements).flatten().map(|element| 4 + element.len()).sum()
            },
            |row_bytes| rows * row_bytes,
        );
        let mut tensor = Tensor { data: self.rest.split_to(length), ..self.template.clone() };
        tensor.shape[0] = rows;
        tensor
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{Filler, Shape, Signature, TensorSpec, Unpad};

    const VALUE: f64 = -1.0;

    /// One input of doubles, padded along its second dimension, and an output that follows it.
    fn signature(to: &[usize]) -> Signature {
        let spec = |name| TensorSpec { batch: true, ..TensorSpec::new(name, DType::Fp64, &[-1, -1, 2]) };
        let value = Filler::new(DType::Fp64, VALUE).expect("a double");
        Signature {
            inputs: vec![TensorSpec { pad: Some(Pad { dim: 1, to: to.to_vec(), value }), ..spec("x") }],
            outputs: vec![TensorSpec { unpad: Some(Unpad { dim: 1, input: 0 }), ..spec("y") }],
        }
    }

    fn request(rows: usize, length: usize, first: f64) -> Tensor {
        let values = (0..rows * length * 2).map(|place| first + place as f64).collect();
        Tensor::from_f64("x".into(), Shape::from_slice(&[rows, length, 2]), values)
    }

    proptest! {
        /// Requests of random rows and lengths that all become the same size: joined, doubled and given back.
        #[test]
        fn padded_rows_go_back_to_their_owners_at_their_own_length(
            requests in proptest::collection::vec((0usize..4, 1usize..9), 1..8),
        ) {
            let signature = signature(&[8]);
            let pad = signature.inputs[0].pad.as_ref();
            let inputs: Vec<Tensor> =
                requests.iter().zip(0..).map(|(&(rows, length), place)| request(rows, length, f64::from(place) * 1000.0)).collect();
            let rows: usize = requests.iter().map(|(rows, _)| rows).sum();
            let mut buffer = vec![7; 3];
            let filled = join(inputs.iter(), pad, &mut buffer);
            prop_assert_eq!(filled.bytes, rows * 8 * 2 * 8);
            let given: usize = inputs.iter().map(|input| input.data.len()).sum();
            prop_assert_eq!(filled.padding, filled.bytes - given);
            let joined: Vec<f64> = bytemuck::cast_slice(&buffer).to_vec();
            prop_assert_eq!(joined.iter().filter(|value| **value == VALUE).count() * 8, filled.padding);
            let doubled = joined.iter().map(|value| value * 2.0).collect();
            let output = Tensor::from_f64("y".into(), Shape::from_slice(&[rows, 8, 2]), doubled);
            let mut cutter = Cutter::new(output, rows);
            for input in inputs {
                let own = signature.unpadded(0, cutter.cut(input.shape[0]), std::slice::from_ref(&input));
                let expected: Vec<f64> =
                    bytemuck::pod_collect_to_vec::<u8, f64>(&input.data).iter().map(|value| value * 2.0).collect();
                prop_assert_eq!(&own.shape, &input.shape);
                prop_assert_eq!(bytemuck::pod_collect_to_vec::<u8, f64>(&own.data), expected);
            }
        }
    }
}

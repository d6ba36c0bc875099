//! Rows of tensors: taken out, joined, and held against each other. Pure.

use bytes::{Bytes, BytesMut};

use super::compare::{Tolerance, first_difference, floats};
use crate::model::{BytesElements, Shape, Signature, Tensor};

/// Requests as one batch: what batches is joined along the first dimension, the rest is the first request's.
pub fn join_inputs(signature: &Signature, requests: &[Vec<Tensor>]) -> Vec<Tensor> {
    let inputs = signature.inputs.iter().enumerate();
    inputs
        .map(|(place, spec)| {
            let first = &requests[0][place];
            if !spec.batch {
                return first.clone();
            }
            let mut data = BytesMut::new();
            let mut shape = first.shape.clone();
            shape[0] = 0;
            for request in requests {
                shape[0] += request[place].shape[0];
                data.extend_from_slice(&request[place].data);
            }
            Tensor { shape, data: data.freeze(), ..first.clone() }
        })
        .collect()
}

/// `count` rows of inputs from `first` on, beginning again at the top when they end.
pub fn take_inputs(signature: &Signature, inputs: &[Tensor], first: usize, count: usize) -> Vec<Tensor> {
    let specs = signature.inputs.iter().zip(inputs);
    specs
        .map(|(spec, tensor)| {
            let there = tensor.shape.first().copied().unwrap_or(0);
            if !spec.batch || there == 0 {
                return tensor.clone();
            }
            let mut data = BytesMut::new();
            for row in first..first + count {
                data.extend_from_slice(&rows_of(tensor, row % there, 1).data);
            }
            let mut shape = tensor.shape.clone();
            shape[0] = count;
            Tensor { shape, data: data.freeze(), ..tensor.clone() }
        })
        .collect()
}

/// Holds the joined answer against the answers alone. `Err` says in words how they differ.
pub fn compare_joined(joined: &[Tensor], alone: &[Vec<Tensor>], sizes: &[usize]) -> Result<(), String> {
    let total: usize = sizes.iter().sum();
    for (place, output) in joined.iter().enumerate() {
        let name = &output.name;
        if output.shape.first() != Some(&total) {
            return Err(format!("output '{name}' has not one row for each row that was given"));
        }
        let mut first = 0;
        for (&rows, outputs) in sizes.iter().zip(alone) {
            let expected = &outputs[place];
            let part = rows_of(output, first, rows);
            first += rows;
            if part.dtype != expected.dtype || part.shape != expected.shape {
                return Err(format!("output '{name}' has another shape when requests are joined"));
            }
            let tolerance = Tolerance::of_kernels(expected.dtype, &floats(expected).unwrap_or_default());
            if first_difference(&part, expected, tolerance).is_some() {
                return Err(format!("output '{name}' differs when requests are joined: its rows are not independent"));
            }
        }
    }
    Ok(())
}

/// Some rows of a tensor. The tensor has them.
pub fn rows_of(tensor: &Tensor, first: usize, count: usize) -> Tensor {
    let in_row: usize = tensor.shape[1..].iter().product();
    let data = match tensor.dtype.size() {
        Some(size) => tensor.data.slice(first * in_row * size..(first + count) * in_row * size),
        None => strings_of(&tensor.data, first * in_row, count * in_row),
    };
    let mut shape: Shape = tensor.shape.clone();
    shape[0] = count;
    Tensor { shape, data, ..tensor.clone() }
}

fn strings_of(data: &Bytes, first: usize, count: usize) -> Bytes {
    let length = |elements: usize| -> usize {
        let elements = BytesElements::new(data).take(elements);
        elements.flatten().map(|element| 4 + element.len()).sum()
    };
    let start = length(first);
    data.slice(start..length(first + count).max(start))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{DType, TensorSpec, length_prefixed};
    use proptest::prelude::*;

    fn signature() -> Signature {
        let batching = |name, dtype, shape: &[i64]| TensorSpec { batch: true, ..TensorSpec::new(name, dtype, shape) };
        Signature {
            inputs: vec![
                batching("x", DType::Fp64, &[-1, 2]),
                batching("s", DType::Bytes, &[-1]),
                TensorSpec::new("scale", DType::Fp64, &[1]),
            ],
            outputs: vec![batching("y", DType::Fp64, &[-1])],
        }
    }

    fn request(rows: &[(f64, String)]) -> Vec<Tensor> {
        let strings: Vec<&str> = rows.iter().map(|(_, text)| text.as_str()).collect();
        let values = rows.iter().flat_map(|(value, _)| [*value, -value]).collect();
        vec![
            Tensor::from_f64("x".into(), Shape::from_slice(&[rows.len(), 2]), values),
            Tensor {
                name: "s".into(),
                dtype: DType::Bytes,
                shape: Shape::from_slice(&[rows.len()]),
                data: length_prefixed(&strings),
            },
            Tensor::from_f64("scale".into(), Shape::from_slice(&[1]), vec![2.0]),
        ]
    }

    fn answer(values: &[f64]) -> Vec<Tensor> {
        vec![Tensor::from_f64("y".into(), Shape::from_slice(&[values.len()]), values.to_vec())]
    }

    #[test]
    fn a_joined_answer_must_be_the_answers_alone() {
        let alone = [answer(&[1.0]), answer(&[2.0, 3.0])];
        let judge = |values: &[f64]| compare_joined(&answer(values), &alone, &[1, 2]);
        assert_eq!(judge(&[1.0, 2.0, 3.0]), Ok(()));
        assert_eq!(judge(&[1.0, 2.0 + 1e-7, 3.0]), Ok(()));
        assert!(judge(&[1.0, 2.09, 3.0]).expect_err("it is off").contains("not independent"));
        assert!(judge(&[1.0]).expect_err("a row is missing").contains("one row for each"));
    }

    proptest! {
        #[test]
        fn what_was_joined_comes_apart_again(
            rows in proptest::collection::vec((-1e3..1e3f64, "[a-z]{0,5}"), 1..8),
            cut in 0usize..8,
        ) {
            let cut = cut.min(rows.len() - 1).max(1).min(rows.len());
            let whole = request(&rows);
            let mut parts = vec![take_inputs(&signature(), &whole, 0, cut)];
            if cut < rows.len() {
                parts.push(take_inputs(&signature(), &whole, cut, rows.len() - cut));
            }
            prop_assert_eq!(join_inputs(&signature(), &parts), whole);
        }
    }
}

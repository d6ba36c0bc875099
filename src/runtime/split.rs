//! A request with more rows than a batch may have, in parts that each fit, and their answers as one.

use bytes::BytesMut;

use super::work::{Done, Work};
use crate::{
    error::{Error, Result},
    model::{BytesElements, DType, Signature, Tensor, Timing},
};

/// The parts, in order; no byte is copied. Only for signatures whose requests may be joined.
pub fn parts(work: Work, signature: &Signature, rows_max: usize) -> Vec<Work> {
    let mut rests: Vec<Tensor> = work.inputs;
    let mut left = work.rows;
    let mut parts = Vec::with_capacity(left.div_ceil(rows_max));
    while left > 0 {
        let rows = left.min(rows_max);
        let cut = |(rest, spec): (&mut Tensor, &crate::model::TensorSpec)| match spec.batch {
            true => cut_rows(rest, rows, left),
            false => rest.clone(),
        };
        parts.push(Work {
            inputs: rests.iter_mut().zip(&signature.inputs).map(cut).collect(),
            rows,
            outputs: work.outputs.clone(),
            parameters: work.parameters.clone(),
            priority: work.priority,
            deadline: work.deadline,
        });
        left -= rows;
    }
    parts
}

/// The answer of all parts, in their order.
pub fn join(parts: impl IntoIterator<Item = Done>, rows: usize) -> Result<Done> {
    let mut parts = parts.into_iter();
    let first =
        parts.next().ok_or_else(|| Error::internal("OUTPUT_ROWS", "a request without a part: this is a bug"))?;
    let parts: Vec<Done> = parts.collect();
    let timing = parts.iter().fold(first.timing, |all, part| Timing {
        queue_us: all.queue_us.max(part.timing.queue_us),
        compute_us: all.compute_us + part.timing.compute_us,
        batch_rows: all.batch_rows.max(part.timing.batch_rows),
    });
    let mut outputs = Vec::with_capacity(first.outputs.len());
    for (place, output) in first.outputs.into_iter().enumerate() {
        let others = parts.iter().filter_map(|part| part.outputs.get(place));
        if others.clone().any(|other| other.shape[1..] != output.shape[1..]) {
            let message =
                format!("output '{}' has another shape in each part of a request that was split", output.name);
            return Err(Error::internal("OUTPUT_ROWS", message));
        }
        let length = output.data.len() + others.clone().map(|other| other.data.len()).sum::<usize>();
        let mut data = BytesMut::with_capacity(length);
        data.extend_from_slice(&output.data);
        others.for_each(|other| data.extend_from_slice(&other.data));
        let mut joined = Tensor { data: data.freeze(), ..output };
        joined.shape[0] = rows;
        outputs.push(joined);
    }
    Ok(Done { outputs, timing })
}

/// Takes the first rows off a tensor that has `left`.
fn cut_rows(rest: &mut Tensor, rows: usize, left: usize) -> Tensor {
    let length = match rest.dtype {
        DType::Bytes => {
            let elements = rows * rest.shape[1..].iter().product::<usize>();
            BytesElements::new(&rest.data).take(elements).flatten().map(|element| 4 + element.len()).sum()
        }
        _ => rest.data.len() / left * rows,
    };
    let data = rest.data.split_to(length);
    let mut part = Tensor { name: rest.name.clone(), dtype: rest.dtype, shape: rest.shape.clone(), data };
    part.shape[0] = rows;
    part
}

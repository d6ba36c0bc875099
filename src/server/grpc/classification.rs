//! Triton's classification extension: the k largest values of each row as `value:index` or `value:index:label`.

use std::cmp::Ordering;

use super::convert::doubles;
use crate::{
    error::{Error, Result},
    model::{DType, Shape, Tensor, length_prefixed},
};

/// Turns an output into BYTES of shape `[rows, k]`, or `[k]` where the model does not batch.
pub fn classify(output: &Tensor, count: usize, batches: bool, labels: &[String]) -> Result<Tensor> {
    let values = doubles(output).ok_or_else(|| {
        Error::invalid(
            "NOT_CLASSIFIABLE",
            format!("output '{}': classification takes numbers, the output is {}", output.name, output.dtype),
        )
    })?;
    let rows = match output.shape.first() {
        Some(&rows) if batches => rows,
        _ => 1,
    };
    let width = values.len() / rows.max(1);
    let count = count.min(width);
    let whole = !output.dtype.is_float();
    // Labels name the values of a row only where there is one for each: one probability of two classes is not the first's.
    let labels = if labels.len() == width { labels } else { &[] };
    let mut texts = Vec::with_capacity(rows * count);
    for row in values.chunks_exact(width.max(1)) {
        for index in largest(row, count) {
            texts.push(text(row[index], whole, index, labels.get(index)));
        }
    }
    let shape: Shape = if batches { [rows, count].as_slice().into() } else { [count].as_slice().into() };
    Tensor::new(output.name.clone(), DType::Bytes, shape, length_prefixed(&texts))
}

/// Places of the `count` largest values, the largest first; equal ones in their order, NaN last.
fn largest(row: &[f64], count: usize) -> Vec<usize> {
    let descending = |&left: &usize, &right: &usize| match (row[left].is_nan(), row[right].is_nan()) {
        (false, false) => row[right].partial_cmp(&row[left]).unwrap_or(Ordering::Equal),
        (left, right) => left.cmp(&right),
    };
    let mut places: Vec<usize> = (0..row.len()).collect();
    places.sort_by(descending);
    places.truncate(count);
    places
}

/// Numbers as C's `%f` and `%d` write them, which is what Triton's clients parse.
fn text(value: f64, whole: bool, index: usize, label: Option<&String>) -> String {
    let number = match value {
        _ if value.is_nan() => "nan".to_owned(),
        _ if whole => format!("{value:.0}"),
        _ => format!("{value:.6}"),
    };
    match label {
        Some(label) => format!("{number}:{index}:{label}"),
        None => format!("{number}:{index}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::bytes_from;

    fn classes(tensor: &Tensor) -> Vec<String> {
        tensor.strings().map(|text| String::from_utf8_lossy(text).into_owned()).collect()
    }

    #[test]
    fn the_largest_of_each_row_come_first() {
        let values = vec![0.1f32, 0.7, 0.2, f32::NAN, 0.5, 0.5];
        let output = Tensor::new("p".into(), DType::Fp32, [2, 3].as_slice().into(), bytes_from(values)).expect("right");
        let labels = ["down".to_owned(), "up".to_owned(), "flat".to_owned()];
        let top = classify(&output, 2, true, &labels).expect("numbers");
        assert_eq!(top.shape[..], [2, 2]);
        assert_eq!(classes(&top), ["0.700000:1:up", "0.200000:2:flat", "0.500000:1:up", "0.500000:2:flat"]);
        let short = classify(&output, 1, true, &labels[..2]).expect("numbers");
        assert_eq!(classes(&short), ["0.700000:1", "0.500000:1"], "two labels do not name three values");
        let all = classify(&output, usize::MAX, false, &[]).expect("numbers");
        assert_eq!(all.shape[..], [6]);
        assert_eq!(classes(&all)[5], "nan:3");
    }

    #[test]
    fn one_probability_of_two_classes_has_no_label() {
        let output = Tensor::new("p".into(), DType::Fp32, [2, 1].as_slice().into(), bytes_from(vec![0.9f32, 0.1]))
            .expect("right");
        let labels = ["lags".to_owned(), "leads".to_owned()];
        assert_eq!(classes(&classify(&output, 1, true, &labels).expect("numbers")), ["0.900000:0", "0.100000:0"]);
    }

    #[test]
    fn whole_numbers_are_written_whole() {
        let output =
            Tensor::new("n".into(), DType::Int32, [2].as_slice().into(), bytes_from(vec![-3i32, 4])).expect("right");
        assert_eq!(classes(&classify(&output, 2, false, &[]).expect("numbers")), ["4:1", "-3:0"]);
        let empty =
            Tensor::new("n".into(), DType::Int32, [0, 4].as_slice().into(), bytes::Bytes::new()).expect("right");
        assert!(classes(&classify(&empty, 2, true, &[]).expect("numbers")).is_empty());
        let texts = Tensor::new("s".into(), DType::Bytes, [0].as_slice().into(), bytes::Bytes::new()).expect("right");
        assert_eq!(classify(&texts, 1, true, &[]).expect_err("texts").reason(), "NOT_CLASSIFIABLE");
    }
}

//! JSON rows whose values are lists: one row of each input tensor, as in `{"window": [[0.1, 0.2], [0.3, 0.4]]}`.

use std::collections::HashMap;

use anyhow::{Context, bail, ensure};
use serde_json::{Map, Value};

use super::PredictArgs;
use crate::{
    cli::{
        client, convert,
        proto::{self, oip::model_metadata_response::TensorMetadata},
    },
    model::{DType, ExampleTensor},
};

/// The element types of the model's inputs, by name.
pub type Types = HashMap<String, DType>;

/// Asks the server, by the Open Inference Protocol, whose word for a version may be a label.
pub async fn types(args: &PredictArgs) -> anyhow::Result<Types> {
    let version = args.version.clone().or(args.label.clone());
    let metadata = client::metadata(&args.server, &args.model, version, args.timeout).await?;
    Ok(types_of(metadata.inputs))
}

pub fn types_of(inputs: Vec<TensorMetadata>) -> Types {
    let inputs = inputs.into_iter();
    inputs.filter_map(|input| Some((input.name, DType::parse(&input.datatype)?))).collect()
}

/// One tensor for each key of the first row, its first dimension the rows.
pub fn tensors(rows: &[Map<String, Value>], first_row: usize, types: &Types) -> anyhow::Result<Vec<proto::Tensor>> {
    let names: Vec<&String> = rows.iter().take(1).flat_map(Map::keys).collect();
    names.into_iter().map(|name| tensor(name, rows, first_row, types)).collect()
}

fn tensor(name: &str, rows: &[Map<String, Value>], first_row: usize, types: &Types) -> anyhow::Result<proto::Tensor> {
    let Some(&datatype) = types.get(name) else {
        let mut known: Vec<&str> = types.keys().map(String::as_str).collect();
        known.sort_unstable();
        bail!("the model has no input '{name}'; its inputs are {}", known.join(", "));
    };
    let mut shape: Option<Vec<usize>> = None;
    let mut data = Vec::new();
    for (place, row) in rows.iter().enumerate() {
        let number = first_row + place;
        let value = row.get(name).with_context(|| format!("row {number}: '{name}' is absent"))?;
        let own =
            flatten(value, &mut data).with_context(|| format!("row {number}: the lists of '{name}' are ragged"))?;
        let common = shape.get_or_insert_with(|| own.clone());
        ensure!(*common == own, "row {number}: '{name}' has shape {own:?}, the rows before have {common:?}");
    }
    let shape = std::iter::once(rows.len()).chain(shape.unwrap_or_default()).collect();
    let tensor = ExampleTensor { name: name.into(), datatype, shape, data };
    let input =
        tensor.to_input().map_err(|error| anyhow::anyhow!("{}", error.message().replace("example.json: ", "")))?;
    Ok(convert::tensor(input))
}

/// Adds the elements row after row and gives the shape; `None` where lists beside each other differ.
fn flatten(value: &Value, data: &mut Vec<Value>) -> Option<Vec<usize>> {
    let Value::Array(items) = value else {
        data.push(value.clone());
        return Some(Vec::new());
    };
    let mut inner: Option<Vec<usize>> = None;
    for item in items {
        let own = flatten(item, data)?;
        if *inner.get_or_insert_with(|| own.clone()) != own {
            return None;
        }
    }
    Some(std::iter::once(items.len()).chain(inner.unwrap_or_default()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(rows: &[&str]) -> anyhow::Result<Vec<proto::Tensor>> {
        let rows: Vec<Map<String, Value>> = rows.iter().map(|row| serde_json::from_str(row).unwrap()).collect();
        let types = [("x", DType::Fp32), ("n", DType::Int64)].map(|(name, dtype)| (name.to_string(), dtype));
        tensors(&rows, 7, &types.into())
    }

    #[test]
    fn rows_of_lists_stack_to_tensors_of_the_models_types() {
        let tensors = made(&[r#"{"x": [[1, 2.5]], "n": 3}"#, r#"{"x": [[0, null]], "n": 4}"#]).unwrap();
        assert_eq!(
            (tensors[0].name.as_str(), &tensors[0].shape[..], &tensors[0].ints[..]),
            ("n", &[2][..], &[3, 4][..])
        );
        assert_eq!((&tensors[1].shape[..], &tensors[1].floats[..3]), (&[2, 1, 2][..], &[1.0, 2.5, 0.0][..]));
        assert!(tensors[1].floats[3].is_nan());
    }

    #[test]
    fn what_does_not_stack_is_named() {
        let message = |rows: &[&str]| made(rows).unwrap_err().to_string();
        assert_eq!(message(&[r#"{"y": [1]}"#]), "the model has no input 'y'; its inputs are n, x");
        assert_eq!(
            message(&[r#"{"x": [1]}"#, r#"{"x": [1, 2]}"#]),
            "row 8: 'x' has shape [2], the rows before have [1]"
        );
        assert_eq!(message(&[r#"{"x": [[1], 2]}"#]), "row 7: the lists of 'x' are ragged");
        assert_eq!(message(&[r#"{"x": [1]}"#, "{}"]), "row 8: 'x' is absent");
        assert!(message(&[r#"{"n": [0.5]}"#]).starts_with("tensor 'n'"));
    }
}

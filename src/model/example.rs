//! `example.json`: real inputs of a version and the answers that must come out.
//!
//! The request is the body that Open Inference Protocol clients send over REST, or rows of named features.

use serde::{Deserialize, Serialize};

use super::{
    DType,
    request::{Contents, Data, Parameter, Parameters, Row, TensorInput, Value},
};
use crate::error::{Error, Result};

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ExampleFile {
    #[serde(default)]
    pub description: String,
    pub examples: Vec<Example>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Example {
    pub request: ExampleRequest,
    pub response: Expected,
    /// |answer - expected| <= atol + rtol * |expected|
    #[serde(default)]
    pub rtol: f64,
    #[serde(default)]
    pub atol: f64,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ExampleRequest {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<ExampleTensor>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rows: Vec<serde_json::Map<String, serde_json::Value>>,
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub parameters: serde_json::Map<String, serde_json::Value>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Expected {
    pub outputs: Vec<ExampleTensor>,
}

/// A tensor as JSON: flat and row-major; `null` is NaN.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ExampleTensor {
    pub name: String,
    pub datatype: DType,
    pub shape: Vec<usize>,
    pub data: Vec<serde_json::Value>,
}

// === impl ExampleFile ===

impl ExampleFile {
    pub fn parse(text: &str) -> Result<Self> {
        serde_json::from_str(text).map_err(|error| invalid(error.to_string()))
    }
}

// === impl ExampleRequest ===

impl ExampleRequest {
    /// The request's data, as a caller would have sent them.
    pub fn data(&self) -> Result<Data> {
        if self.rows.is_empty() {
            return Ok(Data::Tensors(self.inputs.iter().map(ExampleTensor::to_input).collect::<Result<_>>()?));
        }
        let rows = self
            .rows
            .iter()
            .map(|row| row.iter().map(|(name, value)| Ok((name.clone(), to_value(value)?))).collect::<Result<Row>>());
        Ok(Data::Rows(rows.collect::<Result<_>>()?))
    }

    pub fn parameters(&self) -> Result<Parameters> {
        let parameters = self.parameters.iter().map(|(name, value)| {
            let value = match value {
                serde_json::Value::Bool(flag) => Parameter::Bool(*flag),
                serde_json::Value::String(text) => Parameter::Text(text.clone()),
                serde_json::Value::Number(number) => match number.as_i64() {
                    Some(number) => Parameter::Int(number),
                    None => Parameter::Double(number.as_f64().unwrap_or(f64::NAN)),
                },
                _ => {
                    return Err(invalid(format!("parameter '{name}' is neither a flag, a number nor a text")));
                }
            };
            Ok((name.clone(), value))
        });
        parameters.collect::<Result<_>>().map(Parameters)
    }
}

// === impl ExampleTensor ===

impl ExampleTensor {
    pub fn to_input(&self) -> Result<TensorInput> {
        Ok(TensorInput {
            name: self.name.clone(),
            dtype: Some(self.datatype),
            shape: Some(self.shape.iter().copied().collect()),
            contents: self.contents()?,
        })
    }

    fn contents(&self) -> Result<Contents> {
        let wrong = |value: &serde_json::Value| {
            let kind = match value {
                serde_json::Value::Number(_) => "a number out of range",
                _ => "an element of another kind",
            };
            invalid(format!("tensor '{}': {kind} in {}", self.name, self.datatype))
        };
        macro_rules! each {
            ($kind:ident, $convert:expr) => {
                Contents::$kind(
                    self.data.iter().map(|value| $convert(value).ok_or_else(|| wrong(value))).collect::<Result<_>>()?,
                )
            };
        }
        Ok(match self.datatype {
            DType::Bool => each!(Bools, serde_json::Value::as_bool),
            DType::Int8 | DType::Int16 | DType::Int32 | DType::Int64 => each!(Ints, serde_json::Value::as_i64),
            DType::Uint8 | DType::Uint16 | DType::Uint32 | DType::Uint64 => each!(Uints, serde_json::Value::as_u64),
            DType::Fp16 | DType::Bf16 | DType::Fp32 => {
                each!(Floats, |value| as_double(value).map(|number| number as f32))
            }
            DType::Fp64 => each!(Doubles, as_double),
            DType::Bytes => {
                each!(Blobs, |value: &serde_json::Value| value
                    .as_str()
                    .map(|text| bytes::Bytes::copy_from_slice(text.as_bytes())))
            }
        })
    }
}

fn as_double(value: &serde_json::Value) -> Option<f64> {
    match value {
        serde_json::Value::Null => Some(f64::NAN),
        serde_json::Value::String(text) => match text.as_str() {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        value => value.as_f64(),
    }
}

fn to_value(value: &serde_json::Value) -> Result<Value> {
    match value {
        serde_json::Value::Null => Ok(Value::Null),
        serde_json::Value::Bool(flag) => Ok(Value::Bool(*flag)),
        serde_json::Value::String(text) => Ok(Value::Text(text.clone())),
        serde_json::Value::Number(number) => Ok(Value::Number(number.as_f64().unwrap_or(f64::NAN))),
        _ => Err(invalid("a row's value is neither null, a flag, a number nor a text".into())),
    }
}

fn invalid(what: String) -> Error {
    Error::invalid("INVALID_EXAMPLE", format!("example.json: {what}"))
}

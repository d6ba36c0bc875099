//! The words of `model` as messages of `sconce.v1`, as a caller would send them.

use prost_types::{Struct, Value as ProtoValue, value::Kind};

use super::proto::{self, ParameterValue, parameter_value, predict_request};
use crate::model::{Contents, DType, Data, Parameter, Parameters, TensorInput, Value};

/// A request for a version's example.
pub fn request(model: &str, version: Option<String>, data: Data, parameters: Parameters) -> proto::PredictRequest {
    let mut request = proto::PredictRequest {
        model: model.into(),
        select: version.map(predict_request::Select::Version),
        parameters: parameters.0.into_iter().map(|(name, value)| (name, parameter(value))).collect(),
        ..Default::default()
    };
    match data {
        Data::Tensors(tensors) => request.inputs = tensors.into_iter().map(tensor).collect(),
        Data::Rows(rows) => {
            request.rows = rows
                .into_iter()
                .map(|row| structure(row.into_iter().map(|(name, value)| (name, kind(value)))))
                .collect();
        }
        Data::Table(table) => {
            request.table = Some(proto::Table { names: table.names, values: table.values });
        }
    }
    request
}

pub fn parameter(parameter: Parameter) -> ParameterValue {
    let value = match parameter {
        Parameter::Bool(flag) => parameter_value::Value::BoolValue(flag),
        Parameter::Int(number) => parameter_value::Value::Int64Value(number),
        Parameter::Double(number) => parameter_value::Value::DoubleValue(number),
        Parameter::Text(text) => parameter_value::Value::StringValue(text),
    };
    ParameterValue { value: Some(value) }
}

/// `k=v` of the command line: a flag, a whole number, a number or a text, by its look.
pub fn parse_parameter(text: &str) -> Result<(String, Parameter), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    let parameter = if let Ok(flag) = value.parse() {
        Parameter::Bool(flag)
    } else if let Ok(number) = value.parse() {
        Parameter::Int(number)
    } else if let Ok(number) = value.parse() {
        Parameter::Double(number)
    } else {
        Parameter::Text(value.into())
    };
    Ok((name.into(), parameter))
}

/// One row of named values.
pub fn structure(fields: impl Iterator<Item = (String, Kind)>) -> Struct {
    Struct { fields: fields.map(|(name, kind)| (name, ProtoValue { kind: Some(kind) })).collect() }
}

/// The protocol's enum; its names are those of `DType`.
pub fn data_type(dtype: DType) -> proto::DataType {
    proto::DataType::from_str_name(dtype.as_str()).expect("both enums have the protocol's names: this is a bug")
}

fn kind(value: Value) -> Kind {
    match value {
        Value::Null => Kind::NullValue(0),
        Value::Number(number) => Kind::NumberValue(number),
        Value::Bool(flag) => Kind::BoolValue(flag),
        Value::Text(text) => Kind::StringValue(text),
    }
}

pub fn tensor(input: TensorInput) -> proto::Tensor {
    let mut tensor = proto::Tensor {
        name: input.name,
        dtype: input.dtype.map_or(0, |dtype| data_type(dtype).into()),
        shape: input.shape.unwrap_or_default().iter().map(|&dim| dim as i64).collect(),
        ..Default::default()
    };
    match input.contents {
        Contents::Raw(bytes) => tensor.raw = bytes,
        Contents::Bools(values) => tensor.bools = values,
        Contents::Ints(values) => tensor.ints = values,
        Contents::Uints(values) => tensor.uints = values,
        Contents::Floats(values) => tensor.floats = values,
        Contents::Doubles(values) => tensor.doubles = values,
        Contents::Blobs(values) => {
            let texts: Option<Vec<String>> = values.iter().map(|blob| String::from_utf8(blob.to_vec()).ok()).collect();
            match texts {
                Some(texts) => tensor.strings = texts,
                None => tensor.blobs = values,
            }
        }
    }
    tensor
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_its_enum() {
        for dtype in DType::ALL {
            assert_eq!(data_type(dtype).as_str_name(), dtype.as_str());
        }
    }

    #[test]
    fn a_parameter_is_read_by_its_look() {
        let parsed = |text| parse_parameter(text).unwrap().1;
        assert_eq!(parsed("a=true"), Parameter::Bool(true));
        assert_eq!(parsed("a=-3"), Parameter::Int(-3));
        assert_eq!(parsed("a=0.5"), Parameter::Double(0.5));
        assert_eq!(parsed("a=b=c"), Parameter::Text("b=c".into()));
        assert!(parse_parameter("a").is_err());
    }
}

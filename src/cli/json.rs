//! JSON as `grpcurl` takes it: protobuf's JSON form, of our requests and of the Open Inference Protocol's, and back.

use base64::{Engine, prelude::BASE64_STANDARD};
use prost_types::value::Kind;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::proto::{PredictRequest, Tensor, parameter_value, predict_request};
use crate::{
    error::{Error, Result},
    model::{Contents, DType, Data, Parameter, Parameters, TensorInput},
};

/// A `sconce.v1.PredictRequest`, its keys in the order a person would write them.
#[derive(Serialize)]
pub struct RequestJson {
    model: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    parameters: Map<String, Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rows: Vec<Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    inputs: Vec<TensorJson>,
}

#[derive(Serialize)]
struct TensorJson {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    dtype: Option<&'static str>,
    shape: Vec<i64>,
    #[serde(flatten)]
    contents: Map<String, Value>,
}

/// An `inference.ModelInferRequest`.
#[derive(Serialize)]
pub struct InferJson {
    model_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    model_version: Option<String>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    parameters: Map<String, Value>,
    inputs: Vec<InferTensorJson>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    raw_input_contents: Vec<String>,
}

#[derive(Serialize)]
struct InferTensorJson {
    name: String,
    datatype: &'static str,
    shape: Vec<usize>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    contents: Map<String, Value>,
}

/// The request as JSON.
pub fn request(request: &PredictRequest) -> RequestJson {
    let parameters = request.parameters.iter().map(|(name, parameter)| {
        let value = match &parameter.value {
            Some(parameter_value::Value::BoolValue(flag)) => json!({ "bool_value": flag }),
            Some(parameter_value::Value::Int64Value(number)) => json!({ "int64_value": number }),
            Some(parameter_value::Value::DoubleValue(number)) => json!({ "double_value": double(*number) }),
            Some(parameter_value::Value::StringValue(text)) => json!({ "string_value": text }),
            None => json!({}),
        };
        (name.clone(), value)
    });
    RequestJson {
        model: request.model.clone(),
        version: match &request.select {
            Some(predict_request::Select::Version(version)) => Some(version.clone()),
            _ => None,
        },
        parameters: parameters.collect(),
        rows: request.rows.iter().map(row).collect(),
        inputs: request.inputs.iter().map(tensor).collect(),
    }
}

/// The same for the Open Inference Protocol, which knows tensors alone: INVALID_ARGUMENT for rows.
pub fn infer_request(model: &str, version: Option<String>, data: Data, parameters: Parameters) -> Result<InferJson> {
    let Data::Tensors(tensors) = data else {
        return Err(Error::invalid("INVALID_EXAMPLE", "the Open Inference Protocol has no rows of named features"));
    };
    // Half floats have no typed field in that protocol, and a request is typed or raw as a whole.
    let half = |dtype| matches!(dtype, Some(DType::Fp16 | DType::Bf16));
    let raw = tensors.iter().any(|tensor| half(tensor.dtype));
    let mut infer = InferJson {
        model_name: model.into(),
        model_version: version,
        parameters: parameters.0.into_iter().map(|(name, value)| (name, infer_parameter(value))).collect(),
        inputs: Vec::new(),
        raw_input_contents: Vec::new(),
    };
    for TensorInput { name, dtype, shape, contents } in tensors {
        let dtype = dtype.unwrap_or(DType::Fp64);
        let mut map = Map::new();
        if raw {
            infer.raw_input_contents.push(BASE64_STANDARD.encode(contents.into_bytes(&name, dtype)?));
        } else {
            map.insert(infer_field(dtype).into(), infer_values(contents));
        }
        infer.inputs.push(InferTensorJson {
            name,
            datatype: dtype.as_str(),
            shape: shape.unwrap_or_default().to_vec(),
            contents: map,
        });
    }
    Ok(infer)
}

/// The elements of a typed tensor, as example.json writes them.
pub fn elements(tensor: &Tensor) -> Vec<Value> {
    contents(tensor).1
}

/// One row of named values; NaN as null.
pub fn row(row: &prost_types::Struct) -> Value {
    row.fields.iter().map(|(name, value)| (name.clone(), plain(value))).collect::<Map<_, _>>().into()
}

/// A value of protobuf's own JSON type.
pub fn plain(value: &prost_types::Value) -> Value {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(flag)) => json!(flag),
        Some(Kind::NumberValue(number)) => json!(number),
        Some(Kind::StringValue(text)) => json!(text),
        Some(Kind::ListValue(list)) => list.values.iter().map(plain).collect(),
        Some(Kind::StructValue(fields)) => row(fields),
    }
}

/// protobuf's JSON writes what JSON's numbers lack as texts.
pub fn double(number: f64) -> Value {
    match number {
        _ if number.is_nan() => json!("NaN"),
        f64::INFINITY => json!("Infinity"),
        f64::NEG_INFINITY => json!("-Infinity"),
        _ => json!(number),
    }
}

fn tensor(tensor: &Tensor) -> TensorJson {
    let (field, values) = contents(tensor);
    TensorJson {
        name: tensor.name.clone(),
        dtype: (tensor.dtype != 0).then(|| tensor.dtype().as_str_name()),
        shape: tensor.shape.clone(),
        contents: [(field.to_string(), Value::from(values))].into_iter().collect(),
    }
}

/// The typed field that is filled, and its elements.
fn contents(tensor: &Tensor) -> (&'static str, Vec<Value>) {
    fn each<T>(values: &[T], to_json: impl Fn(&T) -> Value) -> Vec<Value> {
        values.iter().map(to_json).collect()
    }
    if !tensor.bools.is_empty() {
        ("bools", each(&tensor.bools, |value| json!(value)))
    } else if !tensor.ints.is_empty() {
        ("ints", each(&tensor.ints, |value| json!(value)))
    } else if !tensor.uints.is_empty() {
        ("uints", each(&tensor.uints, |value| json!(value)))
    } else if !tensor.floats.is_empty() {
        ("floats", each(&tensor.floats, |value| single(*value)))
    } else if !tensor.strings.is_empty() {
        ("strings", each(&tensor.strings, |value| json!(value)))
    } else if !tensor.blobs.is_empty() {
        ("blobs", each(&tensor.blobs, |value| json!(BASE64_STANDARD.encode(value))))
    } else {
        ("doubles", each(&tensor.doubles, |value| double(*value)))
    }
}

/// The shortest decimal that reads back as the same single, instead of that of the double it widens to.
fn single(number: f32) -> Value {
    double(number.to_string().parse().unwrap_or(f64::from(number)))
}

fn infer_parameter(parameter: Parameter) -> Value {
    match parameter {
        Parameter::Bool(flag) => json!({ "bool_param": flag }),
        Parameter::Int(number) => json!({ "int64_param": number }),
        Parameter::Double(number) => json!({ "double_param": double(number) }),
        Parameter::Text(text) => json!({ "string_param": text }),
    }
}

fn infer_field(dtype: DType) -> &'static str {
    match dtype {
        DType::Bool => "bool_contents",
        DType::Int8 | DType::Int16 | DType::Int32 => "int_contents",
        DType::Int64 => "int64_contents",
        DType::Uint8 | DType::Uint16 | DType::Uint32 => "uint_contents",
        DType::Uint64 => "uint64_contents",
        DType::Fp16 | DType::Bf16 | DType::Fp32 => "fp32_contents",
        DType::Fp64 => "fp64_contents",
        DType::Bytes => "bytes_contents",
    }
}

fn infer_values(contents: Contents) -> Value {
    match contents {
        Contents::Bools(values) => json!(values),
        Contents::Ints(values) => json!(values),
        Contents::Uints(values) => json!(values),
        Contents::Floats(values) => values.into_iter().map(single).collect(),
        Contents::Doubles(values) => values.into_iter().map(double).collect(),
        Contents::Blobs(values) => values.iter().map(|value| json!(BASE64_STANDARD.encode(value))).collect(),
        Contents::Raw(bytes) => json!(BASE64_STANDARD.encode(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cli::convert, model::ExampleFile};

    fn example(request: &str) -> (Data, Parameters) {
        let text = format!(r#"{{"examples": [{{"request": {request}, "response": {{"outputs": []}}}}]}}"#);
        let request = &ExampleFile::parse(&text).unwrap().examples[0].request;
        (request.data().unwrap(), request.parameters().unwrap())
    }

    fn sconce(text: &str) -> String {
        let (data, parameters) = example(text);
        serde_json::to_string(&request(&convert::request("m", None, data, parameters))).unwrap()
    }

    fn oip(text: &str) -> String {
        let (data, parameters) = example(text);
        serde_json::to_string(&infer_request("m", Some("1.0.0".into()), data, parameters).unwrap()).unwrap()
    }

    #[test]
    fn rows_keep_their_missing_values() {
        let text = sconce(r#"{"rows": [{"a": 0.5, "b": null, "c": "x"}], "parameters": {"predict_type": "raw"}}"#);
        assert_eq!(
            text,
            r#"{"model":"m","parameters":{"predict_type":{"string_value":"raw"}},"rows":[{"a":0.5,"b":null,"c":"x"}]}"#
        );
    }

    #[test]
    fn tensors_are_typed_and_singles_stay_short() {
        let inputs = r#"{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [0.1, null]},
                                    {"name": "i", "datatype": "INT64", "shape": [1], "data": [9007199254740993]},
                                    {"name": "s", "datatype": "BYTES", "shape": [1], "data": ["ä"]}]}"#;
        assert_eq!(
            sconce(inputs),
            r#"{"model":"m","inputs":[{"name":"x","dtype":"FP32","shape":[1,2],"floats":[0.1,"NaN"]},{"name":"i","dtype":"INT64","shape":[1],"ints":[9007199254740993]},{"name":"s","dtype":"BYTES","shape":[1],"strings":["ä"]}]}"#
        );
        assert_eq!(
            oip(inputs),
            r#"{"model_name":"m","model_version":"1.0.0","inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"contents":{"fp32_contents":[0.1,"NaN"]}},{"name":"i","datatype":"INT64","shape":[1],"contents":{"int64_contents":[9007199254740993]}},{"name":"s","datatype":"BYTES","shape":[1],"contents":{"bytes_contents":["w6Q="]}}]}"#
        );
    }

    #[test]
    fn half_floats_go_raw_and_all_others_with_them() {
        let text = oip(r#"{"inputs": [{"name": "h", "datatype": "FP16", "shape": [1], "data": [1.0]},
                                      {"name": "b", "datatype": "BOOL", "shape": [1], "data": [true]}]}"#);
        assert!(text.ends_with(r#""raw_input_contents":["ADw=","AQ=="]}"#), "{text}");
        assert!(!text.contains("\"contents\""));
        assert!(infer_request("m", None, Data::Rows(vec![]), Parameters::default()).is_err());
    }
}

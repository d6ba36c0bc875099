//! `sconce.v1`: requests in three forms, answers in three.

use std::time::Duration;

use prost_types::{Struct, value::Kind};

use super::{Form, check_request_id, dims, doubles, earlier, elements, shape, with_name};
use crate::{
    error::{Error, Result},
    model::{
        Answer, CacheUse, Contents, DType, Data, Parameter, Parameters, PredictRequest, Priority, RouteReason, Row,
        Select, Table, Tensor, TensorInput, Value, repeated,
    },
    server::{
        call::Arrival,
        proto::sconce::v1::{self as pb, OutputForm, parameter_value, predict_request},
    },
};

/// What of the question the answer needs.
#[derive(Debug)]
pub struct Reply {
    pub request_id: String,
    pub form: Form,
}

pub fn request(message: pb::PredictRequest, arrival: Arrival) -> Result<(PredictRequest, Reply)> {
    check_request_id(&message.request_id)?;
    let (data, question_form) = data(message.inputs, message.rows, message.table)?;
    let form = match OutputForm::try_from(message.output_form) {
        Ok(OutputForm::Unspecified) => question_form,
        Ok(OutputForm::Typed) => Form::Typed,
        Ok(OutputForm::Raw) => Form::Raw,
        Ok(OutputForm::Rows) => Form::Rows,
        Err(_) => return Err(unknown_enum("output_form", message.output_form)),
    };
    let timeout = (message.timeout_ms > 0).then(|| Duration::from_millis(message.timeout_ms.into()));
    let request = PredictRequest {
        model: message.model,
        select: select(message.select)?,
        attributes: message.attributes.into_iter().collect(),
        metadata: None,
        priority: priority(message.priority)?,
        parameters: parameters(message.parameters)?,
        data,
        outputs: message.outputs,
        deadline: earlier(arrival, timeout),
    };
    let reply = Reply { request_id: message.request_id, form };
    Ok((request, reply))
}

pub fn response(answer: Answer, reply: Reply) -> pb::PredictResponse {
    let (outputs, rows) = match reply.form {
        Form::Rows => (Vec::new(), rows_of(&answer.outputs, answer.rows)),
        form => (answer.outputs.into_iter().map(|tensor| tensor_of(tensor, form)).collect(), Vec::new()),
    };
    let degraded = (!answer.degraded.is_empty())
        .then(|| pb::Degraded { reasons: answer.degraded.iter().map(|&reason| reason.to_owned()).collect() });
    pb::PredictResponse {
        request_id: reply.request_id,
        prediction_ids: answer.prediction_ids,
        served: Some(pb::Served {
            model: answer.served.model.as_str().to_owned(),
            version: answer.served.version.to_string(),
            variant: (*answer.served.variant).to_owned(),
            reason: route_reason(answer.served.reason) as i32,
            revision: answer.served.revision,
        }),
        degraded,
        outputs,
        rows,
        timing: Some(pb::Timing {
            queue_us: answer.timing.queue_us,
            compute_us: answer.timing.compute_us,
            batch_rows: u32::try_from(answer.timing.batch_rows).unwrap_or(u32::MAX),
        }),
        cache: answer.cache.map(cache_use),
    }
}

pub fn data_type(dtype: DType) -> pb::DataType {
    match dtype {
        DType::Bool => pb::DataType::Bool,
        DType::Uint8 => pb::DataType::Uint8,
        DType::Uint16 => pb::DataType::Uint16,
        DType::Uint32 => pb::DataType::Uint32,
        DType::Uint64 => pb::DataType::Uint64,
        DType::Int8 => pb::DataType::Int8,
        DType::Int16 => pb::DataType::Int16,
        DType::Int32 => pb::DataType::Int32,
        DType::Int64 => pb::DataType::Int64,
        DType::Fp16 => pb::DataType::Fp16,
        DType::Bf16 => pb::DataType::Bf16,
        DType::Fp32 => pb::DataType::Fp32,
        DType::Fp64 => pb::DataType::Fp64,
        DType::Bytes => pb::DataType::Bytes,
    }
}

// The question.

fn select(select: Option<predict_request::Select>) -> Result<Select> {
    Ok(match select {
        None => Select::Route,
        Some(predict_request::Select::Version(version)) => Select::Version(version.parse()?),
        Some(predict_request::Select::Label(label)) => Select::Label(label),
    })
}

fn priority(priority: i32) -> Result<Priority> {
    match pb::Priority::try_from(priority) {
        Ok(pb::Priority::Unspecified | pb::Priority::Normal) => Ok(Priority::Normal),
        Ok(pb::Priority::Low) => Ok(Priority::Low),
        Ok(pb::Priority::High) => Ok(Priority::High),
        Err(_) => Err(unknown_enum("priority", priority)),
    }
}

fn parameters(parameters: impl IntoIterator<Item = (String, pb::ParameterValue)>) -> Result<Parameters> {
    let mut converted = Vec::new();
    for (name, value) in parameters {
        let value = match value.value {
            Some(parameter_value::Value::BoolValue(value)) => Parameter::Bool(value),
            Some(parameter_value::Value::Int64Value(value)) => Parameter::Int(value),
            Some(parameter_value::Value::DoubleValue(value)) => Parameter::Double(value),
            Some(parameter_value::Value::StringValue(value)) => Parameter::Text(value),
            None => {
                let message = format!("parameter{} takes one value; none came", repeated(&name));
                return Err(with_name(Error::invalid("INVALID_PARAMETER", message), "parameter", &name));
            }
        };
        converted.push((name, value));
    }
    // A map's order is random; requests with equal parameters share a batch.
    converted.sort_unstable_by(|(left, _), (right, _)| left.cmp(right));
    Ok(Parameters(converted))
}

fn data(inputs: Vec<pb::Tensor>, rows: Vec<Struct>, table: Option<pb::Table>) -> Result<(Data, Form)> {
    match (inputs, rows, table) {
        // No data at all are those of a model without inputs; any other's signature says what is missing.
        (inputs, rows, None) if rows.is_empty() => tensors(inputs),
        (inputs, rows, None) if inputs.is_empty() => {
            let rows: Result<Vec<Row>> = rows.into_iter().map(row).collect();
            Ok((Data::Rows(rows?), Form::Rows))
        }
        (inputs, rows, Some(table)) if inputs.is_empty() && rows.is_empty() => {
            Ok((Data::Table(self::table(table)?), Form::Rows))
        }
        _ => {
            Err(Error::invalid("AMBIGUOUS_DATA", "the data come in one of inputs, rows and table; more than one came"))
        }
    }
}

fn tensors(inputs: Vec<pb::Tensor>) -> Result<(Data, Form)> {
    let mut form = Form::Raw;
    let mut tensors = Vec::with_capacity(inputs.len());
    for input in inputs {
        let tensor = tensor(input)?;
        if !matches!(tensor.contents, Contents::Raw(_)) {
            form = Form::Typed;
        }
        tensors.push(tensor);
    }
    Ok((Data::Tensors(tensors), form))
}

fn tensor(tensor: pb::Tensor) -> Result<TensorInput> {
    let dtype = match pb::DataType::try_from(tensor.dtype) {
        Ok(dtype) => dtype_of(dtype),
        Err(_) => return Err(with_name(unknown_enum("dtype", tensor.dtype), "tensor", &tensor.name)),
    };
    // A shape that is left out and a scalar's look alike here; the signature tells them apart.
    let shape = match &tensor.shape[..] {
        [] => None,
        dims => Some(shape(&tensor.name, dims)?),
    };
    let strings = tensor.strings.into_iter().map(Into::into).collect::<Vec<bytes::Bytes>>();
    let mut given = [
        (!tensor.raw.is_empty()).then(|| Contents::Raw(tensor.raw)),
        (!tensor.bools.is_empty()).then(|| Contents::Bools(tensor.bools)),
        (!tensor.ints.is_empty()).then(|| Contents::Ints(tensor.ints)),
        (!tensor.uints.is_empty()).then(|| Contents::Uints(tensor.uints)),
        (!tensor.floats.is_empty()).then(|| Contents::Floats(tensor.floats)),
        (!tensor.doubles.is_empty()).then(|| Contents::Doubles(tensor.doubles)),
        (!strings.is_empty()).then(|| Contents::Blobs(strings)),
        (!tensor.blobs.is_empty()).then(|| Contents::Blobs(tensor.blobs)),
    ]
    .into_iter()
    .flatten();
    let contents = given.next().unwrap_or(Contents::Raw(bytes::Bytes::new()));
    if given.next().is_some() {
        let name = repeated(&tensor.name);
        let message =
            format!("tensor{name}: the elements stand in raw or in one typed field; in more than one they came");
        return Err(with_name(Error::invalid("AMBIGUOUS_CONTENTS", message), "tensor", &tensor.name));
    }
    Ok(TensorInput { name: tensor.name, dtype, shape, contents })
}

fn row(row: Struct) -> Result<Row> {
    row.fields
        .into_iter()
        .map(|(name, value)| {
            let value = match value.kind {
                Some(Kind::NullValue(_)) => Value::Null,
                Some(Kind::NumberValue(number)) => Value::Number(number),
                Some(Kind::BoolValue(flag)) => Value::Bool(flag),
                Some(Kind::StringValue(text)) => Value::Text(text),
                Some(Kind::StructValue(_) | Kind::ListValue(_)) | None => {
                    return Err(unsupported_value(&name));
                }
            };
            Ok((name, value))
        })
        .collect()
}

fn unsupported_value(feature: &str) -> Error {
    let expected = "a value is a number, a text, a boolean or null";
    let message = format!("feature{}: {expected}; a list, a map or nothing came", repeated(feature));
    with_name(Error::invalid("UNSUPPORTED_VALUE", message), "feature", feature)
}

fn table(table: pb::Table) -> Result<Table> {
    let columns = table.names.len();
    if columns == 0 || table.values.is_empty() || !table.values.len().is_multiple_of(columns) {
        return Err(Error::invalid(
            "TABLE_MISMATCH",
            format!("a table takes names × rows values; {columns} names and {} values came", table.values.len()),
        ));
    }
    Ok(Table { names: table.names, values: table.values })
}

fn dtype_of(dtype: pb::DataType) -> Option<DType> {
    Some(match dtype {
        pb::DataType::Unspecified => return None,
        pb::DataType::Bool => DType::Bool,
        pb::DataType::Uint8 => DType::Uint8,
        pb::DataType::Uint16 => DType::Uint16,
        pb::DataType::Uint32 => DType::Uint32,
        pb::DataType::Uint64 => DType::Uint64,
        pb::DataType::Int8 => DType::Int8,
        pb::DataType::Int16 => DType::Int16,
        pb::DataType::Int32 => DType::Int32,
        pb::DataType::Int64 => DType::Int64,
        pb::DataType::Fp16 => DType::Fp16,
        pb::DataType::Bf16 => DType::Bf16,
        pb::DataType::Fp32 => DType::Fp32,
        pb::DataType::Fp64 => DType::Fp64,
        pb::DataType::Bytes => DType::Bytes,
    })
}

fn unknown_enum(field: &str, came: i32) -> Error {
    Error::invalid("UNKNOWN_ENUM_VALUE", format!("{field} takes a value of its enum; {came} came"))
}

// The answer.

fn route_reason(reason: RouteReason) -> pb::RouteReason {
    match reason {
        RouteReason::Stable => pb::RouteReason::Stable,
        RouteReason::Pinned => pb::RouteReason::Pinned,
        RouteReason::Label => pb::RouteReason::Label,
        RouteReason::Rule => pb::RouteReason::Rule,
        RouteReason::Sticky => pb::RouteReason::Sticky,
        RouteReason::Draw => pb::RouteReason::Draw,
    }
}

fn cache_use(cache: CacheUse) -> pb::CacheUse {
    let (result, age) = match cache {
        CacheUse::Hit { age } => (pb::CacheResult::Hit, age),
        CacheUse::Miss => (pb::CacheResult::Miss, Duration::ZERO),
        CacheUse::Bypass => (pb::CacheResult::Bypass, Duration::ZERO),
    };
    pb::CacheUse { result: result as i32, age_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX) }
}

fn tensor_of(tensor: Tensor, form: Form) -> pb::Tensor {
    let mut message = pb::Tensor {
        name: (*tensor.name).to_owned(),
        dtype: data_type(tensor.dtype) as i32,
        shape: dims(&tensor.shape),
        ..pb::Tensor::default()
    };
    if form == Form::Raw {
        message.raw = tensor.data;
        return message;
    }
    fn ints<T: bytemuck::AnyBitPattern + bytemuck::NoUninit + Into<i64>>(tensor: &Tensor) -> Vec<i64> {
        elements::<T>(tensor).into_iter().map(Into::into).collect()
    }
    fn uints<T: bytemuck::AnyBitPattern + bytemuck::NoUninit + Into<u64>>(tensor: &Tensor) -> Vec<u64> {
        elements::<T>(tensor).into_iter().map(Into::into).collect()
    }
    match tensor.dtype {
        DType::Bool => message.bools = tensor.data.iter().map(|&byte| byte != 0).collect(),
        DType::Uint8 => message.uints = uints::<u8>(&tensor),
        DType::Uint16 => message.uints = uints::<u16>(&tensor),
        DType::Uint32 => message.uints = uints::<u32>(&tensor),
        DType::Uint64 => message.uints = elements(&tensor),
        DType::Int8 => message.ints = ints::<i8>(&tensor),
        DType::Int16 => message.ints = ints::<i16>(&tensor),
        DType::Int32 => message.ints = ints::<i32>(&tensor),
        DType::Int64 => message.ints = elements(&tensor),
        DType::Fp16 => message.floats = elements::<half::f16>(&tensor).into_iter().map(f32::from).collect(),
        DType::Bf16 => message.floats = elements::<half::bf16>(&tensor).into_iter().map(f32::from).collect(),
        DType::Fp32 => message.floats = elements(&tensor),
        DType::Fp64 => message.doubles = elements(&tensor),
        DType::Bytes => match tensor.strings().map(|text| std::str::from_utf8(text).map(str::to_owned)).collect() {
            Ok(texts) => message.strings = texts,
            Err(_) => message.blobs = tensor.strings().map(|blob| tensor.data.slice_ref(blob)).collect(),
        },
    }
    message
}

/// One struct for each row: a scalar where the output has one element a row, a list where it has more.
fn rows_of(outputs: &[Tensor], rows: usize) -> Vec<Struct> {
    let mut structs = vec![Struct::default(); rows];
    for output in outputs {
        let values = kinds(output);
        let width = values.len() / rows.max(1);
        // A scalar stays one, and so does one value a row; an output that is empty or wider is a list.
        let scalar = width == 1;
        let mut values = values.into_iter().map(|kind| prost_types::Value { kind: Some(kind) });
        for fields in &mut structs {
            let value = if scalar {
                values.next().unwrap_or_default()
            } else {
                let values = values.by_ref().take(width).collect();
                let list = prost_types::ListValue { values };
                prost_types::Value { kind: Some(Kind::ListValue(list)) }
            };
            fields.fields.insert((*output.name).to_owned(), value);
        }
    }
    structs
}

/// JSON, which rows are shown in, has no NaN and no infinity: null stands for the one, as it does in questions, and a
/// word for the other.
fn kinds(tensor: &Tensor) -> Vec<Kind> {
    let number = |value: f64| match value {
        _ if value.is_nan() => Kind::NullValue(0),
        f64::INFINITY => Kind::StringValue("Infinity".into()),
        f64::NEG_INFINITY => Kind::StringValue("-Infinity".into()),
        _ => Kind::NumberValue(value),
    };
    match (tensor.dtype, doubles(tensor)) {
        (DType::Bool, _) => tensor.data.iter().map(|&byte| Kind::BoolValue(byte != 0)).collect(),
        (DType::Fp32, _) => elements(tensor).into_iter().map(shortest).map(number).collect(),
        (_, Some(values)) => values.into_iter().map(number).collect(),
        (_, None) => {
            tensor.strings().map(|text| Kind::StringValue(String::from_utf8_lossy(text).into_owned())).collect()
        }
    }
}

/// The double whose shortest decimal is the float's: 0.1, and not 0.10000000149011612. It still reads back as that float.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

#[cfg(test)]
#[path = "sconce_tests.rs"]
mod tests;

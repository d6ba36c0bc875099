//! The Open Inference Protocol: raw or typed contents, Triton's reserved parameters, classification.

use std::{borrow::Cow, collections::BTreeMap, time::Duration};

use smallvec::SmallVec;

use super::{Form, check_request_id, dims, earlier, elements, only_raw, shape, with_name};
use crate::{
    backend::is_parameter,
    error::{Error, Result},
    model::{
        Answer, CacheUse, Contents, DType, Data, Parameter, Parameters, PredictRequest, Priority, Select, Tensor,
        TensorInput, Version, repeated,
    },
    server::{
        call::Arrival,
        proto::inference::{
            InferParameter, InferTensorContents, ModelInferRequest, ModelInferResponse,
            infer_parameter::ParameterChoice,
            model_infer_request::{InferInputTensor, InferRequestedOutputTensor},
            model_infer_response::InferOutputTensor,
        },
    },
};

/// What of the question the answer needs.
#[derive(Debug)]
pub struct Reply {
    pub id: String,
    pub form: Form,
    pub classifications: Classifications,
    /// Whether a client of Triton's streams wants the mark that nothing more comes for this request.
    pub mark_final: bool,
}

/// The value of a parameter of an answer.
pub enum Said<'a> {
    Text(Cow<'a, str>),
    Int(i64),
    Flag(bool),
}

/// Names of outputs, and how many classes of each are wanted.
type Classifications = Vec<(String, usize)>;

type InferParameters = BTreeMap<String, InferParameter>;

pub fn request(message: ModelInferRequest, arrival: Arrival) -> Result<(PredictRequest, Reply)> {
    check_request_id(&message.id)?;
    let (inputs, form) = inputs(message.inputs, message.raw_input_contents)?;
    let (outputs, classifications) = outputs(message.outputs)?;
    let reserved = Reserved::split(message.parameters)?;
    let request = PredictRequest {
        model: message.model_name,
        select: select(message.model_version)?,
        attributes: reserved.attributes,
        metadata: None,
        priority: reserved.priority,
        parameters: reserved.parameters,
        data: Data::Tensors(inputs),
        outputs,
        deadline: earlier(arrival, reserved.timeout),
    };
    let reply = Reply { id: message.id, form, classifications, mark_final: reserved.mark_final };
    Ok((request, reply))
}

pub fn response(answer: Answer, reply: Reply) -> ModelInferResponse {
    let raw = reply.form == Form::Raw || answer.outputs.iter().any(only_raw);
    let parameters = said(&answer, &reply).into_iter().map(|(name, value)| {
        let choice = match value {
            Said::Text(text) => ParameterChoice::StringParam(text.into_owned()),
            Said::Int(number) => ParameterChoice::Int64Param(number),
            Said::Flag(flag) => ParameterChoice::BoolParam(flag),
        };
        (name.to_owned(), InferParameter { parameter_choice: Some(choice) })
    });
    let parameters = parameters.collect();

    let mut raw_output_contents = Vec::new();
    let mut outputs = Vec::with_capacity(answer.outputs.len());
    for tensor in answer.outputs {
        outputs.push(InferOutputTensor {
            name: (*tensor.name).to_owned(),
            datatype: tensor.dtype.as_str().to_owned(),
            shape: dims(&tensor.shape),
            parameters: InferParameters::new(),
            contents: (!raw).then(|| typed_contents(&tensor)),
        });
        if raw {
            raw_output_contents.push(tensor.data);
        }
    }
    ModelInferResponse {
        model_name: answer.served.model.as_str().to_owned(),
        model_version: answer.served.version.to_string(),
        id: reply.id,
        parameters,
        outputs,
        raw_output_contents,
    }
}

/// What an answer says beside its outputs, in the order of the names.
pub fn said<'a>(answer: &'a Answer, reply: &Reply) -> SmallVec<[(&'static str, Said<'a>); 4]> {
    let mut said = SmallVec::new();
    if let Some(cache) = answer.cache {
        said.push(("cache", Said::Text(cache.as_str().into())));
        if let CacheUse::Hit { age } = cache {
            said.push(("cache_age_ms", Said::Int(i64::try_from(age.as_millis()).unwrap_or(i64::MAX))));
        }
    }
    if !answer.degraded.is_empty() {
        said.push(("degraded", Said::Text(answer.degraded.join(",").into())));
    }
    if let Some(id) = answer.prediction_ids.first() {
        said.push(("prediction_id", Said::Text(id.into())));
    }
    said.push(("route_reason", Said::Text(answer.served.reason.as_str().into())));
    if reply.mark_final {
        said.push(("triton_final_response", Said::Flag(true)));
    }
    said.push(("variant", Said::Text((&*answer.served.variant).into())));
    said
}

/// A version or a label: what begins with a digit, or with `v` and a digit, can only be a version.
pub fn select(text: String) -> Result<Select> {
    let digits = text.strip_prefix('v').unwrap_or(&text);
    Ok(match digits.as_bytes().first() {
        None if text.is_empty() => Select::Route,
        Some(byte) if byte.is_ascii_digit() => Select::Version(text.parse::<Version>()?),
        _ => Select::Label(text),
    })
}

// The question.

fn inputs(inputs: Vec<InferInputTensor>, raw: Vec<bytes::Bytes>) -> Result<(Vec<TensorInput>, Form)> {
    for input in &inputs {
        refuse_shared_memory(&input.name, &input.parameters)?;
    }
    let first_typed = inputs.iter().find(|input| input.contents.as_ref().is_some_and(has_elements));
    if let Some(input) = first_typed
        && !raw.is_empty()
    {
        let name = repeated(&input.name);
        let message = format!("input{name}: a request has raw_input_contents or typed contents; both came");
        return Err(with_name(Error::invalid("AMBIGUOUS_CONTENTS", message), "tensor", &input.name));
    }
    let typed = first_typed.is_some();
    if !typed && raw.len() != inputs.len() && !(raw.is_empty() && inputs.iter().all(is_empty)) {
        return Err(Error::invalid(
            "RAW_COUNT_MISMATCH",
            format!(
                "raw_input_contents has one entry for each input; {} inputs and {} entries came",
                inputs.len(),
                raw.len()
            ),
        ));
    }
    let mut raw = raw.into_iter();
    let mut tensors = Vec::with_capacity(inputs.len());
    for input in inputs {
        let dtype = DType::parse(&input.datatype).ok_or_else(|| unknown_datatype(&input.name, &input.datatype))?;
        let contents = match typed {
            false => Contents::Raw(raw.next().unwrap_or_default()),
            true => contents(&input.name, dtype, input.contents.unwrap_or_default())?,
        };
        tensors.push(TensorInput {
            dtype: Some(dtype),
            shape: Some(shape(&input.name, &input.shape)?),
            name: input.name,
            contents,
        });
    }
    Ok((tensors, if typed { Form::Typed } else { Form::Raw }))
}

/// An empty tensor may come without any contents.
fn is_empty(input: &InferInputTensor) -> bool {
    input.shape.contains(&0)
}

fn has_elements(contents: &InferTensorContents) -> bool {
    filled(contents).is_some()
}

/// The first field that holds elements.
fn filled(contents: &InferTensorContents) -> Option<&'static str> {
    [
        ("bool_contents", contents.bool_contents.is_empty()),
        ("int_contents", contents.int_contents.is_empty()),
        ("int64_contents", contents.int64_contents.is_empty()),
        ("uint_contents", contents.uint_contents.is_empty()),
        ("uint64_contents", contents.uint64_contents.is_empty()),
        ("fp32_contents", contents.fp32_contents.is_empty()),
        ("fp64_contents", contents.fp64_contents.is_empty()),
        ("bytes_contents", contents.bytes_contents.is_empty()),
    ]
    .iter()
    .find_map(|&(field, empty)| (!empty).then_some(field))
}

/// Where elements of that type stand; `None` for what only travels raw.
fn field_of(dtype: DType) -> Option<&'static str> {
    Some(match dtype {
        DType::Bool => "bool_contents",
        DType::Int8 | DType::Int16 | DType::Int32 => "int_contents",
        DType::Int64 => "int64_contents",
        DType::Uint8 | DType::Uint16 | DType::Uint32 => "uint_contents",
        DType::Uint64 => "uint64_contents",
        DType::Fp32 => "fp32_contents",
        DType::Fp64 => "fp64_contents",
        DType::Bytes => "bytes_contents",
        DType::Fp16 | DType::Bf16 => return None,
    })
}

/// The field that belongs to the type; no other may be filled.
fn contents(name: &str, dtype: DType, mut contents: InferTensorContents) -> Result<Contents> {
    use std::mem::take;
    let own = match dtype {
        DType::Bool => Contents::Bools(take(&mut contents.bool_contents)),
        DType::Int8 | DType::Int16 | DType::Int32 => {
            Contents::Ints(take(&mut contents.int_contents).into_iter().map(i64::from).collect())
        }
        DType::Int64 => Contents::Ints(take(&mut contents.int64_contents)),
        DType::Uint8 | DType::Uint16 | DType::Uint32 => {
            Contents::Uints(take(&mut contents.uint_contents).into_iter().map(u64::from).collect())
        }
        DType::Uint64 => Contents::Uints(take(&mut contents.uint64_contents)),
        DType::Fp32 => Contents::Floats(take(&mut contents.fp32_contents)),
        DType::Fp64 => Contents::Doubles(take(&mut contents.fp64_contents)),
        DType::Bytes => Contents::Blobs(take(&mut contents.bytes_contents)),
        DType::Fp16 | DType::Bf16 => Contents::Raw(bytes::Bytes::new()),
    };
    let Some(came) = filled(&contents) else {
        return Ok(own);
    };
    let place = match field_of(dtype) {
        Some(field) => format!("{dtype} stands in {field}"),
        None => format!("{dtype} has no typed contents, send it raw"),
    };
    let message = format!("input{}: {place}; {came} came", repeated(name));
    Err(with_name(Error::invalid("CONTENTS_MISMATCH", message), "tensor", name))
}

fn outputs(requested: Vec<InferRequestedOutputTensor>) -> Result<(Vec<String>, Classifications)> {
    let mut names = Vec::with_capacity(requested.len());
    let mut classifications = Vec::new();
    for output in requested {
        refuse_shared_memory(&output.name, &output.parameters)?;
        if let Some(parameter) = output.parameters.get("classification") {
            let count = whole_number("classification", parameter)?;
            if count > 0 {
                classifications.push((output.name.clone(), usize::try_from(count).unwrap_or(usize::MAX)));
            }
        }
        names.push(output.name);
    }
    Ok((names, classifications))
}

fn refuse_shared_memory(tensor: &str, parameters: &InferParameters) -> Result<()> {
    if !parameters.keys().any(|name| name.starts_with("shared_memory_")) {
        return Ok(());
    }
    let name = repeated(tensor);
    let message = format!("tensor{name}: shared memory is not supported; send the contents in the message");
    Err(with_name(Error::invalid("SHARED_MEMORY_UNSUPPORTED", message), "tensor", tensor))
}

fn unknown_datatype(tensor: &str, datatype: &str) -> Error {
    let came = match repeated(datatype) {
        plain if plain.is_empty() => " something else".to_owned(),
        plain => plain,
    };
    let known = "BOOL, (U)INT8 to (U)INT64, FP16, BF16, FP32, FP64 and BYTES";
    let message = format!("input{}: datatype is one of {known};{came} came", repeated(tensor));
    with_name(Error::invalid("UNKNOWN_DATATYPE", message), "tensor", tensor)
}

/// A request's parameters: those that Triton reserves, and the others.
#[derive(Default)]
struct Reserved {
    priority: Priority,
    timeout: Option<Duration>,
    mark_final: bool,
    parameters: Parameters,
    attributes: Vec<(String, String)>,
}

// === impl Reserved ===

impl Reserved {
    fn split(all: InferParameters) -> Result<Self> {
        let mut split = Self::default();
        for (name, parameter) in all {
            match name.as_str() {
                "priority" => split.priority = priority(whole_number(&name, &parameter)?),
                "timeout" => {
                    let micros = whole_number(&name, &parameter)?;
                    split.timeout = (micros > 0).then(|| Duration::from_micros(micros));
                }
                "triton_enable_empty_final_response" => {
                    split.mark_final = matches!(parameter.parameter_choice, Some(ParameterChoice::BoolParam(true)));
                }
                // No model here keeps state between requests, so a sequence is its requests one by one, as it is for
                // Triton's models without sequence batching. The others say how tensors travel over HTTP.
                "sequence_id" | "sequence_start" | "sequence_end" | "headers" | "binary_data"
                | "binary_data_output" | "binary_data_size" => {}
                _ if name.starts_with("triton_") => {}
                _ => split.add(name, parameter)?,
            }
        }
        // A map's order is random; requests with equal parameters share a batch.
        split.parameters.0.sort_unstable_by(|(left, _), (right, _)| left.cmp(right));
        Ok(split)
    }

    /// The protocol has one map for the caller's own words and for what the backend is told. All of it are attributes; a
    /// name that backends know is a parameter too.
    fn add(&mut self, name: String, parameter: InferParameter) -> Result<()> {
        let (value, text) = match parameter.parameter_choice {
            Some(ParameterChoice::BoolParam(flag)) => (Parameter::Bool(flag), flag.to_string()),
            Some(ParameterChoice::Int64Param(number)) => (Parameter::Int(number), number.to_string()),
            Some(ParameterChoice::Uint64Param(number)) => match i64::try_from(number) {
                Ok(int) => (Parameter::Int(int), number.to_string()),
                Err(_) => return Err(invalid_parameter(&name, "a whole number up to 9223372036854775807")),
            },
            Some(ParameterChoice::DoubleParam(number)) => (Parameter::Double(number), number.to_string()),
            Some(ParameterChoice::StringParam(text)) => (Parameter::Text(text.clone()), text),
            None => return Err(invalid_parameter(&name, "one value")),
        };
        if is_parameter(&name) {
            self.parameters.0.push((name.clone(), value));
        }
        self.attributes.push((name, text));
        Ok(())
    }
}

/// Triton's 1 is the highest; 0 asks for the default.
fn priority(level: u64) -> Priority {
    match level {
        1 => Priority::High,
        0 | 2 => Priority::Normal,
        _ => Priority::Low,
    }
}

fn whole_number(name: &str, parameter: &InferParameter) -> Result<u64> {
    let number = match parameter.parameter_choice {
        Some(ParameterChoice::Int64Param(number)) => u64::try_from(number).ok(),
        Some(ParameterChoice::Uint64Param(number)) => Some(number),
        _ => None,
    };
    number.ok_or_else(|| invalid_parameter(name, "a whole number that is not negative"))
}

fn invalid_parameter(name: &str, expected: &str) -> Error {
    let message = format!("parameter{} takes {expected}; something else came", repeated(name));
    with_name(Error::invalid("INVALID_PARAMETER", message), "parameter", name)
}

// The answer.

fn typed_contents(tensor: &Tensor) -> InferTensorContents {
    fn widened<T, Wide>(tensor: &Tensor) -> Vec<Wide>
    where
        T: bytemuck::AnyBitPattern + bytemuck::NoUninit + Into<Wide>,
    {
        elements::<T>(tensor).into_iter().map(Into::into).collect()
    }
    let mut contents = InferTensorContents::default();
    match tensor.dtype {
        DType::Bool => contents.bool_contents = tensor.data.iter().map(|&byte| byte != 0).collect(),
        DType::Uint8 => contents.uint_contents = widened::<u8, u32>(tensor),
        DType::Uint16 => contents.uint_contents = widened::<u16, u32>(tensor),
        DType::Uint32 => contents.uint_contents = elements(tensor),
        DType::Uint64 => contents.uint64_contents = elements(tensor),
        DType::Int8 => contents.int_contents = widened::<i8, i32>(tensor),
        DType::Int16 => contents.int_contents = widened::<i16, i32>(tensor),
        DType::Int32 => contents.int_contents = elements(tensor),
        DType::Int64 => contents.int64_contents = elements(tensor),
        DType::Fp32 => contents.fp32_contents = elements(tensor),
        DType::Fp64 => contents.fp64_contents = elements(tensor),
        DType::Bytes => contents.bytes_contents = tensor.strings().map(|blob| tensor.data.slice_ref(blob)).collect(),
        // Such an answer is raw as a whole.
        DType::Fp16 | DType::Bf16 => {}
    }
    contents
}

#[cfg(test)]
#[path = "oip_tests.rs"]
pub mod tests;

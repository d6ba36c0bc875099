//! The plain question and answer of the Open Inference Protocol, which most are: tensors with raw contents, and nothing else.
//! Read and written in one pass, without the generated messages in between. What holds more is left to those, and what is wrong,
//! too, so that there is one place which says how; what both understand they understand alike.

use bytes::{BufMut, Bytes};
use smallvec::SmallVec;

use super::{
    Form, RANK_MAX, check_request_id,
    oip::{Reply, Said, said, select},
    only_raw,
};
use crate::{
    model::{Answer, Contents, DType, Data, Parameters, PredictRequest, Priority, Shape, Tensor, TensorInput},
    server::{call::Arrival, codec::Framed, fields::varint},
};

/// Of inputs and contents together: more are for the generated code, before which they are counted.
const PARTS_MAX: usize = 128;

/// A field's number and how it is written, in one byte: all of ours are below sixteen.
const fn key(number: u8, written: u8) -> u8 {
    number << 3 | written
}
const VARINT: u8 = 0;
const BYTES: u8 = 2;

/// `None` where the message is not plain.
pub fn read(message: &Bytes, arrival: Arrival) -> Option<(PredictRequest, Reply)> {
    let (mut model, mut version, mut id) = ("", "", "");
    let mut inputs = Vec::with_capacity(2);
    let mut raw: SmallVec<[&[u8]; 4]> = SmallVec::new();
    let mut rest = &message[..];
    while let Some(&key_of_field) = rest.split_off_first() {
        let field = block(&mut rest)?;
        match key_of_field {
            MODEL_NAME => model = text(field)?,
            MODEL_VERSION => version = text(field)?,
            ID => id = text(field)?,
            INPUTS | RAW_INPUT_CONTENTS if inputs.len() + raw.len() == PARTS_MAX => return None,
            INPUTS => inputs.push(input(field)?),
            RAW_INPUT_CONTENTS => raw.push(field),
            _ => return None,
        }
    }
    if raw.len() != inputs.len() {
        return None;
    }
    for (input, contents) in inputs.iter_mut().zip(raw) {
        input.contents = Contents::Raw(message.slice_ref(contents));
    }
    check_request_id(id).ok()?;
    let request = PredictRequest {
        model: model.to_owned(),
        select: select(version.to_owned()).ok()?,
        attributes: Vec::new(),
        metadata: None,
        priority: Priority::Normal,
        parameters: Parameters::default(),
        data: Data::Tensors(inputs),
        outputs: Vec::new(),
        deadline: arrival.deadline,
    };
    let reply = Reply { id: id.to_owned(), form: Form::Raw, classifications: Vec::new(), mark_final: false };
    Some((request, reply))
}

// Of ModelInferRequest.
const MODEL_NAME: u8 = key(1, BYTES);
const MODEL_VERSION: u8 = key(2, BYTES);
const ID: u8 = key(3, BYTES);
const INPUTS: u8 = key(5, BYTES);
const RAW_INPUT_CONTENTS: u8 = key(7, BYTES);

// Of a tensor, either way.
const NAME: u8 = key(1, BYTES);
const DATATYPE: u8 = key(2, BYTES);
const SHAPE: u8 = key(3, BYTES);

/// Its contents stand elsewhere.
fn input(mut rest: &[u8]) -> Option<TensorInput> {
    let (mut name, mut dtype, mut shape) = ("", "", Shape::new());
    while let Some(&key_of_field) = rest.split_off_first() {
        let field = block(&mut rest)?;
        match key_of_field {
            NAME => name = text(field)?,
            DATATYPE => dtype = text(field)?,
            SHAPE => dims(field, &mut shape)?,
            _ => return None,
        }
    }
    let (dtype, contents) = (DType::parse(dtype)?, Contents::Raw(Bytes::new()));
    Some(TensorInput { name: name.to_owned(), dtype: Some(dtype), shape: Some(shape), contents })
}

fn dims(mut rest: &[u8], shape: &mut Shape) -> Option<()> {
    while !rest.is_empty() {
        // A negative one is larger than any.
        let dim = i64::try_from(varint(&mut rest)?).ok()?;
        if shape.len() == RANK_MAX {
            return None;
        }
        shape.push(usize::try_from(dim).ok()?);
    }
    Some(())
}

fn block<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(varint(rest)?).ok()?;
    rest.split_off(..length)
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// `None` where the answer is not plain.
pub fn write(answer: &Answer, reply: &Reply) -> Option<Framed> {
    if reply.form != Form::Raw && !answer.outputs.iter().any(only_raw) {
        return None;
    }
    let mut frame = Framed::with_capacity(room(answer, reply));
    let out = frame.message();
    write_text(out, ANSWER_MODEL_NAME, answer.served.model.as_str());
    write_nested(out, ANSWER_MODEL_VERSION, |out| write_version(out, answer.served.version.numbers()));
    write_text(out, ANSWER_ID, &reply.id);
    for (name, value) in said(answer, reply) {
        write_nested(out, ANSWER_PARAMETERS, |out| {
            write_text(out, ENTRY_KEY, name);
            write_nested(out, ENTRY_VALUE, |out| write_value(out, &value));
        });
    }
    for tensor in &answer.outputs {
        write_nested(out, ANSWER_OUTPUTS, |out| write_tensor(out, tensor));
    }
    for tensor in &answer.outputs {
        write_bytes(out, ANSWER_RAW_OUTPUT_CONTENTS, &tensor.data);
    }
    Some(frame)
}

// Of ModelInferResponse.
const ANSWER_MODEL_NAME: u8 = key(1, BYTES);
const ANSWER_MODEL_VERSION: u8 = key(2, BYTES);
const ANSWER_ID: u8 = key(3, BYTES);
const ANSWER_PARAMETERS: u8 = key(4, BYTES);
const ANSWER_OUTPUTS: u8 = key(5, BYTES);
const ANSWER_RAW_OUTPUT_CONTENTS: u8 = key(6, BYTES);

// Of an entry of a map.
const ENTRY_KEY: u8 = key(1, BYTES);
const ENTRY_VALUE: u8 = key(2, BYTES);

// Of InferParameter.
const BOOL_PARAM: u8 = key(1, VARINT);
const INT64_PARAM: u8 = key(2, VARINT);
const STRING_PARAM: u8 = key(3, BYTES);

/// The version, names of parameters, keys and lengths.
const REST: usize = 320;

/// Enough, so that the buffer does not grow around large contents.
fn room(answer: &Answer, reply: &Reply) -> usize {
    let tensors =
        answer.outputs.iter().map(|tensor| tensor.name.len() + 10 * tensor.shape.len() + tensor.data.len() + 32);
    let texts = [answer.served.model.as_str(), &answer.served.variant, &reply.id];
    let texts = texts
        .into_iter()
        .chain(answer.prediction_ids.first().map(String::as_str))
        .chain(answer.degraded.iter().copied());
    texts.map(str::len).sum::<usize>() + tensors.sum::<usize>() + REST
}

fn write_value(out: &mut Vec<u8>, value: &Said) {
    match value {
        Said::Text(text) => write_bytes(out, STRING_PARAM, text.as_bytes()),
        Said::Int(number) => {
            out.push(INT64_PARAM);
            write_varint(out, *number as u64);
        }
        Said::Flag(flag) => out.extend([BOOL_PARAM, u8::from(*flag)]),
    }
}

fn write_tensor(out: &mut Vec<u8>, tensor: &Tensor) {
    write_text(out, NAME, &tensor.name);
    write_text(out, DATATYPE, tensor.dtype.as_str());
    if !tensor.shape.is_empty() {
        write_nested(out, SHAPE, |out| tensor.shape.iter().for_each(|&dim| write_varint(out, dim as u64)));
    }
}

/// As `Version` is displayed.
fn write_version(out: &mut Vec<u8>, [major, minor, patch, build]: [u64; 4]) {
    let mut digits = itoa::Buffer::new();
    out.put_slice(digits.format(major).as_bytes());
    for number in [minor, patch].into_iter().chain((build > 0).then_some(build)) {
        out.push(b'.');
        out.put_slice(digits.format(number).as_bytes());
    }
}

/// An empty text is not written.
fn write_text(out: &mut Vec<u8>, key: u8, text: &str) {
    if !text.is_empty() {
        write_bytes(out, key, text.as_bytes());
    }
}

fn write_bytes(out: &mut Vec<u8>, key: u8, bytes: &[u8]) {
    out.push(key);
    write_varint(out, bytes.len() as u64);
    out.put_slice(bytes);
}

/// What `write` writes, and its length before it: mostly one byte, for which there is room.
fn write_nested(out: &mut Vec<u8>, key: u8, write: impl FnOnce(&mut Vec<u8>)) {
    out.extend([key, 0]);
    let begin = out.len();
    write(out);
    let length = out.len() - begin;
    if length < 0x80 {
        out[begin - 1] = length as u8;
    } else {
        let mut prefix = SmallVec::<[u8; 10]>::new();
        write_varint(&mut prefix, length as u64);
        out.splice(begin - 1..begin, prefix);
    }
}

fn write_varint(out: &mut impl Extend<u8>, mut number: u64) {
    while number >= 0x80 {
        out.extend([number as u8 | 0x80]);
        number >>= 7;
    }
    out.extend([number as u8]);
}

#[cfg(test)]
#[path = "plain_tests.rs"]
mod tests;

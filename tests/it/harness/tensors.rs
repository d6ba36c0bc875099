//! Tensors as tests hold them, into both dialects and back.

use bytes::Bytes;
use half::{bf16, f16};
use sconce::model::{DType, ExampleFile};

use super::{fixture, root};
use crate::proto::{self, oip};

/// A tensor by its bits.
#[derive(Clone, Debug, PartialEq)]
pub struct Values {
    pub name: String,
    pub dtype: DType,
    pub shape: Vec<i64>,
    /// Little-endian; BYTES with their lengths before them.
    pub raw: Bytes,
}

/// How tensors travel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Form {
    Typed,
    Raw,
}

pub const FORMS: [Form; 2] = [Form::Typed, Form::Raw];

/// The examples of a fixture, e.g. `onnx/tiny`.
pub fn fixture_examples(name: &str) -> ExampleFile {
    parse(&fixture(&format!("{name}.json")))
}

/// The examples of a version of the sample store.
pub fn sample_examples(model: &str, version: &str) -> ExampleFile {
    parse(&root().join("model-store").join(model).join(version).join("example.json"))
}

fn parse(path: &std::path::Path) -> ExampleFile {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    ExampleFile::parse(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub fn floats(name: &str, shape: &[i64], values: &[f32]) -> Values {
    Values {
        name: name.into(),
        dtype: DType::Fp32,
        shape: shape.into(),
        raw: values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    }
}

pub fn doubles(name: &str, shape: &[i64], values: &[f64]) -> Values {
    Values {
        name: name.into(),
        dtype: DType::Fp64,
        shape: shape.into(),
        raw: values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    }
}

pub fn texts(name: &str, shape: &[i64], elements: &[&[u8]]) -> Values {
    Values { name: name.into(), dtype: DType::Bytes, shape: shape.into(), raw: prefixed(elements) }
}

/// Each element behind its length.
pub fn prefixed<T: AsRef<[u8]>>(elements: &[T]) -> Bytes {
    let mut raw = Vec::new();
    for element in elements {
        let element = element.as_ref();
        raw.extend(u32::try_from(element.len()).expect("a short element").to_le_bytes());
        raw.extend(element);
    }
    raw.into()
}

fn split(raw: &[u8]) -> Vec<Bytes> {
    let mut elements = Vec::new();
    let mut rest = raw;
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let (element, after) = after.split_at(u32::from_le_bytes(*length) as usize);
        elements.push(Bytes::copy_from_slice(element));
        rest = after;
    }
    elements
}

fn each<const N: usize, T>(raw: &[u8], decode: fn([u8; N]) -> T) -> Vec<T> {
    let (chunks, rest) = raw.as_chunks::<N>();
    assert!(rest.is_empty(), "{} bytes are no whole elements", raw.len());
    chunks.iter().map(|chunk| decode(*chunk)).collect()
}

fn encode<const N: usize, T: Copy>(values: &[T], encode: impl Fn(T) -> [u8; N]) -> Bytes {
    values.iter().flat_map(|&value| encode(value)).collect()
}

// === impl Values ===

impl Values {
    pub fn of_example(tensor: &sconce::model::ExampleTensor) -> Self {
        let input = tensor.to_input().expect("an example is right");
        Self {
            name: tensor.name.clone(),
            dtype: tensor.datatype,
            shape: tensor.shape.iter().map(|&dim| dim as i64).collect(),
            raw: input.contents.into_bytes(&tensor.name, tensor.datatype).expect("an example is right"),
        }
    }

    pub fn named(mut self, name: &str) -> Self {
        self.name = name.into();
        self
    }

    /// The elements as doubles; none of BYTES.
    pub fn numbers(&self) -> Vec<f64> {
        let raw = &self.raw;
        match self.dtype {
            DType::Bool | DType::Uint8 => each(raw, u8::from_le_bytes).into_iter().map(f64::from).collect(),
            DType::Uint16 => each(raw, u16::from_le_bytes).into_iter().map(f64::from).collect(),
            DType::Uint32 => each(raw, u32::from_le_bytes).into_iter().map(f64::from).collect(),
            DType::Uint64 => each(raw, u64::from_le_bytes).into_iter().map(|value| value as f64).collect(),
            DType::Int8 => each(raw, i8::from_le_bytes).into_iter().map(f64::from).collect(),
            DType::Int16 => each(raw, i16::from_le_bytes).into_iter().map(f64::from).collect(),
            DType::Int32 => each(raw, i32::from_le_bytes).into_iter().map(f64::from).collect(),
            DType::Int64 => each(raw, i64::from_le_bytes).into_iter().map(|value| value as f64).collect(),
            DType::Fp16 => each(raw, f16::from_le_bytes).into_iter().map(f64::from).collect(),
            DType::Bf16 => each(raw, bf16::from_le_bytes).into_iter().map(f64::from).collect(),
            DType::Fp32 => each(raw, f32::from_le_bytes).into_iter().map(f64::from).collect(),
            DType::Fp64 => each(raw, f64::from_le_bytes),
            DType::Bytes => Vec::new(),
        }
    }

    /// The same tensor, its numbers within |ours - theirs| <= atol + rtol * |theirs|.
    #[track_caller]
    pub fn assert_is(&self, what: &str, expected: &Values, rtol: f64, atol: f64) {
        let head = |values: &Values| (values.name.clone(), values.dtype, values.shape.clone());
        assert_eq!(head(self), head(expected), "{what}");
        if self.dtype == DType::Bytes {
            assert_eq!(self.raw, expected.raw, "{what}");
        }
        for (place, (ours, theirs)) in self.numbers().into_iter().zip(expected.numbers()).enumerate() {
            let same = ours == theirs
                || (ours.is_nan() && theirs.is_nan())
                || (ours - theirs).abs() <= atol + rtol * theirs.abs();
            assert!(same, "{what}: '{}'[{place}] is {ours:e}, expected {theirs:e}", self.name);
        }
    }

    // sconce.v1

    pub fn to_sconce(&self, form: Form) -> proto::Tensor {
        let mut tensor = proto::Tensor {
            name: self.name.clone(),
            dtype: proto::DataType::from_str_name(self.dtype.as_str()).expect("the same names") as i32,
            shape: self.shape.clone(),
            ..Default::default()
        };
        let raw = &self.raw;
        match (form, self.dtype) {
            (Form::Raw, _) => tensor.raw = raw.clone(),
            (_, DType::Bool) => tensor.bools = raw.iter().map(|&byte| byte != 0).collect(),
            (_, DType::Int8) => tensor.ints = each(raw, i8::from_le_bytes).into_iter().map(i64::from).collect(),
            (_, DType::Int16) => tensor.ints = each(raw, i16::from_le_bytes).into_iter().map(i64::from).collect(),
            (_, DType::Int32) => tensor.ints = each(raw, i32::from_le_bytes).into_iter().map(i64::from).collect(),
            (_, DType::Int64) => tensor.ints = each(raw, i64::from_le_bytes),
            (_, DType::Uint8) => tensor.uints = raw.iter().map(|&byte| byte.into()).collect(),
            (_, DType::Uint16) => tensor.uints = each(raw, u16::from_le_bytes).into_iter().map(u64::from).collect(),
            (_, DType::Uint32) => tensor.uints = each(raw, u32::from_le_bytes).into_iter().map(u64::from).collect(),
            (_, DType::Uint64) => tensor.uints = each(raw, u64::from_le_bytes),
            (_, DType::Fp16) => tensor.floats = each(raw, f16::from_le_bytes).into_iter().map(f32::from).collect(),
            (_, DType::Bf16) => tensor.floats = each(raw, bf16::from_le_bytes).into_iter().map(f32::from).collect(),
            (_, DType::Fp32) => tensor.floats = each(raw, f32::from_le_bytes),
            (_, DType::Fp64) => tensor.doubles = each(raw, f64::from_le_bytes),
            (_, DType::Bytes) => tensor.blobs = split(raw),
        }
        tensor
    }

    pub fn of_sconce(tensor: &proto::Tensor) -> Self {
        let dtype = DType::parse(tensor.dtype().as_str_name()).expect("a type of ours");
        let raw = match dtype {
            _ if !tensor.raw.is_empty() => tensor.raw.clone(),
            DType::Bool => encode(&tensor.bools, |value| [u8::from(value)]),
            DType::Int8 => encode(&tensor.ints, |value| (value as i8).to_le_bytes()),
            DType::Int16 => encode(&tensor.ints, |value| (value as i16).to_le_bytes()),
            DType::Int32 => encode(&tensor.ints, |value| (value as i32).to_le_bytes()),
            DType::Int64 => encode(&tensor.ints, i64::to_le_bytes),
            DType::Uint8 => encode(&tensor.uints, |value| [value as u8]),
            DType::Uint16 => encode(&tensor.uints, |value| (value as u16).to_le_bytes()),
            DType::Uint32 => encode(&tensor.uints, |value| (value as u32).to_le_bytes()),
            DType::Uint64 => encode(&tensor.uints, u64::to_le_bytes),
            DType::Fp16 => encode(&tensor.floats, |value| f16::from_f32(value).to_le_bytes()),
            DType::Bf16 => encode(&tensor.floats, |value| bf16::from_f32(value).to_le_bytes()),
            DType::Fp32 => encode(&tensor.floats, f32::to_le_bytes),
            DType::Fp64 => encode(&tensor.doubles, f64::to_le_bytes),
            DType::Bytes if !tensor.strings.is_empty() => prefixed(&tensor.strings),
            DType::Bytes => prefixed(&tensor.blobs),
        };
        Self { name: tensor.name.clone(), dtype, shape: tensor.shape.clone(), raw }
    }

    // Open Inference Protocol

    /// Adds the tensor to a request. Typed, FP16 and BF16 cannot be said.
    pub fn into_oip(self, request: &mut oip::ModelInferRequest, form: Form) {
        let mut input = oip::model_infer_request::InferInputTensor {
            name: self.name.clone(),
            datatype: self.dtype.as_str().into(),
            shape: self.shape.clone(),
            ..Default::default()
        };
        match form {
            Form::Raw => request.raw_input_contents.push(self.raw),
            Form::Typed => input.contents = Some(contents(&self)),
        }
        request.inputs.push(input);
    }

    pub fn of_oip(response: &oip::ModelInferResponse) -> Vec<Self> {
        let outputs = response.outputs.iter().enumerate();
        let values = outputs.map(|(place, output)| {
            let dtype = DType::parse(&output.datatype).expect("a type of the protocol");
            let raw = match response.raw_output_contents.get(place) {
                Some(raw) => raw.clone(),
                None => bits(dtype, output.contents.clone().unwrap_or_default()),
            };
            Values { name: output.name.clone(), dtype, shape: output.shape.clone(), raw }
        });
        values.collect()
    }
}

fn contents(values: &Values) -> oip::InferTensorContents {
    let mut contents = oip::InferTensorContents::default();
    let raw = &values.raw;
    match values.dtype {
        DType::Bool => contents.bool_contents = raw.iter().map(|&byte| byte != 0).collect(),
        DType::Int8 => contents.int_contents = each(raw, i8::from_le_bytes).into_iter().map(i32::from).collect(),
        DType::Int16 => contents.int_contents = each(raw, i16::from_le_bytes).into_iter().map(i32::from).collect(),
        DType::Int32 => contents.int_contents = each(raw, i32::from_le_bytes),
        DType::Int64 => contents.int64_contents = each(raw, i64::from_le_bytes),
        DType::Uint8 => contents.uint_contents = raw.iter().map(|&byte| byte.into()).collect(),
        DType::Uint16 => contents.uint_contents = each(raw, u16::from_le_bytes).into_iter().map(u32::from).collect(),
        DType::Uint32 => contents.uint_contents = each(raw, u32::from_le_bytes),
        DType::Uint64 => contents.uint64_contents = each(raw, u64::from_le_bytes),
        DType::Fp32 => contents.fp32_contents = each(raw, f32::from_le_bytes),
        DType::Fp64 => contents.fp64_contents = each(raw, f64::from_le_bytes),
        DType::Bytes => contents.bytes_contents = split(raw),
        DType::Fp16 | DType::Bf16 => panic!("the protocol has no typed {}", values.dtype),
    }
    contents
}

fn bits(dtype: DType, contents: oip::InferTensorContents) -> Bytes {
    match dtype {
        DType::Bool => encode(&contents.bool_contents, |value| [u8::from(value)]),
        DType::Int8 => encode(&contents.int_contents, |value| (value as i8).to_le_bytes()),
        DType::Int16 => encode(&contents.int_contents, |value| (value as i16).to_le_bytes()),
        DType::Int32 => encode(&contents.int_contents, i32::to_le_bytes),
        DType::Int64 => encode(&contents.int64_contents, i64::to_le_bytes),
        DType::Uint8 => encode(&contents.uint_contents, |value| [value as u8]),
        DType::Uint16 => encode(&contents.uint_contents, |value| (value as u16).to_le_bytes()),
        DType::Uint32 => encode(&contents.uint_contents, u32::to_le_bytes),
        DType::Uint64 => encode(&contents.uint64_contents, u64::to_le_bytes),
        DType::Fp32 => encode(&contents.fp32_contents, f32::to_le_bytes),
        DType::Fp64 => encode(&contents.fp64_contents, f64::to_le_bytes),
        DType::Bytes => prefixed(&contents.bytes_contents),
        DType::Fp16 | DType::Bf16 => panic!("the protocol has no typed {dtype}"),
    }
}

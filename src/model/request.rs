//! A request and its answer, as the engine sees them, whatever protocol they came by.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{BufMut, Bytes, BytesMut};
use half::{bf16, f16};

use super::{
    DType, ModelName, Tensor, Version,
    tensor::{Shape, bytes_from},
};
use crate::error::{Error, Result};

/// One call of Predict.
#[derive(Debug)]
pub struct PredictRequest {
    /// As the caller wrote it; not checked yet.
    pub model: String,
    pub select: Select,
    /// What the caller says of itself: sticky key, rules, cache key.
    pub attributes: Vec<(String, String)>,
    /// What its call's metadata say, of what routes look for there.
    pub metadata: Metadata,
    pub priority: Priority,
    pub parameters: Parameters,
    pub data: Data,
    /// The outputs wanted; empty means all.
    pub outputs: Vec<String>,
    /// After this moment nobody waits for the answer.
    pub deadline: Option<Instant>,
}

/// Keys and values of a call's metadata; of most calls nothing is wanted.
pub type Metadata = Option<Arc<[(Arc<str>, Box<str>)]>>;

/// Which version answers.
#[derive(Clone, Debug, PartialEq)]
pub enum Select {
    /// The model's route decides.
    Route,
    Version(Version),
    Label(String),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    Low,
    #[default]
    Normal,
    High,
}

/// The data, in one of the three forms.
#[derive(Clone, Debug)]
pub enum Data {
    Tensors(Vec<TensorInput>),
    Rows(Vec<Row>),
    Table(Table),
}

/// A tensor as a caller gave it; what is left out, the signature decides.
#[derive(Clone, Debug)]
pub struct TensorInput {
    /// Empty where the model has only one input.
    pub name: String,
    pub dtype: Option<DType>,
    pub shape: Option<Shape>,
    pub contents: Contents,
}

/// The elements, as bytes or typed.
#[derive(Clone, Debug)]
pub enum Contents {
    Raw(Bytes),
    Bools(Vec<bool>),
    Ints(Vec<i64>),
    Uints(Vec<u64>),
    Floats(Vec<f32>),
    Doubles(Vec<f64>),
    Blobs(Vec<Bytes>),
}

/// One row of named values.
pub type Row = Vec<(String, Value)>;

/// One value of a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Missing, as NaN is.
    Null,
    Number(f64),
    Bool(bool),
    Text(String),
}

/// Columns by name, and their doubles row after row.
#[derive(Clone, Debug)]
pub struct Table {
    pub names: Vec<String>,
    pub values: Vec<f64>,
}

/// What a caller tells the backend; requests with other parameters make their own batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parameters(pub Vec<(String, Parameter)>);

#[derive(Clone, Debug, PartialEq)]
pub enum Parameter {
    Bool(bool),
    Int(i64),
    Double(f64),
    Text(String),
}

/// The answer to one call.
#[derive(Debug)]
pub struct Answer {
    pub served: Served,
    /// Empty, or why the answer did not come from where it should have.
    pub degraded: Vec<&'static str>,
    pub outputs: Vec<Tensor>,
    /// The rows that were asked about; 1 where the model does not batch.
    pub rows: usize,
    /// One for each row.
    pub prediction_ids: Vec<String>,
    pub timing: Timing,
    /// `None` where the version keeps no answers.
    pub cache: Option<CacheUse>,
}

/// What the answers that a version keeps had to do with this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheUse {
    /// It was computed for an equal request, that long ago.
    Hit { age: Duration },
    /// It was computed for this request.
    Miss,
    /// It was computed for this request and is not kept: an attribute of the key is missing.
    Bypass,
}

/// Who answered, and why that one.
#[derive(Clone, Debug)]
pub struct Served {
    pub model: ModelName,
    pub version: Version,
    pub variant: Arc<str>,
    pub reason: RouteReason,
    /// Of route.yaml; 0 where there is none.
    pub revision: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteReason {
    /// Stable has all of the traffic.
    Stable,
    /// The caller named the version.
    Pinned,
    /// The caller named a label.
    Label,
    /// A rule of the route matched.
    Rule,
    /// The caller's key belongs to the variant.
    Sticky,
    /// A draw by the weights.
    Draw,
}

impl RouteReason {
    /// As the Open Inference Protocol's answers have it.
    pub fn as_str(self) -> &'static str {
        match self {
            RouteReason::Stable => "stable",
            RouteReason::Pinned => "pinned",
            RouteReason::Label => "label",
            RouteReason::Rule => "rule",
            RouteReason::Sticky => "sticky",
            RouteReason::Draw => "draw",
        }
    }
}

/// Where the time of one request went.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timing {
    /// For an answer of an equal request: how long this one waited for it.
    pub queue_us: u64,
    /// 0 for an answer of an equal request, as `batch_rows` then is.
    pub compute_us: u64,
    pub batch_rows: usize,
}

// === impl CacheUse ===

impl CacheUse {
    pub fn as_str(self) -> &'static str {
        match self {
            CacheUse::Hit { .. } => "hit",
            CacheUse::Miss => "miss",
            CacheUse::Bypass => "bypass",
        }
    }
}

// === impl Parameters ===

impl Parameters {
    pub fn get(&self, name: &str) -> Option<&Parameter> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }
}

// === impl Data ===

impl Data {
    /// About what it holds in memory.
    pub fn bytes(&self) -> usize {
        match self {
            Data::Tensors(tensors) => tensors.iter().map(|tensor| tensor.contents.bytes()).sum(),
            Data::Rows(rows) => rows.iter().flatten().map(|(name, value)| name.len() + value.bytes()).sum(),
            Data::Table(table) => table.values.len() * size_of::<f64>(),
        }
    }
}

// === impl Value ===

impl Value {
    fn bytes(&self) -> usize {
        let text = if let Value::Text(text) = self { text.len() } else { 0 };
        size_of::<Self>() + text
    }
}

// === impl Contents ===

impl Contents {
    fn bytes(&self) -> usize {
        match self {
            Contents::Raw(bytes) => bytes.len(),
            Contents::Bools(values) => values.len(),
            Contents::Ints(values) => size_of_val(&values[..]),
            Contents::Uints(values) => size_of_val(&values[..]),
            Contents::Floats(values) => size_of_val(&values[..]),
            Contents::Doubles(values) => size_of_val(&values[..]),
            Contents::Blobs(values) => values.iter().map(Bytes::len).sum(),
        }
    }

    /// The elements as little-endian bytes of `dtype`; INVALID_ARGUMENT where that type cannot hold them.
    pub fn into_bytes(self, name: &str, dtype: DType) -> Result<Bytes> {
        use DType::*;
        let given = self.kind();
        Ok(match (self, dtype) {
            (Contents::Raw(bytes), _) => bytes,
            (Contents::Bools(values), Bool) => values.into_iter().map(u8::from).collect(),
            (Contents::Ints(values), Int64) => bytes_from(values),
            (Contents::Ints(values), Int32) => narrowed::<i64, i32>(name, dtype, &values)?,
            (Contents::Ints(values), Int16) => narrowed::<i64, i16>(name, dtype, &values)?,
            (Contents::Ints(values), Int8) => narrowed::<i64, i8>(name, dtype, &values)?,
            (Contents::Uints(values), Uint64) => bytes_from(values),
            (Contents::Uints(values), Uint32) => narrowed::<u64, u32>(name, dtype, &values)?,
            (Contents::Uints(values), Uint16) => narrowed::<u64, u16>(name, dtype, &values)?,
            (Contents::Uints(values), Uint8) => narrowed::<u64, u8>(name, dtype, &values)?,
            (Contents::Floats(values), Fp32) => bytes_from(values),
            (Contents::Floats(values), Fp16) => bytes_from(values.into_iter().map(f16::from_f32).collect::<Vec<_>>()),
            (Contents::Floats(values), Bf16) => bytes_from(values.into_iter().map(bf16::from_f32).collect::<Vec<_>>()),
            (Contents::Doubles(values), Fp64) => bytes_from(values),
            (Contents::Doubles(values), Fp32) => bytes_from(values.into_iter().map(|v| v as f32).collect::<Vec<_>>()),
            (Contents::Doubles(values), Fp16) => bytes_from(values.into_iter().map(f16::from_f64).collect::<Vec<_>>()),
            (Contents::Doubles(values), Bf16) => bytes_from(values.into_iter().map(bf16::from_f64).collect::<Vec<_>>()),
            (Contents::Blobs(values), Bytes) => length_prefixed(&values),
            // No element at all fits every type: a typed tensor without elements has no kind of its own.
            (contents, _) if contents.is_empty() => bytes::Bytes::new(),
            _ => {
                return Err(Error::invalid("CONTENTS_MISMATCH", format!("tensor '{name}': {given} cannot be {dtype}"))
                    .with("tensor", name));
            }
        })
    }

    fn kind(&self) -> &'static str {
        match self {
            Contents::Raw(_) => "raw bytes",
            Contents::Bools(_) => "booleans",
            Contents::Ints(_) => "signed integers",
            Contents::Uints(_) => "unsigned integers",
            Contents::Floats(_) => "floats",
            Contents::Doubles(_) => "doubles",
            Contents::Blobs(_) => "strings",
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Contents::Raw(bytes) => bytes.is_empty(),
            Contents::Bools(values) => values.is_empty(),
            Contents::Ints(values) => values.is_empty(),
            Contents::Uints(values) => values.is_empty(),
            Contents::Floats(values) => values.is_empty(),
            Contents::Doubles(values) => values.is_empty(),
            Contents::Blobs(values) => values.is_empty(),
        }
    }
}

fn narrowed<Wide, Narrow>(name: &str, dtype: DType, values: &[Wide]) -> Result<Bytes>
where
    Wide: Copy,
    Narrow: TryFrom<Wide> + bytemuck::NoUninit + Send + 'static,
{
    let values: Result<Vec<Narrow>, _> = values.iter().map(|&value| Narrow::try_from(value)).collect();
    values.map(bytes_from).map_err(|_| {
        Error::invalid("VALUE_OUT_OF_RANGE", format!("tensor '{name}': a value does not fit {dtype}"))
            .with("tensor", name)
    })
}

/// BYTES elements as they travel: a little-endian u32 length before each.
pub fn length_prefixed<T: AsRef<[u8]>>(values: &[T]) -> Bytes {
    let size = values.iter().map(|value| 4 + value.as_ref().len()).sum();
    let mut bytes = BytesMut::with_capacity(size);
    for value in values {
        bytes.put_u32_le(value.as_ref().len() as u32);
        bytes.put_slice(value.as_ref());
    }
    bytes.freeze()
}

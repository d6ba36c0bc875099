//! What is asked: rows of a file, the model's own example, or random numbers that fit its signature, as requests of one of the
//! two protocols. They are made and encoded once, before anything is measured.

use std::{fs::File, io::BufReader, path::Path};

use anyhow::{Context, bail, ensure};

use super::{
    BenchArgs,
    messages::{Protocol, to_raw},
};
use crate::{
    cli::{
        client, convert,
        predict::{
            batch::{Batches, Form},
            tensors::{Types, types_of},
        },
        proto::{
            self,
            oip::{ModelMetadataResponse, model_metadata_response::TensorMetadata},
        },
        stored::Stored,
    },
    model::{Contents, DType, ExampleRequest, TensorInput, bytes_from},
};

/// Requests that differ, to be sent in turn.
pub struct Asked {
    /// Where they are from, in words.
    pub source: String,
    pub kind: Kind,
    /// Of each; `None` where an example is sent whole.
    pub rows: Option<u32>,
    pub requests: Vec<proto::PredictRequest>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    File,
    Example,
    Random,
}

/// Requests that are kept, and the rows that they may have in all: what is sent in turn should not be read from far memory.
const REQUESTS_MAX: usize = 1024;
const ROWS_MAX: usize = 65_536;
const RANDOM_REQUESTS: usize = 64;
const SEED: u64 = 7;

/// Asks the server what the model takes, and makes requests of it.
pub async fn find(args: &BenchArgs) -> anyhow::Result<Asked> {
    let metadata = client::metadata(&args.server, &args.model, args.selected(), super::PATIENCE).await?;
    if let Some(file) = &args.data {
        return of_file(args, file, metadata.inputs);
    }
    let fits = |example: &crate::model::Example| args.protocol == Protocol::Sconce || example.request.rows.is_empty();
    match args.choice.find(&args.model, args.version.as_deref(), fits) {
        Ok(stored) => of_example(args, &stored, &metadata),
        Err(error) if args.example => Err(error),
        Err(error) => of_chance(args, &metadata, &format!("{error:#}")),
    }
}

/// Whole requests of the file's first rows.
fn of_file(args: &BenchArgs, file: &Path, inputs: Vec<TensorMetadata>) -> anyhow::Result<Asked> {
    let name = file.display().to_string();
    let mut input = BufReader::new(File::open(file).with_context(|| name.clone())?);
    let form = Form::detect(&name, &mut input).with_context(|| name.clone())?;
    let mut batches = Batches::new(form, Box::new(input)).with_context(|| name.clone())?;
    let (types, rows) = (types_of(inputs), args.rows.unwrap_or(1));
    let mut requests = Vec::new();
    let mut read = 0;
    while requests.len() < most(rows) {
        let Some(batch) = batches.next(read + 1, rows as usize).with_context(|| name.clone())? else {
            break;
        };
        read += batch.rows.len();
        if batch.rows.len() < rows as usize {
            ensure!(!requests.is_empty(), "{name} has {read} rows, fewer than one request's {rows}: see --rows");
            break;
        }
        let types = if batch.has_lists() { &types } else { &Types::new() };
        let mut request = args.request();
        batch.fill(&mut request, types).with_context(|| name.clone())?;
        requests.push(request);
    }
    ensure!(!requests.is_empty(), "{name} has no rows");
    let source = format!("{} rows of {name}", requests.len() * rows as usize);
    Ok(Asked { source, kind: Kind::File, rows: Some(rows), requests })
}

/// Each of the example's rows begins one request; after the last row comes the first again.
fn of_example(args: &BenchArgs, stored: &Stored, metadata: &ModelMetadataResponse) -> anyhow::Result<Asked> {
    let example = &stored.example.request;
    let (rows, parts) = match (row_count(example, &metadata.inputs), args.rows) {
        (Some(count), rows) => {
            let rows = rows.unwrap_or(1);
            let starts = 0..count.min(most(rows));
            (Some(rows), starts.map(|start| cut(example, count, start, rows as usize)).collect())
        }
        (None, None) => (None, vec![example.clone()]),
        (None, Some(_)) => bail!(NOT_BY_ROWS),
    };
    let request = |part: ExampleRequest| {
        let made = convert::request(&args.model, None, part.data()?, part.parameters()?);
        let own = args.request();
        anyhow::Ok(proto::PredictRequest { select: own.select, ..made })
    };
    let requests: anyhow::Result<Vec<_>> = parts.into_iter().map(request).collect();
    let source = format!("example {} of {}", stored.index, stored.file.display());
    Ok(Asked { source, kind: Kind::Example, rows, requests: requests? })
}

/// Numbers that have the right types and shapes and mean nothing.
fn of_chance(args: &BenchArgs, metadata: &ModelMetadataResponse, why: &str) -> anyhow::Result<Asked> {
    let by_rows = metadata.inputs.iter().all(|input| input.shape.first() == Some(&-1));
    ensure!(by_rows || args.rows.is_none(), NOT_BY_ROWS);
    let rows = args.rows.unwrap_or(1);
    let mut random = fastrand::Rng::with_seed(SEED);
    let requests = std::iter::repeat_with(|| {
        let tensors = metadata.inputs.iter().map(|input| drawn(input, rows as usize, &mut random));
        let inputs: anyhow::Result<Vec<_>> = tensors.map(|tensor| Ok(convert::tensor(tensor?))).collect();
        anyhow::Ok(proto::PredictRequest { inputs: inputs?, ..args.request() })
    });
    let requests: anyhow::Result<Vec<_>> = requests.take(RANDOM_REQUESTS.min(most(rows))).collect();
    let source = format!("random numbers by the model's signature ({why}; --data FILE sends real rows)");
    Ok(Asked { source, kind: Kind::Random, rows: by_rows.then_some(rows), requests: requests? })
}

const NOT_BY_ROWS: &str = "the model's inputs do not all have a free first dimension, so there are no rows to count: \
                           leave --rows out";

fn most(rows: u32) -> usize {
    REQUESTS_MAX.min(ROWS_MAX / rows as usize).max(1)
}

/// How many rows an example has, if it is made of rows.
fn row_count(example: &ExampleRequest, inputs: &[TensorMetadata]) -> Option<usize> {
    if !example.rows.is_empty() {
        return Some(example.rows.len());
    }
    let free = |name: &str| inputs.iter().any(|input| input.name == name && input.shape.first() == Some(&-1));
    let first = *example.inputs.first()?.shape.first()?;
    let alike = example.inputs.iter().all(|input| input.shape.first() == Some(&first) && free(&input.name));
    (alike && first > 0).then_some(first)
}

/// `rows` rows of it from `start` on, round and round.
fn cut(example: &ExampleRequest, count: usize, start: usize, rows: usize) -> ExampleRequest {
    let places = || (start..start + rows).map(|place| place % count);
    let mut part = example.clone();
    if !example.rows.is_empty() {
        part.rows = places().map(|place| example.rows[place].clone()).collect();
    }
    for (part, whole) in part.inputs.iter_mut().zip(&example.inputs) {
        let length = whole.data.len() / count;
        part.data = places().flat_map(|place| whole.data[place * length..][..length].iter().cloned()).collect();
        part.shape[0] = rows;
    }
    part
}

fn drawn(input: &TensorMetadata, rows: usize, random: &mut fastrand::Rng) -> anyhow::Result<TensorInput> {
    let name = &input.name;
    let dtype = DType::parse(&input.datatype)
        .with_context(|| format!("input '{name}' is of type '{}', which this command does not know", input.datatype))?;
    let dims = input.shape.iter().enumerate().map(|(place, &dim)| match usize::try_from(dim) {
        Ok(dim) => dim,
        Err(_) if place == 0 => rows,
        Err(_) => 1,
    });
    let shape: Vec<usize> = dims.collect();
    let count = shape.iter().product();
    let mut doubles = || (0..count).map(|_| random.f64()).collect::<Vec<f64>>();
    let contents = match dtype {
        DType::Fp64 => Contents::Raw(bytes_from(doubles())),
        DType::Fp32 | DType::Fp16 | DType::Bf16 => {
            Contents::Floats(doubles().into_iter().map(|value| value as f32).collect())
        }
        DType::Bool => Contents::Bools((0..count).map(|_| random.bool()).collect()),
        // Small enough for any table that they may be places in.
        DType::Int8 | DType::Int16 | DType::Int32 | DType::Int64 => {
            Contents::Ints((0..count).map(|_| random.i64(0..2)).collect())
        }
        DType::Uint8 | DType::Uint16 | DType::Uint32 | DType::Uint64 => {
            Contents::Uints((0..count).map(|_| random.u64(0..2)).collect())
        }
        DType::Bytes => bail!("input '{name}' takes texts, and chance writes none: name a file of rows with --data"),
    };
    Ok(TensorInput { name: name.clone(), dtype: Some(dtype), shape: Some(shape.into_iter().collect()), contents })
}

// === impl Asked ===

impl Asked {
    /// Tensors as bytes, as callers with many numbers send them, so that both protocols carry the same.
    pub fn raw(mut self) -> anyhow::Result<Self> {
        for request in &mut self.requests {
            let inputs = std::mem::take(&mut request.inputs).into_iter();
            request.inputs = inputs.map(to_raw).collect::<anyhow::Result<_>>()?;
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ExampleFile;

    fn example(request: &str) -> ExampleRequest {
        let text = format!(r#"{{"examples": [{{"request": {request}, "response": {{"outputs": []}}}}]}}"#);
        ExampleFile::parse(&text).unwrap().examples.remove(0).request
    }

    fn metadata(name: &str, datatype: &str, shape: &[i64]) -> TensorMetadata {
        TensorMetadata { name: name.into(), datatype: datatype.into(), shape: shape.into() }
    }

    #[test]
    fn an_example_is_cut_into_rows_round_and_round() {
        let rows = example(r#"{"rows": [{"a": 0}, {"a": 1}, {"a": 2}]}"#);
        assert_eq!(row_count(&rows, &[]), Some(3));
        let values: Vec<i64> = cut(&rows, 3, 2, 4).rows.iter().map(|row| row["a"].as_i64().unwrap()).collect();
        assert_eq!(values, [2, 0, 1, 2]);

        let tensors =
            example(r#"{"inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [1, 2, 3, 4]}]}"#);
        assert_eq!(row_count(&tensors, &[metadata("x", "FP32", &[-1, 2])]), Some(2));
        assert_eq!(row_count(&tensors, &[metadata("x", "FP32", &[2, 2])]), None, "no free dimension");
        let part = cut(&tensors, 2, 1, 2);
        let values: Vec<i64> = part.inputs[0].data.iter().map(|value| value.as_i64().unwrap()).collect();
        assert_eq!((values, &part.inputs[0].shape[..]), (vec![3, 4, 1, 2], &[2, 2][..]));
    }

    #[test]
    fn chance_has_the_models_types_and_shapes() {
        let mut random = fastrand::Rng::with_seed(7);
        for dtype in DType::ALL.into_iter().filter(|dtype| *dtype != DType::Bytes) {
            let input = drawn(&metadata("x", dtype.as_str(), &[-1, 3, -1]), 5, &mut random).unwrap();
            assert_eq!(input.shape.as_deref(), Some(&[5, 3, 1][..]));
            let raw = to_raw(convert::tensor(input)).unwrap();
            assert_eq!(Some(raw.raw.len()), dtype.size().map(|size| size * 15), "{dtype:?}");
        }
        let error = drawn(&metadata("x", "BYTES", &[1]), 1, &mut random).unwrap_err().to_string();
        assert!(error.contains("--data"), "{error}");
    }

    #[test]
    fn requests_are_bounded() {
        assert_eq!((most(1), most(1024), most(65_536)), (1024, 64, 1));
    }
}

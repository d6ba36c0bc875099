//! What is overloaded: models, their requests, and the answers that must come.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use prost::Message;
use sconce::{
    cli::bench::wire::frame,
    server::proto::inference::{ModelInferRequest, ModelInferResponse, model_infer_request::InferInputTensor},
};

use crate::{mlp::Mlp, repository};

/// One model, and those who call it.
#[derive(Clone)]
pub struct Case {
    pub name: &'static str,
    pub model: &'static str,
    /// Whether it is dear enough for its goodput to be promised: refusals cost CPU, too.
    pub dear: bool,
    /// Of every call.
    pub deadline: Option<Duration>,
    /// So many that more calls can be under way than the server keeps.
    pub connections: usize,
    artifact: Vec<u8>,
    /// One row each.
    requests: Vec<ModelInferRequest>,
    /// Of the requests, where they are known beforehand.
    answers: Vec<Vec<f64>>,
}

/// Ten products with a matrix of 1024 by 1024, which is one and the same: dear to compute, and a file of 5 MB.
const DEEP: [usize; 13] = {
    let mut widths = [1024; 13];
    (widths[0], widths[12]) = (256, 16);
    widths
};
/// At 128 calls each, twice what a queue has room for, and twice what a server works on.
const QUEUE_CONNECTIONS: usize = 16;
const SERVER_CONNECTIONS: usize = 64;
/// Of callers for whom an answer is soon of no use: less than a queue may hold.
const DEADLINE: Duration = Duration::from_millis(100);
/// Different rows, so that a batch is not of one row repeated.
const ROWS: u64 = 16;
/// Of answers, relative to the largest: sums of single precision in another order.
const TOLERANCE: f64 = 1e-4;

pub fn all() -> Result<Vec<Case>> {
    let deep = Mlp::new(&DEEP);
    let rows: Vec<Vec<f32>> = (0..ROWS).map(|number| deep.row(number)).collect();
    let deep = Case {
        name: "deep MLP",
        model: "mlp",
        dear: true,
        deadline: None,
        connections: QUEUE_CONNECTIONS,
        artifact: deep.onnx(),
        requests: rows.iter().map(|row| request("mlp", &[("x", row)])).collect(),
        answers: rows.iter().map(|row| deep.answer(row)).collect(),
    };
    Ok(vec![
        deep.clone(),
        Case { name: "hasty MLP", deadline: Some(DEADLINE), ..deep },
        fixture("slow", true, &[("x", 8)])?,
        fixture("tiny", false, &[("INPUT0", 16), ("INPUT1", 16)])?,
    ])
}

/// A model of tests/fixtures/onnx, asked for random rows.
fn fixture(model: &'static str, dear: bool, inputs: &[(&str, usize)]) -> Result<Case> {
    let file = repository("tests/fixtures/onnx").join(model).with_extension("onnx");
    let mut random = fastrand::Rng::with_seed(ROWS);
    let mut row = |width| -> Vec<f32> { (0..width).map(|_| random.f32() * 2.0 - 1.0).collect() };
    let requests = (0..ROWS).map(|_| {
        let values: Vec<(&str, Vec<f32>)> = inputs.iter().map(|(name, width)| (*name, row(*width))).collect();
        request(model, &values)
    });
    let requests = requests.collect();
    let artifact = fs::read(&file).with_context(|| file.display().to_string())?;
    let connections = if dear { QUEUE_CONNECTIONS } else { SERVER_CONNECTIONS };
    Ok(Case { name: model, model, dear, deadline: None, connections, artifact, requests, answers: Vec::new() })
}

fn request(model: &str, inputs: &[(&str, impl AsRef<[f32]>)]) -> ModelInferRequest {
    let mut request = ModelInferRequest { model_name: model.into(), ..Default::default() };
    for (name, row) in inputs {
        let row = row.as_ref();
        request.inputs.push(InferInputTensor {
            name: (*name).into(),
            datatype: "FP32".into(),
            shape: vec![1, row.len() as i64],
            ..Default::default()
        });
        let raw: Vec<u8> = row.iter().flat_map(|value| value.to_le_bytes()).collect();
        request.raw_input_contents.push(raw.into());
    }
    request
}

/// The numbers of all outputs, one after another.
pub fn numbers(answer: &[u8]) -> Result<Vec<f64>> {
    let answer = ModelInferResponse::decode(answer)?;
    let raw = answer.raw_output_contents.concat();
    ensure!(!raw.is_empty() && answer.outputs.iter().all(|output| output.datatype == "FP32"), "no outputs of FP32");
    Ok(raw.as_chunks().0.iter().map(|&bytes| f64::from(f32::from_le_bytes(bytes))).collect())
}

/// Says where an answer differs from what it must be.
pub fn check(found: &[f64], expected: &[f64]) -> Result<()> {
    let largest = expected.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
    let close = |(found, expected): (&f64, &f64)| (found - expected).abs() <= TOLERANCE * largest;
    let equal = found.len() == expected.len() && found.iter().zip(expected).all(close);
    ensure!(equal, "{found:?} was answered instead of {expected:?}");
    Ok(())
}

// === impl Case ===

impl Case {
    /// Makes a store of this model alone.
    pub fn make_store(&self, store: &Path) -> Result<()> {
        let version = store.join(self.model).join("1");
        fs::create_dir_all(&version)?;
        Ok(fs::write(version.join("model.onnx"), &self.artifact)?)
    }

    pub fn messages(&self) -> Vec<Bytes> {
        self.requests.iter().map(frame).collect()
    }

    /// Holds an answer that came without load against what is known.
    pub fn check_first(&self, place: usize, found: &[f64]) -> Result<()> {
        self.answers.get(place).map_or(Ok(()), |expected| check(found, expected))
    }
}

//! The trial against models that are a closure each: row by row, and not.

use std::{path::Path, time::Duration};

use super::*;
use crate::model::{DType, ModelYaml, Platform, Shape, TensorSpec, VersionYaml};

type Function = fn(&[Vec<f64>]) -> Result<Vec<f64>>;

/// Doubles in, doubles out.
struct Model {
    signature: Signature,
    function: Function,
}

struct Run(Function);

impl Executable for Model {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn library(&self) -> &str {
        "closure 1"
    }

    fn session(&self) -> Result<Box<dyn Session>> {
        Ok(Box::new(Run(self.function)))
    }
}

impl Session for Run {
    fn run(&mut self, call: &Call<'_>) -> Result<Vec<Tensor>> {
        let read = |view: &View<'_>| {
            let numbers = view.data.chunks_exact(8);
            numbers.map(|bytes| f64::from_le_bytes(bytes.try_into().expect("8 bytes"))).collect()
        };
        let inputs: Vec<Vec<f64>> = call.inputs.iter().map(read).collect();
        let values = (self.0)(&inputs)?;
        Ok(vec![Tensor::from_f64("y".into(), Shape::from_slice(&[values.len()]), values)])
    }
}

/// x batches; scale does not.
fn model(function: Function) -> Model {
    let batching = |name| TensorSpec { batch: true, ..TensorSpec::new(name, DType::Fp64, &[-1]) };
    Model {
        signature: Signature {
            inputs: vec![batching("x"), TensorSpec::new("scale", DType::Fp64, &[1])],
            outputs: vec![batching("y")],
        },
        function,
    }
}

fn try_it(function: Function, yaml: &str, example: Option<&str>) -> Result<Report> {
    let folder = tempfile::tempdir().expect("a folder");
    if let Some(example) = example {
        std::fs::write(folder.path().join("example.json"), example).expect("written");
    }
    let yaml = ModelYaml::parse(yaml).expect("a model.yaml");
    let manifest = Manifest::resolve(Platform::Onnx, yaml, VersionYaml::default()).expect("a manifest");
    run(folder.path(), &manifest, &model(function), Duration::from_secs(60))
}

fn refused() -> Error {
    Error::internal("BACKEND_FAILED", "it does not like them")
}

fn scaled(inputs: &[Vec<f64>]) -> Result<Vec<f64>> {
    Ok(inputs[0].iter().map(|x| x * inputs[1][0]).collect())
}

fn running_sum(inputs: &[Vec<f64>]) -> Result<Vec<f64>> {
    let sums = inputs[0].iter().scan(0.0, |sum, x| {
        *sum += x;
        Some(*sum)
    });
    Ok(sums.collect())
}

const EXAMPLE: &str = r#"{"examples": [{
    "request": {"inputs": [
        {"name": "x", "datatype": "FP64", "shape": [3], "data": [100, 200, 300]},
        {"name": "scale", "datatype": "FP64", "shape": [1], "data": [2]}]},
    "response": {"outputs": [{"name": "y", "datatype": "FP64", "shape": [3], "data": [200, 400, 600]}]}}]}"#;

#[test]
fn rows_that_are_independent_are_joined_and_others_are_not() {
    let report = try_it(scaled, "", None).expect("it passes");
    assert!(report.joinable, "{}", report.batching_reason);
    let rows: Vec<usize> = report.cost.iter().map(|(rows, _)| *rows).collect();
    assert_eq!(rows, [1, 2, 4, 8, 16, 32, 64]);
    let report = try_it(running_sum, "", None).expect("it passes all the same");
    assert!(!report.joinable);
    assert!(report.batching_reason.contains("not independent"), "{}", report.batching_reason);
    assert_eq!(report.cost.len(), 1);
}

#[test]
fn what_shows_nothing_is_not_joined() {
    let reason = |function| try_it(function, "", None).expect("it passes").batching_reason;
    assert!(reason(|inputs| Ok(vec![0.0; inputs[0].len()])).contains("tell nothing apart"));
    assert!(reason(|inputs| Ok(vec![f64::NAN; inputs[0].len()])).contains("tell nothing apart"));
    assert!(reason(|_| Err(refused())).contains("no input could be made up"));
    assert!(reason(|inputs| Ok(vec![inputs[0].iter().sum()])).contains("one row for each"));
}

#[test]
fn people_have_the_last_word_on_joining() {
    let report = |yaml| try_it(running_sum, yaml, None).expect("it passes");
    assert!(report("batching: {joinable: true}").joinable);
    assert!(!report("batching: off").joinable);
    let report = try_it(scaled, "batching: {joinable: false}", None).expect("it passes");
    assert!(!report.joinable);
}

#[test]
fn an_example_must_come_out_and_may_show_what_made_up_inputs_cannot() {
    fn picky(inputs: &[Vec<f64>]) -> Result<Vec<f64>> {
        match inputs[0].iter().all(|x| *x >= 100.0) {
            true => scaled(inputs),
            false => Err(refused()),
        }
    }
    let report = try_it(picky, "", Some(EXAMPLE)).expect("it passes");
    assert!(report.joinable, "{}", report.batching_reason);
    assert_eq!(report.recipe, None);
    assert!(!report.cost.is_empty());
    let error = try_it(running_sum, "", Some(EXAMPLE)).expect_err("other answers come out");
    assert_eq!(error.reason(), "EXAMPLE_MISMATCH");
    let error = try_it(scaled, "", Some("{")).expect_err("no JSON");
    assert_eq!(error.reason(), "INVALID_EXAMPLE");
}

#[test]
fn a_declared_warmup_must_run() {
    let nonzero: Function = |inputs| match inputs[0].contains(&0.0) {
        true => Err(refused()),
        false => scaled(inputs),
    };
    let reason = |yaml| try_it(nonzero, yaml, None).err().map(|error| error.reason());
    assert_eq!(reason("warmup: [{zeros: 1}]"), Some("WARMUP_FAILED"));
    assert_eq!(reason("warmup: [{random: 4}]"), None);
    assert_eq!(reason(""), None, "made-up zeros prove nothing");
}

#[test]
fn a_normalizer_outside_the_version_is_not_read() {
    for file in ["../normalizer.json", "/etc/passwd", "absent.json"] {
        let yaml = ModelYaml::parse(&format!("normalizer: {file}")).expect("a model.yaml");
        let manifest = Manifest::resolve(Platform::Onnx, yaml, VersionYaml::default()).expect("a manifest");
        let error = features(Path::new("."), &manifest, &Signature::default()).expect_err("it is none of its files");
        assert_eq!(error.reason(), "INVALID_MANIFEST");
    }
}

//! The trial of padding against models that are a closure over rows of one length each.

use std::time::Duration;

use super::*;
use crate::{
    error::Error,
    model::{DType, Filler, ModelYaml, Pad, Platform, Shape, TensorSpec, Unpad, VersionYaml},
};

/// The answer to rows of one length each; as many numbers a row as it likes.
type Function = fn(&[&[f64]]) -> Result<Vec<Vec<f64>>>;

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
        let values: Vec<f64> = bytemuck::pod_collect_to_vec(call.inputs[0].data);
        let rows: Vec<&[f64]> = values.chunks_exact(call.inputs[0].shape[1]).collect();
        let answer = (self.0)(&rows)?;
        let shape = Shape::from_slice(&[answer.len(), answer[0].len()]);
        Ok(vec![Tensor::from_f64("y".into(), shape, answer.concat())])
    }
}

/// x is padded with zeros to 4 and 8; y may follow it.
fn model(function: Function, unpad: bool) -> Model {
    let spec = |name| TensorSpec { batch: true, ..TensorSpec::new(name, DType::Fp64, &[-1, -1]) };
    let value = Filler::new(DType::Fp64, 0.0).expect("a double");
    let x = TensorSpec { pad: Some(Pad { dim: 1, to: vec![4, 8], value }), ..spec("x") };
    let y = TensorSpec { unpad: unpad.then_some(Unpad { dim: 1, input: 0 }), ..spec("y") };
    Model { signature: Signature { inputs: vec![x], outputs: vec![y] }, function }
}

fn try_it(model: &Model, yaml: &str, example: Option<&str>) -> Report {
    let folder = tempfile::tempdir().expect("a folder");
    if let Some(example) = example {
        std::fs::write(folder.path().join("example.json"), example).expect("written");
    }
    let yaml = ModelYaml::parse(yaml).expect("a model.yaml");
    let manifest = Manifest::resolve(Platform::Onnx, yaml, VersionYaml::default()).expect("a manifest");
    run(folder.path(), &manifest, model, Duration::from_secs(60)).expect("it passes")
}

fn each(rows: &[&[f64]], answer: impl Fn(&[f64]) -> Vec<f64>) -> Result<Vec<Vec<f64>>> {
    Ok(rows.iter().map(|row| answer(row)).collect())
}

/// What is filled in adds nothing.
fn sum(rows: &[&[f64]]) -> Result<Vec<Vec<f64>>> {
    each(rows, |row| vec![row.iter().sum()])
}

/// What is filled in counts.
fn mean(rows: &[&[f64]]) -> Result<Vec<Vec<f64>>> {
    each(rows, |row| vec![row.iter().sum::<f64>() / row.len() as f64])
}

fn doubled(rows: &[&[f64]]) -> Result<Vec<Vec<f64>>> {
    each(rows, |row| row.iter().map(|value| value * 2.0).collect())
}

fn without_zeros(rows: &[&[f64]]) -> Result<Vec<Vec<f64>>> {
    match rows.iter().any(|row| row.contains(&0.0)) {
        true => Err(Error::internal("BACKEND_FAILED", "it does not like them")),
        false => sum(rows),
    }
}

fn only_large(rows: &[&[f64]]) -> Result<Vec<Vec<f64>>> {
    match rows.iter().all(|row| row.iter().all(|value| *value == 0.0 || *value >= 100.0)) {
        true => sum(rows),
        false => Err(Error::internal("BACKEND_FAILED", "it does not like them")),
    }
}

const EXAMPLE: &str = r#"{"examples": [{
    "request": {"inputs": [
        {"name": "x", "datatype": "FP64", "shape": [2, 6], "data": [100, 200, 300, 400, 500, 600, 110, 120, 130, 140, 150, 160]}]},
    "response": {"outputs": [{"name": "y", "datatype": "FP64", "shape": [2, 1], "data": [2100, 810]}]}}]}"#;

#[test]
fn what_answers_as_unpadded_is_padded_and_what_does_not_is_not() {
    for (function, unpad, pads, says) in [
        (sum as Function, false, true, "padded ones, too"),
        (mean, false, false, "output 'y' differs when requests are padded"),
        (doubled, true, true, "padded ones, too"),
        (doubled, false, false, "output 'y' has another shape when requests are padded; say unpad for it"),
        (sum, true, false, "output 'y' does not follow the padded dimension of its input"),
        (without_zeros, false, false, "padded requests were refused that ran unpadded"),
    ] {
        let report = try_it(&model(function, unpad), "", None);
        assert!(report.joinable && report.pads == pads, "{}", report.batching_reason);
        assert!(report.batching_reason.contains(says), "{}", report.batching_reason);
        assert!(!report.cost.is_empty() && report.recipe.is_some());
    }
}

#[test]
fn what_is_not_shown_is_not_padded() {
    let nothing: Function = |rows| each(rows, |_| vec![f64::NAN]);
    let report = try_it(&model(nothing, false), "", None);
    assert!(!report.joinable && !report.pads, "{}", report.batching_reason);
    let report = try_it(&model(only_large, false), "", None);
    assert!(!report.pads, "it takes nothing but zeros: {}", report.batching_reason);
    let report = try_it(&model(only_large, false), "", Some(EXAMPLE));
    assert!(report.pads, "its example shows it: {}", report.batching_reason);
}

#[test]
fn people_have_the_last_word_on_padding() {
    assert!(try_it(&model(mean, false), "batching: {joinable: true}", None).pads);
    for yaml in ["batching: off", "batching: {joinable: false}"] {
        let report = try_it(&model(sum, false), yaml, None);
        assert!(
            !report.pads && report.batching_reason.ends_with("; so nothing is padded"),
            "{}",
            report.batching_reason
        );
    }
}

#[test]
fn a_version_that_pads_is_measured_and_warmed_up_at_the_largest_size() {
    let model = model(sum, false);
    let recipe = try_it(&model, "", None).recipe.expect("it runs");
    assert_eq!(recipe.make(&model.signature, 3, 1)[0].shape[..], [3, 8]);
}

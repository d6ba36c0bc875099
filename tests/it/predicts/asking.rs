//! An example as a request, in every form, and its answer held against what is expected.

use prost_types::{Struct, Value, value::Kind};
use sconce::model::{DType, Example, ExampleFile};

use super::server;
use crate::{
    harness::{
        call,
        tensors::{FORMS, Form, Values},
    },
    proto::{oip, *},
};

pub fn request(model: &str, version: &str, example: &Example, form: Form) -> PredictRequest {
    PredictRequest {
        model: model.into(),
        select: (!version.is_empty()).then(|| predict_request::Select::Version(version.into())),
        inputs: example.request.inputs.iter().map(|tensor| Values::of_example(tensor).to_sconce(form)).collect(),
        parameters: example.request.parameters.iter().map(|(name, value)| (name.clone(), parameter(value))).collect(),
        ..Default::default()
    }
}

pub fn parameter(value: &serde_json::Value) -> ParameterValue {
    use parameter_value::Value::{BoolValue, Int64Value, StringValue};
    let value = match value {
        serde_json::Value::Bool(flag) => BoolValue(*flag),
        serde_json::Value::String(text) => StringValue(text.clone()),
        other => Int64Value(other.as_i64().expect("a whole number")),
    };
    ParameterValue { value: Some(value) }
}

pub fn infer_request(model: &str, version: &str, example: &Example, form: Form) -> oip::ModelInferRequest {
    use oip::infer_parameter::ParameterChoice::{BoolParam, StringParam};
    let mut request =
        oip::ModelInferRequest { model_name: model.into(), model_version: version.into(), ..Default::default() };
    for tensor in &example.request.inputs {
        Values::of_example(tensor).into_oip(&mut request, form);
    }
    for (name, value) in &example.request.parameters {
        let choice = match value {
            serde_json::Value::Bool(flag) => BoolParam(*flag),
            other => StringParam(other.as_str().expect("a text").into()),
        };
        request.parameters.insert(name.clone(), oip::InferParameter { parameter_choice: Some(choice) });
    }
    request
}

pub fn can_be_typed(example: &Example) -> bool {
    let tensors = example.request.inputs.iter().chain(&example.response.outputs);
    tensors.into_iter().all(|tensor| !matches!(tensor.datatype, DType::Fp16 | DType::Bf16))
}

/// Asks with every example in every form that it has, and holds the answers against it.
pub async fn answers_as(model: &str, version: &str, file: &ExampleFile) {
    let server = server().await;
    let (mut inference, mut open) = (server.inference().await, server.oip().await);
    for (place, example) in file.examples.iter().enumerate() {
        let what = format!("{model} {version}, example {place}");
        if !example.request.rows.is_empty() {
            let answer =
                inference.predict(call(rows_request(model, version, example))).await.expect(&what).into_inner();
            assert_rows(&what, &answer.rows, example);
            continue;
        }
        for form in FORMS {
            let answer =
                inference.predict(call(request(model, version, example, form))).await.expect(&what).into_inner();
            let outputs: Vec<Values> = answer.outputs.iter().map(Values::of_sconce).collect();
            assert_outputs(&format!("{what}, {form:?}"), &outputs, example);
            let is_raw = answer.outputs.iter().all(|tensor| !tensor.raw.is_empty());
            assert!(is_raw == (form == Form::Raw), "{what}: answered in another form than asked");
        }
        for form in FORMS.into_iter().filter(|form| *form == Form::Raw || can_be_typed(example)) {
            let answer =
                open.model_infer(call(infer_request(model, version, example, form))).await.expect(&what).into_inner();
            assert_outputs(&format!("{what}, {form:?} by the open protocol"), &Values::of_oip(&answer), example);
        }
    }
}

pub fn assert_outputs(what: &str, outputs: &[Values], example: &Example) {
    let expected: Vec<Values> = example.response.outputs.iter().map(Values::of_example).collect();
    let names = |values: &[Values]| values.iter().map(|each| each.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(outputs), names(&expected), "{what}");
    for (ours, theirs) in outputs.iter().zip(&expected) {
        ours.assert_is(what, theirs, example.rtol, example.atol);
    }
}

pub fn number(value: f64) -> Value {
    Value { kind: Some(Kind::NumberValue(value)) }
}

pub fn row(row: &serde_json::Map<String, serde_json::Value>) -> Struct {
    let value = |value: &serde_json::Value| match value {
        serde_json::Value::Null => Value { kind: Some(Kind::NullValue(0)) },
        other => number(other.as_f64().expect("a number")),
    };
    Struct { fields: row.iter().map(|(name, each)| (name.clone(), value(each))).collect() }
}

pub fn rows_request(model: &str, version: &str, example: &Example) -> PredictRequest {
    PredictRequest {
        model: model.into(),
        select: (!version.is_empty()).then(|| predict_request::Select::Version(version.into())),
        rows: example.request.rows.iter().map(row).collect(),
        ..Default::default()
    }
}

pub fn assert_rows(what: &str, rows: &[Struct], example: &Example) {
    for expected in example.response.outputs.iter().map(Values::of_example) {
        let numbers = expected.numbers();
        assert_eq!(rows.len(), numbers.len(), "{what}: one row for each");
        for (row, theirs) in rows.iter().zip(numbers) {
            let Some(Kind::NumberValue(ours)) = row.fields[&expected.name].kind else {
                panic!("{what}: {row:?}");
            };
            assert!(
                (ours - theirs).abs() <= example.atol + example.rtol * theirs.abs(),
                "{what}: {ours:e}, expected {theirs:e}"
            );
        }
    }
}

//! Right requests get right answers: every fixture and every sample, over both dialects, in every form.

use prost_types::{Struct, Value, value::Kind};
use sconce::model::{DType, Example, ExampleFile};
use tokio::sync::OnceCell;
use tonic::Status;

use crate::{
    harness::{
        Server, Store, call, fixture, has_torch,
        store::SAMPLES,
        tensors::{FORMS, Form, Values, doubles, fixture_examples, floats, sample_examples},
    },
    proto::{oip, *},
};

const ONNX: [&str; 7] = [
    "tiny",
    "lstm_sequence_first",
    "shared_input",
    "scalar",
    "zipmap",
    "slow",
    "loop_forever",
];
const LIGHTGBM: [&str; 6] = [
    "binary",
    "categorical",
    "multiclass",
    "regression",
    "rank",
    "linear_tree",
];
const TORCH: [&str; 5] = ["plain", "tuple_out", "dict_out", "dict_in", "raises"];
const TYPES: [&str; 14] = [
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "bfloat16", "float",
    "double", "string",
];

/// One server for all of them.
async fn server() -> &'static Server {
    static SERVER: OnceCell<Server> = OnceCell::const_new();
    SERVER
        .get_or_init(async || {
            let mut store = Store::new();
            for name in ONNX {
                store = store.model(name, "1.0.0", fixture(&format!("onnx/{name}.onnx")));
            }
            for name in TYPES {
                store = store.model(name, "1.0.0", fixture(&format!("onnx/identity_{name}.onnx")));
            }
            for name in LIGHTGBM {
                store = store.model(name, "1.0.0", fixture(&format!("lightgbm/{name}.txt")));
            }
            for name in TORCH.into_iter().filter(|_| has_torch()) {
                store = store.model(name, "1.0.0", fixture(&format!("torch/{name}.pt")));
            }
            for name in SAMPLES {
                store = store.sample(name);
            }
            Server::start(store, &[]).await
        })
        .await
}

fn request(model: &str, version: &str, example: &Example, form: Form) -> PredictRequest {
    PredictRequest {
        model: model.into(),
        select: (!version.is_empty()).then(|| predict_request::Select::Version(version.into())),
        inputs: example
            .request
            .inputs
            .iter()
            .map(|tensor| Values::of_example(tensor).to_sconce(form))
            .collect(),
        parameters: example
            .request
            .parameters
            .iter()
            .map(|(name, value)| (name.clone(), parameter(value)))
            .collect(),
        ..Default::default()
    }
}

fn parameter(value: &serde_json::Value) -> ParameterValue {
    use parameter_value::Value::{BoolValue, Int64Value, StringValue};
    let value = match value {
        serde_json::Value::Bool(flag) => BoolValue(*flag),
        serde_json::Value::String(text) => StringValue(text.clone()),
        other => Int64Value(other.as_i64().expect("a whole number")),
    };
    ParameterValue { value: Some(value) }
}

fn infer_request(model: &str, version: &str, example: &Example, form: Form) -> oip::ModelInferRequest {
    use oip::infer_parameter::ParameterChoice::{BoolParam, StringParam};
    let mut request = oip::ModelInferRequest {
        model_name: model.into(),
        model_version: version.into(),
        ..Default::default()
    };
    for tensor in &example.request.inputs {
        Values::of_example(tensor).into_oip(&mut request, form);
    }
    for (name, value) in &example.request.parameters {
        let choice = match value {
            serde_json::Value::Bool(flag) => BoolParam(*flag),
            other => StringParam(other.as_str().expect("a text").into()),
        };
        request.parameters.insert(
            name.clone(),
            oip::InferParameter {
                parameter_choice: Some(choice),
            },
        );
    }
    request
}

fn can_be_typed(example: &Example) -> bool {
    let tensors = example.request.inputs.iter().chain(&example.response.outputs);
    tensors
        .into_iter()
        .all(|tensor| !matches!(tensor.datatype, DType::Fp16 | DType::Bf16))
}

/// Asks with every example in every form that it has, and holds the answers against it.
async fn answers_as(model: &str, version: &str, file: &ExampleFile) {
    let server = server().await;
    let (mut inference, mut open) = (server.inference().await, server.oip().await);
    for (place, example) in file.examples.iter().enumerate() {
        let what = format!("{model} {version}, example {place}");
        if !example.request.rows.is_empty() {
            let answer = inference
                .predict(call(rows_request(model, version, example)))
                .await
                .expect(&what)
                .into_inner();
            assert_rows(&what, &answer.rows, example);
            continue;
        }
        for form in FORMS {
            let answer = inference
                .predict(call(request(model, version, example, form)))
                .await
                .expect(&what)
                .into_inner();
            let outputs: Vec<Values> = answer.outputs.iter().map(Values::of_sconce).collect();
            assert_outputs(&format!("{what}, {form:?}"), &outputs, example);
            let is_raw = answer.outputs.iter().all(|tensor| !tensor.raw.is_empty());
            assert!(
                is_raw == (form == Form::Raw),
                "{what}: answered in another form than asked"
            );
        }
        for form in FORMS
            .into_iter()
            .filter(|form| *form == Form::Raw || can_be_typed(example))
        {
            let answer = open
                .model_infer(call(infer_request(model, version, example, form)))
                .await
                .expect(&what)
                .into_inner();
            assert_outputs(
                &format!("{what}, {form:?} by the open protocol"),
                &Values::of_oip(&answer),
                example,
            );
        }
    }
}

fn assert_outputs(what: &str, outputs: &[Values], example: &Example) {
    let expected: Vec<Values> = example.response.outputs.iter().map(Values::of_example).collect();
    let names = |values: &[Values]| values.iter().map(|each| each.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(outputs), names(&expected), "{what}");
    for (ours, theirs) in outputs.iter().zip(&expected) {
        ours.assert_is(what, theirs, example.rtol, example.atol);
    }
}

fn number(value: f64) -> Value {
    Value {
        kind: Some(Kind::NumberValue(value)),
    }
}

fn row(row: &serde_json::Map<String, serde_json::Value>) -> Struct {
    let value = |value: &serde_json::Value| match value {
        serde_json::Value::Null => Value {
            kind: Some(Kind::NullValue(0)),
        },
        other => number(other.as_f64().expect("a number")),
    };
    Struct {
        fields: row.iter().map(|(name, each)| (name.clone(), value(each))).collect(),
    }
}

fn rows_request(model: &str, version: &str, example: &Example) -> PredictRequest {
    PredictRequest {
        model: model.into(),
        select: (!version.is_empty()).then(|| predict_request::Select::Version(version.into())),
        rows: example.request.rows.iter().map(row).collect(),
        ..Default::default()
    }
}

fn assert_rows(what: &str, rows: &[Struct], example: &Example) {
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

#[tokio::test]
async fn the_samples_answer_as_their_examples() {
    for model in SAMPLES
        .into_iter()
        .filter(|model| *model != "volatility-transformer" || has_torch())
    {
        for version in ["1.0.0", "1.1.0"]
            .into_iter()
            .filter(|version| *version == "1.0.0" || model == "early-signal")
        {
            answers_as(model, version, &sample_examples(model, version)).await;
        }
    }
}

#[tokio::test]
async fn lightgbm_answers_as_lightgbm_in_every_kind_of_prediction() {
    for model in LIGHTGBM {
        let file = fixture_examples(&format!("lightgbm/{model}"));
        assert!(file.examples.iter().all(|example| example.rtol <= 1e-12));
        answers_as(model, "", &file).await;
    }
}

#[tokio::test]
async fn onnx_answers_as_onnxruntime() {
    for model in ONNX {
        answers_as(model, "", &fixture_examples(&format!("onnx/{model}"))).await;
    }
}

#[tokio::test]
async fn torchscript_answers_as_torch() {
    for model in TORCH.into_iter().filter(|_| has_torch()) {
        answers_as(model, "", &fixture_examples(&format!("torch/{model}"))).await;
    }
}

#[tokio::test]
async fn every_type_comes_back_bit_by_bit() {
    for name in TYPES {
        let file = fixture_examples(&format!("onnx/identity_{name}"));
        answers_as(name, "", &file).await;
        let given = Values::of_example(&file.examples[0].request.inputs[0]);
        let mut request = oip::ModelInferRequest {
            model_name: name.into(),
            ..Default::default()
        };
        given.clone().into_oip(&mut request, Form::Raw);
        let answer = server().await.infer(request).await.expect(name);
        assert_eq!(answer.raw_output_contents, [given.raw], "{name}");
    }
}

#[tokio::test]
async fn a_table_and_features_in_any_order_are_the_same_request() {
    let server = server().await;
    let file = sample_examples("early-signal", "1.0.0");
    let example = file
        .examples
        .iter()
        .find(|example| !example.request.inputs.is_empty())
        .expect("a tensor");
    let described = server.describe("early-signal").await;
    let version = described
        .versions
        .iter()
        .find(|version| version.version == "1.0.0")
        .expect("1.0.0");
    let names = &version.inputs[0].feature_names;
    let values = Values::of_example(&example.request.inputs[0]).numbers();
    assert_eq!(names.len(), 19);
    // The columns from the last to the first.
    let backwards = |row: &[f64]| row.iter().rev().copied().collect::<Vec<_>>();
    let table = Table {
        names: names.iter().rev().cloned().collect(),
        values: values.chunks(names.len()).flat_map(backwards).collect(),
    };
    let request = PredictRequest {
        model: "early-signal".into(),
        select: Some(predict_request::Select::Version("1.0.0".into())),
        table: Some(table),
        ..Default::default()
    };
    let answer = server.predict(request).await.expect("a table");
    assert_rows("a table", &answer.rows, example);
    assert_eq!(answer.prediction_ids.len(), answer.rows.len());
}

#[tokio::test]
async fn the_form_of_the_answer_can_be_chosen() {
    let server = server().await;
    let file = fixture_examples("lightgbm/regression");
    let ask = async |form: OutputForm| {
        let mut request = request("regression", "", &file.examples[0], Form::Raw);
        request.output_form = form as i32;
        server.predict(request).await.expect("an answer")
    };
    let expected = Values::of_example(&file.examples[0].response.outputs[0]).numbers();
    let typed = ask(OutputForm::Typed).await;
    assert_eq!(
        (typed.outputs[0].doubles.len(), typed.outputs[0].raw.len()),
        (expected.len(), 0)
    );
    let raw = ask(OutputForm::Raw).await;
    assert_eq!(
        (raw.outputs[0].doubles.len(), raw.outputs[0].raw.len()),
        (0, 8 * expected.len())
    );
    let rows = ask(OutputForm::Rows).await;
    assert!(rows.outputs.is_empty());
    assert_rows("rows", &rows.rows, &file.examples[0]);
}

#[tokio::test]
async fn only_the_outputs_that_were_asked_for_come_in_that_order() {
    let server = server().await;
    let example = &fixture_examples("onnx/tiny").examples[0];
    for wanted in [&["OUTPUT1"][..], &["OUTPUT1", "OUTPUT0"], &["OUTPUT0", "OUTPUT1"]] {
        let mut request = request("tiny", "", example, Form::Raw);
        request.outputs = wanted.iter().map(|name| (*name).to_owned()).collect();
        let answer = server.predict(request).await.expect("an answer");
        let names: Vec<&str> = answer.outputs.iter().map(|output| output.name.as_str()).collect();
        assert_eq!(names, wanted);
        let mut request = infer_request("tiny", "", example, Form::Typed);
        request.outputs = wanted
            .iter()
            .map(|name| oip::model_infer_request::InferRequestedOutputTensor {
                name: (*name).to_owned(),
                ..Default::default()
            })
            .collect();
        let answer = server.infer(request).await.expect("an answer");
        let names: Vec<&str> = answer.outputs.iter().map(|output| output.name.as_str()).collect();
        assert_eq!(names, wanted);
    }
}

#[tokio::test]
async fn empty_tensors_are_answered_with_empty_tensors() {
    let empty = floats("x", &[0, 3], &[]);
    assert_eq!(identity("float", &empty).await.expect("an answer"), empty.named("y"));
    let server = server().await;
    let inputs = ["INPUT0", "INPUT1"].map(|name| floats(name, &[0, 16], &[]).to_sconce(Form::Raw));
    let request = PredictRequest {
        model: "tiny".into(),
        inputs: inputs.into(),
        ..Default::default()
    };
    let answer = server.predict(request).await.expect("an answer");
    assert_eq!(answer.outputs[0].shape, [0, 16]);
}

#[tokio::test]
async fn nan_and_infinity_are_data() {
    let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0];
    let given = floats("x", &[2, 2], &odd);
    assert_eq!(identity("float", &given).await.expect("an answer").raw, given.raw);
}

#[tokio::test]
async fn what_the_signature_decides_may_be_left_out() {
    let server = server().await;
    let example = &fixture_examples("lightgbm/binary").examples[0];
    let mut request = request("binary", "", example, Form::Typed);
    for tensor in &mut request.inputs {
        tensor.dtype = 0;
        tensor.shape.clear();
        tensor.name.clear();
    }
    let answer = server.predict(request).await.expect("one choice is left");
    let outputs: Vec<Values> = answer.outputs.iter().map(Values::of_sconce).collect();
    assert_outputs("name, type and shape left out", &outputs, example);
}

#[tokio::test]
async fn floats_are_widened_for_lightgbm() {
    let server = server().await;
    // Values that single precision holds exactly, so that the answers must be equal to the last bit.
    let values = [0.5f32, -2.25, 4.0, f32::NAN, 1.0];
    let wide: Vec<f64> = values.iter().map(|&value| value.into()).collect();
    let mut answers = Vec::new();
    for given in [
        floats("features", &[1, 5], &values),
        doubles("features", &[1, 5], &wide),
    ] {
        for form in FORMS {
            let request = PredictRequest {
                model: "regression".into(),
                inputs: vec![given.to_sconce(form)],
                ..Default::default()
            };
            let answer = server.predict(request).await.expect("an answer");
            answers.push(Values::of_sconce(&answer.outputs[0]).raw);
        }
    }
    assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "{answers:?}");
}

#[tokio::test]
async fn a_missing_value_is_null_or_nan_and_an_absent_feature_is_an_error() {
    let server = server().await;
    let file = sample_examples("early-signal", "1.0.0");
    let example = file
        .examples
        .iter()
        .find(|example| !example.request.rows.is_empty())
        .expect("rows");
    let ask = async |change: &dyn Fn(&mut Struct)| {
        let mut request = rows_request("early-signal", "1.0.0", example);
        request.rows.iter_mut().for_each(change);
        server.predict(request).await
    };
    let null = ask(&|row| {
        _ = row.fields.insert(
            "rsi_14".into(),
            Value {
                kind: Some(Kind::NullValue(0)),
            },
        )
    })
    .await;
    let nan = ask(&|row| _ = row.fields.insert("rsi_14".into(), number(f64::NAN))).await;
    assert_eq!(null.expect("null is missing").rows, nan.expect("NaN is missing").rows);
    let absent = ask(&|row| _ = row.fields.remove("rsi_14"))
        .await
        .expect_err("absent is no value");
    assert_eq!(absent.code(), tonic::Code::InvalidArgument);
    assert!(absent.message().contains("rsi_14"), "{absent}");
}

#[tokio::test]
async fn an_answer_says_who_gave_it() {
    let server = server().await;
    let file = sample_examples("early-signal", "1.0.0");
    let mut request = rows_request("early-signal", "", &file.examples[0]);
    request.select = Some(predict_request::Select::Version("v1".into()));
    request.request_id = "order 7".into();
    let answer = server.predict(request).await.expect("an answer");
    let served = answer.served.expect("who served");
    assert_eq!((&served.model[..], &served.version[..]), ("early-signal", "1.0.0"));
    assert_eq!(served.reason(), RouteReason::Pinned);
    assert_eq!(answer.request_id, "order 7");
    assert_eq!(answer.prediction_ids.len(), file.examples[0].request.rows.len());
    assert!(answer.degraded.is_none() && answer.timing.is_some());
}

/// The answer of an identity model.
async fn identity(model: &str, given: &Values) -> Result<Values, Status> {
    let request = PredictRequest {
        model: model.into(),
        inputs: vec![given.to_sconce(Form::Raw)],
        ..Default::default()
    };
    let answer = server().await.predict(request).await?;
    Ok(Values::of_sconce(&answer.outputs[0]))
}

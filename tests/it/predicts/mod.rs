//! Right requests get right answers: every fixture and every sample, over both dialects, in every form.

mod asking;

use prost_types::{Struct, Value, value::Kind};
use tokio::sync::OnceCell;
use tonic::Status;

use asking::*;

use crate::{
    harness::{
        Server, Store, fixture, has_torch,
        store::SAMPLES,
        tensors::{FORMS, Form, Values, doubles, fixture_examples, floats, sample_examples},
    },
    proto::{oip, *},
};

const ONNX: [&str; 7] = ["tiny", "lstm_sequence_first", "shared_input", "scalar", "zipmap", "slow", "loop_forever"];
const LIGHTGBM: [&str; 6] = ["binary", "categorical", "multiclass", "regression", "rank", "linear_tree"];
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

#[tokio::test]
async fn the_samples_answer_as_their_examples() {
    for model in SAMPLES.into_iter().filter(|model| *model != "volatility-transformer" || has_torch()) {
        for version in ["1.0.0", "1.1.0"].into_iter().filter(|version| *version == "1.0.0" || model == "early-signal") {
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
        let mut request = oip::ModelInferRequest { model_name: name.into(), ..Default::default() };
        given.clone().into_oip(&mut request, Form::Raw);
        let answer = server().await.infer(request).await.expect(name);
        assert_eq!(answer.raw_output_contents, [given.raw], "{name}");
    }
}

#[tokio::test]
async fn a_table_and_features_in_any_order_are_the_same_request() {
    let server = server().await;
    let file = sample_examples("early-signal", "1.0.0");
    let example = file.examples.iter().find(|example| !example.request.inputs.is_empty()).expect("a tensor");
    let described = server.describe("early-signal").await;
    let version = described.versions.iter().find(|version| version.version == "1.0.0").expect("1.0.0");
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
    assert_eq!((typed.outputs[0].doubles.len(), typed.outputs[0].raw.len()), (expected.len(), 0));
    let raw = ask(OutputForm::Raw).await;
    assert_eq!((raw.outputs[0].doubles.len(), raw.outputs[0].raw.len()), (0, 8 * expected.len()));
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
    let request = PredictRequest { model: "tiny".into(), inputs: inputs.into(), ..Default::default() };
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
    for given in [floats("features", &[1, 5], &values), doubles("features", &[1, 5], &wide)] {
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
    let example = file.examples.iter().find(|example| !example.request.rows.is_empty()).expect("rows");
    let ask = async |change: &dyn Fn(&mut Struct)| {
        let mut request = rows_request("early-signal", "1.0.0", example);
        request.rows.iter_mut().for_each(change);
        server.predict(request).await
    };
    let null = ask(&|row| _ = row.fields.insert("rsi_14".into(), Value { kind: Some(Kind::NullValue(0)) })).await;
    let nan = ask(&|row| _ = row.fields.insert("rsi_14".into(), number(f64::NAN))).await;
    assert_eq!(null.expect("null is missing").rows, nan.expect("NaN is missing").rows);
    let absent = ask(&|row| _ = row.fields.remove("rsi_14")).await.expect_err("absent is no value");
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
    let request =
        PredictRequest { model: model.into(), inputs: vec![given.to_sconce(Form::Raw)], ..Default::default() };
    let answer = server().await.predict(request).await?;
    Ok(Values::of_sconce(&answer.outputs[0]))
}

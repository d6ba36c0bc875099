//! Of the requests and answers of the Open Inference Protocol.

use super::*;
use crate::model::{ModelName, RouteReason, Served, Timing, bytes_from};
use std::time::Instant;

fn arrival() -> Arrival {
    Arrival { at: Instant::now(), deadline: None }
}

fn input(name: &str, datatype: &str, shape: &[i64]) -> InferInputTensor {
    InferInputTensor {
        name: name.into(),
        datatype: datatype.into(),
        shape: shape.to_vec(),
        ..InferInputTensor::default()
    }
}

fn with(choice: ParameterChoice) -> InferParameter {
    InferParameter { parameter_choice: Some(choice) }
}

fn one_raw() -> ModelInferRequest {
    ModelInferRequest {
        model_name: "m".into(),
        inputs: vec![input("x", "FP32", &[1, 2])],
        raw_input_contents: vec![bytes::Bytes::from_static(&[0; 8])],
        ..ModelInferRequest::default()
    }
}

fn reason(change: impl FnOnce(&mut ModelInferRequest)) -> &'static str {
    let mut message = one_raw();
    change(&mut message);
    request(message, arrival()).expect_err("a mistake was made").reason()
}

#[test]
fn raw_bytes_are_the_messages_own() {
    let message = one_raw();
    let sent = message.raw_input_contents[0].as_ptr();
    let (request, reply) = request(message, arrival()).expect("all is right");
    let Data::Tensors(tensors) = request.data else { panic!("tensors were sent") };
    let Contents::Raw(bytes) = &tensors[0].contents else { panic!("raw was sent") };
    assert_eq!(bytes.as_ptr(), sent, "copied for nothing");
    assert_eq!(reply.form, Form::Raw);
}

#[test]
fn each_mistake_has_its_own_reason() {
    let doubles = || InferTensorContents { fp64_contents: vec![1.0, 2.0], ..InferTensorContents::default() };
    assert_eq!(reason(|message| message.id = "i".repeat(257)), "REQUEST_ID_TOO_LONG");
    assert_eq!(reason(|message| message.raw_input_contents.clear()), "RAW_COUNT_MISMATCH");
    assert_eq!(reason(|message| message.raw_input_contents.push(bytes::Bytes::new())), "RAW_COUNT_MISMATCH");
    assert_eq!(reason(|message| message.inputs[0].contents = Some(doubles())), "AMBIGUOUS_CONTENTS");
    assert_eq!(reason(|message| message.inputs[0].datatype = "FLOAT".into()), "UNKNOWN_DATATYPE");
    assert_eq!(reason(|message| message.inputs[0].shape = vec![-1, 2]), "INVALID_SHAPE");
    assert_eq!(reason(|message| message.model_version = "1.x".into()), "INVALID_VERSION");
    let region =
        || BTreeMap::from([("shared_memory_region".to_owned(), with(ParameterChoice::StringParam("r".into())))]);
    assert_eq!(reason(|message| message.inputs[0].parameters = region()), "SHARED_MEMORY_UNSUPPORTED");
    let typed = |message: &mut ModelInferRequest, datatype: &str| {
        message.raw_input_contents.clear();
        message.inputs[0].datatype = datatype.into();
        message.inputs[0].contents = Some(doubles());
    };
    assert_eq!(reason(|message| typed(message, "FP32")), "CONTENTS_MISMATCH");
    assert_eq!(reason(|message| typed(message, "FP16")), "CONTENTS_MISMATCH");
    for parameter in [ParameterChoice::Int64Param(-1), ParameterChoice::DoubleParam(f64::NAN)] {
        let parameters = BTreeMap::from([("timeout".to_owned(), with(parameter))]);
        assert_eq!(reason(|message| message.parameters = parameters), "INVALID_PARAMETER");
    }
}

#[test]
fn an_error_says_what_was_expected_and_what_came_and_repeats_only_plain_names() {
    let error = |datatype: &str, name: &str, contents: InferTensorContents| {
        let mut message = one_raw();
        message.raw_input_contents.clear();
        message.inputs = vec![InferInputTensor { contents: Some(contents), ..input(name, datatype, &[1, 2]) }];
        request(message, arrival()).expect_err("a mistake was made")
    };
    let doubles = || InferTensorContents { fp64_contents: vec![1.0, 2.0], ..InferTensorContents::default() };
    let text = |datatype, name| error(datatype, name, doubles()).message().to_owned();
    assert_eq!(text("FP32", "x"), "input 'x': FP32 stands in fp32_contents; fp64_contents came");
    assert_eq!(text("FP16", "x"), "input 'x': FP16 has no typed contents, send it raw; fp64_contents came");
    assert!(text("FLOAT", "x").ends_with("; 'FLOAT' came"));
    assert!(text("/etc/x\n", "x").ends_with("; something else came"));
    let long = "n".repeat(10_000);
    for name in ["../x", "x\ny", &long] {
        let error = error("FP32", name, doubles());
        assert_eq!(error.message(), "input: FP32 stands in fp32_contents; fp64_contents came");
        assert!(error.metadata().is_empty());
    }
}

#[test]
fn a_label_never_looks_like_a_version() {
    let select = |text: &str| super::select(text.into());
    assert_eq!(select("").expect("the route"), Select::Route);
    assert_eq!(select("v1.2").expect("a version"), Select::Version(Version::new(1, 2, 0)));
    assert_eq!(select("champion").expect("a label"), Select::Label("champion".into()));
    assert_eq!(select("v").expect("a label"), Select::Label("v".into()));
    assert_eq!(select("-1").expect("a label"), Select::Label("-1".into()));
    assert!(select("1.2.3.4.5").is_err());
}

#[test]
fn tritons_parameters_keep_their_meaning() {
    let mut message = one_raw();
    message.parameters = BTreeMap::from([
        ("priority".to_owned(), with(ParameterChoice::Uint64Param(1))),
        ("timeout".to_owned(), with(ParameterChoice::Int64Param(5_000))),
        ("sequence_id".to_owned(), with(ParameterChoice::Int64Param(7))),
        ("triton_enable_empty_final_response".to_owned(), with(ParameterChoice::BoolParam(true))),
        ("user".to_owned(), with(ParameterChoice::StringParam("u1".into()))),
        ("beta".to_owned(), with(ParameterChoice::BoolParam(true))),
        ("predict_type".to_owned(), with(ParameterChoice::StringParam("raw".into()))),
    ]);
    let arrival = arrival();
    let (request, reply) = request(message, arrival).expect("all is right");
    assert_eq!(request.priority, Priority::High);
    assert_eq!(request.deadline, Some(arrival.at + Duration::from_millis(5)));
    assert!(reply.mark_final);
    let names: Vec<&str> = request.parameters.0.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["predict_type"], "what no backend knows makes no batch of its own");
    assert!(request.attributes.contains(&("beta".into(), "true".into())));
    assert_eq!(request.attributes.len(), 3);
}

pub fn answer(outputs: Vec<Tensor>) -> Answer {
    Answer {
        served: Served {
            model: ModelName::new("m").expect("a name"),
            version: Version::new(1, 0, 0),
            variant: "stable".into(),
            reason: RouteReason::Stable,
            revision: 0,
        },
        degraded: vec![],
        outputs,
        rows: 1,
        prediction_ids: vec!["p".into()],
        timing: Timing::default(),
        cache: None,
    }
}

pub fn reply(form: Form) -> Reply {
    Reply { id: "id".into(), form, classifications: vec![], mark_final: false }
}

#[test]
fn the_answer_has_the_form_of_the_question() {
    let floats =
        || Tensor::new("y".into(), DType::Fp32, [1].as_slice().into(), bytes_from(vec![2.5f32])).expect("right");
    let halves = Tensor::new("h".into(), DType::Fp16, [0].as_slice().into(), bytes::Bytes::new()).expect("right");
    let raw = response(answer(vec![floats()]), reply(Form::Raw));
    assert_eq!(raw.raw_output_contents[0], 2.5f32.to_le_bytes()[..]);
    assert!(raw.outputs[0].contents.is_none());
    let typed = response(answer(vec![floats()]), reply(Form::Typed));
    assert_eq!(typed.outputs[0].contents.as_ref().expect("typed").fp32_contents, [2.5]);
    assert!(typed.raw_output_contents.is_empty());
    let mixed = response(answer(vec![floats(), halves]), reply(Form::Typed));
    assert_eq!(mixed.raw_output_contents.len(), 2, "FP16 makes it raw as a whole");
    assert_eq!(mixed.parameters.len(), 3);
    assert_eq!(mixed.parameters["prediction_id"], with(ParameterChoice::StringParam("p".into())));
}

#[test]
fn what_the_cache_had_to_do_with_it_is_a_parameter() {
    let said = |cache| {
        let answer = Answer { cache: Some(cache), ..answer(vec![]) };
        let parameters = response(answer, reply(Form::Raw)).parameters;
        (parameters.get("cache").cloned(), parameters.get("cache_age_ms").cloned())
    };
    let text = |text: &str| Some(with(ParameterChoice::StringParam(text.into())));
    let age = Duration::from_micros(1_999_999);
    assert_eq!(said(CacheUse::Hit { age }), (text("hit"), Some(with(ParameterChoice::Int64Param(1999)))));
    assert_eq!(said(CacheUse::Miss), (text("miss"), None));
    assert_eq!(said(CacheUse::Bypass), (text("bypass"), None));
}

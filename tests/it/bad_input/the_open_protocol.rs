//! `inference.GRPCInferenceService`.

use sconce::model::DType;
use tonic::Code::{self, InvalidArgument, NotFound};

use super::{good, infer, unharmed_by};
use crate::{
    harness::{
        SECRET, SECRET_TEXT, assert_refused, call,
        tensors::{Form, Values, doubles, floats, texts},
    },
    proto::oip::{
        InferParameter, InferTensorContents, ModelConfigRequest, ModelInferRequest, ModelMetadataRequest,
        ModelReadyRequest, infer_parameter::ParameterChoice, model_infer_request::InferRequestedOutputTensor,
    },
};

type Mistake = (&'static str, ModelInferRequest, Code, &'static str);

fn named(model: &str) -> ModelInferRequest {
    infer(model, good(), Form::Raw)
}

fn versioned(version: &str) -> ModelInferRequest {
    ModelInferRequest { model_version: version.into(), ..named("tiny") }
}

/// `tiny`, changed.
fn tiny(change: impl FnOnce(&mut ModelInferRequest)) -> ModelInferRequest {
    let mut request = named("tiny");
    change(&mut request);
    request
}

fn shaped(dims: &[i64]) -> ModelInferRequest {
    tiny(|request| request.inputs[0].shape = dims.into())
}

fn any(shape: &[i64], raw: &'static [u8]) -> ModelInferRequest {
    let values = Values { name: "x".into(), dtype: DType::Fp32, shape: shape.into(), raw: raw.into() };
    infer("any", [values], Form::Raw)
}

fn words(raw: &'static [u8]) -> ModelInferRequest {
    let mut values = texts("x", &[1, 1], &[]);
    values.raw = raw.into();
    infer("words", [values], Form::Raw)
}

fn wanting(outputs: &[&str]) -> ModelInferRequest {
    let output = |name: &&str| InferRequestedOutputTensor { name: (*name).to_owned(), ..Default::default() };
    tiny(|request| request.outputs = outputs.iter().map(output).collect())
}

fn with(name: &str, choice: Option<ParameterChoice>) -> ModelInferRequest {
    tiny(|request| _ = request.parameters.insert(name.into(), InferParameter { parameter_choice: choice }))
}

fn names_and_versions() -> Vec<Mistake> {
    vec![
        ("an unknown model", named("no-such-model"), NotFound, "MODEL_NOT_FOUND"),
        ("an empty request", ModelInferRequest::default(), NotFound, "MODEL_NOT_FOUND"),
        ("a model above", named("../tiny"), NotFound, "MODEL_NOT_FOUND"),
        ("an absolute model", named("/etc/passwd"), NotFound, "MODEL_NOT_FOUND"),
        ("a model with NUL", named("tiny\0"), NotFound, "MODEL_NOT_FOUND"),
        ("an unknown version", versioned("99"), NotFound, "VERSION_NOT_FOUND"),
        ("a malformed version", versioned("1/../1"), InvalidArgument, "INVALID_VERSION"),
        ("an unknown label", versioned("champion"), NotFound, "LABEL_NOT_FOUND"),
        ("a label above", versioned("../.."), NotFound, "LABEL_NOT_FOUND"),
    ]
}

fn tensors() -> Vec<Mistake> {
    let other_type = || infer("tiny", [doubles("INPUT0", &[1, 16], &[SECRET; 16]), good()[1].clone()], Form::Typed);
    let rows = || infer("tiny", [floats("INPUT0", &[2, 16], &[1.0; 32]), good()[1].clone()], Form::Raw);
    let typed = InferTensorContents { fp32_contents: vec![1.5; 16], ..Default::default() };
    let other_field = InferTensorContents { int_contents: vec![1; 16], ..Default::default() };
    let too_few = InferTensorContents { fp32_contents: vec![1.5; 15], ..Default::default() };
    let contents = |contents: InferTensorContents| {
        let mut request = infer("tiny", good(), Form::Typed);
        request.inputs[0].contents = Some(contents);
        request
    };
    let renamed = || tiny(|request| request.inputs[0].name = "no_such_input".into());
    let datatype = |name: &str| tiny(|request| request.inputs[0].datatype = name.into());
    let count = "RAW_COUNT_MISMATCH";
    let bytes = "BYTE_COUNT_MISMATCH";
    vec![
        ("an unknown input", renamed(), InvalidArgument, "UNKNOWN_INPUT"),
        ("a missing input", infer("tiny", good().into_iter().take(1), Form::Raw), InvalidArgument, "MISSING_INPUT"),
        ("no input at all", infer("tiny", [], Form::Raw), InvalidArgument, "MISSING_INPUT"),
        (
            "an input twice",
            infer("tiny", good().into_iter().chain(good()), Form::Raw),
            InvalidArgument,
            "DUPLICATE_INPUT",
        ),
        ("another type", other_type(), InvalidArgument, "DTYPE_MISMATCH"),
        ("a type that does not exist", datatype("FP8"), InvalidArgument, "UNKNOWN_DATATYPE"),
        ("a type in small letters", datatype("fp32"), InvalidArgument, "UNKNOWN_DATATYPE"),
        ("another rank", shaped(&[16]), InvalidArgument, "SHAPE_MISMATCH"),
        ("a rank of a thousand", shaped(&[1; 1000]), InvalidArgument, "INVALID_SHAPE"),
        ("another dimension", shaped(&[2, 8]), InvalidArgument, "SHAPE_MISMATCH"),
        ("a negative dimension", shaped(&[-1, 16]), InvalidArgument, "INVALID_SHAPE"),
        ("other row counts", rows(), InvalidArgument, "ROWS_MISMATCH"),
        ("a shape of too few bytes", shaped(&[2, 16]), InvalidArgument, bytes),
        ("half an element", any(&[1, 1], &[0, 0]), InvalidArgument, bytes),
        ("2^40 elements in 4 bytes", any(&[1, 1 << 40], &[0; 4]), InvalidArgument, bytes),
        ("2^80 elements", any(&[1 << 40, 1 << 40], &[0; 4]), InvalidArgument, "SHAPE_OVERFLOW"),
        ("2^64 + 32 elements", any(&[1 << 4, (1 << 60) + 2], &[0; 4]), InvalidArgument, "SHAPE_OVERFLOW"),
        (
            "raw and typed",
            tiny(|request| request.inputs[0].contents = Some(typed)),
            InvalidArgument,
            "AMBIGUOUS_CONTENTS",
        ),
        ("another type's field", contents(other_field), InvalidArgument, "CONTENTS_MISMATCH"),
        ("too few typed elements", contents(too_few), InvalidArgument, bytes),
        ("one raw too few", tiny(|request| _ = request.raw_input_contents.pop()), InvalidArgument, count),
        ("one raw too many", tiny(|request| request.raw_input_contents.push(vec![0].into())), InvalidArgument, count),
        ("a length past the end", words(&[5, 0, 0, 0, b's', b'3']), InvalidArgument, bytes),
        ("half a length", words(&[1, 0, 0]), InvalidArgument, bytes),
        ("a length of 4 GiB", words(&[255, 255, 255, 255, 1]), InvalidArgument, bytes),
        ("an unknown output", wanting(&["no_such_output"]), InvalidArgument, "UNKNOWN_OUTPUT"),
        ("an output twice", wanting(&["OUTPUT0", "OUTPUT0"]), InvalidArgument, "DUPLICATE_OUTPUT"),
    ]
}

fn parameters() -> Vec<Mistake> {
    let shared = || {
        tiny(|request| {
            let region = ParameterChoice::StringParam(SECRET_TEXT.into());
            let parameter = InferParameter { parameter_choice: Some(region) };
            _ = request.inputs[0].parameters.insert("shared_memory_region".into(), parameter);
        })
    };
    let negative = || with("timeout", Some(ParameterChoice::Int64Param(-1)));
    let text = || with("priority", Some(ParameterChoice::StringParam(SECRET_TEXT.into())));
    let id = || tiny(|request| request.id = "x".repeat(257));
    vec![
        ("shared memory", shared(), InvalidArgument, "SHARED_MEMORY_UNSUPPORTED"),
        ("a negative timeout", negative(), InvalidArgument, "INVALID_PARAMETER"),
        ("a priority in words", text(), InvalidArgument, "INVALID_PARAMETER"),
        ("a parameter without value", with("customer", None), InvalidArgument, "INVALID_PARAMETER"),
        ("a long id", id(), InvalidArgument, "REQUEST_ID_TOO_LONG"),
    ]
}

#[tokio::test]
async fn every_mistake_has_its_code_and_its_reason() {
    unharmed_by(async |server| {
        let mut client = server.oip().await;
        for (what, request, code, reasons) in names_and_versions().into_iter().chain(tensors()).chain(parameters()) {
            assert_refused(what, client.model_infer(call(request)).await, code, reasons);
        }
    })
    .await;
}

#[tokio::test]
async fn metadata_of_what_is_not_there_is_not_found() {
    let server = super::server().await;
    let mut client = server.oip().await;
    for name in ["no-such-model", "", "../tiny", "tiny\0", "/etc/passwd"] {
        let (name, version) = (name.to_owned(), String::new());
        let request = ModelMetadataRequest { name: name.clone(), version: version.clone() };
        assert_refused(&name, client.model_metadata(call(request)).await, NotFound, "MODEL_NOT_FOUND");
        let request = ModelConfigRequest { name: name.clone(), version: version.clone() };
        assert_refused(&name, client.model_config(call(request)).await, NotFound, "MODEL_NOT_FOUND");
        let request = ModelReadyRequest { name: name.clone(), version };
        let answer = client.model_ready(call(request)).await.expect("not there is not ready");
        assert!(!answer.into_inner().ready, "{name:?}");
    }
}

#[tokio::test]
async fn a_mistake_in_a_stream_leaves_the_stream_open() {
    let server = super::server().await;
    let requests = [named("tiny"), named("no-such-model"), shaped(&[-1, 16]), named("tiny")];
    let stream = tokio_stream::iter(requests);
    let mut answers = server.oip().await.model_stream_infer(stream).await.expect("a stream").into_inner();
    let mut seen = Vec::new();
    while let Some(answer) = answers.message().await.expect("the stream lives") {
        seen.push(answer.error_message.is_empty());
        assert!(!answer.error_message.contains("/tmp"), "{}", answer.error_message);
    }
    assert_eq!(seen, [true, false, false, true]);
}

#[tokio::test]
async fn a_string_of_ten_megabytes_is_data() {
    unharmed_by(async |server| {
        let long = texts("x", &[1, 1], &[&vec![b'z'; 10 << 20]]);
        let mut client = server.oip().await;
        for form in [Form::Raw, Form::Typed] {
            let answer = client.model_infer(call(infer("words", [long.clone()], form))).await.expect("an answer");
            assert_eq!(Values::of_oip(&answer.into_inner())[0].raw, long.raw);
        }
    })
    .await;
}

//! `sconce.v1.Inference`.

use prost_types::{Struct, Value, value::Kind};
use sconce::model::DType;
use tonic::Code::{self, InvalidArgument, NotFound};

use super::{good, predict, unharmed_by};
use crate::{
    harness::{
        SECRET, SECRET_TEXT, assert_refused, call,
        tensors::{Form, Values, doubles, floats, texts},
    },
    proto::{predict_request::Select, *},
};

/// A mistake, and what it gets: the reasons that fit, with `|` between them.
type Mistake = (&'static str, PredictRequest, Code, &'static str);

fn named(model: &str) -> PredictRequest {
    predict(model, good())
}

fn selecting(select: Select) -> PredictRequest {
    PredictRequest { select: Some(select), ..named("tiny") }
}

/// `tiny`, with its first input changed.
fn first(change: impl FnOnce(&mut Tensor)) -> PredictRequest {
    let mut request = named("tiny");
    change(&mut request.inputs[0]);
    request
}

fn any(shape: &[i64], raw: &'static [u8]) -> PredictRequest {
    let values = Values { name: "x".into(), dtype: DType::Fp32, shape: shape.into(), raw: raw.into() };
    predict("any", [values])
}

fn words(raw: &'static [u8]) -> PredictRequest {
    let mut values = texts("x", &[1, 1], &[]);
    values.raw = raw.into();
    predict("words", [values])
}

fn wanting(outputs: &[&str]) -> PredictRequest {
    PredictRequest { outputs: outputs.iter().map(|name| (*name).to_owned()).collect(), ..named("tiny") }
}

fn row(fields: &[(&str, Kind)]) -> PredictRequest {
    let fields = fields.iter().map(|(name, kind)| ((*name).to_owned(), Value { kind: Some(kind.clone()) }));
    PredictRequest {
        model: "early-signal".into(),
        rows: vec![Struct { fields: fields.collect() }],
        ..Default::default()
    }
}

fn names_and_selections() -> Vec<Mistake> {
    vec![
        ("an unknown model", named("no-such-model"), NotFound, "MODEL_NOT_FOUND"),
        ("an empty request", PredictRequest::default(), NotFound, "MODEL_NOT_FOUND"),
        ("a model above", named("../tiny"), NotFound, "MODEL_NOT_FOUND"),
        ("an absolute model", named("/etc/passwd"), NotFound, "MODEL_NOT_FOUND"),
        ("a model below", named("tiny/1.0.0"), NotFound, "MODEL_NOT_FOUND"),
        ("a model with NUL", named("tiny\0"), NotFound, "MODEL_NOT_FOUND"),
        ("a model with percents", named("%2e%2e%2ftiny"), NotFound, "MODEL_NOT_FOUND"),
        ("an unknown version", selecting(Select::Version("99".into())), NotFound, "VERSION_NOT_FOUND"),
        ("no version", selecting(Select::Version("../1".into())), InvalidArgument, "INVALID_VERSION"),
        ("a long version", selecting(Select::Version("1.2.3.4.5".into())), InvalidArgument, "INVALID_VERSION"),
        (
            "a huge version",
            selecting(Select::Version("99999999999999999999".into())),
            InvalidArgument,
            "INVALID_VERSION",
        ),
        ("an unknown label", selecting(Select::Label("champion".into())), NotFound, "LABEL_NOT_FOUND"),
        ("a label above", selecting(Select::Label("../..".into())), NotFound, "LABEL_NOT_FOUND"),
    ]
}

fn tensors() -> Vec<Mistake> {
    let unknown = || first(|tensor| tensor.name = "no_such_input".into());
    let missing = || predict("tiny", good().into_iter().take(1));
    let twice = || predict("tiny", good().into_iter().chain(good()));
    let other_type = || predict("tiny", [doubles("INPUT0", &[1, 16], &[SECRET; 16]), good()[1].clone()]);
    let both = || first(|tensor| tensor.floats = vec![1.5; 16]);
    let other_field = || {
        first(|tensor| {
            tensor.raw.clear();
            tensor.ints = vec![1; 16];
        })
    };
    let rows = || predict("tiny", [floats("INPUT0", &[2, 16], &[1.0; 32]), good()[1].clone()]);
    let shaped = |dims: &[i64]| first(|tensor| tensor.shape = dims.into());
    let mismatch = "SHAPE_MISMATCH";
    let bytes = "BYTE_COUNT_MISMATCH";
    vec![
        ("an unknown input", unknown(), InvalidArgument, "UNKNOWN_INPUT"),
        ("a missing input", missing(), InvalidArgument, "MISSING_INPUT"),
        ("an input twice", twice(), InvalidArgument, "DUPLICATE_INPUT"),
        ("another type", other_type(), InvalidArgument, "DTYPE_MISMATCH"),
        ("a type that does not exist", first(|tensor| tensor.dtype = 99), InvalidArgument, "UNKNOWN_ENUM_VALUE"),
        ("another rank", shaped(&[16]), InvalidArgument, mismatch),
        ("a rank of a thousand", shaped(&[1; 1000]), InvalidArgument, "INVALID_SHAPE"),
        ("another dimension", shaped(&[2, 8]), InvalidArgument, mismatch),
        ("a negative dimension", shaped(&[-1, 16]), InvalidArgument, "INVALID_SHAPE"),
        ("the least dimension", shaped(&[i64::MIN, 16]), InvalidArgument, "INVALID_SHAPE"),
        ("other row counts", rows(), InvalidArgument, "ROWS_MISMATCH"),
        ("a shape of too few bytes", shaped(&[2, 16]), InvalidArgument, bytes),
        ("half an element", any(&[1, 1], &[0, 0]), InvalidArgument, bytes),
        ("no bytes", any(&[1, 1], &[]), InvalidArgument, bytes),
        ("2^40 elements in 4 bytes", any(&[1, 1 << 40], &[0; 4]), InvalidArgument, bytes),
        ("2^80 elements", any(&[1 << 40, 1 << 40], &[0; 4]), InvalidArgument, "SHAPE_OVERFLOW"),
        ("2^64 + 32 elements", any(&[1 << 4, (1 << 60) + 2], &[0; 4]), InvalidArgument, "SHAPE_OVERFLOW"),
        ("2^64 bytes", any(&[1 << 31, 1 << 31], &[0; 4]), InvalidArgument, "SHAPE_OVERFLOW|BYTE_COUNT_MISMATCH"),
        ("raw and typed", both(), InvalidArgument, "AMBIGUOUS_CONTENTS"),
        ("another type's field", other_field(), InvalidArgument, "CONTENTS_MISMATCH"),
        ("a length past the end", words(&[5, 0, 0, 0, b's', b'3']), InvalidArgument, bytes),
        ("half a length", words(&[1, 0, 0]), InvalidArgument, bytes),
        ("a length of 4 GiB", words(&[255, 255, 255, 255, 1]), InvalidArgument, bytes),
        ("bytes left over", words(&[1, 0, 0, 0, b'a', 0]), InvalidArgument, bytes),
        ("a BOOL of 2", predict("flags", [flag(2)]), InvalidArgument, "INVALID_BOOL"),
        ("a vector for a scalar", predict("scalar", [floats("x", &[2], &[1.0; 2])]), InvalidArgument, mismatch),
        ("an unknown output", wanting(&["no_such_output"]), InvalidArgument, "UNKNOWN_OUTPUT"),
        ("an output twice", wanting(&["OUTPUT0", "OUTPUT0"]), InvalidArgument, "DUPLICATE_OUTPUT"),
    ]
}

fn flag(byte: u8) -> Values {
    Values { name: "x".into(), dtype: DType::Bool, shape: vec![1, 1], raw: vec![byte].into() }
}

fn rows_and_options() -> Vec<Mistake> {
    let table = |names: &[&str], values: &[f64]| PredictRequest {
        model: "early-signal".into(),
        table: Some(Table { names: names.iter().map(|name| (*name).to_owned()).collect(), values: values.into() }),
        ..Default::default()
    };
    let two_forms = || PredictRequest { inputs: named("tiny").inputs, ..row(&[("rsi_14", Kind::NumberValue(1.0))]) };
    let parameter = |value| PredictRequest {
        parameters: [("predict_type".to_owned(), ParameterValue { value })].into(),
        ..predict("early-signal", [doubles("features", &[1, 20], &[0.5; 20])])
    };
    let nonsense = || parameter(Some(parameter_value::Value::StringValue(SECRET_TEXT.into())));
    let form = || PredictRequest { output_form: 99, ..named("tiny") };
    let priority = || PredictRequest { priority: -1, ..named("tiny") };
    let long_id = || PredictRequest { request_id: "x".repeat(257), ..named("tiny") };
    let text = || row(&[("rsi_14", Kind::StringValue(SECRET_TEXT.into()))]);
    let list = || row(&[("rsi_14", Kind::ListValue(prost_types::ListValue::default()))]);
    let shape = "TABLE_MISMATCH|TABLE_SHAPE";
    vec![
        ("an unknown feature", row(&[("no_such", Kind::NumberValue(SECRET))]), InvalidArgument, "UNKNOWN_FEATURE"),
        ("absent features", row(&[("rsi_14", Kind::NumberValue(SECRET))]), InvalidArgument, "MISSING_FEATURE"),
        ("text for a number", text(), InvalidArgument, "VALUE_MISMATCH"),
        ("a list for a number", list(), InvalidArgument, "UNSUPPORTED_VALUE"),
        ("a table of no names", table(&[], &[1.0]), InvalidArgument, shape),
        ("a table with half a row", table(&["rsi_14", "momentum_20"], &[1.0; 3]), InvalidArgument, shape),
        ("a name twice", table(&["rsi_14", "rsi_14"], &[1.0; 2]), InvalidArgument, "DUPLICATE_FEATURE"),
        ("two forms of data", two_forms(), InvalidArgument, "AMBIGUOUS_DATA"),
        ("an unknown parameter's value", nonsense(), InvalidArgument, "INVALID_PARAMETER|UNKNOWN_PARAMETER"),
        ("a parameter without value", parameter(None), InvalidArgument, "INVALID_PARAMETER"),
        ("an unknown form", form(), InvalidArgument, "UNKNOWN_ENUM_VALUE"),
        ("an unknown priority", priority(), InvalidArgument, "UNKNOWN_ENUM_VALUE"),
        ("a long request id", long_id(), InvalidArgument, "REQUEST_ID_TOO_LONG"),
    ]
}

#[tokio::test]
async fn every_mistake_has_its_code_and_its_reason() {
    unharmed_by(async |server| {
        let mut client = server.inference().await;
        for (what, request, code, reasons) in
            names_and_selections().into_iter().chain(tensors()).chain(rows_and_options())
        {
            assert_refused(what, client.predict(call(request)).await, code, reasons);
        }
    })
    .await;
}

#[tokio::test]
async fn a_refusal_names_the_input_and_what_was_expected() {
    let server = super::server().await;
    let mut client = server.inference().await;
    for (request, words) in [
        (first(|tensor| tensor.name = "INPUT".into()), &["INPUT"][..]),
        (predict("tiny", [doubles("INPUT0", &[1, 16], &[0.0; 16])]), &["INPUT0", "FP32", "FP64"]),
        (first(|tensor| tensor.shape = vec![2, 8]), &["INPUT0", "16", "8"]),
        (first(|tensor| tensor.shape = vec![2, 16]), &["INPUT0", "128", "64"]),
        (named("no-such-model"), &["tiny"]),
        (selecting(Select::Version("9".into())), &["tiny", "9", "1.0.0"]),
    ] {
        let status = client.predict(call(request)).await.expect_err("a mistake");
        for word in words {
            assert!(status.message().contains(word), "'{word}' is missing: {}", status.message());
        }
    }
}

#[tokio::test]
async fn a_million_wanted_outputs_and_a_model_of_ten_megabytes_are_refused_briefly() {
    unharmed_by(async |server| {
        let mut client = server.inference().await;
        let million: Vec<String> = (0..1_000_000).map(|number| number.to_string()).collect();
        let request = PredictRequest { outputs: million, ..named("tiny") };
        assert_refused(
            "a million outputs",
            client.predict(call(request)).await,
            Code::ResourceExhausted,
            "TOO_MANY_FIELDS",
        );
        let long = "m".repeat(10 << 20);
        assert_refused("a long model", client.predict(call(named(&long))).await, NotFound, "MODEL_NOT_FOUND");
        let request = row(&[(&long, Kind::NumberValue(1.0))]);
        assert_refused("a long feature", client.predict(call(request)).await, InvalidArgument, "UNKNOWN_FEATURE");
        let request = first(|tensor| tensor.name = long.clone());
        assert_refused("a long input", client.predict(call(request)).await, InvalidArgument, "UNKNOWN_INPUT");
    })
    .await;
}

#[tokio::test]
async fn a_string_of_ten_megabytes_is_data() {
    unharmed_by(async |server| {
        let long = texts("x", &[1, 1], &[&vec![b'z'; 10 << 20]]);
        let mut client = server.inference().await;
        for form in [Form::Raw, Form::Typed] {
            let mut request = predict("words", []);
            request.inputs.push(long.to_sconce(form));
            let answer = client.predict(call(request)).await.expect("an answer").into_inner();
            assert_eq!(Values::of_sconce(&answer.outputs[0]).raw, long.raw);
        }
    })
    .await;
}

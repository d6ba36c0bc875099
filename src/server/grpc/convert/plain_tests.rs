//! What the plain way reads and writes, held against the generated messages.

use super::*;
use crate::{
    model::{CacheUse, ModelName, bytes_from},
    server::{
        frames::HEADER_BYTES,
        grpc::convert::oip::{self, tests as answers},
        proto::inference::{
            InferParameter, ModelInferRequest,
            infer_parameter::ParameterChoice,
            model_infer_request::{InferInputTensor, InferRequestedOutputTensor},
        },
    },
};
use proptest::prelude::*;
use prost::Message;
use std::time::{Duration, Instant};

fn arrival() -> Arrival {
    Arrival { at: Instant::now(), deadline: None }
}

/// What is read, however it is read.
fn shown((request, reply): (PredictRequest, Reply)) -> String {
    format!("{request:?} {reply:?}")
}

fn plain_question() -> impl Strategy<Value = ModelInferRequest> {
    let input =
        ("[a-zé]{0,8}", prop::sample::select(vec!["FP32", "INT8", "BYTES"]), prop::collection::vec(0..70_000i64, 0..5));
    let raw = prop::collection::vec(any::<u8>(), 0..300);
    let inputs = prop::collection::vec((input, raw), 0..4);
    ("[a-z]{0,200}", prop::sample::select(vec!["", "1", "v2.0.1", "canary"]), "[a-z0-9]{0,200}", inputs).prop_map(
        |(model, version, id, inputs)| {
            let (inputs, raw) = inputs
                .into_iter()
                .map(|((name, datatype, shape), raw)| {
                    let input =
                        InferInputTensor { name, datatype: datatype.into(), shape, ..InferInputTensor::default() };
                    (input, Bytes::from(raw))
                })
                .unzip();
            ModelInferRequest {
                model_name: model,
                model_version: version.into(),
                id,
                inputs,
                raw_input_contents: raw,
                ..ModelInferRequest::default()
            }
        },
    )
}

/// What is not plain, one thing at a time.
fn unplain(question: &mut ModelInferRequest, what: usize) {
    let parameter = InferParameter { parameter_choice: Some(ParameterChoice::BoolParam(true)) };
    match what {
        0 => drop(question.parameters.insert("p".into(), parameter)),
        1 => question.outputs.push(InferRequestedOutputTensor { name: "y".into(), ..Default::default() }),
        2 => question.raw_input_contents.push(Bytes::new()),
        3 => question.id = "i".repeat(257),
        4 => question.model_version = "1.x".into(),
        _ => {
            let input = InferInputTensor { name: "x".into(), datatype: "FP32".into(), ..Default::default() };
            let inputs = [
                InferInputTensor { shape: vec![-1], ..input.clone() },
                InferInputTensor { shape: vec![1; 33], ..input.clone() },
                InferInputTensor { datatype: "FLOAT".into(), ..input.clone() },
                InferInputTensor { parameters: [("p".to_owned(), parameter)].into(), ..input.clone() },
                InferInputTensor { contents: Some(Default::default()), ..input },
            ];
            question.inputs.push(inputs[(what - 5) % 5].clone());
            question.raw_input_contents.push(Bytes::new());
        }
    }
}

proptest! {
    #[test]
    fn a_plain_question_is_read_as_the_generated_code_reads_it(question in plain_question()) {
        let bytes = Bytes::from(question.encode_to_vec());
        let read = read(&bytes, arrival()).expect("it is plain");
        prop_assert_eq!(shown(read), shown(oip::request(question, arrival()).expect("it is right")));
    }

    #[test]
    fn what_is_not_plain_is_left_to_the_generated_code(mut question in plain_question(), what in 0..10usize) {
        unplain(&mut question, what);
        prop_assert!(read(&Bytes::from(question.encode_to_vec()), arrival()).is_none());
    }

    /// Broken messages, and unusual ones: fields in another order, twice, cut off, altered.
    #[test]
    fn whatever_is_read_the_generated_code_would_have_read_alike(
        question in plain_question(), again in plain_question(), cut in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let mut bytes = question.encode_to_vec();
        bytes.extend(again.encode_to_vec());
        bytes.truncate(cut.index(bytes.len() + 1));
        if !bytes.is_empty() {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let bytes = Bytes::from(bytes);
        if let Some(read) = read(&bytes, arrival()) {
            let question = ModelInferRequest::decode(bytes).expect("what was read is a message");
            prop_assert_eq!(shown(read), shown(oip::request(question, arrival()).expect("and a right one")));
        }
    }

    #[test]
    fn an_answer_is_written_as_the_generated_code_writes_it(
        model in "[a-z]{1,128}", numbers in prop::array::uniform4(0..2000u64), build in any::<bool>(), id in "[a-z]{0,200}",
        variant in "[a-z]{0,200}", prediction_id in prop::option::of("[a-z]{1,300}"),
        outputs in prop::collection::vec(("[a-z]{1,200}", prop::collection::vec(0..20usize, 0..5)), 0..4),
        cache in prop::option::of(0..3u64), degraded in any::<bool>(), mark_final in any::<bool>(),
    ) {
        let [major, minor, patch, last] = numbers;
        let version = format!("{major}.{minor}.{patch}.{}", if build { last } else { 0 }).parse().expect("a version");
        let answer = || {
            let outputs = outputs.iter().map(|(name, shape)| {
                let values = vec![0.5_f32; shape.iter().product()];
                Tensor::new(name.as_str().into(), DType::Fp32, shape.as_slice().into(), bytes_from(values)).expect("right")
            });
            let mut answer = answers::answer(outputs.collect());
            answer.served.model = ModelName::new(&model).expect("a name");
            answer.served.version = version;
            answer.served.variant = variant.as_str().into();
            answer.prediction_ids = prediction_id.iter().cloned().collect();
            answer.cache = cache.map(|which| match which {
                0 => CacheUse::Miss,
                1 => CacheUse::Bypass,
                _ => CacheUse::Hit { age: Duration::from_millis(123_456) },
            });
            answer.degraded = if degraded { vec!["a reason", "another"] } else { vec![] };
            answer
        };
        let reply = || Reply { id: id.clone(), mark_final, ..answers::reply(Form::Raw) };
        let mut frame = write(&answer(), &reply()).expect("it is raw");
        let room = HEADER_BYTES + room(&answer(), &reply());
        prop_assert!(frame.message().len() <= room, "{} bytes, room for {room}", frame.message().len());
        let frame = frame.finish().expect("it is small");
        prop_assert_eq!(frame[0], 0);
        prop_assert_eq!(u32::from_be_bytes(frame[1..5].try_into().expect("four")) as usize, frame.len() - 5);
        prop_assert_eq!(&frame[5..], &oip::response(answer(), reply()).encode_to_vec()[..]);
    }
}

#[test]
fn contents_are_a_part_of_the_message_that_came() {
    let question = ModelInferRequest {
        inputs: vec![InferInputTensor { datatype: "UINT8".into(), shape: vec![4], ..Default::default() }],
        raw_input_contents: vec![Bytes::from_static(&[1, 2, 3, 4])],
        ..ModelInferRequest::default()
    };
    let bytes = Bytes::from(question.encode_to_vec());
    let (request, _) = read(&bytes, arrival()).expect("it is plain");
    let Data::Tensors(tensors) = request.data else { panic!("tensors were sent") };
    let Contents::Raw(contents) = &tensors[0].contents else { panic!("raw was sent") };
    assert!(bytes.as_ptr_range().contains(&contents.as_ptr()), "copied for nothing");
}

#[test]
fn many_tensors_are_left_to_who_counts_them() {
    let plain = |inputs, contents| {
        let input = InferInputTensor { datatype: "FP32".into(), ..Default::default() };
        let question = ModelInferRequest {
            inputs: vec![input; inputs],
            raw_input_contents: vec![Bytes::new(); contents],
            ..ModelInferRequest::default()
        };
        read(&question.encode_to_vec().into(), arrival()).is_some()
    };
    assert!(plain(PARTS_MAX / 2, PARTS_MAX / 2));
    assert!(!plain(PARTS_MAX / 2 + 1, PARTS_MAX / 2 + 1));
}

#[test]
fn a_number_too_large_is_no_length() {
    // Ten bytes, of which the last has room for one bit: cut to 64 bits it would be 1.
    let name = [&[MODEL_NAME, 0x81][..], &[0x80; 8], &[0x02], b"m"].concat();
    let question = Bytes::from(name);
    assert!(ModelInferRequest::decode(question.clone()).is_err());
    assert!(read(&question, arrival()).is_none());
}

#[test]
fn typed_answers_are_not_plain_unless_they_can_only_be_raw() {
    let tensor = |dtype| Tensor::new("y".into(), dtype, [0].as_slice().into(), Bytes::new()).expect("right");
    let typed = |dtype| write(&answers::answer(vec![tensor(dtype)]), &answers::reply(Form::Typed)).is_some();
    assert!(!typed(DType::Fp32) && typed(DType::Fp16));
}

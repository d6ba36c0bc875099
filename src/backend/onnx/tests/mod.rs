//! The backend against the real library and the fixtures' answers.

mod bound;
pub mod build;

use std::{
    sync::mpsc::sync_channel,
    thread::Builder,
    time::{Duration, Instant},
};

use bytes::Bytes;

use self::build::{matrix_info, message, model, node, value_info};
use super::*;
use crate::{
    backend::{
        Call, View,
        testing::{check_examples, examples, fixture, inputs, open_bytes, open_dir, open_fixture, run, session, view},
    },
    model::{Parameters, Shape, Tensor},
};

fn tensor(dtype: DType, shape: &[usize], data: &[u8]) -> Tensor {
    Tensor::new("x".into(), dtype, Shape::from_slice(shape), Bytes::copy_from_slice(data)).expect("it fits")
}

#[test]
fn every_type_comes_out_bit_by_bit_as_it_went_in() {
    for (name, dtype) in [
        ("bool", DType::Bool),
        ("uint8", DType::Uint8),
        ("uint16", DType::Uint16),
        ("uint32", DType::Uint32),
        ("uint64", DType::Uint64),
        ("int8", DType::Int8),
        ("int16", DType::Int16),
        ("int32", DType::Int32),
        ("int64", DType::Int64),
        ("float16", DType::Fp16),
        ("bfloat16", DType::Bf16),
        ("float", DType::Fp32),
        ("double", DType::Fp64),
        ("string", DType::Bytes),
    ] {
        let executable = open_fixture(Platform::Onnx, &format!("onnx/identity_{name}.onnx"));
        let signature = executable.signature();
        assert_eq!((signature.inputs[0].dtype, &signature.inputs[0].shape[..]), (dtype, &[-1, -1][..]));
        check_examples(&executable, &examples(&format!("onnx/identity_{name}.json")), true);
        let mut session = session(&executable);
        let mut round_trip = |shape: &[usize], data: &[u8]| {
            let input = tensor(dtype, shape, data);
            let outputs =
                run(&mut *session, signature, std::slice::from_ref(&input), &Parameters::default()).expect("it runs");
            assert_eq!((&outputs[0].shape, &outputs[0].data), (&input.shape, &input.data), "{name}");
        };
        round_trip(&[0, 3], &[]);
        let Some(size) = dtype.size() else {
            round_trip(&[1, 3], b"\x03\0\0\0a\0b\0\0\0\0\x02\0\0\0\xff\0");
            continue;
        };
        for columns in [1, 7, 5000] {
            // Every bit pattern travels, NaN's too; a BOOL is 0 or 1.
            let bytes = (0..2 * columns * size)
                .map(|place| if dtype == DType::Bool { place as u8 & 1 } else { (place * 37) as u8 });
            round_trip(&[2, columns], &bytes.collect::<Vec<u8>>());
        }
    }
}

#[test]
fn bytes_at_any_address_are_taken() {
    let executable = open_fixture(Platform::Onnx, "onnx/identity_double.onnx");
    let mut session = session(&executable);
    let room: Vec<u8> = (0..200u8).collect();
    for offset in 0..8 {
        let view = View { dtype: DType::Fp64, shape: &[2, 8], data: &room[offset..offset + 128] };
        let call = Call { inputs: &[view], outputs: &[0], parameters: &Parameters::default() };
        assert_eq!(session.run(&call).expect("it runs")[0].data, view.data);
    }
}

#[test]
fn the_fixtures_answer_as_the_reference_does() {
    for name in ["tiny", "scalar", "shared_input", "lstm_sequence_first", "zipmap", "div", "slow", "loop_forever"] {
        let executable = open_fixture(Platform::Onnx, &format!("onnx/{name}.onnx"));
        check_examples(&executable, &examples(&format!("onnx/{name}.json")), true);
    }
}

#[test]
fn the_sample_stores_models_answer_as_their_examples_say() {
    for name in ["momentum-lstm", "statistical-signal"] {
        let version = format!("../../model-store/{name}/1.0.0");
        let executable = open_dir(Platform::Onnx, &fixture(&version), "").expect("it opens");
        check_examples(&executable, &examples(&format!("{version}/example.json")), true);
    }
}

#[test]
fn an_output_that_cannot_be_sent_is_named_with_its_fix() {
    let executable = open_fixture(Platform::Onnx, "onnx/zipmap.onnx");
    assert_eq!(executable.signature().outputs.len(), 1);
    let note = &executable.notes()[0];
    assert!(note.contains("'output_probability' is a sequence of maps") && note.contains("'zipmap': False"), "{note}");
}

#[test]
fn division_by_what_a_request_brings_is_noted() {
    let executable = open_fixture(Platform::Onnx, "onnx/div.onnx");
    assert!(executable.notes()[0].contains("integer Div by a divisor from the request"));
    assert!(open_fixture(Platform::Onnx, "onnx/tiny.onnx").notes().is_empty());
}

#[test]
fn batching_follows_the_first_dimension() {
    let executable = open_fixture(Platform::Onnx, "onnx/shared_input.onnx");
    let batch: Vec<bool> = executable.signature().inputs.iter().map(|spec| spec.batch).collect();
    assert_eq!(batch, [true, false]);
    assert!(!open_fixture(Platform::Onnx, "onnx/scalar.onnx").signature().batches());
    assert!(executable.library().starts_with("onnxruntime 1."));
}

#[test]
fn external_data_beside_the_model_is_read() {
    let executable = open_dir_of(&["external.onnx", "weights.bin"]).expect("a plain file of the version");
    check_examples(&executable, &examples("onnx/external.json"), true);
}

#[test]
fn external_data_is_refused_before_the_library_sees_it() {
    assert_eq!(open_dir_of(&["external.onnx"]).err().map(|error| error.reason()), Some("EXTERNAL_DATA_REFUSED"));
    let dir = tempfile::tempdir().expect("a temporary folder");
    std::fs::copy(fixture("onnx/external.onnx"), dir.path().join("model.onnx")).expect("a copy");
    std::os::unix::fs::symlink(fixture("onnx/weights.bin"), dir.path().join("weights.bin")).expect("a link");
    let error = open_dir(Platform::Onnx, dir.path(), "").err().expect("a link");
    assert!(error.message().contains("symbolic link"), "{error}");
}

fn open_dir_of(files: &[&str]) -> Result<Arc<dyn Executable>> {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for (place, file) in files.iter().enumerate() {
        let name = if place == 0 { "model.onnx" } else { file };
        std::fs::copy(fixture("onnx").join(file), dir.path().join(name)).expect("a copy");
    }
    open_dir(Platform::Onnx, dir.path(), "")
}

#[test]
fn a_stop_ends_the_run_and_the_session_runs_on() {
    let executable = open_fixture(Platform::Onnx, "onnx/loop_forever.onnx");
    let example = &examples("onnx/loop_forever.json")[0];
    let good = inputs(example, executable.signature());
    let bad = vec![good[0].clone(), tensor(DType::Int64, &[1, 1], &424_242i64.to_le_bytes())];
    let mut session = session(&executable);
    let stopper = session.stopper().expect("it can be stopped");
    // One that comes while nothing runs harms nothing.
    stopper.stop();
    run(&mut *session, executable.signature(), &good, &Parameters::default()).expect("it runs");
    let (ended, end) = sync_channel(1);
    let signature = executable.signature().clone();
    let runner = Builder::new().name("runner".into());
    let runner = runner.spawn(move || {
        let outcome = run(&mut *session, &signature, &bad, &Parameters::default());
        ended.send(outcome.map(|_| ())).expect("somebody waits");
        run(&mut *session, &signature, &good, &Parameters::default()).map(|_| ())
    });
    let deadline = Instant::now() + Duration::from_secs(20);
    let outcome = loop {
        // The first stop may come before the run has begun.
        match end.recv_timeout(Duration::from_millis(50)) {
            Ok(outcome) => break outcome,
            Err(_) => stopper.stop(),
        }
        assert!(Instant::now() < deadline, "the run did not end");
    };
    assert_eq!(outcome.expect_err("it was stopped").reason(), "RUN_STOPPED");
    runner.expect("a thread").join().expect("no panic").expect("the session runs on");
}

#[test]
fn four_threads_on_one_copy_of_the_weights_answer_alike() {
    let executable = open_fixture(Platform::Onnx, "onnx/tiny.onnx");
    let all: Vec<Vec<Tensor>> =
        examples("onnx/tiny.json").iter().map(|example| inputs(example, executable.signature())).collect();
    let answer = |session: &mut dyn Session, place: usize| {
        run(session, executable.signature(), &all[place % all.len()], &Parameters::default()).expect("it runs")
    };
    let wanted: Vec<_> = (0..all.len()).map(|place| answer(&mut *session(&executable), place)).collect();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut session = session(&executable);
                for place in 0..2000 {
                    assert_eq!(answer(&mut *session, place), wanted[place % all.len()]);
                }
            });
        }
    });
}

#[test]
fn sessions_share_one_copy_of_the_weights() {
    // y = x W, W of 5 MiB.
    let weights = message(&[(8, b"w"), (9, &vec![0; 1024 * 1280 * 4])], &[(1, 1024), (1, 1280), (2, 1)]);
    let (x, y) = (matrix_info("x", 1024), matrix_info("y", 1280));
    let product = node("MatMul", &["x", "w"], "y");
    let graph = message(&[(2, b"g"), (1, &product), (5, &weights), (11, &x), (12, &y)], &[]);
    let executable = open_bytes(Platform::Onnx, &model(&graph), "").expect("a model");
    let input = tensor(DType::Fp32, &[1, 1024], &[0; 4096]);
    let before = resident_bytes();
    let mut sessions: Vec<_> = (0..40).map(|_| session(&executable)).collect();
    for session in &mut sessions {
        run(&mut **session, executable.signature(), std::slice::from_ref(&input), &Parameters::default())
            .expect("it runs");
    }
    // Forty copies would be 200 MiB. Other tests run beside this one, so the bound is wide.
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 60 << 20, "{grown} bytes for 40 sessions");
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: usize = statm.split(' ').nth(1).expect("resident").parse().expect("a number");
    pages * 4096
}

#[test]
fn an_answer_outlives_session_and_model() {
    let executable = open_fixture(Platform::Onnx, "onnx/identity_float.onnx");
    let input = tensor(DType::Fp32, &[4, 4096], &[7; 4 * 4 * 4096]);
    let outputs =
        run(&mut *session(&executable), executable.signature(), std::slice::from_ref(&input), &Parameters::default());
    drop(executable);
    assert_eq!(outputs.expect("it runs")[0].data, input.data);
}

#[test]
fn an_input_that_is_also_the_output_is_copied() {
    let info = value_info("x", 1);
    let bytes = model(&message(&[(2, b"g"), (11, &info), (12, &info)], &[]));
    let executable = open_bytes(Platform::Onnx, &bytes, "").expect("a model of nothing");
    let input = tensor(DType::Fp32, &[4096], &[7; 4 * 4096]);
    let outputs =
        run(&mut *session(&executable), executable.signature(), std::slice::from_ref(&input), &Parameters::default())
            .expect("it runs");
    assert_eq!(outputs[0].data, input.data);
    assert!(!input.data.as_ptr_range().contains(&outputs[0].data.as_ptr()), "it is the caller's memory");
}

#[test]
fn what_the_library_refuses_is_said_without_paths() {
    let infos = |operator: &str| {
        let graph = message(
            &[(2, b"g"), (1, &node(operator, &["x"], "y")), (11, &value_info("x", 1)), (12, &value_info("y", 1))],
            &[],
        );
        open_bytes(Platform::Onnx, &model(&graph), "").err().expect("it does not load")
    };
    let error = infos("Frobnicate");
    assert_eq!(error.reason(), "UNSUPPORTED_OPERATOR");
    assert!(error.message().contains("Frobnicate"), "{error}");
    for garbage in [&b"garbage"[..], b"", &[0x3a, 0xff, 0xff, 0xff, 0xff, 0x0f], &model(b"")] {
        let error = open_bytes(Platform::Onnx, garbage, "").err().expect("no model");
        assert_eq!(error.reason(), LOAD_FAILED, "{error}");
        assert!(!error.message().contains('/'), "{error}");
    }
    let executable = open_fixture(Platform::Onnx, "onnx/shared_input.onnx");
    let mut session = session(&executable);
    let inputs = [tensor(DType::Fp32, &[1, 4], &[0; 16]), tensor(DType::Fp32, &[3], &[0; 12])];
    let error = run(&mut *session, executable.signature(), &inputs, &Parameters::default()).expect_err("3 is not 4");
    assert_eq!(error.reason(), "BACKEND_FAILED");
    assert!(error.message().len() < 260 && !error.message().contains('/'), "{error}");
}

#[test]
fn only_the_outputs_asked_for_come_in_that_order() {
    let executable = open_fixture(Platform::Onnx, "onnx/tiny.onnx");
    let inputs = inputs(&examples("onnx/tiny.json")[0], executable.signature());
    let views: Vec<View<'_>> = inputs.iter().map(view).collect();
    let mut session = session(&executable);
    for outputs in [&[1][..], &[1, 0], &[]] {
        let call = Call { inputs: &views, outputs, parameters: &Parameters::default() };
        let names: Vec<_> = session.run(&call).expect("it runs").iter().map(|tensor| tensor.name.clone()).collect();
        let wanted: Vec<_> = outputs.iter().map(|&place| executable.signature().outputs[place].name.clone()).collect();
        assert_eq!(names, wanted);
    }
}

//! The backend against the real library and the fixtures' answers.

use bytes::Bytes;

use super::*;
use crate::{
    backend::testing::{
        check_examples, doubles, examples, fixture, inputs, open_bytes, open_fixture, parameter, run, session,
    },
    model::{MissingValue, Shape, Tensor},
};

const FIXTURES: [&str; 6] = ["binary", "categorical", "linear_tree", "multiclass", "rank", "regression"];

fn open(yaml: &str) -> Result<Arc<dyn Executable>> {
    open_bytes(Platform::Lightgbm, &std::fs::read(fixture("lightgbm/binary.txt")).expect("committed"), yaml)
}

fn table(rows: usize) -> Tensor {
    let values = (0..5 * rows).map(|place| (place as f64 * 0.37).sin() * 3.0).collect();
    Tensor::from_f64("features".into(), [rows, 5].into_iter().collect::<Shape>(), values)
}

#[test]
fn every_kind_of_answer_is_the_reference_librarys() {
    for name in FIXTURES {
        let executable = open_fixture(Platform::Lightgbm, &format!("lightgbm/{name}.txt"));
        check_examples(&executable, &examples(&format!("lightgbm/{name}.json")), false);
        assert!(executable.library().starts_with("lightgbm 4."));
        assert!(executable.signature().batches() && !executable.gains_by_joining());
    }
}

#[test]
fn outputs_are_named_for_what_they_are() {
    for (name, output, shape) in [
        ("binary", "probability", &[-1][..]),
        ("multiclass", "probability", &[-1, 3]),
        ("regression", "prediction", &[-1]),
        ("rank", "prediction", &[-1]),
    ] {
        let executable = open_fixture(Platform::Lightgbm, &format!("lightgbm/{name}.txt"));
        let spec = &executable.signature().outputs[0];
        assert_eq!((&*spec.name, &spec.shape[..]), (output, shape));
        for (said, named) in [("raw", "raw_score"), ("leaf", "leaf_index"), ("contrib", "contributions")] {
            let answer =
                run(&mut *session(&executable), executable.signature(), &[table(2)], &parameter(PREDICT_TYPE, said));
            assert_eq!(&*answer.expect("it runs")[0].name, named);
        }
    }
}

#[test]
fn rows_come_out_alike_alone_and_together_and_at_any_address() {
    let executable = open("").expect("it opens");
    let mut session = session(&executable);
    let mut answer = |input: &Tensor, said: &str| {
        let inputs = std::slice::from_ref(input);
        run(&mut *session, executable.signature(), inputs, &parameter(PREDICT_TYPE, said)).expect("it runs").remove(0)
    };
    let all = table(9);
    let mut shifted = vec![0u8; 1];
    shifted.extend_from_slice(&all.data);
    let shifted = Tensor { data: Bytes::from(shifted).slice(1..), ..all.clone() };
    for said in ["normal", "raw", "leaf", "contrib"] {
        let together = answer(&all, said);
        assert_eq!(together, answer(&shifted, said));
        let alone: Vec<u8> = (0..9)
            .flat_map(|row| {
                let data = all.data.slice(row * 40..(row + 1) * 40);
                answer(&Tensor { shape: Shape::from_slice(&[1, 5]), data, ..all.clone() }, said).data.to_vec()
            })
            .collect();
        assert_eq!(alone, together.data);
        let none = answer(&Tensor { shape: Shape::from_slice(&[0, 5]), data: Bytes::new(), ..all.clone() }, said);
        assert_eq!((none.shape[0], none.data.len()), (0, 0));
    }
}

#[test]
fn contributions_add_up_to_the_raw_score() {
    let executable = open("").expect("it opens");
    let mut session = session(&executable);
    let mut answer = |said: &str| {
        let answer = run(&mut *session, executable.signature(), &[table(6)], &parameter(PREDICT_TYPE, said));
        doubles(&answer.expect("it runs")[0])
    };
    for (parts, score) in answer("contrib").chunks_exact(6).zip(answer("raw")) {
        assert!((parts.iter().sum::<f64>() - score).abs() < 1e-12);
    }
}

#[test]
fn what_is_declared_names_the_columns() {
    let yaml = "
inputs: [{ name: x, dtype: FP64, shape: [-1, 5], feature_names: [f0, f1, rsi, f3, f4], features: { rsi: { missing: nan } } }]
outputs: [{ name: score, dtype: FP64, shape: [-1] }]";
    let executable = open(yaml).expect("it agrees");
    let input = &executable.signature().inputs[0];
    assert_eq!((&*input.name, &*input.feature_names[2], input.widens), ("x", "rsi", true));
    assert_eq!(input.missing[2], Some(MissingValue::Nan));
    let answer = run(&mut *session(&executable), executable.signature(), &[table(1)], &Parameters::default());
    assert_eq!(&*answer.expect("it runs")[0].name, "score");
    for (wrong, says) in [
        ("feature_names: [f1, f0, f2, f3, f4]", "'f1' is column 0 here and column 1 in model.txt"),
        ("feature_names: [a, b]", "2 feature_names"),
    ] {
        let yaml = format!("inputs: [{{ name: x, dtype: FP64, shape: [-1, 5], {wrong} }}]");
        let error = open(&yaml).err().expect("a mistake");
        assert!(error.message().contains(says), "{error}");
    }
    let error = open("inputs: [{ name: x, dtype: FP32, shape: [-1, 5] }]").err().expect("doubles");
    assert_eq!(error.reason(), "INVALID_MANIFEST");
}

#[test]
fn wrong_parameters_are_refused_before_anything_runs() {
    let executable = open("").expect("it opens");
    for wrong in ["", "Raw", "proba", "predict_disable_shape_check=true"] {
        let error = executable.check_parameters(&parameter(PREDICT_TYPE, wrong)).expect_err(wrong);
        assert!(error.message().contains("normal, raw, leaf or contrib"), "{error}");
    }
    executable.check_parameters(&parameter("predict_disable_shape_check", "true")).expect("an attribute, not ours");
    let linear = open_fixture(Platform::Lightgbm, "lightgbm/linear_tree.txt");
    let error = linear.check_parameters(&parameter(PREDICT_TYPE, "contrib")).expect_err("not for linear trees");
    assert_eq!(error.code(), Code::FailedPrecondition);
}

#[test]
fn what_is_no_text_model_is_never_opened() {
    for (bytes, reason) in [
        (&b"\x80\x04\x95"[..], "UNSAFE_FORMAT"),
        (b"PK\x03\x04", "UNSAFE_FORMAT"),
        (b"\xff\xfe", LOAD_FAILED),
        (b"", LOAD_FAILED),
        (b"tree\n", LOAD_FAILED),
    ] {
        let error = open_bytes(Platform::Lightgbm, bytes, "").err().expect("no model");
        assert_eq!((error.reason(), error.code()), (reason, Code::FailedPrecondition), "{error}");
    }
}

#[test]
fn the_check_lets_nothing_through_that_the_library_does_not_survive() {
    let mut random = fastrand::Rng::with_seed(7);
    let mut opened = 0;
    for name in FIXTURES {
        let text = std::fs::read(fixture(&format!("lightgbm/{name}.txt"))).expect("committed");
        let example = &examples(&format!("lightgbm/{name}.json"))[1];
        let trees_end = text.windows(12).position(|window| window == b"end of trees").expect("it ends");
        let cuts = (0..100).map(|cut| text[..cut * text.len() / 100].to_vec());
        let changes: Vec<Vec<u8>> = (0..200)
            .map(|_| {
                let mut changed = text.clone();
                // Where damage does harm, and with what looks like a number.
                changed[random.usize(..trees_end)] = b"0123456789- .=\n"[random.usize(..15)];
                changed
            })
            .collect();
        for damaged in cuts.chain(changes) {
            // What passes must run: a crash or a hang here is a hole in the check.
            let Ok(executable) = open_bytes(Platform::Lightgbm, &damaged, "") else {
                continue;
            };
            opened += 1;
            let inputs = inputs(example, executable.signature());
            for said in ["normal", "raw", "leaf", "contrib"] {
                let said = parameter(PREDICT_TYPE, said);
                if executable.check_parameters(&said).is_ok() {
                    run(&mut *session(&executable), executable.signature(), &inputs, &said).expect("it runs");
                }
            }
        }
    }
    assert!(opened > 0, "a changed digit of a threshold is a model like another");
}

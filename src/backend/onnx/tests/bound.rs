//! The calls by which sessions on a GPU run, made on the CPU: bound inputs and outputs, in the library's own memory.

use super::*;
use crate::{backend::testing::manifest, model::Manifest};

/// An opened model whose sessions are bound.
struct Bound(Onnx);

impl Executable for Bound {
    fn signature(&self) -> &Signature {
        self.0.signature()
    }

    fn library(&self) -> &str {
        self.0.library()
    }

    fn session(&self) -> Result<Box<dyn Session>> {
        Ok(Box::new(session::OnnxSession::bound_on_the_cpu(self.0.model.clone(), self.0.signature.clone())?))
    }
}

fn open_bound(artifact: &[u8]) -> Arc<dyn Executable> {
    let dir = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(dir.path().join("model.onnx"), artifact).expect("a file");
    let manifest: Manifest = manifest(Platform::Onnx, "");
    let native_dir = crate::backend::testing::native_dir();
    let spec = OpenSpec { dir: dir.path(), manifest: &manifest, native_dir: &native_dir };
    Arc::new(Bound(Onnx::open(spec, Device::Cpu).expect("it opens")))
}

fn bound_fixture(name: &str) -> Arc<dyn Executable> {
    open_bound(&std::fs::read(fixture(&format!("onnx/{name}.onnx"))).expect("the fixture is committed"))
}

#[test]
fn a_bound_session_answers_as_the_reference_does() {
    for name in ["tiny", "scalar", "shared_input", "lstm_sequence_first", "zipmap", "div"] {
        check_examples(&bound_fixture(name), &examples(&format!("onnx/{name}.json")), true);
    }
}

#[test]
fn every_type_goes_through_bound_memory_bit_by_bit() {
    let names = [
        "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "bfloat16",
        "float", "double", "string",
    ];
    for name in names {
        let executable = bound_fixture(&format!("identity_{name}"));
        check_examples(&executable, &examples(&format!("onnx/identity_{name}.json")), true);
        let (mut session, dtype) = (session(&executable), executable.signature().inputs[0].dtype);
        // Longer and shorter by turns: the memory is kept, and what is beyond the end is nobody's.
        for columns in [3, 5000, 1, 0, 700] {
            let data: Vec<u8> = match dtype.size() {
                Some(size) => (0..2 * columns * size).map(|place| place as u8 & 1).collect(),
                None => (0..2 * columns).flat_map(|place| [1, 0, 0, 0, place as u8]).collect(),
            };
            let input = tensor(dtype, &[2, columns], &data);
            let inputs = std::slice::from_ref(&input);
            let outputs = run(&mut *session, executable.signature(), inputs, &Parameters::default()).expect("it runs");
            assert_eq!((&outputs[0].shape, &outputs[0].data), (&input.shape, &input.data), "{name}");
        }
    }
}

#[test]
fn an_answer_is_not_changed_by_the_next_run() {
    let executable = bound_fixture("identity_double");
    let mut session = session(&executable);
    let mut answers = Vec::new();
    for round in 0..4u8 {
        let input = tensor(DType::Fp64, &[2, 1000], &vec![round; 16_000]);
        let outputs = run(&mut *session, executable.signature(), &[input], &Parameters::default()).expect("it runs");
        answers.extend(outputs);
    }
    drop(session);
    drop(executable);
    for (round, answer) in answers.iter().enumerate() {
        assert!(answer.data.iter().all(|&byte| usize::from(byte) == round), "round {round}");
    }
}

#[test]
fn a_bound_session_goes_on_after_a_run_that_failed() {
    let executable = bound_fixture("tiny");
    let mut session = session(&executable);
    let example = &examples("onnx/tiny.json")[0];
    let good = inputs(example, executable.signature());
    let first = run(&mut *session, executable.signature(), &good, &Parameters::default()).expect("it runs");
    for _ in 0..3 {
        // Of a width that the product does not take: found while it runs, with inputs bound.
        let bad = tensor(DType::Fp32, &[1, 3], &[0; 12]);
        let error =
            run(&mut *session, executable.signature(), &[bad], &Parameters::default()).expect_err("another width");
        assert_eq!(error.reason(), "BACKEND_FAILED", "{error}");
        let again = run(&mut *session, executable.signature(), &good, &Parameters::default()).expect("it runs");
        assert_eq!(again[0].data, first[0].data);
    }
}

#[test]
fn only_the_outputs_asked_for_come_from_a_bound_session() {
    let executable = bound_fixture("shared_input");
    let example = &examples("onnx/shared_input.json")[0];
    let (signature, given) = (executable.signature(), inputs(example, executable.signature()));
    let views: Vec<View<'_>> = given.iter().map(view).collect();
    let mut session = session(&executable);
    let last = signature.outputs.len() - 1;
    for outputs in [vec![last], vec![], vec![last]] {
        let call = Call { inputs: &views, outputs: &outputs, parameters: &Parameters::default() };
        let answer = session.run(&call).expect("it runs");
        let names: Vec<_> = answer.iter().map(|output| output.name.clone()).collect();
        assert_eq!(names, outputs.iter().map(|&place| signature.outputs[place].name.clone()).collect::<Vec<_>>());
    }
}

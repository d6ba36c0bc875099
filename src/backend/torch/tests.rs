//! The whole backend on the fixtures of the repository. It needs libtorch and the built plugin: where they are not there the
//! tests fail and say how to get them.

use std::path::Path;

use super::*;
use crate::{
    backend::testing::{check_examples, examples, fixture, native_dir, open_bytes},
    model::{Device, ExampleFile, Manifest, ModelYaml, Parameters, Platform, VersionYaml},
};

fn read(name: &str) -> Vec<u8> {
    std::fs::read(fixture(&format!("torch/{name}.pt"))).expect("the fixture is committed")
}

fn try_open(archive: &[u8], yaml: &str) -> Result<Arc<dyn Executable>> {
    let opened = open_bytes(Platform::Torchscript, archive, yaml);
    if let Err(error) = &opened
        && error.reason() == crate::backend::LIBRARY_MISSING
    {
        panic!("{error} (this test needs both: `make plugin`)");
    }
    opened
}

fn opened(name: &str) -> Arc<dyn Executable> {
    try_open(&read(name), &yaml_of(name)).expect(name)
}

fn yaml_of(name: &str) -> String {
    std::fs::read_to_string(fixture(&format!("torch/{name}.yaml"))).expect("the fixture is committed")
}

/// The fixture `raises`, of another type in and out, whose `forward` is that.
fn written(forward: &str, dtype: DType, shape: &str) -> Arc<dyn Executable> {
    let mut archive = read("raises");
    let find = |archive: &[u8], text: &[u8]| {
        archive.windows(text.len()).position(|window| window == text).expect("it is in the fixture")
    };
    let start = find(&archive, b"class Raises(Module)");
    let body = start + find(&archive[start..], b"    x: Tensor) -> Tensor:");
    let end = body + find(&archive[body..], b"return torch.mul(x, 2.)\n") + 24;
    let old = crc32::crc32(0, &archive[start..end]).to_le_bytes();
    let room = end - body;
    archive[body..end].copy_from_slice(format!("{forward:<width$}\n", width = room - 1).as_bytes());
    let new = crc32::crc32(0, &archive[start..end]).to_le_bytes();
    let directory = archive.windows(4).position(|window| window == b"PK\x01\x02").expect("a directory");
    let at = directory + find(&archive[directory..], &old);
    archive[at..at + 4].copy_from_slice(&new);
    let spec = |name: &str| format!("[{{ name: {name}, dtype: {dtype}, shape: {shape} }}]");
    let yaml = format!("inputs: {}\noutputs: {}", spec("x"), spec("y"));
    try_open(&archive, &yaml).expect(forward)
}

fn run(session: &mut dyn Session, inputs: &[&[f32]], outputs: &[usize]) -> Result<Vec<Tensor>> {
    let shapes: Vec<[usize; 2]> = inputs.iter().map(|input| [input.len() / 4, 4]).collect();
    let views = inputs.iter().zip(&shapes).map(|(input, shape)| View {
        dtype: DType::Fp32,
        shape,
        data: bytemuck::cast_slice(input),
    });
    run_views(session, &views.collect::<Vec<_>>(), outputs)
}

fn run_views(session: &mut dyn Session, inputs: &[View<'_>], outputs: &[usize]) -> Result<Vec<Tensor>> {
    session.run(&Call { inputs, outputs, parameters: &Parameters::default() })
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.data.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().expect("chunks of 4"))).collect()
}

fn plain_answer(x: &[f32]) -> Vec<f32> {
    x.chunks_exact(4)
        .flat_map(|x| {
            [-x[0] - 0.75 * x[1] - 0.5 * x[2] - 0.25 * x[3] + 0.5, 0.25 * x[1] + 0.5 * x[2] + 0.75 * x[3] - 0.5]
        })
        .collect()
}

#[test]
fn one_tensor_in_and_out() {
    let opened = opened("plain");
    assert_eq!(opened.library(), "libtorch 2.13.0");
    assert!(opened.signature().batches());
    let mut session = opened.session().expect("a session");
    let x = [1.0, 2.0, 3.0, 4.0, -0.5, 0.25, 8.0, -16.0];
    // The first run has copies of its inputs, later ones the memory itself.
    for _ in 0..3 {
        let answer = run(&mut *session, &[&x], &[0]).expect("a run");
        assert_eq!((&*answer[0].name, &answer[0].shape[..]), ("y", &[2, 2][..]));
        assert_eq!(floats(&answer[0]), plain_answer(&x));
    }
    let empty = run(&mut *session, &[&[]], &[0]).expect("no rows are a batch, too");
    assert_eq!(empty[0].shape[..], [0, 2]);
}

#[test]
fn a_tuple_by_place_a_dictionary_by_name() {
    let x = [1.0, 2.0, 3.0, 4.0];
    let tuple = opened("tuple_out");
    let answer = run(&mut *tuple.session().unwrap(), &[&x], &[1, 0]).expect("a run");
    assert_eq!((&*answer[0].name, floats(&answer[0])), ("mean", vec![2.5]));
    assert_eq!((&*answer[1].name, floats(&answer[1])), ("sum", vec![10.0]));

    let dict = opened("dict_out");
    let answer = run(&mut *dict.session().unwrap(), &[&x, &[1.0; 4]], &[1]).expect("a run");
    assert_eq!((&*answer[0].name, floats(&answer[0])), ("difference", vec![0.0, 1.0, 2.0, 3.0]));

    let dict_in = opened("dict_in");
    let answer = run(&mut *dict_in.session().unwrap(), &[&x, &[1.0; 4]], &[0]).expect("a run");
    assert_eq!(floats(&answer[0]), [3.0, 4.0, 5.0, 6.0]);
}

#[test]
fn names_that_meet_the_arguments_decide_their_order() {
    let yaml = "
inputs: [{ name: b, dtype: FP32, shape: [-1, 4] }, { name: a, dtype: FP32, shape: [-1, 4] }]
outputs: [{ name: difference, dtype: FP32, shape: [-1, 4] }]";
    let dict = try_open(&read("dict_out"), yaml).expect("a subset of the outputs is enough");
    let answer = run(&mut *dict.session().unwrap(), &[&[1.0; 4], &[5.0; 4]], &[0]).expect("a run");
    assert_eq!(floats(&answer[0]), [4.0; 4], "a - b, whatever the order they are declared in");
}

#[test]
fn misaligned_bytes_are_right_and_large_outputs_outlive_their_session() {
    let opened = opened("raises");
    let mut session = opened.session().expect("a session");
    let values: Vec<f32> = (0..4096).map(|value| value as f32).collect();
    let mut bytes = vec![0u8];
    bytes.extend_from_slice(bytemuck::cast_slice(&values));
    let offset = usize::from(bytes.as_ptr().addr().is_multiple_of(2));
    bytes.rotate_left(1 - offset);
    let mut answers = Vec::new();
    for _ in 0..2 {
        let view = View { dtype: DType::Fp32, shape: &[1024, 4], data: &bytes[offset..][..4 * values.len()] };
        assert!(!is_aligned(&view));
        answers.extend(run_views(&mut *session, &[view], &[0]).expect("a run"));
    }
    drop((session, opened));
    for answer in answers {
        assert!(floats(&answer).iter().zip(&values).all(|(y, x)| *y == 2.0 * x));
    }
}

#[test]
fn a_forward_that_raises_is_a_short_error_and_the_next_run_is_right() {
    let opened = opened("raises");
    let mut session = opened.session().expect("a session");
    let error = run(&mut *session, &[&[-2e6, 0.0, 0.0, 0.0]], &[0]).expect_err("it raises");
    assert_eq!((error.code(), error.reason()), (Code::Internal, "BACKEND_FAILED"));
    assert!(error.message().contains("x is below -1000000"), "{error}");
    assert!(error.message().len() <= 300 && !error.message().contains('/'), "{error}");
    assert_eq!(floats(&run(&mut *session, &[&[1.0; 4]], &[0]).expect("a run")[0]), [2.0; 4]);
}

#[test]
fn what_is_declared_wrong_is_said() {
    let declared =
        |input: &str, output: &str| format!("inputs: [{{ name: x, {input} }}]\noutputs: [{{ name: y, {output} }}]");
    let right = "dtype: FP32, shape: [-1, 4]";
    let says = |name: &str, yaml: &str, expected: &str| {
        let error = match try_open(&read(name), yaml) {
            Ok(opened) => run(&mut *opened.session().unwrap(), &[&[1.0; 4]], &[0]).expect_err(expected),
            Err(error) => error,
        };
        assert!(error.message().contains(expected), "{error}");
    };
    says(
        "plain",
        &declared(right, "dtype: FP64, shape: [-1, 2]"),
        "'y' is declared FP64 [-1, 2], forward returned FP32 [1, 2]",
    );
    says(
        "plain",
        &declared(right, "dtype: FP32, shape: [-1, 3]"),
        "'y' is declared FP32 [-1, 3], forward returned FP32 [1, 2]",
    );
    says(
        "plain",
        &declared("dtype: UINT32, shape: [-1]", "dtype: FP32, shape: [-1]"),
        "'x': TorchScript has no UINT32",
    );
    says(
        "tuple_out",
        &declared(right, "dtype: FP32, shape: [-1]"),
        "forward returned 2 tensors, 1 outputs are declared",
    );
    says("dict_out", &declared(right, right), "1 inputs are declared, forward takes 2: Tensor a, Tensor b");
    says("dict_in", &declared(right, right), "KeyError");
    says("plain", "", "inputs: missing; TorchScript has no names: declare inputs and outputs");
}

#[test]
fn weights_without_code_are_refused() {
    let opened = try_open(&read("not_torchscript"), &yaml_of("not_torchscript"));
    assert_eq!(opened.err().expect("it must be refused").reason(), "UNSAFE_FORMAT");
    let undeclared = try_open(&read("not_torchscript"), "");
    assert_eq!(undeclared.err().expect("it must be refused").reason(), "UNSAFE_FORMAT");
}

#[test]
fn threads_share_one_module_and_answer_alike() {
    let opened = opened("plain");
    let x: Vec<f32> = (0..64).map(|value| value as f32 / 7.0).collect();
    let expected = run(&mut *opened.session().unwrap(), &[&x], &[0]).expect("a run");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut session = opened.session().expect("a session");
                for _ in 0..1000 {
                    assert_eq!(run(&mut *session, &[&x], &[0]).expect("a run"), expected);
                }
            });
        }
    });
}

#[test]
fn every_example_comes_out() {
    for name in ["plain", "tuple_out", "dict_out", "dict_in", "raises"] {
        check_examples(&opened(name), &examples(&format!("torch/{name}.json")), true);
    }
}

#[test]
fn the_transformer_of_the_sample_store_answers_as_its_example_says() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("model-store/volatility-transformer/1.0.0");
    let read = |file: &str| std::fs::read_to_string(dir.join(file)).expect("a file of the repository");
    let version = VersionYaml::parse(&read("version.yaml")).expect("its version.yaml");
    let manifest = Manifest::resolve(Platform::Torchscript, ModelYaml::default(), version).expect("its manifest");
    let spec = OpenSpec { dir: &dir, manifest: &manifest, native_dir: &native_dir() };
    let transformer = open(spec, Device::Cpu);
    let file = ExampleFile::parse(&read("example.json")).expect("its examples");
    let transformer = transformer.expect("it opens");
    // libtorch profiles the first runs and optimises for the next.
    for _ in 0..3 {
        check_examples(&transformer, &file.examples, true);
    }
}

#[test]
fn a_forward_that_writes_into_its_input_does_not_write_into_the_callers() {
    let opened = written("    x: Tensor) -> Tensor:\n    return torch.add_(x, 1.)", DType::Fp32, "[-1, 4]");
    let mut session = opened.session().expect("a session");
    let x = vec![1.0f32; 8];
    for _ in 0..4 {
        assert_eq!(floats(&run(&mut *session, &[&x], &[0]).expect("a run")[0]), [2.0; 8]);
        assert_eq!(x, [1.0; 8]);
    }
}

#[test]
fn every_type_goes_in_and_out_and_a_returned_input_does_not_lie_in_the_callers_memory() {
    for dtype in DType::ALL.into_iter().filter(|&dtype| scalar_type(dtype).is_some()) {
        let opened = written("    x: Tensor) -> Tensor:\n    return x", dtype, "[-1]");
        let mut session = opened.session().expect("a session");
        let mut words: Vec<u64> = vec![0x0001_0001_0101_0100; 1024];
        for _ in 0..3 {
            let before = words.clone();
            let view = View {
                dtype,
                shape: &[8192 / dtype.size().expect("a fixed size")],
                data: bytemuck::cast_slice(&words),
            };
            let answer = run_views(&mut *session, &[view], &[0]).expect("a run").remove(0);
            words.iter_mut().for_each(|word| *word = word.rotate_left(8));
            assert_eq!((answer.dtype, &answer.data[..]), (dtype, bytemuck::cast_slice(&before)));
        }
    }
}

#[test]
fn a_list_of_tensors_goes_in_and_out() {
    let opened = written("    x: List[Tensor]) -> List[Tensor]:\n    return x", DType::Fp32, "[-1, 4]");
    let answer = run(&mut *opened.session().unwrap(), &[&[3.0; 4]], &[0]).expect("a run");
    assert_eq!(floats(&answer[0]), [3.0; 4]);
}

#[test]
fn memory_that_cannot_be_had_is_resource_exhausted() {
    let opened =
        written("    x: Tensor) -> Tensor:\n    return torch.zeros([1000000000000000])", DType::Fp32, "[-1, 4]");
    let error = run(&mut *opened.session().unwrap(), &[&[3.0; 4]], &[0]).expect_err("too much");
    assert_eq!((error.code(), error.reason()), (Code::ResourceExhausted, "MODEL_ALLOCATION"), "{error}");
}

#[test]
fn what_is_missing_is_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let error = library::load(folder.path()).err().expect("nothing is there");
    assert_eq!(error.reason(), crate::backend::LIBRARY_MISSING);
    assert!(error.message().starts_with("libtorch is not in the folder of native libraries (--native-dir"), "{error}");
}

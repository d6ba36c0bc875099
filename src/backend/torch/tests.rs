//! The whole backend on the fixtures of the repository. It needs libtorch and the built plugin: where they are not there the
//! tests fail and say how to get them.

use std::path::PathBuf;

use super::*;
use crate::model::{Manifest, ModelYaml, Parameters, Platform, VersionYaml};

struct Opened {
    executable: Arc<dyn Executable>,
    _folder: tempfile::TempDir,
}

fn manifest(yaml: &str) -> Manifest {
    let model = ModelYaml::parse(yaml).expect("the test's own yaml");
    Manifest::resolve(Platform::Torchscript, model, VersionYaml::default()).expect("the test's own manifest")
}

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/torch")
        .join(name)
}

fn native_dir() -> PathBuf {
    std::env::var_os("SCONCE_NATIVE_DIR").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("native"),
        PathBuf::from,
    )
}

fn try_open(name: &str, yaml: &str) -> Result<Opened> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::copy(fixture(&format!("{name}.pt")), folder.path().join(ARTIFACT)).expect("a fixture of the repository");
    let opened = open(OpenSpec {
        dir: folder.path(),
        manifest: &manifest(yaml),
        native_dir: &native_dir(),
    });
    if let Err(error) = &opened
        && error.reason() == crate::backend::LIBRARY_MISSING
    {
        panic!(
            "{error} (tests need it: `make plugin`, or scripts/native.py torch and cargo build --release -p sconce-torch)"
        );
    }
    Ok(Opened {
        executable: opened?,
        _folder: folder,
    })
}

fn opened(name: &str) -> Opened {
    let yaml = std::fs::read_to_string(fixture(&format!("{name}.yaml"))).expect("a fixture of the repository");
    try_open(name, &yaml).expect(name)
}

fn run(session: &mut dyn Session, inputs: &[&[f32]], outputs: &[usize]) -> Result<Vec<Tensor>> {
    let shapes: Vec<[usize; 2]> = inputs.iter().map(|input| [input.len() / 4, 4]).collect();
    let views: Vec<View<'_>> = inputs
        .iter()
        .zip(&shapes)
        .map(|(input, shape)| View {
            dtype: DType::Fp32,
            shape,
            data: bytemuck::cast_slice(input),
        })
        .collect();
    session.run(&Call {
        inputs: &views,
        outputs,
        parameters: &Parameters::default(),
    })
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor
        .data
        .chunks_exact(4)
        .map(|bytes| f32::from_le_bytes(bytes.try_into().expect("chunks of 4")))
        .collect()
}

fn plain_answer(x: &[f32]) -> Vec<f32> {
    x.chunks_exact(4)
        .flat_map(|x| {
            [
                -x[0] - 0.75 * x[1] - 0.5 * x[2] - 0.25 * x[3] + 0.5,
                0.25 * x[1] + 0.5 * x[2] + 0.75 * x[3] - 0.5,
            ]
        })
        .collect()
}

#[test]
fn one_tensor_in_and_out() {
    let opened = opened("plain");
    assert_eq!(opened.executable.library(), "libtorch 2.13.0");
    assert!(opened.executable.signature().batches());
    let mut session = opened.executable.session().expect("a session");
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
    let answer = run(&mut *tuple.executable.session().unwrap(), &[&x], &[1, 0]).expect("a run");
    assert_eq!((&*answer[0].name, floats(&answer[0])), ("mean", vec![2.5]));
    assert_eq!((&*answer[1].name, floats(&answer[1])), ("sum", vec![10.0]));

    let dict = opened("dict_out");
    let answer = run(&mut *dict.executable.session().unwrap(), &[&x, &[1.0; 4]], &[1]).expect("a run");
    assert_eq!(
        (&*answer[0].name, floats(&answer[0])),
        ("difference", vec![0.0, 1.0, 2.0, 3.0])
    );

    let dict_in = opened("dict_in");
    let answer = run(&mut *dict_in.executable.session().unwrap(), &[&x, &[1.0; 4]], &[0]).expect("a run");
    assert_eq!(floats(&answer[0]), [3.0, 4.0, 5.0, 6.0]);
}

#[test]
fn names_that_meet_the_arguments_decide_their_order() {
    let yaml = "
inputs: [{ name: b, dtype: FP32, shape: [-1, 4] }, { name: a, dtype: FP32, shape: [-1, 4] }]
outputs: [{ name: difference, dtype: FP32, shape: [-1, 4] }]";
    let dict = try_open("dict_out", yaml).expect("a subset of the outputs is enough");
    let answer = run(&mut *dict.executable.session().unwrap(), &[&[1.0; 4], &[5.0; 4]], &[0]).expect("a run");
    assert_eq!(
        floats(&answer[0]),
        [4.0; 4],
        "a - b, whatever the order they are declared in"
    );
}

#[test]
fn misaligned_bytes_are_right_and_large_outputs_outlive_their_session() {
    let opened = opened("raises");
    let mut session = opened.executable.session().expect("a session");
    let values: Vec<f32> = (0..4096).map(|value| value as f32).collect();
    let mut bytes = vec![0u8];
    bytes.extend_from_slice(bytemuck::cast_slice(&values));
    let offset = usize::from(bytes.as_ptr().addr().is_multiple_of(2));
    bytes.rotate_left(1 - offset);
    let mut answers = Vec::new();
    for _ in 0..2 {
        let view = View {
            dtype: DType::Fp32,
            shape: &[1024, 4],
            data: &bytes[offset..][..4 * values.len()],
        };
        assert!(!is_aligned(&view));
        let call = Call {
            inputs: &[view],
            outputs: &[0],
            parameters: &Parameters::default(),
        };
        answers.extend(session.run(&call).expect("a run"));
    }
    drop((session, opened));
    for answer in answers {
        assert!(floats(&answer).iter().zip(&values).all(|(y, x)| *y == 2.0 * x));
    }
}

#[test]
fn a_forward_that_raises_is_a_short_error_and_the_next_run_is_right() {
    let opened = opened("raises");
    let mut session = opened.executable.session().expect("a session");
    let error = run(&mut *session, &[&[-2e6, 0.0, 0.0, 0.0]], &[0]).expect_err("it raises");
    assert_eq!((error.code(), error.reason()), (Code::Internal, "BACKEND_FAILED"));
    assert!(error.message().contains("x is below -1000000"), "{error}");
    assert!(
        error.message().len() <= 300 && !error.message().contains('/'),
        "{error}"
    );
    assert_eq!(
        floats(&run(&mut *session, &[&[1.0; 4]], &[0]).expect("a run")[0]),
        [2.0; 4]
    );
}

#[test]
fn what_is_declared_wrong_is_said() {
    let declared =
        |input: &str, output: &str| format!("inputs: [{{ name: x, {input} }}]\noutputs: [{{ name: y, {output} }}]");
    let right = "dtype: FP32, shape: [-1, 4]";
    let says = |name: &str, yaml: &str, expected: &str| {
        let error = match try_open(name, yaml) {
            Ok(opened) => run(&mut *opened.executable.session().unwrap(), &[&[1.0; 4]], &[0]).expect_err(expected),
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
    says(
        "dict_out",
        &declared(right, right),
        "1 inputs are declared, forward takes 2: Tensor a, Tensor b",
    );
    says("dict_in", &declared(right, right), "KeyError");
    says("plain", "", "inputs: missing");
}

#[test]
fn weights_without_code_are_refused() {
    let yaml = std::fs::read_to_string(fixture("not_torchscript.yaml")).expect("a fixture of the repository");
    let error = try_open("not_torchscript", &yaml).err().expect("it must be refused");
    assert_eq!(error.reason(), "UNSAFE_FORMAT");
}

#[test]
fn threads_share_one_module_and_answer_alike() {
    let opened = opened("plain");
    let x: Vec<f32> = (0..64).map(|value| value as f32 / 7.0).collect();
    let expected = run(&mut *opened.executable.session().unwrap(), &[&x], &[0]).expect("a run");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut session = opened.executable.session().expect("a session");
                for _ in 0..1000 {
                    assert_eq!(run(&mut *session, &[&x], &[0]).expect("a run"), expected);
                }
            });
        }
    });
}

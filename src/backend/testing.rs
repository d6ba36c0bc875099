//! What the backends' unit tests share: the fixtures, opened with the real libraries, and their answers.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{Call, Executable, OpenSpec, Session, View};
use crate::{
    error::Result,
    model::{
        Data, Example, ExampleFile, Manifest, ModelYaml, Parameter, Parameters, Platform, Signature, Tensor,
        VersionYaml,
    },
};

/// `SCONCE_NATIVE_DIR`, or `native/` beside Cargo.toml; a test without libraries fails, it does not pass.
pub fn native_dir() -> PathBuf {
    let set = std::env::var_os("SCONCE_NATIVE_DIR").map(PathBuf::from);
    let dir = set.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("native"));
    assert!(dir.join("onnxruntime").is_dir(), "no native libraries at {}: run `make native`", dir.display());
    dir
}

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

pub fn manifest(platform: Platform, yaml: &str) -> Manifest {
    let model = ModelYaml::parse(yaml).expect("the test's own yaml");
    Manifest::resolve(platform, model, VersionYaml::default()).expect("the test's own manifest")
}

/// Opens what lies in `dir`.
pub fn open_dir(platform: Platform, dir: &Path, yaml: &str) -> Result<Arc<dyn Executable>> {
    super::open(OpenSpec { dir, manifest: &manifest(platform, yaml), native_dir: &native_dir() })
}

/// Opens `artifact` from a folder of its own.
pub fn open_bytes(platform: Platform, artifact: &[u8], yaml: &str) -> Result<Arc<dyn Executable>> {
    let dir = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(dir.path().join(platform.artifact()), artifact).expect("a file");
    open_dir(platform, dir.path(), yaml)
}

pub fn open_fixture(platform: Platform, name: &str) -> Arc<dyn Executable> {
    let artifact = std::fs::read(fixture(name)).expect("the fixture is committed");
    open_bytes(platform, &artifact, "").unwrap_or_else(|error| panic!("{name}: {error:?}"))
}

pub fn session(executable: &Arc<dyn Executable>) -> Box<dyn Session> {
    executable.session().expect("a session")
}

/// Runs with inputs in the signature's order, for all outputs.
pub fn run(
    session: &mut dyn Session,
    signature: &Signature,
    inputs: &[Tensor],
    said: &Parameters,
) -> Result<Vec<Tensor>> {
    let views: Vec<View<'_>> = inputs.iter().map(view).collect();
    let outputs: Vec<usize> = (0..signature.outputs.len()).collect();
    session.run(&Call { inputs: &views, outputs: &outputs, parameters: said })
}

pub fn view(tensor: &Tensor) -> View<'_> {
    View { dtype: tensor.dtype, shape: &tensor.shape, data: &tensor.data }
}

pub fn parameter(name: &str, value: &str) -> Parameters {
    Parameters(vec![(name.into(), Parameter::Text(value.into()))])
}

pub fn examples(name: &str) -> Vec<Example> {
    let text = std::fs::read_to_string(fixture(name)).expect("the fixture is committed");
    ExampleFile::parse(&text).expect("the fixture's own examples").examples
}

/// The inputs of an example, bound to the signature.
pub fn inputs(example: &Example, signature: &Signature) -> Vec<Tensor> {
    match example.request.data().expect("the fixture's own data") {
        Data::Tensors(tensors) => signature.bind(tensors).expect("it fits").inputs,
        _ => panic!("fixtures hold tensors"),
    }
}

/// Runs every example of a fixture and compares what it answers; `by_name` also compares the names of the outputs.
pub fn check_examples(executable: &Arc<dyn Executable>, examples: &[Example], by_name: bool) {
    let mut session = session(executable);
    for example in examples {
        let inputs = inputs(example, executable.signature());
        let said = example.request.parameters().expect("the fixture's own parameters");
        executable.check_parameters(&said).expect("they are right");
        let answers = run(&mut *session, executable.signature(), &inputs, &said).expect("it runs");
        for (place, expected) in example.response.outputs.iter().enumerate() {
            let answer = match by_name {
                true => answers.iter().find(|tensor| *tensor.name == expected.name).expect("an output of that name"),
                false => &answers[place],
            };
            let input = expected.to_input().expect("the fixture's own answer");
            let wanted = input.contents.into_bytes(&expected.name, expected.datatype).expect("bytes");
            assert_eq!(answer.dtype, expected.datatype);
            assert_eq!(&answer.shape[..], &expected.shape[..]);
            if example.rtol == 0.0 && example.atol == 0.0 && !expected.datatype.is_float() {
                assert_eq!(answer.data, wanted, "{}", expected.name);
            } else {
                compare(&doubles(answer), &doubles(&Tensor { data: wanted, ..answer.clone() }), example);
            }
        }
    }
}

fn compare(answers: &[f64], wanted: &[f64], example: &Example) {
    assert_eq!(answers.len(), wanted.len());
    for (answer, wanted) in answers.iter().zip(wanted) {
        let near = (answer - wanted).abs() <= example.atol + example.rtol * wanted.abs();
        assert!(near || answer == wanted || (answer.is_nan() && wanted.is_nan()), "{answer} is not {wanted}");
    }
}

pub fn doubles(tensor: &Tensor) -> Vec<f64> {
    use crate::model::DType::*;
    let chunks = |size| tensor.data.chunks_exact(size);
    macro_rules! read {
        ($kind:ty, $size:expr) => {
            chunks($size)
                .map(|bytes| <$kind>::from_le_bytes(bytes.try_into().expect("chunks")))
                .map(|value| value.into())
                .collect()
        };
    }
    match tensor.dtype {
        Fp64 => read!(f64, 8),
        Fp32 => read!(f32, 4),
        Fp16 => read!(half::f16, 2),
        Bf16 => read!(half::bf16, 2),
        Int32 => read!(i32, 4),
        Int64 => chunks(8).map(|bytes| i64::from_le_bytes(bytes.try_into().expect("chunks")) as f64).collect(),
        other => panic!("{other} is compared bit by bit"),
    }
}

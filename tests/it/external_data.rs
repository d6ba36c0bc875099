//! External data of an ONNX model: only plain files of the version's own folder, by plain relative names.

use std::path::Path;

use tokio::sync::OnceCell;

use crate::{
    harness::{
        Server, Store, fixture,
        tensors::{Form, Values, fixture_examples},
        wire,
    },
    proto::*,
};

/// ModelProto.graph, GraphProto.initializer: the way to the one tensor of the fixture.
const TENSOR: [u32; 2] = [7, 5];
/// TensorProto.external_data; its entries are key = 1 and value = 2.
const EXTERNAL_DATA: u32 = 13;

/// The fixture's model, its weights described by these entries.
fn model(entries: &[(&str, &str)]) -> Vec<u8> {
    let model = std::fs::read(fixture("onnx/external.onnx")).expect("a fixture");
    wire::edit(&model, &TENSOR, &mut |tensor| {
        let mut tensor = wire::without(tensor, EXTERNAL_DATA);
        for (key, value) in entries {
            let entry = [wire::field(1, key.as_bytes()), wire::field(2, value.as_bytes())].concat();
            tensor.extend(wire::field(EXTERNAL_DATA, &entry));
        }
        tensor
    })
}

fn at(location: &str) -> Vec<u8> {
    model(&[("location", location), ("offset", "0"), ("length", "48")])
}

fn weights() -> Vec<u8> {
    std::fs::read(fixture("onnx/weights.bin")).expect("a fixture")
}

/// Each hostile model by name. `outside` is a file with right weights, which no model may read.
fn hostile(outside: &Path) -> Vec<(&'static str, Vec<u8>)> {
    let outside = outside.to_str().expect("UTF-8");
    let placed =
        |offset: &str, length: &str| model(&[("location", "weights.bin"), ("offset", offset), ("length", length)]);
    vec![
        ("above", at("../weights.bin")),
        ("far-above", at("../../../../../../../../../../etc/passwd")),
        ("absolute", at(outside)),
        ("passwd", at("/etc/passwd")),
        ("through-a-folder", at("sub/../weights.bin")),
        ("out-through-a-folder", at("sub/../../weights.bin")),
        ("dot", at("./weights.bin")),
        ("backslash", at("..\\weights.bin")),
        ("a-folder", at("sub")),
        ("missing", at("no-such-file")),
        ("nul", at("weights.bin\0")),
        ("empty", at("")),
        ("memory", at("*/_ORT_MEM_ADDR_/*")),
        ("url", at("file:///etc/passwd")),
        ("past-the-end", placed("1", "48")),
        ("far-past-the-end", placed("1048576", "48")),
        ("negative", placed("-16", "48")),
        ("huge-offset", placed("9223372036854775807", "48")),
        ("huge-length", placed("0", "9223372036854775807")),
        ("wrapping", placed("18446744073709551600", "64")),
        ("other-key", model(&[("location", "weights.bin"), ("basepath", "/etc")])),
        ("twice", model(&[("location", "weights.bin"), ("location", "/etc/passwd")])),
    ]
}

/// Links in the store: what they name, and how.
const LINKED: [&str; 4] = ["symbolic-link-out", "symbolic-link-in", "symbolic-folder", "hard-link"];

async fn server() -> &'static Server {
    static SERVER: OnceCell<Server> = OnceCell::const_new();
    SERVER
        .get_or_init(async || {
            use std::os::unix::fs::symlink;
            let mut store = Store::new();
            let outside = store.beside("outside.bin");
            std::fs::write(&outside, weights()).expect("a file");
            for (name, model) in hostile(&outside) {
                let at = |file: &str| format!("{name}/1.0.0/{file}");
                store = store
                    .file(&at("model.onnx"), model)
                    .file(&at("weights.bin"), weights())
                    .file(&at("sub/other"), "x");
                store.write(&format!("{name}/weights.bin"), weights());
            }
            for name in LINKED {
                let location = if name == "symbolic-folder" { "sub/weights.bin" } else { "weights.bin" };
                store = store.file(&format!("{name}/1.0.0/model.onnx"), at(location));
                let folder = store.path().join(name).join("1.0.0");
                match name {
                    "symbolic-link-out" => symlink(&outside, folder.join("weights.bin")),
                    "symbolic-link-in" => symlink("/etc/passwd", folder.join("weights.bin")),
                    "symbolic-folder" => symlink(outside.parent().expect("a folder"), folder.join("sub")),
                    _ => std::fs::hard_link(&outside, folder.join("weights.bin")),
                }
                .expect("a link");
            }
            let good = [("beside", "weights.bin"), ("below", "sub/weights.bin")];
            for (name, location) in good {
                store = store.file(&format!("{name}/1.0.0/model.onnx"), at(location));
                store.write(&format!("{name}/1.0.0/{location}"), weights());
            }
            Server::start(store, &[]).await
        })
        .await
}

async fn ask(model: &str) -> Result<Values, tonic::Status> {
    let example = &fixture_examples("onnx/external").examples[0];
    let request = PredictRequest {
        model: model.into(),
        inputs: vec![Values::of_example(&example.request.inputs[0]).to_sconce(Form::Raw)],
        ..Default::default()
    };
    Ok(Values::of_sconce(&server().await.predict(request).await?.outputs[0]))
}

#[tokio::test]
async fn plain_files_of_the_version_are_read() {
    let example = &fixture_examples("onnx/external").examples[0];
    let expected = Values::of_example(&example.response.outputs[0]);
    for name in ["beside", "below"] {
        let answer = ask(name).await.unwrap_or_else(|status| panic!("{name}: {status}"));
        answer.assert_is(name, &expected, 1e-5, 1e-6);
    }
}

#[tokio::test]
async fn every_other_way_fails_its_version_with_a_reason() {
    let server = server().await;
    for (name, _) in hostile(Path::new("/x")) {
        let status = server.failed(name, "1.0.0").await;
        assert_eq!(status.reason, "EXTERNAL_DATA_REFUSED", "{name}: {}", status.message);
        for banned in ["/etc", "outside", "root:"] {
            assert!(!status.message.contains(banned), "{name}: {}", status.message);
        }
        let refused = ask(name).await.expect_err(name);
        assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{name}");
    }
    for name in LINKED.into_iter().filter(|name| *name != "hard-link") {
        server.failed(name, "1.0.0").await;
    }
    server.assert_unharmed().await;
}

#[tokio::test]
async fn a_hard_link_in_the_store_is_no_way_to_a_file_of_others() {
    // What is opened is a copy of the version's own files, so a link that the store's owner made is as good as a file; what
    // must not be is a private copy that shares its bytes with another file.
    let server = server().await;
    let version = crate::harness::eventually("it is decided", crate::harness::PATIENCE, async || {
        let version = server.version("hard-link", "1.0.0").await?;
        matches!(version.state(), VersionState::Ready | VersionState::Failed).then_some(version)
    })
    .await;
    if version.state() == VersionState::Failed {
        assert!(!version.reason.is_empty() && !version.message.is_empty(), "{version:?}");
    }
    use std::os::unix::fs::MetadataExt;
    let outside = std::fs::metadata(server.store.beside("outside.bin")).expect("it is there");
    assert_eq!(outside.nlink(), 2, "the file outside was linked once more");
}

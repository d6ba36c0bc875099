//! Freed means freed: a server that swapped a model two hundred times takes as much memory as one that did so ten times.

use std::{collections::VecDeque, fs};

use sha2::{Digest, Sha256};
use tonic::transport::Channel;

use crate::{
    harness::{
        Server, Store, artifacts, call, eventually, fixture, has_torch, process,
        tensors::{Form, floats},
    },
    proto::{admin_client::AdminClient, *},
};

/// A model whose versions take turns, in a server beside a small one.
struct Swapped {
    server: Server,
    admin: AdminClient<Channel>,
    file: &'static str,
    artifacts: Vec<Vec<u8>>,
    /// The majors that lie in the store.
    there: VecDeque<usize>,
    /// How many of them lie there at once.
    in_the_store: usize,
    next: usize,
}

/// The open call outlives the usual age of a connection where the machine is busy.
const OPTIONS: [&str; 3] = ["--poll-interval=50ms", "--cores=2", "--max-connection-age=1h"];
/// Which artifact comes next is by turns, so that the throw-away child sees each once.
const ARTIFACTS: u8 = 3;
const FIRST: usize = 10;
const LAST: usize = 200;
/// What it may grow by between the two: a tenth.
const SLACK: u64 = 10;

impl Swapped {
    async fn start(file: &'static str, make: impl Fn(u8) -> Vec<u8>, yaml: &str) -> Self {
        let store = Store::new().model("tiny", "1.0.0", fixture("onnx/tiny.onnx")).file("large/model.yaml", yaml);
        let server = Server::start(store, &OPTIONS).await;
        let admin = server.admin().await;
        let artifacts = (0..ARTIFACTS).map(make).collect();
        Self { server, admin, file, artifacts, there: VecDeque::new(), in_the_store: 2, next: 1 }
    }

    /// Publishes a higher version, waits until it serves, and takes the oldest away.
    async fn swap(&mut self) {
        let artifact = &self.artifacts[self.next % self.artifacts.len()];
        let folder = self.server.store.beside_folder("published");
        let sha256 = hex::encode(Sha256::digest(artifact));
        fs::write(folder.join(self.file), artifact).expect("a file");
        let yaml = format!("files: {{ {}: {{ sha256: {sha256} }} }}\n", self.file);
        fs::write(folder.join("version.yaml"), yaml).expect("a file");
        fs::rename(folder, self.server.store.path().join(format!("large/{}", self.next))).expect("a rename");
        let wanted = format!("{}.0.0", self.next);
        let admin = &mut self.admin;
        eventually(&format!("{wanted} serves"), crate::harness::PATIENCE, async || {
            let request = DescribeModelRequest { model: "large".into() };
            let model = admin.describe_model(call(request)).await.ok()?.into_inner();
            (model.summary?.stable == wanted).then_some(())
        })
        .await;
        self.there.push_back(self.next);
        self.next += 1;
        while self.there.len() > self.in_the_store {
            let oldest = self.there.pop_front().expect("there are some");
            self.server.store.remove(&format!("large/{oldest}"));
        }
    }

    async fn swap_until(&mut self, count: usize) {
        while self.next <= count {
            self.swap().await;
        }
    }

    /// Its resident memory once it rests.
    async fn rested(&self) -> u64 {
        let mut seen: VecDeque<u64> = VecDeque::new();
        eventually("memory at rest", crate::harness::PATIENCE, async || {
            seen.push_back(process::resident_bytes(self.server.pid()));
            let first = (seen.len() > 30).then(|| seen.pop_front())??;
            let last = *seen.back()?;
            (first.abs_diff(last) < last / 200).then_some(last)
        })
        .await
    }

    /// Whether it took, after `LAST` swaps, no more than a tenth more than after `FIRST`.
    async fn comes_back(&mut self, what: &str, last: usize) -> bool {
        self.swap_until(FIRST).await;
        let early = self.rested().await;
        self.swap_until(last).await;
        let late = self.rested().await;
        eprintln!("{what}: {:.1} MiB after {FIRST} swaps, {:.1} after {last}", mib(early), mib(late));
        late <= early + early / SLACK
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn question() -> oip::ModelInferRequest {
    let mut request = oip::ModelInferRequest { model_name: "tiny".into(), ..Default::default() };
    for name in ["INPUT0", "INPUT1"] {
        floats(name, &[1, 16], &[1.0; 16]).into_oip(&mut request, Form::Raw);
    }
    request
}

/// Two hundred swaps while a call of another model stays open from the first to the last.
async fn comes_back_beside_an_open_call(mut swapped: Swapped, what: &str) {
    let (questions, asked) = tokio::sync::mpsc::channel(1);
    let asked = tokio_stream::wrappers::ReceiverStream::new(asked);
    let mut client = swapped.server.oip().await;
    questions.send(question()).await.expect("somebody listens");
    let mut answers = client.model_stream_infer(asked).await.expect("a stream").into_inner();
    assert!(answers.message().await.expect("the stream lives").is_some());
    assert!(swapped.comes_back(what, LAST).await, "{what}: memory does not come back");
    questions.send(question()).await.expect("somebody listens");
    let last = answers.message().await.expect("the stream lives").expect("an answer");
    assert_eq!(last.error_message, "");
    swapped.server.assert_unharmed().await;
    let large = swapped.server.describe("large").await;
    let memory =
        large.versions.iter().filter_map(|version| version.execution.as_ref()).map(|execution| execution.memory_bytes);
    assert!(memory.clone().all(|bytes| bytes > 1 << 19), "{what}: {:?}", memory.collect::<Vec<_>>());
}

#[tokio::test]
async fn of_onnx_models() {
    let swapped = Swapped::start("model.onnx", artifacts::large_onnx, "").await;
    comes_back_beside_an_open_call(swapped, "onnx").await;
}

#[tokio::test]
async fn of_lightgbm_models() {
    let swapped = Swapped::start("model.txt", artifacts::large_lightgbm, "").await;
    comes_back_beside_an_open_call(swapped, "lightgbm").await;
}

#[tokio::test]
async fn of_torchscript_models() {
    if has_torch() {
        let swapped = Swapped::start("model.pt", artifacts::large_torch, &artifacts::large_torch_yaml()).await;
        comes_back_beside_an_open_call(swapped, "torchscript").await;
    }
}

/// The same measure sees what stays, and what stays no longer than it should.
#[tokio::test]
async fn and_not_where_versions_are_kept() {
    const SOME: usize = 30;
    let mut swapped = Swapped::start("model.onnx", artifacts::large_onnx, "keep_previous: 1h\n").await;
    swapped.in_the_store = SOME;
    assert!(!swapped.comes_back("kept", SOME).await, "the measure sees nothing");
    let early = swapped.rested().await;
    swapped.server.store.write("large/model.yaml", "keep_previous: 0s\n");
    let back = eventually("memory given back", crate::harness::PATIENCE, async || {
        let now = process::resident_bytes(swapped.server.pid());
        (now < early - early / SLACK).then_some(now)
    })
    .await;
    eprintln!("kept: {:.1} MiB, then {:.1}", mib(early), mib(back));
}

//! `sconce publish` to a real S3 server on loopback: versitygw, whose objects are files that can be looked at.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::process::Signal;
use serde_json::Value;

use super::text;
use crate::harness::{PATIENCE, Store, eventually, fixture, process, process::Guard, sconce};

const ACCESS: &str = "publisher";
const SECRET: &str = "a-secret-that-nobody-says";

/// A gateway over a folder beside a store; each folder in it is a bucket.
struct Gateway {
    child: Child,
    guard: Guard,
    port: u16,
    store: Store,
}

impl Gateway {
    /// `None`, with a line that says so, where the program is not installed.
    async fn start() -> Option<Self> {
        let store = Store::new();
        let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its number").port();
        for bucket in ["staging", "live"] {
            store.beside_folder(&format!("s3/{bucket}"));
        }
        let mut command = Command::new("versitygw");
        command.args(["--port", &format!("127.0.0.1:{port}"), "--quiet", "posix"]).arg(store.beside("s3"));
        command.env("ROOT_ACCESS_KEY", ACCESS).env("ROOT_SECRET_KEY", SECRET);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let Ok(child) = command.spawn() else {
            eprintln!("versitygw is not in PATH: publishing to a bucket is not tested");
            return None;
        };
        let guard = Guard::of(child.id(), store.beside(""));
        eventually("the gateway listens", PATIENCE, async || TcpStream::connect(("127.0.0.1", port)).ok()).await;
        Some(Self { child, guard, port, store })
    }

    fn publish(&self, arguments: &[&str]) -> Command {
        let mut command = sconce();
        command.arg("publish").args(arguments).current_dir(self.store.beside(""));
        command.env("SCONCE_WORK_DIR", self.store.beside("work"));
        command.env("AWS_ACCESS_KEY_ID", ACCESS).env("AWS_SECRET_ACCESS_KEY", SECRET).env("AWS_REGION", "us-east-1");
        command.env("AWS_ENDPOINT", format!("http://127.0.0.1:{}", self.port)).env("AWS_ALLOW_HTTP", "true");
        command
    }

    /// What it says, and whether it succeeded. It never says a secret.
    fn run(&self, arguments: &[&str]) -> (bool, String) {
        let output = self.publish(arguments).output().expect("the program runs");
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(!said.contains(SECRET) && !said.contains(ACCESS), "{said}");
        (output.status.success(), said)
    }

    #[track_caller]
    fn succeeds(&self, arguments: &[&str]) -> String {
        let (is_done, said) = self.run(arguments);
        assert!(is_done, "{arguments:?}: {said}");
        said
    }

    fn object(&self, path: &str) -> PathBuf {
        self.store.beside("s3").join(path)
    }

    fn read(&self, path: &str) -> Vec<u8> {
        fs::read(self.object(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.guard.disarm();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const FILES: [&str; 4] = ["model.onnx", "example.json", "weights.bin", "version.yaml"];

/// A version whose weights go up in parts.
fn made(store: &Store) {
    let folder = store.beside_folder("out/tiny/1.0.0");
    fs::copy(fixture("onnx/tiny.onnx"), folder.join("model.onnx")).expect("a copy");
    fs::copy(fixture("onnx/tiny.json"), folder.join("example.json")).expect("a copy");
    let bytes: Vec<u8> = (0..20 << 20_usize).map(|place| (place % 251) as u8).collect();
    fs::write(folder.join("weights.bin"), bytes).expect("a file");
}

#[tokio::test]
async fn a_bucket_gets_a_version_whole_and_then_its_marker() {
    let Some(gateway) = Gateway::start().await else {
        return;
    };
    made(&gateway.store);
    let arguments = ["out/tiny/1.0.0", "--to", "s3://staging/models"];
    let killed = gateway.object("staging/models/tiny/1.0.0/version.yaml");
    for part in 1..=5 {
        let mut child =
            gateway.publish(&arguments).stderr(Stdio::null()).stdout(Stdio::null()).spawn().expect("it starts");
        tokio::time::sleep(Duration::from_millis(part * 150)).await;
        process::kill(child.id(), Signal::KILL);
        if !child.wait().expect("its own child").success() && killed.exists() {
            // It was killed after its last write but one.
            assert_eq!(gateway.read("staging/models/tiny/1.0.0/weights.bin").len(), 20 << 20);
        }
    }
    gateway.succeeds(&arguments);
    for name in &FILES[..3] {
        let sent = gateway.read(&format!("staging/models/tiny/1.0.0/{name}"));
        assert!(sent == fs::read(gateway.store.beside("out/tiny/1.0.0").join(name)).expect("a file"), "{name} differs");
    }
    assert!(gateway.succeeds(&arguments).contains("already there"));

    let moved = ["--from=s3://staging/models", "--model=tiny", "--version=1.0.0", "--to=s3://live", "--json"];
    let output = gateway.publish(&moved).output().expect("the program runs");
    let said: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(said[0]["already_there"], false, "{}", text(&output.stderr));
    for name in FILES {
        let read = |root: &str| gateway.read(&format!("{root}/tiny/1.0.0/{name}"));
        assert!(read("staging/models") == read("live"), "{name} differs");
    }
    let marker = gateway.read("live/.sconce/changed");
    assert_eq!(marker.len(), 32);

    fs::write(gateway.store.beside("out/tiny/1.0.0/weights.bin"), "others").expect("a file");
    let (is_done, said) = gateway.run(&["out/tiny/1.0.0", "--to", "s3://live"]);
    assert!(!is_done && said.contains("VERSION_MUTATED") && said.contains("weights.bin"), "{said}");
    assert_eq!(gateway.read("live/.sconce/changed"), marker, "nothing was written");
    gateway.succeeds(&["out/tiny/1.0.0", "--to", "s3://live", "--version=1.1"]);
    assert_ne!(gateway.read("live/.sconce/changed"), marker, "every publish is told");

    let (is_done, said) = gateway.run(&["out/tiny/1.0.0", "--to", "s3://nowhere"]);
    assert!(!is_done && said.contains("STORE_UNAVAILABLE"), "{said}");
}

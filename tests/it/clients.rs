//! Real clients against the real server: tests/clients, run as its README says.
//!
//! Python's need SCONCE_TEST_PYTHON, which `make test` sets; SCONCE_SKIP_CLIENTS=1 leaves all of them out. Go's and Java's run
//! where their tools are.

use std::{path::PathBuf, process::Stdio, time::Duration};

use tokio::{process::Command, sync::OnceCell};

use crate::harness::{Server, Store, has_torch, root, store::SAMPLES};

/// How long a suite may take, its own preparations included.
const LIMIT: Duration = Duration::from_secs(900);

/// The Python with tests/clients/requirements.txt; `None` where clients are not to be tested.
pub fn python() -> Option<PathBuf> {
    if std::env::var_os("SCONCE_SKIP_CLIENTS").is_some() {
        eprintln!("the clients are not tested: SCONCE_SKIP_CLIENTS is set");
        return None;
    }
    let python = std::env::var_os("SCONCE_TEST_PYTHON");
    let python = python.expect(
        "SCONCE_TEST_PYTHON is not set: run `make test`, or see tests/clients/README.md, or set SCONCE_SKIP_CLIENTS=1",
    );
    Some(python.into())
}

fn script(name: &str) -> PathBuf {
    root().join("tests/clients").join(name)
}

/// Runs a command to its end and expects success; what it says is shown where it fails. Returns what it prints.
async fn succeeds(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(LIMIT, output).await.expect("it ends").expect("the program runs");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = format!("{printed}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{:?}: {}\n{said}", command.as_std(), output.status);
    eprintln!("{said}");
    printed
}

/// Store A of tests/clients/README.md, served.
async fn store_a(python: &PathBuf) -> &'static Server {
    static SERVER: OnceCell<Server> = OnceCell::const_new();
    SERVER
        .get_or_init(async || {
            let mut store = Store::new();
            for name in SAMPLES {
                store = store.sample(name);
            }
            succeeds(Command::new(python).arg(script("python/make_store.py")).arg(store.path())).await;
            Server::start(store, &[]).await
        })
        .await
}

fn address(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

fn pytest(python: &PathBuf, suite: &str, server: &Server) -> Command {
    let mut command = Command::new(python);
    command.args(["-m", "pytest", "-q", "-p", "no:cacheprovider"]).arg(script(suite)).current_dir(root());
    command
        .env("SCONCE_GRPC", address(server.ports.grpc))
        .env("SCONCE_ADMIN", address(server.ports.grpc_admin))
        .env("SCONCE_HTTP", address(server.ports.http))
        .env("SCONCE_STORE", server.store.path())
        .env("SCONCE_WITHOUT", if has_torch() { "" } else { "volatility-transformer" });
    command
}

/// A suite against a server of its own.
pub async fn passes(python: &PathBuf, suite: &str, server: &Server) {
    succeeds(&mut pytest(python, suite, server)).await;
}

async fn suite_passes(suite: &str) {
    if let Some(python) = python() {
        let server = store_a(&python).await;
        succeeds(&mut pytest(&python, suite, server)).await;
        server.assert_unharmed().await;
    }
}

#[tokio::test]
async fn tritonclient_works_unchanged() {
    suite_passes("python/test_triton.py").await;
}

#[tokio::test]
async fn the_generated_python_client_works() {
    suite_passes("python/test_sconce.py").await;
}

#[tokio::test]
async fn probes_and_watchers_in_python_work() {
    suite_passes("python/test_health.py").await;
}

#[tokio::test]
async fn a_reflection_client_needs_no_proto_files() {
    suite_passes("python/test_reflection.py").await;
}

#[tokio::test]
async fn our_protocol_files_have_the_published_numbers() {
    if let Some(python) = python() {
        succeeds(
            Command::new(python).args(["-m", "pytest", "-q", "-p", "no:cacheprovider"]).arg(script("proto_numbers.py")),
        )
        .await;
    }
}

#[tokio::test]
async fn hundreds_of_onnx_models_answer_as_onnxruntime() {
    let Some(python) = python() else {
        return;
    };
    let corpus = tempfile::tempdir().expect("a folder");
    succeeds(Command::new(&python).arg(script("python/make_onnx_corpus.py")).arg(corpus.path())).await;
    let store = Store::new();
    std::fs::remove_dir(store.path()).expect("an empty folder");
    std::fs::rename(corpus.path().join("store"), store.path()).expect("a rename");
    let server = Server::begin(store, &["--log-level=info", "--poll-interval=2s"]).await;
    succeeds(pytest(&python, "python/test_onnx_corpus.py", &server).env("SCONCE_CORPUS", corpus.path())).await;
    server.assert_unharmed().await;
}

/// A client's script where its tool is.
async fn client(tool: &str, name: &str, python: &PathBuf, server: &Server) -> Option<Command> {
    let there = Command::new(tool).arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status().await.is_ok();
    if !there {
        eprintln!("no {tool} here: its client is not tested");
        return None;
    }
    let mut command = Command::new("sh");
    command.arg(script(name)).arg(address(server.ports.grpc)).env("SCONCE_TEST_PYTHON", python);
    Some(command)
}

async fn runs(tool: &str, name: &str) {
    let Some(python) = python() else {
        return;
    };
    let server = store_a(&python).await;
    if let Some(mut command) = client(tool, name, &python, server).await {
        succeeds(command.arg(server.store.path())).await;
    }
}

/// What Go's callers say of a server that they have overloaded; `None` where they are not to be had.
pub async fn go_overloads(server: &Server) -> Option<serde_json::Value> {
    let said = succeeds(&mut client("go", "go/overload.sh", &python()?, server).await?).await;
    Some(serde_json::from_str(&said).unwrap_or_else(|error| panic!("{said}: {error}")))
}

#[tokio::test]
async fn a_go_client_works() {
    runs("go", "go/run.sh").await;
}

#[tokio::test]
async fn a_java_client_works() {
    runs("mvn", "java/run.sh").await;
}

//! A real S3 server on loopback (versitygw over a folder), and a proxy before it that counts, cuts and swallows.
//!
//! Where the program cannot be found the tests say that they are skipped: `.ci/run` installs it where Go is.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use sconce::store::Bucket;
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinHandle,
};

use super::{PATIENCE, Server, Store, eventually, process::Guard, root, sconce};

pub const ACCESS: &str = "sconce-test";
/// Looked for in every log.
pub const SECRET: &str = "s3cr3t-that-no-log-may-hold";
const BUCKET: &str = "models";

/// The S3 server. Its folder goes with it.
pub struct S3 {
    dir: tempfile::TempDir,
    port: u16,
    running: Option<(Child, Guard)>,
}

/// What a proxy does to those who come through it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    None,
    /// Closes each connection after so many bytes of answers.
    CutAfter(u64),
    /// Lets the next write through and answers 500 in the server's place.
    SwallowOneAnswer,
}

/// A TCP proxy before the S3 server.
pub struct Proxy {
    pub port: u16,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    fault: Mutex<Fault>,
    /// Of answers.
    bytes: AtomicU64,
    upstream: u16,
}

/// The program, in PATH or where `.ci/run` puts it.
fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own = root().join("target/tools/bin");
    let found = std::env::split_paths(&path).chain([own]).map(|folder| folder.join("versitygw"));
    found.into_iter().find(|file| file.is_file())
}

// === impl S3 ===

impl S3 {
    /// Starts one with an empty bucket; `None` where there is none to start.
    pub async fn start() -> Option<Self> {
        if program().is_none() {
            eprintln!("skipped: versitygw is neither in PATH nor in target/tools/bin");
            return None;
        }
        let dir = tempfile::Builder::new().prefix("sconce-s3-").tempdir().expect("a folder");
        std::fs::create_dir_all(dir.path().join("data").join(BUCKET)).expect("a folder");
        let mut s3 = Self { dir, port: 0, running: None };
        // A port that is free here may be taken by another test before the server binds it.
        for _ in 0..5 {
            let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
            s3.port = free.expect("a port").port();
            if s3.listens().await {
                return Some(s3);
            }
        }
        panic!("versitygw ends as soon as it is started, on five ports");
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn stop(&mut self) {
        if let Some((mut child, mut guard)) = self.running.take() {
            guard.disarm();
            child.kill().expect("it runs");
            child.wait().expect("it ends");
        }
    }

    /// Starts it again over what it held.
    pub async fn resume(&mut self) {
        assert!(self.listens().await, "versitygw does not start again");
    }

    /// Whether it came up; it did not if it ended instead.
    async fn listens(&mut self) -> bool {
        let log = std::fs::File::options().create(true).append(true).open(self.dir.path().join("log"));
        let mut child = Command::new(program().expect("found before"))
            .args(["--access", ACCESS, "--secret", SECRET, "--port", &format!("127.0.0.1:{}", self.port), "posix"])
            .arg(self.dir.path().join("data"))
            .stdin(Stdio::null())
            .stdout(log.expect("a log"))
            .stderr(Stdio::null())
            .spawn()
            .expect("versitygw starts");
        let mut guard = Guard::of(child.id(), self.dir.path());
        let listens = eventually("the S3 server listens", PATIENCE, async || {
            let ended = child.try_wait().expect("it is ours").is_some();
            let connected = !ended && TcpStream::connect(("127.0.0.1", self.port)).await.is_ok();
            (ended || connected).then_some(connected)
        })
        .await;
        if listens {
            self.running = Some((child, guard));
        } else {
            guard.disarm();
        }
        listens
    }

    /// The requests so far: method and path.
    pub fn requests(&self) -> Vec<(String, String)> {
        let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        let columns = log.lines().map(|line| line.split('|').map(str::trim).collect::<Vec<_>>());
        let requests = columns.filter_map(|columns| Some(((*columns.get(5)?).into(), (*columns.get(6)?).into())));
        requests.collect()
    }

    /// A client of the store in the bucket, through `port`.
    pub fn bucket(&self, port: u16) -> Bucket {
        self.bucket_with(port, SECRET)
    }

    pub fn bucket_with(&self, port: u16, secret: &str) -> Bucket {
        let mut environment = environment(port);
        environment.insert("AWS_SECRET_ACCESS_KEY".into(), secret.into());
        Bucket::open_in(&self.url(), &environment).expect("a client")
    }

    pub fn url(&self) -> String {
        format!("s3://{BUCKET}/live")
    }

    /// As a publisher does it: the files, version.yaml last, then the marker. `wrong` writes digests that are not theirs.
    pub async fn publish(&self, folder: &str, files: &[(&str, Vec<u8>)], wrong: bool) {
        let bucket = self.bucket(self.port);
        let mut yaml = String::from("files:\n");
        for (name, bytes) in files {
            upload(&bucket, &format!("{folder}/{name}"), bytes).await;
            let digest = hex::encode(Sha256::digest(if wrong { b"another" } else { &bytes[..] }));
            yaml += &format!("  {name}: {{ sha256: \"{digest}\", size: {} }}\n", bytes.len());
        }
        bucket.put(&format!("{folder}/version.yaml"), yaml).await.expect("written");
        bucket.touch_marker().await.expect("written");
    }

    /// Outcomes of a model that stand in the bucket, of all replicas.
    pub async fn outcomes_of(&self, model: &str) -> u64 {
        let bucket = self.bucket(self.port);
        let mut sum = 0;
        for object in bucket.list(&format!("{model}/.sconce/counts")).await.expect("listed") {
            let object = bucket.get(&object.path).await.expect("an answer").expect("it is there");
            let file: serde_json::Value = serde_json::from_slice(&object.bytes).expect("whole");
            let cells = file["cells"].as_array().expect("cells").clone();
            sum += cells.iter().filter_map(|cell| cell["outcomes"]["count"].as_u64()).sum::<u64>();
        }
        sum
    }

    /// The program with the bucket's keys in its environment, and with no others.
    pub fn command(&self, port: u16, arguments: &[&str]) -> Command {
        let mut command = sconce();
        command.env("HOME", self.dir.path()).envs(environment(port)).args(arguments);
        command
    }

    /// Serves the bucket through `port`, and waits until the ports are bound.
    pub async fn begin(&self, store: Store, port: u16, options: &[&str]) -> Server {
        let command = self.command(port, &["serve", "--model-store", &self.url()]);
        let _ = std::fs::remove_file(store.beside("ports.json"));
        Server::launch(store, command, options).await
    }

    /// The same, and waits until it is ready.
    pub async fn serve(&self, store: Store, port: u16, options: &[&str]) -> Server {
        let server = self.begin(store, port, options).await;
        server.ready().await;
        server.settled().await;
        server
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        self.stop();
    }
}

pub async fn upload(bucket: &Bucket, path: &str, bytes: &[u8]) {
    if bytes.len() < sconce::store::bucket::PART_BYTES {
        bucket.put(path, bytes.to_vec()).await.expect("written");
        return;
    }
    let mut parts = bytes.chunks(sconce::store::bucket::PART_BYTES);
    let next = || Ok(parts.next().unwrap_or_default().to_vec().into());
    bucket.upload(path, next).await.expect("written");
}

fn environment(port: u16) -> BTreeMap<String, String> {
    let variables = [
        ("AWS_ACCESS_KEY_ID", ACCESS),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ENDPOINT_URL", &format!("http://127.0.0.1:{port}")),
        ("AWS_ALLOW_HTTP", "true"),
    ];
    variables.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

// === impl Proxy ===

impl Proxy {
    pub async fn start(s3: &S3, fault: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let shared = Arc::new(Shared { fault: Mutex::new(fault), bytes: AtomicU64::new(0), upstream: s3.port });
        let accepting = shared.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, accepting.clone()));
            }
        });
        Self { port, shared, task }
    }

    pub fn set(&self, fault: Fault) {
        *self.shared.fault.lock().expect("a lock") = fault;
    }

    pub fn fault(&self) -> Fault {
        *self.shared.fault.lock().expect("a lock")
    }

    /// Bytes of answers that went through.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One connection. An error of either side is its end.
async fn pass(client: TcpStream, shared: Arc<Shared>) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", shared.upstream)).await else {
        return;
    };
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let writes = AtomicBool::new(false);
    tokio::select! {
        _ = forward(from_client, to_server, &writes) => {}
        _ = answer(from_server, to_client, &writes, &shared) => {}
    }
}

async fn forward(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, writes: &AtomicBool) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        if buffer.starts_with(b"PUT ") || buffer.starts_with(b"GET ") {
            writes.store(buffer.starts_with(b"PUT "), Ordering::Relaxed);
        }
        to.write_all(&buffer[..count]).await?;
    }
}

async fn answer(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    writes: &AtomicBool,
    shared: &Shared,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    let mut passed = 0;
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        let fault = *shared.fault.lock().expect("a lock");
        match fault {
            Fault::SwallowOneAnswer if writes.load(Ordering::Relaxed) => {
                *shared.fault.lock().expect("a lock") = Fault::None;
                return to.write_all(b"HTTP/1.1 500 Oh\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
            }
            Fault::CutAfter(bytes) if passed >= bytes => return Ok(()),
            _ => {}
        }
        to.write_all(&buffer[..count]).await?;
        passed += count as u64;
        shared.bytes.fetch_add(count as u64, Ordering::Relaxed);
    }
}

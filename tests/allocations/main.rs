//! How often a request asks for memory, and how often its bytes are copied, from its first byte to its answer's last: the whole
//! path, its libraries for HTTP/2 and gRPC included. So that neither can grow unnoticed.
//!
//! The server runs in this process, with the allocator of `ffi`, and is asked over a socket.

mod ffi;
mod image;
#[allow(dead_code, reason = "the integration tests use the rest")]
#[path = "../it/harness/wire.rs"]
mod wire;

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use sconce::{
    cli::bench::wire::{Answer, MODEL_INFER, call, connect, frame, head},
    server::proto::inference::{ModelInferRequest, model_infer_request::InferInputTensor},
};
use tokio::task::JoinSet;

use ffi::{Asked, Counting, counted};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One model, asked for one row.
struct Case {
    model: &'static str,
    request: ModelInferRequest,
    /// Of one request, when one is in flight and when 64 are.
    times_max: [f64; 2],
    bytes_max: [f64; 2],
}

const IN_FLIGHT: [usize; 2] = [1, 64];
const WARM_UP: usize = 2_000;
const CALLS: usize = 6_400;
/// Copies of each byte of a large input: the message's assembly, and the join into the batch.
const COPIES_MAX: f64 = 2.0;
/// What else is copied: the beginning of a message, before its length is known.
const COPIES_SLACK: f64 = 0.1;
const IMAGES: usize = 256;
const PATIENCE: Duration = Duration::from_secs(60);

fn raw(name: &str, datatype: &str, shape: &[usize], data: Vec<u8>) -> (InferInputTensor, Bytes) {
    let input = InferInputTensor {
        name: name.into(),
        datatype: datatype.into(),
        shape: shape.iter().map(|&size| size as i64).collect(),
        ..InferInputTensor::default()
    };
    (input, Bytes::from(data))
}

fn request(model: &str, inputs: Vec<(InferInputTensor, Bytes)>) -> ModelInferRequest {
    let (inputs, raw_input_contents) = inputs.into_iter().unzip();
    ModelInferRequest { model_name: model.into(), inputs, raw_input_contents, ..ModelInferRequest::default() }
}

fn cases() -> [Case; 2] {
    let halves = |count: usize| 0.5_f32.to_le_bytes().repeat(count);
    let two = vec![raw("INPUT0", "FP32", &[1, 16], halves(16)), raw("INPUT1", "FP32", &[1, 16], halves(16))];
    let row = vec![raw("features", "FP64", &[1, 19], 0.5_f64.to_le_bytes().repeat(19))];
    [
        Case { model: "tiny", request: request("tiny", two), times_max: [29.1, 24.7], bytes_max: [5_900.0, 5_700.0] },
        Case {
            model: "early-signal",
            request: request("early-signal", row),
            times_max: [27.1, 26.5],
            bytes_max: [5_250.0, 5_250.0],
        },
    ]
}

fn main() {
    sconce::backend::forbid_telemetry();
    let store = store();
    let ports = store.path().join("ports.json");
    let address = serve(&store.path().join("store"), &ports);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut wrong = Vec::new();
    for case in cases() {
        for (place, in_flight) in IN_FLIGHT.into_iter().enumerate() {
            let asked = runtime.block_on(measure(address, &case.request, (in_flight, CALLS)));
            let (times, bytes) = (asked.times as f64 / CALLS as f64, asked.bytes as f64 / CALLS as f64);
            let line = format!("{}, {in_flight} in flight: {times:.2} times, {bytes:.0} bytes", case.model);
            println!("{line}");
            let (times_max, bytes_max) = (case.times_max[place], case.bytes_max[place]);
            // What became less is written down, so that it does not grow again.
            if times > times_max || times < times_max - 2.0 || bytes > bytes_max || bytes < 0.9 * bytes_max {
                wrong.push(format!("{line}; this file says at most {times_max} and {bytes_max}, and little less"));
            }
        }
    }
    if cfg!(target_arch = "x86_64") {
        let shape = [1, image::CHANNELS, image::SIDE, image::SIDE];
        let pixels = 0.5_f32.to_le_bytes().repeat(shape.iter().product());
        let length = pixels.len();
        let image = request("image", vec![raw("x", "FP32", &shape, pixels)]);
        let asked = runtime.block_on(measure(address, &image, (64, IMAGES)));
        let copies = asked.copied as f64 / (IMAGES * length) as f64;
        println!("image, 64 in flight: each byte copied {copies:.2} times");
        if !(1.0..=COPIES_MAX + COPIES_SLACK).contains(&copies) {
            wrong.push(format!("each byte of an image was copied {copies:.2} times; at most {COPIES_MAX}"));
        }
    }
    assert!(wrong.is_empty(), "a request's memory changed:\n{}", wrong.join("\n"));
}

/// The requests' own cost, after as much of it as fills whatever is kept.
async fn measure(address: SocketAddr, request: &ModelInferRequest, (in_flight, calls): (usize, usize)) -> Asked {
    let (message, client) = (frame(request), connect(address).await.expect("it listens"));
    let head = head(&address.to_string(), MODEL_INFER, None).expect("a right address");
    ask(&client, &head, &message, (in_flight, calls.min(WARM_UP))).await;
    counted(ask(&client, &head, &message, (in_flight, calls))).await
}

async fn ask(client: &SendRequest<Bytes>, head: &Request<()>, message: &Bytes, (in_flight, calls): (usize, usize)) {
    let mut callers = JoinSet::new();
    for _ in 0..in_flight {
        let (mut client, head, message) = (client.clone(), head.clone(), message.clone());
        callers.spawn(async move {
            for _ in 0..calls / in_flight {
                call(&mut client, &head, &message, Answer::Drop).await.expect("it answers");
            }
        });
    }
    while let Some(done) = callers.join_next().await {
        done.expect("no caller panics");
    }
}

/// Begins to serve in this process, and waits until both models are ready.
fn serve(store: &Path, ports: &Path) -> SocketAddr {
    #[derive(serde::Deserialize)]
    struct Ports {
        grpc: u16,
        http: u16,
    }
    let options = [
        format!("--model-store={}", store.display()),
        format!("--ports-file={}", ports.display()),
        format!("--child-executable={}", env!("CARGO_BIN_EXE_sconce")),
    ];
    let fixed =
        ["--grpc-port=0", "--grpc-admin-port=0", "--http-port=0", "--metrics-port=0", "--cores=1", "--log-level=error"];
    let args = ["sconce", "serve"].into_iter().chain(fixed).map(str::to_owned).chain(options).collect::<Vec<_>>();
    let server = std::thread::Builder::new().name("serve".into());
    server.spawn(move || sconce::cli::run(args.into_iter().map(Into::into))).expect("a thread");
    let begun = Instant::now();
    loop {
        let ports = fs::read(ports).ok().and_then(|text| serde_json::from_slice::<Ports>(&text).ok());
        if let Some(Ports { grpc, http }) = ports
            && is_ready(http)
        {
            return SocketAddr::from(([127, 0, 0, 1], grpc));
        }
        assert!(begun.elapsed() < PATIENCE, "the server is not ready");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

fn is_ready(http: u16) -> bool {
    use std::io::{Read, Write};
    let Ok(mut socket) = std::net::TcpStream::connect(("127.0.0.1", http)) else { return false };
    let mut answer = String::new();
    let asked = socket.write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    asked.is_ok() && socket.read_to_string(&mut answer).is_ok() && answer.starts_with("HTTP/1.1 200")
}

fn store() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let copy = |from: &str, to: &str| {
        let to = folder.path().join("store").join(to);
        fs::create_dir_all(to.parent().expect("a folder")).expect("may be made");
        fs::copy(root.join(from), to).expect("may be copied");
    };
    copy("tests/fixtures/onnx/tiny.onnx", "tiny/1/model.onnx");
    let image = folder.path().join("store/image/1/model.onnx");
    fs::create_dir_all(image.parent().expect("a folder")).expect("may be made");
    fs::write(image, image::onnx()).expect("may be written");
    copy("model-store/early-signal/model.yaml", "early-signal/model.yaml");
    for file in fs::read_dir(root.join("model-store/early-signal/1.0.0")).expect("the sample store") {
        let name = file.expect("readable").file_name().into_string().expect("a plain name");
        copy(&format!("model-store/early-signal/1.0.0/{name}"), &format!("early-signal/1.0.0/{name}"));
    }
    folder
}

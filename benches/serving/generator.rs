//! The load: one thread, closed loop, messages encoded beforehand, straight on h2, the same for the echo and the server.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use h2::client::{Builder, SendRequest};
use hdrhistogram::Histogram;
use http::{HeaderMap, Method, Request, header};
use serde::Serialize;
use tokio::{net::TcpStream, task::JoinSet};

use crate::{
    echo::{CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES},
    process::{CpuUse, Running, own_cpu},
};

/// How many requests wait for an answer at any time, over how many connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Load {
    pub in_flight: usize,
    pub connections: usize,
}

/// How long.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub warm_up: Duration,
    pub measured: Duration,
}

/// Says what is wrong with an encoded answer.
pub type Check = dyn Fn(&[u8]) -> Result<()> + Send + Sync;

/// What is sent, and what must come back.
pub struct Traffic {
    /// gRPC frames of ModelInfer, sent in turn. The first one's answer is checked once a connection.
    pub messages: Vec<Bytes>,
    pub check: Box<Check>,
}

/// What one window showed.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    pub requests_per_s: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    /// User and system time of the measured process, a request.
    pub cpu_us: f64,
    /// Shares of one CPU that were used: what is at 1 is what bounds the throughput.
    pub server_busy: f64,
    pub generator_busy: f64,
    /// Shares of the window in which they were ready and had no CPU: above a few hundredths, something else was running.
    pub server_waited: f64,
    pub generator_waited: f64,
}

/// What the workers share. Only the driver moves the phase on.
struct Shared {
    traffic: Arc<Traffic>,
    head: Request<()>,
    phase: AtomicU8,
    latencies_ns: Mutex<Histogram<u64>>,
}

const WARM_UP: u8 = 0;
const COUNTING: u8 = 1;
const OVER: u8 = 2;

const LATENCY_MAX: Duration = Duration::from_secs(60);
/// What is still in flight when the window ends must be answered within this time.
const DRAIN_MAX: Duration = Duration::from_secs(10);
const METHOD: &str = "/inference.GRPCInferenceService/ModelInfer";

/// Runs one closed loop against `address`, whose process is `server`.
pub async fn closed_loop(
    address: SocketAddr,
    server: &Running,
    traffic: &Arc<Traffic>,
    load: Load,
    window: Window,
) -> Result<Measured> {
    let shared = Arc::new(Shared {
        traffic: Arc::clone(traffic),
        head: head(address)?,
        phase: AtomicU8::new(WARM_UP),
        latencies_ns: Mutex::new(Histogram::new_with_bounds(1, LATENCY_MAX.as_nanos() as u64, 3)?),
    });
    let mut clients = Vec::new();
    for _ in 0..load.connections {
        let mut client = connect(address).await?;
        let answer = call(&mut client, &shared.head, &traffic.messages[0], Answer::Keep).await?;
        (traffic.check)(&answer)?;
        clients.push(client);
    }
    let mut workers = JoinSet::new();
    for place in 0..load.in_flight {
        let client = clients[place % load.connections].clone();
        workers.spawn(worker(client, place, Arc::clone(&shared)));
    }
    let timed = async {
        tokio::time::sleep(window.warm_up).await;
        let (begun, server_begun, own_begun) = (Instant::now(), server.cpu()?, own_cpu()?);
        shared.phase.store(COUNTING, Ordering::Relaxed);
        tokio::time::sleep(window.measured).await;
        shared.phase.store(OVER, Ordering::Relaxed);
        anyhow::Ok((begun.elapsed(), server.cpu()?.since(server_begun), own_cpu()?.since(own_begun)))
    };
    // A worker returns early only with an error.
    let (wall, server_cpu, own_cpu) = tokio::select! {
        timed = timed => timed?,
        Some(ended) = workers.join_next() => {
            ended??;
            bail!("a worker ended before its time")
        }
    };
    let drain = async {
        while let Some(ended) = workers.join_next().await {
            ended??;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(DRAIN_MAX, drain).await.context("requests were left without an answer")??;
    let latencies = shared.latencies_ns.lock().expect("no worker panics while it records");
    summary(&latencies, wall, server_cpu, own_cpu)
}

/// One call over a connection of its own: the encoded answer.
pub async fn once(address: SocketAddr, message: &Bytes) -> Result<Bytes> {
    let mut client = connect(address).await?;
    call(&mut client, &head(address)?, message, Answer::Keep).await
}

/// A message behind gRPC's prefix: not compressed, and its length.
pub fn frame(message: &impl prost::Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(length + 5);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).expect("the bench's messages are small"));
    message.encode(&mut frame).expect("the frame has room");
    frame.freeze()
}

// === the inside ===

fn summary(latencies: &Histogram<u64>, wall: Duration, server: CpuUse, own: CpuUse) -> Result<Measured> {
    let requests = latencies.len();
    ensure!(requests > 0, "no request was answered within the window");
    let us = |quantile| latencies.value_at_quantile(quantile) as f64 / 1e3;
    let share = |time: Duration| time.as_secs_f64() / wall.as_secs_f64();
    Ok(Measured {
        requests_per_s: requests as f64 / wall.as_secs_f64(),
        p50_us: us(0.5),
        p99_us: us(0.99),
        cpu_us: server.ran.as_secs_f64() * 1e6 / requests as f64,
        server_busy: share(server.ran),
        generator_busy: share(own.ran),
        server_waited: share(server.waited),
        generator_waited: share(own.waited),
    })
}

async fn worker(mut client: SendRequest<Bytes>, place: usize, shared: Arc<Shared>) -> Result<()> {
    let messages = &shared.traffic.messages;
    // Workers begin at different messages, so that a batch is not of one row repeated.
    for message in messages.iter().cycle().skip(place % messages.len()) {
        if shared.phase.load(Ordering::Relaxed) == OVER {
            break;
        }
        let begun = Instant::now();
        call(&mut client, &shared.head, message, Answer::Drop).await?;
        if shared.phase.load(Ordering::Relaxed) == COUNTING {
            let latency_ns = begun.elapsed().min(LATENCY_MAX).as_nanos() as u64;
            let mut latencies = shared.latencies_ns.lock().expect("no worker panics while it records");
            latencies.record(latency_ns)?;
        }
    }
    Ok(())
}

async fn connect(address: SocketAddr) -> Result<SendRequest<Bytes>> {
    let socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    let (client, connection) = Builder::new()
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .handshake(socket)
        .await?;
    // Ends with its last client; an error of it is seen by the call that it cut off.
    tokio::spawn(connection);
    Ok(client)
}

fn head(address: SocketAddr) -> Result<Request<()>> {
    Ok(Request::builder()
        .method(Method::POST)
        .uri(format!("http://{address}{METHOD}"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .body(())?)
}

/// Whether the body of an answer is wanted.
#[derive(Clone, Copy, PartialEq)]
enum Answer {
    Keep,
    Drop,
}

/// One unary call; fails unless its status is 0.
async fn call(client: &mut SendRequest<Bytes>, head: &Request<()>, message: &Bytes, wanted: Answer) -> Result<Bytes> {
    std::future::poll_fn(|context| client.poll_ready(context)).await?;
    let (response, mut stream) = client.send_request(head.clone(), false)?;
    stream.send_data(message.clone(), true)?;
    let (parts, mut body) = response.await?.into_parts();
    let mut answer = BytesMut::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        if wanted == Answer::Keep {
            answer.extend_from_slice(&chunk);
        }
    }
    match body.trailers().await? {
        Some(trailers) => check_status(&trailers)?,
        // An answer without a body has its status in the head.
        None => check_status(&parts.headers)?,
    }
    if wanted == Answer::Drop {
        return Ok(Bytes::new());
    }
    ensure!(answer.len() >= 5 && answer[0] == 0, "the answer is no plain gRPC message");
    Ok(answer.freeze().slice(5..))
}

fn check_status(headers: &HeaderMap) -> Result<()> {
    let status = headers.get("grpc-status").context("an answer without grpc-status")?;
    if status == "0" {
        return Ok(());
    }
    let message = headers.get("grpc-message").map(|text| String::from_utf8_lossy(text.as_bytes()));
    bail!("status {status:?}: {}", message.unwrap_or_default());
}

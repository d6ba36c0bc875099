//! A caller's side of the two services: the connection, a call that is tried again where the server asks for it, and what
//! an error says.

use std::{
    fmt,
    future::Future,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use prost::Message;
use tonic::{
    Code, Response, Status,
    transport::{Channel, Endpoint},
};

use super::proto::{
    admin_client::AdminClient,
    inference_client::InferenceClient,
    oip::{ModelMetadataRequest, ModelMetadataResponse, grpc_inference_service_client::GrpcInferenceServiceClient},
    rpc,
};
use crate::telemetry::logs::escape;

/// Why a call failed, in the server's words.
#[derive(Debug)]
pub struct Failure {
    code: Code,
    /// The stable word of ErrorInfo; empty where the answer is not from a Sconce server.
    reason: String,
    message: String,
    retry: Retry,
}

/// Whether the server wants the call again.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Retry {
    Unsaid,
    After(Duration),
    Never,
}

const ATTEMPTS_MAX: u32 = 6;
const WAIT_FIRST: Duration = Duration::from_millis(100);
const WAIT_MAX: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A client of the inference port.
pub async fn inference(server: &str) -> anyhow::Result<InferenceClient<Channel>> {
    let client = InferenceClient::new(connect(server).await?);
    Ok(client.max_decoding_message_size(usize::MAX))
}

/// A client of the inference port's other protocol.
pub async fn open_inference(server: &str) -> anyhow::Result<GrpcInferenceServiceClient<Channel>> {
    let client = GrpcInferenceServiceClient::new(connect(server).await?);
    Ok(client.max_decoding_message_size(usize::MAX))
}

/// A client of the admin port.
pub async fn admin(server: &str) -> anyhow::Result<AdminClient<Channel>> {
    let client = AdminClient::new(connect(server).await?);
    Ok(client.max_decoding_message_size(usize::MAX))
}

/// What a model takes and gives. `version` may be a label; without one the model's route decides.
pub async fn metadata(
    server: &str,
    model: &str,
    version: Option<String>,
    timeout: Duration,
) -> anyhow::Result<ModelMetadataResponse> {
    let client = open_inference(server).await?;
    let request = ModelMetadataRequest { name: model.into(), version: version.unwrap_or_default() };
    let answer = with_retries(|| {
        let (mut client, call) = (client.clone(), call(request.clone(), timeout));
        async move { client.model_metadata(call).await }
    });
    Ok(answer.await?)
}

/// A call with its deadline.
pub fn call<T>(message: T, timeout: Duration) -> tonic::Request<T> {
    let mut call = tonic::Request::new(message);
    call.set_timeout(timeout);
    call
}

/// Calls until it succeeds, is refused for good or has been tried often enough: UNAVAILABLE is tried again, after the time
/// that the server names or else a growing one.
pub async fn with_retries<T, F>(call: impl FnMut() -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    with_retries_until(None, call).await
}

/// The same, with no attempt that would begin later.
pub async fn with_retries_until<T, F>(until: Option<Instant>, mut call: impl FnMut() -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let mut attempt = 1;
    loop {
        let failure = match call().await {
            Ok(response) => return Ok(response.into_inner()),
            Err(status) => Failure::from(status),
        };
        let wait = failure.wait(attempt, fastrand::f64());
        let in_time = |wait: &Duration| until.is_none_or(|until| Instant::now() + *wait < until);
        let Some(wait) = wait.filter(in_time) else {
            return Err(failure);
        };
        tokio::time::sleep(wait).await;
        attempt += 1;
    }
}

/// A runtime for a command that is a client: one thread here, two for calls in flight.
pub fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(future)
}

async fn connect(server: &str) -> anyhow::Result<Channel> {
    let uri = if server.contains("://") { server.to_string() } else { format!("http://{server}") };
    let endpoint = Endpoint::from_shared(uri).with_context(|| format!("'{server}' is not HOST:PORT"))?;
    let channel = endpoint.connect_timeout(CONNECT_TIMEOUT).connect().await;
    channel.map_err(|error| {
        // The causes repeat each other; the innermost is the system's.
        let error = anyhow::Error::new(error);
        anyhow!("cannot reach {server} ({}); does `sconce serve` run there?", error.root_cause())
    })
}

// === impl Failure ===

impl Failure {
    /// As gRPC writes it: `NOT_FOUND`.
    pub fn code(&self) -> String {
        code_name(self.code)
    }

    /// The stable word; empty where there is none.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Whether what was asked for may have been done all the same.
    pub fn is_uncertain(&self) -> bool {
        matches!(
            self.code,
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown | Code::Internal
        )
    }

    pub fn message(&self) -> &str {
        &self.message
    }

    /// How long to wait before the next attempt; `None` gives up. `draw` from 0 to 1 spreads callers who failed together.
    fn wait(&self, attempt: u32, draw: f64) -> Option<Duration> {
        // An operator's decision is not over in a moment.
        let decided = self.reason == "MODEL_DISABLED";
        if self.code != Code::Unavailable || decided || attempt >= ATTEMPTS_MAX {
            return None;
        }
        let wait = match self.retry {
            Retry::Never => return None,
            Retry::After(wait) => wait,
            Retry::Unsaid => WAIT_FIRST * 2u32.pow(attempt - 1),
        };
        Some(wait.min(WAIT_MAX).mul_f64(1.0 + draw / 4.0))
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let details = rpc::Status::decode(status.details()).unwrap_or_default().details;
        let detail =
            |name: &str| details.iter().find(|any| any.type_url.ends_with(name)).map(|any| any.value.as_slice());
        let info = detail("/google.rpc.ErrorInfo").and_then(|bytes| rpc::ErrorInfo::decode(bytes).ok());
        let hint = detail("/google.rpc.RetryInfo").and_then(|bytes| rpc::RetryInfo::decode(bytes).ok());
        let hint = hint.and_then(|info| info.retry_delay).and_then(|delay| Duration::try_from(delay).ok());
        let pushback = status.metadata().get("grpc-retry-pushback-ms").and_then(|value| value.to_str().ok());
        let retry = match pushback.map(str::parse::<i64>) {
            // gRPC's rule: what is negative or no number means not again.
            Some(pushback) => match pushback.map(u64::try_from) {
                Ok(Ok(millis)) => Retry::After(Duration::from_millis(millis)),
                _ => Retry::Never,
            },
            None => hint.map_or(Retry::Unsaid, Retry::After),
        };
        Self {
            code: status.code(),
            reason: info.map(|info| info.reason).unwrap_or_default(),
            message: status.message().to_string(),
            retry,
        }
    }
}

impl fmt::Display for Failure {
    /// `NOT_FOUND (MODEL_NOT_FOUND): no such model`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&code_name(self.code))?;
        if !self.reason.is_empty() {
            write!(f, " ({})", escape(&self.reason))?;
        }
        write!(f, ": {}", escape(&self.message))
    }
}

impl std::error::Error for Failure {}

/// `NotFound` as gRPC writes it: `NOT_FOUND`.
fn code_name(code: Code) -> String {
    let mut name = String::new();
    for character in format!("{code:?}").chars() {
        if character.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(character.to_ascii_uppercase());
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::metadata::MetadataMap;

    fn any(name: &str, message: &impl Message) -> prost_types::Any {
        prost_types::Any { type_url: format!("type.googleapis.com/google.rpc.{name}"), value: message.encode_to_vec() }
    }

    fn failure(code: Code, retry_ms: Option<i32>, pushback: Option<&str>) -> Failure {
        let info = rpc::ErrorInfo { reason: "QUEUE_FULL".into(), ..Default::default() };
        let mut details = vec![any("ErrorInfo", &info)];
        if let Some(millis) = retry_ms {
            let delay = prost_types::Duration { seconds: 0, nanos: millis * 1_000_000 };
            details.push(any("RetryInfo", &rpc::RetryInfo { retry_delay: Some(delay) }));
        }
        let status = rpc::Status { details, ..Default::default() };
        let mut metadata = MetadataMap::new();
        if let Some(pushback) = pushback {
            metadata.insert("grpc-retry-pushback-ms", pushback.parse().unwrap());
        }
        Status::with_details_and_metadata(code, "full\n", status.encode_to_vec().into(), metadata).into()
    }

    #[test]
    fn an_error_shows_code_reason_and_message_on_one_line() {
        assert_eq!(failure(Code::Unavailable, None, None).to_string(), "UNAVAILABLE (QUEUE_FULL): full\\n");
        assert_eq!(Failure::from(Status::not_found("x")).to_string(), "NOT_FOUND: x");
    }

    #[test]
    fn only_unavailable_is_tried_again_as_the_server_asks() {
        let wait = |code, retry_ms, pushback, attempt| {
            failure(code, retry_ms, pushback).wait(attempt, 0.0).map(|wait| wait.as_millis())
        };
        assert_eq!(wait(Code::NotFound, Some(1), None, 1), None);
        assert_eq!(wait(Code::Unavailable, Some(250), None, 1), Some(250));
        assert_eq!(wait(Code::Unavailable, Some(250), Some("70"), 1), Some(70));
        assert_eq!(wait(Code::Unavailable, Some(250), Some("-1"), 1), None);
        assert_eq!(wait(Code::Unavailable, None, None, 3), Some(400));
        assert_eq!(wait(Code::Unavailable, None, Some("3600000"), 1), Some(5000));
        assert_eq!(wait(Code::Unavailable, None, None, ATTEMPTS_MAX), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_is_tried_a_bounded_number_of_times() {
        let mut calls = 0;
        let result: Result<(), Failure> = with_retries(|| {
            calls += 1;
            async { Err(Status::unavailable("busy")) }
        })
        .await;
        assert!(result.is_err());
        assert_eq!(calls, ATTEMPTS_MAX);
    }

    /// The reasons that a file of ours makes errors with: the first texts of error constructors, tests aside.
    fn reasons(source: &str) -> Vec<&str> {
        let code = source.split("#[cfg(test)]").next().unwrap_or_default();
        let pieces: Vec<&str> = code.split('"').collect();
        let is_reason = |before: &str, text: &str| {
            let before = before.trim_end();
            let constructs = ["invalid(", "not_found(", "internal(", "unavailable(", "failed("]
                .iter()
                .any(|call| before.ends_with(call));
            let after_code = before.ends_with(',')
                && before.rsplit("::").next().is_some_and(|word| word.len() < 20)
                && before.rsplit("::").nth(1).is_some_and(|word| word.ends_with("Code"));
            (constructs || after_code)
                && text.len() > 3
                && text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
        };
        pieces.windows(2).filter(|pair| is_reason(pair[0], pair[1])).map(|pair| pair[1]).collect()
    }

    #[test]
    fn every_reason_is_documented_and_no_other() {
        let page = include_str!("../../docs/errors.md");
        let mut folders = vec![std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))];
        let mut all = String::new();
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let source = std::fs::read_to_string(&path).unwrap();
                for reason in reasons(&source) {
                    assert!(page.contains(&format!("| `{reason}` |")), "docs/errors.md lacks {reason} of {path:?}");
                }
                all += &source;
            }
        }
        for row in page.lines().filter(|line| line.starts_with("| `")) {
            let reason = row.split('`').nth(1).unwrap();
            assert!(all.contains(&format!("\"{reason}\"")), "docs/errors.md has {reason}, which no source makes");
        }
    }
}

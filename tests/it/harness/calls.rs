//! Typed calls of every service, and what a refusal says.

use std::time::Duration;

use prost::Message;
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::health_client::HealthClient;

use super::{PATIENCE, Server, eventually};
use crate::proto::{
    admin_client::AdminClient, inference_client::InferenceClient, oip,
    oip::grpc_inference_service_client::GrpcInferenceServiceClient, rpc, *,
};

pub const MESSAGE_BYTES_MAX: usize = 256 << 20;

/// A connection to a port of this machine.
pub async fn channel(port: u16) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).expect("an address");
    endpoint.connect().await.expect("the server is there")
}

/// A call that does not wait for ever.
pub fn call<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(PATIENCE);
    request
}

/// Whether the client gave the call up before the server took it: its connection was asked to go at that moment. tonic neither
/// sends such a call again, as other libraries do, nor has one code for it.
pub fn was_given_up(status: &Status) -> bool {
    match status.code() {
        Code::Cancelled => status.message() == "operation was canceled",
        Code::Internal => format!("{status:?}").contains("GoAway(b\"\", NO_ERROR"),
        _ => false,
    }
}

/// The stable word of a status; empty where it carries none.
pub fn reason(status: &Status) -> String {
    error_info(status).reason
}

/// One of the facts that a status carries; empty where it does not.
pub fn fact(status: &Status, name: &str) -> String {
    error_info(status).metadata.remove(name).unwrap_or_default()
}

/// When to come back, where the status says it as gRPC's clients read it and as people do.
pub fn retry_after(status: &Status) -> Option<Duration> {
    let delay = detail::<rpc::RetryInfo>(status, "/google.rpc.RetryInfo")?.retry_delay?;
    let delay = Duration::try_from(delay).expect("a time from now on");
    let pushback = status.metadata().get("grpc-retry-pushback-ms").expect("the trailer beside a RetryInfo");
    let pushback = pushback.to_str().ok().and_then(|millis| millis.parse().ok()).expect("milliseconds");
    assert_eq!(Duration::from_millis(pushback), delay, "the trailer and RetryInfo agree");
    Some(delay)
}

fn detail<M: Message + Default>(status: &Status, name: &str) -> Option<M> {
    let details = rpc::Status::decode(status.details()).unwrap_or_default().details;
    let any = details.iter().find(|any| any.type_url.ends_with(name))?;
    M::decode(&any.value[..]).ok()
}

fn error_info(status: &Status) -> rpc::ErrorInfo {
    let info: rpc::ErrorInfo = detail(status, "/google.rpc.ErrorInfo").unwrap_or_default();
    assert!(info.reason.is_empty() || info.domain == "sconce", "a foreign domain: {info:?}");
    info
}

/// A refusal with this code and reason, whose text holds nothing that is none of the caller's business.
#[track_caller]
pub fn assert_refused<T: std::fmt::Debug>(what: &str, answer: Result<T, Status>, code: Code, reasons: &str) -> Status {
    let status = match answer {
        Err(status) => status,
        Ok(answer) => {
            let answer = format!("{answer:?}");
            panic!("{what}: expected {code:?} {reasons}, it was answered: {:.200}", answer)
        }
    };
    let came = (status.code(), reason(&status));
    let expected = reasons.split('|').any(|reason| reason == came.1);
    assert!(came.0 == code && expected, "{what}: expected {code:?} {reasons}, got {came:?}: {}", status.message());
    assert_discreet(what, &status);
    status
}

/// No path, no pointer, no input value; short, and one line.
#[track_caller]
pub fn assert_discreet(what: &str, status: &Status) {
    let text = status.message();
    assert!(!text.is_empty(), "{what}: says nothing");
    for banned in
        ["/tmp", env!("CARGO_MANIFEST_DIR"), "/home", "/root", "/proc", "0x", ".rs:", SECRET_TEXT, SECRET_DIGITS]
    {
        assert!(!text.contains(banned), "{what}: the message holds '{banned}': {text}");
    }
    assert!(text.len() <= 1024, "{what}: {} bytes of message", text.len());
    assert!(!text.contains(['\n', '\0']), "{what}: not one line: {text:?}");
    let details = String::from_utf8_lossy(status.details()).into_owned();
    for banned in ["/tmp", SECRET_TEXT, SECRET_DIGITS] {
        assert!(!details.contains(banned), "{what}: the details hold '{banned}'");
    }
}

/// Input values that must not come back in a message.
pub const SECRET: f64 = 31337.0625;
const SECRET_DIGITS: &str = "31337";
pub const SECRET_TEXT: &str = "s3cret";

// === impl Server ===

impl Server {
    pub async fn channel(&self) -> Channel {
        channel(self.ports.grpc).await
    }

    pub async fn inference(&self) -> InferenceClient<Channel> {
        let client = InferenceClient::new(self.channel().await);
        client.max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub async fn oip(&self) -> GrpcInferenceServiceClient<Channel> {
        let client = GrpcInferenceServiceClient::new(self.channel().await);
        client.max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub async fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(channel(self.ports.grpc_admin).await)
    }

    pub async fn health(&self) -> HealthClient<Channel> {
        HealthClient::new(self.channel().await)
    }

    /// One call over a connection of its own.
    pub async fn predict(&self, request: PredictRequest) -> Result<PredictResponse, Status> {
        Ok(self.inference().await.predict(call(request)).await?.into_inner())
    }

    pub async fn infer(&self, request: oip::ModelInferRequest) -> Result<oip::ModelInferResponse, Status> {
        Ok(self.oip().await.model_infer(call(request)).await?.into_inner())
    }

    pub async fn describe(&self, model: &str) -> DescribeModelResponse {
        let request = DescribeModelRequest { model: model.into() };
        let answer = self.admin().await.describe_model(call(request)).await;
        answer.unwrap_or_else(|status| panic!("{model}: {status}")).into_inner()
    }

    /// Where a version stands; `None` where the store does not show it.
    pub async fn version(&self, model: &str, version: &str) -> Option<VersionStatus> {
        let request = DescribeModelRequest { model: model.into() };
        let answer = self.admin().await.describe_model(call(request)).await.ok()?.into_inner();
        answer.versions.into_iter().find(|status| status.version == version)
    }

    /// Waits until a version is in that state.
    pub async fn reaches(&self, model: &str, version: &str, state: VersionState) -> VersionStatus {
        eventually(&format!("{model} {version} {}", state.as_str_name()), 2 * PATIENCE, async || {
            self.version(model, version).await.filter(|status| status.state() == state)
        })
        .await
    }

    /// Waits until no version is being loaded.
    pub async fn settled(&self) {
        let mut admin = self.admin().await;
        let listed = admin.list_models(call(ListModelsRequest::default())).await.expect("a list").into_inner();
        for model in listed.models {
            eventually(&format!("{} is loaded", model.name), 2 * PATIENCE, async || {
                let request = DescribeModelRequest { model: model.name.clone() };
                let described = admin.describe_model(call(request)).await.ok()?.into_inner();
                let loading = described.versions.iter().any(|version| version.state() == VersionState::Loading);
                (!loading).then_some(())
            })
            .await;
        }
    }

    /// A version that failed, with a reason and a sentence.
    pub async fn failed(&self, model: &str, version: &str) -> VersionStatus {
        let status = self.reaches(model, version, VersionState::Failed).await;
        assert!(!status.reason.is_empty() && !status.message.is_empty(), "{status:?}");
        status
    }
}

//! The gRPC services: each file turns its protocol into the words of `model`, asks the engine or the catalog, and turns the
//! answer back.

mod admin;
mod classification;
mod convert;
mod health;
mod model_config;
mod open_inference;
mod outcomes;
mod predict;
mod reflection;
mod repository;
pub mod status;
mod stream;

use std::{convert::Infallible, future::poll_fn, pin::Pin, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use tonic::{Status, codec::CompressionEncoding, codegen::Service as _};
use tonic_health::pb::health_server::HealthServer;

use self::{
    admin::Console, health::CatalogHealth, open_inference::OpenInference, predict::Predict, reflection::Reflection,
    repository::Repository,
};
use super::{
    body::RequestBody,
    call::{About, Arrival, CallContext},
    config::Config,
    control::Control,
    method::{Prediction, Service},
    phase::Phases,
    proto::{
        inference::grpc_inference_service_server::GrpcInferenceServiceServer,
        sconce::v1::{admin_server::AdminServer, inference_server::InferenceServer},
    },
};
use crate::{
    engine::Engine,
    error::{Error, Result},
    model::{Answer, CALLER, Metadata, PredictRequest},
};

/// All services. A connection has its own, so that the counts of their handles are not shared between cores.
#[derive(Clone)]
pub struct Services {
    parts: Parts,
    open_inference: Arc<OpenInference>,
    predict: Arc<Predict>,
}

/// What they are made of.
#[derive(Clone)]
struct Parts {
    engine: Engine,
    control: Control,
    phases: Phases,
    reflection: Arc<Reflection>,
    message_bytes_max: usize,
    repository_api: bool,
    caller_metadata: Option<HeaderName>,
}

/// The answer to come of any service.
pub type Answering = Pin<Box<dyn Future<Output = Result<Response<tonic::body::Body>, Infallible>> + Send>>;

/// The answer to come of a call that is read and written here.
pub type Unary = Pin<Box<dyn Future<Output = Result<Answered, Status>> + Send>>;

/// An answer as it leaves.
pub struct Answered {
    pub frame: Bytes,
    /// `None` where nobody asked for it.
    pub about: Option<About>,
}

/// A protocol's way to put one question and its answer.
trait Dialect: Send + Sync + 'static {
    /// What of the question the answer needs.
    type Reply: Send;

    fn engine(&self) -> &Engine;
    fn read(&self, question: Bytes, arrival: Arrival) -> Result<(PredictRequest, Self::Reply)>;
    fn write(&self, answered: Result<Answer>, reply: Self::Reply) -> Result<Answered>;
}

/// A request or a stream of health or admin is a name or two.
const SMALL_MESSAGE_BYTES_MAX: usize = 1 << 20;

// === impl Services ===

impl Services {
    pub fn new(engine: Engine, control: Control, phases: Phases, config: &Config) -> Result<Self> {
        Ok(Self::of(Parts {
            engine,
            control,
            phases,
            reflection: Arc::new(Reflection::new()?),
            message_bytes_max: config.max_message_bytes,
            repository_api: config.repository_api,
            caller_metadata: config.caller_metadata.clone(),
        }))
    }

    pub fn for_connection(&self) -> Self {
        Self::of(self.parts.clone())
    }

    fn of(parts: Parts) -> Self {
        let open_inference = OpenInference::new(Repository {
            engine: parts.engine.clone(),
            control: parts.control.clone(),
            phases: parts.phases.clone(),
            open: parts.repository_api,
        });
        let predict = Predict::new(parts.engine.clone(), parts.control.counts.clone(), parts.phases.clone());
        Self { open_inference: Arc::new(open_inference), predict: Arc::new(predict), parts }
    }

    /// What the routes in force look for in a call's metadata.
    pub fn wanted_of(&self, headers: &HeaderMap) -> Metadata {
        wanted_of(&self.parts.engine, headers, self.parts.caller_metadata.as_ref())
    }

    /// A prediction that is not compressed: read and written without the library's streams, which would be a seventh of all that a
    /// small call costs.
    pub fn predict(&self, prediction: Prediction, body: RequestBody, context: CallContext) -> Unary {
        match prediction {
            Prediction::ModelInfer => unary(self.open_inference.clone(), body, context),
            Prediction::Predict => unary(self.predict.clone(), body, context),
        }
    }

    /// Hands the request to its service. Answers are compressed only for a caller who compresses: most clients announce that
    /// they could unpack gzip, and few want to wait for it.
    pub fn dispatch(&self, service: Service, compress: bool, request: Request<RequestBody>) -> Answering {
        let limit = self.parts.message_bytes_max;
        match service {
            Service::OpenInference => {
                let server = GrpcInferenceServiceServer::from_arc(self.open_inference.clone())
                    .accept_compressed(CompressionEncoding::Gzip)
                    .max_decoding_message_size(limit);
                if compress { server.send_compressed(CompressionEncoding::Gzip) } else { server }.call(request)
            }
            Service::Inference => {
                let server = InferenceServer::from_arc(self.predict.clone())
                    .accept_compressed(CompressionEncoding::Gzip)
                    .max_decoding_message_size(limit);
                if compress { server.send_compressed(CompressionEncoding::Gzip) } else { server }.call(request)
            }
            Service::Admin => AdminServer::new(Console {
                catalog: self.parts.engine.catalog().clone(),
                control: self.parts.control.clone(),
                phases: self.parts.phases.clone(),
            })
            .max_decoding_message_size(SMALL_MESSAGE_BYTES_MAX)
            .call(request),
            Service::Health => {
                let health = CatalogHealth::new(self.parts.engine.catalog().clone(), self.parts.phases.clone());
                HealthServer::new(health).max_decoding_message_size(SMALL_MESSAGE_BYTES_MAX).call(request)
            }
            Service::ReflectionV1 => self.parts.reflection.v1(request),
            Service::ReflectionV1Alpha => self.parts.reflection.v1alpha(request),
        }
    }
}

/// One call of Predict, in whichever protocol. The future keeps what it waits for, and the context, with which the memory of the
/// question is given back; not the question.
fn unary<D: Dialect>(dialect: Arc<D>, mut body: RequestBody, context: CallContext) -> Unary {
    Box::pin(async move {
        let question = poll_fn(|cx| body.poll_message(cx)).await?;
        drop(body);
        let (question, reply) = converted(dialect.read(question, context.arrival), &context)?;
        let answered = match dialect.engine().begin(with_metadata(question, &context)) {
            Ok(predicting) => predicting.await,
            Err(error) => Err(error),
        };
        Ok(dialect.write(answered, reply)?)
    })
}

/// What the routes in force look for in a call's metadata; of most calls nothing. Of a key that is there twice, the first.
fn wanted_of(engine: &Engine, headers: &HeaderMap, caller_metadata: Option<&HeaderName>) -> Metadata {
    let snapshot = engine.catalog().load();
    let found = |key: &Arc<str>| {
        let value = match &**key {
            CALLER => known(headers, caller_metadata?)?,
            key => headers.get(key)?,
        };
        Some((key.clone(), value.to_str().ok()?.into()))
    };
    let mut found = snapshot.metadata_keys.iter().filter_map(found).peekable();
    found.peek().is_some().then(|| found.collect())
}

/// Who calls, as what authenticates callers says. Said twice it may be the caller who said it first.
fn known<'a>(headers: &'a HeaderMap, key: &HeaderName) -> Option<&'a HeaderValue> {
    let mut all = headers.get_all(key).iter();
    all.next().filter(|_| all.next().is_none())
}

/// With what routes look for in its call's metadata.
fn with_metadata(question: PredictRequest, context: &CallContext) -> PredictRequest {
    PredictRequest { metadata: context.metadata.clone(), ..question }
}

/// What the log is to say of an answer, where debugging is on.
fn logged(answer: &Answer, request_id: &str) -> Option<About> {
    tracing::enabled!(tracing::Level::DEBUG).then(|| About {
        model: answer.served.model.as_str().to_owned(),
        version: answer.served.version.to_string(),
        request_id: request_id.to_owned(),
    })
}

/// A message that the library sends, and what the log is to say of it.
fn response<T>(message: T, about: Option<About>) -> tonic::Response<T> {
    let mut response = tonic::Response::new(message);
    if let Some(about) = about {
        response.extensions_mut().insert(about);
    }
    response
}

/// What a protocol's message became. One that is wrong never reaches the engine, so it is counted here.
fn converted<T>(result: Result<T>, context: &CallContext) -> Result<T> {
    result.inspect_err(|error| context.connection.shared.metrics.refused(error.reason()))
}

/// An error that says whose call it ends, where the caller gave it an id.
fn of_request(error: Error, id: &str) -> Error {
    if id.is_empty() { error } else { error.with("request_id", id) }
}

/// What the layer put into the request. It is kept until the answer is there: with it, the memory of the message is given back.
fn context<T>(request: &tonic::Request<T>) -> CallContext {
    request.extensions().get::<CallContext>().expect("every request passes the layer: this is a bug").clone()
}

//! The Open Inference Protocol, `inference.GRPCInferenceService`.

use std::sync::Arc;

use bytes::Bytes;
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::{
    Answered, Dialect,
    admin::Who,
    classification::classify,
    context,
    convert::{
        oip::{self, Reply},
        plain,
    },
    converted, logged,
    model_config::{self, platform},
    of_request,
    repository::{self, Repository},
    response,
    stream::Answers,
    with_metadata,
};
use crate::{
    catalog::Catalog,
    engine::Engine,
    error::Result,
    model::{Answer, PredictRequest, Served, TensorSpec},
    runtime::Servable,
    server::{
        call::Arrival,
        codec::{self, Framed},
        phase::Phases,
        proto::inference::{
            ModelConfigRequest, ModelConfigResponse, ModelInferRequest, ModelInferResponse, ModelMetadataRequest,
            ModelMetadataResponse, ModelReadyRequest, ModelReadyResponse, ModelStatisticsRequest,
            ModelStatisticsResponse, RepositoryIndexRequest, RepositoryIndexResponse, RepositoryModelLoadRequest,
            RepositoryModelLoadResponse, RepositoryModelUnloadRequest, RepositoryModelUnloadResponse,
            ServerLiveRequest, ServerLiveResponse, ServerMetadataRequest, ServerMetadataResponse, ServerReadyRequest,
            ServerReadyResponse, grpc_inference_service_server::GrpcInferenceService,
            model_metadata_response::TensorMetadata,
        },
    },
};

pub struct OpenInference {
    engine: Engine,
    phases: Phases,
    repository: Repository,
}

/// The published names of what is really there.
const EXTENSIONS: [&str; 2] = ["classification", "model_configuration"];

// === impl OpenInference ===

impl OpenInference {
    pub fn new(repository: Repository) -> Self {
        Self { engine: repository.engine.clone(), phases: repository.phases.clone(), repository }
    }

    fn find(&self, model: &str, version: String) -> Result<(Served, Arc<Servable>)> {
        self.engine.find(model, &oip::select(version)?)
    }
}

impl Dialect for OpenInference {
    type Reply = Reply;

    fn engine(&self) -> &Engine {
        &self.engine
    }

    fn read(&self, question: Bytes, arrival: Arrival) -> Result<(PredictRequest, Reply)> {
        match plain::read(&question, arrival) {
            Some(asked) => Ok(asked),
            None => oip::request(codec::read(question)?, arrival),
        }
    }

    fn write(&self, answered: Result<Answer>, reply: Reply) -> Result<Answered> {
        let answer = classified(self.engine.catalog(), answered, &reply)?;
        let about = logged(&answer, &reply.id);
        let frame = plain::write(&answer, &reply).unwrap_or_else(|| Framed::of(&oip::response(answer, reply)));
        Ok(Answered { frame: frame.finish()?, about })
    }
}

/// The answer to one question, whichever way it came, with the classes that it asked for.
pub fn classified(catalog: &Catalog, answered: Result<Answer>, reply: &Reply) -> Result<Answer> {
    let mut answer = answered.map_err(|error| of_request(error, &reply.id))?;
    if !reply.classifications.is_empty() {
        classify_outputs(catalog, &mut answer, reply)?;
    }
    Ok(answer)
}

fn classify_outputs(catalog: &Catalog, answer: &mut Answer, reply: &Reply) -> Result<()> {
    let snapshot = catalog.load();
    // A version that left while it answered has no labels any more; its numbers are still right.
    let entry = snapshot.models.get(answer.served.model.as_str());
    let version = entry.and_then(|entry| entry.versions.get(&answer.served.version));
    let servable = version.and_then(|version| version.servable.as_deref());
    let labels = servable.map_or(&[][..], |servable| &servable.manifest().classes);
    for output in &mut answer.outputs {
        let wanted = reply.classifications.iter().find(|(name, _)| **name == *output.name);
        let Some((_, count)) = wanted else { continue };
        let batches = match servable {
            Some(servable) => {
                let signature = servable.signature();
                signature.output(&output.name).is_some_and(|place| signature.outputs[place].batch)
            }
            None => output.shape.first() == Some(&answer.rows),
        };
        *output = classify(output, *count, batches, labels)?;
    }
    Ok(())
}

#[async_trait]
impl GrpcInferenceService for OpenInference {
    async fn server_live(&self, _: Request<ServerLiveRequest>) -> Result<Response<ServerLiveResponse>, Status> {
        Ok(Response::new(ServerLiveResponse { live: true }))
    }

    async fn server_ready(&self, _: Request<ServerReadyRequest>) -> Result<Response<ServerReadyResponse>, Status> {
        let ready = self.phases.is_serving() && self.engine.catalog().load().is_ready();
        Ok(Response::new(ServerReadyResponse { ready }))
    }

    async fn model_ready(&self, request: Request<ModelReadyRequest>) -> Result<Response<ModelReadyResponse>, Status> {
        let request = request.into_inner();
        let found = self.find(&request.name, request.version);
        let ready = self.phases.is_serving() && found.is_ok();
        Ok(Response::new(ModelReadyResponse { ready }))
    }

    async fn server_metadata(
        &self,
        _: Request<ServerMetadataRequest>,
    ) -> Result<Response<ServerMetadataResponse>, Status> {
        let switched_on: &[&str] = if self.repository.open { &repository::EXTENSIONS } else { &[] };
        let extensions = EXTENSIONS.iter().chain(switched_on).copied();
        Ok(Response::new(ServerMetadataResponse {
            name: env!("CARGO_PKG_NAME").to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            extensions: extensions.map(str::to_owned).collect(),
        }))
    }

    async fn model_metadata(
        &self,
        request: Request<ModelMetadataRequest>,
    ) -> Result<Response<ModelMetadataResponse>, Status> {
        let request = request.into_inner();
        let (served, servable) = self.find(&request.name, request.version)?;
        let snapshot = self.engine.catalog().load();
        let versions = snapshot.model(served.model.as_str())?.versions.iter();
        let ready = versions.filter(|(_, entry)| entry.servable.is_some());
        let signature = servable.signature();
        Ok(Response::new(ModelMetadataResponse {
            name: served.model.as_str().to_owned(),
            versions: ready.map(|(version, _)| version.to_string()).collect(),
            platform: platform(servable.manifest().platform).to_owned(),
            inputs: signature.inputs.iter().map(metadata).collect(),
            outputs: signature.outputs.iter().map(metadata).collect(),
        }))
    }

    async fn model_config(
        &self,
        request: Request<ModelConfigRequest>,
    ) -> Result<Response<ModelConfigResponse>, Status> {
        let request = request.into_inner();
        let (served, servable) = self.find(&request.name, request.version)?;
        let snapshot = self.engine.catalog().load();
        let model = snapshot.model(served.model.as_str())?;
        let config = Some(model_config::of(model, &servable));
        Ok(Response::new(ModelConfigResponse { config }))
    }

    async fn model_infer(&self, request: Request<ModelInferRequest>) -> Result<Response<ModelInferResponse>, Status> {
        let context = context(&request);
        let asked = oip::request(request.into_inner(), context.arrival);
        let (question, reply) = converted(asked, &context)?;
        let question = with_metadata(question, &context);
        let answer = classified(self.engine.catalog(), self.engine.predict(question).await, &reply)?;
        let about = logged(&answer, &reply.id);
        Ok(response(oip::response(answer, reply), about))
    }

    type ModelStreamInferStream = Answers;

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<ModelInferRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let context = context(&request);
        let (headers, _, questions) = request.into_parts();
        Ok(Response::new(Answers::new(questions, headers.into_headers(), self.engine.clone(), context)))
    }

    async fn model_statistics(
        &self,
        request: Request<ModelStatisticsRequest>,
    ) -> Result<Response<ModelStatisticsResponse>, Status> {
        Ok(Response::new(self.repository.statistics(request.get_ref())?))
    }

    async fn repository_index(
        &self,
        request: Request<RepositoryIndexRequest>,
    ) -> Result<Response<RepositoryIndexResponse>, Status> {
        Ok(Response::new(self.repository.index(request.get_ref())?))
    }

    async fn repository_model_load(
        &self,
        request: Request<RepositoryModelLoadRequest>,
    ) -> Result<Response<RepositoryModelLoadResponse>, Status> {
        let (arrival, caller) = (context(&request).arrival, Who::asks(&request).or_claimed(String::new()));
        self.repository.load(request.into_inner(), arrival, caller).await?;
        Ok(Response::new(RepositoryModelLoadResponse {}))
    }

    async fn repository_model_unload(
        &self,
        request: Request<RepositoryModelUnloadRequest>,
    ) -> Result<Response<RepositoryModelUnloadResponse>, Status> {
        let (arrival, caller) = (context(&request).arrival, Who::asks(&request).or_claimed(String::new()));
        self.repository.unload(request.into_inner(), arrival, caller).await?;
        Ok(Response::new(RepositoryModelUnloadResponse {}))
    }
}

fn metadata(spec: &TensorSpec) -> TensorMetadata {
    TensorMetadata {
        name: (*spec.name).to_owned(),
        datatype: spec.dtype.as_str().to_owned(),
        shape: spec.shape.clone(),
    }
}

//! `sconce.v1.Inference`.

use tonic::{Request, Response, Status, async_trait};

use super::{context, convert::sconce};
use crate::{
    engine::Engine,
    server::proto::sconce::v1::{PredictRequest, PredictResponse, inference_server::Inference},
};

pub struct Predict {
    engine: Engine,
}

// === impl Predict ===

impl Predict {
    pub fn new(engine: Engine) -> Self {
        Self { engine }
    }
}

#[async_trait]
impl Inference for Predict {
    async fn predict(&self, request: Request<PredictRequest>) -> Result<Response<PredictResponse>, Status> {
        let context = context(&request);
        let (question, reply) = sconce::request(request.into_inner(), context.arrival)?;
        let answer = self.engine.predict(question).await?;
        Ok(Response::new(sconce::response(answer, reply)))
    }
}

//! `sconce.v1.Inference`.

use tonic::{Request, Response, Status, async_trait};

use super::{answered, context, convert::sconce, converted, of_request};
use crate::{
    engine::Engine,
    server::{
        call::About,
        proto::sconce::v1::{PredictRequest, PredictResponse, inference_server::Inference},
    },
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
        let (question, reply) = converted(sconce::request(request.into_inner(), context.arrival), &context)?;
        match self.engine.predict(question).await {
            Ok(answer) => Ok(answered(sconce::response(answer, reply), about)),
            Err(error) => Err(of_request(error, &reply.request_id).into()),
        }
    }
}

fn about(answer: &PredictResponse) -> About {
    let served = answer.served.clone().unwrap_or_default();
    About { model: served.model, version: served.version, request_id: answer.request_id.clone() }
}

//! `sconce.v1.Inference`.

use tonic::{Request, Response, Status, async_trait};

use super::{answered, context, convert::sconce, converted, of_request};
use crate::{
    engine::Engine,
    error::Result,
    server::{
        call::{About, CallContext},
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

    /// Not an async function, so that the future holds what it waits for and not the request.
    pub fn answer(
        &self,
        question: PredictRequest,
        context: CallContext,
    ) -> impl Future<Output = Result<PredictResponse>> + Send {
        let asked = converted(sconce::request(question, context.arrival), &context);
        let begun = asked.map(|(question, reply)| (self.engine.begin(question), reply));
        let ledger = context.ledger;
        async move {
            let (begun, reply) = begun?;
            let answer = match begun {
                Ok(predicting) => predicting.await,
                Err(error) => Err(error),
            };
            drop(ledger);
            match answer {
                Ok(answer) => Ok(sconce::response(answer, reply)),
                Err(error) => Err(of_request(error, &reply.request_id)),
            }
        }
    }
}

#[async_trait]
impl Inference for Predict {
    async fn predict(&self, request: Request<PredictRequest>) -> Result<Response<PredictResponse>, Status> {
        let context = context(&request);
        let answer = self.answer(request.into_inner(), context).await?;
        Ok(answered(answer, about))
    }
}

pub fn about(answer: &PredictResponse) -> About {
    let served = answer.served.clone().unwrap_or_default();
    About { model: served.model, version: served.version, request_id: answer.request_id.clone() }
}

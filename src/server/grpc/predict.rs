//! `sconce.v1.Inference`.

use std::pin::Pin;

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
    /// Written out, so that the future holds what it waits for and not the request.
    fn predict<'a, 'answer>(
        &'a self,
        request: Request<PredictRequest>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<PredictResponse>, Status>> + Send + 'answer>>
    where
        'a: 'answer,
        Self: 'answer,
    {
        let context = context(&request);
        let asked = converted(sconce::request(request.into_inner(), context.arrival), &context);
        let begun = asked.map(|(question, reply)| (self.engine.begin(question), reply));
        let ledger = context.ledger;
        Box::pin(async move {
            let (begun, reply) = begun?;
            let answer = match begun {
                Ok(predicting) => predicting.await,
                Err(error) => Err(error),
            };
            drop(ledger);
            match answer {
                Ok(answer) => Ok(answered(sconce::response(answer, reply), about)),
                Err(error) => Err(of_request(error, &reply.request_id).into()),
            }
        })
    }
}

fn about(answer: &PredictResponse) -> About {
    let served = answer.served.clone().unwrap_or_default();
    About { model: served.model, version: served.version, request_id: answer.request_id.clone() }
}

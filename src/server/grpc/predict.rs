//! `sconce.v1.Inference`.

use bytes::Bytes;
use tonic::{Request, Response, Status, async_trait};

use super::{
    Answered, Dialect, context,
    convert::sconce::{self, Reply},
    converted, logged, of_request, response,
};
use crate::{
    engine::Engine,
    error::Result,
    model::{self, Answer},
    server::{
        call::Arrival,
        codec::{self, Framed},
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

impl Dialect for Predict {
    type Reply = Reply;

    fn engine(&self) -> &Engine {
        &self.engine
    }

    fn read(&self, question: Bytes, arrival: Arrival) -> Result<(model::PredictRequest, Reply)> {
        sconce::request(codec::read(question)?, arrival)
    }

    fn write(&self, answered: Result<Answer>, reply: Reply) -> Result<Answered> {
        let answer = answered.map_err(|error| of_request(error, &reply.request_id))?;
        let about = logged(&answer, &reply.request_id);
        Ok(Answered { frame: Framed::of(&sconce::response(answer, reply)).finish()?, about })
    }
}

#[async_trait]
impl Inference for Predict {
    async fn predict(&self, request: Request<PredictRequest>) -> Result<Response<PredictResponse>, Status> {
        let context = context(&request);
        let asked = sconce::request(request.into_inner(), context.arrival);
        let (mut question, reply) = converted(asked, &context)?;
        question.metadata = context.metadata.clone();
        let answer = self.engine.predict(question).await.map_err(|error| of_request(error, &reply.request_id))?;
        let about = logged(&answer, &reply.request_id);
        Ok(response(sconce::response(answer, reply), about))
    }
}

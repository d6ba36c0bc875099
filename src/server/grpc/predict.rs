//! `sconce.v1.Inference`. What becomes of predictions later is in `outcomes`.

use bytes::Bytes;
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::{
    Answered, Dialect, context,
    convert::sconce::{self, Reply},
    converted, logged, of_request,
    outcomes::{self, Answers},
    response, with_metadata,
};
use crate::{
    engine::Engine,
    error::Result,
    model::{self, Answer},
    rollout::Counts,
    server::{
        call::Arrival,
        codec::{self, Framed},
        phase::Phases,
        proto::sconce::v1::{
            PredictRequest, PredictResponse, RecordOutcomeRequest, RecordOutcomeResponse, inference_server::Inference,
        },
    },
};

pub struct Predict {
    engine: Engine,
    counts: Counts,
    phases: Phases,
}

// === impl Predict ===

impl Predict {
    pub fn new(engine: Engine, counts: Counts, phases: Phases) -> Self {
        Self { engine, counts, phases }
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
        let (question, reply) = converted(asked, &context)?;
        let question = with_metadata(question, &context);
        let answer = self.engine.predict(question).await.map_err(|error| of_request(error, &reply.request_id))?;
        let about = logged(&answer, &reply.request_id);
        Ok(response(sconce::response(answer, reply), about))
    }

    async fn record_outcome(
        &self,
        request: Request<RecordOutcomeRequest>,
    ) -> Result<Response<RecordOutcomeResponse>, Status> {
        let context = context(&request);
        let asked = converted(outcomes::request(request.into_inner()), &context)?;
        Ok(Response::new(outcomes::record(&self.counts, &asked).await?))
    }

    type RecordOutcomesStream = Answers;

    async fn record_outcomes(
        &self,
        request: Request<Streaming<RecordOutcomeRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let context = context(&request);
        Ok(Response::new(outcomes::follow(request.into_inner(), self.counts.clone(), self.phases.clone(), context)))
    }
}

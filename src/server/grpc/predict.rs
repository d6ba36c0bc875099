//! `sconce.v1.Inference`.

use bytes::Bytes;
use tonic::{Request, Response, Status, async_trait};

use super::{
    Answered, ask, context,
    convert::sconce::{self, Reply},
    logged, of_request, response,
};
use crate::{
    engine::Engine,
    error::Result,
    model::{self, Answer},
    server::{
        call::CallContext,
        codec::{self, Frame},
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

    /// One question that came whole; its answer, ready to leave.
    pub async fn answer(&self, question: Bytes, context: CallContext) -> Result<Answered> {
        let asked = codec::read(question).and_then(|message| sconce::request(message, context.arrival));
        let (answer, reply) = self.ask(asked, context).await?;
        let about = logged(&answer, &reply.request_id);
        Ok(Answered { frame: Frame::of(&sconce::response(answer, reply)).finish()?, about })
    }

    fn ask(
        &self,
        asked: Result<(model::PredictRequest, Reply)>,
        context: CallContext,
    ) -> impl Future<Output = Result<(Answer, Reply)>> + Send {
        let asking = ask(&self.engine, asked, context);
        async move {
            match asking.await? {
                (Ok(answer), reply) => Ok((answer, reply)),
                (Err(error), reply) => Err(of_request(error, &reply.request_id)),
            }
        }
    }
}

#[async_trait]
impl Inference for Predict {
    async fn predict(&self, request: Request<PredictRequest>) -> Result<Response<PredictResponse>, Status> {
        let context = context(&request);
        let asked = sconce::request(request.into_inner(), context.arrival);
        let (answer, reply) = self.ask(asked, context).await?;
        let about = logged(&answer, &reply.request_id);
        Ok(response(sconce::response(answer, reply), about))
    }
}

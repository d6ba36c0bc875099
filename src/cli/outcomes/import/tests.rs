//! An import against a server that loses its streams.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use clap::Parser;
use tonic::{Request, Response};

use super::*;
use crate::cli::proto::{
    PredictRequest, PredictResponse, RecordOutcomeResponse,
    inference_server::{Inference, InferenceServer},
    record_outcome_request::Prediction,
};

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: ImportArgs,
}

/// Ends each stream but the third after two outcomes, of which it acknowledges one; knows ids that begin with k, and takes no
/// label of 9.
#[derive(Default)]
struct Forgetful {
    streams: AtomicUsize,
    acknowledged: Arc<AtomicUsize>,
}

#[tonic::async_trait]
impl Inference for Forgetful {
    async fn predict(&self, _: Request<PredictRequest>) -> Result<Response<PredictResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn record_outcome(
        &self,
        _: Request<RecordOutcomeRequest>,
    ) -> Result<Response<RecordOutcomeResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    type RecordOutcomesStream = ReceiverStream<Result<RecordOutcomesResponse, Status>>;

    async fn record_outcomes(
        &self,
        outcomes: Request<Streaming<RecordOutcomeRequest>>,
    ) -> Result<Response<Self::RecordOutcomesStream>, Status> {
        let is_forgetful = self.streams.fetch_add(1, Ordering::Relaxed) < 2;
        let (tell, told) = mpsc::channel(16);
        let (mut outcomes, acknowledged) = (outcomes.into_inner(), self.acknowledged.clone());
        tokio::spawn(async move {
            let mut answer = RecordOutcomesResponse { durable: true, ..Default::default() };
            while let Some(outcome) = outcomes.message().await.unwrap() {
                if is_forgetful && answer.received == 1 {
                    tell.send(Err(Status::unavailable("away"))).await.unwrap();
                    return;
                }
                let known = matches!(&outcome.prediction, Some(Prediction::PredictionId(id)) if id.starts_with('k'));
                let wrong = outcome.label == Some(9.0);
                answer.notes.clear();
                if wrong || !known {
                    let result = if wrong { OutcomeResult::Refused } else { OutcomeResult::UnknownId };
                    let (reason, message) = if wrong { ("NINE", "no nines") } else { ("", "unknown") };
                    answer.notes.push(OutcomeNote {
                        index: answer.received,
                        result: result.into(),
                        reason: reason.into(),
                        message: message.into(),
                    });
                }
                answer.received += 1;
                answer.refused += u64::from(wrong);
                answer.unknown += u64::from(!known && !wrong);
                answer.credited += u64::from(known && !wrong);
                acknowledged.fetch_add(1, Ordering::Relaxed);
                tell.send(Ok(answer.clone())).await.unwrap();
            }
        });
        Ok(Response::new(ReceiverStream::new(told)))
    }
}

#[tokio::test]
async fn a_stream_that_is_lost_goes_on_where_it_was() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let forgetful = Forgetful::default();
    let acknowledged = forgetful.acknowledged.clone();
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    let server = tonic::transport::Server::builder().add_service(InferenceServer::new(forgetful));
    let serving = tokio::spawn(server.serve_with_incoming(incoming));
    let text = b"prediction_id,label\nk1,1\nx,0\nk2,9\nk3,\nk4,0\nk5,1\n";
    let args = Line::parse_from(["import", "--server", &address, "x.csv"]).args;
    let lines = Lines::new(Box::new(text.as_slice()), &args.columns).unwrap();
    let mut import = Import { lines, open: VecDeque::new(), is_read: false, done: Done::default() };
    let mut client = client::inference(&address).await.unwrap();
    let mut lost = 0;
    while let Err(failure) = import.session(&mut client, Duration::from_secs(10), &ProgressBar::hidden()).await.unwrap()
    {
        assert_eq!(failure.message(), "away");
        lost += 1;
    }
    serving.abort();
    assert_eq!((lost, acknowledged.load(Ordering::Relaxed)), (2, 5), "none was sent again after it was acknowledged");
    let said = import.done.in_words();
    let expected = "6 outcomes: 3 credited, 0 counted before, 1 of unknown ids, 2 refused\n\
        line 3: unknown id\nline 4: NINE: no nines\nline 5: no label, no reward and no metric\n";
    assert_eq!(said, expected);
}

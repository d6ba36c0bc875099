//! Replicas over one bucket: their counts are objects there, and a bucket that is away acknowledges nothing.

use tonic::Code;

use super::{outcome, record};
use crate::{
    harness::{
        PATIENCE, Server, Store,
        adders::{ADDER, artifact, rows, version},
        assert_refused, eventually,
        s3::S3,
        tensors::Form,
    },
    proto::{OutcomeResult, PredictRequest},
};

async fn ids(server: &Server) -> Vec<String> {
    let inputs = vec![rows(1).to_sconce(Form::Raw)];
    let request = PredictRequest { model: ADDER.into(), inputs, ..Default::default() };
    server.predict(request).await.expect("an answer").prediction_ids
}

#[tokio::test]
async fn counts_are_objects_and_a_bucket_that_is_away_acknowledges_nothing() {
    let Some(mut s3) = S3::start().await else { return };
    s3.publish(&format!("{ADDER}/{}", version(1)), &[("model.onnx", artifact(1))], false).await;
    let store = Store::new();
    let key = super::store();
    let option = super::key_of(&key);
    let one = s3.serve(store, s3.port(), &[&option]).await;
    let other = s3.serve(Store::new(), s3.port(), &[&option]).await;
    let ids = ids(&one).await;
    for (server, id) in [(&one, &ids[0]), (&other, &ids[1])] {
        let answer = record(server, outcome(id, 1.0)).await.expect("an answer");
        assert_eq!((answer.result(), answer.durable), (OutcomeResult::Credited, true));
    }
    assert_eq!(s3.outcomes_of(ADDER).await, 2);
    s3.stop();
    let refused = record(&other, outcome(&ids[2], 1.0)).await;
    assert_refused("away", refused, Code::Unavailable, "STORE_UNAVAILABLE|COUNTS_UNWRITTEN");
    s3.resume().await;
    let answer =
        eventually("it is back", 2 * PATIENCE, async || record(&other, outcome(&ids[2], 1.0)).await.ok()).await;
    assert_eq!((answer.result(), answer.durable), (OutcomeResult::Repeated, true));
    assert_eq!(s3.outcomes_of(ADDER).await, 3);
    one.assert_unharmed().await;
}

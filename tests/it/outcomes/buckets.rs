//! Replicas over one bucket: their counts are objects there, and a bucket that is away acknowledges nothing.

use sconce::{model::ModelName, store::Records};
use tonic::Code;

use super::{outcome, record};
use crate::{
    harness::{
        PATIENCE, Server, Store,
        adders::{ADDER, artifact, rows, version},
        assert_refused, eventually,
        s3::{S3, upload},
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

#[tokio::test]
async fn what_replicas_that_are_gone_counted_is_read_once() {
    let Some(s3) = S3::start().await else { return };
    let bucket = s3.bucket(s3.port());
    let model = ModelName::new(ADDER).expect("a name");
    let path = |replica: u64| format!("{ADDER}/.sconce/counts/gone-{replica}.json");
    for replica in 0..20 {
        upload(&bucket, &path(replica), b"old").await;
    }
    let records = Records::in_bucket(bucket.clone());
    let reads = async || {
        let before = bucket.requests();
        let mut notes = records.counts(&model).await.expect("they are read");
        let asked = bucket.requests() - before;
        notes.retain(|note| note.text != "old");
        (notes.into_iter().map(|note| note.replica).collect::<Vec<_>>(), asked)
    };
    assert_eq!(reads().await, (vec![], 21), "a list and each of them");
    assert_eq!(reads().await, (vec![], 1), "a list");
    records.write_counts(&model, "here", "new".into()).await.expect("written");
    upload(&bucket, &path(3), b"new").await;
    let changed = vec!["gone-3".to_owned(), "here".to_owned()];
    assert_eq!(reads().await, (changed.clone(), 3), "a list and what changed");
    bucket.delete(&path(3)).await.expect("deleted");
    assert_eq!(reads().await, (changed[1..].to_vec(), 1));
}

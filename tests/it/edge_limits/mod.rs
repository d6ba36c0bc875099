//! The edge trusts nobody: what a caller may claim, how long it may be silent and how much it may open is bounded, and every
//! refusal has its code.

mod connections;
mod deadlines;
mod floods;
mod messages;
mod methods;

use prost::Message;
use tonic::Code;

use crate::{
    harness::{
        Server, Store, fixture,
        raw::{Answer, Connection, PREDICT, frame},
        tensors::{Form, floats},
    },
    proto::*,
};

fn store() -> Store {
    Store::new().model("tiny", "1.0.0", fixture("onnx/tiny.onnx"))
}

fn tiny() -> PredictRequest {
    let inputs = ["INPUT0", "INPUT1"].map(|name| floats(name, &[1, 16], &[1.0; 16]).to_sconce(Form::Raw));
    PredictRequest { model: "tiny".into(), inputs: inputs.into(), ..Default::default() }
}

fn tiny_frame() -> bytes::Bytes {
    frame(&tiny().encode_to_vec())
}

/// A right call, over a connection that went through something.
async fn assert_serves(connection: &mut Connection) {
    let answer: Answer = connection.call(PREDICT, &[], tiny_frame()).await;
    assert_eq!(answer.grpc.as_ref().map(tonic::Status::code), Some(Code::Ok), "{answer:?}");
}

/// A right call over this connection, and one over a new one.
async fn assert_unharmed(server: &Server, connection: &mut Connection) {
    assert_serves(connection).await;
    server.predict(tiny()).await.expect("a new connection is served");
    server.assert_unharmed().await;
}

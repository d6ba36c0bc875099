//! What bad input gets: the code, the reason and a discreet sentence, over both dialects; and after all of it the server
//! answers as before, in the memory it had before.

mod messages;
mod sconce_v1;
mod the_open_protocol;

use tokio::sync::OnceCell;

use crate::{
    harness::{
        Server, Store, fixture, process,
        tensors::{Form, Values, floats},
    },
    proto::{oip, *},
};

/// Memory that an allocator may keep of the largest messages here.
const SLACK_BYTES: u64 = 96 << 20;

async fn server() -> &'static Server {
    static SERVER: OnceCell<Server> = OnceCell::const_new();
    SERVER
        .get_or_init(async || {
            let store = Store::new()
                .model("tiny", "1.0.0", fixture("onnx/tiny.onnx"))
                .model("words", "1.0.0", fixture("onnx/identity_string.onnx"))
                .model("any", "1.0.0", fixture("onnx/identity_float.onnx"))
                .model("flags", "1.0.0", fixture("onnx/identity_bool.onnx"))
                .model("scalar", "1.0.0", fixture("onnx/scalar.onnx"))
                .sample("early-signal");
            Server::start(store, &[]).await
        })
        .await
}

/// The inputs of `tiny`, right ones.
fn good() -> [Values; 2] {
    ["INPUT0", "INPUT1"].map(|name| floats(name, &[1, 16], &[1.5; 16]))
}

fn predict(model: &str, inputs: impl IntoIterator<Item = Values>) -> PredictRequest {
    PredictRequest {
        model: model.into(),
        inputs: inputs.into_iter().map(|values| values.to_sconce(Form::Raw)).collect(),
        ..Default::default()
    }
}

fn infer(model: &str, inputs: impl IntoIterator<Item = Values>, form: Form) -> oip::ModelInferRequest {
    let mut request = oip::ModelInferRequest { model_name: model.into(), ..Default::default() };
    for values in inputs {
        values.into_oip(&mut request, form);
    }
    request
}

/// A new connection gets the right answer over either dialect.
async fn assert_answers(server: &Server) {
    let answer = server.predict(predict("tiny", good())).await.expect("an answer");
    assert_eq!(Values::of_sconce(&answer.outputs[0]).numbers(), [3.0; 16]);
    let answer = server.infer(infer("tiny", good(), Form::Typed)).await.expect("an answer");
    assert_eq!(Values::of_oip(&answer)[0].numbers(), [3.0; 16]);
}

/// Runs `attack`, and then expects the server as it was.
async fn unharmed_by(attack: impl AsyncFnOnce(&'static Server)) {
    let server = server().await;
    assert_answers(server).await;
    let before = process::resident_bytes(server.pid());
    attack(server).await;
    assert_answers(server).await;
    server.assert_unharmed().await;
    server.assert_memory_is_back(before, SLACK_BYTES).await;
}

//! Variants, rules, sticky keys and shadows: who gets whose requests, and what the answers say of it.

mod changes;
mod experiments;
mod fit;
mod shadows;
mod shares;

use tonic::{Request, Status, transport::Channel};

use crate::{
    harness::{
        Server,
        adders::{ADDER, rows, version, who_answered},
        call,
        tensors::{Form, Values},
    },
    proto::{inference_client::InferenceClient, *},
};

/// Who answered a call, and why.
#[derive(Clone, Debug, PartialEq)]
struct Answered {
    number: u64,
    variant: String,
    reason: RouteReason,
    degraded: Vec<String>,
}

/// A call without a version, with these attributes and metadata. The answer is checked against the version that it claims.
async fn ask(
    client: &mut InferenceClient<Channel>,
    attributes: &[(&str, &str)],
    metadata: &[(&'static str, &str)],
) -> Result<Answered, Status> {
    let input = rows(7);
    let attributes = attributes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let inputs = vec![input.to_sconce(Form::Raw)];
    let mut request: Request<PredictRequest> =
        call(PredictRequest { model: ADDER.into(), attributes, inputs, ..Default::default() });
    for (key, value) in metadata {
        request.metadata_mut().append(*key, value.parse().expect("a value"));
    }
    let answer = client.predict(request).await?.into_inner();
    let served = answer.served.expect("it says who served");
    let output = Values::of_sconce(&answer.outputs[0]);
    let number = who_answered(&input, &served.version, &output).unwrap_or_else(|wrong| panic!("{wrong}"));
    let degraded = answer.degraded.map(|degraded| degraded.reasons).unwrap_or_default();
    Ok(Answered { number, reason: served.reason(), variant: served.variant, degraded })
}

fn variant(name: &str, number: u64, weight: f64) -> Variant {
    Variant { name: name.into(), version: version(number), weight, ..Default::default() }
}

fn by_attribute(key: &str) -> Option<Sticky> {
    Some(Sticky { attribute: key.into(), ..Default::default() })
}

async fn set(server: &Server, traffic: Traffic) -> Result<ChangeResponse, Status> {
    let asked = Some(Asked { caller: "tester".into(), ..Default::default() });
    let request = SetRouteRequest { model: ADDER.into(), traffic: Some(traffic), asked };
    Ok(server.admin().await.set_route(call(request)).await?.into_inner())
}

/// Which must hold when it is answered.
async fn sets(server: &Server, traffic: Traffic) {
    let done = set(server, traffic).await.expect("it is right");
    assert_eq!(done.settled(), Settled::Ready, "{done:?}");
}

/// Pins a version, so that the highest is not stable by itself.
async fn pins(server: &Server, number: u64) {
    let request = PromoteRequest { model: ADDER.into(), version: version(number), asked: None };
    server.admin().await.promote(call(request)).await.expect("it is there");
}

async fn traffic(server: &Server) -> Traffic {
    server.describe(ADDER).await.route.and_then(|route| route.traffic).expect("it is shown")
}

//! A model whose every version adds its own number: each answer tells who gave it, and is checked against who says so.

use std::ops::RangeInclusive;

use tonic::{Status, transport::Channel};

use super::{
    Server, Store, call,
    tensors::{Form, Values, floats},
    versions::{Published, adder, publish},
};
use crate::proto::{inference_client::InferenceClient, predict_request::Select, *};

pub const ADDER: &str = "adder";
/// What a version adds to every value, by its number. Sums stay below 2^24: FP32 has them exactly.
const OFFSET: u64 = 10_000;

pub fn version(number: u64) -> String {
    format!("1.0.{number}")
}

/// A store of these versions.
pub fn adders(numbers: RangeInclusive<u64>) -> Store {
    let store = Store::new();
    for number in numbers {
        publish_adder(&store, number);
    }
    store
}

pub fn publish_adder(store: &Store, number: u64) -> Published {
    publish(&store.path().join(ADDER), &version(number), &[("model.onnx", &artifact(number))], "").expect("a version")
}

pub fn artifact(number: u64) -> Vec<u8> {
    adder(offset(number))
}

/// Three rows, none of which another call has.
pub fn rows(number: u64) -> Values {
    let first = (number % 3_000 * 3) as f32;
    floats("x", &[3, 1], &[first, first + 1.0, first + 2.0])
}

/// The number of the version that the answer claims, if every row of the answer is that version's.
pub fn who_answered(input: &Values, claimed: &str, output: &Values) -> Result<u64, String> {
    let number = claimed.strip_prefix("1.0.").and_then(|number| number.parse().ok());
    let number: u64 = number.ok_or_else(|| format!("version '{claimed}' answered"))?;
    let expected: Vec<f64> = input.numbers().iter().map(|x| x + f64::from(offset(number))).collect();
    match output.numbers() == expected {
        true => Ok(number),
        false => Err(format!("{claimed} answered {:?} instead of {expected:?}", output.numbers())),
    }
}

/// One call of many: which version answered it, or what went wrong.
pub async fn predict(mut client: InferenceClient<Channel>, number: u64) -> Result<u64, String> {
    let answered = ask(&mut client, number, None).await;
    answered.map_err(|status| status.to_string())?
}

/// The number of the version that answers such a call. A wrong answer is none.
pub async fn answering(server: &Server, select: Option<Select>) -> Result<u64, Status> {
    answer_of(&mut server.inference().await, select).await
}

/// `answering`, over a connection that is there.
pub async fn answer_of(client: &mut InferenceClient<Channel>, select: Option<Select>) -> Result<u64, Status> {
    let answered = ask(client, 7, select).await?;
    Ok(answered.unwrap_or_else(|wrong| panic!("{wrong}")))
}

async fn ask(
    client: &mut InferenceClient<Channel>,
    number: u64,
    select: Option<Select>,
) -> Result<Result<u64, String>, Status> {
    let input = rows(number);
    let inputs = vec![input.to_sconce(Form::Raw)];
    let request = PredictRequest { model: ADDER.into(), select, inputs, ..Default::default() };
    let answer = client.predict(call(request)).await?.into_inner();
    let version = answer.served.map(|served| served.version).unwrap_or_default();
    let output = answer.outputs.first().map(Values::of_sconce);
    Ok(output.ok_or_else(|| "no output".into()).and_then(|output| who_answered(&input, &version, &output)))
}

fn offset(number: u64) -> f32 {
    (number * OFFSET) as f32
}

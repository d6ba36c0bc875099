//! `cache:` of model.yaml: an equal request gets the answer again and is told so, equal requests at once run once, and no answer
//! is ever another version's.

use std::{collections::BTreeMap, time::Duration};

use tonic::Code;

use crate::{
    harness::{
        PATIENCE, Server, Store,
        adders::{ADDER, publish_adder, who_answered},
        assert_refused, call, eventually, fixture,
        tensors::{Form, Values, doubles, fixture_examples, floats},
    },
    proto::{oip::infer_parameter::ParameterChoice, predict_request::Select, *},
};

const HIT: CacheResult = CacheResult::Hit;
const MISS: CacheResult = CacheResult::Miss;
const BYPASS: CacheResult = CacheResult::Bypass;

/// A store with one adder, and what its model.yaml says.
fn adder(yaml: &str) -> Store {
    let store = Store::new().file(&format!("{ADDER}/model.yaml"), yaml);
    publish_adder(&store, 1);
    store
}

fn question(values: &[f32]) -> PredictRequest {
    let rows = i64::try_from(values.len()).expect("a few");
    let inputs = vec![floats("x", &[rows, 1], values).to_sconce(Form::Raw)];
    PredictRequest { model: ADDER.into(), inputs, ..Default::default() }
}

fn attributes<const N: usize>(said: [(&str, &str); N]) -> BTreeMap<String, String> {
    said.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

/// What the answer says of the cache.
async fn used(server: &Server, request: PredictRequest) -> Option<CacheResult> {
    let answer = server.predict(request).await.expect("an answer");
    answer.cache.map(|cache| cache.result())
}

#[tokio::test]
async fn an_equal_request_gets_the_answer_again_and_is_told_its_age() {
    let server = Server::start(adder("cache: { ttl: 1h }"), &[]).await;
    let first = server.predict(question(&[1.0, 2.0])).await.expect("an answer");
    assert_eq!(first.cache, Some(CacheUse { result: MISS as i32, age_ms: 0 }));
    let aged = eventually("an age that shows", PATIENCE, async || {
        let again = server.predict(question(&[1.0, 2.0])).await.expect("an answer");
        (again.cache.expect("it is said").age_ms > 0).then_some(again)
    })
    .await;
    assert_eq!(aged.cache.expect("it is said").result(), HIT);
    assert_eq!((&aged.outputs, aged.prediction_ids.len()), (&first.outputs, 2));
    assert!(aged.prediction_ids.iter().all(|id| !first.prediction_ids.contains(id)), "the ids are its own");
    let timing = aged.timing.expect("it is told");
    assert_eq!((timing.compute_us, timing.batch_rows), (0, 0));

    // The same values in another form, over the other protocol.
    let mut request = oip::ModelInferRequest { model_name: ADDER.into(), ..Default::default() };
    floats("x", &[2, 1], &[1.0, 2.0]).into_oip(&mut request, Form::Typed);
    let said = server.infer(request).await.expect("an answer").parameters;
    let choice = |name: &str| said.get(name).and_then(|said| said.parameter_choice.clone());
    assert_eq!(choice("cache"), Some(ParameterChoice::StringParam("hit".into())));
    assert!(matches!(choice("cache_age_ms"), Some(ParameterChoice::Int64Param(1..))));
    // What has no row in common has no answer in common.
    assert_eq!(used(&server, question(&[1.0])).await, Some(MISS));
    assert_eq!(used(&server, question(&[2.0, 1.0])).await, Some(MISS));

    assert_eq!(server.metric("sconce_cache_requests_total{result=\"miss\"}").await, Some(3.0));
    assert_eq!(server.metric("sconce_cache_entries{model=\"adder\"}").await, Some(3.0));
    assert_eq!(server.metric("sconce_batch_rows_sum{model=\"adder\"}").await, Some(5.0));
    let hits = server.metric("sconce_cache_requests_total{result=\"hit\"}").await;
    assert_eq!(server.metric("sconce_cache_hit_age_seconds_count").await, hits);
}

#[tokio::test]
async fn without_a_cache_nothing_is_said_and_nothing_counted() {
    let server = Server::start(adder(""), &[]).await;
    for _ in 0..2 {
        assert_eq!(used(&server, question(&[1.0])).await, None);
    }
    let mut request = oip::ModelInferRequest { model_name: ADDER.into(), ..Default::default() };
    floats("x", &[1, 1], &[1.0]).into_oip(&mut request, Form::Raw);
    let said = server.infer(request).await.expect("an answer").parameters;
    assert!(!said.contains_key("cache") && !said.contains_key("cache_age_ms"), "{said:?}");
    assert_eq!(server.metric("sconce_cache_requests_total").await, None);
    // A model.yaml that asks for one makes a new servable, and one that no longer does takes all of it away.
    server.store.write("adder/model.yaml", "cache: on");
    eventually("answers are kept", PATIENCE, async || used(&server, question(&[1.0])).await).await;
    assert!(server.metric("sconce_cache_entries").await.is_some());
    server.store.write("adder/model.yaml", "cache: off");
    eventually("no answer is kept", PATIENCE, async || used(&server, question(&[1.0])).await.is_none().then_some(()))
        .await;
}

#[tokio::test]
async fn types_parameters_and_outputs_are_part_of_the_question() {
    let store = Store::new()
        .file("binary/model.yaml", "cache: on")
        .model("binary", "1.0.0", fixture("lightgbm/binary.txt"))
        .file("tiny/model.yaml", "cache: on")
        .model("tiny", "1.0.0", fixture("onnx/tiny.onnx"));
    let server = Server::start(store, &[]).await;

    let example = fixture_examples("lightgbm/binary").examples.remove(0);
    let input = Values::of_example(&example.request.inputs[0]);
    let shape = input.shape.clone();
    let tenths = |count: usize| vec![0.1; count];
    let count = input.numbers().len();
    let ask = async |values: Values, kind: &str| {
        let text = parameter_value::Value::StringValue(kind.into());
        let parameters = [("predict_type".to_owned(), ParameterValue { value: Some(text) })].into();
        let inputs = vec![values.to_sconce(Form::Raw)];
        used(&server, PredictRequest { model: "binary".into(), inputs, parameters, ..Default::default() }).await
    };
    let wide = || doubles(&input.name, &shape, &tenths(count));
    let narrow = || floats(&input.name, &shape, &vec![0.1f32; count]);
    assert_eq!(ask(wide(), "normal").await, Some(MISS));
    assert_eq!(ask(wide(), "raw").await, Some(MISS));
    assert_eq!(ask(narrow(), "raw").await, Some(MISS), "a tenth in single precision is another number");
    for (values, kind) in [(wide(), "normal"), (wide(), "raw"), (narrow(), "raw")] {
        assert_eq!(ask(values, kind).await, Some(HIT));
    }

    let ask = async |outputs: &[&str]| {
        let inputs = ["INPUT0", "INPUT1"].map(|name| floats(name, &[1, 16], &[1.0; 16]).to_sconce(Form::Raw));
        let outputs: Vec<String> = outputs.iter().map(|&name| name.to_owned()).collect();
        let request = PredictRequest {
            model: "tiny".into(),
            inputs: inputs.into(),
            outputs: outputs.clone(),
            ..Default::default()
        };
        let answer = server.predict(request).await.expect("an answer");
        let names: Vec<String> = answer.outputs.iter().map(|output| output.name.clone()).collect();
        assert!(outputs.is_empty() || names == outputs, "{names:?}");
        answer.cache.map(|cache| cache.result())
    };
    for selection in [&["OUTPUT0"][..], &["OUTPUT1"], &["OUTPUT1", "OUTPUT0"], &[]] {
        assert_eq!(ask(selection).await, Some(MISS), "{selection:?}");
    }
    assert_eq!(ask(&["OUTPUT0", "OUTPUT1"]).await, Some(HIT), "that is what all of them means");
    assert_eq!(ask(&["OUTPUT1", "OUTPUT0"]).await, Some(HIT));
}

#[tokio::test]
async fn named_attributes_stand_for_the_inputs_and_who_lacks_one_is_not_kept() {
    let server = Server::start(adder("cache: { ttl: 1h, key: [symbol, horizon] }"), &[]).await;
    let ask = async |value: f32, said: &[(&str, &str)]| {
        let attributes = said.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let answer = server.predict(PredictRequest { attributes, ..question(&[value]) }).await.expect("an answer");
        (Values::of_sconce(&answer.outputs[0]).numbers()[0], answer.cache.expect("it is said").result())
    };
    let es = [("symbol", "ES"), ("horizon", "5m"), ("user", "7")];
    assert_eq!(ask(1.0, &es).await, (10_001.0, MISS));
    assert_eq!(ask(2.0, &es[..2]).await, (10_001.0, HIT), "whatever the inputs, whoever asks");
    assert_eq!(ask(2.0, &[("symbol", "ES"), ("horizon", "1h")]).await, (10_002.0, MISS));
    for _ in 0..2 {
        assert_eq!(ask(3.0, &[("symbol", "ES")]).await, (10_003.0, BYPASS));
    }
    assert_eq!(server.metric("sconce_cache_requests_total{result=\"bypass\"}").await, Some(2.0));

    // A wrong question is wrong although its answer is known.
    let attributes = attributes([("symbol", "ES"), ("horizon", "5m")]);
    let wrong = PredictRequest { attributes, inputs: vec![], ..question(&[1.0]) };
    assert_refused("no input", server.predict(wrong).await, Code::InvalidArgument, "MISSING_INPUT");

    // Through the Open Inference Protocol the parameters are the attributes.
    let mut request = oip::ModelInferRequest { model_name: ADDER.into(), ..Default::default() };
    floats("x", &[1, 1], &[9.0]).into_oip(&mut request, Form::Raw);
    for (name, value) in [("symbol", "ES"), ("horizon", "5m")] {
        let parameter_choice = Some(ParameterChoice::StringParam(value.into()));
        request.parameters.insert(name.into(), oip::InferParameter { parameter_choice });
    }
    let answer = server.infer(request).await.expect("an answer");
    assert_eq!(answer.parameters["cache"].parameter_choice, Some(ParameterChoice::StringParam("hit".into())));
    assert_eq!(Values::of_oip(&answer)[0].numbers(), [10_001.0]);
}

#[tokio::test]
async fn an_answer_is_never_another_versions() {
    let server = Server::start(adder("cache: { ttl: 1h }\nversions: { latest: 2 }"), &[]).await;
    let input = floats("x", &[1, 1], &[1.0]);
    let ask = async |select: Option<Select>| {
        let answer = server.predict(PredictRequest { select, ..question(&[1.0]) }).await.expect("an answer");
        let version = answer.served.expect("it is told").version;
        let output = Values::of_sconce(&answer.outputs[0]);
        let number = who_answered(&input, &version, &output).unwrap_or_else(|wrong| panic!("{wrong}"));
        (number, answer.cache.expect("it is said").result())
    };
    assert_eq!(ask(None).await, (1, MISS));
    assert_eq!(ask(None).await, (1, HIT));
    publish_adder(&server.store, 2);
    let first = eventually("the new version answers", PATIENCE, async || {
        let (number, cache) = ask(None).await;
        (number == 2).then_some(cache)
    })
    .await;
    assert_eq!(first, MISS);
    assert_eq!(ask(None).await, (2, HIT));
    let pinned = |version: &str| Some(Select::Version(version.into()));
    assert_eq!(ask(pinned("1.0.1")).await, (1, HIT), "the old one keeps its own");
    assert_eq!(ask(pinned("1.0.2")).await, (2, HIT), "however the version was chosen");
}

/// A row of a model that takes a while.
fn slow(first: f32) -> PredictRequest {
    let mut values = vec![0.5; 8 * 64];
    values[0] = first;
    let inputs = vec![floats("x", &[64, 8], &values).to_sconce(Form::Raw)];
    PredictRequest { model: "slow".into(), inputs, ..Default::default() }
}

async fn slow_server() -> Server {
    let store = Store::new().file("slow/model.yaml", "cache: { ttl: 1h }\nbatching: { queue_timeout: 60s }").model(
        "slow",
        "1.0.0",
        fixture("onnx/slow.onnx"),
    );
    Server::start(store, &["--cores=2"]).await
}

#[tokio::test]
async fn fifty_equal_requests_at_once_run_once() {
    let server = slow_server().await;
    // On connections of both cores.
    let mut clients = Vec::new();
    for _ in 0..10 {
        clients.push(server.inference().await);
    }
    let asked = (0..50).map(|place| {
        let mut client = clients[place % clients.len()].clone();
        tokio::spawn(async move { client.predict(call(slow(1.0))).await })
    });
    let asked: Vec<_> = asked.collect();
    let mut results = Vec::new();
    let mut outputs = Vec::new();
    for task in asked {
        let answer = task.await.expect("no panic").expect("an answer").into_inner();
        results.push(answer.cache.expect("it is said").result());
        outputs.push(answer.outputs);
    }
    assert_eq!(results.iter().filter(|result| **result == MISS).count(), 1);
    assert!(outputs.iter().all(|output| *output == outputs[0]));
    assert_eq!(server.metric("sconce_batch_rows_count{model=\"slow\"}").await, Some(1.0));
    assert_eq!(server.metric("sconce_cache_requests_total{result=\"hit\"}").await, Some(49.0));
}

#[tokio::test]
async fn who_gives_up_takes_nobody_along() {
    let server = slow_server().await;
    let misses = async |count: f64| {
        eventually("it is being computed", PATIENCE, async || {
            let shown = server.metric("sconce_cache_requests_total{result=\"miss\"}").await;
            (shown >= Some(count)).then_some(())
        })
        .await;
    };
    // The one that computes goes away while others wait; then one that waits runs out of its time.
    let mut client = server.inference().await;
    let first = tokio::spawn(async move { client.predict(call(slow(2.0))).await });
    misses(1.0).await;
    let others = server.inference().await;
    let ask = |timeout_ms: u32| {
        let mut client = others.clone();
        tokio::spawn(async move { client.predict(call(PredictRequest { timeout_ms, ..slow(2.0) })).await })
    };
    let patient = [ask(0), ask(0)];
    eventually("all of them wait", PATIENCE, async || {
        (server.metric("sconce_requests_in_flight").await == Some(3.0)).then_some(())
    })
    .await;
    first.abort();
    misses(2.0).await;
    let hasty = ask(10).await.expect("no panic");
    assert_refused("its time is over", hasty, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    for task in patient {
        assert!(task.await.expect("no panic").is_ok());
    }
    server.assert_unharmed().await;
}

#[tokio::test]
async fn what_is_kept_stays_within_its_limits_and_goes_with_its_version() {
    let server = Server::start(adder("cache: { ttl: 1h, max_entries: 50, max_bytes: 1MiB }"), &[]).await;
    let mut client = server.inference().await;
    let mut ask = async |values: &[f32]| {
        client.predict(call(question(values))).await.expect("an answer").into_inner().cache.expect("it is said")
    };
    for number in 0..200 {
        ask(&[number as f32]).await;
    }
    let entries = server.metric("sconce_cache_entries{model=\"adder\"}").await.expect("it is counted");
    assert!((40.0..=50.0).contains(&entries), "{entries}");
    for number in 0..30 {
        ask(&vec![number as f32; 25_000]).await;
        let bytes = server.metric("sconce_cache_bytes{model=\"adder\"}").await.expect("it is counted");
        assert!(bytes <= f64::from(1 << 20), "{bytes}");
    }
    let large = vec![7.0; 300_000];
    assert_eq!([ask(&large).await.result(), ask(&large).await.result()], [MISS, MISS], "more than all that is kept");

    publish_adder(&server.store, 2);
    eventually("the version and what it kept are gone", 2 * PATIENCE, async || {
        let gone = server.metric("sconce_cache_entries{version=\"1.0.1\"}").await.is_none();
        gone.then_some(())
    })
    .await;
    assert_eq!(server.metric("sconce_cache_bytes{version=\"1.0.2\"}").await, Some(0.0));
}

#[tokio::test]
async fn an_answer_is_computed_anew_when_its_time_is_over() {
    let server = Server::start(adder("cache: { ttl: 300ms }"), &[]).await;
    assert_eq!(used(&server, question(&[1.0])).await, Some(MISS));
    eventually("its time is over", PATIENCE, async || {
        let cache = server.predict(question(&[1.0])).await.expect("an answer").cache.expect("it is said");
        assert!(Duration::from_millis(cache.age_ms) < Duration::from_millis(300));
        (cache.result() == MISS).then_some(())
    })
    .await;
}

#[tokio::test]
async fn tritons_statistics_and_configuration_show_it() {
    let server = Server::start(adder("cache: on"), &["--repository-api"]).await;
    for _ in 0..3 {
        server.predict(question(&[1.0])).await.expect("an answer");
    }
    let mut client = server.oip().await;
    let request = oip::ModelStatisticsRequest { name: ADDER.into(), ..Default::default() };
    let statistics = client.model_statistics(call(request)).await.expect("statistics").into_inner();
    let shown = statistics.model_stats[0].inference_stats.expect("they are there");
    let count = |duration: Option<oip::StatisticDuration>| duration.expect("it is there").count;
    assert_eq!((count(shown.cache_hit), count(shown.cache_miss), count(shown.success)), (2, 1, 3));
    assert_eq!(statistics.model_stats[0].execution_count, 1);
    let request = oip::ModelConfigRequest { name: ADDER.into(), ..Default::default() };
    let config = client.model_config(call(request)).await.expect("a configuration").into_inner();
    assert!(config.config.expect("it is there").response_cache.expect("it is said").enable);
}

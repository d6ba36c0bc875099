//! What became of predictions: reported to any replica, at any time, and kept.

mod buckets;
mod import;
mod kills;

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::Value;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::{
    harness::{
        PATIENCE, Server, Store, assert_refused, call, eventually, fact, fixture, process, root, sconce, store::files,
    },
    proto::{record_outcome_request::Prediction, *},
    shell::Shell,
};

const MODEL: &str = "early-signal";

/// The sample, and beside it a key of prediction ids.
fn store() -> Store {
    let store = Store::new().sample(MODEL);
    fs::write(store.beside("key"), "a secret of some thirty-two bytes").expect("a file");
    store
}

/// The option that makes ids outlive a server.
fn key_of(store: &Store) -> String {
    format!("--prediction-id-key-file={}", store.beside("key").display())
}

async fn started() -> Server {
    let store = store();
    let key = key_of(&store);
    Server::start(store, &[&key]).await
}

/// Another replica over the store of one that runs.
async fn another(of: &Server) -> Server {
    let mut command = sconce();
    command.arg("serve").arg("--model-store").arg(of.store.path());
    let server = Server::launch(Store::new(), command, &[&key_of(&of.store)]).await;
    server.ready().await;
    server.settled().await;
    server
}

/// Ends a server and starts one with the same ports, which is the same replica then.
async fn restarted(server: Server, signal: rustix::process::Signal) -> Server {
    let mut server = server;
    let ports = server.ports;
    process::kill(server.pid(), signal);
    eventually("it ends", PATIENCE, async || server.exit_status()).await;
    let store = std::mem::replace(&mut server.store, Store::new());
    drop(server);
    let options = [key_of(&store), format!("--grpc-port={}", ports.grpc)];
    Server::start(store, &options.each_ref().map(String::as_str)).await
}

/// The rows of docs/examples, as a table.
fn rows() -> PredictRequest {
    let text = fs::read_to_string(root().join("docs/examples/rows.csv")).expect("a file");
    let mut lines = text.lines();
    let names = lines.next().expect("a first line").split(',').map(str::to_owned).collect();
    let cell = |cell: &str| if cell.is_empty() { f64::NAN } else { cell.parse().expect("a number") };
    let values = lines.flat_map(|line| line.split(',').map(cell)).collect();
    PredictRequest { model: MODEL.into(), table: Some(Table { names, values }), ..Default::default() }
}

/// So many ids of new predictions.
async fn predicted(server: &Server, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    while ids.len() < count {
        ids.extend(server.predict(rows()).await.expect("an answer").prediction_ids);
    }
    ids.truncate(count);
    ids
}

fn outcome(id: &str, label: f64) -> RecordOutcomeRequest {
    let prediction = Some(Prediction::PredictionId(id.to_owned()));
    RecordOutcomeRequest { prediction, label: Some(label), ..Default::default() }
}

async fn record(server: &Server, request: RecordOutcomeRequest) -> Result<RecordOutcomeResponse, Status> {
    Ok(server.inference().await.record_outcome(call(request)).await?.into_inner())
}

/// All through one stream: its answers, and how it ended.
async fn streamed(
    server: &Server,
    outcomes: Vec<RecordOutcomeRequest>,
) -> (Vec<RecordOutcomesResponse>, Option<Status>) {
    let (send, sent) = tokio::sync::mpsc::channel(16);
    tokio::spawn(async move {
        for outcome in outcomes {
            if send.send(outcome).await.is_err() {
                return;
            }
        }
    });
    let mut client = server.inference().await;
    let mut stream = match client.record_outcomes(call(ReceiverStream::new(sent))).await {
        Ok(stream) => stream.into_inner(),
        Err(status) => return (Vec::new(), Some(status)),
    };
    let mut answers = Vec::new();
    loop {
        match stream.message().await {
            Ok(Some(answer)) => answers.push(answer),
            Ok(None) => return (answers, None),
            Err(status) => return (answers, Some(status)),
        }
    }
}

/// The cells of all replicas' files.
fn cells(store: &Path) -> Vec<Value> {
    let files = files(&store.join(MODEL).join(".sconce/counts"));
    let texts = files.iter().filter(|file| file.extension().is_some_and(|kind| kind == "json"));
    let files =
        texts.map(|file| serde_json::from_str::<Value>(&fs::read_to_string(file).expect("a file")).expect("whole"));
    files.flat_map(|file| file["cells"].as_array().expect("cells").clone()).collect()
}

/// Outcomes that are written down.
fn written(store: &Path) -> u64 {
    cells(store).iter().filter_map(|cell| cell["outcomes"]["count"].as_u64()).sum()
}

#[tokio::test]
async fn an_outcome_is_credited_to_the_variant_and_outlives_the_server() {
    let server = started().await;
    let ids = predicted(&server, 5).await;
    for (place, id) in ids.iter().enumerate() {
        let mut request = outcome(id, (place % 2) as f64);
        request.reward = Some(0.5);
        request.metrics = BTreeMap::from([("pnl".to_owned(), 3.0)]);
        let answer = record(&server, request).await.expect("an answer");
        assert_eq!((answer.result(), answer.durable), (OutcomeResult::Credited, true));
        let credited = answer.credited.expect("it is known");
        assert_eq!((&*credited.model, &*credited.version, &*credited.variant), (MODEL, "1.1.0", "stable"));
        assert_eq!(written(&server.store.path()), place as u64 + 1, "before it is acknowledged");
    }
    for expected in [OutcomeResult::Credited, OutcomeResult::Repeated] {
        let other = RecordOutcomeRequest { reward: Some(9.0), ..outcome(&ids[0], 0.0) };
        assert_eq!(record(&server, other).await.expect("an answer").result(), expected, "it says something else, once");
    }
    let cell = cells(&server.store.path()).remove(0);
    assert_eq!(
        (&cell["outcomes"]["named"]["pnl"]["mean"], &cell["outcomes"]["named"]["pnl"]["count"]),
        (&3.0.into(), &5.into())
    );
    assert_eq!(cell["outcomes"]["log_loss"]["count"], 6, "the score came with the id");
    let before = written(&server.store.path());
    let server = restarted(server, rustix::process::Signal::TERM).await;
    assert_eq!(written(&server.store.path()), before, "a clean end takes nothing away");
    record(&server, outcome(&predicted(&server, 1).await[0], 1.0)).await.expect("an answer");
    let late = record(&server, outcome(&ids[1], 0.0)).await.expect("an answer");
    assert_eq!(late.result(), OutcomeResult::Credited, "ids outlive the server");
    assert_eq!(cells(&server.store.path()).len(), 1, "the same file goes on");
    assert_eq!(written(&server.store.path()), before + 2);
    server.assert_unharmed().await;
}

#[tokio::test]
async fn forged_ids_are_counted_and_wrong_outcomes_are_refused() {
    let server = started().await;
    let id = predicted(&server, 1).await.remove(0);
    let mut turned = id.clone().into_bytes();
    turned[9] = if turned[9] == b'A' { b'B' } else { b'A' };
    let turned = String::from_utf8(turned).expect("text");
    for forged in ["", "nonsense", &id[1..], &format!("{id}A"), &turned] {
        let answer = record(&server, outcome(forged, 1.0)).await.expect("no error");
        assert_eq!((answer.result(), answer.credited), (OutcomeResult::UnknownId, None), "{forged}");
    }
    assert_eq!(server.metric("sconce_outcomes_total{model=\"\",result=\"unknown\"}").await, Some(5.0));
    assert_eq!(cells(&server.store.path()).len(), 0);
    let nan =
        assert_refused("NaN", record(&server, outcome(&id, f64::NAN)).await, Code::InvalidArgument, "INVALID_OUTCOME");
    assert_eq!(fact(&nan, "field"), "label");
    let none = RecordOutcomeRequest { label: None, ..outcome(&id, 0.0) };
    assert_refused("nothing", record(&server, none).await, Code::InvalidArgument, "INVALID_OUTCOME");
    let nobody = RecordOutcomeRequest { prediction: None, ..outcome(&id, 0.0) };
    assert_refused("nobody", record(&server, nobody).await, Code::InvalidArgument, "INVALID_OUTCOME");

    let own = |version: &str| RecordOutcomeRequest {
        prediction: Some(Prediction::Own(OwnId {
            request_id: "order-7".into(),
            model: MODEL.into(),
            version: version.into(),
            variant: "stable".into(),
        })),
        ..outcome("", 1.0)
    };
    assert_eq!(record(&server, own("1.1")).await.expect("an answer").result(), OutcomeResult::Credited);
    assert_eq!(record(&server, own("1.1")).await.expect("an answer").result(), OutcomeResult::Repeated);
    assert_eq!(record(&server, own("7")).await.expect("an answer").result(), OutcomeResult::UnknownId);
    server.assert_unharmed().await;
}

#[tokio::test]
async fn a_stream_says_how_far_it_is_and_what_does_not_count() {
    let server = started().await;
    let ids = predicted(&server, 500).await;
    let mut outcomes: Vec<_> = ids.iter().map(|id| outcome(id, 1.0)).collect();
    outcomes[7] = outcome("forged", 1.0);
    outcomes[20] = outcome(&ids[20], f64::INFINITY);
    outcomes[30] = outcome(&ids[29], 1.0);
    let (answers, end) = streamed(&server, outcomes).await;
    assert!(end.is_none(), "{end:?}");
    let last = answers.last().expect("an answer");
    assert_eq!((last.received, last.credited, last.repeats), (500, 497, 1));
    assert_eq!((last.unknown, last.refused, last.durable), (1, 1, true));
    let notes: Vec<_> = answers.iter().flat_map(|answer| &answer.notes).collect();
    let said: Vec<_> = notes.iter().map(|note| (note.index, note.result(), &*note.reason)).collect();
    assert_eq!(said, [(7, OutcomeResult::UnknownId, ""), (20, OutcomeResult::Refused, "INVALID_OUTCOME")]);
    assert_eq!(written(&server.store.path()), 497);
    server.assert_unharmed().await;
}

#[tokio::test]
async fn a_stream_is_answered_before_the_server_ends_and_does_not_hold_it_up() {
    let server = started().await;
    let id = predicted(&server, 1).await.remove(0);
    let (send, sent) = tokio::sync::mpsc::channel(16);
    let mut client = server.inference().await;
    let mut stream = client.record_outcomes(ReceiverStream::new(sent)).await.expect("a stream").into_inner();
    send.send(outcome(&id, 1.0)).await.expect("it is read");
    assert_eq!(stream.message().await.expect("no error").expect("an answer").credited, 1);
    send.send(outcome(&id, 0.0)).await.expect("it is read");
    let begun = std::time::Instant::now();
    process::kill(server.pid(), rustix::process::Signal::TERM);
    let mut credited = 1;
    let end = loop {
        match stream.message().await {
            Ok(Some(answer)) => credited = answer.credited,
            Ok(None) => panic!("an end without a word"),
            Err(status) => break status,
        }
    };
    assert_refused("the end", Err::<(), _>(end), Code::Unavailable, "DRAINING");
    eventually("it ends", PATIENCE, async || server.exit_status()).await;
    assert!(begun.elapsed() < std::time::Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!(written(&server.store.path()) >= credited);
}

#[tokio::test]
async fn requests_of_compared_versions_are_written_at_the_end_and_of_others_never() {
    const REQUESTS: u64 = 30;
    let route = "stable: 1.0.0\nvariants: [{ name: canary, version: 1.1.0, weight: 50 }]\n";
    let store = store().file("early-signal/model.yaml", "versions: all\n").file("early-signal/route.yaml", route);
    let (key, store) = (key_of(&store), store.model("tiny", "1.0.0", fixture("onnx/tiny.onnx")));
    let server = Server::start(store, &[&key]).await;
    // 1.0.0 knows all of them but the last.
    let mut known = rows();
    let mut table = known.table.take().expect("rows");
    table.names.pop();
    table.values.truncate(table.names.len());
    known.table = Some(table);
    let mut ids = Vec::new();
    for _ in 0..REQUESTS {
        ids.push(server.predict(known.clone()).await.expect("an answer").prediction_ids.remove(0));
    }
    let mut variants = std::collections::BTreeSet::new();
    for id in &ids {
        let answer = record(&server, outcome(id, 1.0)).await.expect("an answer");
        variants.insert(answer.credited.expect("it is known").variant);
    }
    assert_eq!(variants.into_iter().collect::<Vec<_>>(), ["canary", "stable"]);
    server.predict(known).await.expect("an answer");
    let server = restarted(server, rustix::process::Signal::TERM).await;
    let sum = |name: &str| cells(&server.store.path()).iter().filter_map(|cell| cell[name].as_u64()).sum::<u64>();
    assert_eq!((sum("assigned"), sum("answered"), written(&server.store.path())), (31, 31, REQUESTS));
    assert!(cells(&server.store.path()).iter().all(|cell| cell["latency"]["buckets"].is_array()));
    let tiny = files(&server.store.path().join("tiny/.sconce"));
    assert!(tiny.iter().all(|file| !file.to_string_lossy().contains("counts")), "{tiny:?}");
}

#[tokio::test]
async fn with_the_store_away_nothing_is_acknowledged_and_a_retry_counts_once() {
    let server = started().await;
    let ids = predicted(&server, 2).await;
    record(&server, outcome(&ids[0], 1.0)).await.expect("an answer");
    let (here, away) = (server.store.path().join(MODEL), server.store.beside("away"));
    fs::rename(&here, &away).expect("a rename");
    let refused = record(&server, outcome(&ids[1], 1.0)).await;
    let status = assert_refused("away", refused, Code::Unavailable, "STORE_UNAVAILABLE");
    assert!(crate::harness::retry_after(&status).is_some());
    let (answers, end) = streamed(&server, vec![outcome(&ids[1], 1.0)]).await;
    assert!(answers.is_empty() && end.is_some_and(|status| status.code() == Code::Unavailable));
    fs::rename(&away, &here).expect("a rename");
    let answer = eventually("it is back", PATIENCE, async || record(&server, outcome(&ids[1], 1.0)).await.ok()).await;
    assert_eq!((answer.result(), answer.durable), (OutcomeResult::Repeated, true));
    assert_eq!(written(&server.store.path()), 2);
}

#[tokio::test]
async fn one_file_served_alone_counts_and_says_that_it_will_not_last() {
    let store = store();
    let artifact = store.path().join(MODEL).join("1.1.0/model.txt");
    let mut command = sconce();
    command.arg("serve").arg(&artifact);
    let server = Server::launch(store, command, &[]).await;
    server.ready().await;
    let listed = server.admin().await.list_models(call(ListModelsRequest::default())).await.expect("a list");
    let model = listed.into_inner().models.remove(0).name;
    let answer = server.predict(PredictRequest { model, ..rows() }).await;
    let id = answer.expect("an answer").prediction_ids.remove(0);
    let answer = record(&server, outcome(&id, 1.0)).await.expect("it counts");
    assert_eq!((answer.result(), answer.durable), (OutcomeResult::Credited, false));
    let (answers, end) = streamed(&server, vec![outcome(&id, 0.0)]).await;
    assert!(end.is_none() && !answers[0].durable && answers[0].credited == 1, "{answers:?}");
}

#[tokio::test]
async fn grpcurl_and_the_command_line_report_one_outcome() {
    let server = started().await;
    let ids = predicted(&server, 3).await;
    let said = crate::commands::succeeds(&server, &["outcome", &ids[0], "--label", "1", "--metric", "pnl=-3"], "");
    assert_eq!(said, "credited: early-signal 1.1.0, stable, revision 0\n");
    let said =
        crate::commands::succeeds(&server, &["outcome", &ids[0], "--label", "1", "--metric", "pnl=-3", "--json"], "");
    let said: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!((&said["result"], &said["durable"]), (&"repeated".into(), &true.into()));
    let unknown = crate::commands::run(&server, &["outcome", "forged", "--reward", "-1"], "");
    assert_eq!(unknown.status.code(), Some(1));
    crate::commands::fails(&server, &["outcome", &ids[0], "--label", "nan"], 1, &["INVALID_OUTCOME", "label"]);

    let shell = Shell::beside(&server);
    let line = format!(
        r#"echo '{{"prediction_id": "{}", "label": 1, "metrics": {{"pnl": 2.5}}}}' | grpcurl -plaintext -d @ $SCONCE_SERVER sconce.v1.Inference/RecordOutcome"#,
        ids[1]
    );
    if shell.can_run(&line) {
        assert!(shell.run(&line).contains("OUTCOME_RESULT_CREDITED"));
    }
    let line = format!(
        r#"echo '{{"prediction_id": "{}", "label": 1}} {{"prediction_id": "forged", "label": 1}}' | grpcurl -plaintext -d @ $SCONCE_SERVER sconce.v1.Inference/RecordOutcomes"#,
        ids[2]
    );
    if shell.can_run(&line) {
        let answer = shell.run(&line);
        assert!(answer.contains("\"received\": \"2\"") && answer.contains("\"unknown\": \"1\""), "{answer}");
    }
    server.assert_unharmed().await;
}

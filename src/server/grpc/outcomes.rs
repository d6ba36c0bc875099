//! RecordOutcome, alone and as a stream: what became of predictions.

use std::{collections::HashMap, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::convert::check_request_id;
use crate::{
    error::{Error, Result},
    model::{ModelName, repeated},
    monitor::{Outcome, VALUE_MAX},
    rollout::{
        Counts,
        counts::{Claim, Receipt, Recorded, Taken},
    },
    server::{
        call::CallContext,
        phase::Phases,
        proto::sconce::v1::{
            Credited, OutcomeNote, OutcomeResult, OwnId, RecordOutcomeRequest, RecordOutcomeResponse,
            RecordOutcomesResponse, record_outcome_request::Prediction,
        },
    },
};

/// How far each stream has come.
pub type Answers = ReceiverStream<Result<RecordOutcomesResponse, Status>>;

/// Of one outcome.
const METRICS_MAX: usize = 32;
/// Of a stream, between two answers: so many outcomes are taken, and so long they come in.
const TURN_MESSAGES_MAX: u64 = 10_000;
const TURN: Duration = Duration::from_millis(100);
const NOTES_MAX: usize = 1_000;
const RETRY_AFTER: Duration = Duration::from_millis(100);

fn is_sane(number: f64) -> bool {
    number.abs() <= VALUE_MAX
}

/// What the message says, if it is right. INVALID_ARGUMENT names the field that is not.
pub fn request(message: RecordOutcomeRequest) -> Result<(Claim, Outcome)> {
    let claim = match message.prediction {
        Some(Prediction::PredictionId(id)) => Claim::PredictionId(id),
        Some(Prediction::Own(OwnId { request_id, model, version, variant })) => {
            check_request_id(&request_id)?;
            Claim::Own { request_id, model, version: version.parse()?, variant }
        }
        None => return Err(wrong("prediction", "prediction_id or own says which prediction it is; neither came")),
    };
    let numbers = [("label", message.label), ("reward", message.reward)];
    if let Some((field, _)) = numbers.iter().find(|(_, number)| number.is_some_and(|number| !is_sane(number))) {
        return Err(wrong(field, &format!("{field} is a number from -{VALUE_MAX:e} to {VALUE_MAX:e}; another came")));
    }
    if message.metrics.len() > METRICS_MAX {
        let came = message.metrics.len();
        return Err(wrong("metrics", &format!("an outcome has at most {METRICS_MAX} metrics, {came} came")));
    }
    for (name, value) in &message.metrics {
        let said = repeated(name);
        if said.is_empty() {
            let expected = "a metric's name has 1 to 128 letters, digits, dots, dashes, underscores and colons";
            return Err(wrong("metrics", &format!("{expected}, and no two dots together")));
        }
        if !is_sane(*value) {
            let expected = format!("metric{said} is a number from -{VALUE_MAX:e} to {VALUE_MAX:e}; another came");
            return Err(wrong("metrics", &expected));
        }
    }
    if message.label.is_none() && message.reward.is_none() && message.metrics.is_empty() {
        return Err(wrong("label", "an outcome has a label, a reward or metrics; none of them came"));
    }
    let metrics = message.metrics.into_iter().collect();
    Ok((claim, Outcome { label: message.label, reward: message.reward, metrics }))
}

/// One outcome, answered when it is durable.
pub async fn record(counts: &Counts, (claim, outcome): &(Claim, Outcome)) -> Result<RecordOutcomeResponse> {
    let recorded = counts.record(claim, outcome)?;
    let durable = match recorded.receipt() {
        Some(receipt) => receipt.settled().await?,
        None => false,
    };
    let Recorded { taken, whose, .. } = recorded;
    let credited = whose.map(|(model, key)| Credited {
        model: model.as_str().to_owned(),
        version: key.version.to_string(),
        variant: key.variant,
        revision: key.revision,
    });
    Ok(RecordOutcomeResponse { result: result(taken).into(), durable, credited })
}

/// Takes what comes and says how far it is durable, until the caller or the server ends it.
pub fn follow(
    outcomes: Streaming<RecordOutcomeRequest>,
    counts: Counts,
    phases: Phases,
    context: CallContext,
) -> Answers {
    let (tell, told) = mpsc::channel(1);
    let stream = Stream { outcomes, counts, phases, context, told: Told::default(), turn: Turn::default() };
    tokio::spawn(stream.run(tell));
    ReceiverStream::new(told)
}

/// A stream at work.
struct Stream {
    outcomes: Streaming<RecordOutcomeRequest>,
    counts: Counts,
    phases: Phases,
    context: CallContext,
    told: Told,
    turn: Turn,
}

/// The next answer.
type Told = RecordOutcomesResponse;

/// What was taken since the answer before.
#[derive(Default)]
struct Turn {
    messages: u64,
    /// The latest of each model: with it all before are durable.
    receipts: HashMap<ModelName, Receipt>,
}

/// Why a turn is over.
enum Over {
    /// More may come.
    Full,
    Ended,
    Failed(Status),
}

// === impl Stream ===

impl Stream {
    async fn run(mut self, tell: mpsc::Sender<Result<RecordOutcomesResponse, Status>>) {
        loop {
            let over = self.take_turn().await;
            // What was taken before the end is answered, whatever the end is.
            let answer = self.settle().await.map_err(Status::from);
            let has_failed = answer.is_err();
            if let Some(answer) = answer.transpose()
                && tell.send(answer).await.is_err()
            {
                return;
            }
            match over {
                Over::Full if !has_failed => {}
                Over::Failed(status) if !has_failed => {
                    // Nobody may listen any more.
                    let _ = tell.send(Err(status)).await;
                    return;
                }
                _ => return,
            }
        }
    }

    /// Waits for a first message, and takes those that follow soon.
    async fn take_turn(&mut self) -> Over {
        let mut until = None;
        while self.turn.messages < TURN_MESSAGES_MAX {
            let deadline = until.unwrap_or_else(|| Instant::now() + Duration::from_secs(60 * 60));
            let came = tokio::select! {
                came = timeout_at(deadline, self.outcomes.message()) => came,
                _ = self.phases.closing() => {
                    let message = "this server is going away; connect anew and go on after what was received";
                    return Over::Failed(Error::unavailable("DRAINING", message, RETRY_AFTER).into());
                }
            };
            match came {
                Err(_) => return Over::Full,
                Ok(Ok(None)) => return Over::Ended,
                Ok(Err(status)) => return Over::Failed(status),
                Ok(Ok(Some(message))) => {
                    if let Err(error) = self.take(message) {
                        return Over::Failed(error.into());
                    }
                    self.context.ledger.give_back_oldest();
                    until.get_or_insert_with(|| Instant::now() + TURN);
                }
            }
        }
        Over::Full
    }

    /// An error is one of the server's; what is wrong with a message is noted.
    fn take(&mut self, message: RecordOutcomeRequest) -> Result<()> {
        let told = &mut self.told;
        match request(message) {
            Ok((claim, outcome)) => {
                let recorded = self.counts.record(&claim, &outcome)?;
                match recorded.taken {
                    Taken::Credited => told.credited += 1,
                    Taken::Repeated => told.repeats += 1,
                    Taken::UnknownId => {
                        told.unknown += 1;
                        let message = "these servers made no such prediction id, or its model is gone";
                        note(told, OutcomeResult::UnknownId, "", message);
                    }
                }
                if let Some(receipt) = recorded.receipt() {
                    self.turn.receipts.insert(receipt.model().clone(), receipt.clone());
                }
            }
            Err(error) => {
                told.refused += 1;
                self.context.connection.shared.metrics.refused(error.reason());
                note(told, OutcomeResult::Refused, error.reason(), error.message());
            }
        }
        told.received += 1;
        self.turn.messages += 1;
        Ok(())
    }

    /// The answer to a turn, once what was taken in it is durable; `None` where nothing was.
    async fn settle(&mut self) -> Result<Option<RecordOutcomesResponse>> {
        let turn = std::mem::take(&mut self.turn);
        if turn.messages == 0 {
            return Ok(None);
        }
        let mut durable = true;
        for receipt in turn.receipts.values() {
            durable &= receipt.settled().await?;
        }
        self.told.durable = durable;
        let answer = self.told.clone();
        self.told.notes.clear();
        Ok(Some(answer))
    }
}

fn note(told: &mut Told, result: OutcomeResult, reason: &str, message: &str) {
    if told.notes.len() < NOTES_MAX {
        let (reason, message) = (reason.to_owned(), message.to_owned());
        told.notes.push(OutcomeNote { index: told.received, result: result.into(), reason, message });
    }
}

fn result(taken: Taken) -> OutcomeResult {
    match taken {
        Taken::Credited => OutcomeResult::Credited,
        Taken::Repeated => OutcomeResult::Repeated,
        Taken::UnknownId => OutcomeResult::UnknownId,
    }
}

fn wrong(field: &'static str, message: &str) -> Error {
    Error::invalid("INVALID_OUTCOME", message).with("field", field)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(change: impl FnOnce(&mut RecordOutcomeRequest)) -> Result<(Claim, Outcome)> {
        let mut message = RecordOutcomeRequest {
            prediction: Some(Prediction::PredictionId("x".into())),
            label: Some(1.0),
            ..RecordOutcomeRequest::default()
        };
        change(&mut message);
        request(message)
    }

    #[test]
    fn an_outcome_that_is_wrong_is_refused_by_its_field() {
        assert!(of(|_| {}).is_ok());
        let refused = |change: fn(&mut RecordOutcomeRequest), field: &str| {
            let error = of(change).expect_err(field);
            assert_eq!(error.reason(), "INVALID_OUTCOME");
            assert_eq!(error.metadata(), [("field", field.to_owned())], "{error}");
        };
        refused(|message| message.prediction = None, "prediction");
        refused(|message| message.label = None, "label");
        refused(|message| message.label = Some(f64::NAN), "label");
        refused(|message| message.reward = Some(f64::INFINITY), "reward");
        refused(|message| message.metrics = [("pnl".into(), f64::NAN)].into(), "metrics");
        refused(|message| message.metrics = [("a b".into(), 1.0)].into(), "metrics");
        refused(|message| message.metrics = [(String::new(), 1.0)].into(), "metrics");
        refused(|message| message.metrics = (0..33).map(|n| (format!("m{n}"), 1.0)).collect(), "metrics");
        assert!(of(|message| message.metrics = (0..32).map(|n| (format!("m{n}"), 1.0)).collect()).is_ok());
        let own = |version: &str| {
            let own = OwnId { version: version.into(), model: "m".into(), ..OwnId::default() };
            of(|message| message.prediction = Some(Prediction::Own(own)))
        };
        assert_eq!(own("one").expect_err("no version").reason(), "INVALID_VERSION");
        assert!(own("v1").is_ok());
    }
}

//! What one thread of the generator has seen of one load. Pure: the generator tells it what happened and how long it took.

use std::{collections::BTreeMap, time::Duration};

use hdrhistogram::Histogram;
use prost::Message;

use crate::cli::client::Failure;

/// Counts and times of the calls that are measured: those that were sent, or due, after the warm-up.
#[derive(Clone)]
pub struct Tally {
    pub sent: u64,
    pub answered: u64,
    pub failed: u64,
    /// Due, and not sent, because as many calls as may be were in flight.
    pub dropped: u64,
    /// Due, and not sent before the time was over, because the generator was late.
    pub unsent: u64,
    pub degraded: u64,
    /// From the call, in an open loop from when it was due, to its answer.
    pub latency_ns: Histogram<u64>,
    /// In an open loop, from when a call was due to when the generator began it.
    pub late_ns: Histogram<u64>,
    /// As the answers say.
    pub queue_us: Histogram<u64>,
    pub compute_us: Histogram<u64>,
    /// The sum over the answers that say in what batch they were made, and their number.
    pub batch_rows: u64,
    pub batches: u64,
    /// By code and reason.
    pub failures: BTreeMap<(String, String), Failures>,
}

/// Calls that failed in one way.
#[derive(Clone, Debug, PartialEq)]
pub struct Failures {
    pub count: u64,
    /// What the first one said.
    pub message: String,
}

/// What an answer says of itself, whatever else it says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    pub degraded: bool,
    pub timing: Option<Timing>,
}

/// The part of `sconce.v1.PredictResponse` that is of interest here. The outputs are passed over, not read.
#[derive(Clone, PartialEq, Message)]
struct SconceAnswer {
    #[prost(message, optional, tag = "4")]
    degraded: Option<Whatever>,
    #[prost(message, optional, tag = "7")]
    timing: Option<Timing>,
}

/// The same of `inference.ModelInferResponse`, which says it in its parameters.
#[derive(Clone, PartialEq, Message)]
struct OipAnswer {
    #[prost(message, repeated, tag = "4")]
    parameters: Vec<Parameter>,
}

/// An entry of a map.
#[derive(Clone, PartialEq, Message)]
struct Parameter {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct Whatever {}

/// `sconce.v1.Timing`.
#[derive(Clone, PartialEq, Message)]
pub struct Timing {
    #[prost(uint64, tag = "1")]
    pub queue_us: u64,
    #[prost(uint64, tag = "2")]
    pub compute_us: u64,
    #[prost(uint32, tag = "3")]
    pub batch_rows: u32,
}

/// Times beyond it count as it.
const TIME_MAX: Duration = Duration::from_secs(3600);
/// A time is known to one part in a thousand.
const DIGITS: u8 = 3;

// === impl Tally ===

impl Tally {
    pub fn new() -> Self {
        let times = |max: u128| {
            Histogram::new_with_bounds(1, max as u64, DIGITS).expect("the bounds are in order: this is a bug")
        };
        Self {
            sent: 0,
            answered: 0,
            failed: 0,
            dropped: 0,
            unsent: 0,
            degraded: 0,
            latency_ns: times(TIME_MAX.as_nanos()),
            late_ns: times(TIME_MAX.as_nanos()),
            queue_us: times(TIME_MAX.as_micros()),
            compute_us: times(TIME_MAX.as_micros()),
            batch_rows: 0,
            batches: 0,
            failures: BTreeMap::new(),
        }
    }

    pub fn sent_late(&mut self, late: Duration) {
        self.sent += 1;
        self.late_ns.saturating_record(late.as_nanos() as u64);
    }

    pub fn take(&mut self, latency: Duration, ending: Result<Seen, Failure>) {
        match ending {
            Ok(seen) => self.answer(latency, &seen),
            Err(failure) => self.failure(&failure),
        }
    }

    /// Adds what another thread saw.
    pub fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.answered += other.answered;
        self.failed += other.failed;
        self.dropped += other.dropped;
        self.unsent += other.unsent;
        self.degraded += other.degraded;
        self.batch_rows += other.batch_rows;
        self.batches += other.batches;
        for (sum, part) in [
            (&mut self.latency_ns, &other.latency_ns),
            (&mut self.late_ns, &other.late_ns),
            (&mut self.queue_us, &other.queue_us),
            (&mut self.compute_us, &other.compute_us),
        ] {
            sum.add(part).expect("all have the same bounds: this is a bug");
        }
        for (kind, failures) in &other.failures {
            let sum = self.failures.entry(kind.clone());
            sum.and_modify(|sum| sum.count += failures.count).or_insert_with(|| failures.clone());
        }
    }

    fn answer(&mut self, latency: Duration, seen: &Seen) {
        self.answered += 1;
        self.degraded += u64::from(seen.degraded);
        self.latency_ns.saturating_record(latency.as_nanos() as u64);
        if let Some(timing) = &seen.timing {
            self.queue_us.saturating_record(timing.queue_us);
            self.compute_us.saturating_record(timing.compute_us);
            self.batch_rows += u64::from(timing.batch_rows);
            self.batches += 1;
        }
    }

    fn failure(&mut self, failure: &Failure) {
        self.failed += 1;
        let kind = (failure.code(), failure.reason().to_owned());
        let failures = self.failures.entry(kind);
        failures
            .and_modify(|failures| failures.count += 1)
            .or_insert_with(|| Failures { count: 1, message: failure.message().to_owned() });
    }
}

// === impl Seen ===

impl Seen {
    /// Of an encoded `sconce.v1.PredictResponse`.
    pub fn of_sconce(answer: &[u8]) -> Result<Self, prost::DecodeError> {
        let answer = SconceAnswer::decode(answer)?;
        Ok(Self { degraded: answer.degraded.is_some(), timing: answer.timing })
    }

    /// Of an encoded `inference.ModelInferResponse`, which says nothing of times.
    pub fn of_oip(answer: &[u8]) -> Result<Self, prost::DecodeError> {
        let answer = OipAnswer::decode(answer)?;
        Ok(Self { degraded: answer.parameters.iter().any(|parameter| parameter.name == "degraded"), timing: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::proto::{self, oip};
    use tonic::Status;

    #[test]
    fn an_answer_is_read_as_far_as_it_is_of_interest() {
        let timing = proto::Timing { queue_us: 3, compute_us: 40, batch_rows: 7 };
        let answer = proto::PredictResponse {
            prediction_ids: vec!["x".into()],
            outputs: vec![proto::Tensor { doubles: vec![1.0; 9], ..Default::default() }],
            degraded: Some(proto::Degraded { reasons: vec!["fallback".into()] }),
            timing: Some(timing),
            ..Default::default()
        };
        let seen = Seen::of_sconce(&answer.encode_to_vec()).unwrap();
        assert!(seen.degraded);
        assert_eq!(seen.timing, Some(Timing { queue_us: 3, compute_us: 40, batch_rows: 7 }));
        assert_eq!(Seen::of_sconce(&[]).unwrap(), Seen::default());

        let of = |names: [&str; 2]| {
            let parameters = names.map(|name| (name.to_string(), oip::InferParameter::default()));
            let answer = oip::ModelInferResponse { parameters: parameters.into(), ..Default::default() };
            Seen::of_oip(&answer.encode_to_vec()).unwrap().degraded
        };
        assert!(of(["variant", "degraded"]));
        assert!(!of(["variant", "prediction_id"]));
    }

    #[test]
    fn threads_add_up() {
        let mut one = Tally::new();
        one.sent_late(Duration::from_micros(5));
        one.take(Duration::from_millis(1), Ok(Seen::default()));
        let mut two = Tally::new();
        for text in ["first", "second"] {
            two.sent += 1;
            two.take(Duration::ZERO, Err(Status::unavailable(text).into()));
        }
        let timing = Some(Timing { queue_us: 1, compute_us: 2, batch_rows: 8 });
        two.sent += 1;
        two.take(Duration::from_millis(3), Ok(Seen { degraded: true, timing }));
        one.add(&two);
        assert_eq!((one.sent, one.answered, one.failed, one.degraded), (4, 2, 2, 1));
        assert_eq!((one.batch_rows, one.batches, one.queue_us.len()), (8, 1, 1));
        assert_eq!(one.latency_ns.len(), 2, "a failure has no latency");
        let failures = Failures { count: 2, message: "first".into() };
        assert_eq!(one.failures, [(("UNAVAILABLE".to_string(), String::new()), failures)].into());
    }

    #[test]
    fn a_time_beyond_all_bounds_is_the_longest() {
        let mut tally = Tally::new();
        tally.take(10 * TIME_MAX, Ok(Seen::default()));
        assert!(tally.latency_ns.max() >= TIME_MAX.as_nanos() as u64);
    }
}

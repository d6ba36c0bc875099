//! Those who call: many connections, no more calls on each than the server allows, and an eye on how each call ends.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use prost::Message;
use sconce::{
    cli::bench::wire::{Answer, CallError, MODEL_INFER, call, connect, head},
    server::proto::google::rpc,
};
use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::models::{Case, check, numbers};

/// Connections that take turns.
#[derive(Clone)]
pub struct Callers(Arc<Inner>);

/// How a call may end. Everything else breaks a promise.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub enum Ending {
    #[default]
    Answered,
    /// UNAVAILABLE with this reason, and when to come back.
    Refused(&'static str),
    /// DEADLINE_EXCEEDED, of a call that has a deadline.
    Expired,
    /// Never sent: as many calls were under way on its connection as the server allows.
    Unsent,
}

struct Inner {
    links: Vec<Link>,
    /// What calls begin with, without a deadline and with that of the case.
    plain: Request<()>,
    head: Request<()>,
    messages: Vec<Bytes>,
    /// What must come, by message.
    answers: Vec<Vec<f64>>,
}

struct Link {
    client: SendRequest<Bytes>,
    under_way: AtomicUsize,
}

/// Where the capacity is measured.
const CALLERS: usize = 64;
/// What a server allows on one connection by default.
const STREAMS_MAX: usize = 128;
/// One answer of so many is looked into.
const CHECKED: u64 = 64;
/// What an overloaded server may say.
const REASONS: [&str; 4] = ["QUEUE_FULL", "QUEUE_TIMEOUT", "OVERLOADED", "REQUEST_MEMORY"];

// === impl Callers ===

impl Callers {
    /// Connects, and asks for each answer once while nothing else is asked.
    pub async fn connect(address: SocketAddr, case: &Case) -> Result<Self> {
        let plain = head(&address.to_string(), MODEL_INFER, None)?;
        let head = head(&address.to_string(), MODEL_INFER, case.deadline)?;
        let messages = case.messages();
        let mut links = Vec::new();
        for _ in 0..case.connections {
            links.push(Link { client: connect(address).await?, under_way: AtomicUsize::new(0) });
        }
        let mut answers = Vec::new();
        for (place, message) in messages.iter().enumerate() {
            let answer = call(&mut links[0].client, &plain, message, Answer::Keep).await?;
            let answer = numbers(&answer)?;
            case.check_first(place, &answer)?;
            answers.push(answer);
        }
        Ok(Self(Arc::new(Inner { links, plain, head, messages, answers })))
    }

    /// Answers a second to some callers who wait for each before they call again.
    pub async fn capacity(&self, measured: Duration) -> Result<f64> {
        let begun = Instant::now();
        let mut loops = JoinSet::new();
        for place in 0..CALLERS {
            let callers = self.clone();
            loops.spawn(async move {
                let mut number = place as u64;
                let mut answered = 0u64;
                while begun.elapsed() < measured {
                    match callers.call(number, &callers.0.plain).await {
                        Ok(Ending::Answered) => answered += 1,
                        other => bail!("without overload a call ended so: {other:?}"),
                    }
                    number += CALLERS as u64;
                }
                Ok(answered)
            });
        }
        let mut answered = 0;
        while let Some(ended) = loops.join_next().await {
            answered += ended??;
        }
        Ok(answered as f64 / begun.elapsed().as_secs_f64())
    }

    pub async fn ask(self, number: u64) -> Result<Ending, String> {
        self.call(number, &self.0.head).await
    }

    async fn call(&self, number: u64, head: &Request<()>) -> Result<Ending, String> {
        let Inner { links, messages, answers, .. } = &*self.0;
        let link = &links[number as usize % links.len()];
        let Some(_place) = link.enter() else {
            return Ok(Ending::Unsent);
        };
        let message = (number / links.len() as u64) as usize % messages.len();
        let wanted = if number.is_multiple_of(CHECKED) { Answer::Keep } else { Answer::Drop };
        let ending = match call(&mut link.client.clone(), head, &messages[message], wanted).await {
            Ok(answer) if wanted == Answer::Keep => {
                numbers(&answer).and_then(|found| check(&found, &answers[message])).map(|()| Ending::Answered)
            }
            Ok(_) => Ok(Ending::Answered),
            Err(CallError::Status(status)) if status.code() == Code::DeadlineExceeded && self.is_hasty() => {
                Ok(Ending::Expired)
            }
            Err(CallError::Status(status)) => refusal(&status).map(Ending::Refused),
            Err(error) => Err(error.into()),
        };
        ending.map_err(|error| format!("{error:#}"))
    }

    fn is_hasty(&self) -> bool {
        self.0.head.headers().contains_key("grpc-timeout")
    }
}

/// The reason of a right refusal; what is wrong with any other.
fn refusal(status: &Status) -> Result<&'static str> {
    ensure!(status.code() == Code::Unavailable, "{:?}: {}", status.code(), status.message());
    let details = rpc::Status::decode(status.details())?.details;
    let detail = |name: &str| details.iter().find(|any| any.type_url.ends_with(name)).map(|any| &any.value[..]);
    let info = rpc::ErrorInfo::decode(detail("/google.rpc.ErrorInfo").context("a refusal without ErrorInfo")?)?;
    let retry = rpc::RetryInfo::decode(detail("/google.rpc.RetryInfo").context("a refusal without RetryInfo")?)?;
    let delay = Duration::try_from(retry.retry_delay.context("a RetryInfo without a delay")?)?;
    let pushback = status.metadata().get("grpc-retry-pushback-ms").context("a refusal without pushback")?;
    let pushback = Duration::from_millis(pushback.to_str()?.parse()?);
    ensure!(pushback == delay && !delay.is_zero(), "a pushback of {pushback:?} beside a RetryInfo of {delay:?}");
    let reason = REASONS.into_iter().find(|reason| *reason == info.reason);
    reason.with_context(|| format!("an overload of reason '{}'", info.reason))
}

/// A call's place on its connection; leaving is the drop.
struct Place<'a>(&'a Link);

// === impl Link ===

impl Link {
    fn enter(&self) -> Option<Place<'_>> {
        let place = Place(self);
        (self.under_way.fetch_add(1, Ordering::Relaxed) < STREAMS_MAX).then_some(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

// === impl Ending ===

impl Ending {
    pub fn is_refused(&self) -> bool {
        matches!(self, Self::Refused(_))
    }
}

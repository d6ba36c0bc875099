//! A connection that is made anew when it ends, as every client of gRPC does it, and one call over it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use tokio::sync::Mutex;
use tonic::Status;

use super::{
    tally::Seen,
    wire::{self, Answer, CallError},
};
use crate::cli::client::Failure;

/// Where all calls go, and how an answer is read.
pub struct Target {
    /// HOST:PORT
    pub address: String,
    pub head: Request<()>,
    pub timeout: Duration,
    pub read: fn(&[u8]) -> Result<Seen, prost::DecodeError>,
}

pub struct Link {
    target: Arc<Target>,
    current: Mutex<Current>,
}

struct Current {
    /// Goes up with each connection, so that of many calls that saw one end only the first makes another.
    number: u64,
    client: SendRequest<Bytes>,
    /// When the last attempt to make another failed.
    failed_at: Option<Instant>,
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The server knows the timeout, and has so long to say itself that it is over, and why. Whoever cancels call after call is cut
/// off instead.
const GRACE: Duration = Duration::from_millis(250);
/// So long after an attempt that failed nobody tries again.
const PAUSE: Duration = Duration::from_millis(50);

// === impl Link ===

impl Link {
    pub async fn connect(target: Arc<Target>) -> anyhow::Result<Self> {
        let client = connect(&target.address).await?;
        Ok(Self { target, current: Mutex::new(Current { number: 0, client, failed_at: None }) })
    }

    /// One call. An answer that comes after the time that it may take is none.
    pub async fn call(&self, message: &Bytes) -> Result<Seen, Failure> {
        let (begun, timeout) = (Instant::now(), self.target.timeout);
        let late = || Status::deadline_exceeded("no answer within --timeout, by this side's clock").into();
        match tokio::time::timeout(timeout + GRACE, self.answer(message)).await {
            Ok(Ok(_)) if begun.elapsed() > timeout => Err(late()),
            Ok(answer) => answer,
            Err(_) => Err(late()),
        }
    }

    async fn answer(&self, message: &Bytes) -> Result<Seen, Failure> {
        let (number, mut client) = self.client().await;
        let mut ending = wire::call(&mut client, &self.target.head, message, Answer::Keep).await;
        if let Err(CallError::NotBegun(_)) = ending {
            let mut client = self.another(number).await?;
            ending = wire::call(&mut client, &self.target.head, message, Answer::Keep).await;
        }
        match ending {
            Ok(answer) => (self.target.read)(&answer).map_err(|error| Status::internal(error.to_string()).into()),
            Err(CallError::Status(status)) => Err((*status).into()),
            Err(error) => Err(Status::unavailable(error.to_string()).into()),
        }
    }

    async fn client(&self) -> (u64, SendRequest<Bytes>) {
        let current = self.current.lock().await;
        (current.number, current.client.clone())
    }

    /// A connection after that of this number.
    async fn another(&self, number: u64) -> Result<SendRequest<Bytes>, Failure> {
        let failure = {
            let mut current = self.current.lock().await;
            if current.number != number {
                return Ok(current.client.clone());
            }
            if current.failed_at.is_some_and(|at| at.elapsed() < PAUSE) {
                anyhow!("the connection ended, and there is no other yet")
            } else {
                match connect(&self.target.address).await {
                    Ok(client) => {
                        *current = Current { number: number + 1, client: client.clone(), failed_at: None };
                        return Ok(client);
                    }
                    Err(error) => {
                        current.failed_at = Some(Instant::now());
                        error
                    }
                }
            }
        };
        // Callers who wait for nothing would do nothing else than fail.
        tokio::time::sleep(PAUSE).await;
        Err(Status::unavailable(format!("{failure:#}")).into())
    }
}

async fn connect(address: &str) -> anyhow::Result<SendRequest<Bytes>> {
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, wire::connect(address)).await;
    let connected = connected.map_err(|_| anyhow!("it took longer than {CONNECT_TIMEOUT:?}"))?;
    connected.with_context(|| format!("cannot reach {address}"))
}

//! Verdicts, posted as JSON to an address of the operator's: in their order, tried again, and given up on in the end. A rollout
//! never waits for it.

use std::time::Duration;

use serde::Serialize;
use tokio::sync::mpsc;

use crate::error::{Error, Result};

/// What is posted.
#[derive(Clone, Debug, Serialize)]
pub struct Note {
    pub model: String,
    pub version: String,
    /// The stable that it is compared with.
    pub control: String,
    /// Where it was: `gates`, `shadow`, `step 1` …
    pub phase: String,
    pub decision: &'static str,
    pub rule: &'static str,
    pub message: String,
    pub exposure: u64,
    /// Of route.yaml, by the verdict.
    pub revision: u64,
    /// RFC 3339, UTC.
    pub time: String,
    pub replica: String,
}

/// Where notes are handed in. Cheap to clone.
#[derive(Clone)]
pub struct Webhook(mpsc::Sender<Note>);

const QUEUE_MAX: usize = 64;
const TRIES: u32 = 3;
const EACH: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_secs(1);

// === impl Webhook ===

impl Webhook {
    /// Posts from now on, on the runtime that this is called on. The address may be a secret: no error and no log has more than
    /// its host.
    pub fn start(url: &str) -> Result<Self> {
        let wrong = |what: &str| Error::invalid("INVALID_WEBHOOK", format!("the webhook's address {what}"));
        let url: reqwest::Url = url.trim().parse().map_err(|_| wrong("is no URL, e.g. https://example.org/hook"))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(wrong("begins with neither http:// nor https://"));
        }
        crate::store::install_tls();
        // Where it sends one to is not where the operator allowed to send.
        let client = reqwest::Client::builder().timeout(EACH).redirect(reqwest::redirect::Policy::none()).build();
        let client = client.map_err(|error| Error::internal("WEBHOOK", format!("no client can be made: {error}")))?;
        let (sender, receiver) = mpsc::channel(QUEUE_MAX);
        tokio::spawn(deliver(client, url, receiver));
        Ok(Self(sender))
    }

    pub fn tell(&self, note: Note) {
        if let Err(error) = self.0.try_send(note) {
            tracing::warn!(%error, "the webhook is not told of a verdict: too many wait for it already");
        }
    }
}

async fn deliver(client: reqwest::Client, url: reqwest::Url, mut notes: mpsc::Receiver<Note>) {
    let host = url.host_str().unwrap_or_default().to_owned();
    while let Some(note) = notes.recv().await {
        let body = serde_json::to_vec(&note).expect("plain data: this is a bug");
        for attempt in 1..=TRIES {
            let posted = client.post(url.clone()).header("content-type", "application/json").body(body.clone()).send();
            let trouble = match posted.await {
                Ok(answer) if answer.status().is_success() => break,
                Ok(answer) => format!("it answers {}", answer.status()),
                Err(error) => error.without_url().to_string(),
            };
            let model = &note.model;
            if attempt == TRIES {
                tracing::warn!(%host, %model, trouble, "the webhook was not told of a verdict, in {TRIES} tries");
            } else {
                tracing::debug!(%host, %model, trouble, "the webhook is tried again");
                tokio::time::sleep(PAUSE * attempt).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    fn note(rule: &'static str) -> Note {
        Note {
            model: "m".into(),
            version: "2.0.0".into(),
            control: "1.0.0".into(),
            phase: "step 1".into(),
            decision: "roll_back",
            rule,
            message: "error rate 50 %".into(),
            exposure: 12,
            revision: 7,
            time: "2026-01-01T00:00:00Z".into(),
            replica: "a:1".into(),
        }
    }

    /// One request, answered by that line of status, and headers where it has some; its body.
    async fn answered(listener: &TcpListener, status: &str) -> serde_json::Value {
        let (mut stream, _) = listener.accept().await.expect("a caller");
        let mut text = Vec::new();
        let body = loop {
            let mut piece = [0; 4096];
            let count = stream.read(&mut piece).await.expect("readable");
            text.extend_from_slice(&piece[..count]);
            let whole = String::from_utf8_lossy(&text).into_owned();
            let found = whole.split_once("\r\n\r\n").and_then(|(_, body)| serde_json::from_str(body).ok());
            if let Some(body) = found {
                break body;
            }
        };
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        stream.write_all(answer.as_bytes()).await.expect("written");
        body
    }

    #[tokio::test]
    async fn what_fails_is_posted_again_and_order_is_kept() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let webhook = Webhook::start(&format!("http://127.0.0.1:{port}/hook\n")).expect("an address");
        webhook.tell(note("first"));
        webhook.tell(note("second"));
        let (first, again) = (answered(&listener, "500 Oh").await, answered(&listener, "204 No Content").await);
        assert_eq!((&first, &first["rule"], &first["exposure"]), (&again, &"first".into(), &12.into()));
        assert_eq!(answered(&listener, "200 OK").await["rule"], "second");
    }

    #[tokio::test]
    async fn it_goes_nowhere_else_and_gives_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let elsewhere = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let moved = elsewhere.local_addr().expect("bound").port();
        let moved = format!("307 Elsewhere\r\nlocation: http://127.0.0.1:{moved}/");
        let webhook = Webhook::start(&format!("http://127.0.0.1:{port}/")).expect("an address");
        webhook.tell(note("moved"));
        webhook.tell(note("next"));
        let told = async {
            for _ in 0..TRIES {
                assert_eq!(answered(&listener, &moved).await["rule"], "moved");
            }
            assert_eq!(answered(&listener, "200 OK").await["rule"], "next");
        };
        tokio::select! {
            () = told => {}
            _ = elsewhere.accept() => panic!("it went where the answer sent it"),
        }
    }

    #[tokio::test]
    async fn what_is_no_address_is_refused_and_not_said_back() {
        for url in ["", "ftp://example.org", "not a url with-a-secret"] {
            let error = Webhook::start(url).err().expect("it is wrong");
            assert!(error.reason() == "INVALID_WEBHOOK" && !error.message().contains("with-a-secret"), "{error}");
        }
    }
}

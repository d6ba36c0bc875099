//! A file of outcomes through one stream after another: what is not acknowledged when a connection is lost is sent again.

use std::{collections::VecDeque, fmt::Write as _, process::ExitCode, time::Duration};

use anyhow::{Context, bail};
use indicatif::ProgressBar;
use serde_json::json;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};

use super::{
    ImportArgs,
    lines::{Line, Lines},
};
use crate::{
    cli::{
        client::{self, Failure},
        input, print,
        proto::{
            OutcomeNote, OutcomeResult, RecordOutcomeRequest, RecordOutcomesResponse, inference_client::InferenceClient,
        },
    },
    telemetry::logs::escape,
};

/// A file at work.
struct Import {
    lines: Lines,
    /// Lines that were sent, or are to be, and not acknowledged yet: in their order.
    open: VecDeque<(u64, RecordOutcomeRequest)>,
    is_read: bool,
    done: Done,
}

/// What came of the lines so far.
#[derive(Debug, Default, PartialEq)]
struct Done {
    credited: u64,
    repeats: u64,
    unknown: u64,
    refused: u64,
    /// Something counts until the server ends, and no longer.
    fleeting: bool,
    /// By line: those of unknown ids, and those that are wrong.
    notes: Vec<(u64, String)>,
}

/// Beyond so many, nothing more is sent before something is acknowledged: less than the server knows again.
const OPEN_MAX: usize = 20_000;
/// Messages between the file and the wire.
const AHEAD_MAX: usize = 1_024;
/// Lines that are named.
const NOTES_MAX: usize = 1_000;
/// In a row, without an outcome acknowledged.
const ATTEMPTS_MAX: u32 = 6;
const WAIT_FIRST: Duration = Duration::from_millis(200);

pub async fn import(args: &ImportArgs) -> anyhow::Result<ExitCode> {
    let (input, bar) = input::open(&args.file)?;
    let name = args.file.display().to_string();
    let lines = Lines::new(input, &args.columns).with_context(|| name.clone())?;
    let mut import = Import { lines, open: VecDeque::new(), is_read: false, done: Done::default() };
    let mut client = client::inference(&args.to.server).await?;
    let mut attempt = 0;
    loop {
        let before = import.done.acknowledged();
        match import.session(&mut client, args.to.timeout, &bar).await.with_context(|| name.clone())? {
            Ok(()) => break,
            Err(failure) => {
                attempt = if import.done.acknowledged() > before { 1 } else { attempt + 1 };
                if !failure.is_uncertain() || attempt >= ATTEMPTS_MAX {
                    bar.finish_and_clear();
                    let done = import.done.summary();
                    bail!(
                        "{failure}; {done} before; import the file again when that is mended: what counts already \
                           and came to the same server lately counts once"
                    );
                }
                tokio::time::sleep(WAIT_FIRST * 2_u32.pow(attempt)).await;
            }
        }
    }
    bar.finish_and_clear();
    print(&if args.to.json { import.done.in_json() } else { import.done.in_words() })?;
    Ok(if import.done.refused == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

// === impl Import ===

impl Import {
    /// One stream, until all is acknowledged. The inner error is the server's; the outer one the file's.
    async fn session(
        &mut self,
        client: &mut InferenceClient<Channel>,
        patience: Duration,
        bar: &ProgressBar,
    ) -> anyhow::Result<Result<(), Failure>> {
        let (send, sent) = mpsc::channel(AHEAD_MAX);
        let mut send = Some(send);
        let begun = timeout(patience, client.record_outcomes(ReceiverStream::new(sent))).await;
        let mut answers: Streaming<RecordOutcomesResponse> = match begun {
            Ok(Ok(answers)) => answers.into_inner(),
            Ok(Err(status)) => return Ok(Err(status.into())),
            Err(_) => return Ok(Err(late().into())),
        };
        // Of the open ones, and the last answer of this stream.
        let (mut on_their_way, mut last) = (0, RecordOutcomesResponse::default());
        loop {
            if send.is_some() && on_their_way == self.open.len() && self.open.len() < OPEN_MAX {
                self.read()?;
            }
            let next = self.open.get(on_their_way).map(|(_, message)| message.clone());
            if next.is_none() && self.is_read {
                send = None;
            }
            let sending = async {
                match (&send, next) {
                    (Some(send), Some(next)) => send.send(next).await,
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                // Where the stream is gone, its answer says why.
                Ok(()) = sending => on_their_way += 1,
                answer = timeout(patience, answers.message()) => match answer {
                    Ok(Ok(Some(answer))) => {
                        on_their_way -= self.acknowledge(&last, &answer, on_their_way);
                        last = answer;
                        bar.set_message(format!("{} outcomes", self.done.acknowledged()));
                    }
                    Ok(Ok(None)) if self.is_read && self.open.is_empty() => return Ok(Ok(())),
                    Ok(Ok(None)) => return Ok(Err(Status::unavailable("the stream ended early").into())),
                    Ok(Err(status)) => return Ok(Err(status.into())),
                    Err(_) => return Ok(Err(late().into())),
                },
            }
        }
    }

    /// Reads up to the next line that can be sent.
    fn read(&mut self) -> anyhow::Result<()> {
        while !self.is_read {
            match self.lines.next()? {
                None => self.is_read = true,
                Some(Line { number, message: Ok(message) }) => {
                    self.open.push_back((number, message));
                    return Ok(());
                }
                Some(Line { number, message: Err(wrong) }) => {
                    self.done.refused += 1;
                    self.done.note(number, wrong);
                }
            }
        }
        Ok(())
    }

    /// Takes in what an answer says beyond the one before it. Returns how many lines it is about.
    fn acknowledge(&mut self, last: &RecordOutcomesResponse, answer: &RecordOutcomesResponse, sent: usize) -> usize {
        let count = usize::try_from(answer.received.saturating_sub(last.received)).unwrap_or(sent).min(sent);
        for OutcomeNote { index, result, reason, message } in &answer.notes {
            let place = usize::try_from(index.saturating_sub(last.received)).unwrap_or(usize::MAX);
            if let Some((line, _)) = self.open.get(place) {
                self.done.note(
                    *line,
                    match OutcomeResult::try_from(*result) {
                        Ok(OutcomeResult::UnknownId) => "unknown id".into(),
                        _ => format!("{}: {}", escape(reason), escape(message)),
                    },
                );
            }
        }
        self.open.drain(..count);
        self.done.credited += answer.credited.saturating_sub(last.credited);
        self.done.repeats += answer.repeats.saturating_sub(last.repeats);
        self.done.unknown += answer.unknown.saturating_sub(last.unknown);
        self.done.refused += answer.refused.saturating_sub(last.refused);
        self.done.fleeting |= !answer.durable && answer.credited > last.credited;
        count
    }
}

// === impl Done ===

impl Done {
    fn acknowledged(&self) -> u64 {
        self.credited + self.repeats + self.unknown + self.refused
    }

    fn note(&mut self, line: u64, what: String) {
        if self.notes.len() < NOTES_MAX {
            self.notes.push((line, what));
        }
    }

    fn summary(&self) -> String {
        let Self { credited, repeats, unknown, refused, .. } = self;
        format!("{credited} credited, {repeats} counted before, {unknown} of unknown ids, {refused} refused")
    }

    fn in_words(&self) -> String {
        let mut text = format!("{} outcomes: {}\n", self.acknowledged(), self.summary());
        if self.fleeting {
            text += "they count until the server ends, which cannot write where it is\n";
        }
        for (line, what) in self.in_order() {
            let _ = writeln!(text, "line {line}: {what}");
        }
        let more = (self.unknown + self.refused).saturating_sub(self.notes.len() as u64);
        if more > 0 {
            let _ = writeln!(text, "and {more} more");
        }
        text
    }

    fn in_json(&self) -> String {
        let Self { credited, repeats, unknown, refused, fleeting, .. } = self;
        let notes: Vec<_> =
            self.in_order().into_iter().map(|(line, what)| json!({ "line": line, "what": what })).collect();
        let done = json!({
            "credited": credited, "repeats": repeats, "unknown": unknown, "refused": refused, "durable": !fleeting,
            "notes": notes,
        });
        format!("{done:#}\n")
    }

    /// Lines that were not even sent are noted before those that were.
    fn in_order(&self) -> Vec<&(u64, String)> {
        let mut notes: Vec<_> = self.notes.iter().collect();
        notes.sort_by_key(|(line, _)| *line);
        notes
    }
}

fn late() -> Status {
    Status::deadline_exceeded("the server did not answer in time; --timeout says how long")
}

#[cfg(test)]
mod tests;

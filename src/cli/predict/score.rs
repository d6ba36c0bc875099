//! A file through the server: batches go out up to `--in-flight` at once and are written in the order they were read.

use std::{
    collections::VecDeque,
    fs::File,
    io::{BufReader, BufWriter, Read, Write, stdin, stdout},
    path::Path,
    process::ExitCode,
};

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::task::JoinHandle;
use tonic::transport::Channel;

use super::{
    PredictArgs,
    batch::{Batch, Batches, Form},
    output::Output,
};
use crate::cli::{
    client::{self, Failure},
    proto::{self, OutputForm, inference_client::InferenceClient},
};

/// A batch on its way.
struct Sent {
    batch: Batch,
    call: Call,
}

type Call = JoinHandle<Result<proto::PredictResponse, Failure>>;

pub async fn score(args: &PredictArgs, file: &Path) -> anyhow::Result<ExitCode> {
    let (input, bar) = open(file)?;
    let mut input = BufReader::new(input);
    let name = file.to_string_lossy();
    let form = Form::detect(&name, &mut input).with_context(|| name.to_string())?;
    let mut batches = Batches::new(form, Box::new(input)).with_context(|| name.to_string())?;
    let client = client::inference(&args.server).await?;
    let mut output = Output::new(form, create(args.output.as_deref(), form)?);

    let mut in_flight: VecDeque<Sent> = VecDeque::new();
    let (mut read, mut written) = (0, 0);
    loop {
        let batch = batches
            .next(read + 1, args.batch as usize)
            .with_context(|| name.to_string())?;
        if let Some(batch) = batch {
            read += batch.rows.len();
            let mut request = args.request();
            request.output_form = OutputForm::Rows.into();
            batch.fill(&mut request)?;
            let call = send(args, client.clone(), request);
            in_flight.push_back(Sent { batch, call });
            if in_flight.len() < args.in_flight as usize {
                continue;
            }
        }
        let Some(Sent { batch, call }) = in_flight.pop_front() else {
            break;
        };
        let answered = call.await.context("the call was lost: this is a bug")?;
        let done = match answered {
            Ok(answer) => output.write(&batch, &answer.rows),
            Err(failure) => Err(failure.into()),
        };
        if let Err(error) = done {
            bar.finish_and_clear();
            bail!(
                "{}: {error:#}; {written} rows before were scored and written",
                batch.place()
            );
        }
        written += batch.rows.len();
        bar.set_message(format!("{written} rows"));
    }
    bar.finish_with_message(format!("{written} rows"));
    Ok(ExitCode::SUCCESS)
}

/// Starts the call of one batch; it goes on while others are read and written.
fn send(args: &PredictArgs, client: InferenceClient<Channel>, request: proto::PredictRequest) -> Call {
    let timeout = args.timeout;
    tokio::spawn(async move {
        client::with_retries(|| {
            let (mut client, call) = (client.clone(), client::call(request.clone(), timeout));
            async move { client.predict(call).await }
        })
        .await
    })
}

/// The input, and a bar that follows how much of it was read. The bar shows on a terminal alone.
fn open(file: &Path) -> anyhow::Result<(Box<dyn Read>, ProgressBar)> {
    if file == Path::new("-") {
        let bar = ProgressBar::new_spinner();
        return Ok((Box::new(bar.wrap_read(stdin())), bar));
    }
    let opened = File::open(file).with_context(|| file.display().to_string())?;
    let bar = ProgressBar::new(opened.metadata()?.len());
    let style = ProgressStyle::with_template("{bar:30} {percent:>3} %  {msg}  {elapsed}, {eta} left")?;
    bar.set_style(style);
    Ok((Box::new(bar.wrap_read(opened)), bar))
}

fn create(file: Option<&Path>, form: Form) -> anyhow::Result<Box<dyn Write>> {
    let Some(file) = file else {
        return Ok(Box::new(stdout()));
    };
    match Form::of_name(&file.to_string_lossy()) {
        Some(named) if named != form => {
            bail!(
                "{}: the output has the form of the input; name it .{}",
                file.display(),
                form.extension()
            )
        }
        _ => {}
    }
    let created = File::create(file).with_context(|| file.display().to_string())?;
    Ok(Box::new(BufWriter::new(created)))
}

//! A file through the server: batches go out up to `--in-flight` at once and are written in the order they were read.

use std::{
    collections::VecDeque,
    fs::File,
    io::{BufReader, BufWriter, Write, stdout},
    path::Path,
    process::ExitCode,
};

use anyhow::{Context, bail};
use tokio::task::JoinHandle;
use tonic::transport::Channel;

use super::{
    PredictArgs,
    batch::{Batch, Batches, Form},
    output::Output,
    tensors::{self, Types},
};
use crate::cli::{
    client::{self, Failure},
    input,
    proto::{self, OutputForm, inference_client::InferenceClient},
};

/// A batch on its way.
struct Sent {
    batch: Batch,
    call: Call,
}

type Call = JoinHandle<Result<proto::PredictResponse, Failure>>;

pub async fn score(args: &PredictArgs, file: &Path) -> anyhow::Result<ExitCode> {
    let (input, bar) = input::open(file)?;
    let mut input = BufReader::new(input);
    let name = file.to_string_lossy();
    let form = Form::detect(&name, &mut input).with_context(|| name.to_string())?;
    let mut batches = Batches::new(form, Box::new(input)).with_context(|| name.to_string())?;
    let client = client::inference(&args.server).await?;
    let mut output = Output::new(form, create(args.output.as_deref(), form)?);

    let mut types = Types::new();
    let mut in_flight: VecDeque<Sent> = VecDeque::new();
    let (mut read, mut written) = (0, 0);
    loop {
        let batch = batches.next(read + 1, args.batch as usize).with_context(|| name.to_string())?;
        if let Some(batch) = batch {
            read += batch.rows.len();
            let mut request = args.request();
            request.output_form = OutputForm::Rows.into();
            if batch.has_lists() && types.is_empty() {
                types = tensors::types(args).await?;
            }
            batch.fill(&mut request, &types)?;
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
            bail!("{}: {error:#}; {written} rows before were scored and written", batch.place());
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

fn create(file: Option<&Path>, form: Form) -> anyhow::Result<Box<dyn Write>> {
    let Some(file) = file else {
        return Ok(Box::new(stdout()));
    };
    match Form::of_name(&file.to_string_lossy()) {
        Some(named) if named != form => {
            bail!("{}: the output has the form of the input; name it .{}", file.display(), form.extension())
        }
        _ => {}
    }
    let created = File::create(file).with_context(|| file.display().to_string())?;
    Ok(Box::new(BufWriter::new(created)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{
        convert::structure,
        json,
        proto::{
            PredictRequest, PredictResponse, RecordOutcomeRequest, RecordOutcomeResponse, RecordOutcomesResponse,
            inference_server::{Inference, InferenceServer},
        },
    };
    use clap::Parser;
    use prost_types::value::Kind;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::Semaphore;
    use tonic::{Request, Response, Status, Streaming};

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: PredictArgs,
    }

    /// Doubles column `x`; is busy at every third call, answers early rows late, and refuses a negative x.
    struct Doubling {
        calls: AtomicUsize,
        /// A permit once a late row has come: the early ones wait for it.
        late_rows: Semaphore,
    }

    #[tonic::async_trait]
    impl Inference for Doubling {
        async fn predict(&self, request: Request<PredictRequest>) -> Result<Response<PredictResponse>, Status> {
            if self.calls.fetch_add(1, Ordering::Relaxed).is_multiple_of(3) {
                let mut busy = Status::unavailable("busy");
                busy.metadata_mut().insert("grpc-retry-pushback-ms", "1".parse().unwrap());
                return Err(busy);
            }
            let table = request.into_inner().table.unwrap();
            if table.values[0] < 4.0 {
                let _overtaken = self.late_rows.acquire().await.unwrap();
            } else {
                self.late_rows.add_permits(1);
            }
            if table.values.iter().any(|x| *x < 0.0) {
                return Err(Status::invalid_argument("negative"));
            }
            let row = |x: &f64| structure([("y".to_string(), Kind::NumberValue(2.0 * x))].into_iter());
            Ok(Response::new(PredictResponse { rows: table.values.iter().map(row).collect(), ..Default::default() }))
        }

        async fn record_outcome(
            &self,
            _: Request<RecordOutcomeRequest>,
        ) -> Result<Response<RecordOutcomeResponse>, Status> {
            Err(Status::unimplemented("not here"))
        }

        type RecordOutcomesStream = tokio_stream::Empty<Result<RecordOutcomesResponse, Status>>;

        async fn record_outcomes(
            &self,
            _: Request<Streaming<RecordOutcomeRequest>>,
        ) -> Result<Response<Self::RecordOutcomesStream>, Status> {
            Err(Status::unimplemented("not here"))
        }
    }

    async fn scored(input: &str) -> (anyhow::Result<ExitCode>, String) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let doubling = Doubling { calls: AtomicUsize::new(0), late_rows: Semaphore::new(0) };
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        let server = tonic::transport::Server::builder().add_service(InferenceServer::new(doubling));
        let serving = tokio::spawn(server.serve_with_incoming(incoming));
        let folder = tempfile::tempdir().unwrap();
        let (file, output) = (folder.path().join("x.csv"), folder.path().join("y.csv"));
        std::fs::write(&file, input).unwrap();
        let line = ["p", "m", "--batch=2", "--in-flight=3", "--server", &address, "--output"];
        let line = line.into_iter().chain([output.to_str().unwrap(), "--file", file.to_str().unwrap()]);
        let done = score(&Line::parse_from(line).args, &file).await;
        serving.abort();
        (done, std::fs::read_to_string(&output).unwrap())
    }

    #[tokio::test]
    async fn rows_keep_their_order_while_calls_overtake_each_other_and_are_retried() {
        let numbers: Vec<String> = (0..15).map(|x| x.to_string()).collect();
        let (done, text) = scored(&format!("x\n{}\n", numbers.join("\n"))).await;
        assert_eq!(done.unwrap(), ExitCode::SUCCESS);
        let expected: Vec<String> = (0..15).map(|x| format!("{x},{}", json::double(2.0 * f64::from(x)))).collect();
        assert_eq!(text, format!("x,y\n{}\n", expected.join("\n")));
    }

    #[tokio::test]
    async fn an_error_stops_it_and_names_the_rows() {
        let (done, text) = scored("x\n1\n2\n3\n-4\n5\n").await;
        assert_eq!(
            done.unwrap_err().to_string(),
            "rows 3 to 4: INVALID_ARGUMENT: negative; 2 rows before were scored and written"
        );
        assert_eq!(text, "x,y\n1,2.0\n2,4.0\n");
    }
}

//! `sconce outcome` and `sconce outcomes import`: what became of predictions.

mod import;
mod lines;

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, bail};
use clap::{ArgGroup, Args, Subcommand};
use serde_json::json;

use super::{
    client, print,
    proto::{
        Credited, OutcomeResult, OwnId, RecordOutcomeRequest, RecordOutcomeResponse, record_outcome_request::Prediction,
    },
};
use crate::{model::units::parse_duration, telemetry::logs::escape};

/// Report what became of one prediction
#[derive(Args)]
#[command(
    after_help = OUTCOME_HELP,
    group = ArgGroup::new("which").required(true).args(["prediction_id", "model"]),
    group = ArgGroup::new("what").required(true).multiple(true).args(["label", "reward", "metric"])
)]
pub struct OutcomeArgs {
    /// The prediction's id, as its answer had it
    prediction_id: Option<String>,
    /// Instead of the id: the model that answered
    #[arg(long, requires_all = ["version", "request_id"])]
    model: Option<String>,
    /// With --model: the version that answered
    #[arg(long, requires = "model")]
    version: Option<String>,
    /// With --model: the variant that answered
    #[arg(long, requires = "model", default_value = "stable")]
    variant: String,
    /// With --model: the caller's own id of the request
    #[arg(long, requires = "model")]
    request_id: Option<String>,
    /// The truth: 0 or 1 for a classifier of two classes, else the number that was predicted
    #[arg(long, allow_negative_numbers = true)]
    label: Option<f64>,
    /// What it brought; more is better
    #[arg(long, allow_negative_numbers = true)]
    reward: Option<f64>,
    /// A number under a name, e.g. pnl=3.5; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_metric)]
    metric: Vec<(String, f64)>,
    #[command(flatten)]
    to: ToArgs,
}

#[derive(Subcommand)]
pub enum Many {
    Import(ImportArgs),
}

/// Report the outcomes of a CSV file, a line each
#[derive(Args)]
#[command(after_help = IMPORT_HELP)]
pub struct ImportArgs {
    /// A .csv file, or - for stdin; its first line names the columns
    file: PathBuf,
    #[command(flatten, next_help_heading = "Columns")]
    columns: Columns,
    #[command(flatten)]
    to: ToArgs,
}

/// How the columns are called.
#[derive(Args, Clone)]
pub struct Columns {
    /// The prediction's id
    #[arg(long, value_name = "COLUMN", default_value = "prediction_id")]
    pub prediction_id: String,
    /// The caller's own id of the request, for lines without the prediction's id
    #[arg(long, value_name = "COLUMN", default_value = "request_id")]
    pub request_id: String,
    /// The model that answered, for the same lines
    #[arg(long, value_name = "COLUMN", default_value = "model")]
    pub model: String,
    /// The version that answered, for the same lines
    #[arg(long, value_name = "COLUMN", default_value = "version")]
    pub version: String,
    /// The variant that answered, for the same lines; stable where it is empty
    #[arg(long, value_name = "COLUMN", default_value = "variant")]
    pub variant: String,
    /// The truth
    #[arg(long, value_name = "COLUMN", default_value = "label")]
    pub label: String,
    /// What the prediction brought
    #[arg(long, value_name = "COLUMN", default_value = "reward")]
    pub reward: String,
    /// A metric; may be repeated (default: every other column)
    #[arg(long, value_name = "COLUMN")]
    pub metric: Vec<String>,
}

/// Where it goes, and how the answer is written.
#[derive(Args)]
struct ToArgs {
    /// The server's inference address
    #[arg(long, value_name = "HOST:PORT", env = "SCONCE_SERVER", default_value = "127.0.0.1:7070")]
    server: String,
    /// How long to wait for an answer
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    timeout: Duration,
    /// Print JSON, for scripts
    #[arg(long)]
    json: bool,
}

const OUTCOME_HELP: &str = "\
Any replica takes it, at any age of the prediction. The answer comes when it is durable. The
exit status is 1 where the id is not known.

Examples:
  sconce outcome AQ3f… --label 1
  sconce outcome AQ3f… --reward -0.2 --metric pnl=3 --metric held_days=20
  sconce outcome --model early-signal --version 1.1.0 --variant canary --request-id order-7 --label 0";

const IMPORT_HELP: &str = "\
An empty cell says nothing. A line needs an id, or request_id, model and version; and a label, a
reward or a metric. What is wrong with a line is said with its number, and the others count; the
exit status is 1 then. A connection that is lost is made anew, and goes on where it was.

Examples:
  sconce outcomes import truth.csv
  sconce outcomes import fills.csv --prediction-id sconce_id --reward pnl --metric slippage";

pub fn run(args: &OutcomeArgs) -> anyhow::Result<ExitCode> {
    let request = args.request()?;
    let answer = client::block_on(async {
        let client = client::inference(&args.to.server).await?;
        let answer = client::with_retries(|| {
            let (mut client, call) = (client.clone(), client::call(request.clone(), args.to.timeout));
            async move { client.record_outcome(call).await }
        });
        Ok(answer.await?)
    })?;
    print(&if args.to.json { in_json(&answer) } else { in_words(&answer) })?;
    Ok(match answer.result() {
        OutcomeResult::Credited | OutcomeResult::Repeated => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

pub fn run_many(Many::Import(args): &Many) -> anyhow::Result<ExitCode> {
    client::block_on(import::import(args))
}

// === impl OutcomeArgs ===

impl OutcomeArgs {
    fn request(&self) -> anyhow::Result<RecordOutcomeRequest> {
        let own = |model: &String| OwnId {
            request_id: self.request_id.clone().unwrap_or_default(),
            model: model.clone(),
            version: self.version.clone().unwrap_or_default(),
            variant: self.variant.clone(),
        };
        let own = self.model.as_ref().map(|model| Prediction::Own(own(model)));
        let mut metrics = BTreeMap::new();
        for (name, value) in &self.metric {
            if metrics.insert(name.clone(), *value).is_some() {
                bail!("--metric {}: it is there twice", escape(name));
            }
        }
        Ok(RecordOutcomeRequest {
            prediction: self.prediction_id.clone().map(Prediction::PredictionId).or(own),
            label: self.label,
            reward: self.reward,
            metrics,
        })
    }
}

fn in_words(answer: &RecordOutcomeResponse) -> String {
    let Some(Credited { model, version, variant, revision }) = &answer.credited else {
        return "unknown: these servers made no such prediction id, or its model is gone\n".into();
    };
    let taken = if answer.result() == OutcomeResult::Repeated { "counted before" } else { "credited" };
    let durable = if answer.durable { "" } else { "; it counts until the server ends, which cannot write here" };
    let whose = escape(&format!("{model} {version}, {variant}"));
    format!("{taken}: {whose}, revision {revision}{durable}\n")
}

fn in_json(answer: &RecordOutcomeResponse) -> String {
    let credited = answer.credited.as_ref().map(|credited| {
        let Credited { model, version, variant, revision } = credited;
        json!({ "model": model, "version": version, "variant": variant, "revision": revision })
    });
    let result = answer.result().as_str_name().trim_start_matches("OUTCOME_RESULT_").to_ascii_lowercase();
    format!("{:#}\n", json!({ "result": result, "durable": answer.durable, "credited": credited }))
}

fn parse_metric(text: &str) -> anyhow::Result<(String, f64)> {
    let (name, value) = text.split_once('=').context("a metric is NAME=VALUE")?;
    Ok((name.to_owned(), value.parse().with_context(|| format!("'{value}' is no number"))?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Command, FromArgMatches};

    fn request(arguments: &[&str]) -> Result<RecordOutcomeRequest, String> {
        let command = OutcomeArgs::augment_args(Command::new("outcome"));
        let matches = command.try_get_matches_from([&["outcome"], arguments].concat());
        let args = matches.and_then(|matches| OutcomeArgs::from_arg_matches(&matches));
        args.map_err(|error| error.to_string())?.request().map_err(|error| error.to_string())
    }

    #[test]
    fn an_id_or_what_the_answer_said_and_something_that_became_of_it() {
        let message = request(&["x", "--label", "0", "--reward", "-0.2", "--metric", "pnl=-3"]).unwrap();
        assert_eq!(message.prediction, Some(Prediction::PredictionId("x".into())));
        assert_eq!((message.label, message.reward, message.metrics["pnl"]), (Some(0.0), Some(-0.2), -3.0));
        let own = request(&["--model=m", "--version=1", "--request-id=7", "--label=1"]).unwrap();
        let expected =
            OwnId { request_id: "7".into(), model: "m".into(), version: "1".into(), variant: "stable".into() };
        assert_eq!(own.prediction, Some(Prediction::Own(expected)));
        for wrong in [
            &["x"][..],
            &["--label", "1"],
            &["x", "--model=m", "--version=1", "--request-id=7", "--label=1"],
            &["--model=m", "--label=1"],
            &["x", "--metric=pnl"],
            &["x", "--metric=a=1", "--metric=a=2"],
        ] {
            assert!(request(wrong).is_err(), "{wrong:?}");
        }
    }
}

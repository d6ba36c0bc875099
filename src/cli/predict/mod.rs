//! `sconce predict`: scores a file through a running server, or tries a model's own example.

pub mod batch;
mod output;
mod score;
pub mod tensors;
mod tried;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{ArgGroup, Args};

use super::{
    client, convert,
    proto::{self, predict_request::Select},
    stored::ExampleChoice,
};
use crate::model::{Parameter, units::parse_duration};

/// Score a CSV or JSON-lines file through a running server
#[derive(Args)]
#[command(after_help = AFTER_HELP, group = ArgGroup::new("what").required(true).args(["file", "example"]))]
pub struct PredictArgs {
    /// The model's name
    model: String,
    /// What to score: a .csv or .jsonl file, or - for stdin
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,
    /// The server's inference address
    #[arg(long, value_name = "HOST:PORT", env = "SCONCE_SERVER", default_value = "127.0.0.1:7070")]
    server: String,
    /// Where the scored rows go (default: stdout); in the form of the input
    #[arg(long, short, value_name = "FILE", conflicts_with = "example")]
    output: Option<PathBuf>,
    /// Rows of one call
    #[arg(long, value_name = "ROWS", default_value = "64", value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    /// Calls at once
    #[arg(long, value_name = "CALLS", default_value = "8", value_parser = clap::value_parser!(u32).range(1..=1024))]
    in_flight: u32,
    /// How long one call may take
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    timeout: Duration,
    /// The version that answers (default: the model's route decides; with --example the highest that has examples)
    #[arg(long, conflicts_with = "label")]
    version: Option<String>,
    /// The label of the version that answers
    #[arg(long, conflicts_with = "example")]
    label: Option<String>,
    /// A parameter for the model's library, e.g. predict_type=raw; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = convert::parse_parameter, conflicts_with = "example")]
    parameter: Vec<(String, Parameter)>,
    /// Send the model's own example from the store and compare the answer with the expected one
    #[arg(long)]
    example: bool,
    #[command(flatten, next_help_heading = "With --example")]
    choice: ExampleChoice,
}

const AFTER_HELP: &str = "\
Files:
  CSV         the first line names the features; an empty cell is a missing value
  JSON lines  an object of features a line; null is a missing value. Where the values are
              lists, each is one row of the input tensor of that name:
              {\"window\": [[0.1, 0.2], [0.3, 0.4]]}
The model's outputs are appended to each row, and the rows keep their order. An error ends it
with status 1 and names the rows; what was scored before them is written.

Examples:
  sconce predict early-signal --file rows.csv --output scored.csv
  cat rows.jsonl | sconce predict early-signal --file - --version 1.0.0 --parameter predict_type=raw
  sconce predict early-signal --example";

pub fn run(args: &PredictArgs) -> anyhow::Result<ExitCode> {
    client::block_on(async {
        match &args.file {
            Some(file) => score::score(args, file).await,
            None => tried::try_example(args).await,
        }
    })
}

// === impl PredictArgs ===

impl PredictArgs {
    /// A request for one batch, still without its data.
    fn request(&self) -> proto::PredictRequest {
        let version = self.version.clone().map(Select::Version);
        let parameters = self.parameter.iter().cloned();
        proto::PredictRequest {
            model: self.model.clone(),
            select: version.or(self.label.clone().map(Select::Label)),
            parameters: parameters.map(|(name, value)| (name, convert::parameter(value))).collect(),
            ..Default::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Command;

    #[test]
    fn a_file_or_the_example_is_wanted_and_not_both() {
        let refused = |arguments: &[&str]| {
            let command = PredictArgs::augment_args(Command::new("predict"));
            command.try_get_matches_from([&["predict", "m"], arguments].concat()).err().map(|error| error.to_string())
        };
        let text = refused(&[]).unwrap();
        assert!(text.contains("--file") && text.contains("--example"), "{text}");
        assert!(refused(&["--file", "-", "--example"]).is_some());
        assert_eq!((refused(&["--file", "-"]), refused(&["--example"])), (None, None));
    }
}

//! `sconce example`: a request to paste, from a version's example.json.

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde_json::json;

use super::{
    convert, json, print,
    stored::{ExampleChoice, Stored},
};

/// Print a request from a model's example.json in the store, for `grpcurl -d @`
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub struct ExampleArgs {
    /// The model's name
    model: String,
    /// The version (default: the highest that has examples)
    #[arg(long)]
    version: Option<String>,
    #[command(flatten)]
    choice: ExampleChoice,
    /// The protocol of the request: ours, or the Open Inference Protocol
    #[arg(long, default_value = "sconce")]
    format: Format,
    /// Print the answer that is expected, instead of the request
    #[arg(long)]
    expect: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Sconce,
    Oip,
}

const AFTER_HELP: &str = "\
Examples:
  sconce example early-signal | grpcurl -plaintext -d @ 127.0.0.1:7070 sconce.v1.Inference/Predict
  sconce example early-signal --format oip |
    grpcurl -plaintext -d @ 127.0.0.1:7070 inference.GRPCInferenceService/ModelInfer
  sconce example early-signal --expect

It reads the store's folder and asks no server. The request names the version that the example belongs to.";

pub fn run(args: &ExampleArgs) -> anyhow::Result<ExitCode> {
    let fits = |example: &crate::model::Example| args.format == Format::Sconce || example.request.rows.is_empty();
    let stored = args.choice.find(&args.model, args.version.as_deref(), fits)?;
    let text = match args.expect {
        true => expected(&stored)?,
        false => request(&stored, args.format)?,
    };
    print(&(text + "\n"))?;
    Ok(ExitCode::SUCCESS)
}

fn request(stored: &Stored, format: Format) -> anyhow::Result<String> {
    let request = &stored.example.request;
    let (data, parameters) = (request.data()?, request.parameters()?);
    let version = Some(stored.version.to_string());
    let model = stored.model.as_str();
    Ok(match format {
        Format::Sconce => serde_json::to_string(&json::request(&convert::request(model, version, data, parameters)))?,
        Format::Oip => serde_json::to_string(&json::infer_request(model, version, data, parameters)?)?,
    })
}

fn expected(stored: &Stored) -> anyhow::Result<String> {
    let example = &stored.example;
    Ok(serde_json::to_string(&json!({
        "outputs": example.response.outputs,
        "rtol": example.rtol,
        "atol": example.atol,
    }))?)
}

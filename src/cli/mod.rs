//! The commands. Each file is one: its arguments first, then what it does.
//!
//! `serve` hands a `Config` to `app`; `example` and `check` read the store's folder and `publish` writes to a store, without a
//! server; all others are clients like any other and know the server by its protocol alone.

mod banner;
pub mod bench;
mod change;
mod check;
mod client;
mod convert;
mod describe;
mod example;
mod experiment;
mod info;
mod input;
mod json;
mod models;
mod outcomes;
mod paste;
mod predict;
mod proto;
mod publish;
mod rollout;
pub mod serve;
mod stored;
mod table;
mod watch;

use std::{ffi::OsString, io::Write, process::ExitCode};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::{config, telemetry::logs::escape};

/// Sconce serves ONNX, TorchScript and LightGBM models over gRPC and swaps them while it runs
#[derive(Parser)]
#[command(name = "sconce", version, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Serve(Box<serve::ServeArgs>),
    Check(check::CheckArgs),
    Publish(publish::PublishArgs),
    Predict(predict::PredictArgs),
    Outcome(outcomes::OutcomeArgs),
    /// Report what became of many predictions
    #[command(subcommand)]
    Outcomes(outcomes::Many),
    Bench(Box<bench::BenchArgs>),
    Example(example::ExampleArgs),
    Models(models::ModelsArgs),
    Describe(describe::DescribeArgs),
    Experiment(experiment::ExperimentArgs),
    Watch(watch::WatchArgs),
    #[command(flatten)]
    Change(change::Verb),
    /// See how a version is being rolled out, and pause, resume, abort or promote it
    #[command(subcommand)]
    Rollout(rollout::Rollout),
    Refresh(info::RefreshArgs),
    LogLevel(info::LogLevelArgs),
    Info(info::InfoArgs),
    /// Opens versions for a server, one after another; the server starts it
    #[command(hide = true)]
    ProbeChild,
}

/// What a shell says of a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

const AFTER_HELP: &str = "\
Examples:
  sconce serve --model-store model-store        serve a folder of models
  sconce serve model.onnx                       serve one file
  sconce check model-store                      say what is wrong in it, change nothing
  sconce publish out/m/1.2.0 --to model-store   check a version and put it there, whole or not at all
  sconce models                                 what a running server serves
  sconce promote early-signal 1.1.0             let a version answer, and wait until it does
  sconce rollback early-signal                  go back to the one before
  sconce route early-signal --variant canary=1.1.0:5   five percent for a version
  sconce deploy early-signal 1.1.0              bring a version to stable step by step, or back
  sconce rollout status early-signal --watch    how that goes, until it is over
  sconce experiment early-signal                what a variant did, and what to make of it
  sconce watch                                  what happens, as it happens
  sconce predict early-signal --file rows.csv   score a file
  sconce outcomes import truth.csv              say what became of predictions
  sconce bench early-signal --rate 500          how fast it answers, and what becomes of 500 calls a second
  sconce example early-signal | grpcurl -plaintext -d @ 127.0.0.1:7070 sconce.v1.Inference/Predict

Exit status: 0 done, 1 it failed or found problems, 2 it was called wrongly, 130 it was interrupted.";

/// Runs the command line. 0: done; 1: it failed or found problems, and stderr or the output says which; 2: it was called wrongly.
pub fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.collect();
    let matches = match Cli::command().try_get_matches_from(&arguments) {
        Ok(matches) => matches,
        Err(error) => return usage(&error),
    };
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let program = arguments.first().map_or("sconce".into(), |name| name.to_string_lossy().into_owned());
    let done = match cli.command {
        Command::Serve(args) => match matches.subcommand_matches("serve") {
            Some(flags) => serve::run(&args, flags, &program),
            None => Ok(ExitCode::SUCCESS),
        },
        Command::Check(args) => check::run(&args),
        Command::Publish(args) => publish::run(&args),
        Command::Predict(args) => predict::run(&args),
        Command::Outcome(args) => outcomes::run(&args),
        Command::Outcomes(many) => outcomes::run_many(&many),
        Command::Bench(args) => bench::run(&args),
        Command::Example(args) => example::run(&args),
        Command::Models(args) => models::run(&args),
        Command::Describe(args) => describe::run(&args),
        Command::Experiment(args) => experiment::run(&args),
        Command::Watch(args) => watch::run(&args),
        Command::Change(verb) => change::run(&verb),
        Command::Rollout(rollout) => rollout::run(rollout),
        Command::Refresh(args) => info::refresh(&args),
        Command::LogLevel(args) => info::log_level(&args),
        Command::Info(args) => info::run(&args),
        Command::ProbeChild => Ok(crate::lifecycle::run_child()),
    };
    done.unwrap_or_else(|error| {
        // Our own messages are escaped where they hold foreign words; what is left are line ends that are meant.
        let _ = writeln!(std::io::stderr(), "error: {error:#}");
        ExitCode::FAILURE
    })
}

fn usage(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from)
}

/// Says on stderr which variables look like options and are ignored.
fn warn_of_environment() {
    for warning in config::warnings(std::env::vars_os()) {
        let _ = writeln!(std::io::stderr(), "warning: {}", escape(&warning));
    }
}

/// Writes to stdout. A reader that went away (`sconce models | head`) is no error.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

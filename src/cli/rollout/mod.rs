//! `sconce rollout`: how a version is being rolled out, and the verbs that steer it, which are changes like any other.

mod draw;
mod json;
mod watch;

use std::process::ExitCode;

use anyhow::bail;
use clap::{Args, Subcommand};

use super::{
    change::{self, Steer, Verb},
    client,
    models::{AdminArgs, TIMEOUT},
    print,
    proto::DescribeRolloutRequest,
};
use crate::telemetry::logs::escape;

#[derive(Subcommand)]
pub enum Rollout {
    /// Show the rollout of a model that runs, or ran last: where it is, what was counted, what the judge says
    #[command(after_help = STATUS_HELP)]
    Status(StatusArgs),
    #[command(flatten)]
    Steer(Box<Steer>),
}

#[derive(Args)]
pub struct StatusArgs {
    /// The model's name
    model: String,
    /// Follow it until it is over
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

const STATUS_HELP: &str = "\
With --watch the picture is drawn anew each second; where stdout is no terminal, or with --json,
a line comes with each change. A server that goes away meanwhile is asked again until it is back.
Exit status of --watch: 0 it was promoted, 1 it was rolled back or aborted.

Examples:
  sconce rollout status early-signal
  sconce rollout status early-signal --watch && echo stable
  sconce rollout status early-signal --json | jq .rollout.verdict";

pub fn run(rollout: Rollout) -> anyhow::Result<ExitCode> {
    match rollout {
        Rollout::Status(args) if args.watch => watch::run(&args),
        Rollout::Status(args) => status(&args),
        Rollout::Steer(steer) => change::run(&Verb::Steer(*steer)),
    }
}

fn status(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let described = client::block_on(async {
        let client = client::admin(&args.admin.server).await?;
        let answer = client::with_retries(|| {
            let mut client = client.clone();
            let request = DescribeRolloutRequest { model: args.model.clone() };
            async move { client.describe_rollout(client::call(request, TIMEOUT)).await }
        });
        Ok(answer.await?)
    })?;
    match (args.admin.json, &described.rollout) {
        (true, _) => print(&(serde_json::to_string_pretty(&json::of(&described))? + "\n"))?,
        (false, Some(rollout)) => print(&draw::picture(&described.model, rollout))?,
        (false, None) => bail!("{}", never(&args.model)),
    }
    Ok(ExitCode::SUCCESS)
}

fn never(model: &str) -> String {
    format!("no version of {} was ever rolled out; `sconce deploy` does", escape(model))
}

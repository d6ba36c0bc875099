//! `sconce models`: what a running server serves, a line each.

use std::{process::ExitCode, time::Duration};

use anyhow::bail;
use clap::Args;
use serde_json::{Value, json};

use super::{
    client, print,
    proto::{ListModelsRequest, ModelSummary},
    table::table,
};
use crate::telemetry::logs::escape;

/// Where the admin port is, and how the answer is written.
#[derive(Args)]
pub struct AdminArgs {
    /// The server's admin address
    #[arg(long, value_name = "HOST:PORT", env = "SCONCE_ADMIN_SERVER", default_value = "127.0.0.1:7071")]
    pub server: String,
    /// Print JSON, for scripts
    #[arg(long)]
    pub json: bool,
}

/// List the models of a running server
#[derive(Args)]
#[command(
    after_help = "Examples:\n  sconce models\n  sconce models 'fraud-*' --json | jq '.[] | select(.ready | not)'"
)]
pub struct ModelsArgs {
    /// Only models whose names match, with * and ? (default: all)
    pattern: Option<String>,
    #[command(flatten)]
    admin: AdminArgs,
}

pub const TIMEOUT: Duration = Duration::from_secs(10);

pub fn run(args: &ModelsArgs) -> anyhow::Result<ExitCode> {
    let models = client::block_on(async {
        let client = client::admin(&args.admin.server).await?;
        let answer = client::with_retries(|| {
            let mut client = client.clone();
            let request = ListModelsRequest { pattern: args.pattern.clone().unwrap_or_default() };
            async move { client.list_models(client::call(request, TIMEOUT)).await }
        });
        Ok(answer.await?.models)
    })?;
    if let (Some(pattern), true) = (&args.pattern, models.is_empty()) {
        bail!("no model's name matches '{}'", escape(pattern));
    }
    print(&match args.admin.json {
        true => serde_json::to_string_pretty(&models.iter().map(summary_json).collect::<Vec<_>>())? + "\n",
        false => list(&models),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// `ready`, or what it is instead.
pub fn readiness(summary: &ModelSummary) -> &'static str {
    if summary.ready { "ready" } else { "not ready" }
}

/// One model, its keys those of the protocol.
pub fn summary_json(summary: &ModelSummary) -> Value {
    json!({
        "name": summary.name,
        "platform": summary.platform,
        "ready": summary.ready,
        "stable": summary.stable,
        "ready_versions": summary.ready_versions,
        "message": summary.message,
    })
}

fn list(models: &[ModelSummary]) -> String {
    if models.is_empty() {
        return "no models\n".into();
    }
    let rows: Vec<[String; 6]> = models
        .iter()
        .map(|model| {
            [
                model.name.clone(),
                model.platform.clone(),
                readiness(model).into(),
                model.stable.clone(),
                model.ready_versions.join(", "),
                model.message.clone(),
            ]
        })
        .collect();
    table(["MODEL", "PLATFORM", "STATE", "STABLE", "READY VERSIONS", "MESSAGE"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_a_line() {
        let model = ModelSummary {
            name: "early-signal".into(),
            platform: "lightgbm".into(),
            ready: true,
            stable: "1.1.0".into(),
            ready_versions: vec!["1.0.0".into(), "1.1.0".into()],
            message: String::new(),
        };
        assert_eq!(
            list(&[model]),
            "MODEL         PLATFORM  STATE  STABLE  READY VERSIONS  MESSAGE\n\
             early-signal  lightgbm  ready  1.1.0   1.0.0, 1.1.0\n"
        );
        assert_eq!(list(&[]), "no models\n");
    }
}

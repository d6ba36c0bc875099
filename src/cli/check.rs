//! `sconce check`: what is wrong in a store, for people or for scripts.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};

use super::{print, warn_of_environment};
use crate::{
    app,
    config::{self, Given},
    lifecycle::Problem,
    store::Location,
    telemetry::logs::escape,
};

/// Say all that is wrong in a model store, and change nothing
#[derive(Args)]
#[command(
    after_help = "Examples:\n  sconce check model-store\n  sconce check model-store --json | jq '.[].message'\n\nExit status: 0 nothing is wrong, 1 something is."
)]
pub struct CheckArgs {
    /// The model store: a folder, or a bucket as in s3://bucket/path
    #[arg(value_name = "DIR|URL")]
    store: Location,
    /// Print a JSON list of problems
    #[arg(long)]
    json: bool,
    /// The server's file of options, for its `defaults` and limits; the environment counts as for the server
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    warn_of_environment();
    let given = Given::read(|name| std::env::var_os(name), args.config.as_deref())?;
    let mut config = config::without_flags(given)?;
    config.store.model_store = Some(args.store.clone());
    let problems = app::check(&config).with_context(|| args.store.to_string())?;
    let text = match args.json {
        true => serde_json::to_string_pretty(&problems.iter().map(to_json).collect::<Vec<_>>())? + "\n",
        false => sentences(&problems),
    };
    print(&text)?;
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One line a problem, `model version file:line: what`; then how many.
fn sentences(problems: &[Problem]) -> String {
    let mut text: String = problems.iter().map(|problem| escape(&sentence(problem)) + "\n").collect();
    text += &match problems.len() {
        0 => "no problems\n".to_string(),
        1 => "1 problem\n".to_string(),
        count => format!("{count} problems\n"),
    };
    text
}

fn sentence(problem: &Problem) -> String {
    let file = match (&problem.file, problem.line) {
        (Some(file), Some(line)) => Some(format!("{file}:{line}")),
        (file, _) => file.clone(),
    };
    let model = problem.model.as_ref().map(ToString::to_string);
    let version = problem.version.map(|version| version.to_string());
    let place: Vec<String> = [model, version, file].into_iter().flatten().collect();
    // The errors of a file begin with its name, which stands before them here.
    let named = problem.file.as_ref().and_then(|file| problem.message.strip_prefix(file.as_str())?.strip_prefix(": "));
    let message = named.unwrap_or(&problem.message);
    match place.is_empty() {
        true => message.to_owned(),
        false => format!("{}: {message}", place.join(" ")),
    }
}

fn to_json(problem: &Problem) -> Value {
    json!({
        "model": problem.model.as_ref().map(ToString::to_string),
        "version": problem.version.map(|version| version.to_string()),
        "file": problem.file,
        "line": problem.line,
        "message": problem.message,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_one_line_with_its_place() {
        let problem = Problem {
            model: Some(crate::model::ModelName::new("m").unwrap()),
            version: "1".parse().ok(),
            file: Some("model.yaml".into()),
            line: Some(3),
            message: "model.yaml: unknown key 'a\nb'".into(),
        };
        assert_eq!(sentences(&[problem]), "m 1.0.0 model.yaml:3: unknown key 'a\\nb'\n1 problem\n");
        assert_eq!(sentences(&[]), "no problems\n");
    }
}

//! `sconce check`: what is wrong in a store, for people or for scripts.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;

use super::{
    pending::{Problem, check},
    print,
};
use crate::{model::ModelYaml, telemetry::logs::escape};

/// Say all that is wrong in a model store, and change nothing
///
/// Exit status 1 when there is anything.
#[derive(Args)]
#[command(after_help = "Examples:\n  sconce check model-store\n  sconce check model-store --json | jq '.[].message'")]
pub struct CheckArgs {
    /// The model store
    #[arg(value_name = "DIR")]
    store: PathBuf,
    /// Print a JSON list of problems
    #[arg(long)]
    json: bool,
}

pub fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let problems = check(&args.store, &ModelYaml::default())?;
    let text = match args.json {
        true => serde_json::to_string_pretty(&problems)? + "\n",
        false => sentences(&problems),
    };
    print(&text)?;
    Ok(if problems.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// One line a problem, `model version file:line: what`; then how many.
fn sentences(problems: &[Problem]) -> String {
    let mut text: String = problems
        .iter()
        .map(|problem| escape(&sentence(problem)) + "\n")
        .collect();
    text += &match problems.len() {
        0 => "no problems\n".to_string(),
        1 => "1 problem\n".to_string(),
        count => format!("{count} problems\n"),
    };
    text
}

fn sentence(problem: &Problem) -> String {
    let file = problem.file.as_ref().map(|file| file.display().to_string());
    let file = match (file, problem.line) {
        (Some(file), Some(line)) => Some(format!("{file}:{line}")),
        (file, _) => file,
    };
    let place: Vec<String> = [problem.model.clone(), problem.version.clone(), file]
        .into_iter()
        .flatten()
        .collect();
    match place.is_empty() {
        true => problem.message.clone(),
        false => format!("{}: {}", place.join(" "), problem.message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_one_line_with_its_place() {
        let problem = Problem {
            model: Some("m".into()),
            version: None,
            file: Some("model.yaml".into()),
            line: Some(3),
            message: "unknown key 'a\nb'".into(),
        };
        assert_eq!(
            sentences(&[problem]),
            "m model.yaml:3: unknown key 'a\\nb'\n1 problem\n"
        );
        assert_eq!(sentences(&[]), "no problems\n");
    }
}

//! `sconce serve`: the configuration from its four sources, and the server.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, bail};
use clap::{ArgMatches, Args};

use super::{
    banner::{Banner, Examples, banner},
    print, warn_of_environment,
};
use crate::{
    app,
    config::{self, Config, Given, Setting},
    store::{self, Location},
    telemetry::logs,
};

/// Serve a folder of models, or one file
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub struct ServeArgs {
    /// One model file instead of a store: model.onnx, model.pt or model.txt
    #[arg(value_name = "MODEL_FILE", conflicts_with = "model_store")]
    model_file: Option<PathBuf>,
    /// A YAML file of options, their names with underscores [env: SCONCE_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Show every option, what holds and who said it, and end
    #[arg(long)]
    print_config: bool,
    // Read here for its help and its flags' texts; the other sources come in below.
    #[command(flatten)]
    flags: Config,
}

const AFTER_HELP: &str = "\
Every option is also an environment variable (SCONCE_GRPC_PORT for --grpc-port) and a key of the
file (grpc_port). A flag wins over the environment, that over the file, that over the default.

Examples:
  sconce serve --model-store model-store
  sconce serve model.onnx --grpc-port 0
  sconce serve --config sconce.yaml --print-config";

pub fn run(args: &ServeArgs, flags: &ArgMatches, program: &str) -> anyhow::Result<ExitCode> {
    warn_of_environment();
    let given = Given::read(|name| std::env::var_os(name), args.config.as_deref())?;
    let (mut config, settings) = config::effective(flags, given)?;
    if args.print_config {
        print(&printed(&settings))?;
        return Ok(ExitCode::SUCCESS);
    }
    config.settings = settings;
    if let Some(model_file) = &args.model_file {
        config.model_file = Some(model_file.clone());
        config.store.model_store = None;
    }
    if config.source().is_none() {
        bail!("nothing to serve: give --model-store DIR or URL, or a file as in `sconce serve model.onnx`");
    }
    check_source(&config)?;
    config.check_exposure()?;
    let level = logs::init(config.telemetry.log_format, &config.telemetry.log_level).map_err(anyhow::Error::msg)?;
    let (known, program) = (config.clone(), program.to_owned());
    app::serve(config, level, move |snapshot, listening| {
        let source = known.source().map(|source| PathBuf::from(source.to_string())).unwrap_or_default();
        let shown = banner(&Banner {
            snapshot,
            listening,
            source: &source,
            cores: known.machine.cores,
            memory: known.machine.memory,
            program: &program,
            examples: Examples::find(snapshot, &known),
        });
        // The server serves on, whether somebody reads this or not.
        let _ = print(&shown);
    })?;
    Ok(ExitCode::SUCCESS)
}

/// A mistyped path is refused at once; a store that goes away later is waited for.
fn check_source(config: &Config) -> anyhow::Result<()> {
    if let Some(file) = &config.model_file {
        let kind = std::fs::metadata(file).with_context(|| file.display().to_string())?;
        anyhow::ensure!(
            kind.is_file(),
            "{} is no file; `sconce serve --model-store {0}` serves a folder",
            file.display()
        );
        store::platform_of_file(file).with_context(|| file.display().to_string())?;
    }
    if let Some(store) = config.store.model_store.as_ref().and_then(Location::folder) {
        std::fs::read_dir(store).with_context(|| format!("the model store {}", store.display()))?;
    }
    if let Some(state) = config.store.state.as_ref().and_then(Location::folder) {
        let missing = "an empty folder is a state in which nothing was decided yet; make it first";
        std::fs::read_dir(state).with_context(|| format!("state: {}: {missing}", state.display()))?;
    }
    Ok(())
}

/// YAML, with who said it in a column of comments.
fn printed(settings: &[Setting]) -> String {
    let lines: Vec<String> = settings.iter().map(Setting::yaml).collect();
    let width = lines.iter().map(|line| line.chars().count()).filter(|&width| width <= 48).max().unwrap_or(0);
    let lines = lines.iter().zip(settings).map(|(line, setting)| format!("{line:width$}  # {}\n", setting.source));
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_model_is_refused_before_anything_starts() {
        let folder = tempfile::tempdir().unwrap();
        let check = |name: &str| {
            let file = folder.path().join(name);
            std::fs::write(&file, "").unwrap();
            let args =
                config::without_flags(Given::default()).map(|config| Config { model_file: Some(file), ..config });
            check_source(&args.unwrap()).map_err(|error| format!("{error:#}"))
        };
        for model in ["a.onnx", "a.pt", "a.txt"] {
            assert_eq!(check(model), Ok(()));
        }
        for other in ["README.md", "onnx", "a.onnx.data"] {
            let text = check(other).unwrap_err();
            assert!(text.contains(&format!("{other}: the file is no model: .onnx, .pt")), "{text}");
        }
    }

    #[test]
    fn the_printed_sources_stand_in_a_column() {
        let setting =
            |key: &str, value: Option<&str>, source| Setting { key: key.into(), value: value.map(Into::into), source };
        let settings = [
            setting("grpc_port", Some("7070"), config::Source::Flag),
            setting("work_dir", None, config::Source::Default),
        ];
        assert_eq!(printed(&settings), "grpc_port: 7070  # flag\nwork_dir: null   # default\n");
    }
}

//! From four sources to one configuration: flag over environment over file over default.
//!
//! What holds is worked out as text, option by option (`Setting`), each text is tried alone, so that an error names the
//! variable or the line it stands in, and then all are read as if they were one command line.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use clap::{ArgMatches, Args, Command, FromArgMatches, parser::ValueSource};
use serde::Deserialize;
use serde_yaml_ng::{Mapping, Value};

use super::{
    Config,
    environment::is_of_kubernetes,
    setting::{Setting, Source, plain, size_text, variable_name},
};
use crate::model::ModelYaml;

/// What environment and file say.
#[derive(Debug, Default)]
pub struct Given {
    values: BTreeMap<String, (OsString, Source)>,
    /// `defaults:` of the file.
    defaults: ModelYaml,
}

/// The one key of the file that is no option.
const DEFAULTS: &str = "defaults";

/// Names the file, so it cannot stand in it.
pub(super) const CONFIG: &str = "config";

/// What holds, from the command line as clap read it and from the rest.
pub fn effective(flags: &ArgMatches, given: Given) -> anyhow::Result<(Config, Vec<Setting>)> {
    let mut settings = Vec::new();
    for key in keys() {
        let setting = setting(&key, flags, &given);
        setting.try_alone()?;
        settings.push(setting);
    }
    let line = settings.iter().filter_map(Setting::argument);
    let matches = command().try_get_matches_from(line)?;
    let mut config = Config::from_arg_matches(&matches)?;
    config.defaults = given.defaults;
    config.anchor()?;
    // What the machine gives is known as bytes alone.
    for setting in settings.iter_mut().filter(|setting| setting.source == Source::Default) {
        match setting.key.as_str() {
            "memory" => setting.value = Some(size_text(config.machine.memory).into()),
            "request_memory" => setting.value = Some(size_text(config.request_memory() as u64).into()),
            _ => {}
        }
    }
    Ok((config, settings))
}

/// The same for a command that has no such flags.
pub fn without_flags(given: Given) -> anyhow::Result<Config> {
    let flags = command().try_get_matches_from(std::iter::empty::<OsString>())?;
    Ok(effective(&flags, given)?.0)
}

/// The names of all options, in the order of `Config`.
pub fn keys() -> Vec<String> {
    command().get_arguments().map(|arg| arg.get_id().to_string()).collect()
}

/// All options as Markdown tables, for docs/configuration.md.
pub fn reference() -> String {
    let mut text = String::new();
    let mut heading = "";
    let command = command();
    for arg in command.get_arguments() {
        let under = arg.get_help_heading().unwrap_or_default();
        if under != heading {
            text += &format!("\n## {under}\n\n| key | default | what it is |\n|---|---|---|\n");
            heading = under;
        }
        let default = match arg.get_default_values() {
            [default] if !arg.is_hide_default_value_set() => format!("`{}`", default.to_string_lossy()),
            _ => String::new(),
        };
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        text += &format!("| `{}` | {default} | {help} |\n", arg.get_id());
    }
    text
}

// === impl Given ===

impl Given {
    /// `variable` gives an environment variable; `file` is what `--config` says, and `SCONCE_CONFIG` where it says nothing.
    ///
    /// A variable that is set to nothing says nothing, as deployment templates mean it; nor does what Kubernetes
    /// sets for a Service that has the name of one of our ports (`warnings` says so).
    pub fn read(variable: impl Fn(&str) -> Option<OsString>, file: Option<&Path>) -> anyhow::Result<Self> {
        let variable = |key: &str| {
            let name = variable_name(key);
            variable(&name).filter(|value| !value.is_empty() && !is_of_kubernetes(&name, value))
        };
        let file = file.map(Path::to_path_buf).or_else(|| variable(CONFIG).map(PathBuf::from));
        let mut given = match &file {
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
                Self::parse(&path.display().to_string(), &text)?
            }
            None => Self::default(),
        };
        for key in keys() {
            if let Some(value) = variable(&key) {
                given.values.insert(key, (value, Source::Environment));
            }
        }
        Ok(given)
    }

    fn parse(file: &str, text: &str) -> anyhow::Result<Self> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct DefaultsOnly {
            defaults: Option<ModelYaml>,
        }
        let mut given = Self::default();
        if text.lines().all(|line| line.trim().is_empty() || line.starts_with('#')) {
            return Ok(given);
        }
        // Read twice: from the text for the defaults, whose errors then have lines, and as plain keys for the rest.
        let own: DefaultsOnly = serde_yaml_ng::from_str(text).with_context(|| file.to_string())?;
        given.defaults = own.defaults.unwrap_or_default();
        let map: Mapping = serde_yaml_ng::from_str(text).with_context(|| file.to_string())?;
        let known = keys();
        for (key, value) in map {
            let key = plain(&key).unwrap_or_default();
            let line = line_of(text, &key);
            if key == DEFAULTS {
                continue;
            }
            if !known.contains(&key) {
                bail!(
                    "{file}:{line}: unknown key '{key}'; `sconce serve --help` lists the options (grpc_port for --grpc-port)"
                );
            }
            let value = match &value {
                Value::Null => continue,
                Value::Sequence(items) => {
                    items.iter().map(plain).collect::<Option<Vec<_>>>().map(|items| items.join(","))
                }
                value => plain(value),
            };
            let Some(value) = value else {
                bail!("{file}:{line}: {key} takes one value, not a map");
            };
            let source = Source::File { name: file.into(), line };
            given.values.insert(key, (value.into(), source));
        }
        Ok(given)
    }
}

/// The options as a command line of their own.
pub(super) fn command() -> Command {
    Config::augment_args(Command::new("sconce").no_binary_name(true))
}

fn setting(key: &str, flags: &ArgMatches, given: &Given) -> Setting {
    let raw = || {
        let values = flags.get_raw(key)?;
        Some(values.collect::<Vec<_>>().join(std::ffi::OsStr::new(",")))
    };
    let (value, source) = match (flags.value_source(key), given.values.get(key)) {
        (Some(ValueSource::CommandLine), _) => (raw(), Source::Flag),
        (_, Some((value, source))) => (Some(value.clone()), source.clone()),
        _ => (raw(), Source::Default),
    };
    Setting { key: key.into(), value, source }
}

/// Where a key of the outermost map stands; 1 where it cannot be seen, as in `{a: 1}`.
fn line_of(text: &str, key: &str) -> usize {
    let stands_in = |line: &str| {
        let unquoted = line.trim_start_matches(['"', '\'']);
        let rest = unquoted.strip_prefix(key).map(|rest| rest.trim_start_matches(['"', '\'', ' ']));
        rest.is_some_and(|rest| rest.starts_with(':'))
    };
    text.lines().position(stands_in).map_or(1, |place| place + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(flags: &[&str], variables: &[(&str, &str)], file: &str) -> anyhow::Result<(Config, Vec<Setting>)> {
        let mut given = Given::parse("sconce.yaml", file)?;
        let environment = Given::read(
            |name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into()),
            None,
        )?;
        given.values.extend(environment.values);
        effective(&command().try_get_matches_from(flags)?, given)
    }

    fn source(settings: &[Setting], key: &str) -> String {
        let found = settings.iter().find(|setting| setting.key == key).expect("the key is an option");
        found.source.to_string()
    }

    #[test]
    fn flag_beats_environment_beats_file_beats_default() {
        let file = "grpc_port: 1\nhttp_port: 1\nmetrics_port: 1\n";
        let variables = [("SCONCE_GRPC_PORT", "2"), ("SCONCE_HTTP_PORT", "2")];
        let (config, settings) = load(&["--grpc-port", "3"], &variables, file).unwrap();
        let listen = &config.listen;
        assert_eq!((listen.grpc_port, listen.http_port, listen.metrics_port, listen.grpc_admin_port), (3, 2, 1, 7071));
        assert_eq!(source(&settings, "grpc_port"), "flag");
        assert_eq!(source(&settings, "http_port"), "environment");
        assert_eq!(source(&settings, "metrics_port"), "file sconce.yaml:3");
        assert_eq!(source(&settings, "grpc_admin_port"), "default");
    }

    #[test]
    fn a_port_that_kubernetes_sets_says_nothing() {
        let (config, settings) = load(&[], &[("SCONCE_GRPC_PORT", "tcp://10.0.0.1:7070")], "grpc_port: 1\n").unwrap();
        assert_eq!((config.listen.grpc_port, source(&settings, "grpc_port").as_str()), (1, "file sconce.yaml:1"));
    }

    #[test]
    fn an_error_names_the_line_or_the_variable() {
        let message = |variables: &[(&str, &str)], file: &str| load(&[], variables, file).unwrap_err().to_string();
        let text = message(&[], "# a comment\ngrpc_port: 1\ngrpc-port: 2\n");
        assert!(text.starts_with("sconce.yaml:3: unknown key 'grpc-port'"), "{text}");
        let text = message(&[], "\nidle_timeout: soon\n");
        assert!(
            text.starts_with("sconce.yaml:2: idle_timeout: ") && text.contains("'soon' is not a duration"),
            "{text}"
        );
        let text = message(&[("SCONCE_LOG_FORMAT", "xml")], "");
        assert!(text.starts_with("SCONCE_LOG_FORMAT: ") && text.contains("text, json"), "{text}");
        let text = message(&[], "grpc_port: {a: 1}\n");
        assert_eq!(text, "sconce.yaml:1: grpc_port takes one value, not a map");
        let text = format!("{:#}", load(&[], &[], "defaults:\n  batching: off\n  typo: 1\n").unwrap_err());
        assert!(text.contains("sconce.yaml") && text.contains("typo") && text.contains("line 3"), "{text}");
    }

    #[test]
    fn what_is_printed_reads_back_as_the_same_configuration() {
        let flags =
            ["--models=fraud-*,early?", "--insecure-no-auth", "--memory=3GiB", "--work-dir=#odd: name", "--host=::"];
        let (config, settings) = load(&flags, &[("SCONCE_LOG_LEVEL", "info,sconce=debug")], "").unwrap();
        let printed: Vec<String> = settings.iter().map(Setting::yaml).collect();
        let (again, _) = load(&[], &[], &printed.join("\n")).unwrap();
        assert_eq!(
            format!("{config:?}").replace("request_memory: None", "request_memory: Some(402653184)"),
            format!("{again:?}")
        );
        assert_eq!(again.store.models, ["fraud-*", "early?"]);
        assert_eq!(again.request_memory(), 3 << 27);
    }

    #[test]
    fn a_list_in_the_file_and_its_defaults_are_read() {
        let (config, _) =
            load(&[], &[], "models: [a*, b]\ndefaults:\n  required: true\ncompleteness: manifest\n").unwrap();
        assert_eq!(config.store.models, ["a*", "b"]);
        assert_eq!(config.store.completeness, crate::store::Completeness::Manifest);
        assert_eq!(config.defaults.required, Some(true));
        assert!(load(&[], &[], "").unwrap().0.store.models.is_empty());
        let (config, _) = load(&["--work-dir=w"], &[], "").unwrap();
        assert!(
            config.machine.native_dir.is_absolute() && config.machine.work_dir.is_some_and(|dir| dir.is_absolute())
        );
    }

    #[test]
    fn beyond_loopback_without_authentication_is_refused_with_the_ways_out() {
        let exposed = |flags: &[&str]| load(flags, &[], "").unwrap().0.check_exposure();
        let text = exposed(&["--host=0.0.0.0"]).unwrap_err().to_string();
        assert!(
            text.contains("--host") && text.contains("--insecure-no-auth") && text.contains("port-forward"),
            "{text}"
        );
        assert!(exposed(&["--admin-host", "::"]).unwrap_err().to_string().contains("admin on :: (--admin-host)"));
        for flags in [
            &["--host=0.0.0.0", "--insecure-no-auth"][..],
            &["--ops-host=0.0.0.0"],
            &["--host=127.8.8.8"],
            &["--host=localhost"],
            &[],
        ] {
            assert_eq!(exposed(flags), Ok(()), "{flags:?}");
        }
    }

    #[test]
    fn the_documentation_has_every_option_as_it_is() {
        let page = include_str!("../../docs/configuration.md");
        for line in reference().lines() {
            assert!(
                page.contains(line),
                "docs/configuration.md lacks this line:\n{line}\nIts tables must be:\n{}",
                reference()
            );
        }
    }
}

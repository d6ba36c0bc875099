//! One option as text: what holds and who said it.

use std::{ffi::OsString, fmt};

use anyhow::bail;
use serde_yaml_ng::Value;

use super::sources::command;
use crate::model::units::parse_size;

/// One option: what holds, and where that was said.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    pub key: String,
    /// As it was written; `None` where nobody said anything and the default is worked out later.
    pub value: Option<OsString>,
    pub source: Source,
}

/// The strongest first.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    Flag,
    Environment,
    File { name: String, line: usize },
    Default,
}

// === impl Setting ===

impl Setting {
    /// `grpc_port: 7070` of `--print-config`.
    pub fn yaml(&self) -> String {
        let value = match &self.value {
            None => "null".into(),
            Some(value) => scalar(&value.to_string_lossy()),
        };
        format!("{}: {value}", self.key)
    }

    /// An error that says where the value stands.
    pub(super) fn try_alone(&self) -> anyhow::Result<()> {
        let Some(argument) = self.argument() else {
            return Ok(());
        };
        let Err(error) = command().try_get_matches_from([argument]) else {
            return Ok(());
        };
        let text = error.to_string();
        let lines = text.lines().map(str::trim).take_while(|line| !line.is_empty());
        let what = lines.collect::<Vec<_>>().join(" ");
        let what = what.strip_prefix("error: ").unwrap_or(&what);
        match &self.source {
            Source::Environment => bail!("{}: {what}", variable_name(&self.key)),
            Source::File { name, line } => bail!("{name}:{line}: {}: {what}", self.key),
            Source::Flag | Source::Default => bail!("{what}"),
        }
    }

    /// `--grpc-port=7070`
    pub(super) fn argument(&self) -> Option<OsString> {
        let mut argument = OsString::from(format!("--{}=", self.key.replace('_', "-")));
        argument.push(self.value.as_ref()?);
        Some(argument)
    }
}

// === impl Source ===

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Flag => f.write_str("flag"),
            Source::Environment => f.write_str("environment"),
            Source::File { name, line } => write!(f, "file {name}:{line}"),
            Source::Default => f.write_str("default"),
        }
    }
}

/// `SCONCE_GRPC_PORT`
pub(super) fn variable_name(key: &str) -> String {
    format!("SCONCE_{}", key.to_uppercase())
}

/// Bytes as `24.1GiB`, where that is exact; else as they are.
pub(super) fn size_text(bytes: u64) -> String {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20)].into_iter().filter(|(_, shift)| bytes >> shift > 0);
    let texts = units.flat_map(|(unit, shift)| {
        let count = bytes as f64 / (1u64 << shift) as f64;
        [format!("{count:.0}{unit}"), format!("{count:.1}{unit}")]
    });
    let mut exact = texts.filter(|text| parse_size(text) == Ok(bytes));
    exact.next().unwrap_or_else(|| bytes.to_string())
}

/// A scalar as text.
pub(super) fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    }
}

/// The text as a YAML scalar that reads back as that text, without quotes where it can be.
fn scalar(text: &str) -> String {
    let read: Option<Value> = serde_yaml_ng::from_str(text).ok();
    match read.as_ref().and_then(plain) {
        Some(read) if read == text => text.into(),
        _ => Value::from(text).as_str().map(|text| format!("{text:?}")).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_short_only_where_it_reads_back_exactly() {
        assert_eq!([size_text(3 << 30), size_text(3 << 29), size_text(384 << 20)], ["3GiB", "1.5GiB", "384MiB"]);
        for bytes in [0, 4096, (3 << 30) + 1, 25_900_000_000] {
            assert_eq!(size_text(bytes), bytes.to_string());
        }
    }
}

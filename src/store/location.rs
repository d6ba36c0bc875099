//! Where a store is: a folder, or a bucket by its URL.

use std::{
    convert::Infallible,
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

/// What `--model-store` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A folder of models; or one file that is served alone.
    Folder(PathBuf),
    /// `s3://bucket/path`, `gs://…` or `az://…`.
    Bucket(String),
}

// === impl Location ===

impl Location {
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Self::Folder(path) => Some(path),
            Self::Bucket(_) => None,
        }
    }
}

impl FromStr for Location {
    type Err = Infallible;

    /// Whatever has a scheme is a URL; opening the bucket says whether it is one of ours.
    fn from_str(text: &str) -> Result<Self, Infallible> {
        let scheme = text.split_once("://").map(|(scheme, _)| scheme);
        let is_url = scheme.is_some_and(|name| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric()));
        Ok(match is_url {
            true => Self::Bucket(text.trim_end_matches('/').to_owned()),
            false => Self::Folder(text.into()),
        })
    }
}

impl From<OsString> for Location {
    /// From a command line, where a path need not be text.
    fn from(text: OsString) -> Self {
        match text.to_str().map(str::parse) {
            Some(Ok(location)) => location,
            _ => Self::Folder(text.into()),
        }
    }
}

impl From<&Path> for Location {
    fn from(path: &Path) -> Self {
        Self::Folder(path.to_owned())
    }
}

impl From<&PathBuf> for Location {
    fn from(path: &PathBuf) -> Self {
        Self::Folder(path.clone())
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => path.display().fmt(f),
            Self::Bucket(url) => f.write_str(url),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scheme_makes_a_bucket() {
        let at = |text: &str| text.parse::<Location>().expect("any text is one");
        assert_eq!(at("s3://models/live/"), Location::Bucket("s3://models/live".into()));
        assert_eq!(at("/srv/models"), Location::Folder("/srv/models".into()));
        assert_eq!(at("./a://b"), Location::Folder("./a://b".into()));
    }
}

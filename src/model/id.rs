//! Names of models and numbers of versions: the only strings of a caller that ever become part of a path.

use std::{fmt, str::FromStr, sync::Arc};

use crate::error::{Error, Result};

/// A model's name: 1 to 128 of `A-Z a-z 0-9 . _ -`, the first not a dot. So a name is never a path.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelName(Arc<str>);

/// One to four numbers, missing ones 0: `1` is `1.0.0`. Ordered as numbers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version([u64; 4]);

const NAME_BYTES_MAX: usize = 128;

/// ` 'name'` where a caller's name is plain, else nothing: what an error may repeat of a caller's words. So no error grows
/// with them, breaks a line of a log or shows a path.
pub fn repeated(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b':');
    match name.len() <= NAME_BYTES_MAX && !name.is_empty() && name.bytes().all(plain) && !name.contains("..") {
        true => format!(" '{name}'"),
        false => String::new(),
    }
}

// === impl ModelName ===

impl ModelName {
    pub fn new(name: &str) -> Result<Self> {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if name.is_empty() {
            return Err(Error::invalid("INVALID_MODEL_NAME", "the model's name is empty"));
        }
        if name.len() > NAME_BYTES_MAX || name.starts_with('.') || !name.bytes().all(legal) {
            return Err(Error::invalid(
                "INVALID_MODEL_NAME",
                "a model's name has 1 to 128 of the characters A-Z a-z 0-9 . _ - and does not begin with a dot",
            ));
        }
        Ok(Self(name.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::borrow::Borrow<str> for ModelName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

// === impl Version ===

impl Version {
    pub const fn new(major: u64, minor: u64, patch: u64) -> Self {
        Self([major, minor, patch, 0])
    }

    pub const fn of_numbers(numbers: [u64; 4]) -> Self {
        Self(numbers)
    }

    /// The four numbers, missing ones 0.
    pub fn numbers(self) -> [u64; 4] {
        self.0
    }
}

impl FromStr for Version {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let malformed =
            || Error::invalid("INVALID_VERSION", "a version is one to four numbers with dots between them, e.g. 1.2.0");
        let digits = text.strip_prefix('v').unwrap_or(text);
        let mut numbers = [0; 4];
        for (place, part) in digits.split('.').enumerate() {
            let plain = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
            if place >= numbers.len() || !plain {
                return Err(malformed());
            }
            numbers[place] = part.parse().map_err(|_| malformed())?;
        }
        Ok(Self(numbers))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch, build] = self.0;
        write!(f, "{major}.{minor}.{patch}")?;
        if build > 0 { write!(f, ".{build}") } else { Ok(()) }
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn versions_order_as_numbers() {
        let sorted = ["0.9", "1.9.0", "1.10.0", "1.10.0.1", "2", "20260801"];
        let parsed: Vec<Version> = sorted.iter().map(|text| text.parse().expect("a version")).collect();
        assert!(parsed.is_sorted());
        assert_eq!("1".parse::<Version>().expect("a version"), "v1.0.0".parse().expect("a version"));
    }

    #[test]
    fn what_is_not_a_version_is_refused() {
        for text in ["", "v", "1.", ".1", "1..2", "1.2.3.4.5", "-1", "1.x", "latest", "18446744073709551616", "١"] {
            assert!(text.parse::<Version>().is_err(), "{text} passed");
        }
    }

    #[test]
    fn a_name_is_never_a_path() {
        for name in ["", ".", "..", "../x", "a/b", "a\\b", "a\0b", ".hidden", "C:x", "naïve", &"a".repeat(129)] {
            assert!(ModelName::new(name).is_err(), "{name:?} passed");
        }
        assert!(ModelName::new("early-signal_2.onnx").is_ok());
    }

    proptest! {
        #[test]
        fn a_version_reads_back_as_it_was_written(numbers in proptest::array::uniform4(any::<u64>())) {
            let version = Version(numbers);
            prop_assert_eq!(version.to_string().parse::<Version>().expect("a version"), version);
        }
    }
}

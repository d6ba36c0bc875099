//! Patterns over models' names: `--models 'fraud-*,early-signal'`, and those of ListModels.

use std::{convert::Infallible, str::FromStr};

/// Patterns of `*` (any text) and `?` (one character); no pattern at all means every model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patterns(Vec<String>);

// === impl Patterns ===

impl Patterns {
    /// Whether every name is admitted.
    pub fn is_all(&self) -> bool {
        self.0.is_empty()
    }

    pub fn admits(&self, name: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|pattern| matches(pattern.as_bytes(), name.as_bytes()))
    }
}

impl From<Vec<String>> for Patterns {
    fn from(patterns: Vec<String>) -> Self {
        Self(patterns)
    }
}

impl FromStr for Patterns {
    type Err = Infallible;

    /// Patterns with commas between them.
    fn from_str(text: &str) -> Result<Self, Infallible> {
        let patterns = text.split(',').map(str::trim).filter(|pattern| !pattern.is_empty());
        Ok(Self(patterns.map(String::from).collect()))
    }
}

/// Walks both texts once, going back only to the last star: linear in the name for each star.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut last_star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                last_star = Some((p, n));
                p += 1;
            }
            Some(&byte) if byte == b'?' || byte == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match last_star {
                Some((star, taken)) => {
                    last_star = Some((star, taken + 1));
                    p = star + 1;
                    n = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&byte| byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn admits(patterns: &str, name: &str) -> bool {
        patterns.parse::<Patterns>().expect("cannot fail").admits(name)
    }

    #[test]
    fn patterns_are_read_as_a_shell_reads_them() {
        assert!(admits("", "anything"));
        assert!(admits("fraud-*", "fraud-eu"));
        assert!(!admits("fraud-*", "antifraud-eu"));
        assert!(admits("fraud-*, early-signal", "early-signal"));
        assert!(admits("*-v?", "a-v-v2"));
        assert!(!admits("*-v?", "a-v"));
        assert!(admits("a**b", "ab"));
    }

    proptest! {
        #[test]
        fn a_name_matches_itself_and_every_cut_of_it(name in "[a-z]{1,12}", cut in 0usize..12) {
            let cut = cut.min(name.len());
            prop_assert!(admits(&name, &name));
            let pattern = format!("{}*", &name[..cut]);
            let pattern2 = format!("*{}", &name[cut..]);
            prop_assert!(admits(&pattern, &name));
            prop_assert!(admits(&pattern2, &name));
        }
    }
}

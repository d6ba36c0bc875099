//! The `key=value` lines of a LightGBM text, and the numbers in them. `text` judges what they mean.

use std::{collections::HashMap, str::FromStr};

use super::text::Damage;

/// `key=value` lines, each key once.
pub struct Keys<'a>(HashMap<&'a str, &'a str>);

// === impl Keys ===

impl<'a> Keys<'a> {
    /// `known` empty: any key, and the flag of random forests, the only line without `=`.
    pub fn parse(lines: impl Iterator<Item = &'a str>, known: &[&str]) -> Result<Self, Damage> {
        let mut keys = HashMap::new();
        for line in lines.filter(|line| !line.is_empty()) {
            let (key, value) = match line.split_once('=') {
                Some(pair) => pair,
                None if known.is_empty() && line == "average_output" => (line, ""),
                None => return Err("a line is not key=value".into()),
            };
            if !known.is_empty() && !known.contains(&key) {
                return Err("a key is none that LightGBM writes".into());
            }
            if keys.insert(key, value).is_some() {
                return Err(format!("{} comes twice", key.chars().take(40).collect::<String>()));
            }
        }
        Ok(Self(keys))
    }

    pub fn iter(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.0.iter().map(|(&key, &value)| (key, value))
    }

    pub fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    fn get(&self, key: &str) -> Result<&'a str, Damage> {
        self.0.get(key).copied().ok_or_else(|| format!("{key} is missing"))
    }

    pub fn words(&self, key: &str) -> Result<impl Iterator<Item = &'a str> + use<'a>, Damage> {
        // A linear tree's leaves without features leave two spaces in a row.
        Ok(self.get(key)?.split(' ').filter(|word| !word.is_empty()))
    }

    pub fn number<T: FromStr>(&self, key: &str) -> Result<T, Damage> {
        self.get(key)?.parse().map_err(|_| format!("{key} is not a number of its kind"))
    }

    pub fn number_or<T: FromStr>(&self, key: &str, absent: T) -> Result<T, Damage> {
        if self.0.contains_key(key) { self.number(key) } else { Ok(absent) }
    }

    pub fn numbers<T: FromStr>(&self, key: &str) -> Result<Vec<T>, Damage> {
        let numbers = self.words(key)?.map(str::parse);
        numbers.collect::<Result<_, _>>().map_err(|_| format!("{key} holds what is not a number of its kind"))
    }

    pub fn array<T: FromStr>(&self, key: &str, length: usize) -> Result<Vec<T>, Damage> {
        let numbers = self.numbers(key)?;
        if numbers.len() != length {
            return Err(format!("{key} holds {} numbers instead of {length}", numbers.len()));
        }
        Ok(numbers)
    }

    pub fn array_or_none<T: FromStr>(&self, key: &str, length: usize) -> Result<Option<Vec<T>>, Damage> {
        self.0.contains_key(key).then(|| self.array(key, length)).transpose()
    }
}

//! `cache:` of model.yaml: whether a version keeps its answers, how many, how long, and what makes two requests equal.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, de};

use super::{units, word_or_map::WordOrMap};
use crate::error::{Error, Result};

/// `cache:`, a map of options, or `off` where the server's defaults say otherwise.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Caching {
    /// Holds `false`, which is how YAML has it.
    Off(bool),
    /// `on` is a map without options.
    On(CacheOptions),
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct CacheOptions {
    /// How long an answer may be given again, from when it was computed.
    #[serde(deserialize_with = "units::duration", skip_serializing)]
    pub ttl: Option<Duration>,
    pub max_entries: Option<usize>,
    #[serde(deserialize_with = "units::size", skip_serializing)]
    pub max_bytes: Option<u64>,
    /// Attributes whose values stand for the inputs.
    pub key: Option<Vec<String>>,
}

/// All of it resolved for one version.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct CacheLimits {
    pub ttl: Duration,
    pub max_entries: usize,
    pub max_bytes: u64,
    /// Attributes whose values stand for the inputs; empty means the inputs themselves.
    pub key: Vec<String>,
}

/// An answer is worth more than this only where nothing changes, and then a restart is rare, too.
const TTL_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
const ENTRIES_MAX: usize = 100_000_000;
const KEY_NAMES_MAX: usize = 16;

// === impl Caching ===

impl Caching {
    /// What `own` leaves out, `under` fills in, option by option; `off` stays off.
    pub fn over(own: Option<Self>, under: Option<Self>) -> Option<Self> {
        match (own, under) {
            (Some(Self::On(own)), Some(Self::On(under))) => Some(Self::On(CacheOptions {
                ttl: own.ttl.or(under.ttl),
                max_entries: own.max_entries.or(under.max_entries),
                max_bytes: own.max_bytes.or(under.max_bytes),
                key: own.key.or(under.key),
            })),
            (own, under) => own.or(under),
        }
    }

    pub fn options(&self) -> Option<&CacheOptions> {
        match self {
            Self::On(options) => Some(options),
            Self::Off(_) => None,
        }
    }
}

impl<'de> Deserialize<'de> for Caching {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match WordOrMap::<CacheOptions>::read(deserializer, "off, on or a map of options")? {
            WordOrMap::Map(options) => Ok(Self::On(options)),
            WordOrMap::Flag(true) => Ok(Self::On(CacheOptions::default())),
            WordOrMap::Flag(false) => Ok(Self::Off(false)),
            WordOrMap::Word(word) => match word.as_str() {
                "on" => Ok(Self::On(CacheOptions::default())),
                "off" => Ok(Self::Off(false)),
                _ => Err(de::Error::custom(format!("cache is off, on or a map of options, not '{word}'"))),
            },
        }
    }
}

// === impl CacheLimits ===

impl CacheLimits {
    /// `None` where there is to be no cache.
    pub fn resolve(caching: Option<Caching>) -> Result<Option<Self>> {
        let Some(Caching::On(options)) = caching else {
            return Ok(None);
        };
        let limits = Self {
            ttl: options.ttl.unwrap_or(Duration::from_secs(60)),
            max_entries: options.max_entries.unwrap_or(10_000),
            max_bytes: options.max_bytes.unwrap_or(64 << 20),
            key: options.key.unwrap_or_default(),
        };
        limits.check()?;
        Ok(Some(limits))
    }

    fn check(&self) -> Result<()> {
        let wrong = |what: &str| Err(Error::invalid("INVALID_MANIFEST", format!("model.yaml: {what}")));
        if self.ttl.is_zero() || self.ttl > TTL_MAX {
            return wrong("cache.ttl must be above 0 and at most 365 days");
        }
        if self.max_entries == 0 || self.max_entries > ENTRIES_MAX {
            return wrong("cache.max_entries must be 1 to 100000000");
        }
        if self.max_bytes == 0 {
            return wrong("cache.max_bytes must be at least 1");
        }
        if self.key.len() > KEY_NAMES_MAX {
            return wrong("cache.key names at most 16 attributes");
        }
        if self.key.iter().enumerate().any(|(place, name)| name.is_empty() || self.key[..place].contains(name)) {
            return wrong("cache.key names each attribute once, and none is empty");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ModelYaml;

    fn resolved(own: &str, under: &str) -> Result<Option<CacheLimits>> {
        let own = ModelYaml::parse(own)?.over(&ModelYaml::parse(under)?);
        CacheLimits::resolve(own.cache)
    }

    #[test]
    fn it_is_off_unless_somebody_says_so_and_options_are_filled_in_one_by_one() {
        let plain = CacheLimits { ttl: Duration::from_secs(60), max_entries: 10_000, max_bytes: 64 << 20, key: vec![] };
        assert_eq!(resolved("", "").expect("fine"), None);
        assert_eq!(resolved("cache: off", "cache: on").expect("fine"), None);
        assert_eq!(resolved("cache: {}", "").expect("fine"), Some(plain.clone()));
        assert_eq!(resolved("cache: on", "").expect("fine"), Some(plain.clone()));
        let merged =
            resolved("cache: { ttl: 5m, key: [symbol] }", "cache: { ttl: 1s, max_bytes: 1MiB }").expect("fine");
        let ttl = Duration::from_secs(300);
        assert_eq!(merged, Some(CacheLimits { ttl, max_bytes: 1 << 20, key: vec!["symbol".into()], ..plain }));
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_its_name() {
        for (yaml, named) in [
            ("cache: { ttl: 0s }", "cache.ttl"),
            ("cache: { ttl: 366d }", "cache.ttl"),
            ("cache: { max_entries: 0 }", "cache.max_entries"),
            ("cache: { max_bytes: 0 }", "cache.max_bytes"),
            ("cache: { key: [a, a] }", "cache.key"),
            ("cache: { key: [''] }", "cache.key"),
            ("cache: { tll: 1s }", "tll"),
            ("cache: sometimes", "sometimes"),
        ] {
            let error = resolved(yaml, "").expect_err(yaml);
            assert!(error.message().contains(named), "{yaml}: {error}");
        }
    }
}

//! `route.yaml`: who gets the traffic of a model, as operators wrote it, and how it came to that.
//!
//! The server writes the file, people may. It is one record: replaced whole, never in part.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{
    Rollout, Rule, Shadow, Sticky, Variant, Version, parse_yaml,
    variants::{CALLER, RULES_MAX, SHADOWS_MAX, Source, check_variants},
};
use crate::error::{Error, Result};

/// The traffic of one model. The default is that of a model nobody has decided anything about.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Route {
    /// Goes up with each write of the server. A file without one is a hand edit of the one that holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    pub stable: Stable,
    /// The stable before this one: it stays loaded, so that a rollback is at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous: Option<Version>,
    /// Versions that `stable: latest` passes over.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub rejected: BTreeSet<Version>,
    /// Versions that share the traffic with stable.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub variants: Vec<Variant>,
    /// By what a caller is known again, so that it stays where it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sticky: Option<Sticky>,
    /// Callers that get a version whatever the weights say.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    /// Versions that are asked as well, and whose answers nobody gets.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub shadow: Vec<Shadow>,
    /// The last version that came, or comes, to stable step by step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
    /// Names for versions.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, Version>,
    /// Versions that are loaded beside what `versions:` of model.yaml selects.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub load: BTreeSet<Version>,
    /// Why the model answers nobody at present.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disabled: Option<Disabled>,
    /// How often operators asked for servables made anew.
    #[serde(skip_serializing_if = "is_zero")]
    pub reloads: u64,
    /// Of the last write, so that a writer knows its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
    /// The oldest first, the last `HISTORY_MAX` of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<RouteChange>,
}

/// Which version answers a call that names none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stable {
    /// The highest that is ready and not rejected.
    #[default]
    Latest,
    /// This one, until somebody says otherwise.
    Pinned(Version),
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Disabled {
    pub reason: String,
}

/// One write of the server.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RouteChange {
    pub revision: u64,
    /// RFC 3339, UTC.
    pub time: String,
    /// What was asked for, e.g. `promote 1.2.0`.
    pub change: String,
    /// What was stable from then on.
    pub stable: Stable,
    /// As claimed, where nothing authenticates.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub caller: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub request_id: String,
}

pub const HISTORY_MAX: usize = 100;
/// Of what is counted up: far from where a number ends.
const COUNT_MAX: u64 = 1 << 53;
pub const LABELS_MAX: usize = 100;
const LABEL_BYTES_MAX: usize = 128;

// === impl Route ===

impl Route {
    /// INVALID_MANIFEST names the key.
    pub fn parse(text: &str) -> Result<Self> {
        let route: Self = parse_yaml("route.yaml", text)?;
        let wrong = |what: String| Error::invalid("INVALID_MANIFEST", format!("route.yaml: {what}"));
        for label in route.labels.keys() {
            check_label(label).map_err(|error| wrong(error.to_string()))?;
        }
        let checked = route.check_traffic().and_then(|()| route.rollout.iter().try_for_each(Rollout::check));
        checked.map_err(|error| wrong(error.message().to_owned()))?;
        // Others count on from it.
        let numbers = [route.revision.unwrap_or(0), route.reloads];
        if numbers.iter().any(|number| *number > COUNT_MAX) {
            return Err(wrong(format!("revision and reloads are at most {COUNT_MAX}")));
        }
        Ok(route)
    }

    /// INVALID_ROUTE says what of the shares, the rules or the shadows is wrong.
    pub fn check_traffic(&self) -> Result<()> {
        let (rules, shadows) = (self.rules.len(), self.shadow.len());
        if rules > RULES_MAX || shadows > SHADOWS_MAX {
            let message =
                format!("{rules} rules and {shadows} shadows; at most {RULES_MAX} and {SHADOWS_MAX} are allowed");
            return Err(Error::invalid("INVALID_ROUTE", message));
        }
        check_variants(&self.variants)?;
        self.sticky.iter().try_for_each(Sticky::check)?;
        self.rules.iter().enumerate().try_for_each(|(place, rule)| rule.check(place))?;
        self.shadow.iter().try_for_each(Shadow::check)
    }

    pub fn to_yaml(&self) -> String {
        let yaml = serde_yaml_ng::to_string(self).expect("plain data: this is a bug");
        format!("# Who gets the traffic. `sconce promote`, `rollback`, `label` … write it; people may, too.\n{yaml}")
    }

    /// Whether `latest` is not to be that one: it was rejected, or it is still being tried beside stable.
    pub fn passes_over(&self, version: Version) -> bool {
        self.rejected.contains(&version)
            || self.running().is_some_and(|rollout| rollout.version == version)
            || self.variants.iter().any(|variant| variant.version == version)
            || self.shadow.iter().any(|shadow| shadow.version == version)
    }

    /// The rollout that is on its way.
    pub fn running(&self) -> Option<&Rollout> {
        self.rollout.as_ref().filter(|rollout| rollout.is_running())
    }

    /// What it looks for in the metadata of calls; `CALLER` for who the caller is.
    pub fn metadata_keys(&self) -> impl Iterator<Item = &str> {
        let sources = self.sticky.iter().map(Sticky::source).chain(self.rules.iter().map(Rule::source));
        sources.filter_map(|source| match source {
            Source::Metadata(key) => Some(key),
            Source::Caller => Some(CALLER),
            Source::Attribute(_) => None,
        })
    }

    /// The version that answers, of those that are ready.
    pub fn pick(&self, ready: impl Iterator<Item = Version>) -> Option<Version> {
        let mut allowed = ready.filter(|version| !self.rejected.contains(version));
        match self.stable {
            // What is tried stands in where there is nothing else: a model that could answer does.
            Stable::Latest => allowed.max_by_key(|version| (!self.passes_over(*version), *version)),
            Stable::Pinned(version) => allowed.find(|ready| *ready == version),
        }
    }

    /// The versions that are to be loaded whatever model.yaml says.
    pub fn named(&self) -> BTreeSet<Version> {
        let stable = match self.stable {
            Stable::Latest => None,
            Stable::Pinned(version) => Some(version),
        };
        let previous = self.previous.filter(|version| !self.rejected.contains(version));
        let labels = self.labels.values().copied();
        let variants = self.variants.iter().map(|variant| variant.version);
        let others = self.rules.iter().map(|rule| rule.version).chain(self.shadow.iter().map(|shadow| shadow.version));
        let decided = stable.into_iter().chain(previous).chain(labels).chain(self.load.iter().copied());
        let tried = self.running().map(|rollout| rollout.version);
        decided.chain(variants).chain(others).chain(tried).collect()
    }
}

/// A label is a plain name that never looks like a version, so that one field can take either.
pub fn check_label(label: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let named = !label.is_empty() && label.len() <= LABEL_BYTES_MAX && label.bytes().all(plain);
    match named && label.parse::<Version>().is_err() && label != "latest" && label != "stable" {
        true => Ok(()),
        false => Err(Error::invalid(
            "INVALID_LABEL",
            "a label has 1 to 128 of the characters A-Z a-z 0-9 . _ - and is neither a version nor 'latest' or 'stable'",
        )),
    }
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

// === impl Stable ===

impl fmt::Display for Stable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stable::Latest => f.write_str("latest"),
            Stable::Pinned(version) => version.fmt(f),
        }
    }
}

impl FromStr for Stable {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "latest" => Ok(Stable::Latest),
            version => version.parse().map(Stable::Pinned),
        }
    }
}

impl Serialize for Stable {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Stable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let word = version_word(deserializer)?;
        word.parse().map_err(|_| de::Error::custom(format!("'{word}' is neither a version nor 'latest'")))
    }
}

// === impl Version, in YAML ===

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let word = version_word(deserializer)?;
        word.parse().map_err(|_| de::Error::custom(format!("'{word}' is not a version")))
    }
}

/// YAML reads `1.2` as a number; as a version it is 1.2.0 all the same. (1.10 must stand in quotes: as a number it is 1.1.)
fn version_word<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    match serde_yaml_ng::Value::deserialize(deserializer)? {
        serde_yaml_ng::Value::String(word) => Ok(word),
        serde_yaml_ng::Value::Number(number) => Ok(number.to_string()),
        _ => Err(de::Error::custom("a version is expected, e.g. \"1.2.0\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn version(text: &str) -> Version {
        text.parse().expect("a version")
    }

    #[test]
    fn what_is_counted_up_has_room_to_be() {
        assert!(Route::parse("revision: 9007199254740992").is_ok());
        for text in ["revision: 18446744073709551615", "reloads: 9007199254740993"] {
            let error = Route::parse(text).expect_err("nobody could count on from there");
            assert!(error.message().contains("at most"), "{}", error.message());
        }
    }

    #[test]
    fn what_people_write_is_read() {
        let route = Route::parse("stable: 1.2\nrejected: ['1.10', 3]\nlabels: {prod: 1.1.0}\n").expect("a route");
        assert_eq!(route.stable, Stable::Pinned(version("1.2.0")));
        assert_eq!(route.rejected, [version("1.10"), version("3")].into());
        assert_eq!(route.named(), [version("1.1.0"), version("1.2.0")].into());
        assert_eq!(route.revision, None);
        assert_eq!(Route::parse("").expect("nothing is a route, too"), Route::default());
    }

    #[test]
    fn latest_passes_over_what_is_tried_unless_there_is_nothing_else() {
        let route =
            Route::parse("variants: [{name: a, version: 3, weight: 5}]\nshadow: [{version: 4}]").expect("a route");
        let picked = |ready: &[&str]| route.pick(ready.iter().map(|text| version(text)));
        assert_eq!(picked(&["1", "2", "3", "4"]), Some(version("2")));
        assert_eq!(picked(&["3"]), Some(version("3")));
        assert_eq!(picked(&[]), None);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let refused = |text: &str| Route::parse(text).expect_err("it is wrong").message().to_owned();
        assert!(refused("stabel: 1.0.0").contains("stabel"));
        assert!(refused("stable: newest").contains("newest"));
        assert!(refused("labels: {1.0.0: 1.0.0}").contains("label"));
        assert!(refused("labels: {latest: 1.0.0}").contains("label"));
        assert!(refused("stable: [1]").contains("version"));
    }

    #[test]
    fn latest_passes_over_what_was_rejected_and_a_number_stays() {
        let ready = || ["1.0.0", "1.2.0", "1.1.0"].into_iter().map(version);
        let route = |text| Route::parse(text).expect("a route");
        assert_eq!(route("").pick(ready()), Some(version("1.2.0")));
        assert_eq!(route("rejected: [1.2.0]").pick(ready()), Some(version("1.1.0")));
        assert_eq!(route("stable: 1.0.0").pick(ready()), Some(version("1.0.0")));
        assert_eq!(route("stable: 9.0.0").pick(ready()), None);
    }

    fn any_version() -> impl Strategy<Value = Version> {
        (0u64..20, 0u64..20, 0u64..20).prop_map(|(a, b, c)| Version::new(a, b, c))
    }

    proptest! {
        #[test]
        fn a_route_reads_back_as_it_was_written(
            revision in proptest::option::of(0..COUNT_MAX),
            pinned in proptest::option::of(any_version()),
            previous in proptest::option::of(any_version()),
            rejected in proptest::collection::btree_set(any_version(), 0..4),
            labels in proptest::collection::btree_map("[a-z][a-z0-9_]{0,8}x", any_version(), 0..4),
            reason in "\\PC{0,20}",
            reloads in 0u64..3,
        ) {
            let route = Route {
                revision,
                stable: pinned.map_or(Stable::Latest, Stable::Pinned),
                previous,
                rejected,
                labels,

                disabled: Some(Disabled { reason: reason.clone() }),
                reloads,
                nonce: Some("abc".into()),
                history: vec![RouteChange { reason, change: "promote 1.0.0".into(), ..Default::default() }],
                ..Route::default()
            };
            prop_assert_eq!(Route::parse(&route.to_yaml()).expect("our own"), route);
        }
    }
}

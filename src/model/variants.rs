//! Who shares the traffic with stable, as route.yaml says it: variants by weight, rules, shadows, and what callers stick by.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{
    Version, check_label,
    slots::{SLOTS, Slot, Slots, allot},
};
use crate::error::{Error, Result};

/// A version that gets a share of the traffic under a name of its own.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// As answers, metrics and reports call it; usually `canary`.
    pub name: String,
    pub version: Version,
    /// In percent of the traffic, to two decimals.
    pub weight: f64,
    /// Which callers that is. The server writes it; where people leave it out, or change the weight beside it, it follows the
    /// weight.
    #[serde(default, skip_serializing_if = "Slots::is_empty")]
    pub slots: Slots,
}

/// By what a caller is known again; who has none of it is drawn for anew with each call.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Sticky {
    /// Of the request's attributes, e.g. `customer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attribute: Option<String>,
    /// Of the call's metadata, e.g. `x-customer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<String>,
    /// By who the caller was found to be.
    #[serde(default, skip_serializing_if = "is_false")]
    pub caller: bool,
    /// Another salt puts callers into other slots.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub salt: String,
}

/// Callers that get a version whatever their slot: `{ attribute: tenant, equals: a, version: 1.2.0 }`. The first that matches
/// holds.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attribute: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<String>,
    #[serde(default, skip_serializing_if = "is_false")]
    pub caller: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub equals: Option<String>,
    /// One of these.
    #[serde(default, rename = "in", skip_serializing_if = "Vec::is_empty")]
    pub one_of: Vec<String>,
    pub version: Version,
}

/// A version that is asked what stable is asked, and whose answers nobody gets.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Shadow {
    pub version: Version,
    /// In percent of what the route answers; 100 where it is left out.
    #[serde(default = "everything")]
    pub sample: f64,
}

/// What a caller says of itself, and what is known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source<'a> {
    Attribute(&'a str),
    Metadata(&'a str),
    /// Who it was found to be by what authenticates it.
    Caller,
}

/// Where the authenticated caller stands beside a call's metadata: no key of theirs is written so.
pub const CALLER: &str = ":caller";

pub const VARIANTS_MAX: usize = 16;
pub const RULES_MAX: usize = 100;
pub const SHADOWS_MAX: usize = 4;
const VALUES_MAX: usize = 1_000;
const WORD_BYTES_MAX: usize = 256;

// === impl Variant ===

impl Variant {
    /// How many slots its weight is.
    pub fn slots_wanted(&self) -> usize {
        (self.weight * SLOTS as f64 / 100.0).round() as usize
    }
}

/// The slots of each variant by its weight: what they have, as far as it fits.
pub fn slots_by_weight(variants: &[Variant], begin: Slot) -> Result<Vec<Slots>> {
    let wanted: Vec<(&Slots, usize)> =
        variants.iter().map(|variant| (&variant.slots, variant.slots_wanted())).collect();
    allot(&wanted, begin)
}

/// INVALID_ROUTE says what is wrong with them.
pub fn check_variants(variants: &[Variant]) -> Result<()> {
    if variants.len() > VARIANTS_MAX {
        return Err(wrong(format!("{} variants, at most {VARIANTS_MAX} are allowed", variants.len())));
    }
    for (place, variant) in variants.iter().enumerate() {
        let name = &variant.name;
        // The names that answers use for what is no variant.
        if check_label(name).is_err() || ["pinned", "rule"].contains(&name.as_str()) {
            return Err(wrong(format!(
                "variants[{place}].name: 1 to 128 of the characters A-Z a-z 0-9 . _ -, neither a version nor 'stable', \
                 'latest', 'pinned' or 'rule'"
            )));
        }
        if variants[..place].iter().any(|earlier| earlier.name == *name) {
            return Err(wrong(format!("variant '{name}' is there twice")));
        }
        check_percent(&format!("variant '{name}': weight"), variant.weight)?;
    }
    slots_by_weight(variants, 0).map(drop)
}

// === impl Sticky ===

impl Sticky {
    /// INVALID_ROUTE where it names nothing, or two things.
    pub fn check(&self) -> Result<()> {
        one_source("sticky", self.attribute.as_deref(), self.metadata.as_deref(), self.caller)?;
        match self.salt.len() <= WORD_BYTES_MAX && !self.salt.contains('\0') {
            true => Ok(()),
            false => Err(wrong(format!("sticky.salt has at most {WORD_BYTES_MAX} bytes, none of them NUL"))),
        }
    }

    pub fn source(&self) -> Source<'_> {
        source(self.attribute.as_deref(), self.metadata.as_deref())
    }
}

// === impl Source ===

impl fmt::Display for Source<'_> {
    /// `attribute:customer`, `caller`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Attribute(name) => write!(f, "attribute:{name}"),
            Source::Metadata(name) => write!(f, "metadata:{name}"),
            Source::Caller => write!(f, "caller"),
        }
    }
}

// === impl Rule ===

impl Rule {
    /// INVALID_ROUTE names the rule by its place.
    pub fn check(&self, place: usize) -> Result<()> {
        one_source(&format!("rules[{place}]"), self.attribute.as_deref(), self.metadata.as_deref(), self.caller)?;
        let values = self.values().count();
        if self.equals.is_some() != self.one_of.is_empty() {
            return Err(wrong(format!("rules[{place}]: give either equals or in")));
        }
        match values <= VALUES_MAX && self.values().all(|value| value.len() <= WORD_BYTES_MAX) {
            true => Ok(()),
            false => {
                Err(wrong(format!("rules[{place}]: at most {VALUES_MAX} values of at most {WORD_BYTES_MAX} bytes")))
            }
        }
    }

    pub fn source(&self) -> Source<'_> {
        source(self.attribute.as_deref(), self.metadata.as_deref())
    }

    pub fn matches(&self, value: &str) -> bool {
        self.values().any(|wanted| wanted == value)
    }

    pub fn values(&self) -> impl Iterator<Item = &str> {
        self.equals.iter().chain(&self.one_of).map(String::as_str)
    }
}

// === impl Shadow ===

impl Shadow {
    /// INVALID_ROUTE names the version.
    pub fn check(&self) -> Result<()> {
        check_percent(&format!("shadow of {}: sample", self.version), self.sample)
    }
}

fn everything() -> f64 {
    100.0
}

/// From 0 to 100, to two decimals: finer than a slot nothing can be given.
fn check_percent(what: &str, percent: f64) -> Result<()> {
    let hundredths = percent * 100.0;
    match (0.0..=100.0).contains(&percent) && (hundredths - hundredths.round()).abs() < 1e-6 {
        true => Ok(()),
        false => {
            Err(wrong(format!("{what} is {percent}; a percentage from 0 to 100 with at most two decimals is expected")))
        }
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

fn one_source(what: &str, attribute: Option<&str>, metadata: Option<&str>, caller: bool) -> Result<()> {
    let named = match (attribute, metadata) {
        (None, None) => caller,
        _ if caller => false,
        (Some(name), None) => !name.is_empty() && name.len() <= WORD_BYTES_MAX,
        // As gRPC has them; what ends with -bin is bytes, and no word.
        (None, Some(name)) => {
            let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
            !name.is_empty() && name.len() <= WORD_BYTES_MAX && name.bytes().all(plain) && !name.ends_with("-bin")
        }
        _ => false,
    };
    match named {
        true => Ok(()),
        false => Err(wrong(format!(
            "{what}: give one of attribute, a name, metadata, a key in lower case without -bin, and caller: true"
        ))),
    }
}

fn source<'a>(attribute: Option<&'a str>, metadata: Option<&'a str>) -> Source<'a> {
    match (attribute, metadata) {
        (Some(name), _) => Source::Attribute(name),
        (None, Some(name)) => Source::Metadata(name),
        (None, None) => Source::Caller,
    }
}

fn wrong(what: String) -> Error {
    Error::invalid("INVALID_ROUTE", what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Route;

    #[test]
    fn what_people_write_is_read_and_its_slots_follow_the_weights() {
        let text = "variants: [{name: canary, version: 1.1, weight: 5}, {name: b, version: 1.2.0, weight: 0.25, slots: 600-999}]\n\
                    sticky: {attribute: customer}\n\
                    rules: [{attribute: tenant, equals: a, version: 1.2.0}, {metadata: x-beta, in: ['1', 'yes'], version: 1.1.0}]\n\
                    shadow: [{version: 1.3.0, sample: 10}]\n";
        let route = Route::parse(text).expect("a route");
        let slots = slots_by_weight(&route.variants, 0).expect("they fit");
        assert_eq!(slots.iter().map(Slots::to_string).collect::<Vec<_>>(), ["0-499", "600-624"]);
        assert!(route.rules[1].matches("yes") && !route.rules[1].matches("no"));
        assert_eq!(route.sticky.as_ref().expect("it is there").source(), Source::Attribute("customer"));
        let named: Vec<String> = route.named().iter().map(Version::to_string).collect();
        assert_eq!(named, ["1.1.0", "1.2.0", "1.3.0"]);
        assert_eq!(Route::parse(&route.to_yaml()).expect("a route"), route);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, named) in [
            ("variants: [{name: canary, version: 1, weight: 101}]", "'canary': weight"),
            ("variants: [{name: canary, version: 1, weight: 0.001}]", "two decimals"),
            ("variants: [{name: canary, version: 1, weight: .nan}]", "NaN"),
            ("variants: [{name: a, version: 1, weight: 60}, {name: b, version: 2, weight: 41}]", "more than 100"),
            ("variants: [{name: a, version: 1, weight: 1}, {name: a, version: 2, weight: 1}]", "twice"),
            ("variants: [{name: stable, version: 1, weight: 1}]", "variants[0].name"),
            ("variants: [{name: a, version: 1, weight: 1, slots: '7,5-8'}]", "apart"),
            (
                "variants: [{name: a, version: 1, weight: 1, slots: '1-2'}, {name: b, version: 1, weight: 1, slots: '2'}]",
                "slot 2",
            ),
            ("variants: [{name: a, version: 1, wieght: 1}]", "wieght"),
            ("sticky: {}", "sticky"),
            ("sticky: {attribute: a, metadata: b}", "sticky"),
            ("sticky: {metadata: X-User}", "lower case"),
            ("rules: [{attribute: a, version: 1}]", "rules[0]"),
            ("rules: [{attribute: a, equals: b, in: [c], version: 1}]", "either equals or in"),
            ("rules: [{equals: b, version: 1}]", "rules[0]"),
            ("shadow: [{version: 1, sample: -1}]", "shadow of 1.0.0"),
        ] {
            let error = Route::parse(text).expect_err(text);
            assert!(error.message().contains(named), "{text}: {}", error.message());
        }
    }
}

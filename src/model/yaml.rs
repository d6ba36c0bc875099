//! `model.yaml` and `version.yaml`: the shapes people write. Unknown keys are errors that name the key.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, de};

use super::{Batching, Caching, DType, PadYaml, Plan, Platform, UnpadYaml, units, word_or_map::WordOrMap};
use crate::error::{self, Error};

/// `model.yaml`, and `defaults:` of the server's configuration.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelYaml {
    pub platform: Option<Platform>,
    pub inputs: Option<Vec<SpecYaml>>,
    pub outputs: Option<Vec<SpecYaml>>,
    pub normalizer: Option<String>,
    pub instances: Option<Instances>,
    pub batching: Option<Batching>,
    pub warmup: Option<Vec<Warmup>>,
    pub versions: Option<VersionsPolicy>,
    /// A model without which the server is not ready.
    pub required: Option<bool>,
    /// Of the route: how often operators asked for servables made anew. People do not write it here.
    #[serde(skip)]
    pub reloads: u64,
    /// How long warm-up runs that nobody declared may take.
    #[serde(deserialize_with = "units::duration", skip_serializing)]
    pub warmup_budget: Option<Duration>,
    pub swap_policy: Option<SwapPolicy>,
    /// How long a version whose place a higher one took stays loaded.
    #[serde(deserialize_with = "units::duration", skip_serializing)]
    pub keep_previous: Option<Duration>,
    pub on_new_version: Option<OnNewVersion>,
    /// How a version comes to serve where nobody says it otherwise.
    #[serde(deserialize_with = "checked_plan")]
    pub canary: Option<Plan>,
    pub cache: Option<Caching>,
    pub onnx: Option<OnnxOptions>,
}

/// One input or output, as a person declares it.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SpecYaml {
    pub name: String,
    pub dtype: DType,
    pub shape: Vec<i64>,
    /// `false`: requests are never joined along this input; only those with equal bytes here share a batch.
    pub batch: Option<bool>,
    /// Of an input: the sizes that a variable dimension is filled up to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pad: Option<PadYaml>,
    /// Of an output: it is cut back to what the input had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unpad: Option<UnpadYaml>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub feature_names: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub features: BTreeMap<String, FeatureSpec>,
}

/// What is said of one feature beside its name.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FeatureSpec {
    pub missing: Option<MissingValue>,
}

/// What stands in for an absent feature.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(try_from = "MissingYaml", into = "MissingYaml")]
pub enum MissingValue {
    Nan,
    Value(f64),
}

#[derive(Deserialize, Serialize)]
#[serde(untagged)]
enum MissingYaml {
    Number(f64),
    Text(String),
}

/// How many sessions, and where.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Instances {
    /// Threads of its own, for a model that has them; the event loop has one session a core. On a GPU as many streams.
    pub count: Option<usize>,
    /// `cpu`, `cuda:0` or `auto`.
    pub device: Option<String>,
    /// Else by what a row costs.
    pub placement: Option<Placement>,
    /// Of a GPU's memory, what the version may take at most.
    #[serde(deserialize_with = "units::size", skip_serializing)]
    pub gpu_memory_limit: Option<u64>,
}

/// `onnx:`, what only ONNX Runtime can be told.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct OnnxOptions {
    /// How many threads share the operators of one run; the one that asks is among them.
    pub intra_op_threads: Option<usize>,
    /// Lets TensorRT have the parts of a model that it takes, on a GPU.
    pub tensorrt: Option<bool>,
}

/// Where the work of a version runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    /// On the cores that decode the requests.
    Loop,
    /// On threads of its own.
    Threads,
}

/// One warm-up run: `{zeros: 1}` or `{random: 64}`, with that many rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "WarmupYaml", into = "WarmupYaml")]
pub enum Warmup {
    Zeros(usize),
    Random(usize),
}

/// As it is written: an enum of serde's own would be a tag in YAML.
#[derive(Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct WarmupYaml {
    #[serde(skip_serializing_if = "Option::is_none")]
    zeros: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    random: Option<usize>,
}

/// Which versions of the store are loaded.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum VersionsPolicy {
    /// `all`
    All,
    /// The highest ones, so many.
    Latest(usize),
    /// Written as text or as a number: 1.2 and "1.2.0".
    Only(Vec<serde_yaml_ng::Value>),
}

/// What is preserved while one version takes the place of another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SwapPolicy {
    /// Answers: the new is loaded before the old goes, so for a while both take memory.
    #[default]
    Availability,
    /// Memory: the old is drained and gone before the new is loaded; meanwhile nothing answers.
    Resource,
}

/// What becomes of a version that is ready and higher than the one that answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnNewVersion {
    /// It answers.
    #[default]
    Serve,
    /// It is loaded, and a rollout by the plan of `canary` begins.
    Canary,
    /// It is loaded, and waits for somebody to decide.
    Hold,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SomeVersions {
    latest: Option<usize>,
    only: Option<Vec<serde_yaml_ng::Value>>,
}

/// `version.yaml`: what the artifact brings along.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct VersionYaml {
    /// Every file of the version but this one.
    pub files: BTreeMap<String, FileEntry>,
    pub platform: Option<Platform>,
    pub inputs: Option<Vec<SpecYaml>>,
    pub outputs: Option<Vec<SpecYaml>>,
    pub normalizer: Option<String>,
    pub classes: Option<Vec<String>>,
    /// Out-of-sample metrics by name.
    pub metrics: BTreeMap<String, f64>,
    // Carried for people and for the monitors; the runtime does not read inside.
    pub created: Option<serde_yaml_ng::Value>,
    pub library: Option<String>,
    pub training: Option<serde_yaml_ng::Value>,
    pub baseline: Option<serde_yaml_ng::Value>,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    pub sha256: String,
    pub size: Option<u64>,
}

const YAML_BYTES_MAX: usize = 1 << 20;

// === impl MissingValue ===

impl TryFrom<MissingYaml> for MissingValue {
    type Error = String;

    fn try_from(yaml: MissingYaml) -> Result<Self, String> {
        match yaml {
            MissingYaml::Number(number) if number.is_nan() => Ok(Self::Nan),
            MissingYaml::Number(number) => Ok(Self::Value(number)),
            MissingYaml::Text(text) if text.eq_ignore_ascii_case("nan") => Ok(Self::Nan),
            MissingYaml::Text(text) => Err(format!("'{text}' is neither nan nor a number")),
        }
    }
}

impl From<MissingValue> for MissingYaml {
    fn from(value: MissingValue) -> Self {
        match value {
            MissingValue::Nan => Self::Text("nan".into()),
            MissingValue::Value(value) => Self::Number(value),
        }
    }
}

// === impl Warmup ===

impl TryFrom<WarmupYaml> for Warmup {
    type Error = &'static str;

    fn try_from(yaml: WarmupYaml) -> Result<Self, &'static str> {
        match (yaml.zeros, yaml.random) {
            (Some(rows @ 1..), None) => Ok(Self::Zeros(rows)),
            (None, Some(rows @ 1..)) => Ok(Self::Random(rows)),
            _ => Err("a warmup is {zeros: rows} or {random: rows}, with at least one row"),
        }
    }
}

impl From<Warmup> for WarmupYaml {
    fn from(warmup: Warmup) -> Self {
        match warmup {
            Warmup::Zeros(rows) => Self { zeros: Some(rows), ..Self::default() },
            Warmup::Random(rows) => Self { random: Some(rows), ..Self::default() },
        }
    }
}

// === impl VersionsPolicy ===

impl<'de> Deserialize<'de> for VersionsPolicy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const FORMS: &str = "versions is all, { latest: N } or { only: [..] }";
        match WordOrMap::<SomeVersions>::read(deserializer, FORMS)? {
            WordOrMap::Word(word) if word == "all" => Ok(Self::All),
            WordOrMap::Map(SomeVersions { latest: Some(count), only: None }) => Ok(Self::Latest(count)),
            WordOrMap::Map(SomeVersions { latest: None, only: Some(only) }) => Ok(Self::Only(only)),
            _ => Err(de::Error::custom(FORMS)),
        }
    }
}

impl Default for VersionsPolicy {
    fn default() -> Self {
        Self::Latest(1)
    }
}

// === impl OnNewVersion ===

impl OnNewVersion {
    pub fn as_str(self) -> &'static str {
        match self {
            OnNewVersion::Serve => "serve",
            OnNewVersion::Canary => "canary",
            OnNewVersion::Hold => "hold",
        }
    }
}

// === impl ModelYaml ===

impl ModelYaml {
    pub fn parse(text: &str) -> error::Result<Self> {
        parse_yaml("model.yaml", text)
    }

    /// What this one leaves out, `under` fills in; whole keys at a time, but `batching`, `instances` and `cache` option by
    /// option.
    pub fn over(self, under: &ModelYaml) -> ModelYaml {
        let under = under.clone();
        ModelYaml {
            platform: self.platform.or(under.platform),
            inputs: self.inputs.or(under.inputs),
            outputs: self.outputs.or(under.outputs),
            normalizer: self.normalizer.or(under.normalizer),
            instances: match (self.instances, under.instances) {
                (Some(own), Some(under)) => Some(Instances {
                    count: own.count.or(under.count),
                    device: own.device.or(under.device),
                    placement: own.placement.or(under.placement),
                    gpu_memory_limit: own.gpu_memory_limit.or(under.gpu_memory_limit),
                }),
                (own, under) => own.or(under),
            },
            batching: match (self.batching, under.batching) {
                (Some(Batching::Options(own)), Some(Batching::Options(under))) => {
                    Some(Batching::Options(own.over(under)))
                }
                (own, under) => own.or(under),
            },
            warmup: self.warmup.or(under.warmup),
            versions: self.versions.or(under.versions),
            required: self.required.or(under.required),
            reloads: self.reloads,
            warmup_budget: self.warmup_budget.or(under.warmup_budget),
            swap_policy: self.swap_policy.or(under.swap_policy),
            keep_previous: self.keep_previous.or(under.keep_previous),
            on_new_version: self.on_new_version.or(under.on_new_version),
            canary: self.canary.or(under.canary),
            cache: Caching::over(self.cache, under.cache),
            onnx: self.onnx.or(under.onnx),
        }
    }
}

// === impl VersionYaml ===

impl VersionYaml {
    pub fn parse(text: &str) -> error::Result<Self> {
        parse_yaml("version.yaml", text)
    }
}

/// A plan that nobody could follow is refused with the file that it stands in, wherever that is.
fn checked_plan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Plan>, D::Error> {
    let plan = Option::<Plan>::deserialize(deserializer)?;
    let checked = plan.as_ref().map_or(Ok(()), Plan::check);
    checked.map_err(|error| de::Error::custom(format!("canary: {}", error.message())))?;
    Ok(plan)
}

/// One parser for all our YAML: a bounded size, and errors that begin with the file's name.
pub fn parse_yaml<T: for<'de> Deserialize<'de> + Default>(file: &str, text: &str) -> error::Result<T> {
    if text.len() > YAML_BYTES_MAX {
        return Err(Error::invalid("INVALID_MANIFEST", format!("{file}: larger than 1 MiB")));
    }
    if text.trim().is_empty() {
        return Ok(T::default());
    }
    serde_yaml_ng::from_str(text).map_err(|error| Error::invalid("INVALID_MANIFEST", format!("{file}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        ModelYaml::parse(text).expect_err("it is wrong").message().to_owned()
    }

    #[test]
    fn an_unknown_key_is_named_wherever_it_stands() {
        assert!(refused("fallbacks: x").contains("fallbacks"));
        assert!(refused("batching: { max_batch: 3 }").contains("max_batch"));
        assert!(refused("batching: { max_queue: { row: 3 } }").contains("row"));
        assert!(refused("versions: { newest: 3 }").contains("newest"));
        assert!(refused("warmup: [{ ones: 3 }]").contains("ones"));
        assert!(refused("inputs: [{ name: x, dtype: FP32, shape: [], kind: y }]").contains("kind"));
    }

    #[test]
    fn words_and_maps_are_read() {
        let yaml = |text| ModelYaml::parse(text).expect("good yaml");
        assert_eq!(yaml("batching: off").batching, Some(Batching::Word(crate::model::OnOff::Off)));
        assert_eq!(yaml("batching: false").batching, Some(Batching::Flag(false)));
        assert_eq!(yaml("versions: all").versions, Some(VersionsPolicy::All));
        assert_eq!(yaml("versions: { latest: 2 }").versions, Some(VersionsPolicy::Latest(2)));
        assert!(refused("versions: { latest: 2, only: [1] }").contains("latest"));
        assert!(refused("batching: sometimes").contains("sometimes"));
    }

    #[test]
    fn what_becomes_of_a_new_version_is_read_and_a_plan_is_checked() {
        let yaml = |text| ModelYaml::parse(text).expect("good yaml");
        for word in [OnNewVersion::Serve, OnNewVersion::Canary, OnNewVersion::Hold] {
            let text = format!("on_new_version: {}", word.as_str());
            assert_eq!(ModelYaml::parse(&text).expect("good yaml").on_new_version, Some(word));
        }
        assert!(refused("on_new_version: wait").contains("on_new_version"));
        assert_eq!(yaml("canary: { steps: [10, 100] }").canary.expect("a plan").steps, [10.0, 100.0]);
        for (text, named) in [
            ("{ steps: [5] }", "steps"),
            ("{ step: [5] }", "step"),
            ("{ metric: clicks }", "goal"),
            ("{ gates: { metrics: { accuracy: .nan } } }", "gates.metrics.accuracy"),
        ] {
            let error = ModelYaml::parse(&format!("canary: {text}")).expect_err(text);
            let said = error.message();
            assert_eq!(error.reason(), "INVALID_MANIFEST");
            assert!(said.starts_with("model.yaml: canary") && said.contains(named), "{text}: {said}");
        }
        let under = yaml("on_new_version: hold\ncanary: { steps: [50, 100] }");
        assert_eq!(yaml("").over(&under), under);
        let own = yaml("on_new_version: serve\ncanary: {}");
        assert_eq!(own.clone().over(&under), own, "a plan is one whole");
    }

    #[test]
    fn aliases_do_not_blow_up() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let below = vec![format!("*a{}", level - 1); 10].join(", ");
            bomb += &format!("a{level}: &a{level} [{below}]\n");
        }
        assert!(ModelYaml::parse(&bomb).is_err());
    }
}

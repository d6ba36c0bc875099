//! `model.yaml`, `version.yaml` and `normalizer.json`: the shapes people write, and the `Manifest` that results.
//!
//! Precedence: what version.yaml says describes this artifact and wins over model.yaml, which wins over the server's
//! `defaults:`. Unknown keys are errors that name the key.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use serde_yaml_ng::Value as Yaml;

use super::{DType, units};
use crate::error::{Error, Result};

/// Which library runs an artifact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Platform {
    Onnx,
    Torchscript,
    Lightgbm,
}

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
    /// Threads of its own, for a model that has them; the event loop has one session a core.
    pub count: Option<usize>,
    /// `cpu`, `cuda:0` or `auto`.
    pub device: Option<String>,
}

/// `batching:`, a map of options or `off`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Batching {
    /// `off` or `on`; YAML's own booleans mean the same.
    Word(OnOff),
    Flag(bool),
    Options(BatchingOptions),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnOff {
    On,
    Off,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct BatchingOptions {
    /// Rows of one run.
    pub max_batch_size: Option<usize>,
    /// The longest a request waits in the queue.
    #[serde(deserialize_with = "units::duration", skip_serializing)]
    pub queue_timeout: Option<Duration>,
    pub max_queue: Option<MaxQueue>,
    /// `true` vouches that joined answers equal answers alone, without the child's test.
    pub joinable: Option<bool>,
}

/// What may wait.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct MaxQueue {
    pub rows: Option<usize>,
    #[serde(deserialize_with = "units::size", skip_serializing)]
    pub bytes: Option<u64>,
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
#[serde(untagged)]
pub enum VersionsPolicy {
    /// `all`
    All(AllWord),
    Latest(LatestVersions),
    Only(OnlyVersions),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AllWord {
    All,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LatestVersions {
    pub latest: usize,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct OnlyVersions {
    /// Written as text or as a number: 1.2 and "1.2.0".
    pub only: Vec<serde_yaml_ng::Value>,
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

/// `normalizer.json`: (x - mean) / scale by feature, in double precision.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Normalizer {
    pub method: NormalizerMethod,
    pub feature_names: Vec<String>,
    pub mean: Vec<f64>,
    pub scale: Vec<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NormalizerMethod {
    Zscore,
}

/// All of it resolved for one version.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Manifest {
    pub platform: Platform,
    /// Declared inputs and outputs; what the artifact knows itself is checked against them.
    pub inputs: Option<Vec<SpecYaml>>,
    pub outputs: Option<Vec<SpecYaml>>,
    pub normalizer: Option<String>,
    pub classes: Vec<String>,
    pub metrics: BTreeMap<String, f64>,
    pub instances: usize,
    pub device: String,
    pub batching: bool,
    pub joinable: Option<bool>,
    pub max_batch_size: usize,
    pub queue_timeout: Duration,
    pub max_queue_rows: usize,
    pub max_queue_bytes: u64,
    pub warmup: Vec<Warmup>,
}

const YAML_BYTES_MAX: usize = 1 << 20;

// === impl Platform ===

impl Platform {
    pub fn as_str(self) -> &'static str {
        match self {
            Platform::Onnx => "onnx",
            Platform::Torchscript => "torchscript",
            Platform::Lightgbm => "lightgbm",
        }
    }

    /// The one artifact file of the platform.
    pub fn artifact(self) -> &'static str {
        match self {
            Platform::Onnx => "model.onnx",
            Platform::Torchscript => "model.pt",
            Platform::Lightgbm => "model.txt",
        }
    }

    pub const ALL: [Platform; 3] = [Platform::Onnx, Platform::Torchscript, Platform::Lightgbm];
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

// === impl Batching, VersionsPolicy ===

// By hand: serde's untagged enums say only that nothing fits, not which key is wrong.

impl<'de> Deserialize<'de> for Batching {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let yaml = match Yaml::deserialize(deserializer)? {
            Yaml::Bool(flag) => return Ok(Self::Flag(flag)),
            word @ Yaml::String(_) => serde_yaml_ng::from_value(word).map(Self::Word),
            options => serde_yaml_ng::from_value(options).map(Self::Options),
        };
        yaml.map_err(D::Error::custom)
    }
}

impl<'de> Deserialize<'de> for VersionsPolicy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let yaml = match Yaml::deserialize(deserializer)? {
            word @ Yaml::String(_) => serde_yaml_ng::from_value(word).map(Self::All),
            only if only.get("only").is_some() => serde_yaml_ng::from_value(only).map(Self::Only),
            latest => serde_yaml_ng::from_value(latest).map(Self::Latest),
        };
        yaml.map_err(D::Error::custom)
    }
}

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
            Warmup::Zeros(rows) => Self {
                zeros: Some(rows),
                ..Self::default()
            },
            Warmup::Random(rows) => Self {
                random: Some(rows),
                ..Self::default()
            },
        }
    }
}

// === impl VersionsPolicy ===

impl Default for VersionsPolicy {
    fn default() -> Self {
        Self::Latest(LatestVersions { latest: 1 })
    }
}

// === impl ModelYaml ===

impl ModelYaml {
    pub fn parse(text: &str) -> Result<Self> {
        parse_yaml("model.yaml", text)
    }

    /// What this one leaves out, `under` fills in; whole keys at a time, but `batching` and `instances` option by option.
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
        }
    }
}

// === impl BatchingOptions ===

impl BatchingOptions {
    fn over(self, under: BatchingOptions) -> BatchingOptions {
        let own_queue = self.max_queue.unwrap_or_default();
        let under_queue = under.max_queue.unwrap_or_default();
        BatchingOptions {
            max_batch_size: self.max_batch_size.or(under.max_batch_size),
            queue_timeout: self.queue_timeout.or(under.queue_timeout),
            max_queue: Some(MaxQueue {
                rows: own_queue.rows.or(under_queue.rows),
                bytes: own_queue.bytes.or(under_queue.bytes),
            }),
            joinable: self.joinable.or(under.joinable),
        }
    }
}

// === impl VersionYaml ===

impl VersionYaml {
    pub fn parse(text: &str) -> Result<Self> {
        parse_yaml("version.yaml", text)
    }
}

// === impl Normalizer ===

impl Normalizer {
    pub fn parse(text: &str) -> Result<Self> {
        let normalizer: Normalizer = serde_json::from_str(text)
            .map_err(|error| Error::invalid("INVALID_MANIFEST", format!("normalizer.json: {error}")))?;
        let count = normalizer.feature_names.len();
        if normalizer.mean.len() != count || normalizer.scale.len() != count {
            return Err(Error::invalid(
                "INVALID_MANIFEST",
                format!(
                    "normalizer.json: {count} feature_names, {} means and {} scales; they must be equal",
                    normalizer.mean.len(),
                    normalizer.scale.len()
                ),
            ));
        }
        if let Some(place) = normalizer
            .scale
            .iter()
            .position(|scale| !scale.is_finite() || *scale == 0.0)
        {
            return Err(Error::invalid(
                "INVALID_MANIFEST",
                format!(
                    "normalizer.json: the scale of '{}' must be finite and not 0",
                    normalizer.feature_names[place]
                ),
            ));
        }
        Ok(normalizer)
    }
}

// === impl Manifest ===

impl Manifest {
    /// Resolves one version; `platform` is what the artifact's file name says.
    pub fn resolve(platform: Platform, model: ModelYaml, version: VersionYaml) -> Result<Self> {
        let (batching, options) = match model.batching {
            None | Some(Batching::Word(OnOff::On) | Batching::Flag(true)) => (true, BatchingOptions::default()),
            Some(Batching::Word(OnOff::Off) | Batching::Flag(false)) => (false, BatchingOptions::default()),
            Some(Batching::Options(options)) => (true, options),
        };
        let max_queue = options.max_queue.unwrap_or_default();
        let instances = model.instances.unwrap_or_default();
        let manifest = Manifest {
            platform: version.platform.or(model.platform).unwrap_or(platform),
            inputs: version.inputs.or(model.inputs),
            outputs: version.outputs.or(model.outputs),
            normalizer: version.normalizer.or(model.normalizer),
            classes: version.classes.unwrap_or_default(),
            metrics: version.metrics,
            instances: instances.count.unwrap_or(1),
            device: instances.device.unwrap_or_else(|| "auto".into()),
            batching,
            joinable: options.joinable,
            max_batch_size: options.max_batch_size.unwrap_or(64),
            queue_timeout: options.queue_timeout.unwrap_or(Duration::from_secs(1)),
            max_queue_rows: max_queue.rows.unwrap_or(1024),
            max_queue_bytes: max_queue.bytes.unwrap_or(64 << 20),
            warmup: model.warmup.unwrap_or_default(),
        };
        manifest.check()?;
        Ok(manifest)
    }

    fn check(&self) -> Result<()> {
        let wrong = |what: &str| Err(Error::invalid("INVALID_MANIFEST", format!("model.yaml: {what}")));
        if self.max_batch_size == 0 {
            return wrong("batching.max_batch_size must be at least 1");
        }
        if self.max_queue_rows < self.max_batch_size {
            return wrong("batching.max_queue.rows must be at least max_batch_size");
        }
        if self.instances == 0 || self.instances > 64 {
            return wrong("instances.count must be 1 to 64");
        }
        if !matches!(self.device.as_str(), "auto" | "cpu") && !self.device.starts_with("cuda:") {
            return wrong("instances.device must be auto, cpu or cuda:N");
        }
        Ok(())
    }
}

/// One parser for all our YAML: a bounded size, and errors that begin with the file's name.
pub fn parse_yaml<T: for<'de> Deserialize<'de> + Default>(file: &str, text: &str) -> Result<T> {
    if text.len() > YAML_BYTES_MAX {
        return Err(Error::invalid("INVALID_MANIFEST", format!("{file}: larger than 1 MiB")));
    }
    if text.trim().is_empty() {
        return Ok(T::default());
    }
    serde_yaml_ng::from_str(text).map_err(|error| Error::invalid("INVALID_MANIFEST", format!("{file}: {error}")))
}

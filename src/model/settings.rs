//! Every option of a model with what holds and who said it, for operators.

use std::time::Duration;

use serde_yaml_ng::{Mapping, Value};

use super::{
    Batching, CacheOptions, Caching, ModelYaml, OnOff, Plan, units,
    yaml::{Placement, SpecYaml, SwapPolicy, VersionYaml, VersionsPolicy, Warmup},
};

/// One option.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// `batching.max_batch_size`
    pub key: &'static str,
    /// As one writes it.
    pub value: String,
    pub origin: Origin,
}

/// Who said it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody.
    Default,
    /// `defaults:` of the server's configuration.
    Server,
    ModelYaml,
    VersionYaml,
}

/// An option's key, how its value is read where somebody gave one, and what holds otherwise.
type Known = (&'static str, fn(&ModelYaml) -> Option<String>, &'static str);

const OPTIONS: [Known; 31] = [
    ("platform", |yaml| yaml.platform.map(|platform| platform.to_string()), "by the artifact's file name"),
    ("inputs", |yaml| yaml.inputs.as_deref().map(specs), "by the artifact"),
    ("outputs", |yaml| yaml.outputs.as_deref().map(specs), "by the artifact"),
    ("normalizer", |yaml| yaml.normalizer.clone(), "none"),
    ("instances.count", |yaml| Some(yaml.instances.as_ref()?.count?.to_string()), "1"),
    ("instances.device", |yaml| yaml.instances.as_ref()?.device.clone(), "auto"),
    ("instances.placement", |yaml| yaml.instances.as_ref()?.placement.map(placement), "by what a row costs"),
    ("onnx.intra_op_threads", |yaml| Some(yaml.onnx.as_ref()?.intra_op_threads?.to_string()), "1"),
    ("instances.gpu_memory_limit", |yaml| yaml.instances.as_ref()?.gpu_memory_limit.map(units::size_text), "none"),
    ("batching", |yaml| yaml.batching.as_ref().map(is_on), "on"),
    ("batching.max_batch_size", |yaml| Some(batching(yaml)?.max_batch_size?.to_string()), "64"),
    (
        "batching.preferred_batch_sizes",
        |yaml| batching(yaml)?.preferred_batch_sizes.as_ref().map(|sizes| format!("{sizes:?}")),
        "[]",
    ),
    ("batching.max_delay", |yaml| batching(yaml)?.max_delay.map(time), "0s"),
    ("batching.queue_timeout", |yaml| batching(yaml)?.queue_timeout.map(time), "1s"),
    ("batching.max_queue.rows", |yaml| Some(batching(yaml)?.max_queue.as_ref()?.rows?.to_string()), "1024"),
    ("batching.max_queue.bytes", |yaml| batching(yaml)?.max_queue.as_ref()?.bytes.map(units::size_text), "64MiB"),
    ("batching.joinable", |yaml| Some(batching(yaml)?.joinable?.to_string()), "as the child has shown"),
    (
        "warmup",
        |yaml| yaml.warmup.as_deref().map(warmup),
        "rows of 1, of max_batch_size, of 2, 4, … within warmup_budget",
    ),
    ("warmup_budget", |yaml| yaml.warmup_budget.map(time), "200ms"),
    ("versions", |yaml| yaml.versions.as_ref().map(versions), "{ latest: 1 }"),
    ("required", |yaml| Some(yaml.required?.to_string()), "false"),
    ("swap_policy", |yaml| yaml.swap_policy.map(|policy| swap_policy(policy).to_owned()), "availability"),
    ("keep_previous", |yaml| yaml.keep_previous.map(time), "0s"),
    ("on_new_version", |yaml| yaml.on_new_version.map(|word| word.as_str().to_owned()), "serve"),
    ("canary", |yaml| yaml.canary.as_ref().map(canary), "{ steps: [5, 25, 50, 100], hold: 10m }"),
    ("cache", |yaml| yaml.cache.as_ref().map(keeps), "off"),
    ("cache.ttl", |yaml| cache(yaml)?.ttl.map(time), "1m"),
    ("cache.max_entries", |yaml| Some(cache(yaml)?.max_entries?.to_string()), "10000"),
    ("cache.max_bytes", |yaml| cache(yaml)?.max_bytes.map(units::size_text), "64MiB"),
    ("onnx.tensorrt", |yaml| Some(yaml.onnx.as_ref()?.tensorrt?.to_string()), "false"),
    ("cache.key", |yaml| Some(format!("[{}]", cache(yaml)?.key.as_ref()?.join(", "))), "the inputs"),
];

/// What holds for a model: its own model.yaml over the server's `defaults`.
pub fn settings(own: &ModelYaml, server: &ModelYaml) -> Vec<Setting> {
    let held = own.clone().over(server);
    let setting = |(key, read, default): &Known| {
        let (value, origin) = match (read(&held), read(own)) {
            (None, _) => ((*default).to_owned(), Origin::Default),
            (Some(value), Some(_)) => (value, Origin::ModelYaml),
            (Some(value), None) => (value, Origin::Server),
        };
        Setting { key, value, origin }
    };
    OPTIONS.iter().map(setting).collect()
}

/// What an artifact says of itself, which wins over its model's.
pub fn settings_of_version(version: &VersionYaml) -> Vec<Setting> {
    let said = [
        ("platform", version.platform.map(|platform| platform.to_string())),
        ("inputs", version.inputs.as_deref().map(specs)),
        ("outputs", version.outputs.as_deref().map(specs)),
        ("normalizer", version.normalizer.clone()),
    ];
    let setting = |(key, value): (&'static str, Option<String>)| {
        Some(Setting { key, value: value?, origin: Origin::VersionYaml })
    };
    said.into_iter().filter_map(setting).collect()
}

fn batching(yaml: &ModelYaml) -> Option<&super::BatchingOptions> {
    match yaml.batching.as_ref()? {
        Batching::Options(options) => Some(options),
        Batching::Word(_) | Batching::Flag(_) => None,
    }
}

fn is_on(batching: &Batching) -> String {
    let on = !matches!(batching, Batching::Word(OnOff::Off) | Batching::Flag(false));
    if on { "on" } else { "off" }.to_owned()
}

fn cache(yaml: &ModelYaml) -> Option<&CacheOptions> {
    yaml.cache.as_ref()?.options()
}

fn keeps(caching: &Caching) -> String {
    if caching.options().is_some() { "on" } else { "off" }.to_owned()
}

fn specs(specs: &[SpecYaml]) -> String {
    let spec = |spec: &SpecYaml| {
        let padded = spec.pad.as_ref().map(|pad| format!(" padded to {:?}", pad.to));
        format!("{} {} {:?}{}", spec.name, spec.dtype, spec.shape, padded.unwrap_or_default())
    };
    specs.iter().map(spec).collect::<Vec<_>>().join(", ")
}

fn warmup(runs: &[Warmup]) -> String {
    let run = |run: &Warmup| match run {
        Warmup::Zeros(rows) => format!("{{ zeros: {rows} }}"),
        Warmup::Random(rows) => format!("{{ random: {rows} }}"),
    };
    format!("[{}]", runs.iter().map(run).collect::<Vec<_>>().join(", "))
}

fn versions(policy: &VersionsPolicy) -> String {
    match policy {
        VersionsPolicy::All => "all".to_owned(),
        VersionsPolicy::Latest(count) => format!("{{ latest: {count} }}"),
        VersionsPolicy::Only(only) => {
            let text = |value: &Value| serde_yaml_ng::to_string(value).unwrap_or_default();
            let only: Vec<String> = only.iter().map(|value| text(value).trim().to_owned()).collect();
            format!("{{ only: [{}] }}", only.join(", "))
        }
    }
}

fn swap_policy(policy: SwapPolicy) -> &'static str {
    match policy {
        SwapPolicy::Availability => "availability",
        SwapPolicy::Resource => "resource",
    }
}

/// The steps and how long they last, and what else is not as it is by default.
fn canary(plan: &Plan) -> String {
    let keys = |plan: &Plan| match serde_yaml_ng::to_value(plan) {
        Ok(Value::Mapping(keys)) => keys,
        _ => Mapping::new(),
    };
    let default = keys(&Plan::default());
    let always = |key: &Value| matches!(key.as_str(), Some("steps" | "hold"));
    let shown = keys(plan).into_iter().filter(|(key, value)| always(key) || default.get(key) != Some(value));
    on_one_line(&Value::Mapping(shown.collect()))
}

fn on_one_line(value: &Value) -> String {
    match value {
        Value::Mapping(keys) => {
            let pair = |(key, value)| format!("{}: {}", on_one_line(key), on_one_line(value));
            format!("{{ {} }}", keys.iter().map(pair).collect::<Vec<_>>().join(", "))
        }
        Value::Sequence(items) => format!("[{}]", items.iter().map(on_one_line).collect::<Vec<_>>().join(", ")),
        // 5 where it is 5.0
        Value::Number(number) => number.as_f64().map(|number| number.to_string()).unwrap_or_default(),
        value => serde_yaml_ng::to_string(value).unwrap_or_default().trim().to_owned(),
    }
}

fn placement(placement: Placement) -> String {
    match placement {
        Placement::Loop => "loop",
        Placement::Threads => "threads",
    }
    .to_owned()
}

fn time(time: Duration) -> String {
    humantime::format_duration(time).to_string().replace(' ', "")
}

// === impl Origin ===

impl Origin {
    pub fn as_str(self) -> &'static str {
        match self {
            Origin::Default => "default",
            Origin::Server => "defaults of the server",
            Origin::ModelYaml => "model.yaml",
            Origin::VersionYaml => "version.yaml",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{KEYS, Manifest, OnNewVersion, Platform};

    fn held(own: &str, server: &str) -> Vec<Setting> {
        let yaml = |text: &str| ModelYaml::parse(text).expect("a model.yaml");
        settings(&yaml(own), &yaml(server))
    }

    fn of<'a>(settings: &'a [Setting], key: &str) -> (&'a str, Origin) {
        let setting = settings.iter().find(|setting| setting.key == key).expect("it is listed");
        (&setting.value, setting.origin)
    }

    #[test]
    fn each_option_says_who_said_it() {
        let own = "batching: { max_batch_size: 8, max_queue: { bytes: 1MiB } }\nversions: { only: [1.2, v2] }\nrequired: true";
        let server = "batching: { max_batch_size: 16, queue_timeout: 1500ms }\nwarmup: [{ random: 4 }]";
        let settings = held(own, server);
        assert_eq!(of(&settings, "batching.max_batch_size"), ("8", Origin::ModelYaml));
        assert_eq!(of(&settings, "batching.max_queue.bytes"), ("1MiB", Origin::ModelYaml));
        assert_eq!(of(&settings, "batching.queue_timeout"), ("1s500ms", Origin::Server));
        assert_eq!(of(&settings, "batching.max_queue.rows"), ("1024", Origin::Default));
        assert_eq!(of(&settings, "warmup"), ("[{ random: 4 }]", Origin::Server));
        assert_eq!(of(&settings, "versions"), ("{ only: [1.2, v2] }", Origin::ModelYaml));
        assert_eq!(of(&settings, "required"), ("true", Origin::ModelYaml));
        let cached = held("cache: { key: [symbol, horizon] }", "cache: { ttl: 90s }");
        assert_eq!(of(&cached, "cache"), ("on", Origin::ModelYaml));
        assert_eq!(of(&cached, "cache.key"), ("[symbol, horizon]", Origin::ModelYaml));
        assert_eq!(of(&cached, "cache.ttl"), ("1m30s", Origin::Server));
        let limited = held("instances: { gpu_memory_limit: 2GiB }", "instances: { device: cuda:1 }");
        assert_eq!(of(&limited, "instances.gpu_memory_limit"), ("2GiB", Origin::ModelYaml));
        assert_eq!(of(&limited, "instances.device"), ("cuda:1", Origin::Server));
        let gated =
            "canary: { steps: [12.5, 100], max_error_rate: 0.01, gates: { max_size: 64MiB, metrics: { 'a: b': 1 } } }";
        let gated = held(gated, "on_new_version: canary");
        assert_eq!(of(&gated, "on_new_version"), ("canary", Origin::Server));
        let shown = "{ steps: [12.5, 100], hold: 10m, max_error_rate: 0.01, gates: { metrics: { 'a: b': 1 }, max_size: 64MiB } }";
        assert_eq!(of(&gated, "canary"), (shown, Origin::ModelYaml));
        let off = held("batching: off", server);
        assert_eq!(of(&off, "batching"), ("off", Origin::ModelYaml));
        assert_eq!(of(&off, "batching.max_batch_size"), ("64", Origin::Default), "it does not inherit what it is not");
    }

    #[test]
    fn every_key_is_listed_and_each_default_is_what_holds_by_default() {
        let listed = held("", "");
        for (key, _) in KEYS {
            assert!(listed.iter().any(|setting| setting.key.split('.').next() == Some(key)), "{key}");
        }
        let value = |key| of(&listed, key).0;
        let written = format!(
            "instances: {{ count: {}, device: {} }}\nbatching: {{ max_batch_size: {}, preferred_batch_sizes: {}, max_delay: {}, queue_timeout: {}, max_queue: {{ rows: {}, \
             bytes: {} }} }}\nwarmup_budget: {}\nversions: {}\nrequired: {}\nswap_policy: {}\nkeep_previous: {}\non_new_version: {}\ncanary: {}\n\
             cache: {{ ttl: {}, max_entries: {}, max_bytes: {} }}\nonnx: {{ intra_op_threads: {}, tensorrt: {} }}",
            value("instances.count"),
            value("instances.device"),
            value("batching.max_batch_size"),
            value("batching.preferred_batch_sizes"),
            value("batching.max_delay"),
            value("batching.queue_timeout"),
            value("batching.max_queue.rows"),
            value("batching.max_queue.bytes"),
            value("warmup_budget"),
            value("versions"),
            value("required"),
            value("swap_policy"),
            value("keep_previous"),
            value("on_new_version"),
            value("canary"),
            value("cache.ttl"),
            value("cache.max_entries"),
            value("cache.max_bytes"),
            value("onnx.intra_op_threads"),
            value("onnx.tensorrt"),
        );
        let written = ModelYaml::parse(&written).expect("as one writes it");
        assert_eq!(written.versions.clone().unwrap_or_default(), VersionsPolicy::default());
        assert_eq!(written.swap_policy, Some(SwapPolicy::default()));
        assert_eq!((written.on_new_version, &written.canary), (Some(OnNewVersion::default()), &Some(Plan::default())));
        assert_eq!(value("canary"), canary(&Plan::default()));
        assert_eq!((written.required, written.keep_previous), (Some(false), Some(Duration::ZERO)));
        let resolve = |yaml| Manifest::resolve(Platform::Onnx, yaml, VersionYaml::default()).expect("it is right");
        assert_eq!(value("cache"), "off");
        let cached = ModelYaml::parse("cache: on").expect("a model.yaml");
        assert_eq!(resolve(written), resolve(cached));
        assert_eq!(resolve(ModelYaml::default()).cache, None);
    }

    #[test]
    fn what_the_artifact_says_is_its_own() {
        let text = "inputs: [{ name: x, dtype: FP32, shape: [-1, 2] }]\nnormalizer: z.json";
        let own = settings_of_version(&VersionYaml::parse(text).expect("a version.yaml"));
        assert_eq!(of(&own, "inputs"), ("x FP32 [-1, 2]", Origin::VersionYaml));
        assert_eq!(of(&own, "normalizer"), ("z.json", Origin::VersionYaml));
        assert_eq!(own.len(), 2);
    }
}

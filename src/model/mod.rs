//! The words of the domain as plain data: no I/O, no async, no protocol.
//!
//! Everything above uses these types; the edge converts its protocols to them and back.

mod batching;
mod caching;
mod device;
mod example;
mod features;
mod fit;
mod gates;
mod id;
mod keys;
mod manifest;
mod normalizer;
mod numbers;
mod padding;
mod pattern;
mod plan;
mod request;
mod rollout;
mod route;
mod rows;
mod scaling;
mod settings;
mod signature;
mod slots;
mod tensor;
pub mod units;
mod variants;
mod word_or_map;
mod yaml;

pub use batching::{Batching, BatchingOptions, MaxQueue, OnOff};
pub use caching::{CacheLimits, CacheOptions, Caching};
pub use device::Device;
pub use example::{Example, ExampleFile, ExampleRequest, ExampleTensor, Expected};
pub use features::Features;
pub use fit::{Fit, fit};
pub use gates::Gates;
pub use id::{ModelName, Version, repeated};
pub use keys::{KEYS, TakesEffect};
pub use manifest::{Manifest, Platform};
pub use normalizer::{Normalizer, NormalizerMethod};
pub use padding::{Filler, Pad, PadYaml, Unpad, UnpadYaml, cut};
pub use pattern::Patterns;
pub use plan::{Goal, Metric, Plan, ShadowStage};
pub use request::{
    Answer, CacheUse, Contents, Data, Metadata, Parameter, Parameters, PredictRequest, Priority, RouteReason, Row,
    Select, Served, Table, TensorInput, Timing, Value, length_prefixed,
};
pub use rollout::{Pause, Phase, Rollout, Ruled, StageBegun, since_epoch};
pub use route::{Disabled, HISTORY_MAX, LABELS_MAX, Route, RouteChange, Stable, check_label};
pub use settings::{Origin, Setting, settings, settings_of_version};
pub use signature::{Bound, Signature, TensorSpec};
pub use slots::{SLOTS, Slot, Slots, allot, slot_of};
pub use tensor::{BytesElements, DType, Shape, Tensor, bytes_from, element_count, shape_text};
pub use variants::{CALLER, Rule, Shadow, Source, Sticky, Variant, slots_by_weight};
pub use yaml::{
    FeatureSpec, FileEntry, Instances, MissingValue, ModelYaml, OnNewVersion, OnnxOptions, Placement, SpecYaml,
    SwapPolicy, VersionYaml, VersionsPolicy, Warmup, parse_yaml,
};

//! What a version is served by: `model.yaml`, `version.yaml` and the defaults resolved into one `Manifest`.
//!
//! Precedence: what version.yaml says describes this artifact and wins over model.yaml, which wins over the server's
//! `defaults:`.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    CacheLimits,
    batching::{Batching, BatchingOptions, OnOff},
    yaml::{ModelYaml, Placement, SpecYaml, VersionYaml, Warmup},
};
use crate::error::{Error, Result};

/// Which library runs an artifact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Platform {
    Onnx,
    Torchscript,
    Lightgbm,
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
    /// Of ONNX Runtime, for one run.
    pub intra_op_threads: usize,
    pub device: String,
    pub batching: bool,
    pub joinable: Option<bool>,
    pub placement: Option<Placement>,
    pub max_batch_size: usize,
    /// Ascending.
    pub preferred_batch_sizes: Vec<usize>,
    pub max_delay: Duration,
    pub queue_timeout: Duration,
    pub max_queue_rows: usize,
    pub max_queue_bytes: u64,
    pub warmup: Vec<Warmup>,
    pub warmup_budget: Duration,
    /// `None`: no answer is kept.
    pub cache: Option<CacheLimits>,
}

/// Of a version, for runs that nobody declared.
const WARMUP_BUDGET: Duration = Duration::from_millis(200);

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

// === impl Manifest ===

impl Manifest {
    /// How many threads one run of the version takes, the one that asks for it included.
    pub fn threads_of_a_run(&self) -> usize {
        match self.platform {
            Platform::Onnx => self.intra_op_threads,
            Platform::Torchscript | Platform::Lightgbm => 1,
        }
    }

    /// What operators should know where its threads are more than there are cores.
    pub fn oversubscribes(&self, cores: usize) -> Option<String> {
        let threads = self.threads();
        (threads > cores.max(1)).then(|| {
            format!("it takes up to {threads} threads at once (instances.count, onnx.intra_op_threads), there are {cores} cores")
        })
    }

    /// How many it has for itself when it runs on threads of its own: the pool for operators is one, whatever runs.
    fn threads(&self) -> usize {
        self.instances + self.threads_of_a_run() - 1
    }

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
            intra_op_threads: model.onnx.unwrap_or_default().intra_op_threads.unwrap_or(1),
            device: instances.device.unwrap_or_else(|| "auto".into()),
            batching,
            joinable: options.joinable,
            placement: instances.placement,
            max_batch_size: options.max_batch_size.unwrap_or(64),
            preferred_batch_sizes: ascending(options.preferred_batch_sizes.unwrap_or_default()),
            max_delay: options.max_delay.unwrap_or_default(),
            queue_timeout: options.queue_timeout.unwrap_or(Duration::from_secs(1)),
            max_queue_rows: max_queue.rows.unwrap_or(1024),
            max_queue_bytes: max_queue.bytes.unwrap_or(64 << 20),
            warmup: model.warmup.unwrap_or_default(),
            warmup_budget: model.warmup_budget.unwrap_or(WARMUP_BUDGET),
            cache: CacheLimits::resolve(model.cache)?,
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
        if let Some(size) = self.preferred_batch_sizes.iter().find(|size| !(1..=self.max_batch_size).contains(size)) {
            return wrong(&format!("batching.preferred_batch_sizes has {size}, which is not from 1 to max_batch_size"));
        }
        if self.max_delay >= self.queue_timeout {
            return wrong("batching.max_delay must be below queue_timeout: what waits longer than that is not run");
        }
        if self.instances == 0 || self.instances > 64 {
            return wrong("instances.count must be 1 to 64");
        }
        if self.intra_op_threads == 0 || self.intra_op_threads > 64 {
            return wrong("onnx.intra_op_threads must be 1 to 64");
        }
        if !matches!(self.device.as_str(), "auto" | "cpu") && !self.device.starts_with("cuda:") {
            return wrong("instances.device must be auto, cpu or cuda:N");
        }
        Ok(())
    }
}

fn ascending(mut sizes: Vec<usize>) -> Vec<usize> {
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

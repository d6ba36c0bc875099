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
    /// `auto`, `cpu` or `cuda:N`; whoever opens the version decides what `auto` is.
    pub device: String,
    pub gpu_memory_limit: Option<u64>,
    pub tensorrt: bool,
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
        let (instances, onnx) = (model.instances.unwrap_or_default(), model.onnx.unwrap_or_default());
        let manifest = Manifest {
            platform: version.platform.or(model.platform).unwrap_or(platform),
            inputs: version.inputs.or(model.inputs),
            outputs: version.outputs.or(model.outputs),
            normalizer: version.normalizer.or(model.normalizer),
            classes: version.classes.unwrap_or_default(),
            metrics: version.metrics,
            instances: instances.count.unwrap_or(1),
            intra_op_threads: onnx.intra_op_threads.unwrap_or(1),
            device: instances.device.unwrap_or_else(|| "auto".into()),
            gpu_memory_limit: instances.gpu_memory_limit,
            tensorrt: onnx.tensorrt.unwrap_or(false),
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
        self.check_gpu()
    }

    /// What only a GPU can be told. LightGBM never has one, so that `defaults:` for all models may say it.
    fn check_gpu(&self) -> Result<()> {
        let wrong = |what: &str| Err(Error::invalid("INVALID_MANIFEST", format!("model.yaml: {what}")));
        if self.gpu_memory_limit == Some(0) {
            return wrong("instances.gpu_memory_limit must be more than 0");
        }
        if self.platform == Platform::Torchscript && self.gpu_memory_limit.is_some() && self.device != "cpu" {
            return wrong(
                "instances.gpu_memory_limit is not for torchscript: libtorch keeps one pool of a GPU's memory for all its models",
            );
        }
        if self.platform == Platform::Onnx && self.tensorrt && !self.device.starts_with("cuda:") {
            return wrong("onnx.tensorrt needs a GPU by its number: instances.device: cuda:0");
        }
        if self.device.starts_with("cuda:") && self.placement == Some(Placement::Loop) {
            return wrong("instances.placement: loop is not for a GPU, whose models have threads of their own");
        }
        Ok(())
    }
}

fn ascending(mut sizes: Vec<usize>) -> Vec<usize> {
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(platform: Platform, yaml: &str) -> Result<Manifest> {
        Manifest::resolve(platform, ModelYaml::parse(yaml).expect("a model.yaml"), VersionYaml::default())
    }

    #[test]
    fn what_a_gpu_is_told_is_held() {
        let yaml = "instances: { count: 3, device: cuda:1, gpu_memory_limit: 2GiB }\nonnx: { tensorrt: true }";
        let manifest = resolved(Platform::Onnx, yaml).expect("it is right");
        assert_eq!((&*manifest.device, manifest.instances), ("cuda:1", 3));
        assert_eq!((manifest.gpu_memory_limit, manifest.tensorrt), (Some(2 << 30), true));
        let plain = resolved(Platform::Onnx, "").expect("it is right");
        assert_eq!((&*plain.device, plain.gpu_memory_limit, plain.tensorrt), ("auto", None, false));
    }

    #[test]
    fn what_a_gpu_cannot_be_told_is_named() {
        let (onnx, torch) = (Platform::Onnx, Platform::Torchscript);
        for (platform, yaml, named) in [
            (onnx, "instances: { gpu_memory_limit: 0 }", "gpu_memory_limit"),
            (torch, "instances: { gpu_memory_limit: 1GiB, device: cuda:0 }", "torchscript"),
            (torch, "instances: { gpu_memory_limit: 1GiB }", "torchscript"),
            (onnx, "onnx: { tensorrt: true }", "cuda:0"),
            (onnx, "instances: { device: cpu }\nonnx: { tensorrt: true }", "cuda:0"),
            (onnx, "instances: { device: cuda:0, placement: loop }", "placement"),
        ] {
            let error = resolved(platform, yaml).expect_err(yaml);
            assert_eq!(error.reason(), "INVALID_MANIFEST");
            assert!(error.message().contains(named), "{yaml}: {error}");
        }
    }

    #[test]
    fn defaults_for_all_models_do_not_trouble_those_without_a_gpu() {
        let yaml = "instances: { gpu_memory_limit: 1GiB }\nonnx: { tensorrt: true }";
        assert!(resolved(Platform::Lightgbm, yaml).is_ok());
        assert!(resolved(Platform::Torchscript, "instances: { gpu_memory_limit: 1GiB, device: cpu }").is_ok());
    }
}

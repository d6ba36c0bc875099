//! A picture of a version in the shape of Triton's model configuration.

use crate::{
    catalog::ModelEntry,
    model::{DType, Device, Platform, TensorSpec, VersionsPolicy},
    runtime::Servable,
    server::proto::inference::{
        DataType, ModelConfig, ModelDynamicBatching, ModelInput, ModelInstanceGroup, ModelOutput, ModelQueuePolicy,
        ModelResponseCache, ModelTransactionPolicy, ModelVersionPolicy,
        model_config::SchedulingChoice,
        model_instance_group::Kind,
        model_version_policy::{All, Latest, PolicyChoice, Specific},
    },
};

/// What runs a model, by the name that its clients know.
pub fn platform(platform: Platform) -> &'static str {
    match platform {
        Platform::Onnx => "onnxruntime_onnx",
        Platform::Torchscript => "pytorch_libtorch",
        Platform::Lightgbm => "lightgbm",
    }
}

pub fn of(model: &ModelEntry, servable: &Servable) -> ModelConfig {
    let manifest = servable.manifest();
    let signature = servable.signature();
    let batches = signature.batches();
    let dynamic_batching = ModelDynamicBatching {
        priority_levels: 3,
        default_priority_level: 2,
        default_queue_policy: Some(ModelQueuePolicy {
            default_timeout_microseconds: u64::try_from(manifest.queue_timeout.as_micros()).unwrap_or(u64::MAX),
            allow_timeout_override: true,
            ..ModelQueuePolicy::default()
        }),
        ..ModelDynamicBatching::default()
    };
    ModelConfig {
        name: model.name.as_str().to_owned(),
        platform: platform(manifest.platform).to_owned(),
        backend: backend(manifest.platform).to_owned(),
        version_policy: Some(version_policy(&model.policy)),
        max_batch_size: if batches { i32::try_from(manifest.max_batch_size).unwrap_or(i32::MAX) } else { 0 },
        input: signature.inputs.iter().map(|spec| input(spec, batches)).collect(),
        output: signature.outputs.iter().map(|spec| output(spec, batches)).collect(),
        scheduling_choice: batches.then_some(SchedulingChoice::DynamicBatching(dynamic_batching)),
        instance_group: vec![instance_group(&model.name.to_string(), manifest.instances, servable.device())],
        default_model_filename: manifest.platform.artifact().to_owned(),
        response_cache: servable.cache().map(|_| ModelResponseCache { enable: true }),
        model_transaction_policy: Some(ModelTransactionPolicy { decoupled: false }),
        ..ModelConfig::default()
    }
}

fn backend(platform: Platform) -> &'static str {
    match platform {
        Platform::Onnx => "onnxruntime",
        Platform::Torchscript => "pytorch",
        Platform::Lightgbm => "lightgbm",
    }
}

fn version_policy(policy: &VersionsPolicy) -> ModelVersionPolicy {
    let choice = match policy {
        VersionsPolicy::Latest(count) => {
            PolicyChoice::Latest(Latest { num_versions: u32::try_from(*count).unwrap_or(u32::MAX) })
        }
        VersionsPolicy::All => PolicyChoice::All(All {}),
        VersionsPolicy::Only(only) => {
            PolicyChoice::Specific(Specific { versions: only.iter().filter_map(whole_number).collect() })
        }
    };
    ModelVersionPolicy { policy_choice: Some(choice) }
}

/// The protocol knows no other versions.
fn whole_number(version: &serde_yaml_ng::Value) -> Option<i64> {
    match version {
        serde_yaml_ng::Value::String(text) => text.parse().ok(),
        number => number.as_i64(),
    }
}

fn input(spec: &TensorSpec, batches: bool) -> ModelInput {
    ModelInput {
        name: (*spec.name).to_owned(),
        data_type: data_type(spec.dtype) as i32,
        dims: dims(spec, batches),
        ..ModelInput::default()
    }
}

fn output(spec: &TensorSpec, batches: bool) -> ModelOutput {
    ModelOutput {
        name: (*spec.name).to_owned(),
        data_type: data_type(spec.dtype) as i32,
        dims: dims(spec, batches),
        ..ModelOutput::default()
    }
}

/// The whole shape, or what is left of it without the batch dimension.
fn dims(spec: &TensorSpec, batches: bool) -> Vec<i64> {
    let skipped = usize::from(batches && spec.batch);
    spec.shape.iter().skip(skipped).copied().collect()
}

fn instance_group(model: &str, count: usize, device: Device) -> ModelInstanceGroup {
    let (kind, gpus) = match device {
        Device::Cpu => (Kind::Cpu, vec![]),
        Device::Cuda(number) => (Kind::Gpu, vec![i32::from(number)]),
    };
    ModelInstanceGroup {
        name: format!("{model}_0"),
        kind: kind as i32,
        count: i32::try_from(count).unwrap_or(i32::MAX),
        gpus,
        host_policy: String::new(),
    }
}

fn data_type(dtype: DType) -> DataType {
    match dtype {
        DType::Bool => DataType::TypeBool,
        DType::Uint8 => DataType::TypeUint8,
        DType::Uint16 => DataType::TypeUint16,
        DType::Uint32 => DataType::TypeUint32,
        DType::Uint64 => DataType::TypeUint64,
        DType::Int8 => DataType::TypeInt8,
        DType::Int16 => DataType::TypeInt16,
        DType::Int32 => DataType::TypeInt32,
        DType::Int64 => DataType::TypeInt64,
        DType::Fp16 => DataType::TypeFp16,
        DType::Bf16 => DataType::TypeBf16,
        DType::Fp32 => DataType::TypeFp32,
        DType::Fp64 => DataType::TypeFp64,
        DType::Bytes => DataType::TypeString,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ModelYaml;

    #[test]
    fn the_batch_dimension_is_left_out_only_where_it_is_one() {
        let mut spec = TensorSpec::new("x", DType::Fp32, &[-1, 19]);
        assert_eq!(dims(&spec, false), [-1, 19]);
        assert_eq!(dims(&spec, true), [-1, 19]);
        spec.batch = true;
        assert_eq!(dims(&spec, true), [19]);
    }

    #[test]
    fn the_policy_says_what_its_numbers_can() {
        let policy = |yaml: &str| {
            let versions = ModelYaml::parse(yaml).expect("a model.yaml").versions;
            version_policy(&versions.unwrap_or_default()).policy_choice
        };
        let latest = |num_versions| Some(PolicyChoice::Latest(Latest { num_versions }));
        assert_eq!(policy(""), latest(1));
        assert_eq!(policy("versions: { latest: 3 }"), latest(3));
        assert_eq!(policy("versions: all"), Some(PolicyChoice::All(All {})));
        let versions = vec![3, 20260801];
        assert_eq!(
            policy("versions: { only: [3, '20260801', 1.2.0, 1.5] }"),
            Some(PolicyChoice::Specific(Specific { versions }))
        );
    }

    #[test]
    fn a_device_is_a_kind_and_a_number() {
        let group = |device| instance_group("m", 2, device);
        assert_eq!((group(Device::Cuda(1)).kind(), group(Device::Cuda(1)).gpus), (Kind::Gpu, vec![1]));
        assert_eq!(group(Device::Cpu).kind(), Kind::Cpu);
    }
}

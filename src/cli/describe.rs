//! `sconce describe`: one model of a running server, whole.

mod route;

use std::{fmt::Write as _, process::ExitCode, time::SystemTime};

use clap::Args;
use serde_json::{Value, json};

use super::{
    client,
    models::{AdminArgs, TIMEOUT, readiness, summary_json},
    print,
    proto::{DescribeModelRequest, DescribeModelResponse, Execution, Setting, TensorSpec, VersionStatus},
    table::table,
};
use crate::telemetry::logs::escape;

/// Show one model of a running server: its versions, inputs and outputs, and how they run
#[derive(Args)]
#[command(
    after_help = "Examples:\n  sconce describe early-signal\n  sconce describe early-signal --json | jq '.versions[0].inputs'"
)]
pub struct DescribeArgs {
    /// The model's name
    model: String,
    #[command(flatten)]
    admin: AdminArgs,
}

pub fn run(args: &DescribeArgs) -> anyhow::Result<ExitCode> {
    let model = client::block_on(async {
        let client = client::admin(&args.admin.server).await?;
        let answer = client::with_retries(|| {
            let mut client = client.clone();
            let request = DescribeModelRequest { model: args.model.clone() };
            async move { client.describe_model(client::call(request, TIMEOUT)).await }
        });
        Ok(answer.await?)
    })?;
    print(&match args.admin.json {
        true => serde_json::to_string_pretty(&to_json(&model))? + "\n",
        false => for_people(&model),
    })?;
    Ok(ExitCode::SUCCESS)
}

fn for_people(model: &DescribeModelResponse) -> String {
    let mut text = String::new();
    let summary = model.summary.clone().unwrap_or_default();
    let _ = write!(text, "{}: {}", escape(&summary.name), readiness(&summary));
    if !summary.stable.is_empty() {
        let _ = write!(text, ", stable {}", escape(&summary.stable));
    }
    if !summary.message.is_empty() {
        let _ = write!(text, "; {}", escape(&summary.message));
    }
    text.push('\n');
    text += &model.route.as_ref().map(route::for_people).unwrap_or_default();
    text += &settings_for_people(&model.settings);
    for version in &model.versions {
        text += &version_for_people(version);
    }
    text
}

/// What somebody said; scripts get all that holds.
fn settings_for_people(settings: &[Setting]) -> String {
    let said: Vec<&Setting> = settings.iter().filter(|setting| setting.source != "default").collect();
    if said.is_empty() {
        return "options: all by default\n".to_owned();
    }
    let line = |setting: &&Setting| format!("  {}: {}  ({})", setting.key, setting.value, setting.source);
    let lines = said.iter().map(|setting| escape(&line(setting)) + "\n");
    format!("options, others by default:\n{}", lines.collect::<String>())
}

fn version_for_people(version: &VersionStatus) -> String {
    let mut text = format!("\n{}: {}{}\n", escape(&version.version), state(version), since(version));
    let mut line = |indented: String| {
        let _ = writeln!(text, "  {}", escape(&indented));
    };
    if !version.message.is_empty() {
        line(format!("{}: {}", version.reason, version.message));
    }
    for note in &version.notes {
        line(format!("note: {note}"));
    }
    if let Some(execution) = &version.execution {
        for fact in execution_for_people(execution) {
            line(fact);
        }
    }
    if !version.metrics.is_empty() {
        let metrics = version.metrics.iter().map(|(name, value)| format!("{name} {value}"));
        line(format!("metrics: {}", metrics.collect::<Vec<_>>().join(", ")));
    }
    if !version.settings.is_empty() {
        let keys: Vec<&str> = version.settings.iter().map(|setting| setting.key.as_str()).collect();
        line(format!("its version.yaml decides {}", keys.join(", ")));
    }
    if !version.digest.is_empty() {
        line(format!("digest: {}", version.digest));
    }
    let spec = |direction: &str, spec: &TensorSpec| {
        [
            format!("  {direction}"),
            spec.name.clone(),
            spec.dtype().as_str_name().to_string(),
            shape(spec),
            spec.feature_names.join(" "),
        ]
    };
    let inputs = version.inputs.iter().map(|input| spec("in", input));
    let specs: Vec<[String; 5]> = inputs.chain(version.outputs.iter().map(|output| spec("out", output))).collect();
    if !specs.is_empty() {
        text += &table(["", "NAME", "TYPE", "SHAPE", "FEATURES"], &specs);
    }
    text
}

/// `[-1, -1], dimension 1 to [16, 32]`
fn shape(spec: &TensorSpec) -> String {
    let padded = spec.pad.as_ref().map(|pad| format!(", dimension {} to {:?}", pad.dim, pad.to));
    format!("{:?}{}", spec.shape, padded.unwrap_or_default())
}

fn execution_for_people(execution: &Execution) -> [String; 4] {
    let place = match (execution.placement.as_str(), execution.instances) {
        ("loop", _) => "in the event loop".to_owned(),
        ("threads", 1) => "on a thread of its own".to_owned(),
        ("threads", count) => format!("on {count} threads of its own"),
        (other, _) => other.to_owned(),
    };
    let threads = match execution.intra_op_threads {
        0 | 1 => String::new(),
        count => format!(", {count} threads a run"),
    };
    let joined = if execution.batching { "joined" } else { "not joined" };
    [
        format!("{} ({}) on {}, {place}{threads}", execution.platform, execution.library, execution.device),
        format!("requests are {joined}: {}", execution.batching_reason),
        format!(
            "one row {:.1} us, {} rows {:.1} us; {} of {} rows wait",
            execution.one_row_us,
            execution.max_batch_size,
            execution.full_batch_us,
            execution.queue_rows,
            execution.max_queue_rows
        ),
        memory_for_people(execution),
    ]
}

fn memory_for_people(execution: &Execution) -> String {
    let shown = |bytes: u64| bytesize::ByteSize(bytes).display();
    match execution.gpu_memory_bytes {
        0 => format!("{} in memory", shown(execution.memory_bytes)),
        gpu => format!("{} in memory, {} on {}", shown(execution.memory_bytes), shown(gpu), execution.device),
    }
}

/// `ready`
/// `ready`
pub fn state(version: &VersionStatus) -> String {
    let name = version.state().as_str_name();
    name.trim_start_matches("VERSION_STATE_").to_ascii_lowercase()
}

/// ` since 2026-11-20T11:05:58Z`
fn since(version: &VersionStatus) -> String {
    let time = version.since.and_then(|since| SystemTime::try_from(since).ok());
    time.map_or(String::new(), |time| format!(" since {}", humantime::format_rfc3339_seconds(time)))
}

/// The keys of the protocol; states and types by name.
fn to_json(model: &DescribeModelResponse) -> Value {
    let specs = |specs: &[TensorSpec]| -> Value {
        let spec = |spec: &TensorSpec| {
            json!({
                "name": spec.name,
                "dtype": spec.dtype().as_str_name(),
                "shape": spec.shape,
                "batch": spec.batch,
                "feature_names": spec.feature_names,
                "pad": spec.pad.as_ref().map(|pad| json!({ "dim": pad.dim, "to": pad.to })),
            })
        };
        specs.iter().map(spec).collect()
    };
    let version = |version: &VersionStatus| {
        json!({
            "version": version.version,
            "state": state(version),
            "since": version.since.and_then(|since| SystemTime::try_from(since).ok())
                .map(|time| humantime::format_rfc3339_seconds(time).to_string()),
            "reason": version.reason,
            "message": version.message,
            "notes": version.notes,
            "inputs": specs(&version.inputs),
            "outputs": specs(&version.outputs),
            "execution": version.execution.as_ref().map(execution_json),
            "metrics": version.metrics,
            "digest": version.digest,
            "settings": settings_json(&version.settings),
        })
    };
    json!({
        "summary": model.summary.as_ref().map(summary_json),
        "versions": model.versions.iter().map(version).collect::<Vec<_>>(),
        "route": model.route.as_ref().map(route::to_json),
        "settings": settings_json(&model.settings),
    })
}

fn settings_json(settings: &[Setting]) -> Value {
    let setting = |setting: &Setting| json!({ "key": setting.key, "value": setting.value, "source": setting.source });
    settings.iter().map(setting).collect()
}

fn execution_json(execution: &Execution) -> Value {
    json!({
        "platform": execution.platform,
        "library": execution.library,
        "device": execution.device,
        "batching": execution.batching,
        "batching_reason": execution.batching_reason,
        "max_batch_size": execution.max_batch_size,
        "placement": execution.placement,
        "one_row_us": execution.one_row_us,
        "full_batch_us": execution.full_batch_us,
        "queue_rows": execution.queue_rows,
        "max_queue_rows": execution.max_queue_rows,
        "artifact_bytes": execution.artifact_bytes,
        "memory_bytes": execution.memory_bytes,
        "gpu_memory_bytes": execution.gpu_memory_bytes,
        "padding": execution.padding,
        "instances": execution.instances,
        "intra_op_threads": execution.intra_op_threads,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::proto::{DataType, ModelSummary, VersionState};

    fn setting(key: &str, value: &str, source: &str) -> Setting {
        Setting { key: key.into(), value: value.into(), source: source.into() }
    }

    fn model() -> DescribeModelResponse {
        let failed = VersionStatus {
            version: "1.1.0".into(),
            state: VersionState::Failed.into(),
            reason: "DIGEST_MISMATCH".into(),
            message: "model.txt is not\nwhat it was".into(),
            since: Some(SystemTime::UNIX_EPOCH.into()),
            ..Default::default()
        };
        let ready = VersionStatus {
            version: "1.0.0".into(),
            state: VersionState::Ready.into(),
            inputs: vec![TensorSpec {
                name: "features".into(),
                dtype: DataType::Fp64.into(),
                shape: vec![-1, 2],
                batch: true,
                feature_names: vec!["a".into(), "b".into()],
                pad: None,
            }],
            ..Default::default()
        };
        DescribeModelResponse {
            summary: Some(ModelSummary { name: "m".into(), ready: true, stable: "1.0.0".into(), ..Default::default() }),
            versions: vec![failed, ready],
            route: None,
            settings: vec![setting("batching", "off", "model.yaml"), setting("required", "false", "default")],
        }
    }

    #[test]
    fn people_see_each_version_with_what_is_wrong() {
        assert_eq!(
            for_people(&model()),
            "m: ready, stable 1.0.0\noptions, others by default:\n  batching: off  (model.yaml)\n\
             \n1.1.0: failed since 1970-01-01T00:00:00Z\n  DIGEST_MISMATCH: model.txt is not\\nwhat it was\n\
             \n1.0.0: ready\n      NAME      TYPE  SHAPE    FEATURES\n  in  features  FP64  [-1, 2]  a b\n"
        );
    }

    #[test]
    fn memory_of_a_gpu_is_shown_where_it_is_known() {
        let execution = Execution { memory_bytes: 3 << 20, device: "cuda:1".into(), ..Default::default() };
        assert_eq!(memory_for_people(&execution), "3.0 MiB in memory");
        let known = Execution { gpu_memory_bytes: 5 << 30, ..execution };
        assert_eq!(memory_for_people(&known), "3.0 MiB in memory, 5.0 GiB on cuda:1");
        assert_eq!(execution_json(&known)["gpu_memory_bytes"], 5u64 << 30);
    }

    #[test]
    fn scripts_see_the_protocols_keys() {
        let json = to_json(&model());
        assert_eq!(json["versions"][0]["state"], "failed");
        assert_eq!(json["settings"][1]["source"], "default");
        assert_eq!(json["versions"][1]["inputs"][0]["dtype"], "FP64");
    }
}

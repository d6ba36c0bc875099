//! `sconce info`, `sconce refresh`, `sconce log-level`: the server itself.

use std::{fmt::Write as _, process::ExitCode, time::Duration};

use clap::Args;
use serde_json::{Value, json};

use super::{
    change::whoami,
    client,
    models::{AdminArgs, TIMEOUT},
    print,
    proto::{Ports, RefreshRequest, ServerInfoRequest, ServerInfoResponse, SetLogLevelRequest},
    table::table,
};
use crate::model::units::parse_duration;

/// Show a running server: its version, store, machine, libraries, and what its configuration says beyond the defaults
#[derive(Args)]
#[command(after_help = "Examples:\n  sconce info\n  sconce info --json | jq .ready")]
pub struct InfoArgs {
    #[command(flatten)]
    admin: AdminArgs,
}

/// Make a server look at its store now, and wait until it has
#[derive(Args)]
#[command(after_help = "Example:\n  cp -r 1.2.0 /srv/models/early-signal/ && sconce refresh")]
pub struct RefreshArgs {
    /// How long to wait
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    timeout: Duration,
    /// The server's admin address
    #[arg(long, value_name = "HOST:PORT", env = "SCONCE_ADMIN_SERVER", default_value = "127.0.0.1:7071")]
    server: String,
}

/// Show or change what a server logs, until it ends
#[derive(Args)]
#[command(
    after_help = "Examples:\n  sconce log-level\n  sconce log-level debug\n  sconce log-level info,sconce::lifecycle=debug"
)]
pub struct LogLevelArgs {
    /// A level, or levels by module (default: show what holds)
    level: Option<String>,
    /// The server's admin address
    #[arg(long, value_name = "HOST:PORT", env = "SCONCE_ADMIN_SERVER", default_value = "127.0.0.1:7071")]
    server: String,
}

pub fn run(args: &InfoArgs) -> anyhow::Result<ExitCode> {
    let info = client::block_on(ask(&args.admin.server))?;
    print(&match args.admin.json {
        true => serde_json::to_string_pretty(&to_json(&info))? + "\n",
        false => for_people(&info),
    })?;
    Ok(ExitCode::SUCCESS)
}

pub fn refresh(args: &RefreshArgs) -> anyhow::Result<ExitCode> {
    client::block_on(async {
        let client = client::admin(&args.server).await?;
        let refreshed = client::with_retries(|| {
            let mut client = client.clone();
            async move { client.refresh(client::call(RefreshRequest {}, args.timeout)).await }
        });
        Ok(refreshed.await?)
    })?;
    print("the store was looked at; what is new is known, and loads\n")?;
    Ok(ExitCode::SUCCESS)
}

pub fn log_level(args: &LogLevelArgs) -> anyhow::Result<ExitCode> {
    let Some(level) = &args.level else {
        let info = client::block_on(ask(&args.server))?;
        print(&format!("{}\n", info.log_level))?;
        return Ok(ExitCode::SUCCESS);
    };
    let answer = client::block_on(async {
        let client = client::admin(&args.server).await?;
        let answer = client::with_retries(|| {
            let mut client = client.clone();
            let request = SetLogLevelRequest { level: level.clone(), caller: whoami() };
            async move { client.set_log_level(client::call(request, TIMEOUT)).await }
        });
        Ok(answer.await?)
    })?;
    print(&format!("{level} instead of {}\n", answer.previous))?;
    Ok(ExitCode::SUCCESS)
}

async fn ask(server: &str) -> anyhow::Result<ServerInfoResponse> {
    let client = client::admin(server).await?;
    let answer = client::with_retries(|| {
        let mut client = client.clone();
        async move { client.server_info(client::call(ServerInfoRequest {}, TIMEOUT)).await }
    });
    Ok(answer.await?)
}

fn ports(info: &ServerInfoResponse) -> [(&'static str, u32); 4] {
    let Ports { grpc, grpc_admin, http, metrics } = info.ports.unwrap_or_default();
    [("grpc", grpc), ("grpc_admin", grpc_admin), ("http", http), ("metrics", metrics)]
}

fn for_people(info: &ServerInfoResponse) -> String {
    const MIB: u64 = 1 << 20;
    let ready = match info.ready {
        true => "ready".to_owned(),
        false => format!("not ready: {}", info.unready.join("; ")),
    };
    let open = ports(info).into_iter().filter(|(_, port)| *port > 0);
    let open: Vec<String> = open.map(|(name, port)| format!("{name} {port}")).collect();
    let store = [&info.not_writable, &info.store_trouble].into_iter().filter(|trouble| !trouble.is_empty());
    let store: Vec<&String> = std::iter::once(&info.store).chain(store).collect();
    let store: Vec<&str> = store.into_iter().map(String::as_str).collect();
    let up = Duration::from_secs(info.uptime_seconds as u64);
    let rows = [
        ["version", &info.version],
        ["replica", &info.replica],
        ["up for", &humantime::format_duration(up).to_string()],
        ["state", &ready],
        ["ports", &open.join(", ")],
        ["store", &store.join("; ")],
        ["libraries", &info.libraries.join(", ")],
        ["machine", &format!("{} cores, {} MiB", info.cores, info.memory_bytes / MIB)],
        ["logs", &info.log_level],
    ]
    .map(|row| row.map(str::to_owned));
    let mut text = table(["", ""], &rows);
    if !info.settings.is_empty() {
        let rows: Vec<[String; 3]> = info
            .settings
            .iter()
            .map(|setting| [setting.key.clone(), setting.value.clone(), setting.source.clone()])
            .collect();
        let _ = write!(text, "\n{}", table(["OPTION", "VALUE", "FROM"], &rows));
    }
    text.trim_start_matches('\n').to_owned()
}

/// The keys of the protocol.
fn to_json(info: &ServerInfoResponse) -> Value {
    let settings = info
        .settings
        .iter()
        .map(|setting| json!({ "key": setting.key, "value": setting.value, "source": setting.source }));
    json!({
        "version": info.version,
        "replica": info.replica,
        "uptime_seconds": info.uptime_seconds,
        "ports": ports(info).into_iter().collect::<std::collections::BTreeMap<_, _>>(),
        "store": info.store,
        "not_writable": info.not_writable,
        "store_trouble": info.store_trouble,
        "ready": info.ready,
        "unready": info.unready,
        "libraries": info.libraries,
        "cores": info.cores,
        "memory_bytes": info.memory_bytes,
        "settings": settings.collect::<Vec<_>>(),
        "log_level": info.log_level,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_a_page() {
        let info = ServerInfoResponse {
            version: "0.1.0".into(),
            uptime_seconds: 61.5,
            ports: Some(Ports { grpc: 7070, ..Default::default() }),
            store: "/srv/models".into(),
            not_writable: "routes: external".into(),
            cores: 2,
            memory_bytes: 1 << 30,
            settings: vec![crate::cli::proto::Setting {
                key: "grpc_port".into(),
                value: "7070".into(),
                source: "flag".into(),
            }],
            ..Default::default()
        };
        let page = for_people(&info);
        for words in ["up for     1m 1s", "grpc 7070\n", "/srv/models; routes: external", "2 cores, 1024 MiB", "flag"] {
            assert!(page.contains(words), "'{words}' is not in\n{page}");
        }
        assert_eq!(to_json(&info)["ports"]["grpc"], json!(7070));
    }
}

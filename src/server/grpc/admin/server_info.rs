//! This replica: what it is, and what it logs.

use std::{collections::BTreeSet, time::SystemTime};

use crate::{
    catalog::Snapshot,
    error::{Error, Result},
    server::{
        Ports,
        control::Control,
        grpc::admin::Who,
        proto::sconce::v1::{
            Ports as PortsMessage, ServerInfoResponse, SetLogLevelRequest, SetLogLevelResponse, Setting,
        },
    },
    telemetry::events::{Event, Kind},
};

pub fn info(control: &Control, snapshot: &Snapshot, ports: Ports, serving: bool) -> ServerInfoResponse {
    let replica = &control.replica;
    let uptime = SystemTime::now().duration_since(replica.started).unwrap_or_default();
    let servables = snapshot.models.values().flat_map(|model| model.versions.values());
    let servables = servables.filter_map(|version| version.servable.as_deref());
    let libraries: BTreeSet<&str> = servables.map(|servable| servable.library()).collect();
    let mut unready = snapshot.unready.clone();
    if !serving {
        unready.push("it is going away".to_owned());
    }
    let port = |port: Option<u16>| u32::from(port.unwrap_or(0));
    ServerInfoResponse {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        replica: control.events.replica().to_owned(),
        started: Some(replica.started.into()),
        uptime_seconds: uptime.as_secs_f64(),
        ports: Some(PortsMessage {
            grpc: u32::from(ports.grpc),
            grpc_admin: port(ports.grpc_admin),
            http: port(ports.http),
            metrics: port(ports.metrics),
        }),
        store: replica.store.clone(),
        not_writable: control.operator.closed_because().map(|why| why.message().to_owned()).unwrap_or_default(),
        store_trouble: snapshot.store_trouble.clone().unwrap_or_default(),
        ready: serving && snapshot.is_ready(),
        unready,
        libraries: libraries.into_iter().map(str::to_owned).collect(),
        cores: u32::try_from(replica.cores).unwrap_or(u32::MAX),
        memory_bytes: replica.memory_bytes,
        settings: replica.settings.iter().cloned().map(setting).collect(),
        log_level: control.level.now(),
    }
}

fn setting((key, value, source): (String, String, String)) -> Setting {
    Setting { key, value, source }
}

pub fn set_log_level(control: &Control, request: SetLogLevelRequest, who: Who) -> Result<SetLogLevelResponse> {
    let refused = |why| Error::invalid("INVALID_LOG_LEVEL", format!("no filter of logs: {why}"));
    let previous = control.level.set(&request.level).map_err(refused)?;
    let caller = who.or_claimed(request.caller);
    tracing::info!(level = request.level, previous, caller, "what is logged was changed");
    let message = format!("{} instead of {previous}", request.level);
    control.events.tell(Event { message, caller, ..Event::new(Kind::LogLevelSet) });
    Ok(SetLogLevelResponse { previous })
}

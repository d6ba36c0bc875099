//! Where the traffic of a model goes, and how it came to that.

use std::{collections::BTreeMap, fmt::Write as _};

use serde_json::{Value, json};

use crate::{
    cli::proto::{Route, RouteChange, RoutingRule, Traffic, Variant},
    telemetry::logs::escape,
};

/// Of the history, for people; scripts get all of it.
const SHOWN_MAX: usize = 5;

pub fn for_people(route: &Route) -> String {
    let stable = if route.stable.is_empty() { "latest" } else { &route.stable };
    let mut text = format!("route: revision {}, stable: {}", route.revision, escape(stable));
    let labels: BTreeMap<_, _> = route.labels.iter().collect();
    let labels: Vec<String> = labels.into_iter().map(|(label, version)| format!("{label} → {version}")).collect();
    let lists =
        [("labels", labels.join(", ")), ("rejected", route.rejected.join(", ")), ("load", route.load.join(", "))];
    for (name, list) in lists.iter().filter(|(_, list)| !list.is_empty()) {
        let _ = write!(text, ", {name}: {}", escape(list));
    }
    text.push('\n');
    for line in route.traffic.iter().flat_map(sharing) {
        let _ = writeln!(text, "  {}", escape(&line));
    }
    if !route.rollout.is_empty() {
        let _ = writeln!(text, "  {}", escape(&route.rollout));
    }
    let disabled = route.disabled.as_ref().map(|disabled| format!("disabled: {}", disabled.reason));
    let said = [disabled.unwrap_or_default(), route.pending.clone(), route.decided_by.clone()];
    for line in said.iter().filter(|line| !line.is_empty()) {
        let _ = writeln!(text, "  {}", escape(line));
    }
    for entry in route.history.iter().take(SHOWN_MAX) {
        let _ = writeln!(text, "  {}", escape(&entry_for_people(entry)));
    }
    text
}

/// Who shares the traffic, a line each.
fn sharing(traffic: &Traffic) -> Vec<String> {
    let variants = traffic.variants.iter().map(|Variant { name, version, weight, stood_in_for, .. }| {
        let instead =
            if stood_in_for.is_empty() { String::new() } else { format!("; stable stands in: {stood_in_for}") };
        format!("{name}: {version}, {weight} % of the traffic{instead}")
    });
    let sticky =
        traffic.sticky.iter().map(|sticky| format!("sticky by {}", source(&sticky.attribute, &sticky.metadata)));
    let rules = traffic.rules.iter().map(|rule| {
        let from = source(&rule.attribute, &rule.metadata);
        format!("rule: {from} {} → {}", rule.values.join(" or "), rule.version)
    });
    let shadows = traffic
        .shadows
        .iter()
        .map(|shadow| format!("shadow: {}, {} % is asked as well", shadow.version, shadow.sample));
    variants.chain(sticky).chain(rules).chain(shadows).collect()
}

fn source(attribute: &str, metadata: &str) -> String {
    match (attribute, metadata) {
        ("", "") => "caller".to_owned(),
        ("", metadata) => format!("metadata {metadata}"),
        (attribute, _) => format!("attribute {attribute}"),
    }
}

/// `4  2026-11-21T15:00:00Z  promote 1.1.0, by alice: a reason`
fn entry_for_people(entry: &RouteChange) -> String {
    let by = if entry.caller.is_empty() { String::new() } else { format!(", by {}", entry.caller) };
    let why = if entry.reason.is_empty() { String::new() } else { format!(": {}", entry.reason) };
    format!("{}  {}  {}{by}{why}", entry.revision, entry.time, entry.change)
}

fn traffic_to_json(traffic: &Traffic) -> Value {
    let variant = |variant: &Variant| {
        json!({
            "name": variant.name,
            "version": variant.version,
            "weight": variant.weight,
            "slots": variant.slots,
            "stood_in_for": variant.stood_in_for,
        })
    };
    let rule = |rule: &RoutingRule| json!({ "attribute": rule.attribute, "metadata": rule.metadata, "caller": rule.caller, "values": rule.values, "version": rule.version });
    json!({
        "variants": traffic.variants.iter().map(variant).collect::<Vec<_>>(),
        "sticky": traffic.sticky.as_ref().map(|sticky| json!({
            "attribute": sticky.attribute,
            "metadata": sticky.metadata,
            "caller": sticky.caller,
            "salt": sticky.salt,
        })),
        "rules": traffic.rules.iter().map(rule).collect::<Vec<_>>(),
        "shadows": traffic.shadows.iter().map(|shadow| json!({ "version": shadow.version, "sample": shadow.sample })).collect::<Vec<_>>(),
    })
}

/// The keys of the protocol.
pub fn to_json(route: &Route) -> Value {
    let entry = |entry: &RouteChange| {
        json!({
            "revision": entry.revision,
            "time": entry.time,
            "change": entry.change,
            "stable": entry.stable,
            "caller": entry.caller,
            "reason": entry.reason,
            "request_id": entry.request_id,
        })
    };
    json!({
        "revision": route.revision,
        "stable": route.stable,
        "labels": route.labels.iter().collect::<BTreeMap<_, _>>(),
        "decided_by": route.decided_by,
        "previous": route.previous,
        "rejected": route.rejected,
        "load": route.load,
        "disabled": route.disabled.as_ref().map(|disabled| json!({ "reason": disabled.reason })),
        "pending": route.pending,
        "rollout": route.rollout,
        "traffic": route.traffic.as_ref().map(traffic_to_json),
        "history": route.history.iter().map(entry).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_see_what_decided_and_the_last_decisions() {
        let change = |revision, change: &str| RouteChange {
            revision,
            time: "2026-11-21T15:00:00Z".into(),
            change: change.into(),
            caller: "alice".into(),
            reason: "because".into(),
            ..Default::default()
        };
        let route = Route {
            revision: 2,
            stable: "1.0.0".into(),
            rejected: vec!["1.1.0".into()],
            decided_by: "route.yaml pins 1.0.0".into(),
            rollout: "1.2.0 is being rolled out: step 1, 5 %".into(),
            history: vec![change(2, "rollback"), change(1, "promote 1.1.0")],
            ..Default::default()
        };
        assert_eq!(
            for_people(&route),
            "route: revision 2, stable: 1.0.0, rejected: 1.1.0\n  1.2.0 is being rolled out: step 1, 5 %\n  route.yaml pins 1.0.0\n  \
             2  2026-11-21T15:00:00Z  rollback, by alice: because\n  \
             1  2026-11-21T15:00:00Z  promote 1.1.0, by alice: because\n"
        );
        assert_eq!(to_json(&route)["history"][1]["change"], "promote 1.1.0");
    }
}

//! `gates:` of a plan: what a version has to be before anybody is asked to try it. Plain data and whether it makes sense.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    plan::{METRIC_BYTES_MAX, demand, demand_duration},
    units,
};
use crate::error::Result;

/// All keys may be left out. What a version does not say of itself, it does not pass.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gates {
    /// Numbers of version.yaml's `metrics`, and what each is at least.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, f64>,
    /// Of its files, in bytes.
    #[serde(
        deserialize_with = "units::size",
        serialize_with = "units::write_size",
        skip_serializing_if = "Option::is_none"
    )]
    pub max_size: Option<u64>,
    /// From its files to a version that serves.
    #[serde(
        deserialize_with = "units::duration",
        serialize_with = "units::write_duration",
        skip_serializing_if = "Option::is_none"
    )]
    pub max_load_time: Option<Duration>,
}

const METRICS_MAX: usize = 20;

// === impl Gates ===

impl Gates {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// INVALID_PLAN names the key.
    pub(super) fn check(&self) -> Result<()> {
        let count = self.metrics.len();
        demand(count <= METRICS_MAX, "gates.metrics", format!("{count} metrics"), "at most 20")?;
        for (name, least) in &self.metrics {
            let is_named = (1..=METRIC_BYTES_MAX).contains(&name.len());
            demand(is_named, "gates.metrics", format!("a name of {} bytes", name.len()), "one of 1 to 128")?;
            demand(least.is_finite(), &format!("gates.metrics.{name}"), least, "a finite number")?;
        }
        demand(self.max_size != Some(0), "gates.max_size", 0, "more than 0 bytes, e.g. 64MiB")?;
        let Some(time) = self.max_load_time else {
            return Ok(());
        };
        demand(!time.is_zero(), "gates.max_load_time", "0s", "more than 0s, e.g. 30s")?;
        demand_duration("gates.max_load_time", time)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{Plan, parse_yaml};

    fn plan(text: &str) -> Result<Plan> {
        let plan: Plan = parse_yaml("model.yaml", text)?;
        plan.check().map(|()| plan)
    }

    #[test]
    fn what_people_write_is_read() {
        let gates = plan("gates: { metrics: { accuracy: 0.61, sharpe: -1 }, max_size: 64MiB, max_load_time: 30s }");
        let metrics = [("accuracy".to_owned(), 0.61), ("sharpe".to_owned(), -1.0)].into();
        let expected = Gates { metrics, max_size: Some(64 << 20), max_load_time: Some(Duration::from_secs(30)) };
        assert_eq!(gates.expect("a plan").gates, expected);
        assert!(plan("gates: {}").expect("a plan").gates.is_empty());
        let text = serde_yaml_ng::to_string(&Plan::default()).expect("plain data");
        assert!(!text.contains("gates"), "{text}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, named) in [
            ("{ metric: { accuracy: 1 } }", "metric"),
            ("{ metrics: { accuracy: .nan } }", "gates.metrics.accuracy"),
            ("{ metrics: { accuracy: -.inf } }", "gates.metrics.accuracy"),
            ("{ metrics: { '': 1 } }", "gates.metrics"),
            ("{ metrics: { accuracy: high } }", "accuracy"),
            ("{ max_size: 0 }", "gates.max_size"),
            ("{ max_size: large }", "large"),
            ("{ max_load_time: 0s }", "gates.max_load_time"),
            ("{ max_load_time: 366days }", "gates.max_load_time"),
            ("{ max_load_time: 30 }", "30"),
        ] {
            let error = plan(&format!("gates: {text}")).expect_err(text);
            assert!(error.message().contains(named), "{text}: {}", error.message());
        }
        let many: String = (0..=METRICS_MAX).map(|number| format!("m{number}: 1, ")).collect();
        let error = plan(&format!("gates: {{ metrics: {{ {many} }} }}")).expect_err("there are 21");
        assert_eq!((error.reason(), error.message().contains("gates.metrics")), ("INVALID_PLAN", true), "{error}");
    }

    proptest! {
        #[test]
        fn gates_read_back_as_they_were_written(
            metrics in proptest::collection::btree_map("[a-z@.: ]{1,12}", -1e9..1e9_f64, 0..4),
            size in proptest::option::of((1..u64::from(u32::MAX), 0..31_u32)),
            load_ms in proptest::option::of(1..10_000_000_u64),
        ) {
            let gates = Gates {
                metrics,
                max_size: size.map(|(size, shift)| size << shift),
                max_load_time: load_ms.map(Duration::from_millis),
            };
            let plan = Plan { gates, ..Plan::default() };
            plan.check().expect("it is right");
            let text = serde_yaml_ng::to_string(&plan).expect("plain data");
            prop_assert_eq!(parse_yaml::<Plan>("route.yaml", &text).expect("our own"), plan, "{}", text);
        }
    }
}

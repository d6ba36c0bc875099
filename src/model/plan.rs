//! `canary:` of model.yaml, and what Deploy is given: how a version comes to serve, step by step, and what ends that.
//!
//! Plain data and whether it makes sense. What follows from it is the judge's.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{Gates, units::parse_duration};
use crate::error::{Error, Result};

/// All keys may be left out.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Plan {
    /// In percent of the traffic, ascending; the last is 100.
    pub steps: Vec<f64>,
    /// How long each step lasts at least.
    #[serde(with = "written")]
    pub hold: Duration,
    /// Requests, and outcomes where there is a metric, that each step wants of either version.
    pub min_samples: u64,
    /// Of all steps together; then nobody knows, and it waits for a person.
    #[serde(with = "written")]
    pub max_duration: Duration,
    /// Before the first step: nobody gets its answers yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadow: Option<ShadowStage>,
    /// The share of requests that may fail, whatever stable does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_error_rate: Option<f64>,
    /// How many times stable's share of failing requests it may have.
    pub max_error_ratio: f64,
    /// How many times stable's p95 its own may be.
    pub max_latency_ratio: f64,
    /// The share of its requests that stable may have to answer.
    pub max_degraded: f64,
    /// The share of answers that may hold a NaN or an infinity, where it is more than stable's.
    pub max_non_finite: f64,
    /// The share of a shadow's rows that may say something else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_disagreement: Option<f64>,
    /// What outcomes say of it; without one the guardrails and the minimum sample decide.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric: Option<Metric>,
    /// Of a metric of the caller's own; that of the others is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goal: Option<Goal>,
    /// How much worse than stable it may be, in the metric's unit. Where it is given, that it is no worse has to be shown;
    /// else it suffices that nothing shows that it is worse.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub margin: Option<f64>,
    /// The difference that one wants to find, in the metric's unit: τ of the sequential test. Where it is left out, a tenth
    /// of the metric's standard deviation, whatever its unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effect: Option<f64>,
    /// How likely a version that is as good as stable may be rolled back, by all rules together and however often one looks.
    pub alpha: f64,
    /// What the version has to be before all that.
    #[serde(skip_serializing_if = "Gates::is_empty")]
    pub gates: Gates,
}

/// A copy of so much of the traffic, for so long.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ShadowStage {
    /// In percent.
    pub sample: f64,
    #[serde(with = "written")]
    pub hold: Duration,
    /// Requests that it is asked.
    pub min_samples: u64,
}

/// What outcomes are summed up to. AUC is none: it is a number of all of them together, so it is only reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Metric {
    /// The share of labels that the prediction was on the right side of.
    Accuracy,
    LogLoss,
    Brier,
    SquaredError,
    Reward,
    /// As callers report it.
    Named(String),
}

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Goal {
    Maximize,
    Minimize,
}

const STEPS_MAX: usize = 20;
const SAMPLES_MAX: u64 = 1_000_000_000;
const DURATION_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
pub(super) const METRIC_BYTES_MAX: usize = 128;
/// A level above it is not meant.
const ALPHA_MAX: f64 = 0.5;
const RATIO_MAX: f64 = 1_000.0;

// === impl Plan ===

impl Default for Plan {
    fn default() -> Self {
        Self {
            steps: vec![5.0, 25.0, 50.0, 100.0],
            hold: Duration::from_secs(600),
            min_samples: 100,
            max_duration: Duration::from_secs(24 * 3600),
            shadow: None,
            max_error_rate: None,
            max_error_ratio: 1.0,
            max_latency_ratio: 1.2,
            max_degraded: 0.1,
            max_non_finite: 0.0,
            max_disagreement: None,
            metric: None,
            goal: None,
            margin: None,
            effect: None,
            alpha: 0.05,
            gates: Gates::default(),
        }
    }
}

impl Plan {
    /// INVALID_PLAN names the key.
    pub fn check(&self) -> Result<()> {
        self.check_steps()?;
        self.check_times()?;
        self.check_shadow()?;
        let shares = [
            ("max_error_rate", self.max_error_rate.unwrap_or(0.0)),
            ("max_degraded", self.max_degraded),
            ("max_non_finite", self.max_non_finite),
            ("max_disagreement", self.max_disagreement.unwrap_or(0.0)),
        ];
        for (key, share) in shares {
            demand((0.0..1.0).contains(&share), key, share, "a share from 0 to below 1, e.g. 0.01")?;
        }
        for (key, ratio) in [("max_error_ratio", self.max_error_ratio), ("max_latency_ratio", self.max_latency_ratio)] {
            demand((1.0..=RATIO_MAX).contains(&ratio), key, ratio, "a ratio from 1 to 1000, e.g. 1.2")?;
        }
        demand(self.alpha > 0.0 && self.alpha <= ALPHA_MAX, "alpha", self.alpha, "a share above 0 and at most 0.5")?;
        self.check_metric()?;
        self.gates.check()
    }

    /// Which way is better; `None` without a metric.
    pub fn goal(&self) -> Option<Goal> {
        self.metric.as_ref().and_then(|metric| metric.goal().or(self.goal))
    }

    fn check_steps(&self) -> Result<()> {
        let steps = &self.steps;
        let hundredths = |step: f64| (step * 100.0 - (step * 100.0).round()).abs() < 1e-6;
        let are_percents = steps.iter().all(|step| *step > 0.0 && *step <= 100.0 && hundredths(*step));
        let ascend = steps.is_sorted_by(|before, after| before < after);
        let right = are_percents && ascend && steps.last() == Some(&100.0) && steps.len() <= STEPS_MAX;
        demand(
            right,
            "steps",
            format!("{steps:?}"),
            "1 to 20 ascending percentages of at most two decimals, the last 100",
        )
    }

    fn check_times(&self) -> Result<()> {
        demand_samples("min_samples", self.min_samples)?;
        demand_duration("hold", self.hold)?;
        demand_duration("max_duration", self.max_duration)?;
        let shadow = self.shadow.as_ref().map_or(Duration::ZERO, |shadow| shadow.hold);
        let needed = shadow.saturating_add(self.hold.saturating_mul(self.steps.len() as u32));
        let shown = humantime::format_duration(self.max_duration);
        let expected = format!("at least what the holds come to, {}", humantime::format_duration(needed));
        demand(needed <= self.max_duration, "max_duration", shown, &expected)
    }

    fn check_shadow(&self) -> Result<()> {
        let Some(shadow) = &self.shadow else {
            let why = "nothing without a shadow stage: only there are answers compared";
            return match self.max_disagreement {
                Some(share) => demand(false, "max_disagreement", share, why),
                None => Ok(()),
            };
        };
        let is_sample = shadow.sample > 0.0 && shadow.sample <= 100.0;
        demand(is_sample, "shadow.sample", shadow.sample, "a percentage above 0 and at most 100")?;
        demand_samples("shadow.min_samples", shadow.min_samples)?;
        demand_duration("shadow.hold", shadow.hold)
    }

    fn check_metric(&self) -> Result<()> {
        let Some(metric) = &self.metric else {
            let stray =
                [("margin", self.margin.is_some()), ("effect", self.effect.is_some()), ("goal", self.goal.is_some())];
            return match stray.iter().find(|(_, is_there)| *is_there) {
                Some((key, _)) => Err(wrong(format!("{key} says nothing without metric"))),
                None => Ok(()),
            };
        };
        let said = |goal: Goal| goal.to_string();
        match (metric.goal(), self.goal) {
            (None, None) => return Err(wrong(format!("goal is missing: maximize or minimize {metric}?"))),
            (Some(known), Some(given)) if known != given => {
                demand(false, "goal", given, &format!("{} of {metric}", said(known)))?;
            }
            _ => {}
        }
        let has_control = self.steps.iter().any(|step| *step < 100.0);
        demand(has_control, "steps", format!("{:?}", self.steps), "one below 100: a metric is compared with stable's")?;
        let margin = self.margin.unwrap_or(0.0);
        demand(margin >= 0.0 && margin.is_finite(), "margin", margin, "a number of the metric's unit, not below 0")?;
        let effect = self.effect.unwrap_or(1.0);
        demand(effect > 0.0 && effect.is_finite(), "effect", effect, "a number of the metric's unit, above 0")
    }
}

fn demand_samples(key: &str, samples: u64) -> Result<()> {
    demand((1..=SAMPLES_MAX).contains(&samples), key, samples, "a number from 1 to 1000000000")
}

pub(super) fn demand_duration(key: &str, duration: Duration) -> Result<()> {
    let shown = humantime::format_duration(duration);
    demand(duration <= DURATION_MAX, key, shown, "at most 365 days")
}

pub(super) fn demand(is_right: bool, key: &str, value: impl fmt::Display, expected: &str) -> Result<()> {
    match is_right {
        true => Ok(()),
        false => Err(wrong(format!("{key} is {value}; expected is {expected}"))),
    }
}

fn wrong(what: String) -> Error {
    Error::invalid("INVALID_PLAN", what)
}

// === impl ShadowStage ===

impl Default for ShadowStage {
    fn default() -> Self {
        Self { sample: 10.0, hold: Duration::from_secs(600), min_samples: 100 }
    }
}

// === impl Metric ===

impl Metric {
    /// `None` where only the caller knows it.
    pub fn goal(&self) -> Option<Goal> {
        match self {
            Metric::Accuracy | Metric::Reward => Some(Goal::Maximize),
            Metric::LogLoss | Metric::Brier | Metric::SquaredError => Some(Goal::Minimize),
            Metric::Named(_) => None,
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Metric::Accuracy => "accuracy",
            Metric::LogLoss => "log_loss",
            Metric::Brier => "brier",
            Metric::SquaredError => "squared_error",
            Metric::Reward => "reward",
            Metric::Named(name) => name,
        })
    }
}

impl FromStr for Metric {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "accuracy" => Metric::Accuracy,
            "log_loss" => Metric::LogLoss,
            "brier" => Metric::Brier,
            "squared_error" => Metric::SquaredError,
            "reward" => Metric::Reward,
            "auc" => {
                return Err(wrong("metric auc is only reported: no test for it may be looked at all the time".into()));
            }
            name if name.is_empty() || name.len() > METRIC_BYTES_MAX => {
                return Err(wrong(format!("metric has 1 to {METRIC_BYTES_MAX} bytes")));
            }
            name => Metric::Named(name.to_owned()),
        })
    }
}

impl Serialize for Metric {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Metric {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(|error: Error| de::Error::custom(error.message()))
    }
}

// === impl Goal ===

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Goal::Maximize => "maximize",
            Goal::Minimize => "minimize",
        })
    }
}

/// Durations both ways: `10m`.
mod written {
    use super::*;

    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*duration))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        parse_duration(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::parse_yaml;

    fn plan(text: &str) -> Result<Plan> {
        let plan: Plan = parse_yaml("model.yaml", text)?;
        plan.check().map(|()| plan)
    }

    #[test]
    fn what_people_write_is_read() {
        let text =
            "{ steps: [5, 25, 50, 100], hold: 10m, max_error_rate: 0.01, max_latency_ratio: 1.2, metric: accuracy }";
        let expected = Plan { max_error_rate: Some(0.01), metric: Some(Metric::Accuracy), ..Plan::default() };
        assert_eq!(plan(text).expect("a plan"), expected);
        assert_eq!(plan("").expect("nothing is a plan, too"), Plan::default());
        let own =
            plan("{ metric: returns, goal: minimize, margin: 0.2, shadow: { sample: 5 }, max_disagreement: 0.1 }");
        let own = own.expect("a plan");
        assert_eq!((own.goal(), own.margin), (Some(Goal::Minimize), Some(0.2)));
        assert_eq!(own.shadow, Some(ShadowStage { sample: 5.0, ..ShadowStage::default() }));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, named) in [
            ("step: [5]", "step"),
            ("shadow: { share: 5 }", "share"),
            ("steps: []", "steps"),
            ("steps: [5, 5, 100]", "steps"),
            ("steps: [5, 50]", "steps"),
            ("steps: [0, 100]", "steps"),
            ("steps: [.nan, 100]", "steps"),
            ("steps: [0.001, 100]", "steps"),
            ("hold: 10", "'10' is not a duration"),
            ("hold: ten minutes", "ten minutes"),
            ("hold: 7h", "max_duration"),
            ("max_duration: 30m", "max_duration"),
            ("min_samples: 0", "min_samples"),
            ("shadow: { sample: 0 }", "shadow.sample"),
            ("shadow: { min_samples: 0 }", "shadow.min_samples"),
            ("max_error_rate: 1", "max_error_rate"),
            ("max_degraded: -0.1", "max_degraded"),
            ("max_non_finite: .nan", "max_non_finite"),
            ("max_disagreement: 0.1", "max_disagreement"),
            ("max_error_ratio: 0.9", "max_error_ratio"),
            ("max_latency_ratio: .inf", "max_latency_ratio"),
            ("{ metric: reward, steps: [100] }", "steps"),
            ("metric: auc", "auc"),
            ("metric: ''", "metric"),
            ("metric: clicks", "goal"),
            ("{ metric: brier, goal: maximize }", "goal"),
            ("goal: maximize", "goal"),
            ("margin: 1", "margin"),
            ("effect: 1", "effect"),
            ("{ metric: reward, margin: -1 }", "margin"),
            ("{ metric: reward, effect: 0 }", "effect"),
            ("alpha: 0", "alpha"),
            ("alpha: 0.6", "alpha"),
        ] {
            let error = plan(text).expect_err(text);
            assert!(error.message().contains(named), "{text}: {}", error.message());
        }
    }

    proptest! {
        #[test]
        fn a_plan_reads_back_as_it_was_written(
            hold in 0..7_200_u64,
            shadow in proptest::option::of((1..=100_u32, 0..7_200_u64)),
            rate in proptest::option::of(0.0..0.9_f64),
            metric in proptest::option::of(prop_oneof!["accuracy", "brier", "[a-z]{1,9}x"]),
            alpha in 0.001..0.5_f64,
        ) {
            let known = metric.as_deref().is_none_or(|name| ["accuracy", "brier"].contains(&name));
            let plan = Plan {
                hold: Duration::from_secs(hold) / 2,
                shadow: shadow.map(|(sample, hold)| ShadowStage {
                    sample: f64::from(sample),
                    hold: Duration::from_secs(hold),
                    min_samples: 7,
                }),
                max_error_rate: rate,
                max_disagreement: shadow.and(rate),
                metric: metric.map(|name| name.parse().expect("a metric")),
                goal: (!known).then_some(Goal::Maximize),
                alpha,
                ..Plan::default()
            };
            plan.check().expect("it is right");
            let text = serde_yaml_ng::to_string(&plan).expect("plain data");
            prop_assert_eq!(parse_yaml::<Plan>("model.yaml", &text).expect("our own"), plan);
        }
    }
}

//! The success metric of two arms, and how they compare.

use crate::{
    model::{Goal, Metric, Plan},
    monitor::Moments,
    rollout::{
        metric::{arms, improvement, mixing_variance, moments},
        statistics::sequential::{confidence_sequence, mean_difference},
        words,
    },
};

use super::Period;

/// Over all periods.
pub struct Quality<'a> {
    metric: &'a Metric,
    goal: Goal,
    control: Moments,
    treatment: Moments,
    /// The treatment, better by as much as it may be worse.
    with_margin: Moments,
    tau2: f64,
}

// === impl Quality ===

impl<'a> Quality<'a> {
    /// `None` without a metric.
    pub fn of(plan: &'a Plan, periods: &[Period]) -> Option<Self> {
        let (metric, goal) = (plan.metric.as_ref()?, plan.goal()?);
        let of = |period: &Period| Some((moments(metric, &period.control)?, moments(metric, &period.treatment)?));
        let [control, treatment] = arms(&periods.iter().filter_map(of).collect::<Vec<_>>());
        let margin = plan.margin.unwrap_or(0.0);
        let towards = match goal {
            Goal::Maximize => margin,
            Goal::Minimize => -margin,
        };
        let with_margin = Moments { mean: treatment.mean + towards, ..treatment };
        let tau2 = mixing_variance(plan.effect, &control, &treatment);
        Some(Self { metric, goal, control, treatment, with_margin, tau2 })
    }

    /// Of the arm that has fewer outcomes.
    pub fn least(&self) -> u64 {
        self.control.count.min(self.treatment.count)
    }

    /// The log e-value that it is worse than it may be; `None` where it looks no worse, or nothing can be said.
    pub fn worse(&self) -> Option<f64> {
        let is_worse = improvement(self.goal, &self.control, &self.with_margin) < 0.0;
        mean_difference(&self.control, &self.with_margin, self.tau2).filter(|_| is_worse)
    }

    /// With probability 1 − level, at every look, it is better by more than that; below nought it may be worse.
    pub fn least_improvement(&self, level: f64) -> Option<f64> {
        let (low, high) = confidence_sequence(&self.control, &self.treatment, self.tau2, level)?;
        Some(match self.goal {
            Goal::Maximize => low,
            Goal::Minimize => -high,
        })
    }

    /// `accuracy 0.8 (of 500) against 0.9 (of 9,500) of stable`
    pub fn words(&self) -> String {
        let arm = |arm: &Moments| format!("{} (of {})", words::number(arm.mean), words::count(arm.count));
        format!("{} {} against {} of stable", self.metric, arm(&self.treatment), arm(&self.control))
    }
}

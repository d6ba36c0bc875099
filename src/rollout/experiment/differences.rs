//! How far a variant is from stable, in each number that both have.

use serde::Serialize;

use super::{Period, sum};
use crate::{
    model::{Metric, Plan},
    monitor::{Moments, Tally},
    rollout::{
        metric::{arms, mixing_variance, moments},
        statistics::{
            fixed::{Method, Proportion, two_proportions, welch},
            sequential::{confidence_sequence, mean_difference, p_value},
        },
    },
};

/// Of one number. Over several revisions each is compared with itself, so the difference need not be that of the sums.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// `error_rate`, `accuracy`, …, or the callers' own.
    pub metric: String,
    pub stable: f64,
    pub variant: f64,
    /// variant − stable, in the metric's unit.
    pub difference: f64,
    /// At 1 − alpha.
    pub fixed_horizon: Option<FixedHorizon>,
    /// At 1 − alpha.
    pub always_valid: Option<AlwaysValid>,
}

/// What a textbook gives; right for one look, at an end that was fixed before the start. Who looks again and again finds what
/// is not there.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct FixedHorizon {
    pub interval: (f64, f64),
    pub p_value: f64,
    pub method: Method,
}

/// What may be looked at all the time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct AlwaysValid {
    /// The confidence sequence.
    pub interval: (f64, f64),
    pub p_value: f64,
}

type Arms = Vec<(Moments, Moments)>;

/// In a fixed order, the callers' own last.
pub fn all(periods: &[Period], plan: &Plan) -> Vec<Difference> {
    let of = |read: &dyn Fn(&Tally) -> Option<Moments>| -> Arms {
        periods.iter().filter_map(|period| Some((read(&period.control)?, read(&period.treatment)?))).collect()
    };
    let errors = of(&|tally| Some(Moments::of_proportion(tally.errors, tally.answered.saturating_add(tally.errors))));
    let non_finite = of(&|tally| Some(Moments::of_proportion(tally.non_finite, tally.answered)));
    let shares = [("error_rate", errors), ("non_finite", non_finite)];
    let shares = shares.into_iter().filter_map(|(name, arms)| difference(name, &arms, true, None, plan.alpha));
    let known = [Metric::Accuracy, Metric::LogLoss, Metric::Brier, Metric::SquaredError, Metric::Reward];
    let control = sum(periods.iter().map(|period| &period.control));
    let treatment = sum(periods.iter().map(|period| &period.treatment));
    let own = control.outcomes.named.keys().map(|name| Metric::Named(name.clone()));
    let metrics = known.into_iter().chain(own).filter_map(|metric| {
        let effect = plan.effect.filter(|_| plan.metric.as_ref() == Some(&metric));
        let is_share = metric == Metric::Accuracy;
        difference(&metric.to_string(), &of(&|tally| moments(&metric, tally)), is_share, effect, plan.alpha)
    });
    shares.chain(metrics).chain(auc(&control, &treatment)).collect()
}

/// `None` where either has nothing.
fn difference(metric: &str, periods: &Arms, is_share: bool, effect: Option<f64>, alpha: f64) -> Option<Difference> {
    let [control, treatment] = arms(periods);
    if control.count == 0 || treatment.count == 0 {
        return None;
    }
    let fixed = if is_share {
        two_proportions(proportion(&control), proportion(&treatment), alpha)
    } else {
        welch(&control, &treatment, alpha)
    };
    let tau2 = mixing_variance(effect, &control, &treatment);
    let log_e = mean_difference(&control, &treatment, tau2);
    let sequence = confidence_sequence(&control, &treatment, tau2, alpha);
    Some(Difference {
        metric: metric.to_owned(),
        stable: control.mean,
        variant: treatment.mean,
        difference: treatment.mean - control.mean,
        fixed_horizon: fixed.map(|found| FixedHorizon {
            interval: found.interval,
            p_value: found.p_value,
            method: found.method,
        }),
        always_valid: log_e.zip(sequence).map(|(log_e, interval)| AlwaysValid { interval, p_value: p_value(log_e) }),
    })
}

/// That of one period exactly; over several the counts are those that weigh as much.
fn proportion(moments: &Moments) -> Proportion {
    Proportion { hits: (moments.mean * moments.count as f64).round() as u64, trials: moments.count }
}

/// A number of all labels together, so it is of the sums, and no test here is for it.
fn auc(control: &Tally, treatment: &Tally) -> Option<Difference> {
    let (stable, variant) = (control.outcomes.scores.auc()?, treatment.outcomes.scores.auc()?);
    Some(Difference {
        metric: "auc".to_owned(),
        stable,
        variant,
        difference: variant - stable,
        fixed_horizon: None,
        always_valid: None,
    })
}

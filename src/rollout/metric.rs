//! What a variant's sums say of one metric.

use crate::{
    model::{Goal, Metric},
    monitor::{Moments, Tally},
};

use super::statistics::strata::joined;

/// `None` where nothing is known; the count of what is there may still be nought.
pub fn moments(metric: &Metric, tally: &Tally) -> Option<Moments> {
    let outcomes = &tally.outcomes;
    let scores = &outcomes.scores;
    match metric {
        Metric::Accuracy => {
            let right = scores.accuracy()? * scores.count() as f64;
            Some(Moments::of_proportion(right.round() as u64, scores.count()))
        }
        Metric::LogLoss => Some(outcomes.log_loss),
        // It is the squared error of probabilities, so where all labels were classes the two are the same.
        Metric::Brier => (scores.count() == outcomes.squared_error.count).then_some(outcomes.squared_error),
        Metric::SquaredError => Some(outcomes.squared_error),
        Metric::Reward => Some(outcomes.reward),
        Metric::Named(name) => outcomes.named.get(name).copied(),
    }
}

/// Both arms over all periods, control first, as the tests want them.
///
/// Where neither arm varies and they are not the same (all right, and all wrong) no variance within them says how far apart is
/// far. If they were alike they would be one population, so they get the variance of that.
pub fn arms(periods: &[(Moments, Moments)]) -> [Moments; 2] {
    let [mut control, mut treatment] = joined(periods);
    let difference = treatment.mean - control.mean;
    if control.m2 + treatment.m2 == 0.0 && difference != 0.0 {
        let (n1, n2) = (control.count as f64, treatment.count as f64);
        let both = difference * difference * (n1 * n2 / (n1 + n2));
        control.m2 = both * n1 / (n1 + n2);
        treatment.m2 = both * n2 / (n1 + n2);
    }
    [control, treatment]
}

/// How much better the treatment is; below nought where it is worse.
pub fn improvement(goal: Goal, control: &Moments, treatment: &Moments) -> f64 {
    match goal {
        Goal::Maximize => treatment.mean - control.mean,
        Goal::Minimize => control.mean - treatment.mean,
    }
}

/// τ² of the sequential test: the square of the difference one wants to find or, where nobody said which, of a tenth of the
/// standard deviation. That is fixed before the start whatever the metric's unit, and it does not ask how far the means lie
/// apart. Half of what Cohen (1988) calls a small effect.
pub fn mixing_variance(effect: Option<f64>, control: &Moments, treatment: &Moments) -> f64 {
    let freedom = control.count.saturating_add(treatment.count).saturating_sub(2).max(1) as f64;
    effect.map_or((control.m2 + treatment.m2) / freedom / 100.0, |effect| effect * effect)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::Outcome;

    fn tally(outcomes: &[(f64, f64)]) -> Tally {
        let mut tally = Tally::default();
        for (score, label) in outcomes {
            let outcome = Outcome { label: Some(*label), reward: Some(2.0), metrics: vec![("own".into(), *score)] };
            tally.outcomes.credit(*score, &outcome);
        }
        tally
    }

    #[test]
    fn each_metric_has_its_sums() {
        let classes = tally(&[(0.9, 1.0), (0.2, 0.0), (0.4, 1.0)]);
        let of = |metric: &str, tally: &Tally| moments(&metric.parse().unwrap(), tally);
        assert_eq!(of("accuracy", &classes), Some(Moments::of_proportion(2, 3)));
        let brier = of("brier", &classes).unwrap();
        assert!((brier.mean - (0.01 + 0.04 + 0.36) / 3.0).abs() < 1e-12);
        assert!((brier.mean - classes.outcomes.scores.brier().unwrap()).abs() < 1e-12);
        assert_eq!(of("squared_error", &classes), Some(brier));
        assert_eq!(of("log_loss", &classes).unwrap().count, 3);
        assert_eq!(of("reward", &classes).unwrap().mean, 2.0);
        assert_eq!(of("own", &classes).unwrap().mean, 0.5);
        assert_eq!(of("another", &classes), None);
        let numbers = tally(&[(7.0, 5.0), (0.5, 1.0)]);
        assert_eq!(of("brier", &numbers), None, "not all are probabilities");
        assert_eq!(of("accuracy", &Tally::default()), None);
    }

    #[test]
    fn arms_that_do_not_vary_are_told_apart_all_the_same() {
        use crate::rollout::statistics::sequential::mean_difference;
        let constant = |mean| Moments { count: 100, mean, m2: 0.0 };
        let [control, treatment] = arms(&[(constant(1.0), constant(0.0))]);
        let tau2 = mixing_variance(None, &control, &treatment);
        assert!(mean_difference(&control, &treatment, tau2).expect("there is a variance") > 10.0);
        assert_eq!(arms(&[(constant(1.0), constant(1.0))]), [constant(1.0); 2]);
    }

    #[test]
    fn a_mixing_variance_follows_the_unit_and_not_the_difference() {
        let arm = |mean, m2| Moments { count: 101, mean, m2 };
        let near = mixing_variance(None, &arm(1.0, 400.0), &arm(1.0, 400.0));
        assert_eq!(near, 0.04);
        assert_eq!(mixing_variance(None, &arm(1.0, 400.0), &arm(9.0, 400.0)), near);
        assert_eq!(mixing_variance(None, &arm(0.0, 40_000.0), &arm(0.0, 40_000.0)), 100.0 * near);
        assert_eq!(mixing_variance(Some(0.5), &arm(1.0, 400.0), &arm(9.0, 400.0)), 0.25);
    }
}

//! Two arms over several periods in which their shares were not the same: a canary that is given more and more.
//!
//! Pooled, the arms would differ by when they were asked: where the truth of later weeks is harder to predict, the canary,
//! which got most of its requests late, would look worse. So each period is compared with itself.

use crate::monitor::Moments;

/// One control and one treatment with the difference, the variance and the weight of all periods together, for any test of
/// two means.
///
/// Period i has the weight wᵢ = n₁ᵢ n₂ᵢ / (n₁ᵢ + n₂ᵢ) (Cochran 1954), which depends on no value, and which is that of the least
/// variance where all vary alike. Each arm's mean is Σ wᵢ mᵢ / Σ wᵢ; its variance s² is that within periods; its count is
/// (Σ wᵢ)² / Σ (wᵢ² / nᵢ), so that s² / count is the variance of that mean. One period comes out as it is. Periods in which an
/// arm has nothing say nothing. Both are those of nothing where no period says anything.
pub fn joined(periods: &[(Moments, Moments)]) -> [Moments; 2] {
    let both: Vec<&(Moments, Moments)> =
        periods.iter().filter(|(one, other)| one.count > 0 && other.count > 0).collect();
    if let [(control, treatment)] = both[..] {
        return [*control, *treatment];
    }
    let arm = |own: fn(&(Moments, Moments)) -> &Moments| {
        let (mut weights, mut means, mut errors) = (0.0, 0.0, 0.0);
        let (mut m2, mut freedom) = (0.0, 0.0);
        for pair in &both {
            let (n1, n2) = (pair.0.count as f64, pair.1.count as f64);
            let (own, weight) = (own(pair), n1 * n2 / (n1 + n2));
            weights += weight;
            means += weight * own.mean;
            errors += weight * weight / own.count as f64;
            m2 += own.m2;
            freedom += (own.count - 1) as f64;
        }
        if both.is_empty() {
            return Moments::default();
        }
        // Rounded down: never more than there are.
        let count = (weights * weights / errors).floor().max(1.0);
        let variance = if freedom > 0.0 { m2 / freedom } else { 0.0 };
        Moments { count: count as u64, mean: means / weights, m2: variance * (count - 1.0) }
    };
    [arm(|pair| &pair.0), arm(|pair| &pair.1)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(hits: u64, trials: u64) -> Moments {
        Moments::of_proportion(hits, trials)
    }

    #[test]
    fn one_period_is_as_it_is() {
        let pair = (of(10, 950), of(1, 50));
        assert_eq!(joined(&[pair]), [pair.0, pair.1]);
        assert_eq!(joined(&[pair, (of(5, 100), of(0, 0)), (of(0, 0), of(3, 7))]), [pair.0, pair.1]);
        assert_eq!(joined(&[]), [Moments::default(); 2]);
    }

    #[test]
    fn equal_periods_are_one_twice_as_long() {
        let [control, treatment] = joined(&[(of(10, 950), of(1, 50)); 2]);
        assert_eq!((control.count, treatment.count), (1_900, 100));
        assert!((control.mean - 10.0 / 950.0).abs() < 1e-15 && (treatment.mean - 0.02).abs() < 1e-15);
        assert!((control.m2 - 2.0 * of(10, 950).m2).abs() < 0.02);
    }

    #[test]
    fn a_share_that_grows_while_times_get_worse_does_not_confound() {
        // Both err alike in each period, 1 % and then 10 %; pooled the canary would err in 9.2 %, stable in 2.5 %.
        let [control, treatment] = joined(&[(of(90, 9_000), of(1, 100)), (of(180, 1_800), of(120, 1_200))]);
        assert!((control.mean - treatment.mean).abs() < 1e-12, "{control:?} {treatment:?}");
        assert!(treatment.count <= 1_300 && control.count <= 10_800);
    }

    #[test]
    fn the_arms_mirror() {
        let periods = [(of(90, 9_000), of(7, 100)), (of(180, 1_800), of(120, 1_200)), (of(3, 10), of(1, 300))];
        let [control, treatment] = joined(&periods);
        assert_eq!(joined(&periods.map(|(control, treatment)| (treatment, control))), [treatment, control]);
    }
}

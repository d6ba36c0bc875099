//! What the tests need of special functions and statrs 0.19 cannot give where counts are large: its incomplete beta
//! function stops after 140 steps, differences of its ln Γ lose as many digits as the count has, and its quantiles stop
//! early.

use std::f64::consts::TAU;

use statrs::{
    distribution::{ContinuousCDF, Normal, StudentsT},
    function::gamma::ln_gamma,
};

/// Past it the tail of Student's distribution is taken from the normal one: statrs' own has lost half its digits at
/// 10^7.
const FREEDOM_EXACT_MAX: f64 = 1e5;
/// A number has 53 binary digits; the first bracket costs some.
const HALVINGS_MAX: u32 = 60;
/// From here on five terms of Stirling's series are exact to the last digit.
const STIRLING_SERIES_MIN: f64 = 16.0;
/// Within this share of each other, two numbers have a deviance that is the small difference of large ones.
const DEVIANCE_SERIES_MAX: f64 = 0.1;
/// A fraction needs some √trials steps, or 20 / √rate0 where nothing was hit: this is for rates down to 10^-7.
const FRACTION_STEPS_MAX: u32 = 100_000;

/// P(Z > z) for a standard normal Z.
pub fn normal_tail(z: f64) -> f64 {
    Normal::standard().sf(z)
}

/// The z with P(Z > z) = `tail`, for 0 < tail < 1.
pub fn normal_quantile(tail: f64) -> f64 {
    -Normal::standard().inverse_cdf(tail)
}

/// P(T > t) for Student's T; `freedom` above nought. For large ones z = t (1 − 1/4ν) / √(1 + t²/2ν), whose error falls
/// with ν² (Abramowitz and Stegun 26.7.8).
pub fn student_tail(t: f64, freedom: f64) -> f64 {
    match StudentsT::new(0.0, 1.0, freedom) {
        Ok(student) if freedom <= FREEDOM_EXACT_MAX => student.sf(t),
        _ => normal_tail(t * (1.0 - 0.25 / freedom) / (1.0 + t * t / (2.0 * freedom)).sqrt()),
    }
}

/// The t with P(T > t) = `tail`, for 0 < tail <= ½, by halving: statrs' own is 36 times too small for a tail of 10^-10
/// and one degree of freedom, and 7 % for the usual 0.025 and 10^7 of them.
pub fn student_quantile(tail: f64, freedom: f64) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    while student_tail(high, freedom) > tail && high < f64::MAX / 2.0 {
        (low, high) = (high, 2.0 * high);
    }
    for _ in 0..HALVINGS_MAX {
        let middle = low + (high - low) / 2.0;
        match student_tail(middle, freedom) > tail {
            true => low = middle,
            false => high = middle,
        }
    }
    low + (high - low) / 2.0
}

/// What Stirling's formula leaves of ln Γ(z): ln Γ(z) − (z − ½) ln z + z − ½ ln 2π, for z above nought.
pub fn stirling_error(z: f64) -> f64 {
    if z < STIRLING_SERIES_MIN {
        return ln_gamma(z) - (z - 0.5) * z.ln() + z - 0.5 * TAU.ln();
    }
    let square = z * z;
    (1.0 / 12.0 - (1.0 / 360.0 - (1.0 / 1260.0 - (1.0 / 1680.0 - 1.0 / (1188.0 * square)) / square) / square) / square)
        / z
}

/// x ln(x/m) + m − x, never below nought (Loader 2000, `bd0`).
pub fn deviance(x: f64, m: f64) -> f64 {
    if x == 0.0 {
        return m;
    }
    if (x - m).abs() >= DEVIANCE_SERIES_MAX * (x + m) {
        return x * (x / m).ln() + m - x;
    }
    // ln(x/m) = 2 artanh v, whose first terms meet m − x here without a difference of large numbers.
    let v = (x - m) / (x + m);
    let (mut sum, mut term) = ((x - m) * v, 2.0 * x * v);
    for odd in (3..).step_by(2) {
        term *= v * v;
        let next = sum + term / f64::from(odd);
        if next == sum {
            break;
        }
        sum = next;
    }
    sum
}

/// ln P(X = hits) for a binomial X, 0 < rate < 1 (Loader 2000, "Fast and accurate computation of binomial
/// probabilities").
pub fn ln_binomial(hits: u64, trials: u64, rate: f64) -> f64 {
    let (n, h, m) = (trials as f64, hits as f64, (trials - hits) as f64);
    if hits == 0 {
        return n * (-rate).ln_1p();
    }
    if hits == trials {
        return n * rate.ln();
    }
    let corrections = stirling_error(n) - stirling_error(h) - stirling_error(m);
    corrections - deviance(h, n * rate) - deviance(m, n * (1.0 - rate)) - 0.5 * (TAU * h * (m / n)).ln()
}

/// The continued fraction f of the incomplete beta function, ∫₀ˣ t^(a−1) (1−t)^(b−1) dt = xᵃ (1−x)ᵇ f / a (DLMF
/// 8.17.22), by Lentz's method. Quick where x < (a + 1) / (a + b + 2); a above nought, b not below it.
pub fn beta_fraction(a: f64, b: f64, x: f64) -> f64 {
    let guarded = |value: f64| if value.abs() < f64::MIN_POSITIVE { f64::MIN_POSITIVE } else { value };
    let mut c = 1.0;
    let mut d = 1.0 / guarded(1.0 - (a + b) * x / (a + 1.0));
    let mut fraction = d;
    for step in 1..FRACTION_STEPS_MAX {
        let m = f64::from(step);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let before = fraction;
        for coefficient in [even, odd] {
            d = 1.0 / guarded(1.0 + coefficient * d);
            c = guarded(1.0 + coefficient / c);
            fraction *= c * d;
        }
        if (fraction - before).abs() <= f64::EPSILON * fraction.abs() {
            break;
        }
    }
    fraction
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rollout::statistics::golden::{close, golden, number};

    #[test]
    fn students_distribution_is_that_of_scipy() {
        for case in golden()["student"].as_array().unwrap() {
            let (t, freedom, tail) = (number(&case["t"]), number(&case["freedom"]), number(&case["quantile_of"]));
            close("tail", student_tail(t, freedom), &case["tail"]);
            close("quantile", student_quantile(tail, freedom), &case["quantile"]);
        }
    }

    #[test]
    fn binomial_probabilities_keep_their_digits() {
        for case in golden()["binomial"].as_array().unwrap() {
            let (hits, trials) = (case["hits"].as_u64().unwrap(), case["trials"].as_u64().unwrap());
            close("ln pmf", ln_binomial(hits, trials, number(&case["rate"])), &case["ln_pmf"]);
        }
    }

    proptest! {
        #[test]
        fn a_quantile_has_its_tail(digits in -12.0..-0.31_f64, scale in 0.0..9.0_f64) {
            let (tail, freedom) = (10_f64.powf(digits), 10_f64.powf(scale));
            let again = student_tail(student_quantile(tail, freedom), freedom);
            prop_assert!((again - tail).abs() <= 1e-9 * tail, "{:e} {:e}", again, tail);
        }
    }

    #[test]
    fn stirlings_series_meets_the_logarithm() {
        let (below, above) = (stirling_error(STIRLING_SERIES_MIN - 1e-9), stirling_error(STIRLING_SERIES_MIN));
        assert!((below - above).abs() < 1e-12, "{below} {above}");
    }

    #[test]
    fn a_deviance_is_nought_only_at_its_mean() {
        assert_eq!(deviance(7.0, 7.0), 0.0);
        assert_eq!(deviance(0.0, 3.0), 3.0);
        assert!((deviance(1e7 + 1.0, 1e7) - 0.5e-7).abs() < 1e-14);
    }
}

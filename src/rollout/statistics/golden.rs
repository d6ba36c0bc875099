//! The values that scipy, statsmodels, scikit-learn and mpmath give for the same data; `tests/fixtures/statistics.py`
//! wrote them.

use serde_json::Value;

const FIXTURE: &str = include_str!("../../../tests/fixtures/statistics.json");
/// Relative where the value is above 1 in size, absolute below.
const TOLERANCE: f64 = 1e-9;

pub fn golden() -> Value {
    serde_json::from_str(FIXTURE).expect("the fixture is JSON")
}

/// Infinities are words in the fixture: JSON has none.
pub fn number(value: &Value) -> f64 {
    match value.as_str() {
        Some("inf") => f64::INFINITY,
        _ => value.as_f64().unwrap_or_else(|| panic!("{value} is no number")),
    }
}

#[track_caller]
pub fn close(what: &str, got: f64, expected: &Value) {
    let expected = number(expected);
    let near = (got - expected).abs() <= TOLERANCE * expected.abs().max(1.0);
    assert!(near || got == expected, "{what}: got {got:e}, expected {expected:e}");
}

/// For probabilities that are small: relative alone.
#[track_caller]
pub fn close_in_ratio(what: &str, got: f64, expected: &Value) {
    let expected = number(expected);
    assert!((got - expected).abs() <= TOLERANCE * expected.abs(), "{what}: got {got:e}, expected {expected:e}");
}

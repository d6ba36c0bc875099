//! The buckets of histograms.

use prometheus_client::metrics::histogram::Histogram;

/// 10 µs to 10 s, about three buckets a decade.
pub(super) fn seconds() -> Histogram {
    Histogram::new([
        10e-6, 25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 0.1, 0.25, 0.5, 1.0, 2.5,
        5.0, 10.0,
    ])
}

/// Tenths.
pub(super) fn shares() -> Histogram {
    Histogram::new((0..10).map(|tenths| f64::from(tenths) / 10.0))
}

/// 1 ms to a day.
pub(super) fn ages() -> Histogram {
    Histogram::new([1e-3, 10e-3, 0.1, 1.0, 10.0, 60.0, 300.0, 1800.0, 3600.0, 21_600.0, 86_400.0])
}

/// Powers of two to 1,024.
pub(super) fn rows() -> Histogram {
    Histogram::new((0..=10).map(|power| f64::from(1 << power)))
}

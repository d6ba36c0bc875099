//! What a run costs by its rows: learned in warm-up, corrected while serving.
//!
//! Pure but for one relaxed atomic, so that all cores share what each learns.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

/// Cost by rows: a broken line through the measured points, times a correction.
#[derive(Debug)]
pub struct Cost {
    /// (rows, microseconds), ascending by rows; at least one.
    points: Vec<(f64, f64)>,
    /// f32 bits: measured over predicted, smoothed. NaN until the first measurement of a version without points.
    correction: AtomicU32,
}

/// One new measurement moves the correction by this share: a page fault does not, a slower machine soon does.
const SMOOTHING: f32 = 0.05;
/// How far one measurement may lie from what was believed, as a factor: what lies beyond is a stall, not a cost.
const BELIEVED: std::ops::RangeInclusive<f32> = 0.1..=20.0;
/// What a version costs of which nothing is known: too much for an event loop.
const UNKNOWN: Duration = Duration::from_secs(1);

// === impl Cost ===

impl Cost {
    /// Without a point nothing is known until the first measurement.
    pub fn new(points: &[(usize, f64)]) -> Self {
        let mut points: Vec<(f64, f64)> = points
            .iter()
            .filter(|(rows, micros)| *rows > 0 && *micros > 0.0)
            .map(|&(rows, micros)| (rows as f64, micros))
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let correction: f32 = if points.is_empty() { f32::NAN } else { 1.0 };
        if points.is_empty() {
            points.push((1.0, 1.0));
        }
        Self { points, correction: AtomicU32::new(correction.to_bits()) }
    }

    /// The predicted time of one run of that many rows.
    pub fn predict(&self, rows: usize) -> Duration {
        let micros = self.measured(rows as f64) * self.correction();
        if micros.is_nan() { UNKNOWN } else { Duration::from_secs_f64(micros * 1e-6) }
    }

    /// The most rows, at most `rows_max`, whose run is predicted to fit into `budget`; 0 where not even one does.
    pub fn rows_within(&self, budget: Duration, rows_max: usize) -> usize {
        if self.predict(rows_max) <= budget {
            return rows_max;
        }
        let (mut fits, mut too_many) = (0, rows_max);
        while too_many - fits > 1 {
            let middle = fits + (too_many - fits) / 2;
            if self.predict(middle) <= budget {
                fits = middle;
            } else {
                too_many = middle;
            }
        }
        fits
    }

    /// Learns from one run.
    pub fn observe(&self, rows: usize, took: Duration) {
        let ratio = (took.as_secs_f64() * 1e6 / self.measured(rows as f64)) as f32;
        let old = f32::from_bits(self.correction.load(Ordering::Relaxed));
        let new = match old.is_nan() {
            true => ratio,
            false => old + SMOOTHING * (ratio.clamp(old * BELIEVED.start(), old * BELIEVED.end()) - old),
        };
        self.correction.store(new.to_bits(), Ordering::Relaxed);
    }

    fn correction(&self) -> f64 {
        f64::from(f32::from_bits(self.correction.load(Ordering::Relaxed)))
    }

    /// Before the correction. Beyond the last point the last slope holds; below the first the first point's share by row.
    fn measured(&self, rows: f64) -> f64 {
        let rows = rows.max(1.0);
        let after = self.points.partition_point(|&(at, _)| at < rows);
        let (low, high) = match after {
            0 => return self.points[0].1,
            end if end == self.points.len() && end == 1 => return self.points[0].1 * rows / self.points[0].0,
            end if end == self.points.len() => (self.points[end - 2], self.points[end - 1]),
            inside => (self.points[inside - 1], self.points[inside]),
        };
        // A measured dip is noise: more rows never cost less.
        let slope = ((high.1 - low.1) / (high.0 - low.0)).max(0.0);
        low.1 + slope * (rows - low.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn micros(cost: &Cost, rows: usize) -> f64 {
        cost.predict(rows).as_secs_f64() * 1e6
    }

    #[test]
    fn between_and_beyond_the_points() {
        let cost = Cost::new(&[(1, 10.0), (2, 12.0), (4, 16.0)]);
        for (rows, expected) in [(0, 10.0), (1, 10.0), (2, 12.0), (3, 14.0), (4, 16.0), (10, 28.0)] {
            assert!((micros(&cost, rows) - expected).abs() < 1e-3, "{rows} rows");
        }
        assert_eq!(cost.rows_within(Duration::from_micros(14), 64), 3);
        assert_eq!(cost.rows_within(Duration::from_micros(9), 64), 0);
        assert_eq!(cost.rows_within(Duration::from_secs(1), 64), 64);
    }

    #[test]
    fn one_point_is_a_share_a_row() {
        assert!((micros(&Cost::new(&[(1, 10.0)]), 8) - 80.0).abs() < 1e-3);
    }

    #[test]
    fn what_is_not_known_is_dear_until_it_was_measured_once() {
        let cost = Cost::new(&[]);
        assert_eq!(cost.predict(1), UNKNOWN);
        assert_eq!(cost.rows_within(Duration::from_millis(1), 64), 0);
        cost.observe(4, Duration::from_micros(8));
        assert!((micros(&cost, 2) - 4.0).abs() < 1e-3);
    }

    #[test]
    fn a_stall_hardly_moves_it_and_a_slower_machine_does() {
        let cost = Cost::new(&[(1, 10.0), (8, 80.0)]);
        cost.observe(1, Duration::from_millis(20));
        assert!(micros(&cost, 1) < 21.0);
        for _ in 0..200 {
            cost.observe(4, Duration::from_micros(120));
        }
        assert!((micros(&cost, 4) - 120.0).abs() < 1.0);
    }
}

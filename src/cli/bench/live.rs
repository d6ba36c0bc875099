//! A line on stderr that shows how a load goes. Only for people: where stderr is no terminal, nothing is written.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::generator::SoFar;

pub struct Live {
    bar: ProgressBar,
}

// === impl Live ===

impl Live {
    pub fn begin() -> Self {
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
            bar.set_style(style);
        }
        Self { bar }
    }

    pub fn show(&self, place: usize, count: usize, load: &str, so_far: &SoFar) {
        self.bar.set_message(format!("{place} of {count}, {load}: {}", line(so_far)));
        self.bar.tick();
    }

    pub fn end(&self) {
        self.bar.finish_and_clear();
    }
}

/// `7 s left, 12709/s, p99 115 µs, 3 failed`
fn line(so_far: &SoFar) -> String {
    let left = (so_far.left + Duration::from_millis(999)).as_secs();
    if so_far.warming_up {
        return format!("warming up, {left} s left");
    }
    let mut line = format!("{left} s left, {:.0}/s, p99 {} µs", so_far.per_s, so_far.p99.as_micros());
    for (count, what) in [(so_far.failed, "failed"), (so_far.dropped, "dropped")] {
        if count > 0 {
            line += &format!(", {count} {what}");
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_matters_now() {
        let mut so_far = SoFar {
            left: Duration::from_millis(6_100),
            warming_up: false,
            per_s: 12_709.4,
            p99: Duration::from_micros(115),
            failed: 3,
            dropped: 0,
        };
        assert_eq!(line(&so_far), "7 s left, 12709/s, p99 115 µs, 3 failed");
        so_far.warming_up = true;
        assert_eq!(line(&so_far), "warming up, 7 s left");
    }
}

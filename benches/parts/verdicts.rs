//! What was promised, what came, and whether that is enough.

use serde::Serialize;

/// Of one run, in the order in which they were given.
#[derive(Debug, Default, Serialize)]
pub struct Verdicts(Vec<Verdict>);

#[derive(Debug, Serialize)]
struct Verdict {
    promise: String,
    /// Of which model, or under which load.
    place: String,
    value: f64,
    limit: f64,
    /// Whether more than the limit is what is wanted.
    at_least: bool,
    kept: bool,
}

// === impl Verdicts ===

impl Verdicts {
    pub fn at_most(&mut self, promise: &str, place: &str, value: f64, limit: f64) {
        self.add(promise, place, (value, limit), false);
    }

    pub fn at_least(&mut self, promise: &str, place: &str, value: f64, limit: f64) {
        self.add(promise, place, (value, limit), true);
    }

    /// What is no number keeps no promise.
    fn add(&mut self, promise: &str, place: &str, (value, limit): (f64, f64), at_least: bool) {
        let kept = if at_least { value >= limit } else { value <= limit };
        self.0.push(Verdict { promise: promise.into(), place: place.into(), value, limit, at_least, kept });
    }

    /// As Markdown, one a line; nothing where nothing was promised.
    pub fn text(&self) -> String {
        if self.0.is_empty() {
            return String::new();
        }
        let widest = |text: fn(&Verdict) -> &str, head: &str| {
            self.0.iter().map(|verdict| text(verdict).chars().count()).max().unwrap_or(0).max(head.len())
        };
        let (promises, places) =
            (widest(|verdict| &verdict.promise, "promise"), widest(|verdict| &verdict.place, "where"));
        let mut text = format!(
            "\n|      | {:promises$} | {:places$} |      is |            |\n|---|---|---|--:|--:|\n",
            "promise", "where"
        );
        for Verdict { promise, place, value, limit, at_least, kept } in &self.0 {
            let word = if *kept { "PASS" } else { "MISS" };
            let side = if *at_least { '≥' } else { '≤' };
            text +=
                &format!("| {word} | {promise:promises$} | {place:places$} | {value:>7.2} | {side} {limit:>8.2} |\n");
        }
        text
    }
}

//! Outcomes that came lately, so that one that is sent again, because its answer was lost, is counted once.

use std::collections::{HashSet, VecDeque};

/// Fingerprints of the last ones.
#[derive(Default)]
pub struct Window {
    known: HashSet<u64>,
    /// The oldest first.
    order: VecDeque<u64>,
}

pub const OUTCOMES_MAX: usize = 65_536;

// === impl Window ===

impl Window {
    /// Whether it is new.
    pub fn note(&mut self, fingerprint: u64) -> bool {
        if !self.known.insert(fingerprint) {
            return false;
        }
        self.order.push_back(fingerprint);
        if self.order.len() > OUTCOMES_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_known_and_no_more() {
        let mut window = Window::default();
        assert!((0..OUTCOMES_MAX as u64).all(|number| window.note(number)));
        assert!(!window.note(0) && !window.note(7));
        assert!(window.note(u64::MAX));
        assert!(window.note(0), "it was the oldest");
        assert!(!window.note(2), "1 went for it");
        assert_eq!(window.known.len(), OUTCOMES_MAX);
    }
}

//! How long a version stays loaded after a higher one took its place. Pure; the time is an argument.

use std::time::{Duration, Instant};

/// Of one version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Retention {
    /// It is aspired, or no higher one took its place.
    #[default]
    No,
    /// Since a higher one took its place.
    Since(Instant),
    /// It was told to go, for memory was short.
    Released,
}

// === impl Retention ===

impl Retention {
    /// `superseded`: it serves, nothing asks for it any more, and a higher version that is asked for serves.
    pub fn update(&mut self, aspired: bool, superseded: bool, now: Instant) {
        match self {
            _ if aspired => *self = Self::No,
            Self::No if superseded => *self = Self::Since(now),
            _ => {}
        }
    }

    pub fn holds(self, keep: Duration, now: Instant) -> bool {
        self.ends(keep).is_some_and(|end| now < end)
    }

    pub fn since(self) -> Option<Instant> {
        match self {
            Self::Since(since) => Some(since),
            Self::No | Self::Released => None,
        }
    }

    /// `None` where it is not kept, or for longer than anybody can count.
    pub fn ends(self, keep: Duration) -> Option<Instant> {
        self.since()?.checked_add(keep)
    }

    pub fn release(&mut self) {
        *self = Self::Released;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn it_holds_from_the_moment_a_higher_one_took_over() {
        let now = Instant::now();
        let mut retention = Retention::default();
        retention.update(false, false, now);
        assert!(!retention.holds(HOUR, now), "the higher one is still loading");
        retention.update(false, true, now);
        retention.update(false, true, now + HOUR / 2);
        assert!(retention.holds(HOUR, now + HOUR / 2));
        assert!(!retention.holds(HOUR, now + HOUR));
        assert!(!retention.holds(Duration::ZERO, now), "unless somebody asks for it, nothing is kept");
    }

    #[test]
    fn what_is_aspired_again_begins_anew_and_what_was_released_does_not_come_back() {
        let now = Instant::now();
        let mut retention = Retention::Since(now);
        retention.release();
        retention.update(false, true, now);
        assert!(!retention.holds(HOUR, now));
        retention.update(true, false, now);
        retention.update(false, true, now + HOUR);
        assert_eq!(retention.ends(HOUR), Some(now + 2 * HOUR));
    }
}

//! Who gets the traffic of one model, with all that a pick needs at hand: what a route, the versions that are ready and their
//! signatures come to.

use std::sync::Arc;

use super::VersionEntry;
use crate::{
    error::Error,
    model::{Fit, ModelName, Route, Rule, SLOTS, Slot, Sticky, Version, fit, slots_by_weight},
    monitor::{Cell, Key, SHADOW, STABLE, Scoreboard},
    runtime::Servable,
};

/// Of one model, while one revision of its route holds.
pub struct Traffic {
    /// What is not given to anybody else is stable's.
    pub stable: Arc<Cell>,
    pub arms: Vec<Arm>,
    /// The arm of each slot, and one more than there are for stable; empty where stable has all.
    slots: Box<[u8]>,
    pub sticky: Option<Sticky>,
    pub rules: Vec<Rule>,
    /// Apart from each other, so that whoever asks one holds no other version.
    pub shadows: Vec<Arc<ShadowArm>>,
}

/// A variant.
pub struct Arm {
    pub name: Arc<str>,
    pub version: Version,
    /// In percent.
    pub weight: f64,
    pub standing: Standing,
    pub cell: Arc<Cell>,
}

/// Whether a variant answers here.
pub enum Standing {
    Answers(Arc<Servable>, Fit),
    /// It is loading, failed, or is not in the store.
    Unready,
    /// Stable's callers cannot be answered by it.
    Incompatible(Error),
}

/// A version that is asked as well.
pub struct ShadowArm {
    pub version: Version,
    /// In slots: of as many draws so many are asked as well.
    pub sample: Slot,
    /// `None` while it is not ready here.
    pub servable: Option<Arc<Servable>>,
    pub cell: Arc<Cell>,
}

// === impl Traffic ===

impl Traffic {
    /// `find` gives what is known of a version.
    pub fn new<'a>(
        model: &ModelName,
        (route, revision): (&Route, u64),
        stable: Option<Version>,
        find: impl Fn(Version) -> Option<&'a VersionEntry>,
        scoreboard: &Scoreboard,
    ) -> Self {
        let cell =
            |variant: &str, version| scoreboard.cell(model, &Key { revision, variant: variant.to_owned(), version });
        let stables = stable.and_then(&find).and_then(VersionEntry::signature);
        let arms = route.variants.iter().map(|variant| {
            let known = find(variant.version);
            let standing = match (known.and_then(|known| known.servable.as_ref()), stables) {
                (Some(servable), Some(stable)) => match fit(servable.signature(), stable) {
                    Ok(fit) => Standing::Answers(servable.clone(), fit),
                    Err(error) => Standing::Incompatible(error),
                },
                _ => Standing::Unready,
            };
            Arm {
                name: variant.name.as_str().into(),
                version: variant.version,
                weight: variant.weight,
                standing,
                cell: cell(&variant.name, variant.version),
            }
        });
        let shadows = route.shadow.iter().map(|shadow| {
            Arc::new(ShadowArm {
                version: shadow.version,
                sample: (shadow.sample * SLOTS as f64 / 100.0).round() as Slot,
                servable: find(shadow.version).and_then(|known| known.servable.clone()),
                cell: cell(SHADOW, shadow.version),
            })
        });
        Self {
            // As long as nobody is stable, nobody answers.
            stable: stable.map_or_else(Arc::default, |version| cell(STABLE, version)),
            arms: arms.collect(),
            slots: table(route),
            sticky: route.sticky.clone(),
            rules: route.rules.clone(),
            shadows: shadows.collect(),
        }
    }

    /// Of a model of which nothing is known.
    pub fn nothing() -> Self {
        Self {
            stable: Arc::default(),
            arms: Vec::new(),
            slots: Box::default(),
            sticky: None,
            rules: Vec::new(),
            shadows: Vec::new(),
        }
    }

    /// Whether stable has all there is to give.
    pub fn is_plain(&self) -> bool {
        self.slots.is_empty() && self.rules.is_empty()
    }

    /// Whether anybody shares the slots with stable.
    pub fn is_split(&self) -> bool {
        !self.slots.is_empty()
    }

    /// The arm that has the slot; `None` is stable.
    pub fn arm(&self, slot: Slot) -> Option<&Arm> {
        let arm = self.slots.get(usize::from(slot))?;
        self.arms.get(usize::from(*arm))
    }
}

/// By slot. A route was checked when it was read, so the shares fit.
fn table(route: &Route) -> Box<[u8]> {
    let slots = slots_by_weight(&route.variants, 0).unwrap_or_default();
    if slots.iter().all(|slots| slots.is_empty()) {
        return Box::default();
    }
    let mut table = vec![u8::MAX; SLOTS];
    for (arm, slots) in slots.iter().enumerate() {
        for slot in slots.iter() {
            table[usize::from(slot)] = arm as u8;
        }
    }
    table.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::slot_of;

    fn traffic(yaml: &str) -> Traffic {
        let route = Route::parse(yaml).expect("a route");
        let model = ModelName::new("m").expect("a name");
        Traffic::new(&model, (&route, 1), Some(Version::new(1, 0, 0)), |_| None, &Scoreboard::default())
    }

    /// Chi-square of how many of a million fell to each arm; stable is the last.
    fn chi_square(traffic: &Traffic, slots: impl Iterator<Item = Slot>) -> f64 {
        let mut counts = vec![0u32; traffic.arms.len() + 1];
        let place = |name: &str| traffic.arms.iter().position(|arm| *arm.name == *name);
        let mut picks = 0.0;
        for slot in slots {
            counts[traffic.arm(slot).and_then(|arm| place(&arm.name)).unwrap_or(traffic.arms.len())] += 1;
            picks += 1.0;
        }
        let given: f64 = traffic.arms.iter().map(|arm| arm.weight).sum();
        let weights = traffic.arms.iter().map(|arm| arm.weight).chain([100.0 - given]);
        let expected = weights.map(|weight| weight / 100.0 * picks);
        counts.iter().zip(expected).map(|(count, expected)| (f64::from(*count) - expected).powi(2) / expected).sum()
    }

    #[test]
    fn a_million_picks_fall_by_the_weights() {
        let traffic = traffic(
            "variants: [{name: a, version: 2, weight: 5}, {name: b, version: 3, weight: 0.5}, {name: c, version: 4, weight: 30}]",
        );
        // Three degrees of freedom: 21.1 is passed once in 10,000 tries, and the seeds are fixed.
        let mut random = fastrand::Rng::with_seed(7);
        let draws = chi_square(&traffic, (0..1_000_000).map(|_| random.u16(..SLOTS as u16)));
        assert!(draws < 21.1, "{draws}");
        let keys = chi_square(&traffic, (0..1_000_000).map(|key| slot_of("m", "", &format!("caller-{key}"))));
        assert!(keys < 21.1, "{keys}");
    }

    #[test]
    fn a_plain_route_gives_stable_all() {
        let plain = traffic("variants: [{name: a, version: 2, weight: 0}]");
        assert!(plain.is_plain() && plain.arm(17).is_none());
        assert!(!traffic("rules: [{attribute: a, equals: b, version: 2}]").is_plain());
    }
}

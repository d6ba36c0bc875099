//! Slots: the ten thousand places that a model's callers fall into, and which of them a variant has.
//!
//! A caller's slot is a hash of its key, the same on every replica and after every restart. What a variant has is written in
//! route.yaml; a changed weight takes slots from stable or gives them back, so nobody moves from one variant to another.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use xxhash_rust::xxh3::xxh3_64;

use crate::error::{Error, Result};

/// One of [`SLOTS`].
pub type Slot = u16;

/// A hundredth of a percent each.
pub const SLOTS: usize = 10_000;

/// A set of slots, written as ranges: `9800-9999,0-299`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slots {
    /// Apart from each other, in the order in which they were taken; both ends belong to it.
    ranges: Vec<(Slot, Slot)>,
}

/// XXH3-64 of `model NUL salt NUL key`, modulo 10,000. Names of models and salts hold no NUL, so no two callers are joined by
/// where one word ends. tests/fixtures/slots.json holds vectors for other languages.
pub fn slot_of(model: &str, salt: &str, key: &str) -> Slot {
    let mut text = smallvec::SmallVec::<[u8; 256]>::new();
    for (place, part) in [model, salt, key].iter().enumerate() {
        if place > 0 {
            text.push(0);
        }
        text.extend_from_slice(part.as_bytes());
    }
    (xxh3_64(&text) % SLOTS as u64) as Slot
}

/// Gives each variant as many slots as it wants, keeping what it has: surplus goes back to stable, the last that came first; what
/// is missing is taken from stable, beginning after the last that it has, or at `begin` where it has none, round the end. What another
/// had is taken only where nothing else is left, so nobody moves from one variant to another.
///
/// INVALID_ARGUMENT where two variants have the same slot or all together want more than there are.
pub fn allot(variants: &[(&Slots, usize)], begin: Slot) -> Result<Vec<Slots>> {
    let wanted: usize = variants.iter().map(|(_, count)| count).sum();
    if wanted > SLOTS {
        return Err(Error::invalid("INVALID_ROUTE", "the variants' weights are more than 100 together"));
    }
    let mut owned = vec![false; SLOTS];
    for slot in variants.iter().flat_map(|(has, _)| has.iter()) {
        if std::mem::replace(&mut owned[usize::from(slot)], true) {
            return Err(Error::invalid("INVALID_ROUTE", format!("slot {slot} belongs to two variants")));
        }
    }
    let owned_before = owned.clone();
    let mut kept: Vec<Vec<Slot>> = Vec::with_capacity(variants.len());
    for (has, count) in variants {
        let mut slots: Vec<Slot> = has.iter().collect();
        for slot in slots.drain((*count).min(slots.len())..) {
            owned[usize::from(slot)] = false;
        }
        kept.push(slots);
    }
    for (slots, (_, count)) in kept.iter_mut().zip(variants) {
        let from = slots.last().map_or(usize::from(begin), |last| usize::from(*last) + 1);
        let missing = *count - slots.len();
        let round = || (0..SLOTS).map(|step| (from + step) % SLOTS);
        let stables = round().filter(|slot| !owned_before[*slot] && !owned[*slot]);
        let given_back = round().filter(|slot| owned_before[*slot] && !owned[*slot]);
        let taken: Vec<usize> = stables.chain(given_back).take(missing).collect();
        for slot in taken {
            owned[slot] = true;
            slots.push(slot as Slot);
        }
    }
    Ok(kept.into_iter().map(Slots::of).collect())
}

// === impl Slots ===

impl Slots {
    fn of(slots: Vec<Slot>) -> Self {
        let mut ranges: Vec<(Slot, Slot)> = Vec::new();
        for slot in slots {
            match ranges.last_mut() {
                Some((_, end)) if *end + 1 == slot => *end = slot,
                _ => ranges.push((slot, slot)),
            }
        }
        Self { ranges }
    }

    pub fn len(&self) -> usize {
        self.ranges.iter().map(|(start, end)| usize::from(end - start) + 1).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// In the order in which they were taken.
    pub fn iter(&self) -> impl Iterator<Item = Slot> {
        self.ranges.iter().flat_map(|(start, end)| *start..=*end)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut ranges: Vec<(Slot, Slot)> = Vec::new();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (start, end) = part.split_once('-').unwrap_or((part, part));
            let (start, end) = (start.trim().parse().ok()?, end.trim().parse().ok()?);
            let apart = ranges.iter().all(|(first, last)| end < *first || *last < start);
            if start > end || usize::from(end) >= SLOTS || !apart {
                return None;
            }
            ranges.push((start, end));
        }
        Some(Self { ranges })
    }
}

impl fmt::Display for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (start, end)) in self.ranges.iter().enumerate() {
            let comma = if place > 0 { "," } else { "" };
            match start == end {
                true => write!(f, "{comma}{start}")?,
                false => write!(f, "{comma}{start}-{end}")?,
            }
        }
        Ok(())
    }
}

impl Serialize for Slots {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Slots {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = match serde_yaml_ng::Value::deserialize(deserializer)? {
            serde_yaml_ng::Value::String(text) => text,
            serde_yaml_ng::Value::Number(number) => number.to_string(),
            _ => String::from("?"),
        };
        Self::parse(&text).ok_or_else(|| {
            de::Error::custom("slots are ranges of 0 to 9999, apart from each other, e.g. \"0-499,1200\"")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_slots_of_other_languages_are_ours() {
        #[derive(Deserialize)]
        struct Vector {
            model: String,
            salt: String,
            key: String,
            slot: Slot,
        }
        let text = include_str!("../../tests/fixtures/slots.json");
        let vectors: Vec<Vector> = serde_json::from_str(text).expect("a list of vectors");
        assert!(vectors.len() >= 20);
        for Vector { model, salt, key, slot } in vectors {
            assert_eq!(slot_of(&model, &salt, &key), slot, "{model} {salt} {key}");
        }
    }

    #[test]
    fn slots_are_read_as_they_are_written() {
        for text in ["", "0", "0-9999", "0-499,1200,9999", "9800-9999,0-299"] {
            assert_eq!(Slots::parse(text).expect("slots").to_string(), text);
        }
        for text in ["10000", "5-4", "1-3,2", "a", "1-", "-1", "3,3"] {
            assert_eq!(Slots::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_slot_of_two_and_a_weight_of_more_than_all_are_refused() {
        let slots = |text| Slots::parse(text).expect("slots");
        let (one, two) = (slots("0-9"), slots("9-10"));
        assert!(allot(&[(&one, 10), (&two, 2)], 0).is_err());
        assert!(allot(&[(&one, 6_000), (&slots(""), 4_001)], 0).is_err());
    }

    proptest! {
        #[test]
        fn a_changed_weight_only_takes_from_stable_or_gives_back(
            weights in proptest::collection::vec(proptest::collection::vec(0usize..=1_250, 4), 1..6),
            begin in 0u16..10_000,
        ) {
            let mut slots = vec![Slots::default(); 4];
            for counts in weights {
                let asked: Vec<(&Slots, usize)> = slots.iter().zip(counts.iter().copied()).collect();
                let next = allot(&asked, begin).expect("there is room");
                let mut owners = vec![0usize; SLOTS];
                for ((before, after), count) in slots.iter().zip(&next).zip(&counts) {
                    prop_assert_eq!(after.len(), *count);
                    after.iter().for_each(|slot| owners[usize::from(slot)] += 1);
                    let (had, has): (Vec<Slot>, Vec<Slot>) = (before.iter().collect(), after.iter().collect());
                    // Whoever was there stays, unless the variant shrank; whoever came was with stable.
                    let (fewer, more) = if had.len() <= has.len() { (&had, &has) } else { (&has, &had) };
                    prop_assert!(fewer.iter().all(|slot| more.contains(slot)));
                }
                // A quarter each at most: there is always room beside what others had.
                for (place, after) in next.iter().enumerate() {
                    let others = slots.iter().enumerate().filter(|(other, _)| *other != place);
                    let had: std::collections::HashSet<Slot> = others.flat_map(|(_, slots)| slots.iter()).collect();
                    prop_assert!(after.iter().all(|slot| !had.contains(&slot)), "a caller moved between variants");
                }
                prop_assert!(owners.iter().all(|count| *count <= 1));
                let again: Vec<(&Slots, usize)> = next.iter().zip(counts.iter().copied()).collect();
                prop_assert_eq!(&allot(&again, begin).expect("there is room"), &next, "it is stable");
                slots = next;
            }
        }

        #[test]
        fn who_came_with_a_larger_share_goes_first_with_a_smaller_one(
            few in 0usize..5_000, more in 0usize..5_000, begin in 0u16..10_000,
        ) {
            let small = allot(&[(&Slots::default(), few)], begin).expect("there is room");
            let large = allot(&[(&small[0], few + more)], begin).expect("there is room");
            prop_assert_eq!(allot(&[(&large[0], few)], begin).expect("there is room"), small);
        }

        #[test]
        fn keys_fall_evenly(salt in "[a-z]{0,4}") {
            let mut tenths = [0u32; 10];
            for key in 0..20_000 {
                tenths[usize::from(slot_of("early-signal", &salt, &format!("customer-{key}"))) / 1_000] += 1;
            }
            // Chi-square with 9 degrees of freedom: beyond 40 once in 130,000 salts.
            let chi: f64 = tenths.iter().map(|count| (f64::from(*count) - 2_000.0).powi(2) / 2_000.0).sum();
            prop_assert!(chi < 40.0, "{tenths:?}");
        }
    }
}

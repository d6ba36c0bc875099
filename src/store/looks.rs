//! What one look after the other lets us believe: the last good listing, and what is gone from it only once so far.

use std::{collections::HashSet, io, sync::Arc};

use super::layout::StoreListing;
use crate::model::{ModelName, Version};

/// The listing that holds. Both scanners, of folders and of buckets, hand their looks to it.
#[derive(Default)]
pub(super) struct Looks {
    last: Arc<StoreListing>,
    /// What was gone at the last look, which is not enough to believe it.
    gone_once: HashSet<(ModelName, Part)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Part {
    Whole,
    /// Somebody may be writing it this moment.
    Route,
    Version(Version),
}

// === impl Looks ===

impl Looks {
    pub fn last(&self) -> &Arc<StoreListing> {
        &self.last
    }

    /// Whether something was gone at the last look, so that another one is due to confirm it.
    pub fn is_doubtful(&self) -> bool {
        !self.gone_once.is_empty()
    }

    /// Takes a whole look. What was there before and is gone now stays in the listing until a second look confirms it; a
    /// look that shows no model at all, where there were some, is an error.
    pub fn take(&mut self, seen: StoreListing) -> io::Result<Arc<StoreListing>> {
        if seen.models.is_empty() && !self.last.models.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "the store shows no model at all; what is loaded stays",
            ));
        }
        let listing = Arc::new(self.with_doubtful(seen));
        if !listing.is_same(&self.last) {
            self.last = listing;
        }
        Ok(self.last.clone())
    }

    /// Adds what is gone for the first time.
    fn with_doubtful(&mut self, mut seen: StoreListing) -> StoreListing {
        let before = std::mem::take(&mut self.gone_once);
        let mut doubt = |model: &ModelName, part: Part| {
            let key = (model.clone(), part);
            let first = !before.contains(&key);
            if first {
                self.gone_once.insert(key);
            }
            first
        };
        for (name, old) in &self.last.models {
            let Some(new) = seen.models.get_mut(name) else {
                if doubt(name, Part::Whole) {
                    seen.models.insert(name.clone(), old.clone());
                }
                continue;
            };
            let gone = old
                .versions
                .iter()
                .filter(|(number, _)| !new.versions.contains_key(number))
                .filter(|(number, _)| doubt(name, Part::Version(**number)));
            let gone: Vec<_> = gone.map(|(number, folder)| (*number, folder.clone())).collect();
            if !gone.is_empty() {
                Arc::make_mut(new).versions.extend(gone);
            }
            if new.has_lost_route_of(old) && doubt(name, Part::Route) {
                Arc::make_mut(new).route_yaml.clone_from(&old.route_yaml);
            }
            if new.is_same(old) {
                *new = old.clone();
            }
        }
        seen
    }
}

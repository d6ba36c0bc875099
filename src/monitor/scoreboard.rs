//! All cells of this replica, by model.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};

use super::{Cell, Tally};
use crate::model::{ModelName, Version};

/// Where the cells are found. Cheap to clone. Not on the path of a request: the catalog holds the cells of the routes in force.
#[derive(Clone, Default)]
pub struct Scoreboard(Arc<Mutex<HashMap<ModelName, Cells>>>);

type Cells = BTreeMap<Key, Arc<Cell>>;

/// Which counts these are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// Of route.yaml.
    pub revision: u64,
    pub variant: String,
    pub version: Version,
}

/// Of one model: those of the latest revisions, with what was counted before in the oldest of them.
const CELLS_MAX: usize = 512;

// === impl Scoreboard ===

impl Scoreboard {
    /// The one cell of those counts, from the first time on that somebody asks for it.
    pub fn cell(&self, model: &ModelName, key: &Key) -> Arc<Cell> {
        let mut models = self.models();
        let cells = models.entry(model.clone()).or_default();
        if let Some(cell) = cells.get(key) {
            return cell.clone();
        }
        if cells.len() >= CELLS_MAX {
            fold_oldest(cells);
        }
        cells.entry(key.clone()).or_default().clone()
    }

    /// What is counted of a model, by revision.
    pub fn read(&self, model: &ModelName) -> Vec<(Key, Tally)> {
        self.cells(model).into_iter().map(|(key, cell)| (key, cell.read())).collect()
    }

    pub fn cells(&self, model: &ModelName) -> Vec<(Key, Arc<Cell>)> {
        let models = self.models();
        let cells = models.get(model).into_iter().flatten();
        cells.map(|(key, cell)| (key.clone(), cell.clone())).collect()
    }

    /// The models that anything is counted of.
    pub fn known(&self) -> Vec<ModelName> {
        self.models().keys().cloned().collect()
    }

    /// Maps are whole after each step, so a panic elsewhere is no reason to stop counting.
    fn models(&self) -> MutexGuard<'_, HashMap<ModelName, Cells>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The oldest counts go into the next ones of the same variant and version, so that no outcome is lost. Where there are none,
/// nobody compares that version any more.
fn fold_oldest(cells: &mut Cells) {
    let Some((gone, counts)) = cells.pop_first() else { return };
    let mut later = cells.iter().filter(|(key, _)| key.variant == gone.variant && key.version == gone.version);
    if let Some((_, next)) = later.next()
        && counts.changes() > 0
    {
        next.restore(&counts.read());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::Outcome;

    fn key(revision: u64) -> Key {
        Key { revision, variant: "canary".into(), version: Version::new(1, 1, 0) }
    }

    #[test]
    fn a_cell_is_one_whoever_asks_and_the_oldest_revisions_go_first() {
        let (board, model) = (Scoreboard::default(), ModelName::new("m").expect("a name"));
        for revision in 0..CELLS_MAX as u64 + 3 {
            board.cell(&model, &key(revision)).assign();
        }
        board.cell(&model, &key(100)).assign();
        let read = board.read(&model);
        assert_eq!((read.len(), read[0].0.revision), (CELLS_MAX, 3));
        assert_eq!(read[0].1.assigned, 4, "those before went into it");
        assert_eq!(read.iter().map(|(_, tally)| tally.assigned).sum::<u64>(), CELLS_MAX as u64 + 4);
        board.cell(&model, &key(0)).assign();
        board.cell(&model, &key(1)).assign();
        let read = board.read(&model);
        assert_eq!(read.iter().map(|(_, tally)| tally.assigned).sum::<u64>(), CELLS_MAX as u64 + 6, "and late ones");
    }

    #[test]
    fn what_was_counted_before_a_restart_is_counted_on_from() {
        let (board, model) = (Scoreboard::default(), ModelName::new("m").expect("a name"));
        let cell = board.cell(&model, &key(1));
        cell.assign();
        cell.answer(std::time::Duration::from_millis(3), false);
        cell.credit(0.8, &Outcome { label: Some(1.0), ..Outcome::default() });
        let text = serde_json::to_string(&cell.read()).expect("plain data");
        let again = Cell::default();
        again.restore(&serde_json::from_str(&text).expect("as it was written"));
        again.fail();
        let tally = again.read();
        assert_eq!((tally.assigned, tally.answered, tally.errors, tally.non_finite), (1, 1, 1, 1));
        assert_eq!((tally.latency.count(), tally.outcomes.count, tally.error_rate()), (1, 1, Some(0.5)));
    }
}

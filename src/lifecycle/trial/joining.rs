//! Whether requests may be joined: run alone and run together, do they answer the same?
//!
//! A free first dimension is not enough. An LSTM that is sequence-first takes joined requests for one longer sequence, and
//! says nothing.

use super::{Source, Trial, compare, rows};
use crate::model::{Parameters, Tensor};

/// What the joined runs showed.
enum Joining {
    Equal,
    Differ(String),
    Unknown(&'static str),
}

// === impl Trial ===

impl Trial<'_> {
    /// Whether, and why, in words for operators.
    pub(super) fn judge_joining(&mut self, sources: &[Source]) -> (bool, String) {
        if !self.manifest.batching {
            return (false, "model.yaml says batching: off".into());
        }
        if !self.signature.batches() {
            let reason = "an input or output has no free first dimension";
            return (false, reason.into());
        }
        match self.manifest.joinable {
            Some(true) => return (true, "model.yaml vouches for joining (batching.joinable)".into()),
            Some(false) => return (false, "model.yaml forbids joining (batching.joinable)".into()),
            None => {}
        }
        let mut shown = false;
        let mut unknown = "no input could be made up that it takes";
        for source in sources {
            match self.join(source) {
                Joining::Equal => shown = true,
                Joining::Differ(how) => return (false, how),
                Joining::Unknown(why) => unknown = why,
            }
        }
        match shown {
            true => (true, "joined requests answered as each alone".into()),
            false => (false, format!("not shown that joined requests answer as each alone: {unknown}")),
        }
    }

    /// Runs requests alone and joined, several times over. One round that counted is enough when time is short.
    fn join(&mut self, source: &Source) -> Joining {
        const ROUNDS: [[usize; 3]; 4] = [[1, 2, 3], [4, 1, 2], [2, 2, 1], [1, 1, 1]];
        let mut telling = false;
        for (seed, sizes) in (1u64..).zip(ROUNDS) {
            if telling && self.time_is_up() {
                break;
            }
            let mut next_row = 0;
            let requests: Vec<Vec<Tensor>> = sizes
                .iter()
                .zip(0..)
                .map(|(&rows, place)| {
                    let inputs = source.request(self.signature, rows, next_row, seed * 100 + place, seed);
                    next_row += rows;
                    inputs
                })
                .collect();
            match self.round(&requests, &sizes) {
                Joining::Equal => telling = true,
                Joining::Unknown(_) => {}
                differ => return differ,
            }
        }
        match telling {
            true => Joining::Equal,
            false => Joining::Unknown("its answers to made-up inputs tell nothing apart"),
        }
    }

    fn round(&mut self, requests: &[Vec<Tensor>], sizes: &[usize]) -> Joining {
        let none = Parameters::default();
        let mut alone = Vec::with_capacity(requests.len());
        for inputs in requests {
            match self.run(inputs, &none) {
                Ok(outputs) => alone.push(outputs),
                Err(_) => return Joining::Unknown("it refuses inputs that were made up"),
            }
        }
        let joined_inputs = rows::join_inputs(self.signature, requests);
        let joined = match self.run(&joined_inputs, &none) {
            Ok(outputs) => outputs,
            Err(_) => return Joining::Differ("joined requests were refused that ran alone".into()),
        };
        let telling = alone.windows(2).any(|pair| compare::tells_apart(&pair[0], &pair[1]));
        match rows::compare_joined(&joined, &alone, sizes) {
            Err(how) => Joining::Differ(how),
            Ok(()) if telling => Joining::Equal,
            Ok(()) => Joining::Unknown("its answers are all the same"),
        }
    }
}

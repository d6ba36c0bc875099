//! Whether requests may be padded: filled up and run together, do they answer as each alone at its own length?
//!
//! A model that takes the mean over its whole length, or attends to what is filled in, does not; nothing in its file says so.

use bytes::Bytes;

use super::{Source, Trial, compare, rows};
use crate::model::{Parameters, Shape, Signature, Tensor, cut};

/// What padded runs showed.
enum Padding {
    Equal,
    Differ(String),
    Unknown(&'static str),
}

/// How many rows the requests have that are padded to one size.
const ROWS: [usize; 3] = [1, 2, 1];

// === impl Trial ===

impl Trial<'_> {
    /// Whether, and why, as the end of the sentence that says so of joining; nothing where no input is to be padded.
    pub(super) fn judge_padding(&mut self, sources: &[Source], joinable: bool) -> (bool, String) {
        if !self.signature.pads() {
            return (false, String::new());
        }
        if !joinable {
            return (false, "; so nothing is padded".into());
        }
        if self.manifest.joinable == Some(true) {
            return (true, ", and for padding".into());
        }
        let mut shown = false;
        let mut unknown = "no input could be made up that it takes";
        for source in sources {
            match self.pad(source) {
                Padding::Equal => shown = true,
                Padding::Differ(how) => return (false, format!("; they are not padded: {how}")),
                Padding::Unknown(why) => unknown = why,
            }
        }
        match shown {
            true => (true, ", padded ones, too".into()),
            false => (false, format!("; they are not padded, for it is not shown that the answers stay: {unknown}")),
        }
    }

    /// A round for each size, the smallest first. One that counted is enough when time is short.
    fn pad(&mut self, source: &Source) -> Padding {
        let mut telling = false;
        let sizes = self.signature.inputs.iter().find_map(|spec| spec.pad.as_ref()).map(|pad| pad.to.clone());
        let mut below = 0;
        for (size, seed) in sizes.unwrap_or_default().into_iter().zip(1u64..) {
            if telling && self.time_is_up() {
                break;
            }
            match self.padded_round(source, below + 1, size, seed) {
                Padding::Equal => telling = true,
                Padding::Unknown(_) => {}
                differ => return differ,
            }
            below = size;
        }
        match telling {
            true => Padding::Equal,
            false => Padding::Unknown("its answers to made-up inputs tell nothing apart"),
        }
    }

    /// Three requests whose lengths all become `size`: the shortest such, one between, and the size itself.
    fn padded_round(&mut self, source: &Source, shortest: usize, size: usize, seed: u64) -> Padding {
        let none = Parameters::default();
        let lengths = [shortest, usize::midpoint(shortest, size), size];
        let requests: Vec<Vec<Tensor>> = lengths
            .iter()
            .zip(ROWS)
            .zip(0..)
            .map(|((length, rows), place)| {
                let first_row = usize::try_from(place).unwrap_or_default();
                source.at_length(self.signature, *length, rows, first_row, seed * 100 + place, seed)
            })
            .collect();
        let mut alone = Vec::with_capacity(requests.len());
        for inputs in &requests {
            match self.run(inputs, &none) {
                Ok(outputs) => alone.push(outputs),
                Err(_) => return Padding::Unknown("it refuses inputs that were made up"),
            }
        }
        let filled: Vec<Vec<Tensor>> = requests.iter().cloned().map(|inputs| padded(self.signature, inputs)).collect();
        if filled == requests || filled.iter().any(|inputs| !alike(inputs, &filled[0])) {
            return Padding::Unknown("its examples are too short to be padded");
        }
        let joined = match self.run(&rows::join_inputs(self.signature, &filled), &none) {
            Ok(outputs) => outputs,
            Err(_) => return Padding::Differ("padded requests were refused that ran unpadded".into()),
        };
        let telling = alone.windows(2).any(|pair| compare::tells_apart(&pair[0], &pair[1]));
        match held_against(self.signature, &joined, &alone, &requests) {
            Err(how) => Padding::Differ(how),
            Ok(()) if telling => Padding::Equal,
            Ok(()) => Padding::Unknown("its answers are all the same"),
        }
    }
}

// === impl Source ===

impl Source {
    /// One request with so much in each padded dimension; of an example no more than it has.
    fn at_length(
        &self,
        signature: &Signature,
        length: usize,
        rows: usize,
        first_row: usize,
        seed: u64,
        round: u64,
    ) -> Vec<Tensor> {
        match self {
            Source::MadeUp(recipe) => {
                Source::MadeUp(recipe.long(length)).request(signature, rows, first_row, seed, round)
            }
            Source::Example(_) => {
                let inputs = self.request(signature, rows, first_row, seed, round);
                let shorter = |(tensor, spec): (Tensor, &crate::model::TensorSpec)| match &spec.pad {
                    Some(pad) if tensor.shape[pad.dim] > length => cut(tensor, pad.dim, length),
                    _ => tensor,
                };
                inputs.into_iter().zip(&signature.inputs).map(shorter).collect()
            }
        }
    }

    /// With the most that a padded dimension may have.
    pub(super) fn longest(self, signature: &Signature) -> Self {
        let largest = signature.inputs.iter().filter_map(|spec| spec.pad.as_ref()).map(|pad| pad.largest()).max();
        match (self, largest) {
            (Source::MadeUp(recipe), Some(largest)) => Source::MadeUp(recipe.long(largest)),
            (source, _) => source,
        }
    }
}

/// The inputs of a request as they run, filled up.
pub fn padded(signature: &Signature, inputs: Vec<Tensor>) -> Vec<Tensor> {
    let fill = |(tensor, spec): (Tensor, &crate::model::TensorSpec)| {
        let Some(pad) = &spec.pad else { return tensor };
        let mut data = vec![0; pad.bytes(&tensor)];
        pad.copy(&tensor, &mut data);
        Tensor { shape: pad.shape(&tensor.shape), data: Bytes::from(data), ..tensor }
    };
    inputs.into_iter().zip(&signature.inputs).map(fill).collect()
}

/// Whether the two may be joined: one shape but for the rows.
fn alike(mine: &[Tensor], theirs: &[Tensor]) -> bool {
    let rest = |tensor: &Tensor| tensor.shape.iter().skip(1).copied().collect::<Shape>();
    mine.iter().zip(theirs).all(|(mine, theirs)| rest(mine) == rest(theirs))
}

/// Cuts the answer to padded requests back and holds it against the answers alone. `Err` says in words how they differ.
fn held_against(
    signature: &Signature,
    joined: &[Tensor],
    alone: &[Vec<Tensor>],
    requests: &[Vec<Tensor>],
) -> Result<(), String> {
    let total: usize = ROWS.iter().sum();
    for (place, output) in joined.iter().enumerate() {
        let name = &output.name;
        if output.shape.first() != Some(&total) {
            return Err(format!("output '{name}' has not one row for each row that was given"));
        }
        let followed = signature.outputs[place].unpad.map(|unpad| (unpad.dim, signature.followed(unpad, &requests[0])));
        if followed.is_some_and(|(dim, to)| to.map(|(_, padded)| padded) != output.shape.get(dim).copied()) {
            return Err(format!("output '{name}' does not follow the padded dimension of its input"));
        }
        let mut first = 0;
        for ((inputs, outputs), rows) in requests.iter().zip(alone).zip(ROWS) {
            let expected = &outputs[place];
            let part = signature.unpadded(place, rows::rows_of(output, first, rows), inputs);
            first += rows;
            if part.shape != expected.shape {
                let unpad = signature.outputs[place].unpad.map_or("; say unpad for it", |_| "");
                return Err(format!("output '{name}' has another shape when requests are padded{unpad}"));
            }
            let tolerance =
                compare::Tolerance::of_kernels(expected.dtype, &compare::floats(expected).unwrap_or_default());
            if compare::first_difference(&part, expected, tolerance).is_some() {
                return Err(format!("output '{name}' differs when requests are padded"));
            }
        }
    }
    Ok(())
}

//! How many parts a message has, counted before they are built.
//!
//! Two bytes on the wire, an empty tensor or an empty text, become thirty to five hundred in memory, so the length of a
//! message says little of what it will take. The walk reads tags and lengths alone: a large tensor costs it one step.

use super::config::{MESSAGE_PARTS_MAX, MESSAGE_VALUES_MAX};
use crate::error::{Code, Error, Result};

/// The fields of a message that can come in any number, or that hold such fields.
pub type Layout = [Field];

/// One of them.
#[derive(Debug)]
pub struct Field {
    number: u64,
    counts: Counts,
    within: &'static Layout,
}

/// What one occurrence of a field is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counts {
    /// A tensor, a parameter, an output's name: hundreds of bytes, and nobody needs many.
    Part,
    /// A row, a value of one, a column's name, a text of a tensor: data, of which there is much, and tens of bytes each.
    Value,
    /// Not counted: it comes once, or later ones fall into the first.
    Nothing,
}

/// Protobuf's own bound on messages in messages; deeper ones are refused by whoever decodes them.
const DEPTH_MAX: usize = 100;

/// Of `inference.ModelInferRequest`.
pub static MODEL_INFER: [Field; 4] = [part(4, &[]), part(5, &INPUT), part(6, &REQUESTED), part(7, &[])];
static INPUT: [Field; 2] = [part(4, &[]), holder(5, &CONTENTS)];
static CONTENTS: [Field; 1] = [value(8, &[])];
static REQUESTED: [Field; 1] = [part(2, &[])];

/// Of `sconce.v1.PredictRequest`.
pub static PREDICT: [Field; 6] =
    [part(4, &[]), part(7, &[]), part(9, &TENSOR), value(10, &STRUCT), holder(11, &TABLE), part(12, &[])];
static TENSOR: [Field; 2] = [value(10, &[]), value(11, &[])];
static TABLE: [Field; 1] = [value(1, &[])];
static STRUCT: [Field; 1] = [value(1, &ENTRY)];
static ENTRY: [Field; 1] = [holder(2, &VALUE)];
static VALUE: [Field; 2] = [holder(5, &STRUCT), holder(6, &LIST)];
static LIST: [Field; 1] = [value(1, &VALUE)];

/// Of `sconce.v1.RecordOutcomeRequest`.
pub static RECORD_OUTCOME: [Field; 1] = [part(5, &[])];

/// Of `inference.RepositoryModelLoadRequest` and `RepositoryModelUnloadRequest`.
pub static REPOSITORY: [Field; 1] = [part(3, &[])];

/// Of `sconce.v1.SetLabelsRequest`.
pub static SET_LABELS: [Field; 2] = [part(2, &[]), part(3, &[])];

/// Of `sconce.v1.SetRouteRequest`.
pub static SET_ROUTE: [Field; 1] = [holder(2, &TRAFFIC)];
static TRAFFIC: [Field; 3] = [part(1, &[]), part(3, &RULE), part(4, &[])];
static RULE: [Field; 1] = [value(3, &[])];

/// Of `sconce.v1.DeployRequest`.
pub static DEPLOY: [Field; 1] = [holder(3, &PLAN)];
static PLAN: [Field; 1] = [holder(17, &GATES)];
static GATES: [Field; 1] = [part(1, &[])];

/// RESOURCE_EXHAUSTED where the message has more parts or values than a message may have. One that is broken passes: whoever
/// decodes it says so.
pub fn check(message: &[u8], layout: &Layout) -> Result<()> {
    Walk::default().message(message, layout, DEPTH_MAX)
}

#[derive(Default)]
struct Walk {
    parts: usize,
    values: usize,
}

// === impl Walk ===

impl Walk {
    fn message(&mut self, mut bytes: &[u8], layout: &Layout, depth: usize) -> Result<()> {
        while let Some((number, payload)) = next_field(&mut bytes) {
            let Some(field) = layout.iter().find(|field| field.number == number) else {
                continue;
            };
            self.count(field.counts)?;
            if !field.within.is_empty() && depth > 0 {
                self.message(payload, field.within, depth - 1)?;
            }
        }
        Ok(())
    }

    fn count(&mut self, counts: Counts) -> Result<()> {
        match counts {
            Counts::Nothing => {}
            Counts::Part => self.parts += 1,
            Counts::Value => self.values += 1,
        }
        if self.parts > MESSAGE_PARTS_MAX {
            return Err(too_many(MESSAGE_PARTS_MAX, "tensors, parameters, attributes and names of outputs"));
        }
        if self.values > MESSAGE_VALUES_MAX {
            let what = "rows, values of rows, and texts; a table or raw contents hold more, or send several requests";
            return Err(too_many(MESSAGE_VALUES_MAX, what));
        }
        Ok(())
    }
}

fn too_many(limit: usize, what: &str) -> Error {
    Error::new(Code::ResourceExhausted, "TOO_MANY_FIELDS", format!("a message has at most {limit} {what}"))
        .with("limit", limit)
}

/// The next field's number, and its bytes where it has a length. `None` at the end, and where the bytes are no message.
fn next_field<'a>(bytes: &mut &'a [u8]) -> Option<(u64, &'a [u8])> {
    let key = varint(bytes)?;
    let payload = match key & 7 {
        0 => {
            varint(bytes)?;
            &[]
        }
        1 => bytes.split_off(..8)?,
        2 => {
            let length = usize::try_from(varint(bytes)?).ok()?;
            bytes.split_off(..length)?
        }
        // What stands between a group's two marks is taken for the message's own.
        3 | 4 => &[],
        5 => bytes.split_off(..4)?,
        _ => return None,
    };
    Some((key >> 3, payload))
}

/// Protobuf's numbers of any length.
pub fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for place in 0..10 {
        let byte = *bytes.split_off_first()?;
        // The tenth has room for one bit.
        if place == 9 && byte > 1 {
            return None;
        }
        number |= u64::from(byte & 0x7f) << (7 * place);
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

const fn part(number: u64, within: &'static Layout) -> Field {
    field(number, Counts::Part, within)
}

const fn value(number: u64, within: &'static Layout) -> Field {
    field(number, Counts::Value, within)
}

const fn holder(number: u64, within: &'static Layout) -> Field {
    field(number, Counts::Nothing, within)
}

const fn field(number: u64, counts: Counts, within: &'static Layout) -> Field {
    Field { number, counts, within }
}

#[cfg(test)]
#[path = "fields_tests.rs"]
mod tests;

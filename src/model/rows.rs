//! One input filled from rows of named values.

use bytes::Bytes;

use super::{DType, MissingValue, TensorSpec, Value, length_prefixed, request::Contents};
use crate::error::{Error, Result};

/// How one input is filled from rows.
#[derive(Clone, Debug)]
pub struct Columns {
    pub names: Vec<String>,
    missing: Vec<Option<MissingValue>>,
    /// Whether a row is a vector of `names.len()` values, or one scalar.
    wide: bool,
}

/// The values of one input, row after row.
pub enum Filled {
    Numbers { values: Vec<f64>, seen: Vec<bool> },
    Texts { values: Vec<Option<Bytes>> },
}

// === impl Columns ===

impl Columns {
    /// An input can be filled from rows if its last dimension has names, or if a row is one scalar.
    pub fn of(spec: &TensorSpec) -> Option<Self> {
        let free = spec.shape.first() == Some(&-1);
        let wide = spec.shape.len() == 2 && !spec.feature_names.is_empty();
        let scalar = spec.shape.len() == 1 || spec.shape.len() == 2 && spec.shape[1] == 1;
        if free && wide {
            let names: Vec<String> = spec.feature_names.iter().map(|name| name.to_string()).collect();
            let missing = if spec.missing.is_empty() { vec![None; names.len()] } else { spec.missing.clone() };
            Some(Self { names, missing, wide: true })
        } else if free && scalar {
            Some(Self { names: vec![spec.name.to_string()], missing: vec![None], wide: false })
        } else {
            None
        }
    }

    fn absent(&self, cell: usize) -> Error {
        let row = cell / self.names.len();
        let name = &self.names[cell % self.names.len()];
        let what = if self.wide { "feature" } else { "input" };
        Error::invalid("MISSING_FEATURE", format!("row {row}: {what} '{name}' is absent")).with("feature", name)
    }
}

// === impl Filled ===

impl Filled {
    pub fn put(&mut self, cell: usize, name: &str, value: Value) -> Result<()> {
        let wrong = |wanted: &str| {
            Err(Error::invalid("VALUE_MISMATCH", format!("feature '{name}': expected {wanted}, another kind came"))
                .with("feature", name))
        };
        match self {
            Filled::Numbers { values, seen } => {
                values[cell] = match value {
                    Value::Null => f64::NAN,
                    Value::Number(number) => number,
                    Value::Bool(flag) => f64::from(u8::from(flag)),
                    Value::Text(_) => return wrong("a number or null"),
                };
                seen[cell] = true;
            }
            Filled::Texts { values } => match value {
                Value::Text(text) => values[cell] = Some(Bytes::from(text)),
                _ => return wrong("a text"),
            },
        }
        Ok(())
    }

    pub fn into_bytes(self, columns: &Columns, dtype: DType) -> Result<Bytes> {
        match self {
            Filled::Numbers { mut values, seen } => {
                let absent = seen.iter().enumerate().filter(|(_, seen)| !**seen).map(|(cell, _)| cell);
                for cell in absent {
                    values[cell] = match columns.missing[cell % columns.names.len()] {
                        Some(MissingValue::Nan) => f64::NAN,
                        Some(MissingValue::Value(value)) => value,
                        None => return Err(columns.absent(cell)),
                    };
                }
                numbers_as(columns, dtype, values)
            }
            Filled::Texts { values } => {
                let texts: Vec<Bytes> = values
                    .into_iter()
                    .enumerate()
                    .map(|(cell, text)| text.ok_or_else(|| columns.absent(cell)))
                    .collect::<Result<_>>()?;
                Ok(length_prefixed(&texts))
            }
        }
    }
}

/// Doubles as the input's type; whole numbers must be whole.
fn numbers_as(columns: &Columns, dtype: DType, values: Vec<f64>) -> Result<Bytes> {
    if dtype.is_float() {
        return Contents::Doubles(values).into_bytes(&columns.names[0], dtype);
    }
    let whole = |cell: usize, value: f64, low: f64, high: f64| {
        if value.fract() == 0.0 && value >= low && value <= high {
            return Ok(value);
        }
        let name = &columns.names[cell % columns.names.len()];
        let message = format!("row {}: feature '{name}' must be a whole number of {dtype}", cell / columns.names.len());
        Err(Error::invalid("VALUE_MISMATCH", message).with("feature", name))
    };
    // Beyond 2^53 a double no longer says which whole number is meant.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let cells = values.into_iter().enumerate();
    let contents = match dtype {
        DType::Bool => {
            Contents::Bools(cells.map(|(at, v)| whole(at, v, 0.0, 1.0).map(|v| v == 1.0)).collect::<Result<_>>()?)
        }
        DType::Uint8 | DType::Uint16 | DType::Uint32 | DType::Uint64 => {
            Contents::Uints(cells.map(|(at, v)| whole(at, v, 0.0, EXACT).map(|v| v as u64)).collect::<Result<_>>()?)
        }
        _ => Contents::Ints(cells.map(|(at, v)| whole(at, v, -EXACT, EXACT).map(|v| v as i64)).collect::<Result<_>>()?),
    };
    contents.into_bytes(&columns.names[0], dtype)
}

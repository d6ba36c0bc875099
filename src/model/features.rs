//! From a caller's data to the tensors of a signature: rows by feature name, tables, and the z-score.
//!
//! Built once a version and used by every request (`engine`) and by the child's examples (`lifecycle`), so that both see
//! the same numbers. Pure.

use std::collections::HashMap;

use bytes::Bytes;

use super::{
    DType, Data, MissingValue, Normalizer, Row, Shape, Signature, Table, Tensor, Value, bytes_from, length_prefixed,
    request::Contents, signature::Bound,
};
use crate::error::{Error, Result};

/// What a version knows of its features.
#[derive(Clone, Debug)]
pub struct Features {
    /// Where a named value goes; empty where the model's inputs cannot be given as rows.
    places: HashMap<String, Place>,
    /// One for each input of the signature; `None` makes rows impossible for the whole model.
    columns: Vec<Option<Columns>>,
    scaling: Option<Scaling>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    input: usize,
    column: usize,
}

/// How one input is filled from rows.
#[derive(Clone, Debug)]
struct Columns {
    names: Vec<String>,
    missing: Vec<Option<MissingValue>>,
    /// Whether a row is a vector of `names.len()` values, or one scalar.
    wide: bool,
}

/// (x - mean) / scale, by column of one input.
#[derive(Clone, Debug)]
struct Scaling {
    input: usize,
    mean: Vec<f64>,
    scale: Vec<f64>,
}

/// The values of one input, row after row.
enum Filled {
    Numbers { values: Vec<f64>, seen: Vec<bool> },
    Texts { values: Vec<Option<Bytes>> },
}

const NAME_COMPARED_BYTES_MAX: usize = 64;

// === impl Features ===

impl Features {
    /// INVALID_MANIFEST where the normalizer names a feature that no input has.
    pub fn new(signature: &Signature, normalizer: Option<&Normalizer>) -> Result<Self> {
        let columns: Vec<Option<Columns>> = signature.inputs.iter().map(Columns::of).collect();
        let mut places = HashMap::new();
        if columns.iter().all(Option::is_some) {
            for (input, columns) in columns.iter().flatten().enumerate() {
                for (column, name) in columns.names.iter().enumerate() {
                    places.insert(name.clone(), Place { input, column });
                }
            }
        }
        let scaling = normalizer
            .map(|normalizer| Scaling::new(signature, normalizer))
            .transpose()?;
        Ok(Self {
            places,
            columns,
            scaling,
        })
    }

    /// Binds the data to the signature and normalises them.
    pub fn bind(&self, signature: &Signature, data: Data) -> Result<Bound> {
        let mut bound = match data {
            Data::Tensors(tensors) => signature.bind(tensors)?,
            Data::Rows(rows) => self.from_rows(signature, rows)?,
            Data::Table(table) => self.from_table(signature, table)?,
        };
        if let Some(scaling) = &self.scaling {
            let tensor = &mut bound.inputs[scaling.input];
            *tensor = scaling.apply(tensor);
        }
        Ok(bound)
    }

    fn from_rows(&self, signature: &Signature, rows: Vec<Row>) -> Result<Bound> {
        self.check_rows_possible(signature)?;
        let count = rows.len();
        let mut filled = self.blank(signature, count);
        for (index, row) in rows.into_iter().enumerate() {
            for (name, value) in row {
                let place = self.place(&name)?;
                let width = self.width(place.input);
                filled[place.input].put(index * width + place.column, &name, value)?;
            }
        }
        self.finish(signature, filled, count)
    }

    fn from_table(&self, signature: &Signature, table: Table) -> Result<Bound> {
        self.check_rows_possible(signature)?;
        let width = table.names.len();
        if width == 0 || !table.values.len().is_multiple_of(width) {
            return Err(Error::invalid(
                "TABLE_SHAPE",
                format!("table: {} values do not fill rows of {width} names", table.values.len()),
            ));
        }
        let places: Vec<Place> = table.names.iter().map(|name| self.place(name)).collect::<Result<_>>()?;
        for (index, name) in table.names.iter().enumerate() {
            if table.names[..index].contains(name) {
                return Err(Error::invalid(
                    "DUPLICATE_FEATURE",
                    format!("table: feature '{name}' stands twice"),
                ));
            }
        }
        let count = table.values.len() / width;
        let mut filled = self.blank(signature, count);
        for (index, row) in table.values.chunks_exact(width).enumerate() {
            for ((place, name), &value) in places.iter().zip(&table.names).zip(row) {
                let at = index * self.width(place.input) + place.column;
                filled[place.input].put(at, name, Value::Number(value))?;
            }
        }
        self.finish(signature, filled, count)
    }

    fn check_rows_possible(&self, signature: &Signature) -> Result<()> {
        let Some(input) = self.columns.iter().position(Option::is_none) else {
            return Ok(());
        };
        let spec = &signature.inputs[input];
        Err(Error::invalid(
            "ROWS_NOT_POSSIBLE",
            format!(
                "input '{}' of shape {} has no named features; send tensors",
                spec.name,
                spec.shape_text()
            ),
        )
        .with("tensor", &spec.name))
    }

    fn place(&self, name: &str) -> Result<Place> {
        self.places.get(name).copied().ok_or_else(|| {
            // A caller's name may be megabytes long: only one that could be a typing error is compared.
            let known = self.places.keys().filter(|_| name.len() <= NAME_COMPARED_BYTES_MAX);
            let closest = known.min_by_key(|known| (distance(known, name), *known));
            let hint = closest.map_or(String::new(), |known| format!("; did you mean '{known}'?"));
            Error::invalid("UNKNOWN_FEATURE", format!("the model has no such feature{hint}"))
        })
    }

    fn width(&self, input: usize) -> usize {
        self.columns[input].as_ref().map_or(0, |columns| columns.names.len())
    }

    fn blank(&self, signature: &Signature, rows: usize) -> Vec<Filled> {
        let inputs = signature.inputs.iter().enumerate();
        inputs
            .map(|(input, spec)| {
                let cells = rows * self.width(input);
                match spec.dtype {
                    DType::Bytes => Filled::Texts {
                        values: vec![None; cells],
                    },
                    _ => Filled::Numbers {
                        values: vec![f64::NAN; cells],
                        seen: vec![false; cells],
                    },
                }
            })
            .collect()
    }

    fn finish(&self, signature: &Signature, filled: Vec<Filled>, rows: usize) -> Result<Bound> {
        let mut inputs = Vec::with_capacity(filled.len());
        for ((spec, columns), filled) in signature.inputs.iter().zip(self.columns.iter().flatten()).zip(filled) {
            let data = filled.into_bytes(columns, spec.dtype)?;
            let mut shape = Shape::from_slice(&[rows]);
            shape.extend(
                spec.shape[1..]
                    .iter()
                    .map(|&dim| if dim < 0 { columns.names.len() } else { dim as usize }),
            );
            inputs.push(Tensor::new(spec.name.clone(), spec.dtype, shape, data)?);
        }
        Ok(Bound { inputs, rows })
    }
}

// === impl Columns ===

impl Columns {
    /// An input can be filled from rows if its last dimension has names, or if a row is one scalar.
    fn of(spec: &super::TensorSpec) -> Option<Self> {
        let free = spec.shape.first() == Some(&-1);
        let wide = spec.shape.len() == 2 && !spec.feature_names.is_empty();
        let scalar = spec.shape.len() == 1 || spec.shape.len() == 2 && spec.shape[1] == 1;
        if free && wide {
            let names: Vec<String> = spec.feature_names.iter().map(|name| name.to_string()).collect();
            let missing = if spec.missing.is_empty() {
                vec![None; names.len()]
            } else {
                spec.missing.clone()
            };
            Some(Self {
                names,
                missing,
                wide: true,
            })
        } else if free && scalar {
            Some(Self {
                names: vec![spec.name.to_string()],
                missing: vec![None],
                wide: false,
            })
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
    fn put(&mut self, cell: usize, name: &str, value: Value) -> Result<()> {
        let wrong = |wanted: &str| {
            Err(Error::invalid(
                "VALUE_MISMATCH",
                format!("feature '{name}': expected {wanted}, another kind came"),
            )
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

    fn into_bytes(self, columns: &Columns, dtype: DType) -> Result<Bytes> {
        match self {
            Filled::Numbers { mut values, seen } => {
                let absent = seen
                    .iter()
                    .enumerate()
                    .filter(|(_, seen)| !**seen)
                    .map(|(cell, _)| cell);
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
        let message = format!(
            "row {}: feature '{name}' must be a whole number of {dtype}",
            cell / columns.names.len()
        );
        Err(Error::invalid("VALUE_MISMATCH", message).with("feature", name))
    };
    // Beyond 2^53 a double no longer says which whole number is meant.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let cells = values.into_iter().enumerate();
    let contents = match dtype {
        DType::Bool => Contents::Bools(
            cells
                .map(|(at, v)| whole(at, v, 0.0, 1.0).map(|v| v == 1.0))
                .collect::<Result<_>>()?,
        ),
        DType::Uint8 | DType::Uint16 | DType::Uint32 | DType::Uint64 => Contents::Uints(
            cells
                .map(|(at, v)| whole(at, v, 0.0, EXACT).map(|v| v as u64))
                .collect::<Result<_>>()?,
        ),
        _ => Contents::Ints(
            cells
                .map(|(at, v)| whole(at, v, -EXACT, EXACT).map(|v| v as i64))
                .collect::<Result<_>>()?,
        ),
    };
    contents.into_bytes(&columns.names[0], dtype)
}

// === impl Scaling ===

impl Scaling {
    fn new(signature: &Signature, normalizer: &Normalizer) -> Result<Self> {
        let wrong = |message: String| Error::invalid("INVALID_MANIFEST", format!("normalizer.json: {message}"));
        let named = signature.inputs.iter().position(|spec| !spec.feature_names.is_empty());
        let input = match named {
            Some(input) => input,
            None if signature.inputs.len() == 1 => 0,
            None => {
                return Err(wrong(
                    "no input declares feature_names, so it is not clear which one it is for".into(),
                ));
            }
        };
        let spec = &signature.inputs[input];
        if !matches!(spec.dtype, DType::Fp32 | DType::Fp64) {
            return Err(wrong(format!(
                "input '{}' is {}, not FP32 or FP64",
                spec.name, spec.dtype
            )));
        }
        let width = usize::try_from(spec.shape.last().copied().unwrap_or(-1)).unwrap_or(spec.feature_names.len());
        let (mut mean, mut scale) = (vec![0.0; width], vec![1.0; width]);
        for (place, name) in normalizer.feature_names.iter().enumerate() {
            let column = match spec.feature_names.is_empty() {
                true => place,
                false => spec
                    .feature_names
                    .iter()
                    .position(|known| **known == **name)
                    .unwrap_or(width),
            };
            if column >= width {
                return Err(wrong(format!("input '{}' has no feature '{name}'", spec.name)));
            }
            mean[column] = normalizer.mean[place];
            scale[column] = normalizer.scale[place];
        }
        Ok(Self { input, mean, scale })
    }

    fn apply(&self, tensor: &Tensor) -> Tensor {
        let columns = self.mean.iter().zip(&self.scale).cycle();
        let data = match tensor.dtype {
            DType::Fp64 => {
                let values = tensor
                    .data
                    .chunks_exact(8)
                    .map(|b| f64::from_le_bytes(b.try_into().expect("8 bytes")));
                bytes_from(
                    values
                        .zip(columns)
                        .map(|(v, (mean, scale))| (v - mean) / scale)
                        .collect::<Vec<f64>>(),
                )
            }
            _ => {
                let values = tensor
                    .data
                    .chunks_exact(4)
                    .map(|b| f32::from_le_bytes(b.try_into().expect("4 bytes")));
                let scaled = values
                    .zip(columns)
                    .map(|(v, (mean, scale))| ((f64::from(v) - mean) / scale) as f32);
                bytes_from(scaled.collect::<Vec<f32>>())
            }
        };
        Tensor { data, ..tensor.clone() }
    }
}

/// How many characters differ: enough to point at a typing error.
fn distance(known: &str, given: &str) -> usize {
    let mut previous: Vec<usize> = (0..=given.len()).collect();
    for (row, known_byte) in known.bytes().enumerate() {
        let mut current = vec![row + 1];
        for (column, given_byte) in given.bytes().enumerate() {
            let replaced = previous[column] + usize::from(known_byte != given_byte);
            current.push(replaced.min(previous[column + 1] + 1).min(current[column] + 1));
        }
        previous = current;
    }
    previous[previous.len() - 1]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{NormalizerMethod, TensorSpec};

    fn signature() -> Signature {
        let mut spec = TensorSpec::new("features", DType::Fp64, &[-1, 3]);
        spec.batch = true;
        spec.feature_names = ["rsi_14", "momentum_20", "volume_z"].map(Into::into).to_vec();
        spec.missing = vec![None, None, Some(MissingValue::Value(7.0))];
        Signature {
            inputs: vec![spec],
            outputs: vec![],
        }
    }

    fn row(values: &[(&str, f64)]) -> Row {
        values
            .iter()
            .map(|(name, value)| ((*name).to_string(), Value::Number(*value)))
            .collect()
    }

    fn doubles(bound: &Bound) -> Vec<f64> {
        bytemuck::pod_collect_to_vec(&bound.inputs[0].data)
    }

    #[test]
    fn rows_come_in_any_order_and_declared_features_may_be_absent() {
        let features = Features::new(&signature(), None).expect("a good signature");
        let rows = vec![
            row(&[("momentum_20", 2.0), ("rsi_14", 1.0)]),
            row(&[("volume_z", 3.0), ("rsi_14", 1.5), ("momentum_20", 2.5)]),
        ];
        let bound = features.bind(&signature(), Data::Rows(rows)).expect("good rows");
        assert_eq!(doubles(&bound), [1.0, 2.0, 7.0, 1.5, 2.5, 3.0]);
        assert_eq!(bound.rows, 2);
    }

    #[test]
    fn an_unknown_and_an_absent_feature_are_named() {
        let features = Features::new(&signature(), None).expect("a good signature");
        let bind = |row| {
            features
                .bind(&signature(), Data::Rows(vec![row]))
                .expect_err("a mistake")
        };
        let huge = bind(row(&[(&"x".repeat(10 << 20), 1.0)]));
        assert_eq!(huge.message(), "the model has no such feature");
        let unknown = bind(row(&[("rsi_41", 1.0)]));
        assert_eq!(unknown.reason(), "UNKNOWN_FEATURE");
        assert!(unknown.message().contains("'rsi_14'"), "{unknown}");
        let absent = bind(row(&[("rsi_14", 1.0)]));
        assert_eq!(absent.reason(), "MISSING_FEATURE");
        assert!(absent.message().contains("'momentum_20'"), "{absent}");
    }

    #[test]
    fn null_is_nan_and_text_is_refused() {
        let features = Features::new(&signature(), None).expect("a good signature");
        let with = |value| vec![("rsi_14".into(), value), ("momentum_20".into(), Value::Number(0.0))];
        let bound = features
            .bind(&signature(), Data::Rows(vec![with(Value::Null)]))
            .expect("null is missing");
        assert!(doubles(&bound)[0].is_nan());
        let error = features
            .bind(&signature(), Data::Rows(vec![with(Value::Text("a".into()))]))
            .expect_err("a text");
        assert_eq!(error.reason(), "VALUE_MISMATCH");
    }

    #[test]
    fn the_z_score_holds_for_rows_tables_and_tensors_alike() {
        let normalizer = Normalizer {
            method: NormalizerMethod::Zscore,
            feature_names: vec!["momentum_20".into(), "rsi_14".into()],
            mean: vec![10.0, 1.0],
            scale: vec![2.0, 4.0],
        };
        let features = Features::new(&signature(), Some(&normalizer)).expect("a good normalizer");
        let expected = [0.0, 1.0, 5.0];
        let rows = Data::Rows(vec![row(&[("rsi_14", 1.0), ("momentum_20", 12.0), ("volume_z", 5.0)])]);
        let table = Data::Table(Table {
            names: ["volume_z", "momentum_20", "rsi_14"].map(String::from).to_vec(),
            values: vec![5.0, 12.0, 1.0],
        });
        let tensor = Data::Tensors(vec![crate::model::TensorInput {
            name: String::new(),
            dtype: None,
            shape: None,
            contents: Contents::Doubles(vec![1.0, 12.0, 5.0]),
        }]);
        for data in [rows, table, tensor] {
            assert_eq!(
                doubles(&features.bind(&signature(), data).expect("good data")),
                expected
            );
        }
    }

    #[test]
    fn a_table_that_does_not_fill_its_rows_is_refused() {
        let features = Features::new(&signature(), None).expect("a good signature");
        let table = |names: &[&str], values: usize| {
            let names = names.iter().map(|name| (*name).to_string()).collect();
            features
                .bind(
                    &signature(),
                    Data::Table(Table {
                        names,
                        values: vec![0.0; values],
                    }),
                )
                .map(|bound| bound.rows)
        };
        assert_eq!(
            table(&["rsi_14", "momentum_20"], 5).expect_err("5 of 2").reason(),
            "TABLE_SHAPE"
        );
        assert_eq!(table(&[], 0).expect_err("no names").reason(), "TABLE_SHAPE");
        assert_eq!(
            table(&["rsi_14", "rsi_14"], 4).expect_err("twice").reason(),
            "DUPLICATE_FEATURE"
        );
        assert_eq!(table(&["rsi_14", "momentum_20"], 0).expect("no rows are rows"), 0);
    }
}

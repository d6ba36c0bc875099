//! From a caller's data to the tensors of a signature: rows by feature name, tables, and the z-score.
//!
//! Built once a version and used by every request (`engine`) and by the child's examples (`lifecycle`), so that both see
//! the same numbers. Pure.

use std::collections::HashMap;

use super::{
    DType, Data, Normalizer, Row, Shape, Signature, Table, Tensor, Value, repeated,
    rows::{Columns, Filled},
    scaling::Scaling,
    signature::Bound,
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
        let scaling = normalizer.map(|normalizer| Scaling::new(signature, normalizer)).transpose()?;
        Ok(Self { places, columns, scaling })
    }

    /// Binds the data to the signature and normalises them.
    pub fn bind(&self, signature: &Signature, data: Data) -> Result<Bound> {
        let mut bound = match data {
            Data::Tensors(tensors) => signature.bind(tensors)?,
            Data::Rows(rows) => self.bind_rows(signature, rows)?,
            Data::Table(table) => self.bind_table(signature, table)?,
        };
        if let Some(scaling) = &self.scaling {
            let tensor = &mut bound.inputs[scaling.input];
            *tensor = scaling.apply(tensor);
        }
        Ok(bound)
    }

    fn bind_rows(&self, signature: &Signature, rows: Vec<Row>) -> Result<Bound> {
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

    fn bind_table(&self, signature: &Signature, table: Table) -> Result<Bound> {
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
                return Err(Error::invalid("DUPLICATE_FEATURE", format!("table: feature '{name}' stands twice")));
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
            format!("input '{}' of shape {} has no named features; send tensors", spec.name, spec.shape_text()),
        )
        .with("tensor", &spec.name))
    }

    fn place(&self, name: &str) -> Result<Place> {
        self.places.get(name).copied().ok_or_else(|| {
            // A caller's name may be megabytes long: only one that could be a typing error is compared.
            let known = self.places.keys().filter(|_| name.len() <= NAME_COMPARED_BYTES_MAX);
            let close = known.map(|known| (distance(known, name), known)).filter(|(far, _)| far * 3 <= name.len());
            let closest = close.min();
            let hint = closest.map_or(String::new(), |(_, known)| format!("; did you mean '{known}'?"));
            Error::invalid("UNKNOWN_FEATURE", format!("there is no feature{}{hint}", repeated(name)))
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
                    DType::Bytes => Filled::Texts { values: vec![None; cells] },
                    _ => Filled::Numbers { values: vec![f64::NAN; cells], seen: vec![false; cells] },
                }
            })
            .collect()
    }

    fn finish(&self, signature: &Signature, filled: Vec<Filled>, rows: usize) -> Result<Bound> {
        let mut inputs = Vec::with_capacity(filled.len());
        for ((spec, columns), filled) in signature.inputs.iter().zip(self.columns.iter().flatten()).zip(filled) {
            let data = filled.into_bytes(columns, spec.dtype)?;
            let mut shape = Shape::from_slice(&[rows]);
            shape.extend(spec.shape[1..].iter().map(|&dim| if dim < 0 { columns.names.len() } else { dim as usize }));
            inputs.push(Tensor::new(spec.name.clone(), spec.dtype, shape, data)?);
        }
        Ok(Bound { inputs, rows })
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
    use crate::model::{Contents, MissingValue, NormalizerMethod, TensorSpec};

    fn signature() -> Signature {
        let mut spec = TensorSpec::new("features", DType::Fp64, &[-1, 3]);
        spec.batch = true;
        spec.feature_names = ["rsi_14", "momentum_20", "volume_z"].map(Into::into).to_vec();
        spec.missing = vec![None, None, Some(MissingValue::Value(7.0))];
        Signature { inputs: vec![spec], outputs: vec![] }
    }

    fn row(values: &[(&str, f64)]) -> Row {
        values.iter().map(|(name, value)| ((*name).to_string(), Value::Number(*value))).collect()
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
        let bind = |row| features.bind(&signature(), Data::Rows(vec![row])).expect_err("a mistake");
        let huge = bind(row(&[(&"x".repeat(10 << 20), 1.0)]));
        assert_eq!(huge.message(), "there is no feature");
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
        let bound = features.bind(&signature(), Data::Rows(vec![with(Value::Null)])).expect("null is missing");
        assert!(doubles(&bound)[0].is_nan());
        let error = features.bind(&signature(), Data::Rows(vec![with(Value::Text("a".into()))])).expect_err("a text");
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
            assert_eq!(doubles(&features.bind(&signature(), data).expect("good data")), expected);
        }
    }

    #[test]
    fn a_table_that_does_not_fill_its_rows_is_refused() {
        let features = Features::new(&signature(), None).expect("a good signature");
        let table = |names: &[&str], values: usize| {
            let names = names.iter().map(|name| (*name).to_string()).collect();
            features.bind(&signature(), Data::Table(Table { names, values: vec![0.0; values] })).map(|bound| bound.rows)
        };
        assert_eq!(table(&["rsi_14", "momentum_20"], 5).expect_err("5 of 2").reason(), "TABLE_SHAPE");
        assert_eq!(table(&[], 0).expect_err("no names").reason(), "TABLE_SHAPE");
        assert_eq!(table(&["rsi_14", "rsi_14"], 4).expect_err("twice").reason(), "DUPLICATE_FEATURE");
        assert_eq!(table(&["rsi_14", "momentum_20"], 0).expect("no rows are rows"), 0);
    }
}

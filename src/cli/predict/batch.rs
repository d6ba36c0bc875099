//! Rows of a file, a batch at a time, and the request each batch becomes.

use std::io::{BufRead, BufReader, Read};

use anyhow::{Context, bail};
use csv::StringRecord;
use prost_types::value::Kind;
use serde_json::{Map, Value};

use super::tensors::{Types, tensors};
use crate::cli::{convert::structure, proto};

/// A file being read.
pub enum Batches {
    Csv { reader: csv::Reader<Box<dyn Read>>, headers: StringRecord },
    JsonLines { reader: BufReader<Box<dyn Read>>, line: usize },
}

/// Some rows of it.
pub struct Batch {
    /// The number of the first row, counted from 1 without the header.
    pub first_row: usize,
    pub rows: Rows,
}

pub enum Rows {
    Csv { headers: StringRecord, records: Vec<StringRecord> },
    Json(Vec<Map<String, Value>>),
}

/// How a file is written; its answers are written the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Csv,
    JsonLines,
}

// === impl Form ===

impl Form {
    /// By the file's name, or else by its first character: JSON lines begin with a brace.
    pub fn detect(name: &str, reader: &mut impl BufRead) -> anyhow::Result<Self> {
        if let Some(form) = Self::of_name(name) {
            return Ok(form);
        }
        let start = reader.fill_buf()?;
        let first = start.iter().find(|byte| !byte.is_ascii_whitespace());
        Ok(if first == Some(&b'{') { Form::JsonLines } else { Form::Csv })
    }

    pub fn extension(self) -> &'static str {
        match self {
            Form::Csv => "csv",
            Form::JsonLines => "jsonl",
        }
    }

    /// `None` where the name says nothing.
    pub fn of_name(name: &str) -> Option<Self> {
        match name.rsplit_once('.')?.1.to_ascii_lowercase().as_str() {
            "csv" => Some(Form::Csv),
            "jsonl" | "ndjson" => Some(Form::JsonLines),
            _ => None,
        }
    }
}

// === impl Batches ===

impl Batches {
    pub fn new(form: Form, input: Box<dyn Read>) -> anyhow::Result<Self> {
        Ok(match form {
            Form::Csv => {
                let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(input);
                let headers = reader.headers()?.clone();
                if headers.iter().all(str::is_empty) {
                    bail!("the first line must name the features");
                }
                Batches::Csv { reader, headers }
            }
            Form::JsonLines => Batches::JsonLines { reader: BufReader::new(input), line: 0 },
        })
    }

    /// The next `size` rows, or what is left of them; `None` at the end.
    pub fn next(&mut self, first_row: usize, size: usize) -> anyhow::Result<Option<Batch>> {
        let rows = match self {
            Batches::Csv { reader, headers } => {
                Rows::Csv { headers: headers.clone(), records: reader.records().take(size).collect::<Result<_, _>>()? }
            }
            Batches::JsonLines { reader, line } => {
                let mut objects = Vec::new();
                let mut text = String::new();
                while objects.len() < size && reader.read_line(&mut text)? > 0 {
                    *line += 1;
                    if !text.trim().is_empty() {
                        let object = serde_json::from_str(&text);
                        objects.push(object.with_context(|| format!("line {line} is not a JSON object"))?);
                    }
                    text.clear();
                }
                Rows::Json(objects)
            }
        };
        Ok((rows.len() > 0).then_some(Batch { first_row, rows }))
    }
}

// === impl Batch ===

impl Batch {
    /// `row 7` or `rows 65 to 128`, for messages.
    pub fn place(&self) -> String {
        match self.rows.len() {
            1 => format!("row {}", self.first_row),
            count => format!("rows {} to {}", self.first_row, self.first_row + count - 1),
        }
    }

    /// Whether its rows are those of tensors, so that the model's types must be known.
    pub fn has_lists(&self) -> bool {
        match &self.rows {
            Rows::Csv { .. } => false,
            Rows::Json(objects) => objects.iter().any(|object| object.values().any(Value::is_array)),
        }
    }

    /// Puts the rows into a request: as one table of doubles where all are numbers or missing, as tensors where there are
    /// lists, else by name.
    pub fn fill(&self, request: &mut proto::PredictRequest, types: &Types) -> anyhow::Result<()> {
        match &self.rows {
            Rows::Csv { headers, records } => match numbers(records) {
                Some(values) => {
                    let names = headers.iter().map(str::to_string).collect();
                    request.table = Some(proto::Table { names, values });
                }
                None => {
                    let row = |record: &StringRecord| {
                        structure(headers.iter().zip(record).map(|(name, cell)| (name.to_string(), cell_kind(cell))))
                    };
                    request.rows = records.iter().map(row).collect();
                }
            },
            Rows::Json(objects) if self.has_lists() => {
                request.inputs = tensors(objects, self.first_row, types)?;
            }
            Rows::Json(objects) => {
                for (place, object) in objects.iter().enumerate() {
                    let fields = object.iter().map(|(name, value)| {
                        let number = self.first_row + place;
                        let kind = json_kind(value).with_context(|| {
                            format!("row {number}: '{name}' is neither null, a flag, a number nor a text")
                        })?;
                        Ok((name.clone(), kind))
                    });
                    let fields: Vec<(String, Kind)> = fields.collect::<anyhow::Result<_>>()?;
                    request.rows.push(structure(fields.into_iter()));
                }
            }
        }
        Ok(())
    }
}

// === impl Rows ===

impl Rows {
    pub fn len(&self) -> usize {
        match self {
            Rows::Csv { records, .. } => records.len(),
            Rows::Json(objects) => objects.len(),
        }
    }
}

/// All cells row after row, if each is a number or empty.
fn numbers(records: &[StringRecord]) -> Option<Vec<f64>> {
    let cell = |cell: &str| {
        if cell.is_empty() { Some(f64::NAN) } else { cell.parse().ok() }
    };
    records.iter().flat_map(|record| record.iter().map(cell)).collect()
}

fn cell_kind(cell: &str) -> Kind {
    if cell.is_empty() {
        return Kind::NullValue(0);
    }
    match cell.parse() {
        Ok(number) => Kind::NumberValue(number),
        Err(_) => Kind::StringValue(cell.into()),
    }
}

fn json_kind(value: &Value) -> Option<Kind> {
    match value {
        Value::Null => Some(Kind::NullValue(0)),
        Value::Bool(flag) => Some(Kind::BoolValue(*flag)),
        Value::Number(number) => number.as_f64().map(Kind::NumberValue),
        Value::String(text) => Some(Kind::StringValue(text.clone())),
        Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::json;

    fn batches(form: Form, text: &'static str) -> Batches {
        Batches::new(form, Box::new(text.as_bytes())).unwrap()
    }

    fn filled(batch: &Batch) -> proto::PredictRequest {
        let mut request = proto::PredictRequest::default();
        batch.fill(&mut request, &Types::new()).unwrap();
        request
    }

    #[test]
    fn numeric_rows_become_a_table_with_nan_for_what_is_missing() {
        let mut file = batches(Form::Csv, "a, b\n1,2\n3,\n-1e3,nan\n");
        let batch = file.next(1, 2).unwrap().unwrap();
        assert_eq!(batch.place(), "rows 1 to 2");
        let table = filled(&batch).table.unwrap();
        assert_eq!(table.names, ["a", "b"]);
        assert_eq!(table.values[..3], [1.0, 2.0, 3.0]);
        assert!(table.values[3].is_nan());
        let batch = file.next(3, 2).unwrap().unwrap();
        assert_eq!((batch.place(), batch.rows.len()), ("row 3".to_string(), 1));
        assert!(file.next(4, 2).unwrap().is_none());
    }

    #[test]
    fn a_text_makes_its_batch_go_by_name() {
        let batch = batches(Form::Csv, "a,symbol\n1,AAPL\n,\n").next(1, 9).unwrap().unwrap();
        let rows: Vec<Value> = filled(&batch).rows.iter().map(json::row).collect();
        assert_eq!(Value::from(rows).to_string(), r#"[{"a":1.0,"symbol":"AAPL"},{"a":null,"symbol":null}]"#);
    }

    #[test]
    fn json_lines_keep_their_kinds_and_empty_lines_do_not_count() {
        let mut file = batches(Form::JsonLines, "{\"a\": 1, \"b\": null}\n\n{\"a\": true}\n{\"a\": {}}\n{");
        let batch = file.next(1, 2).unwrap().unwrap();
        let rows: Vec<Value> = filled(&batch).rows.iter().map(json::row).collect();
        assert_eq!(Value::from(rows).to_string(), r#"[{"a":1.0,"b":null},{"a":true}]"#);
        let batch = file.next(3, 1).unwrap().unwrap();
        let error = batch.fill(&mut proto::PredictRequest::default(), &Types::new()).unwrap_err();
        assert!(error.to_string().starts_with("row 3: 'a' is neither"), "{error}");
        assert!(file.next(4, 1).err().unwrap().to_string().starts_with("line 5 "));
    }

    #[test]
    fn a_ragged_line_is_an_error_with_its_number() {
        let error = batches(Form::Csv, "a,b\n1,2\n1\n").next(1, 9).err().unwrap();
        assert!(error.to_string().contains("line: 3"), "{error}");
    }

    #[test]
    fn the_form_shows_in_the_name_or_in_the_first_character() {
        let detect = |name: &str, text: &str| Form::detect(name, &mut text.as_bytes()).unwrap();
        assert_eq!(detect("x.CSV", "{"), Form::Csv);
        assert_eq!(detect("x.jsonl", "a"), Form::JsonLines);
        assert_eq!(detect("-", " \n{"), Form::JsonLines);
        assert_eq!(detect("-", "a,b"), Form::Csv);
    }
}

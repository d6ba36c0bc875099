//! Scored rows: each input row with the model's outputs appended.

use std::io::Write;

use anyhow::{bail, ensure};
use prost_types::Struct;
use serde_json::Value;

use super::batch::{Batch, Form, Rows};
use crate::cli::json;

/// Writes them in the form of the input. What was written stays, whatever comes after.
pub enum Output {
    Csv {
        writer: Box<csv::Writer<Box<dyn Write>>>,
        /// The outputs' columns; empty until the first answer.
        columns: Vec<String>,
    },
    JsonLines(Box<dyn Write>),
}

// === impl Output ===

impl Output {
    pub fn new(form: Form, writer: Box<dyn Write>) -> Self {
        match form {
            Form::Csv => Output::Csv { writer: Box::new(csv::Writer::from_writer(writer)), columns: Vec::new() },
            Form::JsonLines => Output::JsonLines(writer),
        }
    }

    /// `answers` are the rows of the server's answer to `batch`.
    pub fn write(&mut self, batch: &Batch, answers: &[Struct]) -> anyhow::Result<()> {
        let (sent, came) = (batch.rows.len(), answers.len());
        ensure!(
            sent == came,
            "{sent} rows went out and {came} answers came back: the model does not answer row by row; try --batch 1"
        );
        match (self, &batch.rows) {
            (Output::Csv { writer, columns }, Rows::Csv { headers, records }) => {
                for (record, answer) in records.iter().zip(answers) {
                    let cells = flat(answer, |name| headers.iter().any(|header| header == name));
                    let names = cells.iter().map(|(name, _)| name);
                    if columns.is_empty() {
                        *columns = names.cloned().collect();
                        writer.write_record(headers.iter().chain(columns.iter().map(String::as_str)))?;
                    } else if !names.eq(columns.iter()) {
                        bail!("the outputs of one row are not those of the rows before; write JSON lines instead");
                    }
                    writer.write_record(record.iter().chain(cells.iter().map(|(_, cell)| cell.as_str())))?;
                }
                writer.flush()?;
            }
            (Output::JsonLines(writer), Rows::Json(objects)) => {
                for (object, answer) in objects.iter().zip(answers) {
                    let mut scored = object.clone();
                    for (name, value) in &answer.fields {
                        scored.insert(free_name(name, |name| object.contains_key(name)), json::plain(value));
                    }
                    writeln!(writer, "{}", Value::Object(scored))?;
                }
                writer.flush()?;
            }
            _ => bail!("the output has another form than the input: this is a bug"),
        }
        Ok(())
    }
}

/// Cells by column name: a list becomes a column for each element, `probability_0` and so on.
fn flat(answer: &Struct, taken: impl Fn(&str) -> bool) -> Vec<(String, String)> {
    fn add(cells: &mut Vec<(String, String)>, name: String, value: Value) {
        match value {
            Value::Array(items) => {
                for (place, item) in items.into_iter().enumerate() {
                    add(cells, format!("{name}_{place}"), item);
                }
            }
            Value::Null => cells.push((name, String::new())),
            Value::String(text) => cells.push((name, text)),
            value => cells.push((name, value.to_string())),
        }
    }
    let mut cells = Vec::new();
    for (name, value) in &answer.fields {
        add(&mut cells, free_name(name, &taken), json::plain(value));
    }
    cells
}

/// An output that is named like an input gets `predicted_` before it.
fn free_name(name: &str, taken: impl Fn(&str) -> bool) -> String {
    let mut name = name.to_string();
    while taken(&name) {
        name.insert_str(0, "predicted_");
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{convert::structure, predict::batch::Batches};
    use prost_types::{ListValue, Value as ProtoValue, value::Kind};
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn answer(a: f64, list: &[f64]) -> Struct {
        let values = list.iter().map(|&number| ProtoValue { kind: Some(Kind::NumberValue(number)) });
        let list = ListValue { values: values.collect() };
        structure([("a".to_string(), Kind::NumberValue(a)), ("p".to_string(), Kind::ListValue(list))].into_iter())
    }

    fn scored(form: Form, input: &'static str, answers: &[Struct]) -> anyhow::Result<String> {
        let mut batches = Batches::new(form, Box::new(input.as_bytes()))?;
        let sink = Sink::default();
        let mut output = Output::new(form, Box::new(sink.clone()));
        output.write(&batches.next(1, 100)?.unwrap(), answers)?;
        let bytes = sink.0.lock().unwrap().clone();
        Ok(String::from_utf8(bytes)?)
    }

    #[test]
    fn outputs_are_columns_beside_the_input() {
        let answers = [answer(0.25, &[1.0, 2.5]), answer(f64::NAN, &[0.0, 1e300])];
        let text = scored(Form::Csv, "a,note\n1,\"x,y\"\n2,\n", &answers).unwrap();
        assert_eq!(text, "a,note,predicted_a,p_0,p_1\n1,\"x,y\",0.25,1.0,2.5\n2,,,0.0,1e+300\n");
        let text = scored(Form::JsonLines, "{\"a\":1}\n", &answers[..1]).unwrap();
        assert_eq!(text, "{\"a\":1,\"p\":[1.0,2.5],\"predicted_a\":0.25}\n");
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let message = |answers: &[Struct]| scored(Form::Csv, "a\n1\n2\n", answers).unwrap_err().to_string();
        assert!(message(&[answer(1.0, &[])]).contains("--batch 1"));
        assert!(message(&[answer(1.0, &[1.0]), answer(1.0, &[])]).contains("JSON lines"));
    }
}

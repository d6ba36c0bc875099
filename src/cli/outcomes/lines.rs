//! Lines of a CSV file, and the message each becomes.

use std::{collections::BTreeMap, io::Read};

use anyhow::{Context, bail};
use csv::StringRecord;

use super::Columns;
use crate::{
    cli::proto::{OwnId, RecordOutcomeRequest, record_outcome_request::Prediction},
    telemetry::logs::escape,
};

/// A file being read.
pub struct Lines {
    reader: csv::Reader<Box<dyn Read>>,
    places: Places,
}

/// A line, and what it says, or what is wrong with it.
pub struct Line {
    /// From 1, the first line with the names included.
    pub number: u64,
    pub message: Result<RecordOutcomeRequest, String>,
}

/// Where each column stands.
struct Places {
    prediction_id: Option<usize>,
    request_id: Option<usize>,
    model: Option<usize>,
    version: Option<usize>,
    variant: Option<usize>,
    label: Option<usize>,
    reward: Option<usize>,
    metrics: Vec<(String, usize)>,
}

// === impl Lines ===

impl Lines {
    pub fn new(input: Box<dyn Read>, columns: &Columns) -> anyhow::Result<Self> {
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).flexible(true).from_reader(input);
        let places = Places::find(reader.headers()?, columns)?;
        Ok(Self { reader, places })
    }

    /// `None` at the end. An error is the file's as a whole.
    pub fn next(&mut self) -> anyhow::Result<Option<Line>> {
        let mut record = StringRecord::new();
        match self.reader.read_record(&mut record) {
            Ok(false) => return Ok(None),
            Ok(true) => {}
            Err(error) => match (error.kind(), error.position().map(csv::Position::line)) {
                (csv::ErrorKind::Utf8 { .. }, Some(number)) => {
                    return Ok(Some(Line { number, message: Err("it is not UTF-8 text".into()) }));
                }
                _ => return Err(error.into()),
            },
        }
        let number = record.position().map_or(0, csv::Position::line);
        let columns = self.reader.headers()?.len();
        let message = match record.len() == columns {
            true => self.places.message(&record),
            false => Err(format!("{} cells, the first line has {columns}", record.len())),
        };
        Ok(Some(Line { number, message }))
    }
}

// === impl Places ===

impl Places {
    fn find(headers: &StringRecord, columns: &Columns) -> anyhow::Result<Self> {
        let mut by_name = BTreeMap::new();
        for (place, name) in headers.iter().enumerate() {
            if by_name.insert(name, place).is_some() {
                bail!("the first line names '{}' twice", escape(name));
            }
        }
        let place = |name: &String| by_name.get(name.as_str()).copied();
        let metrics = match &columns.metric[..] {
            [] => {
                let Columns { prediction_id, request_id, model, version, variant, label, reward, .. } = columns;
                let known = [prediction_id, request_id, model, version, variant, label, reward];
                let others = by_name.iter().filter(|(name, _)| known.iter().all(|known| known != *name));
                others.map(|(name, place)| ((*name).to_owned(), *place)).collect()
            }
            names => {
                let found = names.iter().map(|name| {
                    let place = place(name).with_context(|| format!("the file has no column '{}'", escape(name)))?;
                    Ok((name.clone(), place))
                });
                found.collect::<anyhow::Result<_>>()?
            }
        };
        let places = Self {
            prediction_id: place(&columns.prediction_id),
            request_id: place(&columns.request_id),
            model: place(&columns.model),
            version: place(&columns.version),
            variant: place(&columns.variant),
            label: place(&columns.label),
            reward: place(&columns.reward),
            metrics,
        };
        if places.prediction_id.is_none() && places.request_id.is_none() {
            let (id, own) = (escape(&columns.prediction_id), escape(&columns.request_id));
            bail!(
                "the first line names neither '{id}' nor '{own}'; --prediction-id COLUMN says which column has the ids"
            );
        }
        if places.label.is_none() && places.reward.is_none() && places.metrics.is_empty() {
            bail!("the first line names no label, no reward and no metric");
        }
        Ok(places)
    }

    fn message(&self, record: &StringRecord) -> Result<RecordOutcomeRequest, String> {
        let cell = |place: Option<usize>| place.and_then(|place| record.get(place)).filter(|cell| !cell.is_empty());
        let number = |name: &str, place: Option<usize>| {
            let parsed = cell(place).map(str::parse::<f64>).transpose();
            parsed.ok().filter(|number| number.is_none_or(f64::is_finite)).ok_or_else(|| {
                let name = escape(name);
                format!("'{name}' is no finite number")
            })
        };
        let text = |place: Option<usize>| cell(place).unwrap_or_default().to_owned();
        let own = || OwnId {
            request_id: text(self.request_id),
            model: text(self.model),
            version: text(self.version),
            variant: cell(self.variant).unwrap_or("stable").to_owned(),
        };
        let prediction = match (cell(self.prediction_id), cell(self.request_id)) {
            (Some(id), _) => Prediction::PredictionId(id.to_owned()),
            (None, Some(_)) => Prediction::Own(own()),
            (None, None) => return Err("no id".into()),
        };
        let mut metrics = BTreeMap::new();
        for (name, place) in &self.metrics {
            if let Some(value) = number(name, Some(*place))? {
                metrics.insert(name.clone(), value);
            }
        }
        let (label, reward) = (number("label", self.label)?, number("reward", self.reward)?);
        if label.is_none() && reward.is_none() && metrics.is_empty() {
            return Err("no label, no reward and no metric".into());
        }
        Ok(RecordOutcomeRequest { prediction: Some(prediction), label, reward, metrics })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Args, Command, FromArgMatches};

    fn columns(arguments: &[&str]) -> Columns {
        let command = Columns::augment_args(Command::new("import"));
        Columns::from_arg_matches(&command.get_matches_from([&["import"], arguments].concat())).unwrap()
    }

    fn read(text: &'static str, arguments: &[&str]) -> Vec<(u64, Result<RecordOutcomeRequest, String>)> {
        let mut lines = Lines::new(Box::new(text.as_bytes()), &columns(arguments)).unwrap();
        std::iter::from_fn(|| lines.next().unwrap()).map(|line| (line.number, line.message)).collect()
    }

    #[test]
    fn every_other_column_is_a_metric_and_an_empty_cell_says_nothing() {
        let lines = read("prediction_id,label,reward,pnl\nx,1,,3\ny,,-0.5,\nz,,,\n,1,,\nw,yes,,\nv,1,,nan\n", &[]);
        let messages: Vec<_> = lines.iter().map(|(_, message)| message.as_ref()).collect();
        let first = messages[0].unwrap();
        assert_eq!(first.prediction, Some(Prediction::PredictionId("x".into())));
        assert_eq!((first.label, first.reward, first.metrics["pnl"]), (Some(1.0), None, 3.0));
        let second = messages[1].unwrap();
        assert_eq!((second.label, second.reward, second.metrics.len()), (None, Some(-0.5), 0));
        assert_eq!(messages[2].unwrap_err(), "no label, no reward and no metric");
        assert_eq!(messages[3].unwrap_err(), "no id");
        assert_eq!(messages[4].unwrap_err(), "'label' is no finite number");
        assert_eq!(messages[5].unwrap_err(), "'pnl' is no finite number");
        assert_eq!(lines.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn columns_may_be_called_otherwise_and_lines_may_have_own_ids() {
        let text = "order,model,version,variant,pnl,symbol\n7,m,1.0.0,,2,AAPL\n8,m,1.1.0,canary,3,JPM\n";
        let lines = read(text, &["--request-id=order", "--reward=pnl", "--metric=pnl"]);
        let own = |place: usize| match lines[place].1.as_ref().unwrap().prediction.clone() {
            Some(Prediction::Own(own)) => (own.request_id, own.model, own.version, own.variant),
            other => panic!("{other:?}"),
        };
        assert_eq!(own(0), ("7".into(), "m".into(), "1.0.0".into(), "stable".into()));
        assert_eq!(own(1).3, "canary");
        let message = lines[0].1.as_ref().unwrap();
        assert_eq!((message.reward, &message.metrics), (Some(2.0), &BTreeMap::from([("pnl".to_owned(), 2.0)])));
    }

    #[test]
    fn a_file_without_ids_or_without_outcomes_is_refused_at_its_first_line() {
        let refused =
            |text: &'static str| Lines::new(Box::new(text.as_bytes()), &columns(&[])).err().unwrap().to_string();
        assert!(refused("id,label\n").contains("neither 'prediction_id' nor 'request_id'"));
        assert!(refused("prediction_id\n").contains("no label"));
        assert!(refused("prediction_id,label,label\n").contains("twice"));
    }

    #[test]
    fn a_ragged_line_and_one_that_is_no_text_have_their_numbers() {
        let lines = read("prediction_id,label\nx\ny,1\n", &[]);
        assert_eq!((lines[0].0, lines[0].1.as_ref().unwrap_err().as_str()), (2, "1 cells, the first line has 2"));
        assert!(lines[1].1.is_ok());
        let text = b"prediction_id,label\nx,1\n\xff,1\ny,1\n".as_slice();
        let mut lines = Lines::new(Box::new(text), &columns(&[])).unwrap();
        let lines: Vec<_> = std::iter::from_fn(|| lines.next().unwrap()).collect();
        assert_eq!(
            lines.iter().map(|line| (line.number, line.message.is_ok())).collect::<Vec<_>>(),
            [(2, true), (3, false), (4, true)]
        );
    }
}

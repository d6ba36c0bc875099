//! The form of a replica's file: `{"replica", "time", "cells": [{"revision", "variant", "version", …}]}`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::monitor::{Key, Tally};

#[derive(Serialize)]
struct Written<'a> {
    replica: &'a str,
    time: &'a str,
    cells: Vec<Row<'a>>,
}

#[derive(Serialize)]
struct Row<'a> {
    #[serde(flatten)]
    key: &'a Key,
    #[serde(flatten)]
    tally: &'a Tally,
}

/// What is needed of it.
#[derive(Deserialize)]
struct Read {
    cells: Vec<serde_json::Map<String, Value>>,
}

const KEY: [&str; 3] = ["revision", "variant", "version"];

pub fn write(replica: &str, time: &str, cells: &[(Key, Tally)]) -> serde_json::Result<String> {
    let cells = cells.iter().map(|(key, tally)| Row { key, tally }).collect();
    Ok(serde_json::to_string(&Written { replica, time, cells })? + "\n")
}

pub fn read(text: &str) -> serde_json::Result<Vec<(Key, Tally)>> {
    let read: Read = serde_json::from_str(text)?;
    let cell = |mut tally: serde_json::Map<String, Value>| {
        let key = KEY.into_iter().filter_map(|name| tally.remove_entry(name)).collect();
        Ok((serde_json::from_value(Value::Object(key))?, serde_json::from_value(Value::Object(tally))?))
    };
    read.cells.into_iter().map(cell).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        model::Version,
        monitor::{Cell, Outcome},
    };

    #[test]
    fn what_is_written_is_read() {
        let cell = Cell::default();
        cell.assign();
        cell.answer(Duration::from_millis(3), true);
        let metrics = vec![("pnl".to_owned(), 0.1 + 0.2)];
        cell.credit(0.7, &Outcome { label: Some(1.0), reward: Some(-0.3), metrics });
        let key = Key { revision: 3, variant: "canary".into(), version: Version::new(1, 2, 0) };
        let cells = vec![(key, cell.read())];
        let text = write("here-7070", "2026-11-22T00:00:00Z", &cells).expect("plain data");
        assert!(text.contains(r#""revision":3,"variant":"canary","version":"1.2.0","assigned":1"#), "{text}");
        assert_eq!(read(&text).expect("as it was written"), cells);
        for broken in
            ["", "{}", "[]", r#"{"cells":[{}]}"#, r#"{"cells":[{"revision":1,"variant":"a","version":"1","x":1}]}"#]
        {
            assert!(read(broken).is_err(), "{broken}");
        }
        assert_eq!(read(r#"{"cells":[]}"#).expect("nothing"), []);
    }
}

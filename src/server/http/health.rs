//! `/livez` and `/readyz`.

use std::{fmt::Write as _, time::Duration};

use http::StatusCode;

use super::{Page, text};
use crate::{
    catalog::{ModelEntry, Snapshot},
    server::trouble,
};

/// The process answers, and its cores turn: never a word on the store or on models, whose failures no restart mends.
pub fn live(stuck: Option<Duration>) -> Page {
    match stuck {
        None => text(StatusCode::OK, "ok\n".into()),
        Some(stuck) => {
            let why = format!("a core has not come back from a run for {} s\n", stuck.as_secs());
            text(StatusCode::SERVICE_UNAVAILABLE, why)
        }
    }
}

/// Whether traffic should come; with `verbose` each model on a line, and what stands in the way.
pub fn ready(snapshot: &Snapshot, serving: bool, verbose: bool) -> Page {
    let ready = serving && snapshot.is_ready();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut lines = String::new();
    if verbose {
        list(&mut lines, snapshot);
    }
    if !serving {
        lines.push_str("not ready: the server is draining\n");
    }
    if !snapshot.scanned {
        lines.push_str("not ready: the first scan of the store is not done\n");
    }
    for reason in &snapshot.unready {
        // Writing to a string cannot fail.
        let _ = writeln!(lines, "not ready: {}", one_line(reason));
    }
    lines.push_str(if ready { "ready\n" } else { "" });
    text(status, lines)
}

fn list(lines: &mut String, snapshot: &Snapshot) {
    let mut models: Vec<&ModelEntry> = snapshot.models.values().map(AsRef::as_ref).collect();
    models.sort_unstable_by(|left, right| left.name.cmp(&right.name));
    for model in models {
        let mark = if model.is_ready() { '+' } else { '-' };
        let _ = write!(lines, "[{mark}] {}", model.name);
        if let Some(stable) = model.stable {
            let _ = write!(lines, " {stable}");
        }
        if let Some(trouble) = trouble::of(model) {
            let _ = write!(lines, ": {}", one_line(&trouble));
        }
        lines.push('\n');
    }
}

/// Texts of libraries may have lines of their own; here each line is a statement.
fn one_line(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ModelName;
    use http_body_util::BodyExt;
    use std::sync::Arc;

    async fn read(page: Page) -> (StatusCode, String) {
        let status = page.status();
        let bytes = page.into_body().collect().await.expect("a text").to_bytes();
        (status, String::from_utf8_lossy(&bytes).into_owned())
    }

    #[tokio::test]
    async fn verbose_has_a_line_for_each_model_and_reason() {
        let name = ModelName::new("m").expect("a name");
        let entry = ModelEntry { message: Some("model.yaml:\nbroken".into()), ..ModelEntry::new(name.clone()) };
        let snapshot = Snapshot {
            models: [(name, Arc::new(entry))].into(),
            scanned: true,
            unready: vec!["m is required and failed".into()],
            ..Snapshot::default()
        };
        let (status, text) = read(ready(&snapshot, true, true)).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(text, "[-] m: model.yaml: broken\nnot ready: m is required and failed\n");
        let (_, text) = read(ready(&snapshot, false, false)).await;
        assert!(text.contains("draining") && !text.contains("[-]"));
        let scanned = Snapshot { scanned: true, ..Snapshot::default() };
        assert_eq!(read(ready(&scanned, true, false)).await, (StatusCode::OK, "ready\n".into()));
    }
}

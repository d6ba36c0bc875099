//! `sconce outcomes import`: a file of truths against a running server.

use std::fs;

use serde_json::Value;

use super::{predicted, started, written};
use crate::commands::{run, succeeds, text};

#[tokio::test]
async fn a_file_is_imported_and_what_is_wrong_with_it_is_said_by_line() {
    let server = started().await;
    let ids = predicted(&server, 2_000).await;
    let mut lines = vec!["prediction_id,label,reward,slippage".to_owned()];
    lines.extend(ids.iter().enumerate().map(|(place, id)| format!("{id},{},{},0.5", place % 2, place as f64 / 10.0)));
    fs::write(server.store.beside("truth.csv"), lines.join("\n")).expect("a file");
    let said = succeeds(&server, &["outcomes", "import", "truth.csv"], "");
    assert_eq!(said, "2000 outcomes: 2000 credited, 0 counted before, 0 of unknown ids, 0 refused\n");
    assert_eq!(written(&server.store.path()), 2_000);

    lines[3] = "forged,1,,".into();
    lines[5] = format!("{},maybe,,", ids[4]);
    lines[6] = format!("{},1", ids[5]);
    fs::write(server.store.beside("truth.csv"), lines.join("\n")).expect("a file");
    let output = run(&server, &["outcomes", "import", "truth.csv"], "");
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}{}", text(&output.stderr));
    let expected = "2000 outcomes: 0 credited, 1997 counted before, 1 of unknown ids, 2 refused\n\
        line 4: unknown id\nline 6: 'label' is no finite number\nline 7: 2 cells, the first line has 4\n";
    assert_eq!(said, expected);
    assert_eq!(written(&server.store.path()), 2_000, "an import that is repeated counts once");
}

#[tokio::test]
async fn columns_have_the_names_that_they_have() {
    let server = started().await;
    let id = predicted(&server, 1).await.remove(0);
    let file =
        format!("sconce_id,symbol,pnl,order,model,version\n{id},AAPL,-2,,,\n,JPM,3,order-8,early-signal,1.1.0\n");
    let columns = ["--prediction-id=sconce_id", "--request-id=order", "--reward=pnl", "--metric=pnl", "--json"];
    let said = succeeds(&server, &[&["outcomes", "import", "-"], &columns[..]].concat(), &file);
    let said: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!((&said["credited"], &said["durable"], &said["refused"]), (&2.into(), &true.into(), &0.into()));
    let output = run(&server, &["outcomes", "import", "-"], &file);
    assert!(text(&output.stderr).contains("--prediction-id"), "{}", text(&output.stderr));
}

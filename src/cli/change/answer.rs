//! What came of a change, for people, for scripts, and as an exit status.

use std::process::ExitCode;

use anyhow::bail;
use serde_json::{Value, json};

use crate::{
    cli::proto::{Asked, ChangeResponse, Settled},
    telemetry::logs::escape,
};

/// `early-signal: revision 4, stable 1.1.0: it holds`
pub fn for_people(model: &str, answer: &ChangeResponse) -> String {
    let changed = match (answer.repeated, answer.time.is_empty()) {
        (true, _) => " (this request had been carried out before)",
        (false, true) => " (it was so already)",
        (false, false) => "",
    };
    let holds = match answer.settled() {
        Settled::Ready => ", and it holds",
        _ => "",
    };
    let (model, stable) = (escape(model), escape(&answer.stable));
    format!("{model}: revision {}, stable {stable}{changed}{holds}\n", answer.revision)
}

pub fn to_json(model: &str, asked: &Asked, answer: &ChangeResponse) -> Value {
    json!({
        "model": model,
        "revision": answer.revision,
        "stable": answer.stable,
        "repeated": answer.repeated,
        "changed": !answer.repeated && !answer.time.is_empty(),
        "time": answer.time,
        "settled": answer.settled().as_str_name().trim_start_matches("SETTLED_").to_ascii_lowercase(),
        "message": answer.message,
        "request_id": asked.request_id,
    })
}

/// Failure where somebody waited for it to hold and it does not; the change is written all the same.
pub fn verdict(answer: &ChangeResponse, no_wait: bool) -> anyhow::Result<ExitCode> {
    let message = escape(&answer.message);
    match answer.settled() {
        Settled::Failed => bail!("it is written, but this replica cannot follow it and serves on as before: {message}"),
        Settled::Pending if !no_wait => {
            bail!("it is written and does not hold here yet: {message}; it goes on, `sconce watch` tells when it holds")
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(settled: Settled) -> ChangeResponse {
        ChangeResponse {
            revision: 4,
            stable: "1.1.0".into(),
            time: "2026-11-21T15:00:00Z".into(),
            settled: settled.into(),
            message: "version 1.1.0 is loading".into(),
            ..Default::default()
        }
    }

    #[test]
    fn what_was_waited_for_and_does_not_hold_is_a_failure() {
        assert!(verdict(&answer(Settled::Ready), false).is_ok());
        assert!(verdict(&answer(Settled::Unspecified), true).is_ok());
        assert!(verdict(&answer(Settled::Failed), false).is_err());
        let pending = verdict(&answer(Settled::Pending), false).err().unwrap().to_string();
        assert!(pending.contains("version 1.1.0 is loading"), "{pending}");
    }

    #[test]
    fn the_answer_is_a_line_and_an_object() {
        let ready = answer(Settled::Ready);
        assert_eq!(for_people("m", &ready), "m: revision 4, stable 1.1.0, and it holds\n");
        let repeated = ChangeResponse { repeated: true, ..answer(Settled::Unspecified) };
        assert_eq!(
            for_people("m", &repeated),
            "m: revision 4, stable 1.1.0 (this request had been carried out before)\n"
        );
        let asked = Asked { request_id: "r".into(), ..Default::default() };
        let json = to_json("m", &asked, &ready);
        assert_eq!((&json["settled"], &json["revision"]), (&json!("ready"), &json!(4)));
        let changed = |answer: &ChangeResponse| to_json("m", &asked, answer)["changed"].clone();
        let so_already = ChangeResponse { time: String::new(), ..ready.clone() };
        assert_eq!([&ready, &repeated, &so_already].map(changed), [true, false, false]);
    }
}

//! Changes of the shares while calls come.

use super::{ask, pins, sets, variant};
use crate::{
    commands::succeeds,
    harness::{
        Server,
        adders::{adders, predict},
        open_loop::OpenLoop,
    },
    proto::*,
};

#[tokio::test]
async fn a_changed_route_holds_when_it_is_answered_and_fails_no_call() {
    let server = Server::start(adders(1..=2), &[]).await;
    pins(&server, 1).await;
    let client = server.inference().await;
    let load = OpenLoop::begin(200.0, move |number| predict(client.clone(), number)).expect("a load");
    let mut client = server.inference().await;
    // As many changes as fit beside a hundred calls.
    let mut rounds = 0;
    while load.so_far().answered.len() < 100 {
        let all = |weight| Traffic { variants: vec![variant("canary", 2, weight)], ..Default::default() };
        let (weight, expected) = if rounds % 2 == 0 { (100.0, 2) } else { (0.0, 1) };
        sets(&server, all(weight)).await;
        let now = ask(&mut client, &[], &[]).await.expect("an answer").number;
        assert_eq!(now, expected, "it holds when it is answered");
        rounds += 1;
    }
    assert!(rounds >= 3, "{rounds} changes");
    let record = load.end().await;
    assert_eq!(record.failed, Vec::<String>::new());
    server.assert_unharmed().await;
}

#[tokio::test]
async fn the_command_line_edits_what_holds() {
    let server = Server::start(adders(1..=2), &[]).await;
    pins(&server, 1).await;
    let run = |arguments: &[&str]| succeeds(&server, &[&["route", "adder"], arguments].concat(), "");
    run(&["--variant=canary=1.0.2:5", "--sticky=attribute:customer", "--reason=a try"]);
    run(&["--variant=canary=1.0.2:25%", "--rule=attribute:tenant=acme:1.0.2"]);
    let people = succeeds(&server, &["describe", "adder"], "");
    for words in [
        "canary: 1.0.2, 25 % of the traffic",
        "sticky by attribute customer",
        "rule: attribute tenant acme → 1.0.2",
        "route canary=1.0.2:5 sticky=attribute:customer",
    ] {
        assert!(people.contains(words), "'{words}' is not in\n{people}");
    }
    let shown: serde_json::Value =
        serde_json::from_str(&succeeds(&server, &["describe", "adder", "--json"], "")).expect("JSON");
    assert_eq!(shown["route"]["traffic"]["variants"][0]["weight"], 25.0);
    run(&["--clear"]);
    assert!(!succeeds(&server, &["describe", "adder"], "").contains("canary: 1.0.2"));
}

//! Shares by slots, rules, and what overrules both.

use std::collections::BTreeMap;

use sconce::model;

use super::{Answered, ask, by_attribute, pins, sets, traffic, variant};
use crate::{
    harness::{
        PATIENCE, Server, Store,
        adders::{ADDER, adders, publish_adder, rows, version},
        call, eventually, process, sconce,
        tensors::Form,
    },
    proto::{predict_request::Select, *},
};

/// Another server over the store of one that is killed.
async fn restarted(mut server: Server, options: &[&str]) -> Server {
    process::kill(server.pid(), rustix::process::Signal::KILL);
    let store = std::mem::replace(&mut server.store, Store::new());
    drop(server);
    Server::start(store, options).await
}

/// Who answers each of these callers.
async fn by_customer(server: &Server, customers: u64) -> BTreeMap<u64, Answered> {
    let mut client = server.inference().await;
    let mut answered = BTreeMap::new();
    for customer in 0..customers {
        let key = format!("customer-{customer}");
        answered.insert(customer, ask(&mut client, &[("customer", &key)], &[]).await.expect("an answer"));
    }
    answered
}

#[tokio::test]
async fn a_caller_stays_where_its_slot_is_on_every_replica_and_a_larger_share_moves_callers_one_way() {
    let server = Server::start(adders(1..=3), &["--poll-interval=20ms"]).await;
    pins(&server, 1).await;
    let shares = |canary, other| Traffic {
        variants: vec![variant("canary", 2, canary), variant("b", 3, other)],
        sticky: by_attribute("customer"),
        ..Default::default()
    };
    sets(&server, shares(20.0, 10.0)).await;
    let first = by_customer(&server, 400).await;
    let slots = traffic(&server).await.variants.into_iter().map(|variant| variant.slots).collect::<Vec<_>>();
    let route = model::Route::parse(&format!(
        "variants:\n- {{name: canary, version: 1.0.2, weight: 20, slots: \"{}\"}}\n\
         - {{name: b, version: 1.0.3, weight: 10, slots: \"{}\"}}\n",
        slots[0], slots[1]
    ))
    .expect("a route");
    for (customer, answered) in &first {
        let slot = model::slot_of(ADDER, "", &format!("customer-{customer}"));
        let owner = route.variants.iter().find(|variant| variant.slots.iter().any(|own| own == slot));
        let expected = owner.map_or((1, "stable"), |owner| match owner.name.as_str() {
            "canary" => (2, "canary"),
            name => (3, name),
        });
        assert_eq!((answered.number, answered.variant.as_str()), expected, "customer {customer} in slot {slot}");
        assert_eq!((answered.reason, answered.degraded.len()), (RouteReason::Sticky, 0));
    }

    let mut command = sconce();
    command.arg("serve").arg("--model-store").arg(server.store.path());
    let other = Server::launch(Store::new(), command, &["--poll-interval=20ms"]).await;
    other.ready().await;
    other.reaches(ADDER, &version(2), VersionState::Ready).await;
    other.reaches(ADDER, &version(3), VersionState::Ready).await;
    assert_eq!(by_customer(&other, 400).await, first, "another replica of the same store");

    drop(other);
    let server = restarted(server, &["--poll-interval=20ms"]).await;
    assert_eq!(by_customer(&server, 400).await, first, "the same server, started anew");

    sets(&server, shares(50.0, 10.0)).await;
    let second = by_customer(&server, 400).await;
    for (customer, before) in &first {
        let after = &second[customer];
        assert!(before.variant == "stable" || after == before, "{customer}: {before:?} became {after:?}");
    }
    assert!(second.values().filter(|answered| answered.variant == "canary").count() > 150);
    sets(&server, shares(20.0, 10.0)).await;
    assert_eq!(by_customer(&server, 400).await, first, "what it had is taken back from those who came");
    server.assert_unharmed().await;
}

#[tokio::test]
async fn callers_stick_by_who_they_were_found_to_be_and_the_history_names_them() {
    let options = ["--caller-metadata=x-forwarded-user", "--poll-interval=20ms"];
    let server = Server::start(adders(1..=3), &options).await;
    pins(&server, 1).await;
    let traffic = Traffic {
        variants: vec![variant("canary", 2, 50.0)],
        sticky: Some(Sticky { caller: true, ..Default::default() }),
        rules: vec![RoutingRule {
            caller: true,
            values: vec!["auditor".into()],
            version: version(3),
            ..Default::default()
        }],
        ..Default::default()
    };
    let claims = Asked { caller: "mallory".into(), ..Default::default() };
    let mut change = call(SetRouteRequest { model: ADDER.into(), traffic: Some(traffic.clone()), asked: Some(claims) });
    change.metadata_mut().insert("x-forwarded-user", "alice".parse().expect("a value"));
    server.admin().await.set_route(change).await.expect("it is right");
    let route = server.describe(ADDER).await.route.expect("it is shown");
    assert_eq!(route.history.first().expect("a change").caller, "alice", "who is known goes before who is claimed");
    assert!(route.traffic.expect("it is shown").sticky.expect("it is shown").caller);

    let slots = super::traffic(&server).await.variants.remove(0).slots;
    let canary = format!("{{name: canary, version: 1.0.2, weight: 50, slots: \"{slots}\"}}");
    let route = model::Route::parse(&format!("variants: [{canary}]")).expect("a route");
    let mut client = server.inference().await;
    for desk in 0..100 {
        let name = format!("desk-{desk}");
        let answered = ask(&mut client, &[], &[("x-forwarded-user", &name)]).await.expect("an answer");
        let slot = model::slot_of(ADDER, "", &name);
        let expected = if route.variants[0].slots.iter().any(|own| own == slot) { 2 } else { 1 };
        assert_eq!((answered.number, answered.reason), (expected, RouteReason::Sticky), "{name} in slot {slot}");
    }
    let auditor = ask(&mut client, &[], &[("x-forwarded-user", "auditor")]).await.expect("an answer");
    assert_eq!((auditor.number, auditor.reason), (3, RouteReason::Rule));
    // Said twice, one of the two is the caller's own.
    let twice = [("x-forwarded-user", "auditor"), ("x-forwarded-user", "desk-1")];
    for nobody in [&[][..], &[("caller", "auditor")], &[("x-forwarded-user", "")], &twice] {
        let answered = ask(&mut client, nobody, nobody).await.expect("an answer");
        assert_eq!(answered.reason, RouteReason::Draw, "{nobody:?}");
    }

    // Where nothing says who calls, nobody is known, whatever a call claims.
    let server = restarted(server, &["--poll-interval=20ms"]).await;
    let mut client = server.inference().await;
    let answered = ask(&mut client, &[], &[("x-forwarded-user", "auditor")]).await.expect("an answer");
    assert_eq!(answered.reason, RouteReason::Draw);
}

#[tokio::test]
async fn who_has_no_key_is_drawn_for_and_a_version_or_label_overrules_all() {
    let server = Server::start(adders(1..=2), &[]).await;
    pins(&server, 1).await;
    let labels =
        SetLabelsRequest { model: ADDER.into(), set: [("old".into(), version(1))].into(), ..Default::default() };
    server.admin().await.set_labels(call(labels)).await.expect("it is right");
    sets(&server, Traffic { variants: vec![variant("canary", 2, 50.0)], ..Default::default() }).await;
    let mut client = server.inference().await;
    let mut canary = 0;
    for _ in 0..400 {
        let answered = ask(&mut client, &[], &[]).await.expect("an answer");
        assert_eq!(answered.reason, RouteReason::Draw);
        canary += u32::from(answered.number == 2);
    }
    // Fifty of 400 from the middle is five standard deviations.
    assert!((150..=250).contains(&canary), "{canary} of 400");
    for select in [Select::Version(version(1)), Select::Label("old".into())] {
        let request = PredictRequest {
            model: ADDER.into(),
            select: Some(select),
            inputs: vec![rows(1).to_sconce(Form::Raw)],
            ..Default::default()
        };
        let served = server.predict(request).await.expect("an answer").served.expect("it says who");
        assert_eq!((served.version, served.variant), (version(1), "pinned".into()));
    }
}

#[tokio::test]
async fn rules_look_at_attributes_and_metadata_before_any_share_in_both_dialects() {
    let server = Server::start(adders(1..=3), &[]).await;
    pins(&server, 1).await;
    let rule = |attribute: &str, metadata: &str, values: &[&str], number| RoutingRule {
        attribute: attribute.into(),
        metadata: metadata.into(),
        values: values.iter().map(|value| (*value).to_owned()).collect(),
        version: version(number),
        caller: false,
    };
    let rules = vec![rule("tenant", "", &["acme", "initech"], 2), rule("", "x-beta", &["yes"], 3)];
    let sticky = Some(Sticky { metadata: "x-customer".into(), ..Default::default() });
    sets(&server, Traffic { rules, sticky, variants: vec![variant("all", 3, 100.0)], ..Default::default() }).await;
    let mut client = server.inference().await;
    let acme = ask(&mut client, &[("tenant", "acme")], &[("x-beta", "yes")]).await.expect("an answer");
    assert_eq!(
        (acme.number, acme.variant.as_str(), acme.reason),
        (2, "rule", RouteReason::Rule),
        "the first that matches"
    );
    let beta = ask(&mut client, &[("tenant", "other")], &[("x-beta", "yes")]).await.expect("an answer");
    assert_eq!((beta.number, beta.reason), (3, RouteReason::Rule));
    let nobody = ask(&mut client, &[("tenant", "Acme")], &[("x-beta", "no")]).await.expect("an answer");
    assert_eq!((nobody.number, nobody.variant.as_str(), nobody.reason), (3, "all", RouteReason::Draw));

    let known = ask(&mut client, &[], &[("x-customer", "c-1")]).await.expect("an answer");
    assert_eq!((known.number, known.reason), (3, RouteReason::Sticky));

    let plain = || {
        let mut request = oip::ModelInferRequest { model_name: ADDER.into(), ..Default::default() };
        rows(1).into_oip(&mut request, Form::Raw);
        request
    };
    let beta = |message| {
        let mut request = call(message);
        request.metadata_mut().insert("x-beta", "yes".parse().expect("a value"));
        request
    };
    let answer = server.oip().await.model_infer(beta(plain())).await.expect("an answer").into_inner();
    assert_eq!(answer.model_version, version(3), "by metadata");

    // A stream is older than the rule that its next message is given by.
    let (questions, asked) = tokio::sync::mpsc::channel(4);
    let mut streamed = call(tokio_stream::wrappers::ReceiverStream::new(asked));
    streamed.metadata_mut().insert("x-late", "yes".parse().expect("a value"));
    let mut answers = server.oip().await.model_stream_infer(streamed).await.expect("a stream").into_inner();
    questions.send(plain()).await.expect("it is open");
    let answered = |answer: Option<oip::ModelStreamInferResponse>| {
        answer.and_then(|answer| answer.infer_response).expect("an answer")
    };
    assert_eq!(answered(answers.message().await.expect("it is open")).model_version, version(3));
    let late = vec![rule("tenant", "", &["acme"], 2), rule("", "x-late", &["yes"], 2)];
    sets(&server, Traffic { rules: late, variants: vec![variant("all", 3, 100.0)], ..Default::default() }).await;
    questions.send(plain()).await.expect("it is open");
    assert_eq!(answered(answers.message().await.expect("it is open")).model_version, version(2));

    let mut request = oip::ModelInferRequest { model_name: ADDER.into(), ..Default::default() };
    rows(1).into_oip(&mut request, Form::Raw);
    let tenant = oip::infer_parameter::ParameterChoice::StringParam("acme".into());
    let tenant = oip::InferParameter { parameter_choice: Some(tenant) };
    request.parameters.insert("tenant".into(), tenant);
    let answer = server.infer(request).await.expect("an answer");
    assert_eq!(answer.model_version, version(2));
    let said = |name: &str| format!("{:?}", answer.parameters.get(name));
    for name in ["variant", "route_reason"] {
        assert!(said(name).contains("\"rule\""), "{:?}", answer.parameters);
    }
}

#[tokio::test]
async fn stable_stands_in_for_what_is_not_ready_and_says_so() {
    let server = Server::start(adders(1..=1), &["--poll-interval=20ms"]).await;
    let text = "stable: 1.0.1\nvariants: [{name: canary, version: 1.0.9, weight: 100}]\n";
    std::fs::write(server.store.path().join(ADDER).join("route.yaml"), text).expect("a file");
    let mut client = server.inference().await;
    let answered = eventually("stable stands in", PATIENCE, async || {
        let answered = ask(&mut client, &[], &[]).await.expect("never without an answer");
        (!answered.degraded.is_empty()).then_some(answered)
    })
    .await;
    assert_eq!((answered.number, answered.variant.as_str()), (1, "stable"));
    assert_eq!(answered.degraded, ["variant_unready"]);
    assert!(traffic(&server).await.variants[0].stood_in_for.contains("not ready"));
    publish_adder(&server.store, 9);
    let answered = eventually("the canary answers", PATIENCE, async || {
        let answered = ask(&mut client, &[], &[]).await.expect("never without an answer");
        (answered.number == 9).then_some(answered)
    })
    .await;
    assert_eq!((answered.variant.as_str(), answered.degraded.len()), ("canary", 0));
}

#[tokio::test]
async fn what_is_asked_twice_is_made_once_and_an_edit_goes_on_from_what_was_decided_last() {
    let server = Server::start(adders(1..=2), &[]).await;
    pins(&server, 1).await;
    let asked = |id: &str| Some(Asked { request_id: id.into(), ..Default::default() });
    let traffic = |weight| Some(Traffic { variants: vec![variant("canary", 2, weight)], ..Default::default() });
    let mut admin = server.admin().await;
    let mut set = async |weight, id| {
        let request = SetRouteRequest { model: ADDER.into(), traffic: traffic(weight), asked: asked(id) };
        admin.set_route(call(request)).await.map(tonic::Response::into_inner)
    };
    let first = set(5.0, "one").await.expect("it is right");
    let again = set(5.0, "one").await.expect("it is right");
    assert_eq!((again.revision, again.repeated), (first.revision, true));
    let other = set(6.0, "one").await.expect_err("another change");
    assert_eq!(crate::harness::reason(&other), "REQUEST_ID_REUSED");
    // The next one waits for a version that never comes, and the command edits upon it all the same.
    let text = format!("revision: {}\nstable: 1.0.9\n", first.revision + 1);
    std::fs::write(server.store.path().join(ADDER).join("route.yaml"), text).expect("a file");
    eventually("the other route is known", PATIENCE, async || {
        let route = server.describe(ADDER).await.route.expect("it is shown");
        (route.latest_revision == first.revision + 1 && !route.pending.is_empty()).then_some(())
    })
    .await;
    crate::commands::succeeds(&server, &["route", ADDER, "--variant=canary=1.0.2:7", "--no-wait"], "");
    let shown = server.describe(ADDER).await.route.expect("it is shown");
    assert_eq!(shown.history[0].change, "route canary=1.0.2:7");
}

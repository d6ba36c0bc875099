//! A version on its way to stable, by plan.

mod api;
mod arrivals;
mod command;
mod judged;
mod load;
mod meddling;
mod replicas;
mod stages;
mod survives;
mod trial;

use std::time::Duration;

use sconce::model::{Phase, Rollout as Written, Route as Record};
use tonic::{Request, Response, Status, transport::Channel};

use crate::{
    harness::{
        Server,
        adders::{ADDER, adders, version},
        call,
    },
    proto::{admin_client::AdminClient, *},
};

/// A server with versions 1 to `highest`, of which the first is stable.
async fn stable_beside(highest: u64) -> Server {
    let server = Server::start(adders(1..=highest), &[]).await;
    let request = PromoteRequest { model: ADDER.into(), version: version(1), asked: None };
    server.admin().await.promote(call(request)).await.expect("it is there");
    server
}

/// It stays at its first step for as long as a test may take, whoever else asks the server.
fn unhurried() -> RolloutPlan {
    let minutes = |minutes: i64| Some(prost_types::Duration { seconds: 60 * minutes, nanos: 0 });
    RolloutPlan { hold: minutes(10), min_samples: Some(1_000_000), ..Default::default() }
}

async fn deploy(server: &Server, number: u64, plan: RolloutPlan) -> Result<ChangeResponse, Status> {
    deploy_asked(server, number, plan, Asked::default()).await
}

async fn deploy_asked(server: &Server, number: u64, plan: RolloutPlan, asked: Asked) -> Result<ChangeResponse, Status> {
    let request = DeployRequest { model: ADDER.into(), version: version(number), plan: Some(plan), asked: Some(asked) };
    server.admin().await.deploy(call(request)).await.map(Response::into_inner)
}

/// Something asked of Admin about the model, of whichever revision the route has by then: the rollout may move on by itself.
async fn asks<Q: Clone, A>(
    server: &Server,
    request: Q,
    call_it: impl AsyncFn(AdminClient<Channel>, Request<Q>) -> Result<Response<A>, Status>,
) -> Result<A, Status> {
    loop {
        let answer = call_it(server.admin().await, call(request.clone())).await.map(Response::into_inner);
        match answer {
            Err(status) if crate::harness::reason(&status) == "REVISION_MOVED" => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            answer => return answer,
        }
    }
}

async fn pause(server: &Server, asked: Asked) -> Result<ChangeResponse, Status> {
    let request = PauseRolloutRequest { model: ADDER.into(), asked: Some(asked) };
    asks(server, request, async |mut admin, request| admin.pause_rollout(request).await).await
}

async fn resume(server: &Server) -> Result<ChangeResponse, Status> {
    let request = ResumeRolloutRequest { model: ADDER.into(), asked: None };
    asks(server, request, async |mut admin, request| admin.resume_rollout(request).await).await
}

async fn abort(server: &Server, asked: Asked) -> Result<ChangeResponse, Status> {
    let request = AbortRolloutRequest { model: ADDER.into(), asked: Some(asked) };
    asks(server, request, async |mut admin, request| admin.abort_rollout(request).await).await
}

async fn promote(server: &Server, number: u64) -> Result<ChangeResponse, Status> {
    let request = PromoteRequest { model: ADDER.into(), version: version(number), asked: None };
    asks(server, request, async |mut admin, request| admin.promote(request).await).await
}

async fn rollback(server: &Server, to: Option<u64>) -> Result<ChangeResponse, Status> {
    let version = to.map(version).unwrap_or_default();
    let request = RollbackRequest { model: ADDER.into(), version, asked: None };
    asks(server, request, async |mut admin, request| admin.rollback(request).await).await
}

async fn described(server: &Server) -> Option<Rollout> {
    let request = DescribeRolloutRequest { model: ADDER.into() };
    server.admin().await.describe_rollout(call(request)).await.expect("an answer").into_inner().rollout
}

/// What stands in the store.
fn record(server: &Server) -> Record {
    let text = std::fs::read_to_string(server.store.path().join(ADDER).join("route.yaml")).expect("a file");
    Record::parse(&text).expect("it is right")
}

fn written(server: &Server) -> Written {
    record(server).rollout.expect("a rollout")
}

/// Where it may be, one that is not hindered, with a plan that is unhurried.
fn is_at_most_at_the_first_step(phase: Phase) -> bool {
    matches!(phase, Phase::Gates | Phase::Step(0))
}

/// The first event of that kind about that version.
async fn told(server: &Server, model: &str, version: &str, kind: EventKind) -> Event {
    let request = WatchEventsRequest { after_sequence: Some(0), models: model.into(), ..Default::default() };
    let mut stream = server.admin().await.watch_events(call(request)).await.expect("a stream").into_inner();
    loop {
        let message = stream.message().await.expect("no error").expect("it goes on");
        if let Some(watch_events_response::What::Event(event)) = message.what
            && (event.kind(), &*event.version) == (kind, version)
        {
            return event;
        }
    }
}

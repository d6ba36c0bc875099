//! What operators ask for: written by the operator's one door, told as an event, and waited for as long as the caller does.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use http::HeaderValue;
use tokio::time::timeout_at;
use tonic::Request;

use crate::{
    error::{Error, Result},
    model::Version,
    rollout::{self, Change},
    server::{
        call::panicked,
        control::Control,
        grpc::{
            admin::{plan, traffic},
            context, known,
        },
        phase::Phases,
        proto::sconce::v1::{
            AbortRolloutRequest, Asked, ChangeResponse, DeployRequest, DisableModelRequest, EnableModelRequest,
            LoadVersionRequest, PauseRolloutRequest, PromoteRequest, ReloadModelRequest, ResumeRolloutRequest,
            RollbackRequest, SetLabelsRequest, SetRouteRequest, Settled, UnloadVersionRequest, UnpinRequest,
        },
    },
};

/// A message that asks for a change of one model's route.
pub trait Ask {
    fn parts(self) -> Result<(String, Change, Option<Asked>)>;
}

/// A change, as one call asks for it.
pub struct Order {
    pub model: String,
    pub change: Change,
    pub asked: rollout::Asked,
    /// When the caller must have its answer.
    pub answer_by: Instant,
    /// Whether it waits for what comes of the change.
    pub waits: bool,
}

/// A caller without a deadline waits no longer than this.
const WAIT_MAX: Duration = Duration::from_secs(300);
/// What an answer may need on its way to a caller whose time is running out.
const WAY_MIN: Duration = Duration::from_millis(20);
const WAY_MAX: Duration = Duration::from_millis(500);

// === impl Order ===

impl Order {
    pub fn of<T: Ask>(request: Request<T>) -> Result<Self> {
        let arrival = context(&request).arrival;
        let who = Who::asks(&request);
        let (model, change, asked) = request.into_inner().parts()?;
        let Asked { request_id, expected_revision, reason, caller, no_wait } = asked.unwrap_or_default();
        Ok(Self {
            model,
            change,
            asked: rollout::Asked { caller: who.or_claimed(caller), reason, request_id, expected_revision },
            answer_by: patience(arrival.at, arrival.deadline),
            waits: !no_wait,
        })
    }
}

/// Writes the change and waits for what comes of it here. The write goes on when the caller goes away meanwhile: what was
/// begun is finished and told.
pub async fn carry_out(control: &Control, mut phases: Phases, order: Order) -> Result<ChangeResponse> {
    let Order { model, change, asked, answer_by, waits } = order;
    let writing = {
        let (control, model) = (control.clone(), model.clone());
        async move {
            let written = control.operator.change(&model, change.clone(), asked.clone()).await?;
            if !written.repeated && !written.time.is_empty() {
                control.events.tell(rollout::event(&model, &change, &asked, &written));
            }
            Ok(written)
        }
    };
    let written = match timeout_at(answer_by.into(), tokio::spawn(writing)).await {
        Ok(written) => written.unwrap_or_else(|_| Err(panicked()))?,
        Err(_) => return Err(unanswered()),
    };
    let (settled, message) = match waits {
        false => (Settled::Unspecified, String::new()),
        true => tokio::select! {
            settled = control.operator.settled(&model, &written, answer_by.into()) => told(settled),
            _ = phases.closing() => (Settled::Pending, "this server is going away".to_owned()),
        },
    };
    Ok(ChangeResponse {
        revision: written.revision,
        stable: written.stable.to_string(),
        repeated: written.repeated,
        time: written.time,
        settled: settled.into(),
        message,
    })
}

fn unanswered() -> Error {
    let message = "the store has not answered in the time of this call; the change may still be written: ask again with the same \
                   request id, and it is made once";
    Error::unavailable("STORE_UNAVAILABLE", message, WAY_MAX)
}

/// When the answer must leave, so that it arrives in time.
pub fn patience(now: Instant, deadline: Option<Instant>) -> Instant {
    let Some(deadline) = deadline else {
        return now + WAIT_MAX;
    };
    let way = (deadline.saturating_duration_since(now) / 10).clamp(WAY_MIN, WAY_MAX);
    deadline.checked_sub(way).unwrap_or(now).max(now)
}

/// Who asks, for the history.
pub struct Who {
    /// As what authenticates callers says.
    known: Option<String>,
    /// What the caller's library calls itself: better than nothing where nobody says who they are.
    agent: String,
}

impl Who {
    pub fn asks<T>(request: &Request<T>) -> Self {
        let headers = request.metadata().as_ref();
        let said = |value: &HeaderValue| {
            let value = value.to_str().ok().filter(|value| !value.is_empty())?;
            Some(value.chars().take(200).collect())
        };
        let config = &context(request).connection.shared.config;
        let known = config.caller_metadata.as_ref().and_then(|key| known(headers, key)).and_then(said);
        Self { known, agent: headers.get("user-agent").and_then(said).unwrap_or_default() }
    }

    /// What is known goes before what is claimed.
    pub fn or_claimed(self, claimed: String) -> String {
        self.known.unwrap_or(if claimed.is_empty() { self.agent } else { claimed })
    }
}

fn told(settled: rollout::Settled) -> (Settled, String) {
    match settled {
        rollout::Settled::Ready => (Settled::Ready, String::new()),
        rollout::Settled::Failed(error) => (Settled::Failed, format!("{}: {error}", error.reason())),
        rollout::Settled::Pending(why) => (Settled::Pending, why),
    }
}

// === impl Ask, for each request ===

impl Ask for PromoteRequest {
    fn parts(self) -> Result<(String, Change, Option<Asked>)> {
        Ok((self.model, Change::Promote(self.version.parse()?), self.asked))
    }
}

impl Ask for RollbackRequest {
    fn parts(self) -> Result<(String, Change, Option<Asked>)> {
        let version = (!self.version.is_empty()).then(|| self.version.parse()).transpose()?;
        Ok((self.model, Change::Rollback(version), self.asked))
    }
}

impl Ask for UnpinRequest {
    fn parts(self) -> Result<(String, Change, Option<Asked>)> {
        Ok((self.model, Change::Unpin, self.asked))
    }
}

impl Ask for SetLabelsRequest {
    fn parts(self) -> Result<(String, Change, Option<Asked>)> {
        let parsed = |(label, version): (String, String)| Ok((label, version.parse()?));
        let set: Result<BTreeMap<String, Version>> = self.set.into_iter().map(parsed).collect();
        Ok((self.model, Change::SetLabels { set: set?, remove: self.remove }, self.asked))
    }
}

impl Ask for SetRouteRequest {
    fn parts(self) -> Result<(String, Change, Option<Asked>)> {
        let sharing = traffic::read(self.traffic.unwrap_or_default())?;
        Ok((self.model, Change::SetRoute(Box::new(sharing)), self.asked))
    }
}

impl Ask for DeployRequest {
    fn parts(self) -> Result<(String, Change, Option<Asked>)> {
        let plan = plan::read(self.plan.unwrap_or_default())?;
        Ok((self.model, Change::Deploy(self.version.parse()?, Box::new(plan)), self.asked))
    }
}

impl Ask for PauseRolloutRequest {
    fn parts(self) -> Result<(String, Change, Option<Asked>)> {
        Ok((self.model, Change::Pause, self.asked))
    }
}

impl Ask for ResumeRolloutRequest {
    fn parts(self) -> Result<(String, Change, Option<Asked>)> {
        Ok((self.model, Change::Resume, self.asked))
    }
}

impl Ask for AbortRolloutRequest {
    fn parts(self) -> Result<(String, Change, Option<Asked>)> {
        Ok((self.model, Change::Abort, self.asked))
    }
}

impl Ask for LoadVersionRequest {
    fn parts(self) -> Result<(String, Change, Option<Asked>)> {
        Ok((self.model, Change::Load(self.version.parse()?), self.asked))
    }
}

impl Ask for UnloadVersionRequest {
    fn parts(self) -> Result<(String, Change, Option<Asked>)> {
        Ok((self.model, Change::Unload(self.version.parse()?), self.asked))
    }
}

impl Ask for ReloadModelRequest {
    fn parts(self) -> Result<(String, Change, Option<Asked>)> {
        Ok((self.model, Change::Reload, self.asked))
    }
}

impl Ask for DisableModelRequest {
    fn parts(self) -> Result<(String, Change, Option<Asked>)> {
        Ok((self.model, Change::Disable, self.asked))
    }
}

impl Ask for EnableModelRequest {
    fn parts(self) -> Result<(String, Change, Option<Asked>)> {
        Ok((self.model, Change::Enable, self.asked))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::proto::sconce::v1::RolloutPlan;

    #[test]
    fn the_answer_leaves_before_the_callers_time_is_up() {
        let now = Instant::now();
        let left = |millis| {
            let deadline = now + Duration::from_millis(millis);
            deadline - patience(now, Some(deadline))
        };
        assert_eq!(left(1_000), Duration::from_millis(100));
        assert_eq!(left(60_000), WAY_MAX);
        assert_eq!(left(100), WAY_MIN);
        assert_eq!(left(5), Duration::from_millis(5), "not before it came");
        assert_eq!(patience(now, None), now + WAIT_MAX);
    }

    #[test]
    fn each_message_asks_for_its_change() {
        let asked = RollbackRequest { model: "m".into(), ..Default::default() }.parts().expect("it is right");
        assert_eq!(asked.1, Change::Rollback(None));
        let asked = PromoteRequest { model: "m".into(), version: "v1.2".into(), asked: None }.parts();
        assert_eq!(asked.expect("it is right").1, Change::Promote(Version::new(1, 2, 0)));
        let refused = PromoteRequest { model: "m".into(), version: "latest".into(), asked: None }.parts();
        assert_eq!(refused.expect_err("no version").reason(), "INVALID_VERSION");
        let asked = DeployRequest { model: "m".into(), version: "2".into(), ..Default::default() }.parts();
        let expected = Change::Deploy(Version::new(2, 0, 0), Box::default());
        assert_eq!(asked.expect("it is right").1, expected, "all of a plan may be left out");
        let wrong = RolloutPlan { alpha: Some(0.9), ..Default::default() };
        let refused = DeployRequest { version: "2".into(), plan: Some(wrong), ..Default::default() }.parts();
        assert_eq!(refused.expect_err("no level").reason(), "INVALID_PLAN");
    }
}

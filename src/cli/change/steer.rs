//! `sconce rollout pause`, `resume`, `abort` and `promote`: changes of the rollout that runs.

use std::{sync::Mutex, time::Duration};

use clap::Subcommand;
use tonic::{Response, Status, transport::Channel};

use super::ChangeArgs;
use crate::{
    cli::{
        client::{self, Failure},
        proto::{
            AbortRolloutRequest, Asked, ChangeResponse, DescribeRolloutRequest, PauseRolloutRequest, PromoteRequest,
            ResumeRolloutRequest, admin_client::AdminClient,
        },
    },
    error::{Code, Error},
};

#[derive(Subcommand)]
pub enum Steer {
    /// Keep a rollout where it is; callers get what they get, and a broken guardrail undoes it all the same
    #[command(after_help = "Example:\n  sconce rollout pause early-signal --reason 'the feed is late today'")]
    Pause {
        /// The model's name
        model: String,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Let a paused rollout go on, whoever paused it; the time of the pause does not count
    #[command(after_help = "Example:\n  sconce rollout resume early-signal --reason 'two desks were on holiday'")]
    Resume {
        /// The model's name
        model: String,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// End a rollout: stable has all again, and the version may be deployed another time
    #[command(after_help = "\
`sconce rollback MODEL` ends it, too, and rejects the version.

Example:
  sconce rollout abort early-signal --reason 'not today'")]
    Abort {
        /// The model's name
        model: String,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Make the version that is being rolled out stable now, whatever its plan still asks for
    #[command(after_help = "Example:\n  sconce rollout promote early-signal --reason 'seen enough'")]
    Promote {
        /// The model's name
        model: String,
        #[command(flatten)]
        change: ChangeArgs,
        /// What is asked for, once it is known: a retry asks for the same.
        #[arg(skip)]
        request: Mutex<Option<PromoteRequest>>,
    },
}

/// Of a rollout that moved on by itself while it was asked for.
const ATTEMPTS_MAX: usize = 20;
const SOON: Duration = Duration::from_millis(100);

// === impl Steer ===

impl Steer {
    pub fn model(&self) -> &str {
        match self {
            Steer::Pause { model, .. }
            | Steer::Resume { model, .. }
            | Steer::Abort { model, .. }
            | Steer::Promote { model, .. } => model,
        }
    }

    pub fn args(&self) -> &ChangeArgs {
        match self {
            Steer::Pause { change, .. }
            | Steer::Resume { change, .. }
            | Steer::Abort { change, .. }
            | Steer::Promote { change, .. } => change,
        }
    }

    /// A rollout passes stages by itself, which is no reason to refuse: where the caller named no revision, it is asked again
    /// upon the one that holds by then.
    pub async fn call(
        &self,
        client: &mut AdminClient<Channel>,
        asked: Asked,
        timeout: Duration,
    ) -> Result<Response<ChangeResponse>, Status> {
        for _ in 1..ATTEMPTS_MAX {
            match self.ask(client, asked.clone(), timeout).await {
                Err(status) if asked.expected_revision.is_none() && has_moved(&status) => self.forget(),
                answer => return answer,
            }
            tokio::time::sleep(SOON).await;
        }
        self.ask(client, asked, timeout).await
    }

    async fn ask(
        &self,
        client: &mut AdminClient<Channel>,
        asked: Asked,
        timeout: Duration,
    ) -> Result<Response<ChangeResponse>, Status> {
        let model = self.model().to_owned();
        match self {
            Steer::Pause { .. } => {
                client.pause_rollout(client::call(PauseRolloutRequest { model, asked: Some(asked) }, timeout)).await
            }
            Steer::Resume { .. } => {
                client.resume_rollout(client::call(ResumeRolloutRequest { model, asked: Some(asked) }, timeout)).await
            }
            Steer::Abort { .. } => {
                client.abort_rollout(client::call(AbortRolloutRequest { model, asked: Some(asked) }, timeout)).await
            }
            Steer::Promote { request, .. } => {
                let known = request.lock().ok().and_then(|known| known.clone());
                let wanted = match known {
                    Some(known) => known,
                    None => promotion(client.clone(), model, asked, timeout).await?,
                };
                if let Ok(mut known) = request.lock() {
                    *known = Some(wanted.clone());
                }
                client.promote(client::call(wanted, timeout)).await
            }
        }
    }

    /// Nothing was written, so it may be asked for otherwise.
    fn forget(&self) {
        if let Steer::Promote { request, .. } = self
            && let Ok(mut known) = request.lock()
        {
            *known = None;
        }
    }
}

fn has_moved(status: &Status) -> bool {
    Failure::from(status.clone()).reason() == "REVISION_MOVED"
}

/// Of the version that runs. If it is over by the time this is asked for, nothing is promoted.
async fn promotion(
    mut client: AdminClient<Channel>,
    model: String,
    asked: Asked,
    timeout: Duration,
) -> Result<PromoteRequest, Status> {
    let request = client::call(DescribeRolloutRequest { model: model.clone() }, timeout);
    let described = client.describe_rollout(request).await?.into_inner();
    let Some(rollout) = described.rollout.filter(|rollout| rollout.running) else {
        let message =
            format!("nothing of model '{model}' is being rolled out; `sconce promote` makes a version stable");
        return Err(Error::new(Code::FailedPrecondition, "NO_ROLLOUT", message).into());
    };
    let asked = Asked { expected_revision: asked.expected_revision.or(Some(described.revision)), ..asked };
    Ok(PromoteRequest { model, version: rollout.version, asked: Some(asked) })
}

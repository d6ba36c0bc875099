//! `sconce rollout pause`, `resume`, `abort` and `promote`: changes of the rollout that runs.

use std::time::Duration;

use clap::Subcommand;
use tokio::sync::OnceCell;
use tonic::{Response, Status, transport::Channel};

use super::ChangeArgs;
use crate::cli::{
    client,
    proto::{
        AbortRolloutRequest, Asked, ChangeResponse, DescribeRolloutRequest, PauseRolloutRequest, PromoteRequest,
        ResumeRolloutRequest, admin_client::AdminClient,
    },
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
        request: OnceCell<PromoteRequest>,
    },
}

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

    pub async fn call(
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
                let request = request.get_or_try_init(|| promotion(client.clone(), model, asked, timeout)).await?;
                client.promote(client::call(request.clone(), timeout)).await
            }
        }
    }
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
        return Err(Status::failed_precondition(message));
    };
    let asked = Asked { expected_revision: asked.expected_revision.or(Some(described.revision)), ..asked };
    Ok(PromoteRequest { model, version: rollout.version, asked: Some(asked) })
}

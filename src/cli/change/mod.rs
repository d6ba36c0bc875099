//! The verbs that change a model: each is one call of Admin, repeated with the same request id until it is answered, and
//! then what came of it on the replica that was asked.

mod answer;
mod deploy;
mod left;
mod progress;
mod route;
mod steer;

use std::{
    io::Write,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::{Args, Subcommand};
use tonic::{Response, Status, transport::Channel};

use super::{
    INTERRUPTED,
    client::{self, Failure},
    models::{AdminArgs, TIMEOUT},
    print,
    proto::{
        Asked, ChangeResponse, DescribeModelRequest, DisableModelRequest, EnableModelRequest, LoadVersionRequest,
        PromoteRequest, ReloadModelRequest, RollbackRequest, SetLabelsRequest, UnloadVersionRequest, UnpinRequest,
        VersionState, VersionStatus, admin_client::AdminClient,
    },
};
use crate::{
    model::{Version, units::parse_duration},
    telemetry::logs::escape,
};
use deploy::DeployArgs;
use route::RouteArgs;
pub use steer::Steer;

#[derive(Subcommand)]
pub enum Verb {
    /// Make a version stable: calls that name none are answered by it, until somebody says otherwise
    #[command(after_help = PROMOTE_HELP)]
    Promote {
        /// The model's name
        model: String,
        /// The version that is to be stable
        version: String,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Go back to the stable version before, and pass over the one that is left from now on
    #[command(after_help = ROLLBACK_HELP)]
    Rollback {
        /// The model's name
        model: String,
        /// The version to go back to (default: the one before)
        version: Option<String>,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Let the highest ready version be stable again, the rejected ones aside
    #[command(after_help = "Example:\n  sconce unpin early-signal --reason 'the experiment is over'")]
    Unpin {
        /// The model's name
        model: String,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Give versions names that calls may use, and take names away
    #[command(after_help = LABEL_HELP)]
    Label {
        /// The model's name
        model: String,
        /// A name and its version, e.g. prod=1.1.0; may be repeated
        #[arg(value_name = "NAME=VERSION", value_parser = parse_label, required_unless_present = "remove")]
        labels: Vec<(String, String)>,
        /// A name to take away; may be repeated
        #[arg(long, value_name = "NAME")]
        remove: Vec<String>,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Say who shares a model's traffic with its stable version: variants by weight, rules, shadows
    #[command(after_help = route::HELP)]
    Route(Box<RouteArgs>),
    /// Bring a version to stable by plan: a growing share of the traffic, judged beside stable
    #[command(after_help = deploy::HELP)]
    Deploy(Box<DeployArgs>),
    /// One of `sconce rollout`.
    #[command(skip)]
    Steer(Steer),
    /// Load a version that model.yaml does not select; it answers only calls that name it
    #[command(
        after_help = "Example:\n  sconce load early-signal 1.0.0 && sconce predict early-signal --version 1.0.0 -f x.csv"
    )]
    Load {
        /// The model's name
        model: String,
        /// The version to load
        version: String,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Take `load` back
    #[command(after_help = "Example:\n  sconce unload early-signal 1.0.0")]
    Unload {
        /// The model's name
        model: String,
        /// The version that need not be loaded any more
        version: String,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Make a model's loaded versions anew from the store, beside those that serve, and swap them
    #[command(after_help = "Example:\n  sconce reload early-signal")]
    Reload {
        /// The model's name
        model: String,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Let a model answer nobody until it is enabled; its versions stay loaded
    #[command(after_help = "Example:\n  sconce disable early-signal --reason 'bad ticks from the feed since 09:30'")]
    Disable {
        /// The model's name
        model: String,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Let a disabled model answer again
    #[command(after_help = "Example:\n  sconce enable early-signal")]
    Enable {
        /// The model's name
        model: String,
        #[command(flatten)]
        change: ChangeArgs,
    },
}

/// What every change takes.
#[derive(Args)]
pub struct ChangeArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// Why, for the history
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Who asks, for the history (default: you at this machine)
    #[arg(long, value_name = "NAME")]
    caller: Option<String>,
    /// Change nothing unless the route has this revision (`sconce describe` shows it)
    #[arg(long, value_name = "N")]
    expected_revision: Option<u64>,
    /// Stands for this change: given again, the change is made once (default: made up, the same on retries)
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
    /// How long to wait until it holds on the replica that is asked; the change stands all the same
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    timeout: Duration,
    /// Do not wait until it holds
    #[arg(long)]
    no_wait: bool,
}

const PROMOTE_HELP: &str = "\
It waits until the version is ready on the replica that is asked, and serves the old one until then.
Ctrl-C ends the waiting and not the promote.
Exit status 1: it was refused, the version failed, or --timeout passed first; what is written is shown;
130: it was interrupted.

Examples:
  sconce promote early-signal 1.1.0 --reason 'AUC 0.61 against 0.58'
  sconce promote early-signal 1.1.0 --expected-revision 4     refused if somebody else was first
  sconce promote early-signal 1.1.0 --no-wait --json | jq .revision";

const ROLLBACK_HELP: &str = "\
The version that is left is rejected: `stable: latest` passes over it, and only `promote` or
`deploy` brings it back. While a version is being rolled out, it is that one.

Examples:
  sconce rollback early-signal --reason 'drift since 14:00'
  sconce rollback early-signal 1.0.0";

const LABEL_HELP: &str = "\
A call names a label where it would name a version: {\"model\": \"early-signal\", \"label\": \"prod\"}.

Examples:
  sconce label early-signal prod=1.0.0 next=1.1.0
  sconce label early-signal --remove next";

pub fn run(verb: &Verb) -> anyhow::Result<ExitCode> {
    if let Verb::Route(route) = verb {
        anyhow::ensure!(
            !route.asks_for_nothing(),
            "say what is to change, e.g. --variant canary=1.1.0:5; `sconce describe {}` shows what holds",
            route.model
        );
    }
    let args = verb.args();
    let asked = args.asked();
    let answer = client::block_on(async {
        let client = client::admin(&args.admin.server).await?;
        let waiting = (!args.no_wait).then(|| progress::follow(client.clone(), verb.model().to_owned()));
        let answer = tokio::select! {
            answer = verb.carry_out(&client, &asked, args.timeout) => Some(answer),
            pressed = tokio::signal::ctrl_c() => pressed.map(|()| None)?,
        };
        if let Some(waiting) = waiting {
            waiting.end().await;
        }
        let Some(answer) = answer else {
            let _ = writeln!(std::io::stderr(), "{}", left::said(client, verb.model(), &asked).await);
            return Ok(None);
        };
        let answer = answer.map_err(|failure| said(failure, &asked.request_id))?;
        let more = verb.more(client, &answer).await;
        Ok(Some((answer, more)))
    })?;
    let Some((answer, more)) = answer else {
        return Ok(ExitCode::from(INTERRUPTED));
    };
    print(&match args.admin.json {
        true => answer::to_json(verb.model(), &asked, &answer).to_string() + "\n",
        false => answer::for_people(verb.model(), &answer) + &more,
    })?;
    answer::verdict(&answer, args.no_wait)
}

/// What is refused was not made; of anything else nobody knows, and it may be asked for again.
fn said(failure: Failure, request_id: &str) -> anyhow::Error {
    match failure.is_uncertain() {
        false => failure.into(),
        true => anyhow::anyhow!(
            "{failure}\nwhether it was written is not known: ask again with --request-id {request_id}, and it is made once"
        ),
    }
}

// === impl Verb ===

impl Verb {
    fn model(&self) -> &str {
        match self {
            Verb::Promote { model, .. }
            | Verb::Rollback { model, .. }
            | Verb::Unpin { model, .. }
            | Verb::Label { model, .. }
            | Verb::Load { model, .. }
            | Verb::Unload { model, .. }
            | Verb::Reload { model, .. }
            | Verb::Disable { model, .. }
            | Verb::Enable { model, .. } => model,
            Verb::Route(route) => &route.model,
            Verb::Deploy(deploy) => &deploy.model,
            Verb::Steer(steer) => steer.model(),
        }
    }

    fn args(&self) -> &ChangeArgs {
        match self {
            Verb::Promote { change, .. }
            | Verb::Rollback { change, .. }
            | Verb::Unpin { change, .. }
            | Verb::Label { change, .. }
            | Verb::Load { change, .. }
            | Verb::Unload { change, .. }
            | Verb::Reload { change, .. }
            | Verb::Disable { change, .. }
            | Verb::Enable { change, .. } => change,
            Verb::Route(route) => &route.change,
            Verb::Deploy(deploy) => &deploy.change,
            Verb::Steer(steer) => steer.args(),
        }
    }

    /// What people should know beside the answer, as a line: how a rollout is followed, and why an unload that took nothing back
    /// leaves the version where it was. Empty where there is nothing to say.
    async fn more(&self, mut client: AdminClient<Channel>, answer: &ChangeResponse) -> String {
        let (model, version) = match self {
            Verb::Unload { model, version, .. } => (model, version),
            Verb::Deploy(deploy) => {
                return format!("`sconce rollout status {} --watch` follows it\n", escape(&deploy.model));
            }
            _ => return String::new(),
        };
        if answer.repeated || !answer.time.is_empty() {
            return String::new();
        }
        let request = client::call(DescribeModelRequest { model: model.clone() }, TIMEOUT);
        let described = client.describe_model(request).await.map(Response::into_inner).unwrap_or_default();
        let loaded = |status: &&VersionStatus| matches!(status.state(), VersionState::Ready | VersionState::Loading);
        let wanted = version.parse::<Version>().map(|version| version.to_string()).unwrap_or_default();
        let found = described.versions.iter().filter(loaded).find(|status| status.version == wanted);
        let said = found
            .map(|_| format!("{wanted} stays loaded: it was not `load` that asked for it, model.yaml selects it\n"));
        said.unwrap_or_default()
    }

    /// Retries carry the same request id, so whatever became of an attempt, the change is made once.
    async fn carry_out(
        &self,
        client: &AdminClient<Channel>,
        asked: &Asked,
        timeout: Duration,
    ) -> Result<ChangeResponse, Failure> {
        let until = Instant::now() + timeout;
        client::with_retries_until(Some(until), || {
            // An attempt that has no time left still hears why.
            let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(100));
            self.call(client.clone(), asked.clone(), left)
        })
        .await
    }

    async fn call(
        &self,
        mut client: AdminClient<Channel>,
        asked: Asked,
        timeout: Duration,
    ) -> Result<Response<ChangeResponse>, Status> {
        let (model, asked) = (self.model().to_owned(), Some(asked));
        match self {
            Verb::Route(route) => route.call(&mut client, asked.unwrap_or_default(), timeout).await,
            Verb::Deploy(deploy) => client.deploy(client::call(deploy.request(asked), timeout)).await,
            Verb::Steer(steer) => steer.call(&mut client, asked.unwrap_or_default(), timeout).await,
            Verb::Promote { version, .. } => {
                let version = version.clone();
                client.promote(client::call(PromoteRequest { model, version, asked }, timeout)).await
            }
            Verb::Rollback { version, .. } => {
                let version = version.clone().unwrap_or_default();
                client.rollback(client::call(RollbackRequest { model, version, asked }, timeout)).await
            }
            Verb::Unpin { .. } => client.unpin(client::call(UnpinRequest { model, asked }, timeout)).await,
            Verb::Label { labels, remove, .. } => {
                let (set, remove) = (labels.iter().cloned().collect(), remove.clone());
                client.set_labels(client::call(SetLabelsRequest { model, set, remove, asked }, timeout)).await
            }
            Verb::Load { version, .. } => {
                let version = version.clone();
                client.load_version(client::call(LoadVersionRequest { model, version, asked }, timeout)).await
            }
            Verb::Unload { version, .. } => {
                let version = version.clone();
                client.unload_version(client::call(UnloadVersionRequest { model, version, asked }, timeout)).await
            }
            Verb::Reload { .. } => {
                client.reload_model(client::call(ReloadModelRequest { model, asked }, timeout)).await
            }
            Verb::Disable { .. } => {
                client.disable_model(client::call(DisableModelRequest { model, asked }, timeout)).await
            }
            Verb::Enable { .. } => {
                client.enable_model(client::call(EnableModelRequest { model, asked }, timeout)).await
            }
        }
    }
}

// === impl ChangeArgs ===

impl ChangeArgs {
    fn asked(&self) -> Asked {
        Asked {
            request_id: self.request_id.clone().unwrap_or_else(|| format!("{:032x}", fastrand::u128(..))),
            expected_revision: self.expected_revision,
            reason: self.reason.clone().unwrap_or_default(),
            caller: self.caller.clone().unwrap_or_else(whoami),
            no_wait: self.no_wait,
        }
    }
}

/// `alice@workbench`
pub fn whoami() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    match std::env::var("USER") {
        Ok(user) if !user.is_empty() => format!("{user}@{host}"),
        _ => format!("sconce@{host}"),
    }
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((label, version)) if !label.is_empty() && !version.is_empty() => Ok((label.into(), version.into())),
        _ => Err("write NAME=VERSION, e.g. prod=1.1.0".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Command, FromArgMatches};

    fn verb(arguments: &[&str]) -> Result<Verb, clap::Error> {
        let command = Verb::augment_subcommands(Command::new("sconce"));
        let matches = command.try_get_matches_from([&["sconce"], arguments].concat())?;
        Verb::from_arg_matches(&matches)
    }

    #[test]
    fn a_request_id_is_made_up_once() {
        let made_up = verb(&["unpin", "m"]).unwrap();
        let asked = made_up.args().asked();
        assert_eq!(asked.request_id.len(), 32);
        assert!(!asked.caller.is_empty());
        let given = verb(&["promote", "m", "1.1.0", "--request-id=x", "--expected-revision=3"]).unwrap();
        let asked = given.args().asked();
        assert_eq!((asked.request_id.as_str(), asked.expected_revision), ("x", Some(3)));
    }

    #[test]
    fn labels_are_written_with_their_versions() {
        let Verb::Label { labels, remove, .. } = verb(&["label", "m", "prod=1.1.0", "--remove=old"]).unwrap() else {
            panic!("a label");
        };
        assert_eq!((labels, remove), (vec![("prod".into(), "1.1.0".into())], vec!["old".to_string()]));
        assert!(verb(&["label", "m", "--remove=old"]).is_ok());
        assert!(verb(&["label", "m"]).is_err());
        assert!(verb(&["label", "m", "prod"]).err().unwrap().to_string().contains("NAME=VERSION"));
    }
}

//! `sconce deploy`: the plan that is asked for, of a file and of flags.

use std::{fs, time::Duration};

use clap::Args;

use super::ChangeArgs;
use crate::{
    cli::proto::{Asked, DeployRequest, RolloutPlan},
    model::{Goal, Metric, Plan, ShadowStage, parse_yaml, units::parse_duration},
    telemetry::logs::escape,
};

#[derive(Args)]
pub struct DeployArgs {
    /// The model's name
    pub model: String,
    /// The version that is to become stable
    pub version: String,
    /// How it gets there: a YAML file with the keys of model.yaml's `canary:`; flags win over it
    #[arg(long, value_name = "FILE", value_parser = read_plan)]
    plan: Option<Plan>,
    /// Its shares of the traffic, in percent, one after another; the last is 100 (default: 5,25,50,100)
    #[arg(long, value_name = "PERCENT,…", value_delimiter = ',')]
    steps: Vec<f64>,
    /// How long each step lasts at least (default: 10m)
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    hold: Option<Duration>,
    /// Requests, and outcomes where there is a metric, that each step wants of either version (default: 100)
    #[arg(long, value_name = "N")]
    min_samples: Option<u64>,
    /// After that time it waits for a person (default: 1day)
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    max_duration: Option<Duration>,
    /// First ask it beside those who answer, for so many percent of the requests, and give nobody its answers
    #[arg(long, value_name = "PERCENT")]
    shadow: Option<f64>,
    /// How long the shadow stage lasts at least (default: 10m)
    #[arg(long, value_name = "TIME", requires = "shadow", value_parser = parse_duration)]
    shadow_hold: Option<Duration>,
    /// The share of requests that may fail, e.g. 0.01, whatever stable does
    #[arg(long, value_name = "SHARE")]
    max_error_rate: Option<f64>,
    /// How many times stable's p95 its own may be (default: 1.2)
    #[arg(long, value_name = "RATIO")]
    max_latency_ratio: Option<f64>,
    /// The share of rows for which it may say something else than callers got, in the shadow stage, e.g. 0.05
    #[arg(long, value_name = "SHARE")]
    max_disagreement: Option<f64>,
    /// What outcomes have to say of it: accuracy, log_loss, brier, squared_error, reward, or a metric of your own
    #[arg(long, value_name = "NAME", value_parser = parse_metric)]
    metric: Option<Metric>,
    /// Which way is better, of a metric of your own: maximize or minimize
    #[arg(long, value_name = "WAY", value_parser = parse_goal)]
    goal: Option<Goal>,
    /// How much worse than stable it may be, in the metric's unit; that it is no worse has to be shown then
    #[arg(long, value_name = "X")]
    margin: Option<f64>,
    #[command(flatten)]
    pub change: ChangeArgs,
}

pub const HELP: &str = "\
It passes its gates (it is ready, and answers what stable's callers ask), then a shadow stage where
there is one, then step by step a larger share. Each step is judged beside stable: a version that
fails more, is slower or predicts worse is taken out at once, and what nobody knows is waited for.
The command ends when the rollout has begun; `sconce rollout status MODEL --watch` follows it.
Without a plan it goes by model.yaml's `canary:`; with --plan, or any flag that says how, nothing of
`canary:` holds. What has no flag (gates, max_error_ratio, max_degraded, max_non_finite, effect, alpha,
shadow.min_samples) stands in the file of --plan; docs/rollouts.md has all keys.

Examples:
  sconce deploy early-signal 1.1.0
  sconce deploy early-signal 1.1.0 --steps 1,10,50,100 --hold 30m --max-error-rate 0.01
  sconce deploy early-signal 1.1.0 --shadow 20 --max-disagreement 0.05 --metric accuracy --margin 0.01
  sconce deploy early-signal 1.1.0 --plan careful.yaml --hold 1h --reason 'AUC 0.61 against 0.58'";

// === impl DeployArgs ===

impl DeployArgs {
    pub fn request(&self, asked: Option<Asked>) -> DeployRequest {
        let plan = self.plan().as_ref().map(RolloutPlan::from);
        DeployRequest { model: self.model.clone(), version: self.version.clone(), plan, asked }
    }

    /// `None` where nothing was said. Whether it makes sense is the server's to say.
    fn plan(&self) -> Option<Plan> {
        let said = self.plan.clone().unwrap_or_default();
        let shadow = self.shadow.map(|sample| {
            let stage = said.shadow.clone().unwrap_or_default();
            ShadowStage { sample, hold: self.shadow_hold.unwrap_or(stage.hold), ..stage }
        });
        let plan = Plan {
            steps: if self.steps.is_empty() { said.steps } else { self.steps.clone() },
            hold: self.hold.unwrap_or(said.hold),
            min_samples: self.min_samples.unwrap_or(said.min_samples),
            max_duration: self.max_duration.unwrap_or(said.max_duration),
            shadow: shadow.or(said.shadow),
            max_error_rate: self.max_error_rate.or(said.max_error_rate),
            max_latency_ratio: self.max_latency_ratio.unwrap_or(said.max_latency_ratio),
            max_disagreement: self.max_disagreement.or(said.max_disagreement),
            metric: self.metric.clone().or(said.metric),
            goal: self.goal.or(said.goal),
            margin: self.margin.or(said.margin),
            ..said
        };
        (self.plan.is_some() || self.says_how()).then_some(plan)
    }

    /// Whether any flag is about the plan.
    fn says_how(&self) -> bool {
        !self.steps.is_empty()
            || self.hold.is_some()
            || self.min_samples.is_some()
            || self.max_duration.is_some()
            || self.shadow.is_some()
            || self.max_error_rate.is_some()
            || self.max_latency_ratio.is_some()
            || self.max_disagreement.is_some()
            || self.metric.is_some()
            || self.goal.is_some()
            || self.margin.is_some()
    }
}

fn read_plan(file: &str) -> Result<Plan, String> {
    let text = fs::read_to_string(file).map_err(|error| error.to_string())?;
    parse_yaml(file, &text).map_err(|error| escape(error.message()))
}

fn parse_metric(name: &str) -> Result<Metric, String> {
    name.parse().map_err(|error: crate::error::Error| error.message().to_owned())
}

fn parse_goal(text: &str) -> Result<Goal, String> {
    let known = [Goal::Maximize, Goal::Minimize].into_iter().find(|goal| goal.to_string() == text);
    known.ok_or_else(|| "write maximize or minimize".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Command, FromArgMatches};

    fn args(arguments: &[&str]) -> Result<DeployArgs, clap::Error> {
        let command = DeployArgs::augment_args(Command::new("deploy"));
        DeployArgs::from_arg_matches(&command.try_get_matches_from([&["deploy", "m", "2"], arguments].concat())?)
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_what_holds_by_default() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("plan.yaml");
        let text = "{ steps: [10, 100], hold: 5m, min_samples: 7, max_degraded: 0.2, shadow: { sample: 5, hold: 1m } }";
        fs::write(&file, text).expect("a file");
        let from = format!("--plan={}", file.display());
        let expected = Plan {
            steps: vec![10.0, 100.0],
            hold: Duration::from_secs(60),
            min_samples: 7,
            max_degraded: 0.2,
            shadow: Some(ShadowStage { sample: 30.0, hold: Duration::from_secs(60), ..ShadowStage::default() }),
            metric: Some(Metric::Accuracy),
            margin: Some(0.01),
            ..Plan::default()
        };
        let both = args(&[&from, "--hold=1m", "--shadow=30", "--metric=accuracy", "--margin=0.01"]);
        assert_eq!(both.expect("it is right").plan(), Some(expected));
        let slower =
            args(&[&from, "--shadow=30", "--shadow-hold=2m"]).expect("it is right").plan().expect("it was said");
        assert_eq!(slower.shadow.map(|shadow| shadow.hold), Some(Duration::from_secs(120)));
        assert!(args(&["--shadow-hold=2m"]).is_err(), "of no stage");
        let steps = args(&["--steps=1,10.5,100"]).expect("it is right").plan().expect("it was said");
        assert_eq!(steps, Plan { steps: vec![1.0, 10.5, 100.0], ..Plan::default() });
    }

    #[test]
    fn every_flag_of_the_plan_is_taken_and_none_means_the_models_own() {
        assert_eq!(args(&[]).expect("it is right").request(None).plan, None, "the model's own");
        assert_eq!(args(&["--reason=x", "--no-wait"]).expect("it is right").plan(), None);
        for flag in [
            "--steps=50,100",
            "--hold=1m",
            "--min-samples=7",
            "--max-duration=2h",
            "--shadow=50",
            "--max-error-rate=0.1",
            "--max-latency-ratio=2",
            "--max-disagreement=0.05",
            "--metric=pnl",
            "--goal=minimize",
            "--margin=1",
        ] {
            let plan = args(&[flag]).expect(flag).plan();
            assert!(plan.as_ref().is_some_and(|plan| *plan != Plan::default()), "{flag}: {plan:?}");
        }
    }

    #[test]
    fn what_is_written_wrong_says_so_before_anybody_is_asked() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("plan.yaml");
        fs::write(&file, "step: [5]").expect("a file");
        for (argument, says) in [
            (format!("--plan={}", file.display()), "step"),
            ("--plan=absent.yaml".to_owned(), "No such file"),
            ("--hold=10".to_owned(), "not a duration"),
            ("--metric=auc".to_owned(), "auc"),
            ("--goal=up".to_owned(), "maximize or minimize"),
            ("--steps=5,x".to_owned(), "x"),
        ] {
            let error = args(&[&argument]).err().expect(&argument).to_string();
            assert!(error.contains(says), "{argument}: {error}");
        }
    }
}

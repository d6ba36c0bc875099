//! A rollout followed until it is over: a picture that is drawn anew, or a line for each change.

use std::{
    io::{IsTerminal, Write, stderr, stdout},
    process::ExitCode,
    time::Duration,
};

use anyhow::bail;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{StatusArgs, draw, json, never};
use crate::cli::{
    client::{self, Failure},
    models::TIMEOUT,
    print,
    proto::{DescribeRolloutRequest, DescribeRolloutResponse, Rollout},
};

const LOOK: Duration = Duration::from_secs(1);

/// Where it is shown.
enum Screen {
    /// The bar is a picture's place on the terminal.
    Drawn(ProgressBar),
    Lines {
        json: bool,
    },
}

pub fn run(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let screen = Screen::of(args.admin.json);
    let ended = client::block_on(follow(args, &screen));
    screen.clear();
    let last = ended?;
    let Some(rollout) = &last.rollout else {
        bail!("{}", never(&args.model));
    };
    if let Screen::Drawn(_) = screen {
        print(&draw::picture(&last.model, rollout))?;
    }
    Ok(if is_promoted(rollout) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What it came to.
async fn follow(args: &StatusArgs, screen: &Screen) -> anyhow::Result<DescribeRolloutResponse> {
    let mut client = client::admin(&args.admin.server).await?;
    let (mut looks, mut shown, mut is_away) = (tokio::time::interval(LOOK), None, false);
    loop {
        looks.tick().await;
        let request = DescribeRolloutRequest { model: args.model.clone() };
        let described = match client.describe_rollout(client::call(request, TIMEOUT)).await {
            Ok(described) => described.into_inner(),
            Err(status) => {
                let failure = Failure::from(status);
                if !failure.is_uncertain() {
                    return Err(failure.into());
                }
                if !is_away {
                    screen.say(&format!("{failure}; it is asked again until it answers"));
                }
                is_away = true;
                continue;
            }
        };
        if is_away {
            screen.say("it answers again");
            is_away = false;
        }
        let Some(rollout) = &described.rollout else { return Ok(described) };
        let standing = Some(draw::standing(rollout));
        screen.show(&described, rollout, standing != shown)?;
        shown = standing;
        if !rollout.running {
            return Ok(described);
        }
    }
}

fn is_promoted(rollout: &Rollout) -> bool {
    rollout.phase == "promoted"
}

// === impl Screen ===

impl Screen {
    fn of(json: bool) -> Self {
        if json || !stdout().is_terminal() {
            return Screen::Lines { json };
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stdout());
        if let Ok(style) = ProgressStyle::with_template("{msg}") {
            bar.set_style(style);
        }
        Screen::Drawn(bar)
    }

    fn show(&self, described: &DescribeRolloutResponse, rollout: &Rollout, is_news: bool) -> anyhow::Result<()> {
        match self {
            Screen::Drawn(bar) => {
                bar.set_message(draw::picture(&described.model, rollout));
                Ok(())
            }
            Screen::Lines { .. } if !is_news => Ok(()),
            Screen::Lines { json: true } => print(&(json::of(described).to_string() + "\n")),
            Screen::Lines { json: false } => print(&(draw::line(rollout) + "\n")),
        }
    }

    /// Beside the picture; nobody may be reading.
    fn say(&self, what: &str) {
        match self {
            Screen::Drawn(bar) => bar.println(what),
            Screen::Lines { .. } => {
                let _ = writeln!(stderr(), "{what}");
            }
        }
    }

    fn clear(&self) {
        if let Screen::Drawn(bar) = self {
            bar.finish_and_clear();
        }
    }
}

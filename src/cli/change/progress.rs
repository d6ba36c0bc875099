//! A line on stderr that shows where the model's versions stand while a change is waited for. Only for people: where stderr is
//! no terminal, nothing is written.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::task::JoinHandle;
use tonic::transport::Channel;

use crate::{
    cli::{
        client, describe,
        models::TIMEOUT,
        proto::{DescribeModelRequest, DescribeModelResponse, VersionState, admin_client::AdminClient},
    },
    telemetry::logs::escape,
};

/// The line, while it is there.
pub struct Progress {
    bar: ProgressBar,
    following: JoinHandle<()>,
}

const TICK: Duration = Duration::from_millis(100);
const LOOK: Duration = Duration::from_millis(250);

pub fn follow(client: AdminClient<Channel>, model: String) -> Progress {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {msg}") {
        bar.set_style(style);
    }
    bar.set_message(format!("{}: asking", escape(&model)));
    bar.enable_steady_tick(TICK);
    let following = tokio::spawn(tell(client, model, bar.clone()));
    Progress { bar, following }
}

/// Best effort: the change is what was asked for, and it is not waited for here.
async fn tell(mut client: AdminClient<Channel>, model: String, bar: ProgressBar) {
    let mut looks = tokio::time::interval(LOOK);
    loop {
        looks.tick().await;
        let request = DescribeModelRequest { model: model.clone() };
        match client.describe_model(client::call(request, TIMEOUT)).await {
            Ok(described) => bar.set_message(shown(&model, described.get_ref())),
            Err(_) => return,
        }
    }
}

/// `early-signal: 1.1.0 loading, 1.0.0 ready; revision 4 waits: version 1.1.0 is loading`
fn shown(model: &str, described: &DescribeModelResponse) -> String {
    let at_work = described.versions.iter().filter(|version| version.state() != VersionState::Available);
    let states: Vec<String> =
        at_work.map(|version| format!("{} {}", version.version, describe::state(version))).collect();
    let pending = described.route.as_ref().map(|route| route.pending.as_str()).unwrap_or_default();
    let said: Vec<String> =
        [states.join(", "), pending.to_owned()].into_iter().filter(|said| !said.is_empty()).collect();
    escape(&format!("{model}: {}", said.join("; ")))
}

// === impl Progress ===

impl Progress {
    /// Takes the line away.
    pub async fn end(self) {
        self.following.abort();
        let _ = self.following.await;
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::proto::{Route, VersionStatus};

    #[test]
    fn the_line_says_where_each_version_stands_and_what_is_waited_for() {
        let version = |version: &str, state: VersionState| VersionStatus {
            version: version.into(),
            state: state.into(),
            ..Default::default()
        };
        let mut described = DescribeModelResponse {
            versions: vec![
                version("1.2.0", VersionState::Loading),
                version("1.1.0", VersionState::Available),
                version("1.0.0", VersionState::Ready),
            ],
            ..Default::default()
        };
        assert_eq!(shown("m", &described), "m: 1.2.0 loading, 1.0.0 ready");
        described.route = Some(Route { pending: "revision 4 waits".into(), ..Default::default() });
        assert_eq!(shown("m", &described), "m: 1.2.0 loading, 1.0.0 ready; revision 4 waits");
    }
}

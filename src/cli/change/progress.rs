//! A line on stderr that shows what the model's versions do while a change is waited for. Only for people: where stderr is
//! no terminal, nothing is written.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::task::JoinHandle;
use tonic::transport::Channel;

use crate::{
    cli::{
        proto::{WatchEventsRequest, admin_client::AdminClient, watch_events_response::What},
        watch,
    },
    telemetry::logs::escape,
};

/// The line, while it is there.
pub struct Progress {
    bar: ProgressBar,
    following: JoinHandle<()>,
}

const TICK: Duration = Duration::from_millis(100);

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
    let request = WatchEventsRequest { models: model.clone(), ..Default::default() };
    let Ok(events) = client.watch_events(request).await else {
        return;
    };
    let mut events = events.into_inner();
    while let Ok(Some(told)) = events.message().await {
        if let Some(What::Event(event)) = told.what {
            bar.set_message(format!("{}: {} {}", escape(&model), watch::kind(&event), escape(&event.version)));
        }
    }
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

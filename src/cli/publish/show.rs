//! What a publish is doing, on stderr: a bar where somebody looks, plain lines where a file does. And whether it is to end.

use std::{
    io::{IsTerminal, Write, stderr},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use crate::store::publish::Watch;

/// Follows one publish.
pub struct Show {
    /// `None` where stderr is no terminal.
    bar: Option<ProgressBar>,
    /// How many signals said stop.
    signals: watch::Receiver<u32>,
}

const REDRAWN_EVERY: Duration = Duration::from_millis(100);

// === impl Show ===

impl Show {
    /// Listens for signals from now on; called inside a runtime.
    pub fn listen() -> std::io::Result<Self> {
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let (count, signals) = watch::channel(0);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                count.send_modify(|count| *count += 1);
            }
        });
        let bar = stderr().is_terminal().then(ProgressBar::new_spinner);
        if let Some(bar) = &bar {
            bar.enable_steady_tick(REDRAWN_EVERY);
        }
        Ok(Self { bar, signals })
    }

    /// The next thing that is done, of so many bytes where that is known.
    pub fn step(&self, what: &str, bytes: Option<u64>) {
        let Some(bar) = &self.bar else {
            // Nobody may be reading.
            let _ = writeln!(stderr(), "{what}");
            return;
        };
        bar.set_position(0);
        bar.set_length(bytes.unwrap_or(0));
        let template = match bytes {
            Some(_) => "{bar:30} {bytes} of {total_bytes}  {msg}",
            None => "{spinner} {msg}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(what.to_owned());
    }

    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// Comes back with the signal of this number.
    pub async fn signalled(&self, number: u32) {
        let mut signals = self.signals.clone();
        if signals.wait_for(|count| *count >= number).await.is_err() {
            // Without a listener there is none.
            std::future::pending::<()>().await;
        }
    }
}

impl Watch for Show {
    fn moved(&self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
        }
    }

    fn is_stopped(&self) -> bool {
        *self.signals.borrow() > 0
    }
}

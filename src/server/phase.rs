//! Where the server stands between its start and its end; health, the listeners and the connections follow it.

use std::time::Duration;

use tokio::sync::watch;

/// The way only goes down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Serving,
    /// Says that it is not ready, and serves all the same while load balancers turn away.
    Draining,
    /// Takes nothing new; what was taken in has this long to end.
    Closing {
        grace: Duration,
    },
}

/// The reading end.
#[derive(Clone, Debug)]
pub struct Phases(watch::Receiver<Phase>);

pub fn new() -> (watch::Sender<Phase>, Phases) {
    let (sender, receiver) = watch::channel(Phase::Serving);
    (sender, Phases(receiver))
}

// === impl Phases ===

impl Phases {
    pub fn now(&self) -> Phase {
        *self.0.borrow()
    }

    pub fn is_serving(&self) -> bool {
        self.now() == Phase::Serving
    }

    pub fn is_closing(&self) -> bool {
        matches!(self.now(), Phase::Closing { .. })
    }

    /// Waits for the next phase; for ever once there is none to come.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }

    /// Waits for `Closing` and says how long its grace is. A server that was dropped without a word gives none.
    pub async fn closing(&mut self) -> Duration {
        loop {
            if let Phase::Closing { grace } = *self.0.borrow_and_update() {
                return grace;
            }
            if self.0.changed().await.is_err() {
                return Duration::ZERO;
            }
        }
    }
}

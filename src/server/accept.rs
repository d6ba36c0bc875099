//! The accept loop of one port: takes sockets in on the control plane, keeps to the connection limit, and hands each to the
//! place where it is served. Nothing that the system says of one socket, or of a table that is full, ends it.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use super::phase::Phases;
use crate::runtime::Runtime;

/// Where the connections of a port are served.
#[derive(Clone)]
pub enum Placement {
    /// On the runtime that accepts.
    Here,
    /// On the core with the fewest; in turn where they have equally many.
    Cores(Arc<Runtime>),
}

/// How many may be open, and who waits for the last to end.
pub struct Slots {
    max: usize,
    open: Arc<AtomicUsize>,
    gauge: Option<prometheus_client::metrics::gauge::Gauge>,
    /// Held by every connection: the server knows that all have ended when the channel closes.
    alive: mpsc::Sender<()>,
}

/// One connection's place; leaving is the drop.
pub struct Slot {
    open: Arc<AtomicUsize>,
    by_core: Option<Arc<AtomicUsize>>,
    gauge: Option<prometheus_client::metrics::gauge::Gauge>,
    _alive: mpsc::Sender<()>,
}

/// What is done with a socket, on the runtime that serves it. Must spawn and return.
pub type Serve = Arc<dyn Fn(TcpStream, Slot) + Send + Sync>;

/// When the process has no descriptor or memory left, the next try is this much later: connections must end first.
const PAUSE: Duration = Duration::from_millis(100);

/// Accepts until the server closes.
pub async fn run(listener: TcpListener, slots: Slots, placement: Placement, mut phases: Phases, serve: Serve) {
    let mut balance = Balance::new(match &placement {
        Placement::Here => 0,
        Placement::Cores(runtime) => runtime.cores().count(),
    });
    loop {
        let accepted = tokio::select! {
            biased;
            _ = phases.closing() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => hand_over(stream, &slots, &placement, &mut balance, &serve),
            Err(error) if is_of_one_socket(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections now");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

fn hand_over(stream: TcpStream, slots: &Slots, placement: &Placement, balance: &mut Balance, serve: &Serve) {
    let Some(mut slot) = slots.take() else {
        // Closing at once sends the client elsewhere; leaving it in the queue would only make it wait.
        tracing::debug!("a connection over the limit was closed; --max-connections sets it");
        return;
    };
    let cores = match placement {
        Placement::Here => return serve(stream, slot),
        Placement::Cores(runtime) => runtime.cores(),
    };
    let Ok(stream) = stream.into_std() else { return };
    let (core, count) = balance.next();
    slot.by_core = Some(count);
    let serve = serve.clone();
    let make = move || match TcpStream::from_std(stream) {
        Ok(stream) => serve(stream, slot),
        Err(error) => tracing::warn!(%error, "cannot register a connection"),
    };
    cores.spawn_on(core, Box::new(make));
}

/// The client went away between its arrival and our accept.
fn is_of_one_socket(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}

// === impl Slots ===

impl Slots {
    pub fn new(max: usize, alive: mpsc::Sender<()>, gauge: Option<prometheus_client::metrics::gauge::Gauge>) -> Self {
        Self { max, open: Arc::default(), gauge, alive }
    }

    fn take(&self) -> Option<Slot> {
        if self.open.fetch_add(1, Ordering::Relaxed) >= self.max {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        if let Some(gauge) = &self.gauge {
            gauge.inc();
        }
        Some(Slot { open: self.open.clone(), by_core: None, gauge: self.gauge.clone(), _alive: self.alive.clone() })
    }
}

// === impl Slot ===

impl Drop for Slot {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        if let Some(count) = &self.by_core {
            count.fetch_sub(1, Ordering::Relaxed);
        }
        if let Some(gauge) = &self.gauge {
            gauge.dec();
        }
    }
}

/// The open connections of each core.
struct Balance {
    counts: Vec<Arc<AtomicUsize>>,
    turn: usize,
}

// === impl Balance ===

impl Balance {
    fn new(cores: usize) -> Self {
        Self { counts: (0..cores).map(|_| Arc::default()).collect(), turn: 0 }
    }

    /// The core with the fewest connections, the first of them after the one before; one more is counted there.
    fn next(&mut self) -> (usize, Arc<AtomicUsize>) {
        let cores = self.counts.len();
        let core = (0..cores)
            .map(|step| (self.turn + step) % cores)
            .min_by_key(|&core| self.counts[core].load(Ordering::Relaxed))
            .expect("there is at least one core: this is a bug");
        self.turn = core + 1;
        self.counts[core].fetch_add(1, Ordering::Relaxed);
        (core, self.counts[core].clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_go_round_and_fill_what_became_empty() {
        let mut balance = Balance::new(3);
        let picked: Vec<usize> = (0..6).map(|_| balance.next().0).collect();
        assert_eq!(picked, [0, 1, 2, 0, 1, 2]);
        balance.counts[1].store(0, Ordering::Relaxed);
        let picked: Vec<usize> = (0..3).map(|_| balance.next().0).collect();
        assert_eq!(picked, [1, 1, 2]);
    }

    #[test]
    fn a_slot_comes_back_with_its_connection() {
        let (alive, _) = mpsc::channel(1);
        let slots = Slots::new(1, alive, None);
        let slot = slots.take().expect("the first");
        assert!(slots.take().is_none());
        drop(slot);
        assert!(slots.take().is_some());
    }
}

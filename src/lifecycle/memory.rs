//! What memory there is for one more version: the process's own, what is promised to loads under way, and the limit.
//!
//! The accounts are pure; `Memory` holds them for the loader's threads, and reads what the process uses.

use std::{
    sync::{Condvar, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use crate::error::{Code, Error};

/// Of one process, for all loads.
pub struct Memory {
    accounts: Mutex<Accounts>,
    /// Signalled when a promise ends.
    ended: Condvar,
    /// Reads what the process uses.
    used: fn() -> u64,
}

/// Bytes that a load may take; given back when dropped, for by then they are used or will not be.
pub struct Promise<'a> {
    memory: &'a Memory,
    bytes: u64,
}

/// Why a load may not begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Short {
    pub needs: u64,
    /// By the process, and promised to other loads.
    pub in_use: u64,
    pub limit: u64,
    pub reserve: u64,
}

/// What a process has in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resident {
    pub now: u64,
    /// The most there ever was.
    pub peak: u64,
    /// Of `now`, what no file backs.
    pub anonymous: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Accounts {
    limit: u64,
    promised: u64,
}

/// Of the limit, left free for requests: what messages may claim by default.
const RESERVE: u64 = 8;
/// How long a load waits for what is being freed: the reaper needs a moment after the last request.
const PATIENCE: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

// === impl Memory ===

impl Memory {
    pub fn new(limit: u64) -> Self {
        Self::with(limit, || Resident::of_this_process().now)
    }

    fn with(limit: u64, used: fn() -> u64) -> Self {
        Self { accounts: Mutex::new(Accounts { limit, promised: 0 }), ended: Condvar::new(), used }
    }

    /// Sets `bytes` aside for a load, or says by how much memory is short, after a moment in which some may come back.
    pub fn promise(&self, bytes: u64) -> Result<Promise<'_>, Short> {
        let begun = Instant::now();
        let mut accounts = self.lock();
        loop {
            match accounts.take((self.used)(), bytes) {
                Ok(()) => return Ok(Promise { memory: self, bytes }),
                Err(short) if begun.elapsed() >= PATIENCE || short.is_hopeless() => return Err(short),
                Err(_) => {
                    let waited = self.ended.wait_timeout(accounts, LOOK_AGAIN);
                    accounts = waited.expect("no holder panics: this is a bug").0;
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Accounts> {
        self.accounts.lock().expect("no holder panics: this is a bug")
    }
}

impl Drop for Promise<'_> {
    fn drop(&mut self) {
        self.memory.lock().promised -= self.bytes;
        self.memory.ended.notify_all();
    }
}

// === impl Accounts ===

impl Accounts {
    fn take(&mut self, used: u64, needs: u64) -> Result<(), Short> {
        let (in_use, reserve) = (used.saturating_add(self.promised), self.limit / RESERVE);
        if in_use.saturating_add(needs) > self.limit - reserve {
            return Err(Short { needs, in_use, limit: self.limit, reserve });
        }
        self.promised += needs;
        Ok(())
    }
}

// === impl Short ===

impl Short {
    /// How much would have to go for the load to begin.
    pub fn missing(&self) -> u64 {
        (self.in_use.saturating_add(self.needs)).saturating_sub(self.limit - self.reserve)
    }

    /// Whether it is more than there could ever be.
    fn is_hopeless(&self) -> bool {
        self.needs > self.limit - self.reserve
    }
}

impl From<Short> for Error {
    fn from(short: Short) -> Self {
        let shown = |bytes: u64| bytesize::ByteSize(bytes).display();
        Error::new(
            Code::ResourceExhausted,
            "INSUFFICIENT_MEMORY",
            format!(
                "it needs {}; the server uses {} of {} (--memory), of which {} stay free for requests",
                shown(short.needs),
                shown(short.in_use),
                shown(short.limit),
                shown(short.reserve)
            ),
        )
        .with("needs_bytes", short.needs)
        .with("in_use_bytes", short.in_use)
        .with("limit_bytes", short.limit)
    }
}

// === impl Resident ===

impl Resident {
    pub fn of_this_process() -> Self {
        Self::parse(&std::fs::read_to_string("/proc/self/status").unwrap_or_default())
    }

    fn parse(status: &str) -> Self {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
            kib.unwrap_or(0) << 10
        };
        Self { now: field("VmRSS:"), peak: field("VmHWM:"), anonymous: field("RssAnon:") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn two_loads_do_not_pass_together_where_there_is_room_for_one() {
        let memory = Memory::with(800, || 300);
        let first = memory.promise(250).expect("550 of 700");
        let short = memory.promise(250).err().expect("800 of 700");
        assert_eq!(short, Short { needs: 250, in_use: 550, limit: 800, reserve: 100 });
        assert_eq!(short.missing(), 100);
        drop(first);
        assert!(memory.promise(250).is_ok());
    }

    #[test]
    fn a_refusal_says_the_figures() {
        let error = Error::from(Short { needs: 3 << 20, in_use: 6 << 20, limit: 8 << 20, reserve: 1 << 20 });
        assert_eq!(
            error.message(),
            "it needs 3.0 MiB; the server uses 6.0 MiB of 8.0 MiB (--memory), of which 1.0 MiB stay free for requests"
        );
    }

    #[test]
    fn a_process_knows_what_it_has() {
        let status = "VmPeak:\t  9 kB\nVmHWM:\t   3000 kB\nVmRSS:\t   2000 kB\nRssAnon:\t   1000 kB\n";
        assert_eq!(Resident::parse(status), Resident { now: 2000 << 10, peak: 3000 << 10, anonymous: 1000 << 10 });
        assert!(Resident::of_this_process().anonymous > 0);
    }

    proptest! {
        #[test]
        fn what_is_promised_never_passes_the_limit_and_comes_back(
            limit in 1u64..10_000,
            used in 0u64..10_000,
            loads in proptest::collection::vec(0u64..3_000, 0..12),
        ) {
            let mut accounts = Accounts { limit, promised: 0 };
            let mut taken = Vec::new();
            for needs in loads {
                match accounts.take(used, needs) {
                    Ok(()) => taken.push(needs),
                    Err(short) => prop_assert!(short.missing() > 0),
                }
                prop_assert_eq!(accounts.promised, taken.iter().sum::<u64>());
                prop_assert!(taken.is_empty() || used + accounts.promised <= limit - limit / RESERVE);
            }
        }
    }
}

//! The children: pinned to one CPU, killed with the bench, and how much CPU time they took.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::{
    process::{Signal, set_parent_process_death_signal},
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};
use serde::de::DeserializeOwned;

/// A child that does not outlive this value, nor the bench if that is killed.
pub struct Running {
    child: Child,
}

/// The CPU of whatever is measured, and the CPU of the generator.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Cpus {
    pub server: usize,
    pub generator: usize,
}

/// A share of a CPU, user and system together.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuUse {
    pub ran: Duration,
    /// Ready to run, while something else had the CPU.
    pub waited: Duration,
}

const PORTS_POLL: Duration = Duration::from_millis(1);

// === impl Running ===

impl Running {
    /// Starts `program` on those CPUs alone, by way of this program's own `launch`, which pins itself before it becomes `program`.
    pub fn start(cpus: &[usize], program: &Path, args: &[OsString], log: &Path) -> Result<Self> {
        let log = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let child = Command::new(std::env::current_exe()?)
            .args([OsStr::new("launch"), OsStr::new(&list(cpus)), program.as_os_str()])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Self { child })
    }

    /// Waits for the child to write its `--ports-file`; fails when it ends first or `limit` passes.
    pub async fn ports<P: DeserializeOwned>(&mut self, file: &Path, limit: Duration) -> Result<P> {
        let begun = Instant::now();
        let mut poll = tokio::time::interval(PORTS_POLL);
        loop {
            // A file half written does not parse: the next look finds the rest.
            if let Some(ports) = fs::read(file).ok().and_then(|text| serde_json::from_slice(&text).ok()) {
                return Ok(ports);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("the server ended before it listened: {status}");
            }
            ensure!(begun.elapsed() < limit, "no ports within {limit:?}");
            poll.tick().await;
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What all threads had so far, in nanoseconds' resolution (`/proc/PID/stat` counts ticks of 10 ms).
    pub fn cpu(&self) -> Result<CpuUse> {
        let mut total = CpuUse::default();
        for task in fs::read_dir(format!("/proc/{}/task", self.pid()))? {
            // A thread may end between the listing and the look.
            if let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) {
                let thread = CpuUse::parse(&text)?;
                total.ran += thread.ran;
                total.waited += thread.waited;
            }
        }
        Ok(total)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only for a child that is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// === impl Cpus ===

impl Cpus {
    /// The first two CPUs that this process may use, unless they are named.
    pub fn choose(server: Option<usize>, generator: Option<usize>) -> Result<Self> {
        let allowed = sched_getaffinity(None)?;
        let mut free =
            (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu) && Some(cpu) != server && Some(cpu) != generator);
        let mut take = |named: Option<usize>| named.or_else(|| free.next());
        let (Some(server), Some(generator)) = (take(server), take(generator)) else {
            bail!("the bench needs two CPUs: one for what is measured, one for the generator");
        };
        Ok(Self { server, generator })
    }
}

/// Pins the calling thread; threads and children that it makes later inherit that.
pub fn pin(cpus: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    cpus.iter().for_each(|&cpu| set.set(cpu));
    Ok(sched_setaffinity(None, &set)?)
}

/// Becomes `program`, pinned, and killed when the bench dies. Returns only on failure.
pub fn launch(cpus: &str, program: &Path, args: &[OsString]) -> Result<()> {
    let numbers = cpus.split(',').map(str::parse).collect::<Result<Vec<usize>, _>>();
    pin(&numbers.context("CPUs are numbers")?).with_context(|| format!("cannot run on CPU {cpus}"))?;
    set_parent_process_death_signal(Some(Signal::KILL))?;
    Err(Command::new(program).args(args).exec()).with_context(|| format!("cannot run {}", program.display()))
}

fn list(cpus: &[usize]) -> String {
    cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

/// What the calling thread had so far.
pub fn own_cpu() -> Result<CpuUse> {
    CpuUse::parse(&fs::read_to_string("/proc/thread-self/schedstat")?)
}

// === impl CpuUse ===

impl CpuUse {
    pub fn since(self, earlier: Self) -> Self {
        Self { ran: self.ran.saturating_sub(earlier.ran), waited: self.waited.saturating_sub(earlier.waited) }
    }

    /// `schedstat` begins with two numbers of nanoseconds: on a CPU, and ready but waiting for one.
    fn parse(schedstat: &str) -> Result<Self> {
        let mut numbers = schedstat.split_ascii_whitespace().map_while(|number| number.parse().ok());
        let (Some(ran_ns), Some(waited_ns)) = (numbers.next(), numbers.next()) else {
            bail!("this kernel's schedstat says nothing of run times");
        };
        Ok(Self { ran: Duration::from_nanos(ran_ns), waited: Duration::from_nanos(waited_ns) })
    }
}

//! The throw-away child: the same program, told to open versions that may kill it.
//!
//! It has limits on memory, time and files, an empty folder to stand in, no environment to speak of, and one socket (its
//! standard input) on which it takes jobs and answers; what libraries print goes elsewhere. It dies with its parent.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    process::ExitCode,
    time::Duration,
};

use rustix::{
    process::{Resource, Rlimit, Signal, set_parent_process_death_signal, setrlimit},
    time::{ClockId, clock_gettime},
};
use serde::{Deserialize, Serialize};

use super::{
    job::{Fault, Job, Report, Verdict},
    memory::Resident,
    trial,
};
use crate::{
    backend::{self, OpenSpec},
    error::Result,
    runtime,
};

/// What the child may use up. The first line that it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Limits {
    /// Of memory that is written to. Address space is not limited: libraries reserve it by the gigabyte.
    pub memory_bytes: u64,
    pub open_files: u64,
}

/// Below the stacks of the threads that will run the version in the server, so that what overflows one does it here first.
const STACK_BYTES: usize = 7 << 18;

/// Serves jobs until the parent hangs up.
pub fn run_child() -> ExitCode {
    let worker = std::thread::Builder::new().name("probe".into()).stack_size(STACK_BYTES).spawn(serve);
    match worker.map(std::thread::JoinHandle::join) {
        Ok(Ok(Ok(()))) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn serve() -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    backend::gpu::forbid();
    // Where memory is short the kernel takes the child before the server. Without /proc it goes by size.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    let mut answers = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut lines = BufReader::new(answers.try_clone()?).lines();
    let Some(first) = lines.next() else {
        return Ok(());
    };
    let limits: Limits = serde_json::from_str(&first?)?;
    limits.apply()?;
    for line in lines {
        let job: Job = serde_json::from_str(&line?)?;
        limit_cpu(job.time_limit)?;
        let verdict = match judge(&job) {
            Ok(report) => Verdict::Passed(report),
            Err(error) => Verdict::Failed(Fault::from(&error)),
        };
        let mut line = serde_json::to_vec(&verdict)?;
        line.push(b'\n');
        answers.write_all(&line)?;
    }
    Ok(())
}

fn judge(job: &Job) -> Result<Report> {
    // What the version before left behind would hide what this one takes.
    runtime::give_back_memory();
    let before = Resident::of_this_process();
    let executable = backend::open(OpenSpec { dir: &job.dir, manifest: &job.manifest, native_dir: &job.native_dir })?;
    let report = trial::run(&job.dir, &job.manifest, &*executable, job.time_limit)?;
    let after = Resident::of_this_process();
    Ok(Report {
        peak_bytes: after.peak,
        resident_bytes: after.now,
        // Without files: the library's own stay for all versions, and the version's are counted by their sizes.
        memory_bytes: after.anonymous.saturating_sub(before.anonymous),
        ..report
    })
}

// === impl Limits ===

impl Limits {
    fn apply(self) -> io::Result<()> {
        let hard = |limit: u64| Rlimit { current: Some(limit), maximum: Some(limit) };
        setrlimit(Resource::Data, hard(self.memory_bytes))?;
        setrlimit(Resource::Nofile, hard(self.open_files))?;
        setrlimit(Resource::Fsize, hard(0))?;
        setrlimit(Resource::Core, hard(0))?;
        runtime::background()?;
        Ok(())
    }
}

/// The parent's clock ends a job; this ends one whose parent cannot.
fn limit_cpu(time_limit: Duration) -> io::Result<()> {
    const THREADS_ASSUMED: u64 = 16;
    let used = u64::try_from(clock_gettime(ClockId::ProcessCPUTime).tv_sec).unwrap_or(0);
    let limit = used + (time_limit.as_secs() + 1) * THREADS_ASSUMED;
    setrlimit(Resource::Cpu, Rlimit { current: Some(limit), maximum: None })?;
    Ok(())
}

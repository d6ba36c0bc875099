//! The parent's side of the throw-away child.
//!
//! A child serves many versions. When it dies, the version it had is given to a fresh child that opened nothing else, and
//! only if that dies, too, was it the version's fault.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::ExitStatusExt},
    },
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use super::{
    job::{Job, Report, Verdict},
    probe_child::Limits,
};
use crate::error::{Code, Error, Result};

/// How children are made.
#[derive(Clone, Debug)]
pub struct ProbeConfig {
    /// This program, or one that understands the same sub-command.
    pub executable: PathBuf,
    pub limits: Limits,
    /// Where the child stands: an empty folder.
    pub empty_dir: PathBuf,
}

/// Opens versions in a child, one after the other.
pub struct Prober {
    config: ProbeConfig,
    child: Option<Running>,
}

/// The hidden sub-command of the program.
pub const SUBCOMMAND: &str = "probe-child";

struct Running {
    process: Child,
    socket: BufReader<UnixStream>,
    /// What libraries print on the way.
    printed: UnixStream,
    jobs: usize,
    resident_bytes: u64,
}

/// Why there was no answer.
enum Ending {
    Died(ExitStatus, String),
    TimedOut,
}

/// A child that opened this many versions gives way to a fresh one: what libraries leak is not worth keeping.
const JOBS_MAX: usize = 500;
const ANSWER_BYTES_MAX: u64 = 1 << 20;

// === impl Prober ===

impl Prober {
    pub fn new(config: ProbeConfig) -> Self {
        Self { config, child: None }
    }

    /// Opens and tries a version.
    ///
    /// The child's own errors, and LOAD_TIMEOUT, LOAD_CRASHED (which names the signal), INSUFFICIENT_MEMORY.
    pub fn probe(&mut self, job: &Job) -> Result<Report> {
        loop {
            let mut child = match self.child.take() {
                Some(child) => child,
                None => Running::start(&self.config).map_err(|error| cannot_start(&error))?,
            };
            let fresh = child.jobs == 0;
            match child.ask(job) {
                Ok(Verdict::Passed(report)) => {
                    self.keep(child, report.resident_bytes);
                    return Ok(report);
                }
                Ok(Verdict::Failed(fault)) => {
                    let error = Error::from(fault);
                    // Memory may have been short because of what was opened before.
                    if error.code() == Code::ResourceExhausted && !fresh {
                        continue;
                    }
                    let resident_bytes = child.resident_bytes;
                    self.keep(child, resident_bytes);
                    return Err(error);
                }
                Err(Ending::TimedOut) => return Err(timed_out(job.time_limit)),
                Err(Ending::Died(..)) if !fresh => continue,
                Err(Ending::Died(status, printed)) => return Err(self.died(status, &printed)),
            }
        }
    }

    fn keep(&mut self, mut child: Running, resident_bytes: u64) {
        child.resident_bytes = resident_bytes;
        if child.jobs < JOBS_MAX && resident_bytes < self.config.limits.memory_bytes / 2 {
            self.child = Some(child);
        }
    }

    fn died(&self, status: ExitStatus, printed: &str) -> Error {
        let out_of_memory = [
            "bad_alloc",
            "memory allocation of",
            "Cannot allocate memory",
            "out of memory",
        ];
        let limit = bytesize::ByteSize(self.config.limits.memory_bytes).display();
        match status.signal() {
            _ if out_of_memory.iter().any(|words| printed.contains(words)) => Error::new(
                Code::ResourceExhausted,
                "INSUFFICIENT_MEMORY",
                format!("opening it took more memory than the child may have ({limit}); see child_memory"),
            ),
            Some(9) => Error::new(
                Code::ResourceExhausted,
                "INSUFFICIENT_MEMORY",
                "the child that opened it was killed from outside, as the kernel does when memory is short",
            ),
            Some(24) => Error::new(
                Code::FailedPrecondition,
                "LOAD_TIMEOUT",
                "opening or running it used up the child's processor time",
            ),
            Some(signal) => crashed(format!("it killed the child that opened it: {}", signal_name(signal))),
            None => crashed(format!("it ended the child that opened it ({status})")),
        }
    }
}

// === impl Running ===

impl Running {
    fn start(config: &ProbeConfig) -> io::Result<Self> {
        let (socket, theirs) = UnixStream::pair()?;
        let (printed, their_printed) = UnixStream::pair()?;
        // Nobody reads while the child works: what does not fit is lost, and nobody waits.
        their_printed.set_nonblocking(true)?;
        printed.set_nonblocking(true)?;
        let mut command = Command::new(&config.executable);
        command
            .arg(SUBCOMMAND)
            .env_clear()
            .env("OMP_NUM_THREADS", "1")
            // Else ONNX Runtime 1.29 and later write a database into the home folder and send it away.
            .env("ORT_DISABLE_TELEMETRY", "1")
            .current_dir(&config.empty_dir)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::from(OwnedFd::from(their_printed)));
        if let Some(path) = std::env::var_os("LD_LIBRARY_PATH") {
            command.env("LD_LIBRARY_PATH", path);
        }
        let mut child = Self {
            process: command.spawn()?,
            socket: BufReader::new(socket),
            printed,
            jobs: 0,
            resident_bytes: 0,
        };
        child.send(&config.limits)?;
        Ok(child)
    }

    fn send(&mut self, message: &impl serde::Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        self.socket.get_mut().write_all(&line)
    }

    fn ask(&mut self, job: &Job) -> Result<Verdict, Ending> {
        let deadline = Instant::now() + job.time_limit;
        let answer = self.send(job).and_then(|()| self.answer(deadline));
        self.jobs += 1;
        match answer {
            Ok(Some(verdict)) => {
                // Read away, so that the next version's words find room.
                let _ = self.said();
                Ok(verdict)
            }
            Ok(None) => {
                let _ = self.process.kill();
                let _ = self.process.wait();
                Err(Ending::TimedOut)
            }
            Err(_) => {
                let _ = self.process.kill();
                let status = self.process.wait().unwrap_or_default();
                Err(Ending::Died(status, self.said()))
            }
        }
    }

    /// One line, or `None` when the time is up. An error is the end of the child.
    fn answer(&mut self, deadline: Instant) -> io::Result<Option<Verdict>> {
        let mut line = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.get_ref().set_read_timeout(Some(left))?;
            let room = ANSWER_BYTES_MAX.saturating_sub(line.len() as u64);
            match self.socket.by_ref().take(room).read_until(b'\n', &mut line) {
                Ok(_) if line.ends_with(b"\n") => return Ok(Some(serde_json::from_slice(&line)?)),
                Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn said(&mut self) -> String {
        const SHOWN_BYTES_MAX: usize = 16 << 10;
        let mut bytes = Vec::new();
        // It is not blocking: the end is an error that says there is no more for now.
        let _ = self.printed.read_to_end(&mut bytes);
        let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(SHOWN_BYTES_MAX)..]).into_owned();
        if !text.is_empty() {
            tracing::debug!(%text, "a library printed in the child");
        }
        text
    }
}

impl Drop for Running {
    /// It has nothing to save.
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn crashed(message: String) -> Error {
    Error::new(Code::FailedPrecondition, "LOAD_CRASHED", message)
}

fn timed_out(limit: Duration) -> Error {
    let message = format!("opening and trying it took longer than {limit:?}; see child_time");
    Error::new(Code::FailedPrecondition, "LOAD_TIMEOUT", message)
}

fn cannot_start(error: &io::Error) -> Error {
    Error::internal(
        "CHILD_UNAVAILABLE",
        format!("the child that opens versions first cannot be started: {error}"),
    )
}

fn signal_name(signal: i32) -> String {
    let name = match signal {
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        11 => "SIGSEGV",
        25 => "SIGXFSZ (it tried to write a file)",
        31 => "SIGSYS",
        _ => return format!("signal {signal}"),
    };
    name.to_owned()
}

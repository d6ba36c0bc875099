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

/// The reason when there is no child to ask, which says nothing of the version.
pub const CHILD_UNAVAILABLE: &str = "CHILD_UNAVAILABLE";

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
    /// It answered, but not what was asked.
    Nonsense,
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
                Err(Ending::Died(..) | Ending::Nonsense) if !fresh => continue,
                Err(Ending::Nonsense) => return Err(crashed("the child that opened it answered nonsense".into())),
                Err(Ending::Died(status, printed)) => return Err(self.died(status, &printed)),
            }
        }
    }

    /// `probe` in a child that opens nothing else, before or after.
    pub fn probe_alone(&mut self, job: &Job) -> Result<Report> {
        self.child = None;
        let report = self.probe(job);
        self.child = None;
        report
    }

    fn keep(&mut self, mut child: Running, resident_bytes: u64) {
        child.resident_bytes = resident_bytes;
        if child.jobs < JOBS_MAX && resident_bytes < self.config.limits.memory_bytes / 2 {
            self.child = Some(child);
        }
    }

    fn died(&self, status: ExitStatus, printed: &str) -> Error {
        let out_of_memory = ["bad_alloc", "memory allocation of", "Cannot allocate memory", "out of memory"];
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
        let mut child =
            Self { process: command.spawn()?, socket: BufReader::new(socket), printed, jobs: 0, resident_bytes: 0 };
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
            Err(error) => {
                // The socket closes when the end is already decided: this changes no status of a child that died.
                let _ = self.process.kill();
                let status = self.process.wait().unwrap_or_default();
                match error.kind() {
                    io::ErrorKind::InvalidData => Err(Ending::Nonsense),
                    _ => Err(Ending::Died(status, self.said())),
                }
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
                Ok(_) if line.ends_with(b"\n") => {
                    let verdict = serde_json::from_slice(&line);
                    return verdict.map(Some).map_err(|_| io::ErrorKind::InvalidData.into());
                }
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
    Error::internal(CHILD_UNAVAILABLE, format!("the child that opens versions first cannot be started: {error}"))
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::model::{Manifest, ModelYaml, Platform, VersionYaml};

    /// A prober whose child is a script; it has read the limits when `body` begins.
    fn prober(body: &str) -> (Prober, tempfile::TempDir) {
        let folder = tempfile::tempdir().expect("a folder");
        let executable = folder.path().join("child");
        let passed = serde_json::to_string(&Verdict::Passed(Report::default())).expect("plain data");
        let script = format!("#!/bin/sh\npass() {{ echo '{passed}' >&0; }}\nread limits\n{body}\n");
        std::fs::write(&executable, script).expect("written");
        std::fs::set_permissions(&executable, PermissionsExt::from_mode(0o700)).expect("set");
        let limits = Limits { memory_bytes: 1 << 30, open_files: 64 };
        let config = ProbeConfig { executable, limits, empty_dir: folder.path().to_owned() };
        (Prober::new(config), folder)
    }

    fn job() -> Job {
        let manifest = Manifest::resolve(Platform::Onnx, ModelYaml::default(), VersionYaml::default());
        Job {
            dir: "/".into(),
            manifest: manifest.expect("a manifest"),
            native_dir: "/".into(),
            time_limit: Duration::from_millis(300),
        }
    }

    fn probe(prober: &mut Prober) -> Result<Report> {
        prober.probe(&job())
    }

    fn reason(body: &str) -> (&'static str, String) {
        let (mut prober, _folder) = prober(body);
        let error = probe(&mut prober).expect_err("it does not pass");
        (error.reason(), error.message().to_owned())
    }

    #[test]
    fn a_child_serves_many_versions() {
        let (mut prober, folder) = prober("echo >> started\nwhile read job; do pass; done");
        for _ in 0..3 {
            probe(&mut prober).expect("it passes");
        }
        let started = std::fs::read_to_string(folder.path().join("started")).expect("written");
        assert_eq!(started.lines().count(), 1);
    }

    #[test]
    fn one_that_must_pass_alone_has_a_child_to_itself() {
        let (mut prober, folder) = prober("echo >> started\nwhile read job; do pass; done");
        let started = || std::fs::read_to_string(folder.path().join("started")).map(|text| text.lines().count());
        probe(&mut prober).expect("it passes");
        prober.probe_alone(&job()).expect("it passes");
        probe(&mut prober).expect("it passes");
        assert_eq!(started().expect("written"), 3);
    }

    #[test]
    fn a_death_is_charged_to_the_version_only_if_a_fresh_child_dies_too() {
        let (mut weary, _folder) = prober("read job; pass; read job; kill -ABRT $$");
        probe(&mut weary).expect("it passes");
        probe(&mut weary).expect("a fresh child passes it");
        let (word, message) = reason("read job; kill -SEGV $$");
        assert_eq!(word, "LOAD_CRASHED");
        assert!(message.ends_with("SIGSEGV"), "{message}");
        assert_eq!(reason("read job; exit 3").0, "LOAD_CRASHED");
        assert_eq!(reason("read job; echo nonsense >&0; read job").0, "LOAD_CRASHED");
    }

    #[test]
    fn a_hang_ends_with_its_time() {
        assert_eq!(reason("read job; read never").0, "LOAD_TIMEOUT");
    }

    #[test]
    fn memory_that_ran_out_is_told_from_a_crash() {
        let body = "read job; echo 'memory allocation of 9 bytes failed' >&2; kill -ABRT $$";
        assert_eq!(reason(body).0, "INSUFFICIENT_MEMORY");
        assert_eq!(reason("read job; kill -KILL $$").0, "INSUFFICIENT_MEMORY");
    }

    #[test]
    fn what_a_library_prints_stops_nobody() {
        let body = "read job; i=0; while [ $i -lt 3000 ]; do echo 0123456789012345678901234567890123456789 >&2; \
                    echo noise; i=$((i+1)); done 2>/dev/null; pass; read job";
        let (mut prober, _folder) = prober(body);
        probe(&mut prober).expect("it passes");
    }

    #[test]
    fn a_child_that_cannot_be_started_is_said() {
        let (mut prober, folder) = prober("");
        drop(folder);
        assert_eq!(probe(&mut prober).expect_err("there is none").reason(), "CHILD_UNAVAILABLE");
    }
}

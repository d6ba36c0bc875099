//! Processes from outside: memory, children, signals, and a guard that outlives a test run that is killed.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal};

/// A shell that waits for the end of this process, which closes its input, and then kills what was left behind. Statics
/// are never dropped, and a test run may be killed.
pub struct Guard(Child);

/// Its resident memory.
pub fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process is there");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.expect("a process has memory") << 10
}

/// Its children, the threads' ones included.
pub fn children(pid: u32) -> Vec<u32> {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let lists = threads.flatten().filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    let lists: Vec<String> = lists.collect();
    lists.iter().flat_map(|list| list.split_whitespace()).filter_map(|pid| pid.parse().ok()).collect()
}

/// Of a thread's folder under /proc: its name, and how far it stands back.
pub fn name_and_nice(folder: &Path) -> Option<(String, i32)> {
    let stat = std::fs::read_to_string(folder.join("stat")).ok()?;
    let (before, after) = stat.rsplit_once(") ")?;
    let (_, name) = before.split_once('(')?;
    // The 19th field; `after` begins with the third.
    Some((name.to_owned(), after.split(' ').nth(16)?.parse().ok()?))
}

/// Where each open file of the process leads.
pub fn open_files(pid: u32) -> Vec<PathBuf> {
    let Ok(files) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
        return Vec::new();
    };
    files.flatten().filter_map(|file| std::fs::read_link(file.path()).ok()).collect()
}

/// The process may be gone already.
pub fn kill(pid: u32, signal: Signal) {
    let _ = rustix::process::kill_process(as_pid(pid), signal);
}

pub fn as_pid(pid: u32) -> Pid {
    Pid::from_raw(pid.cast_signed()).expect("a process id")
}

// === impl Guard ===

impl Guard {
    pub fn of(pid: u32, folder: impl AsRef<Path>) -> Self {
        let script = r#"read -r word; [ "$word" = disarmed ] || { kill -9 "$1"; rm -rf "$2"; }"#;
        let child = Command::new("sh")
            .args(["-c", script, "guard"])
            .arg(pid.to_string())
            .arg(folder.as_ref())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Self(child.expect("a shell"))
    }

    pub fn disarm(&mut self) {
        use std::io::Write;
        if let Some(mut input) = self.0.stdin.take() {
            // It fails only where the shell was killed, and then there is nothing to disarm.
            let _ = input.write_all(b"disarmed\n");
        }
        let _ = self.0.wait();
    }
}

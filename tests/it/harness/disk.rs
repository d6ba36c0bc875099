//! File systems of their own, for what a full disk and a read-only one do.

use std::{os::unix::fs::PermissionsExt, path::PathBuf, process::Command};

/// A small file system in memory, while this lives.
pub struct SmallDisk(PathBuf);

// === impl SmallDisk ===

impl SmallDisk {
    /// Of 3 MiB. Only who may mount has one.
    pub fn mount(place: PathBuf) -> Option<Self> {
        std::fs::set_permissions(&place, PermissionsExt::from_mode(0o700)).expect("our folder");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=3m,mode=700", "tmpfs"]).arg(&place).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self(place));
        }
        eprintln!("skipped: no file system can be mounted here");
        None
    }

    /// Fills it to the last byte; returns what fills it.
    pub fn fill(&self) -> PathBuf {
        use std::io::Write;
        let filler = self.0.join(".filler");
        let mut file = std::fs::File::create(&filler).expect("a file");
        for block in [1 << 16, 1 << 10, 1] {
            while file.write_all(&vec![0; block]).is_ok() {}
        }
        filler
    }

    pub fn set_read_only(&self, is_read_only: bool) {
        let option = if is_read_only { "remount,ro" } else { "remount,rw" };
        let remounted = Command::new("mount").args(["-o", option]).arg(&self.0).output().expect("mount runs");
        assert!(remounted.status.success(), "{option}: {}", String::from_utf8_lossy(&remounted.stderr));
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // At once, whoever still has it open.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

//! What kind of file system a store lies on: whether its events tell of all changes, and whether it is still the same one.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

use rustix::fs::{AtFlags, CWD, StatxFlags, statfs, statx};

/// Which folder, on which mount, a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    device: (u32, u32),
    inode: u64,
    mount: u64,
}

/// Those whose events tell of every change, whoever makes it: all changes pass through this kernel.
const WITH_EVENTS: [u32; 8] = [
    0xef53,      // ext2, ext3, ext4
    0x5846_5342, // XFS
    0x9123_683e, // Btrfs
    0x0102_1994, // tmpfs
    0x8584_58f6, // ramfs
    0x2fc1_2fc1, // ZFS
    0xf2f5_2010, // F2FS
    0xca45_1a4e, // bcachefs
];

/// Others, by the names that people know.
const WITHOUT_EVENTS: [(u32, &str); 9] = [
    (0x6969, "NFS"),
    (0x6573_5546, "FUSE"),
    (0x794c_7630, "overlay"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB"),
    (0x0102_1997, "9p"),
    (0x00c3_6400, "Ceph"),
    (0x0bd0_0bd0, "Lustre"),
    (0x4750_4653, "GPFS"),
];

// === impl Identity ===

impl Identity {
    /// One system call. It follows links; `None` where the path leads nowhere.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let found = statx(CWD, path, AtFlags::empty(), StatxFlags::BASIC_STATS | StatxFlags::MNT_ID).ok()?;
        Some(Self { device: (found.stx_dev_major, found.stx_dev_minor), inode: found.stx_ino, mount: found.stx_mnt_id })
    }
}

/// Fails with a sentence where changes in `root` may come without an event: by the type of its file system, and of those
/// that are mounted on the models in it.
pub(super) fn check_sends_events(root: &Path) -> Result<(), String> {
    check_type(root)?;
    let own = fs::metadata(root).map_err(|error| error.to_string())?.dev();
    let entries = fs::read_dir(root).map_err(|error| error.to_string())?;
    let elsewhere = |entry: &fs::DirEntry| entry.metadata().is_ok_and(|metadata| metadata.dev() != own);
    entries.flatten().filter(elsewhere).try_for_each(|entry| check_type(&entry.path()))
}

fn check_type(path: &Path) -> Result<(), String> {
    let found = statfs(path).map_err(|error| io::Error::from(error).to_string())?;
    // All types are 32 bits; how wide the field is depends on the machine.
    let kind = found.f_type as u32;
    if WITH_EVENTS.contains(&kind) {
        return Ok(());
    }
    let name = WITHOUT_EVENTS.iter().find(|(known, _)| *known == kind);
    let name = name.map_or_else(|| format!("type {kind:#x}"), |(_, name)| (*name).to_owned());
    Err(format!("a file system ({name}) that may change without an event"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_file_systems_have_no_events_and_links_have_their_targets_identity() {
        assert!(check_sends_events(Path::new("/proc")).is_err());
        let folder = tempfile::tempdir().expect("a folder");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(folder.path(), &link).expect("linked");
        let identity = Identity::of(&link).expect("it leads somewhere");
        assert_eq!(Some(identity), Identity::of(folder.path()));
        assert_ne!(Some(identity), Identity::of(Path::new("/")));
        assert_eq!(Identity::of(&folder.path().join("nowhere")), None);
    }
}

//! What this machine, or the container on it, allows: the defaults that cannot be written down.

use std::path::{Path, PathBuf};

/// The cgroup's quota and the affinity mask, whichever is less.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The least of the machine's memory and the cgroup's limits.
pub fn memory_bytes() -> u64 {
    memory(|path| std::fs::read_to_string(path).ok())
}

/// `native` here, beside the program, or, for a program in `target/release` of a clone, in the clone; where none is there,
/// the one here.
pub fn native_dir() -> PathBuf {
    let here = PathBuf::from("native");
    let beside_program = std::env::current_exe().ok().and_then(|program| {
        let beside = program.parent()?;
        let clone = beside.parent().and_then(Path::parent);
        let mut folders = std::iter::once(beside).chain(clone).map(|folder| folder.join("native"));
        folders.find(|folder| folder.is_dir())
    });
    match beside_program {
        Some(folder) if !here.is_dir() => folder,
        _ => here,
    }
}

/// The limits of the process's cgroup and of those above it count.
///
/// `read` gives a file's text. In a container the own cgroup often shows as the root of the tree, so the root counts, too.
fn memory(read: impl Fn(&Path) -> Option<String>) -> u64 {
    let mut bytes = read(Path::new("/proc/meminfo")).and_then(|text| total_bytes(&text)).unwrap_or(u64::MAX);
    for line in read(Path::new("/proc/self/cgroup")).unwrap_or_default().lines() {
        // `0::/path` is version 2; `9:memory:/path` the memory controller of version 1.
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        for folder in Path::new(path.trim_start_matches('/')).ancestors() {
            let limit = read(&Path::new(root).join(folder).join(file)).and_then(|text| text.trim().parse().ok());
            bytes = bytes.min(limit.unwrap_or(u64::MAX));
        }
    }
    bytes
}

fn total_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory_of(files: &[(&str, &str)]) -> u64 {
        memory(|path| {
            let found = files.iter().find(|(name, _)| Path::new(name) == path);
            found.map(|(_, text)| text.to_string())
        })
    }

    const MEMINFO: (&str, &str) = ("/proc/meminfo", "MemTotal:        8000 kB\nMemFree: 1 kB\n");

    #[test]
    fn without_a_cgroup_it_is_the_machines_memory() {
        assert_eq!(memory_of(&[MEMINFO]), 8_192_000);
    }

    #[test]
    fn the_least_limit_on_the_way_up_holds() {
        let files = [
            MEMINFO,
            ("/proc/self/cgroup", "0::/pod/app\n"),
            ("/sys/fs/cgroup/pod/app/memory.max", "max\n"),
            ("/sys/fs/cgroup/pod/memory.max", "4096000\n"),
        ];
        assert_eq!(memory_of(&files), 4_096_000);
    }

    #[test]
    fn version_1_has_its_own_tree_and_no_limit_is_a_huge_number() {
        let files = [
            MEMINFO,
            ("/proc/self/cgroup", "9:cpu,memory:/docker/x\n1:name=systemd:/y\n"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "2048000\n"),
            ("/sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes", "9223372036854771712\n"),
        ];
        assert_eq!(memory_of(&files), 2_048_000);
    }
}

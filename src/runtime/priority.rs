//! Who goes first where cores and the rest of the process share a CPU.
//!
//! A nice value decides shares, not when: on Linux what runs may finish its slice, some milliseconds, before what has just
//! woken gets the CPU, whatever their nice values. So both sides ask for short slices. Kernels before 6.12 do not know them
//! and keep their own.

use std::{io, mem};

/// The kernel's shortest.
const SLICE_NS: u64 = 100_000;
const LOWEST: i32 = 19;

/// This thread, and what it starts, takes what the others leave, and gives it back soon.
pub fn background() -> io::Result<()> {
    set(LOWEST).or_else(|_| Ok(rustix::process::setpriority_process(None, LOWEST)?))
}

/// This thread need not wait for the slices of others.
pub fn prompt() -> io::Result<()> {
    set(rustix::process::getpriority_process(None)?)
}

fn set(nice: i32) -> io::Result<()> {
    // SAFETY: the structure consists of integers, for which nought is a value.
    let mut wanted: libc::sched_attr = unsafe { mem::zeroed() };
    wanted.size = mem::size_of::<libc::sched_attr>() as u32;
    wanted.sched_policy = libc::SCHED_OTHER as u32;
    wanted.sched_nice = nice;
    wanted.sched_runtime = SLICE_NS;
    // SAFETY: it reads the structure, whose size stands inside, and changes this thread alone.
    let done = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const wanted, 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_in_the_background_has_the_lowest_nice_value_and_the_others_keep_theirs() {
        let nice = || rustix::process::getpriority_process(None).expect("readable");
        let before = nice();
        let thread = std::thread::Builder::new().name("background".into());
        let inside = thread.spawn(move || {
            prompt().expect("may be set");
            assert_eq!(nice(), before);
            background().expect("may be set");
            nice()
        });
        let inside = inside.expect("a thread");
        assert_eq!(inside.join().expect("no panic"), LOWEST);
        assert_eq!(nice(), before);
    }
}

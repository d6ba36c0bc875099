//! The server's allocator, which counts what the cores ask of it, and copies of memory, which are counted too.

use std::{
    alloc::{GlobalAlloc, Layout},
    cell::Cell,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use mimalloc::MiMalloc;

/// Counts while it is told to, on threads whose name begins with `core-`.
pub struct Counting;

/// What the cores asked for, and what they copied in pieces of a page and more.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    pub times: u64,
    pub bytes: u64,
    pub copied: u64,
}

const PAGE: usize = 4096;

static COUNTS: AtomicBool = AtomicBool::new(false);
static TIMES: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);
static COPIED: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Looked up once a thread, and not before there is something to count: by then each has its name.
    static IS_CORE: Cell<Option<bool>> = const { Cell::new(None) };
}

/// What the cores asked for while `work` was done.
pub async fn counted(work: impl Future<Output = ()>) -> Asked {
    let before = asked();
    COUNTS.store(true, Ordering::SeqCst);
    work.await;
    COUNTS.store(false, Ordering::SeqCst);
    let after = asked();
    Asked { times: after.times - before.times, bytes: after.bytes - before.bytes, copied: after.copied - before.copied }
}

fn asked() -> Asked {
    let value = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
    Asked { times: value(&TIMES), bytes: value(&BYTES), copied: value(&COPIED) }
}

fn count(bytes: usize) {
    if is_counted() {
        TIMES.fetch_add(1, Ordering::Relaxed);
        BYTES.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// Whether this is a core, and it is being counted.
fn is_counted() -> bool {
    if !COUNTS.load(Ordering::Relaxed) {
        return false;
    }
    // A thread that ends has no such value any more.
    let is_core = IS_CORE.try_with(|is_core| {
        is_core.get().unwrap_or_else(|| {
            let is = name_begins_with(b"core-");
            is_core.set(Some(is));
            is
        })
    });
    is_core == Ok(true)
}

/// Without asking for memory.
fn name_begins_with(prefix: &[u8]) -> bool {
    let mut name = [0_u8; 16];
    // SAFETY: the kernel writes at most 16 bytes of this thread's name.
    let done = unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    done == 0 && name.starts_with(prefix)
}

// SAFETY: every call is handed on as it came, to an allocator that keeps the contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as the caller promises.
        unsafe { MiMalloc.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as the caller promises.
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: as the caller promises.
        unsafe { MiMalloc.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { MiMalloc.dealloc(pointer, layout) }
    }
}

/// The C library's, for everything that is linked into this program: those of the allocator and of Rust's own slices are among them.
#[cfg(target_arch = "x86_64")]
mod copies {
    use std::{arch::asm, sync::atomic::Ordering};

    use super::{COPIED, PAGE, is_counted};

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, length: usize) -> *mut u8 {
        // SAFETY: as the caller promises.
        unsafe { copy(to, from, length) }
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, length: usize) -> *mut u8 {
        // SAFETY: as the caller promises.
        unsafe { copy(to, from, length) }
    }

    /// From the back, where a copy from the front would overwrite what it has yet to read.
    unsafe fn copy(to: *mut u8, from: *const u8, length: usize) -> *mut u8 {
        if length >= PAGE && is_counted() {
            COPIED.fetch_add(length as u64, Ordering::Relaxed);
        }
        if (to.addr().wrapping_sub(from.addr())) < length && length > 0 {
            let (to_end, from_end) = (to.wrapping_add(length - 1), from.wrapping_add(length - 1));
            // SAFETY: both are as long as the caller says, and the flag is as it must be again afterwards.
            unsafe {
                asm!("std", "rep movsb", "cld", inout("rcx") length => _, inout("rdi") to_end => _,
                    inout("rsi") from_end => _, options(nostack));
            }
        } else {
            // SAFETY: both are as long as the caller says.
            unsafe {
                asm!("rep movsb", inout("rcx") length => _, inout("rdi") to => _, inout("rsi") from => _,
                    options(nostack, preserves_flags));
            }
        }
        to
    }
}

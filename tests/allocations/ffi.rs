//! The server's allocator, which counts what the cores ask of it.

use std::{
    alloc::{GlobalAlloc, Layout},
    cell::Cell,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use mimalloc::MiMalloc;

/// Counts while it is told to, on threads whose name begins with `core-`.
pub struct Counting;

/// What the cores asked for.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    pub times: u64,
    pub bytes: u64,
}

static COUNTS: AtomicBool = AtomicBool::new(false);
static TIMES: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

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
    Asked { times: after.times - before.times, bytes: after.bytes - before.bytes }
}

fn asked() -> Asked {
    Asked { times: TIMES.load(Ordering::SeqCst), bytes: BYTES.load(Ordering::SeqCst) }
}

fn count(bytes: usize) {
    if !COUNTS.load(Ordering::Relaxed) {
        return;
    }
    // A thread that ends has no such value any more.
    let is_core = IS_CORE.try_with(|is_core| {
        is_core.get().unwrap_or_else(|| {
            let is = name_begins_with(b"core-");
            is_core.set(Some(is));
            is
        })
    });
    if is_core == Ok(true) {
        TIMES.fetch_add(1, Ordering::Relaxed);
        BYTES.fetch_add(bytes as u64, Ordering::Relaxed);
    }
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

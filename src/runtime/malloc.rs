//! The C library's allocator, which the native libraries use.

/// Returns what was freed to the system: malloc keeps it in its arenas until it is told.
pub fn give_back() {
    unsafe extern "C" {
        fn malloc_trim(pad: usize) -> std::ffi::c_int;
    }
    // SAFETY: glibc's malloc_trim may be called at any time from any thread; it takes no pointers.
    unsafe { malloc_trim(0) };
}

//! The two allocators: mimalloc for our own, and the C library's, which the native libraries use.

/// Returns what was freed to the system: both keep it until they are told.
pub fn give_back() {
    unsafe extern "C" {
        fn malloc_trim(pad: usize) -> std::ffi::c_int;
    }
    // SAFETY: mimalloc may be told to collect at any time from any thread, also where it is not the global allocator.
    unsafe { libmimalloc_sys::mi_collect(true) };
    // SAFETY: glibc's malloc_trim may be called at any time from any thread; it takes no pointers.
    unsafe { malloc_trim(0) };
}

//! A GPU through libtorch: this thread's stream, copies by way of pinned memory, and the way back of cached memory (`gpu.cpp`).

use std::{ffi::c_void, ptr::NonNull};

use torch_sys::C_tensor;

use crate::raw::{Failure, Result, Tensor, checked};

/// While it lives, what this thread computes on the GPU goes through a stream of its own, so that several threads' copies and
/// kernels overlap. Tied to the thread.
pub struct OnStream {
    guard: NonNull<c_void>,
    number: i32,
}

unsafe extern "C" {
    fn sconce_stream_enter(number: i32) -> *mut c_void;
    fn sconce_stream_leave(entered: *mut c_void);
    fn sconce_stream_wait(number: i32) -> i32;
    fn sconce_to_gpu(from: *const C_tensor, number: i32) -> *mut C_tensor;
    fn sconce_to_host(from: *const C_tensor) -> *mut C_tensor;
    fn sconce_empty_cache() -> i32;
}

/// The GPUs that libtorch can use; 0 where it is the build for the CPU.
pub fn count() -> Result<i64> {
    // SAFETY: no arguments.
    checked(unsafe { torch_sys::cuda::atc_cuda_device_count() }).map(i64::from)
}

/// Waits for everything on the GPU, in whichever stream.
pub fn wait_for_all(number: i32) -> Result<()> {
    // SAFETY: a plain number.
    unsafe { torch_sys::cuda::atc_synchronize(i64::from(number)) };
    checked(())
}

/// Gives the GPU back the memory of what was closed; libtorch would keep it for its next model.
pub fn empty_cache() -> Result<()> {
    // SAFETY: no arguments.
    checked(unsafe { sconce_empty_cache() }).map(drop)
}

// === impl OnStream ===

impl OnStream {
    pub fn enter(number: i32) -> Result<Self> {
        // SAFETY: a plain number; the guard is left by this thread, for it cannot be sent.
        let guard = checked(unsafe { sconce_stream_enter(number) })?;
        let guard = NonNull::new(guard).ok_or_else(|| Failure::new("libtorch gave no stream"))?;
        Ok(Self { guard, number })
    }

    /// A copy on the GPU, made by the stream.
    pub fn copy_in(&self, tensor: &Tensor) -> Result<Tensor> {
        // SAFETY: the tensor is alive, and copied out of before the call comes back.
        Tensor::owned(unsafe { sconce_to_gpu(tensor.as_ptr(), self.number) })
    }

    /// A copy in the host's memory, which may be read after `wait`.
    pub fn copy_out(&self, tensor: &Tensor) -> Result<Tensor> {
        // SAFETY: the tensor is alive; libtorch keeps its memory until the stream is done with it.
        Tensor::owned(unsafe { sconce_to_host(tensor.as_ptr()) })
    }

    pub fn wait(&self) -> Result<()> {
        // SAFETY: a plain number.
        checked(unsafe { sconce_stream_wait(self.number) }).map(drop)
    }
}

impl Drop for OnStream {
    fn drop(&mut self) {
        // SAFETY: entered by this thread, and left once.
        unsafe { sconce_stream_leave(self.guard.as_ptr()) };
    }
}

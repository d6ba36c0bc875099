//! The few functions of NVIDIA's driver that say which GPUs there are and what of their memory is free.
//!
//! The driver's library comes with the driver, never with us. Names and types are those of cuda.h, unchanged since CUDA 4.

use std::{
    ffi::{CStr, c_char, c_int, c_uint, c_void},
    mem::ManuallyDrop,
    path::Path,
    ptr::null_mut,
    sync::Mutex,
};

use super::{Gpu, GpuMemory};

/// The driver, and the GPUs it showed when it was loaded.
pub struct Driver {
    calls: Calls,
    gpus: Vec<Gpu>,
    /// The primary context of each GPU that was asked for its memory, as an address: what the libraries run in as well. Kept as
    /// long as the process.
    contexts: Mutex<Vec<Option<usize>>>,
}

type Status = c_uint;
const SUCCESS: Status = 0;
const NO_DEVICE: Status = 100;

type Context = *mut c_void;

#[derive(Clone, Copy)]
struct Calls {
    init: unsafe extern "C" fn(c_uint) -> Status,
    device_count: unsafe extern "C" fn(*mut c_int) -> Status,
    device_get: unsafe extern "C" fn(*mut c_int, c_int) -> Status,
    device_name: unsafe extern "C" fn(*mut c_char, c_int, c_int) -> Status,
    context_retain: unsafe extern "C" fn(*mut Context, c_int) -> Status,
    context_push: unsafe extern "C" fn(Context) -> Status,
    context_pop: unsafe extern "C" fn(*mut Context) -> Status,
    memory_info: unsafe extern "C" fn(*mut usize, *mut usize) -> Status,
}

const LIBRARY: &str = "libcuda.so.1";
const NAME_BYTES_MAX: usize = 256;

// === impl Driver ===

impl Driver {
    /// In words why there is none.
    pub fn load() -> Result<Self, String> {
        let absent = format!("{LIBRARY}, NVIDIA's driver, is not on this machine");
        // SAFETY: loading runs the library's constructors; it is the system's own driver.
        let library = unsafe { libloading::Library::new(LIBRARY) }.map_err(|_| absent)?;
        // It cannot be unloaded safely once it was used.
        let library = ManuallyDrop::new(library);
        let calls = Calls::of(&library).map_err(|error| format!("{LIBRARY} is not what it should be: {error}"))?;
        // SAFETY: takes flags, of which there are none.
        match unsafe { (calls.init)(0) } {
            SUCCESS => {}
            NO_DEVICE => return Ok(Self::of(calls, Vec::new())),
            status => return Err(format!("NVIDIA's driver does not start (CUDA error {status})")),
        }
        let mut count = 0;
        // SAFETY: the place is ours.
        check(unsafe { (calls.device_count)(&mut count) })?;
        let gpus = (0..count).map(|number| Ok(Gpu { name: calls.name(number)? })).collect::<Result<_, String>>()?;
        Ok(Self::of(calls, gpus))
    }

    fn of(calls: Calls, gpus: Vec<Gpu>) -> Self {
        Self { calls, contexts: Mutex::new(vec![None; gpus.len()]), gpus }
    }

    pub fn gpus(&self) -> &[Gpu] {
        &self.gpus
    }

    pub fn memory(&self, number: u8) -> Result<GpuMemory, String> {
        let context = self.context(number)? as Context;
        let (mut free, mut total, mut popped) = (0, 0, null_mut());
        // SAFETY: a context that was retained and is never released; it becomes this thread's until it is popped below.
        check(unsafe { (self.calls.context_push)(context) })?;
        // SAFETY: both places are ours.
        let asked = check(unsafe { (self.calls.memory_info)(&mut free, &mut total) });
        // SAFETY: what was pushed above comes off; the place is ours.
        check(unsafe { (self.calls.context_pop)(&mut popped) })?;
        asked?;
        Ok(GpuMemory { free: free as u64, total: total as u64 })
    }

    fn context(&self, number: u8) -> Result<usize, String> {
        let mut contexts = self.contexts.lock().expect("no holder panics: this is a bug");
        let known = contexts.get_mut(usize::from(number)).ok_or("there is no such GPU")?;
        if let Some(context) = *known {
            return Ok(context);
        }
        let (mut device, mut context) = (0, null_mut());
        // SAFETY: the place is ours.
        check(unsafe { (self.calls.device_get)(&mut device, c_int::from(number)) })?;
        // SAFETY: a device that the driver named; the place is ours.
        check(unsafe { (self.calls.context_retain)(&mut context, device) })?;
        Ok(*known.insert(context as usize))
    }
}

// === impl Calls ===

impl Calls {
    fn of(library: &libloading::Library) -> Result<Self, libloading::Error> {
        // SAFETY: each symbol has the type that cuda.h gives it; the library is never unloaded.
        unsafe {
            Ok(Self {
                init: *library.get(b"cuInit")?,
                device_count: *library.get(b"cuDeviceGetCount")?,
                device_get: *library.get(b"cuDeviceGet")?,
                device_name: *library.get(b"cuDeviceGetName")?,
                context_retain: *library.get(b"cuDevicePrimaryCtxRetain")?,
                context_push: *library.get(b"cuCtxPushCurrent_v2")?,
                context_pop: *library.get(b"cuCtxPopCurrent_v2")?,
                memory_info: *library.get(b"cuMemGetInfo_v2")?,
            })
        }
    }

    fn name(&self, number: c_int) -> Result<String, String> {
        let mut device = 0;
        // SAFETY: the place is ours.
        check(unsafe { (self.device_get)(&mut device, number) })?;
        let mut name = [0u8; NAME_BYTES_MAX];
        // SAFETY: the place holds as many bytes as are said.
        check(unsafe { (self.device_name)(name.as_mut_ptr().cast(), NAME_BYTES_MAX as c_int, device) })?;
        let name = CStr::from_bytes_until_nul(&name).map_err(|_| "a GPU has a name without an end")?;
        Ok(name.to_string_lossy().into_owned())
    }
}

fn check(status: Status) -> Result<(), String> {
    match status {
        SUCCESS => Ok(()),
        status => Err(format!("CUDA error {status}")),
    }
}

/// Loads a library for the rest of the process.
pub fn keep_loaded(path: &Path) -> Result<(), libloading::Error> {
    // SAFETY: the libraries are trusted: their folder belongs to whoever installs the server.
    let _never_unloaded = ManuallyDrop::new(unsafe { libloading::Library::new(path) }?);
    Ok(())
}

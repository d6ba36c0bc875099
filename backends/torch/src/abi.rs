//! The C ABI between the server and this plugin. Both compile this one file, so that they cannot differ in anything but
//! `ABI_VERSION`, which goes up with every change here and which the server checks first.
//!
//! Whatever is passed in is borrowed for the call. An answer belongs to the caller until it is freed; the memory of its
//! tensors is the library's own, and does not move or change meanwhile. Every function may be called from any thread.
//! A status that is not `OK` has its text in `last_error`.

pub const ABI_VERSION: u32 = 1;

/// The one symbol the plugin exports: `extern "C" fn() -> *const Plugin`.
pub const SYMBOL: &str = "sconce_torch_plugin";
pub type Entry = unsafe extern "C" fn() -> *const Plugin;

/// What the plugin can do. The first field never moves, whatever the version.
#[repr(C)]
pub struct Plugin {
    pub abi_version: u32,
    /// The release of libtorch it was built against, e.g. `2.13.0`.
    pub libtorch: Slice<u8>,
    /// Opens a TorchScript archive; the device is -1 for the CPU or the number of a CUDA device.
    pub open: unsafe extern "C" fn(path: Slice<u8>, device: i32, module: *mut *const Module) -> u32,
    /// How `forward` is declared, as libtorch prints it; empty where it did not say. Lives as long as the module.
    pub declaration: unsafe extern "C" fn(module: *const Module) -> Slice<u8>,
    /// Runs `forward` once, its inputs passed as one of the `PASS_` says. Inputs are aligned to their elements.
    pub run: unsafe extern "C" fn(
        module: *const Module,
        passing: u32,
        inputs: Slice<TensorView>,
        answer: *mut AnswerView,
    ) -> u32,
    pub free: unsafe extern "C" fn(answer: *const Answer),
    pub close: unsafe extern "C" fn(module: *const Module),
    /// What went wrong in the last failed call of this thread; valid until its next call.
    pub last_error: unsafe extern "C" fn() -> Slice<u8>,
}

/// A tensor in dense row-major order.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct TensorView {
    /// UTF-8; of an output only where `forward` returned a dictionary.
    pub name: Slice<u8>,
    /// libtorch's number of the type (`c10::ScalarType`).
    pub dtype: i32,
    pub shape: Slice<i64>,
    pub data: Slice<u8>,
}

/// What one run gave.
#[repr(C)]
pub struct AnswerView {
    pub outputs: Slice<TensorView>,
    /// To be given to `free`, once.
    pub answer: *const Answer,
}

/// Memory of the other side.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Slice<T> {
    pub data: *const T,
    pub len: usize,
}

/// An opened archive, known to the plugin alone.
#[repr(C)]
pub struct Module {
    _private: [u8; 0],
}

/// The outputs of one run, known to the plugin alone.
#[repr(C)]
pub struct Answer {
    _private: [u8; 0],
}

pub const OK: u32 = 0;
pub const FAILED: u32 = 1;
pub const OUT_OF_MEMORY: u32 = 2;

/// One argument of `forward` for each input.
pub const PASS_EACH: u32 = 0;
/// One argument, a list of the inputs.
pub const PASS_LIST: u32 = 1;
/// One argument, a dictionary of the inputs by name.
pub const PASS_DICT: u32 = 2;

// === impl Slice ===

impl<T> Slice<T> {
    pub const fn of(slice: &[T]) -> Self {
        Self { data: slice.as_ptr(), len: slice.len() }
    }

    /// # Safety
    /// The memory must be valid and unchanged for as long as the caller makes `'a`.
    pub unsafe fn get<'a>(self) -> &'a [T] {
        if self.len == 0 {
            return &[];
        }
        // SAFETY: not empty, and valid as the caller promises.
        unsafe { std::slice::from_raw_parts(self.data, self.len) }
    }
}

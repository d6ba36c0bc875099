//! The TorchScript plugin: libtorch behind the few C functions of `abi`, which the server opens on its first TorchScript
//! model.
//!
//! It opens archives and runs them. Names, types and shapes are the server's business, as is what an archive may hold: it
//! is checked before it comes here. No panic leaves an entry.

#[allow(dead_code, reason = "one file for both sides")]
mod abi;
mod gpu;
mod module;
mod raw;

use std::{
    cell::{Cell, RefCell},
    ffi::CString,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::OnceLock,
};

use abi::{ABI_VERSION, Answer, AnswerView, FAILED, Module, OK, Plugin, Slice, TensorView};
use raw::{Failure, Result};

/// The release that the pinned torch-sys is written for; its build script refuses any other.
const LIBTORCH: &str = "2.13.0";

struct Shared(Plugin);

// SAFETY: functions, and a text that lives for ever.
unsafe impl Sync for Shared {}

static PLUGIN: Shared = Shared(Plugin {
    abi_version: ABI_VERSION,
    libtorch: Slice::of(LIBTORCH.as_bytes()),
    open,
    declaration,
    run,
    free,
    close,
    last_error,
});

thread_local! {
    static LAST_ERROR: RefCell<String> = const { RefCell::new(String::new()) };
    static PREPARED: Cell<bool> = const { Cell::new(false) };
}

const _: abi::Entry = sconce_torch_plugin;

/// The plugin's table; see `abi`.
#[unsafe(no_mangle)]
pub extern "C" fn sconce_torch_plugin() -> *const Plugin {
    &raw const PLUGIN.0
}

unsafe extern "C" fn open(path: Slice<u8>, device: i32, module: *mut *const Module) -> u32 {
    guarded(|| {
        prepare_thread()?;
        // SAFETY: valid for the call, as `abi` says.
        let path = CString::new(unsafe { path.get() }).map_err(|_| Failure::new("a path that holds NUL"))?;
        let opened = Box::new(module::Module::open(&path, device)?);
        // SAFETY: the caller's place for it.
        unsafe { module.write(Box::into_raw(opened).cast_const().cast()) };
        Ok(())
    })
}

unsafe extern "C" fn declaration(module: *const Module) -> Slice<u8> {
    // SAFETY: given out by `open` and not closed yet.
    let module = unsafe { &*module.cast::<module::Module>() };
    Slice::of(module.declaration().as_bytes())
}

unsafe extern "C" fn run(
    module: *const Module,
    passing: u32,
    inputs: Slice<TensorView>,
    answer: *mut AnswerView,
) -> u32 {
    guarded(|| {
        prepare_thread()?;
        // SAFETY: given out by `open` and not closed yet; the inputs are valid for the call.
        let (module, inputs) = unsafe { (&*module.cast::<module::Module>(), inputs.get()) };
        let given = Box::new(module.run(passing, inputs)?);
        let view = AnswerView { outputs: Slice::of(given.views()), answer: Box::into_raw(given).cast_const().cast() };
        // SAFETY: the caller's place for it.
        unsafe { answer.write(view) };
        Ok(())
    })
}

unsafe extern "C" fn free(answer: *const Answer) {
    guarded(|| {
        // SAFETY: given out by `run`, and freed once.
        drop(unsafe { Box::from_raw(answer.cast_mut().cast::<module::Answer>()) });
        Ok(())
    });
}

unsafe extern "C" fn close(module: *const Module) {
    guarded(|| {
        // SAFETY: given out by `open`, and closed once.
        drop(unsafe { Box::from_raw(module.cast_mut().cast::<module::Module>()) });
        Ok(())
    });
}

unsafe extern "C" fn last_error() -> Slice<u8> {
    LAST_ERROR.with_borrow(|text| Slice::of(text.as_bytes()))
}

/// Keeps the error's text for `last_error`, and any panic inside.
fn guarded(call: impl FnOnce() -> Result<()>) -> u32 {
    let failure = match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(())) => return OK,
        Ok(Err(failure)) => failure,
        Err(_) => Failure { status: FAILED, text: "the TorchScript plugin panicked".into() },
    };
    LAST_ERROR.set(failure.text);
    failure.status
}

/// libtorch keeps the number of an operator's threads by thread.
fn prepare_thread() -> Result<()> {
    static PROCESS: OnceLock<Option<String>> = OnceLock::new();
    if PREPARED.get() {
        return Ok(());
    }
    let process = PROCESS.get_or_init(|| raw::set_interop_threads().err().map(|failure| failure.text));
    if let Some(text) = process {
        return Err(Failure::new(text.clone()));
    }
    raw::set_threads()?;
    PREPARED.set(true);
    Ok(())
}

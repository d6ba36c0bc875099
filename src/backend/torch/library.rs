//! libtorch and the plugin, found and loaded on first use; the plugin's C functions as safe ones.
//!
//! Loaded once and for ever: libtorch cannot be unloaded. What was not found is looked for again at the next call, since a
//! server may start while both are still being fetched and built.

use std::{
    mem::ManuallyDrop,
    path::{Path, PathBuf},
    ptr,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use super::{
    abi::{self, Plugin, Slice, TensorView},
    refusal,
};
use crate::{
    backend::{gpu, library_missing, shortage},
    error::{Code, Error, Result},
    model::Device,
};

/// The plugin, with libtorch beneath it.
pub struct Library {
    plugin: &'static Plugin,
    name: String,
    /// Whether libtorch's part for CUDA is loaded as well, or why not.
    cuda: Result<()>,
}

/// An opened archive.
pub struct Module {
    library: &'static Library,
    module: *const abi::Module,
    device: Device,
}

/// The outputs of one run.
pub struct Answer {
    library: &'static Library,
    view: abi::AnswerView,
}

/// The bytes of one output, which keep the answer alive.
pub struct OutputBytes {
    pub answer: Arc<Answer>,
    pub place: usize,
}

const PLUGIN: &str = "libsconce_torch.so";
/// The plugin's number of the CPU.
const CPU: i32 = -1;
/// Each needs the ones before it.
const LIBTORCH: [&str; 2] = ["libc10.so", "libtorch_cpu.so"];
/// The part for CUDA, after those.
const LIBTORCH_CUDA: [&str; 2] = ["libc10_cuda.so", "libtorch_cuda.so"];
/// Where that part may be: not beside the rest where the plugin is built, which would then ask for it always.
const CUDA_FOLDERS: [&str; 2] = ["torch-gpu/lib", "torch/lib"];

// SAFETY: functions that may be called from any thread, and texts that live for ever.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}
// SAFETY: the plugin's modules may be used and closed by any thread.
unsafe impl Send for Module {}
// SAFETY: `run` may be called by many threads at once.
unsafe impl Sync for Module {}
// SAFETY: the memory of an answer does not change, and any thread may free it.
unsafe impl Send for Answer {}
// SAFETY: as above.
unsafe impl Sync for Answer {}

/// The library, loaded now if it was not before. LIBRARY_MISSING names what is not there.
pub fn get(native_dir: &Path) -> Result<&'static Library> {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    static LOADING: Mutex<()> = Mutex::new(());
    if let Some(library) = LIBRARY.get() {
        return Ok(library);
    }
    let _one_at_a_time = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(library) = LIBRARY.get() {
        return Ok(library);
    }
    let library = load(native_dir)?;
    Ok(LIBRARY.get_or_init(|| library))
}

pub(super) fn load(native_dir: &Path) -> Result<Library> {
    let libtorch = native_dir.join("torch/lib");
    if LIBTORCH.iter().any(|name| !libtorch.join(name).is_file()) {
        return Err(library_missing("libtorch", "`make plugin` fetches it"));
    }
    let plugin = plugin_places(native_dir)
        .into_iter()
        .find(|place| place.is_file())
        .ok_or_else(|| library_missing("the TorchScript plugin", "`make plugin` builds it"))?;
    for name in LIBTORCH {
        open(&libtorch.join(name), name)?;
    }
    let cuda = load_cuda(native_dir);
    let library = open(&plugin, PLUGIN)?;
    // SAFETY: the symbol is this function in every version of the plugin.
    let entry = unsafe { library.get::<abi::Entry>(abi::SYMBOL) }
        .map_err(|_| unusable(&format!("{PLUGIN} is not the TorchScript plugin of sconce")))?;
    // SAFETY: it takes nothing and gives a table that lives for ever.
    let table = unsafe { entry() };
    // SAFETY: the version is the first field of the table in every version.
    let version = unsafe { table.cast::<u32>().read() };
    if version != abi::ABI_VERSION {
        return Err(unusable(&format!(
            "the TorchScript plugin speaks version {version} of its interface, this server {}; `make plugin` builds the right one",
            abi::ABI_VERSION
        )));
    }
    // SAFETY: the same version, so the same table.
    let plugin = unsafe { &*table };
    // SAFETY: a text that lives for ever.
    let libtorch = unsafe { plugin.libtorch.get() };
    Ok(Library { plugin, name: format!("libtorch {}", String::from_utf8_lossy(libtorch)), cuda })
}

/// Where libtorch's part for CUDA is.
fn cuda_folder(native_dir: &Path) -> Option<PathBuf> {
    let mut folders = CUDA_FOLDERS.iter().map(|folder| native_dir.join(folder));
    folders.find(|folder| LIBTORCH_CUDA.iter().all(|name| folder.join(name).is_file()))
}

pub fn has_cuda(native_dir: &Path) -> bool {
    cuda_folder(native_dir).is_some()
}

/// With the rest or never: libtorch looks for it once. Where there is no GPU it stays out, for it is large.
fn load_cuda(native_dir: &Path) -> Result<()> {
    let without = |why: &str| {
        let what = format!("this process has loaded libtorch without its part for CUDA ({why}); restart the server");
        Err(Error::new(Code::FailedPrecondition, "LIBRARY_UNUSABLE", what))
    };
    let Some(folder) = cuda_folder(native_dir) else {
        return without("it was not there");
    };
    if gpu::all().is_empty() {
        return without("there was no GPU");
    }
    gpu::preload(native_dir);
    LIBTORCH_CUDA.iter().try_for_each(|name| open(&folder.join(name), name).map(drop))
}

/// Where the plugin may be: with the other libraries, beside the executable, or, where that lies in a folder of a build
/// (`target/release`, `target/debug/deps`), in the builds beside it.
fn plugin_places(native_dir: &Path) -> Vec<PathBuf> {
    let mut folders = vec![native_dir.to_owned()];
    let executable = std::env::current_exe().unwrap_or_default();
    if let Some(own) = executable.parent() {
        folders.push(own.to_owned());
        let build = if own.ends_with("deps") { own.parent().unwrap_or(own) } else { own };
        if let Some(target) = build.parent().filter(|_| build.ends_with("release") || build.ends_with("debug")) {
            folders.extend([target.join("release"), target.join("debug")]);
        }
    }
    folders.into_iter().map(|folder| folder.join(PLUGIN)).collect()
}

/// Loaded and never unloaded: its threads and its exit handlers run on.
fn open(path: &Path, name: &str) -> Result<ManuallyDrop<libloading::Library>> {
    // SAFETY: the libraries are trusted: their folder belongs to whoever installs the server.
    match unsafe { libloading::Library::new(path) } {
        Ok(library) => Ok(ManuallyDrop::new(library)),
        Err(error) => {
            tracing::warn!(%error, "a library of TorchScript does not load");
            // The linker names files by their paths, which are not for callers.
            let folder = path.parent().unwrap_or(path).display();
            let text = error.to_string().replace(&format!("{folder}/"), "");
            Err(unusable(&format!("{name} could not be loaded: {}", refusal::sentence(&text))))
        }
    }
}

fn unusable(what: &str) -> Error {
    Error::new(Code::FailedPrecondition, "LIBRARY_UNUSABLE", what)
}

// === impl Library ===

impl Library {
    /// `libtorch 2.13.0`
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Opens an archive on the device.
    pub fn open(&'static self, path: &Path, device: Device) -> Result<Module> {
        let number = match device {
            Device::Cpu => CPU,
            Device::Cuda(number) => {
                self.cuda.clone()?;
                i32::from(number)
            }
        };
        let mut module = ptr::null();
        let path = path.as_os_str().as_encoded_bytes();
        // SAFETY: the path is valid for the call, the place is ours.
        let status = unsafe { (self.plugin.open)(Slice::of(path), number, &mut module) };
        if status != abi::OK {
            return Err(self.failure(status, super::LOAD_FAILED, Code::FailedPrecondition, device));
        }
        Ok(Module { library: self, module, device })
    }

    fn failure(&self, status: u32, reason: &'static str, code: Code, device: Device) -> Error {
        // SAFETY: valid until the next call of this thread.
        let text = unsafe { (self.plugin.last_error)().get() };
        let text = String::from_utf8_lossy(text);
        match shortage::of(&text, device) {
            Some(short) => short,
            None if status == abi::OUT_OF_MEMORY => shortage::on(device),
            None if device != Device::Cpu && reason == super::LOAD_FAILED && text.contains("CUDA") => {
                let what = format!("{device} cannot be used: {}", refusal::sentence(&text));
                Error::new(Code::FailedPrecondition, "DEVICE_FAILED", what)
            }
            None => Error::new(code, reason, refusal::sentence(&text)),
        }
    }
}

// === impl Module ===

impl Module {
    /// How `forward` is declared, as libtorch prints it; empty where it did not say.
    pub fn declaration(&self) -> String {
        // SAFETY: open; the text lives as long as the module.
        let text = unsafe { (self.library.plugin.declaration)(self.module).get() };
        String::from_utf8_lossy(text).into_owned()
    }

    pub fn library(&self) -> &'static Library {
        self.library
    }

    /// Runs `forward` once; see `abi` for what the inputs must be.
    pub fn run(&self, passing: u32, inputs: &[TensorView]) -> Result<Answer> {
        let mut view = abi::AnswerView { outputs: Slice::of(&[]), answer: ptr::null() };
        // SAFETY: open; the views borrow from the caller's slices for the call, the place is ours.
        let status = unsafe { (self.library.plugin.run)(self.module, passing, Slice::of(inputs), &mut view) };
        if status != abi::OK {
            return Err(self.library.failure(status, "BACKEND_FAILED", Code::Internal, self.device));
        }
        Ok(Answer { library: self.library, view })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: open, and closed once.
        unsafe { (self.library.plugin.close)(self.module) }
    }
}

// === impl Answer ===

impl Answer {
    pub fn count(&self) -> usize {
        self.view.outputs.len
    }

    pub fn dtype(&self, place: usize) -> i32 {
        self.output(place).dtype
    }

    pub fn shape(&self, place: usize) -> &[i64] {
        // SAFETY: lives as long as the answer.
        unsafe { self.output(place).shape.get() }
    }

    pub fn data(&self, place: usize) -> &[u8] {
        // SAFETY: lives as long as the answer, and nothing writes into it.
        unsafe { self.output(place).data.get() }
    }

    /// Empty where `forward` returned no dictionary.
    pub fn name(&self, place: usize) -> &[u8] {
        // SAFETY: lives as long as the answer.
        unsafe { self.output(place).name.get() }
    }

    fn output(&self, place: usize) -> &TensorView {
        // SAFETY: the views live as long as the answer.
        let views: &[TensorView] = unsafe { self.view.outputs.get() };
        &views[place]
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        // SAFETY: given by `run`, and freed once.
        unsafe { (self.library.plugin.free)(self.view.answer) }
    }
}

// === impl OutputBytes ===

impl AsRef<[u8]> for OutputBytes {
    fn as_ref(&self) -> &[u8] {
        self.answer.data(self.place)
    }
}

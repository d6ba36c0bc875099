//! The part of LightGBM's C API that predicts. All of the backend's `unsafe` is here.
//!
//! The library is loaded on the first LightGBM model; only a success is remembered, so that one installed later is found.

use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    path::Path,
    ptr::{NonNull, null_mut},
    sync::{Arc, Mutex, PoisonError},
};

use libloading::Library;

use crate::{
    backend::{library_broken, library_missing, message::shortened},
    error::{Code, Error, Result},
};

/// What is asked of the trees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum PredictType {
    Normal = 0,
    Raw = 1,
    Leaf = 2,
    Contrib = 3,
}

/// The loaded library: the functions we call.
pub struct Api {
    /// `lightgbm 4.7.0`
    pub name: String,
    register_log: unsafe extern "C" fn(unsafe extern "C" fn(*const c_char)) -> c_int,
    last_error: unsafe extern "C" fn() -> *const c_char,
    load: unsafe extern "C" fn(*const c_char, *mut c_int, *mut Handle) -> c_int,
    free: unsafe extern "C" fn(Handle) -> c_int,
    feature_count: unsafe extern "C" fn(Handle, *mut c_int) -> c_int,
    result_count: unsafe extern "C" fn(Handle, c_int, c_int, c_int, c_int, *mut i64) -> c_int,
    fast_init: unsafe extern "C" fn(Handle, c_int, c_int, c_int, c_int, i32, *const c_char, *mut Handle) -> c_int,
    fast_row: unsafe extern "C" fn(Handle, *const c_void, *mut i64, *mut f64) -> c_int,
    fast_free: unsafe extern "C" fn(Handle) -> c_int,
    table: TableFn,
    /// Never closed: its threads and its log callback stay. Last, so that it outlives the functions.
    _libraries: Vec<Library>,
}

/// A loaded model, shared by all sessions. The library takes a shared lock of its own for each prediction.
pub struct Booster {
    api: Arc<Api>,
    handle: NonNull<c_void>,
    features: usize,
}

/// The library's scratch for rows one after another, of one predict type. One session owns it.
pub struct RowPredictor {
    booster: Arc<Booster>,
    handle: NonNull<c_void>,
    results: usize,
}

type Handle = *mut c_void;

type TableFn = unsafe extern "C" fn(
    Handle,
    *const c_void,
    c_int,
    i32,
    i32,
    c_int,
    c_int,
    c_int,
    c_int,
    *const c_char,
    *mut i64,
    *mut f64,
) -> c_int;

const FLOAT64: c_int = 1;
const ROW_MAJOR: c_int = 1;
const ALL_ITERATIONS: c_int = -1;
/// Ours alone: nothing of a request ever gets into it.
const PARAMETERS: &CStr = c"num_threads=1 verbosity=-1";

/// Before it, training over a network could be made to run code.
const OLDEST: [u64; 3] = [4, 6, 0];

static LOADED: Mutex<Option<Arc<Api>>> = Mutex::new(None);

/// The library from `native_dir`, loaded once a process.
pub fn library(native_dir: &Path) -> Result<Arc<Api>> {
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(api) = &*loaded {
        return Ok(api.clone());
    }
    let api = Arc::new(Api::open(&native_dir.join("lightgbm"))?);
    tracing::info!(library = api.name, "loaded");
    Ok(loaded.insert(api).clone())
}

/// The library has no way to say its version; the note beside it, of what was fetched, has.
fn version(folder: &Path) -> Option<String> {
    let pins = std::fs::read_to_string(folder.join(".pins")).ok()?;
    let version = pins.lines().find_map(|line| line.strip_prefix("lightgbm=="))?;
    Some(version.trim().to_owned())
}

fn check_version(version: &str) -> Result<()> {
    let numbers: Vec<u64> = version.split('.').filter_map(|part| part.parse().ok()).collect();
    if numbers[..] >= OLDEST[..] {
        return Ok(());
    }
    Err(Error::new(
        Code::FailedPrecondition,
        "LIBRARY_TOO_OLD",
        format!("LightGBM {} is too old; install 4.6.0 or later", shortened(version)),
    ))
}

/// LightGBM's log, as ours. Its lines come in pieces; those that carry text are kept.
unsafe extern "C" fn log(text: *const c_char) {
    if text.is_null() {
        return;
    }
    // SAFETY: the library passes a text that ends with NUL and lives during the call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    let text = text.trim();
    let is_level = text.starts_with("[LightGBM]") && text.ends_with(']');
    if !text.is_empty() && !is_level {
        tracing::debug!(target: "sconce::lightgbm", "{text}");
    }
}

// === impl Api ===

impl Api {
    fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("lib_lightgbm.so");
        if !path.exists() {
            return Err(library_missing("LightGBM", "`make` fetches it"));
        }
        let version = version(folder);
        version.as_deref().map_or(Ok(()), check_version)?;
        let name = version.map_or_else(|| "lightgbm".into(), |version| format!("lightgbm {version}"));
        Self::bind(folder, &path, name).map_err(|error| {
            tracing::warn!("LightGBM does not load: {error}");
            library_broken("LightGBM")
        })
    }

    fn bind(folder: &Path, path: &Path, name: String) -> std::result::Result<Self, libloading::Error> {
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        // OpenMP's runtime first, so that the one beside the library is found without any search path. A machine's own
        // does as well, hence no error.
        let gomp = folder.join("libgomp.so.1");
        // SAFETY: loading runs constructors. Both files are the operator's, from the folder of native libraries.
        let gomp = unsafe { Library::new(absolute(&gomp)) }.ok();
        // SAFETY: as above.
        let library = unsafe { Library::new(absolute(path)) }?;
        // SAFETY: the types are those of LightGBM's c_api.h, unchanged since 3.0; the library is kept beside them.
        unsafe {
            let set_threads_max: unsafe extern "C" fn(c_int) -> c_int = *library.get(b"LGBM_SetMaxThreads")?;
            let api = Self {
                name,
                register_log: *library.get(b"LGBM_RegisterLogCallback")?,
                last_error: *library.get(b"LGBM_GetLastError")?,
                load: *library.get(b"LGBM_BoosterLoadModelFromString")?,
                free: *library.get(b"LGBM_BoosterFree")?,
                feature_count: *library.get(b"LGBM_BoosterGetNumFeature")?,
                result_count: *library.get(b"LGBM_BoosterCalcNumPredict")?,
                fast_init: *library.get(b"LGBM_BoosterPredictForMatSingleRowFastInit")?,
                fast_row: *library.get(b"LGBM_BoosterPredictForMatSingleRowFast")?,
                fast_free: *library.get(b"LGBM_FastConfigFree")?,
                table: *library.get(b"LGBM_BoosterPredictForMat")?,
                _libraries: gomp.into_iter().chain([library]).collect(),
            };
            // Else loading starts a thread for each core, which stay.
            set_threads_max(1);
            Ok(api)
        }
    }

    /// The library keeps its log callback by thread, and writes to stderr on one that has none.
    fn adopt_thread(&self) {
        // SAFETY: the callback is a function of ours, there as long as the process.
        unsafe { (self.register_log)(log) };
    }

    /// The library's message for the last failure on this thread.
    fn check(&self, code: c_int) -> std::result::Result<(), String> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: the text is the thread's own, ends with NUL and lives until the thread's next failure.
        let message = unsafe { CStr::from_ptr((self.last_error)()) };
        Err(message.to_string_lossy().into_owned())
    }
}

// === impl Booster ===

impl Booster {
    /// `text` has passed `text::check`: the library itself does not survive a damaged one.
    pub fn load(api: Arc<Api>, text: &CStr) -> std::result::Result<Self, String> {
        api.adopt_thread();
        let (mut iterations, mut handle) = (0, null_mut());
        // SAFETY: the text ends with NUL and the out pointers are valid.
        api.check(unsafe { (api.load)(text.as_ptr(), &mut iterations, &mut handle) })?;
        let handle = NonNull::new(handle).ok_or("the library returned nothing")?;
        let mut booster = Self { api, handle, features: 0 };
        let mut features = 0;
        // SAFETY: the booster is alive and the out pointer valid.
        let code = unsafe { (booster.api.feature_count)(booster.handle.as_ptr(), &mut features) };
        booster.api.check(code)?;
        booster.features = usize::try_from(features).map_err(|_| "a negative number of features")?;
        Ok(booster)
    }

    pub fn features(&self) -> usize {
        self.features
    }

    /// Before a session's calls: whichever thread makes them logs through us.
    pub fn adopt_thread(&self) {
        self.api.adopt_thread();
    }

    pub fn library(&self) -> &str {
        &self.api.name
    }

    /// The numbers that one row gets.
    pub fn results(&self, kind: PredictType) -> std::result::Result<usize, String> {
        let mut count = 0;
        // SAFETY: the booster is alive and the out pointer valid.
        self.api.check(unsafe {
            (self.api.result_count)(self.handle.as_ptr(), 1, kind as c_int, 0, ALL_ITERATIONS, &mut count)
        })?;
        usize::try_from(count).map_err(|_| "a negative number of results".into())
    }

    /// Predicts all rows of `values` at once into `results`, which has `rows` times `results(kind)` places.
    pub fn predict_table(
        &self,
        kind: PredictType,
        rows: usize,
        values: &[f64],
        results: &mut [f64],
    ) -> std::result::Result<(), String> {
        assert_eq!(values.len(), rows * self.features);
        assert_eq!(results.len(), rows * self.results(kind)?);
        let count = |count: usize| i32::try_from(count).map_err(|_| "more rows than the library takes".to_owned());
        let mut written = 0;
        // SAFETY: the booster is alive, and both slices have the lengths asserted above, which are what the library reads
        // and writes.
        self.api.check(unsafe {
            (self.api.table)(
                self.handle.as_ptr(),
                values.as_ptr().cast::<c_void>(),
                FLOAT64,
                count(rows)?,
                count(self.features)?,
                ROW_MAJOR,
                kind as c_int,
                0,
                ALL_ITERATIONS,
                PARAMETERS.as_ptr(),
                &mut written,
                results.as_mut_ptr(),
            )
        })
    }
}

impl Drop for Booster {
    fn drop(&mut self) {
        // SAFETY: ours, freed once; row predictors hold the booster, so none is left.
        unsafe { (self.api.free)(self.handle.as_ptr()) };
    }
}

// SAFETY: predictions take the library's own shared lock, and nothing here changes a loaded model.
unsafe impl Send for Booster {}
// SAFETY: as above.
unsafe impl Sync for Booster {}

// === impl RowPredictor ===

impl RowPredictor {
    pub fn new(booster: Arc<Booster>, kind: PredictType) -> std::result::Result<Self, String> {
        let results = booster.results(kind)?;
        let features = i32::try_from(booster.features).map_err(|_| "too many features")?;
        let mut handle = null_mut();
        // SAFETY: the booster is alive, the parameters end with NUL and the out pointer is valid.
        booster.api.check(unsafe {
            (booster.api.fast_init)(
                booster.handle.as_ptr(),
                kind as c_int,
                0,
                ALL_ITERATIONS,
                FLOAT64,
                features,
                PARAMETERS.as_ptr(),
                &mut handle,
            )
        })?;
        let handle = NonNull::new(handle).ok_or("the library returned nothing")?;
        Ok(Self { booster, handle, results })
    }

    /// The numbers that one row gets.
    pub fn results(&self) -> usize {
        self.results
    }

    /// Predicts one row into `results`.
    pub fn predict(&mut self, row: &[f64], results: &mut [f64]) -> std::result::Result<(), String> {
        assert_eq!(row.len(), self.booster.features);
        assert_eq!(results.len(), self.results);
        let api = &self.booster.api;
        let mut written = 0;
        // SAFETY: the config is ours and no other thread's; both slices have the lengths asserted above, which are what
        // the library reads and writes.
        api.check(unsafe {
            (api.fast_row)(self.handle.as_ptr(), row.as_ptr().cast::<c_void>(), &mut written, results.as_mut_ptr())
        })
    }
}

impl Drop for RowPredictor {
    fn drop(&mut self) {
        // SAFETY: ours, freed once, before the booster that is held beside it.
        unsafe { (self.booster.api.fast_free)(self.handle.as_ptr()) };
    }
}

// SAFETY: a plain handle that one session owns; the library ties it to no thread.
unsafe impl Send for RowPredictor {}

/// The text as the library takes it. `text::check` refuses NUL.
pub fn c_text(text: String) -> std::result::Result<CString, String> {
    CString::new(text).map_err(|_| "it holds NUL".into())
}

//! The calls of ONNX Runtime's C API that a run takes. All of the backend's `unsafe` is in this folder.
//!
//! The `ort` crate loads the library and builds the session; its `run` asks for exclusive use of it. ONNX Runtime documents
//! `Run` as safe from many threads at once, so that one copy of the weights can serve all: hence `Model::run(&self)`.

mod binding;
mod environment;
mod value;

use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    path::Path,
    ptr::{NonNull, null_mut},
};

use ort::{AsPointer, session::Session, sys};
use smallvec::SmallVec;

pub use self::{
    binding::Binding,
    value::{Held, Value},
};
use crate::model::{BytesElements, DType};
pub use environment::forbid_telemetry;

/// The loaded session and its names, as the C API wants them. Shared by all instances.
pub struct Model {
    session: Session,
    input_names: Vec<CString>,
    /// Of the outputs that can be sent.
    output_names: Vec<CString>,
    memory: MemoryInfo,
}

/// What one run is given; `terminate` may come from any thread.
pub struct RunOptions(NonNull<sys::OrtRunOptions>);

/// The library's own words for what went wrong.
#[derive(Debug)]
pub struct Failure {
    pub message: String,
}

type Outcome<T> = Result<T, Failure>;

struct MemoryInfo(NonNull<sys::OrtMemoryInfo>);

/// The version of the library at `path`, asked before anything of it is used.
pub fn version_of(path: &Path) -> Result<String, String> {
    // SAFETY: loading runs the library's constructors. The file is the operator's, from the folder of native libraries.
    let library = unsafe { libloading::Library::new(path) }.map_err(|error| error.to_string())?;
    // SAFETY: the symbol's type is that of onnxruntime_c_api.h, unchanged since its first version.
    let base: libloading::Symbol<unsafe extern "system" fn() -> *const sys::OrtApiBase> =
        unsafe { library.get(b"OrtGetApiBase") }.map_err(|error| error.to_string())?;
    // SAFETY: the function takes nothing and returns a pointer to a static, or null.
    let base = unsafe { base().as_ref() }.ok_or("OrtGetApiBase returned nothing")?;
    // SAFETY: the version is a static text that ends with NUL; the library is still open.
    let version = unsafe { CStr::from_ptr((base.GetVersionString)()) };
    Ok(version.to_string_lossy().into_owned())
}

fn api() -> &'static sys::OrtApi {
    ort::api()
}

fn check(status: sys::OrtStatusPtr) -> Outcome<()> {
    let Some(status) = NonNull::new(status.0) else {
        return Ok(());
    };
    // SAFETY: a status that is not null is ours; its message ends with NUL and lives until the release below.
    let message = unsafe { CStr::from_ptr((api().GetErrorMessage)(status.as_ptr())) }.to_string_lossy().into_owned();
    // SAFETY: released once, and not used afterwards.
    unsafe { (api().ReleaseStatus)(status.as_ptr()) };
    Err(Failure { message })
}

fn not_null<T>(pointer: *mut T) -> Outcome<NonNull<T>> {
    NonNull::new(pointer).ok_or_else(|| Failure { message: "the library returned nothing".into() })
}

// === impl Model ===

impl Model {
    pub fn new<'a>(
        session: Session,
        inputs: impl Iterator<Item = &'a str>,
        outputs: impl Iterator<Item = &'a str>,
    ) -> Outcome<Self> {
        let name = |name| CString::new(name).map_err(|_| Failure { message: "a name holds NUL".into() });
        Ok(Self {
            session,
            input_names: inputs.map(name).collect::<Outcome<_>>()?,
            output_names: outputs.map(name).collect::<Outcome<_>>()?,
            memory: MemoryInfo::cpu()?,
        })
    }

    /// A value that looks into `data`, which must be aligned to its element and as long as `shape` asks for.
    pub fn view<'a>(&self, dtype: DType, shape: &[usize], data: &'a [u8]) -> Outcome<Value<'a>> {
        Self::view_in(&self.memory, dtype, shape, data)
    }

    /// The same of memory that the library shall know as `memory`.
    fn view_in<'a>(memory: &MemoryInfo, dtype: DType, shape: &[usize], data: &'a [u8]) -> Outcome<Value<'a>> {
        // The library wants an address even where there is nothing to read.
        static NOTHING: u64 = 0;
        let size = dtype.size().expect("strings have values of their own: this is a bug");
        assert_eq!(data.len(), shape.iter().product::<usize>() * size);
        let data_pointer = if data.is_empty() { (&raw const NOTHING).cast::<u8>() } else { data.as_ptr() };
        assert!(data_pointer.addr().is_multiple_of(size));
        let dims = dims(shape);
        let mut value = null_mut();
        // SAFETY: memory info, dims and data are valid for the lengths given. The library only reads inputs: the value is
        // never handed out mutably, and its lifetime is that of `data`.
        check(unsafe {
            (api().CreateTensorWithDataAsOrtValue)(
                memory.0.as_ptr(),
                data_pointer.cast_mut().cast::<c_void>(),
                data.len(),
                dims.as_ptr(),
                dims.len(),
                element_type(dtype),
                &mut value,
            )
        })?;
        Value::new(value)
    }

    /// A value of strings, copied from length-prefixed `data`.
    pub fn strings(&self, shape: &[usize], data: &[u8]) -> Outcome<Value<'static>> {
        let dims = dims(shape);
        let mut allocator = null_mut();
        // SAFETY: the default allocator is a static of the library and never released.
        check(unsafe { (api().GetAllocatorWithDefaultOptions)(&mut allocator) })?;
        let mut value = null_mut();
        // SAFETY: dims are valid for the length given.
        check(unsafe {
            (api().CreateTensorAsOrtValue)(allocator, dims.as_ptr(), dims.len(), element_type(DType::Bytes), &mut value)
        })?;
        let value = Value::new(value)?;
        for (index, element) in BytesElements::new(data).enumerate() {
            let element = element.expect("checked by Tensor::new: this is a bug");
            let mut place: *mut c_char = null_mut();
            // SAFETY: the library checks the index. The place has room for `element.len()` bytes; with the length given, an
            // element may hold NUL.
            check(unsafe {
                (api().GetResizedStringTensorElementBuffer)(value.pointer.as_ptr(), index, element.len(), &mut place)
            })?;
            // SAFETY: as above; the two do not overlap, for the place was just allocated by the library.
            unsafe { std::ptr::copy_nonoverlapping(element.as_ptr(), place.cast::<u8>(), element.len()) };
        }
        Ok(value)
    }

    /// Runs the model. `inputs` are all of them, in the model's order; `outputs` are places among those that can be sent.
    pub fn run(&self, options: &RunOptions, inputs: &[Value<'_>], outputs: &[usize]) -> Outcome<Vec<Value<'static>>> {
        assert_eq!(inputs.len(), self.input_names.len());
        let input_names: SmallVec<[*const c_char; 8]> = self.input_names.iter().map(|name| name.as_ptr()).collect();
        let input_values: SmallVec<[*const sys::OrtValue; 8]> =
            inputs.iter().map(|value| value.pointer.as_ptr().cast_const()).collect();
        let output_names: SmallVec<[*const c_char; 8]> =
            outputs.iter().map(|&place| self.output_names[place].as_ptr()).collect();
        let mut output_values: SmallVec<[*mut sys::OrtValue; 8]> = outputs.iter().map(|_| null_mut()).collect();
        // SAFETY: all arrays are valid for the lengths given and the names end with NUL. The session pointer is only
        // mutable by the header's habit: Run is documented as safe to call from many threads on one session.
        let status = check(unsafe {
            (api().Run)(
                self.session.ptr().cast_mut(),
                options.0.as_ptr(),
                input_names.as_ptr(),
                input_values.as_ptr(),
                input_values.len(),
                output_names.as_ptr(),
                output_names.len(),
                output_values.as_mut_ptr(),
            )
        });
        // Wrapped first, so that whatever came is released even when something failed.
        let values: Vec<Outcome<Value<'static>>> = output_values.into_iter().map(Value::new).collect();
        status?;
        values.into_iter().collect()
    }
}

// SAFETY: the session is used only through Run, which may be called from any threads at once; the memory info is never
// written; the names are plain data.
unsafe impl Send for Model {}
// SAFETY: as above.
unsafe impl Sync for Model {}

// === impl MemoryInfo ===

impl MemoryInfo {
    fn cpu() -> Outcome<Self> {
        let mut info = null_mut();
        // SAFETY: the out pointer is valid; the constants are the header's.
        check(unsafe {
            (api().CreateCpuMemoryInfo)(
                sys::OrtAllocatorType::OrtArenaAllocator,
                sys::OrtMemType::OrtMemTypeDefault,
                &mut info,
            )
        })?;
        not_null(info).map(Self)
    }

    /// The host's memory that a GPU reads and writes by itself.
    fn pinned(gpu: u8) -> Outcome<Self> {
        let mut info = null_mut();
        // SAFETY: the name ends with NUL and is one that the library knows; the out pointer is valid.
        check(unsafe {
            (api().CreateMemoryInfo)(
                c"CudaPinned".as_ptr(),
                sys::OrtAllocatorType::OrtDeviceAllocator,
                c_int::from(gpu),
                sys::OrtMemType::OrtMemTypeCPUOutput,
                &mut info,
            )
        })?;
        not_null(info).map(Self)
    }
}

impl Drop for MemoryInfo {
    fn drop(&mut self) {
        // SAFETY: ours, released once.
        unsafe { (api().ReleaseMemoryInfo)(self.0.as_ptr()) };
    }
}

// === impl RunOptions ===

impl RunOptions {
    pub fn new() -> Outcome<Self> {
        let mut options = null_mut();
        // SAFETY: the out pointer is valid.
        check(unsafe { (api().CreateRunOptions)(&mut options) })?;
        not_null(options).map(Self)
    }

    /// Ends every run that has these options, now and until `resume`.
    pub fn terminate(&self) {
        // SAFETY: ours and alive; documented for calls from another thread while a run goes on. It cannot fail.
        let _ = check(unsafe { (api().RunOptionsSetTerminate)(self.0.as_ptr()) });
    }

    pub fn resume(&self) {
        // SAFETY: ours and alive. It cannot fail.
        let _ = check(unsafe { (api().RunOptionsUnsetTerminate)(self.0.as_ptr()) });
    }
}

impl Drop for RunOptions {
    fn drop(&mut self) {
        // SAFETY: ours, released once.
        unsafe { (api().ReleaseRunOptions)(self.0.as_ptr()) };
    }
}

// SAFETY: only the terminate flag is ever written, and that is made for other threads.
unsafe impl Send for RunOptions {}
// SAFETY: as above.
unsafe impl Sync for RunOptions {}

fn dims(shape: &[usize]) -> SmallVec<[i64; 6]> {
    // Tensor::new keeps the product below isize::MAX, and so each dimension but for those beside a zero, which are checked too.
    shape.iter().map(|&dim| dim as i64).collect()
}

fn element_type(dtype: DType) -> sys::ONNXTensorElementDataType {
    use sys::ONNXTensorElementDataType::*;
    match dtype {
        DType::Bool => ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL,
        DType::Uint8 => ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
        DType::Uint16 => ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16,
        DType::Uint32 => ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32,
        DType::Uint64 => ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64,
        DType::Int8 => ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8,
        DType::Int16 => ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16,
        DType::Int32 => ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
        DType::Int64 => ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
        DType::Fp16 => ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
        DType::Bf16 => ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16,
        DType::Fp32 => ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
        DType::Fp64 => ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE,
        DType::Bytes => ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING,
    }
}

fn dtype_of(element: sys::ONNXTensorElementDataType) -> Option<DType> {
    DType::ALL.into_iter().find(|&dtype| element_type(dtype) == element)
}

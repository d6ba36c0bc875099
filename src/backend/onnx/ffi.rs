//! The calls of ONNX Runtime's C API that a run takes. All of the backend's `unsafe` is here.
//!
//! The `ort` crate loads the library and builds the session; its `run` asks for exclusive use of it. ONNX Runtime documents
//! `Run` as safe from many threads at once, so that one copy of the weights can serve all: hence `Model::run(&self)`.

use std::{
    ffi::{CStr, CString, c_char, c_void},
    marker::PhantomData,
    path::Path,
    ptr::{NonNull, null, null_mut},
    slice,
    sync::Arc,
};

use ort::{AsPointer, session::Session, sys};
use smallvec::SmallVec;

use crate::model::{BytesElements, DType, Shape};

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

/// A tensor of the library's. `'a` is the memory it looks into, `'static` where it has its own.
pub struct Value<'a> {
    pointer: NonNull<sys::OrtValue>,
    memory: PhantomData<&'a [u8]>,
}

/// What a value holds.
pub struct Contents {
    /// `None` for a type that cannot be sent.
    pub dtype: Option<DType>,
    pub shape: Shape,
}

/// An output's memory, kept alive as long as somebody reads it. The model is held too: an output can be one of its weights.
pub struct Held {
    value: Value<'static>,
    data: *const u8,
    len: usize,
    _model: Arc<Model>,
}

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
    let message = unsafe { CStr::from_ptr((api().GetErrorMessage)(status.as_ptr())) }
        .to_string_lossy()
        .into_owned();
    // SAFETY: released once, and not used afterwards.
    unsafe { (api().ReleaseStatus)(status.as_ptr()) };
    Err(Failure { message })
}

fn not_null<T>(pointer: *mut T) -> Outcome<NonNull<T>> {
    NonNull::new(pointer).ok_or_else(|| Failure {
        message: "the library returned nothing".into(),
    })
}

// === impl Model ===

impl Model {
    pub fn new<'a>(
        session: Session,
        inputs: impl Iterator<Item = &'a str>,
        outputs: impl Iterator<Item = &'a str>,
    ) -> Outcome<Self> {
        let name = |name| {
            CString::new(name).map_err(|_| Failure {
                message: "a name holds NUL".into(),
            })
        };
        Ok(Self {
            session,
            input_names: inputs.map(name).collect::<Outcome<_>>()?,
            output_names: outputs.map(name).collect::<Outcome<_>>()?,
            memory: MemoryInfo::cpu()?,
        })
    }

    /// A value that looks into `data`, which must be aligned to its element and as long as `shape` asks for.
    pub fn view<'a>(&self, dtype: DType, shape: &[usize], data: &'a [u8]) -> Outcome<Value<'a>> {
        // The library wants an address even where there is nothing to read.
        static NOTHING: u64 = 0;
        let size = dtype.size().expect("strings have values of their own: this is a bug");
        assert_eq!(data.len(), shape.iter().product::<usize>() * size);
        let data_pointer = if data.is_empty() {
            (&raw const NOTHING).cast::<u8>()
        } else {
            data.as_ptr()
        };
        assert!(data_pointer.addr().is_multiple_of(size));
        let dims = dims(shape);
        let mut value = null_mut();
        // SAFETY: memory info, dims and data are valid for the lengths given. The library only reads inputs: the value is
        // never handed out mutably, and its lifetime is that of `data`.
        check(unsafe {
            (api().CreateTensorWithDataAsOrtValue)(
                self.memory.0.as_ptr(),
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
            (api().CreateTensorAsOrtValue)(
                allocator,
                dims.as_ptr(),
                dims.len(),
                element_type(DType::Bytes),
                &mut value,
            )
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

// === impl Value ===

impl<'a> Value<'a> {
    fn new(pointer: *mut sys::OrtValue) -> Outcome<Self> {
        not_null(pointer).map(|pointer| Self {
            pointer,
            memory: PhantomData,
        })
    }

    /// Type and shape. A failure where the value is no dense tensor.
    pub fn contents(&self) -> Outcome<Contents> {
        let mut kind = sys::ONNXType::ONNX_TYPE_UNKNOWN;
        // SAFETY: the value is alive and the out pointer valid.
        check(unsafe { (api().GetValueType)(self.pointer.as_ptr(), &mut kind) })?;
        if kind != sys::ONNXType::ONNX_TYPE_TENSOR {
            return Err(Failure {
                message: "an output is no dense tensor".into(),
            });
        }
        let mut element = sys::ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
        let (mut dims, mut count) = (null::<i64>(), 0);
        // SAFETY: the value is a tensor; the dims that come back live as long as it and are read before it can go.
        check(unsafe {
            (api().GetTensorElementTypeAndShapeDataReference)(
                self.pointer.as_ptr(),
                &mut element,
                &mut dims,
                &mut count,
            )
        })?;
        let dims = match count {
            0 => &[],
            // SAFETY: as above; a count above zero comes with a pointer to as many.
            _ => unsafe { slice::from_raw_parts(dims, count) },
        };
        let shape = dims.iter().map(|&dim| usize::try_from(dim));
        let shape = shape.collect::<Result<Shape, _>>().map_err(|_| Failure {
            message: "an output has a negative dimension".into(),
        })?;
        Ok(Contents {
            dtype: dtype_of(element),
            shape,
        })
    }

    /// The tensor's memory, `len` bytes of it. The caller says how many from type and shape.
    fn data(&self) -> Outcome<*const u8> {
        let mut data: *mut c_void = null_mut();
        // SAFETY: the value is alive; only tensors of fixed-size elements come here.
        check(unsafe { (api().GetTensorMutableData)(self.pointer.as_ptr(), &mut data) })?;
        Ok(data.cast_const().cast::<u8>())
    }

    /// The bytes of a tensor of fixed-size elements.
    pub fn bytes(&self) -> Outcome<&[u8]> {
        let contents = self.contents()?;
        let size = contents.dtype.and_then(DType::size).ok_or_else(|| Failure {
            message: "an output's elements have no fixed size".into(),
        })?;
        if contents.shape.contains(&0) {
            return Ok(&[]);
        }
        let len = contents.shape.iter().product::<usize>() * size;
        // SAFETY: a dense tensor on the CPU is one block of its elements, which lives as long as the value.
        Ok(unsafe { slice::from_raw_parts(self.data()?, len) })
    }

    /// The elements of a tensor of strings: their bytes end to end, and where each begins.
    pub fn string_contents(&self, count: usize) -> Outcome<(Vec<u8>, Vec<usize>)> {
        let mut length = 0;
        // SAFETY: the value is alive; the library checks that it holds strings.
        check(unsafe { (api().GetStringTensorDataLength)(self.pointer.as_ptr(), &mut length) })?;
        let (mut bytes, mut starts) = (vec![0u8; length], vec![0usize; count]);
        if count > 0 {
            // SAFETY: both buffers are valid for the lengths given, which the library checks.
            check(unsafe {
                (api().GetStringTensorContent)(
                    self.pointer.as_ptr(),
                    bytes.as_mut_ptr().cast::<c_void>(),
                    length,
                    starts.as_mut_ptr(),
                    count,
                )
            })?;
        }
        Ok((bytes, starts))
    }
}

impl Drop for Value<'_> {
    fn drop(&mut self) {
        // SAFETY: ours, released once. Memory that it looks into is not the library's and stays.
        unsafe { (api().ReleaseValue)(self.pointer.as_ptr()) };
    }
}

// SAFETY: a value is a handle that no thread but its owner's touches; the library counts references atomically.
unsafe impl Send for Value<'_> {}

// === impl Held ===

impl Held {
    /// Only for a value whose memory is not a caller's input: see `session::output`.
    pub fn new(value: Value<'static>, model: Arc<Model>) -> Outcome<Self> {
        let bytes = value.bytes()?;
        let (data, len) = (bytes.as_ptr(), bytes.len());
        Ok(Self {
            value,
            data,
            len,
            _model: model,
        })
    }
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        let _alive = &self.value;
        // SAFETY: taken from the value that is held beside it and never written again.
        unsafe { slice::from_raw_parts(self.data, self.len) }
    }
}

// SAFETY: the memory is only read, by whichever thread; release is safe from any.
unsafe impl Send for Held {}
// SAFETY: as above.
unsafe impl Sync for Held {}

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

//! libtorch's objects as owned values: each is freed by its drop, each call's error is looked at.
//!
//! Over `torch-sys` itself rather than `tch`: there `CModule::forward_is` leaks its arguments whenever `forward` raises, so
//! that a caller with bad values could fill the memory, and what is not named `f_*` panics.

use std::{
    ffi::{CStr, CString},
    ptr,
};

use torch_sys::{C_tensor, CIValue, CModule_, c_generated as atg};

use crate::abi::{FAILED, OUT_OF_MEMORY};

pub const CPU: i32 = -1;

/// A tensor: a counted reference to its memory.
pub struct Tensor(*mut C_tensor);

/// Whatever TorchScript passes about.
pub struct Value(*mut CIValue);

/// A loaded program with its weights.
pub struct Program(*mut CModule_);

/// No gradients are kept in this thread while it lives.
pub struct NoGrad {
    before: i32,
}

/// What libtorch or this plugin refused, and the status it is.
pub struct Failure {
    pub status: u32,
    pub text: String,
}

pub type Result<T> = std::result::Result<T, Failure>;

/// What a value is, as far as answers go.
pub enum Kind {
    Tensor,
    Tuple,
    List,
    TensorList,
    Dict,
    Other(&'static str),
}

// libtorch counts its references atomically, a module's forward is documented to be called from many threads, and nothing
// here writes through a tensor.
// SAFETY: as said above.
unsafe impl Send for Tensor {}
// SAFETY: as said above.
unsafe impl Sync for Tensor {}
// SAFETY: as said above.
unsafe impl Send for Program {}
// SAFETY: as said above.
unsafe impl Sync for Program {}

/// Bytes of an element of those types that travel, by libtorch's number.
pub fn element_size(dtype: i32) -> Option<usize> {
    match dtype {
        0 | 1 | 11 => Some(1),
        2 | 5 | 15 => Some(2),
        3 | 6 => Some(4),
        4 | 7 => Some(8),
        _ => None,
    }
}

/// One thread for an operator, in the calling thread: the server has one thread a core already.
pub fn set_threads() -> Result<()> {
    // SAFETY: plain numbers.
    unsafe { torch_sys::at_set_num_threads(1) };
    checked(())
}

/// One thread between operators, in the process. libtorch takes it once, before its first run.
pub fn set_interop_threads() -> Result<()> {
    // SAFETY: plain numbers.
    unsafe { torch_sys::at_set_num_interop_threads(1) };
    checked(())
}

/// The value of a call that may have left an error in this thread.
pub fn checked<T>(value: T) -> Result<T> {
    match take_error() {
        None => Ok(value),
        Some(failure) => Err(failure),
    }
}

fn take_error() -> Option<Failure> {
    // SAFETY: it gives null, or a C string of malloc's that is ours now.
    let text = unsafe { torch_sys::get_and_reset_last_err() };
    if text.is_null() {
        return None;
    }
    // SAFETY: see above; it is read before it is freed, once.
    let owned = unsafe {
        let owned = CStr::from_ptr(text).to_string_lossy().into_owned();
        libc::free(text.cast());
        owned
    };
    Some(Failure::from_libtorch(owned))
}

// === impl Failure ===

impl Failure {
    pub fn new(text: impl Into<String>) -> Self {
        Self { status: FAILED, text: text.into() }
    }

    fn from_libtorch(text: String) -> Self {
        let memory = text.contains("out of memory") || text.contains("can't allocate memory");
        Self { status: if memory { OUT_OF_MEMORY } else { FAILED }, text }
    }
}

// === impl Tensor ===

impl Tensor {
    /// A tensor over somebody's memory.
    ///
    /// # Safety
    /// `data` must hold that many elements, aligned, and live as long as any tensor that shares them.
    pub unsafe fn over(data: *const u8, shape: &[i64], dtype: i32) -> Result<Self> {
        // SAFETY: the caller's promise; no strides means dense.
        let tensor = unsafe {
            torch_sys::at_tensor_of_blob(data.cast(), shape.as_ptr(), shape.len(), ptr::null(), 0, dtype, CPU)
        };
        checked(tensor).map(Self)
    }

    /// A tensor of its own memory.
    ///
    /// # Safety
    /// `data` must hold that many elements for the call.
    pub unsafe fn copied(data: *const u8, shape: &[i64], dtype: i32, element_size: usize) -> Result<Self> {
        // SAFETY: the caller's promise.
        let tensor =
            unsafe { torch_sys::at_tensor_of_data(data.cast(), shape.as_ptr(), shape.len(), element_size, dtype) };
        checked(tensor).map(Self)
    }

    /// What a call of this thread has just given.
    pub fn owned(tensor: *mut C_tensor) -> Result<Self> {
        let tensor = checked(tensor)?;
        if tensor.is_null() {
            return Err(Failure::new("libtorch gave no tensor"));
        }
        Ok(Self(tensor))
    }

    pub fn as_ptr(&self) -> *const C_tensor {
        self.0
    }

    /// Itself in dense row-major order, or a copy that is.
    pub fn contiguous(self) -> Result<Self> {
        let mut dense = ptr::null_mut();
        // SAFETY: the tensor is alive, the place for the new one ours.
        checked(unsafe { atg::atg_contiguous(&mut dense, self.0) })?;
        Ok(Self(dense))
    }

    pub fn shape(&self) -> Result<Vec<i64>> {
        // SAFETY: the tensor is alive.
        let rank = checked(unsafe { torch_sys::at_dim(self.0) })?;
        let mut shape = vec![0i64; rank];
        // SAFETY: it writes as many dimensions as there are.
        checked(unsafe { torch_sys::at_shape(self.0, shape.as_mut_ptr()) })?;
        Ok(shape)
    }

    pub fn dtype(&self) -> Result<i32> {
        // SAFETY: the tensor is alive.
        checked(unsafe { torch_sys::at_scalar_type(self.0) })
    }

    pub fn data(&self) -> Result<*const u8> {
        // SAFETY: the tensor is alive; a layout without memory of its own is an error.
        checked(unsafe { torch_sys::at_data_ptr(self.0) }).map(|data| data.cast_const().cast())
    }

    /// Goes up with each operator that writes into the tensor or into a view of it.
    pub fn version(&self) -> Result<i64> {
        // SAFETY: the tensor is alive.
        checked(unsafe { atg::atg__version(self.0) })
    }

    /// The GPU it lies on, or -1.
    pub fn device(&self) -> Result<i32> {
        // SAFETY: the tensor is alive.
        checked(unsafe { torch_sys::at_device(self.0) })
    }
}

impl Drop for Tensor {
    fn drop(&mut self) {
        // SAFETY: owned, and freed once.
        unsafe { torch_sys::at_free(self.0) };
    }
}

// === impl Value ===

impl Value {
    pub fn none() -> Result<Self> {
        // SAFETY: no arguments.
        checked(unsafe { torch_sys::ati_none() }).map(Self)
    }

    pub fn tensor(tensor: &Tensor) -> Result<Self> {
        // SAFETY: the tensor is alive; the value takes a reference of its own.
        checked(unsafe { torch_sys::ati_tensor(tensor.0) }).map(Self)
    }

    pub fn tensor_list(tensors: &[&Tensor]) -> Result<Self> {
        let raw: Vec<*mut C_tensor> = tensors.iter().map(|tensor| tensor.0).collect();
        // SAFETY: that many tensors, alive.
        checked(unsafe { torch_sys::ati_tensor_list(raw.as_ptr(), count(raw.len())?) }).map(Self)
    }

    /// A dictionary from texts to tensors; the texts and the tensors must be as many.
    pub fn dict(names: &[CString], tensors: &[&Tensor]) -> Result<Self> {
        let mut pairs = Vec::with_capacity(2 * tensors.len());
        for (name, tensor) in names.iter().zip(tensors) {
            // SAFETY: a C string.
            pairs.push(checked(unsafe { torch_sys::ati_string(name.as_ptr()) }).map(Self)?);
            pairs.push(Self::tensor(tensor)?);
        }
        let raw: Vec<*mut CIValue> = pairs.iter().map(|value| value.0).collect();
        // SAFETY: pairs of values, alive.
        checked(unsafe { torch_sys::ati_generic_dict(raw.as_ptr(), count(raw.len() / 2)?) }).map(Self)
    }

    pub fn kind(&self) -> Result<Kind> {
        // SAFETY: the value is alive.
        let tag = checked(unsafe { torch_sys::ati_tag(self.0) })?;
        Ok(match tag {
            1 => Kind::Tensor,
            5 => Kind::Tuple,
            10 => Kind::TensorList,
            12 => Kind::List,
            13 => Kind::Dict,
            0 => Kind::Other("None"),
            2 => Kind::Other("a float"),
            3 => Kind::Other("an int"),
            4 => Kind::Other("a bool"),
            9 => Kind::Other("a string"),
            14 => Kind::Other("an object"),
            _ => Kind::Other("a list of numbers"),
        })
    }

    pub fn to_tensor(&self) -> Result<Tensor> {
        // SAFETY: the value is alive; the tensor is a reference of its own.
        checked(unsafe { torch_sys::ati_to_tensor(self.0) }).map(Tensor)
    }

    pub fn to_text(&self) -> Result<String> {
        // SAFETY: the value is alive.
        let text = checked(unsafe { torch_sys::ati_to_string(self.0) })?;
        if text.is_null() {
            return Err(Failure::new("a string without a text"));
        }
        // SAFETY: a C string of malloc's that is ours now; read before it is freed, once.
        unsafe {
            let owned = CStr::from_ptr(text).to_string_lossy().into_owned();
            libc::free(text.cast());
            Ok(owned)
        }
    }

    /// The parts of a tuple, or of a list that is not of tensors alone.
    pub fn parts(&self, kind: &Kind) -> Result<Vec<Value>> {
        // SAFETY: the value is alive, and asked as what it is.
        let length = checked(unsafe {
            match kind {
                Kind::Tuple => torch_sys::ati_tuple_length(self.0),
                _ => torch_sys::ati_length(self.0),
            }
        })?;
        self.filled(length, 1, |value, places, length| {
            // SAFETY: it fills as many places as there are parts.
            unsafe {
                match kind {
                    Kind::Tuple => torch_sys::ati_to_tuple(value, places, length),
                    _ => torch_sys::ati_to_generic_list(value, places, length),
                }
            }
        })
    }

    /// The keys and values of a dictionary, in turn.
    pub fn pairs(&self) -> Result<Vec<Value>> {
        // SAFETY: the value is alive.
        let length = checked(unsafe { torch_sys::ati_length(self.0) })?;
        self.filled(length, 2, |value, places, length| {
            // SAFETY: it fills two places for each pair.
            unsafe { torch_sys::ati_to_generic_dict(value, places, length) }
        })
    }

    pub fn to_tensors(&self) -> Result<Vec<Tensor>> {
        // SAFETY: the value is alive.
        let length = checked(unsafe { torch_sys::ati_length(self.0) })?;
        let mut places: Vec<*mut C_tensor> = vec![ptr::null_mut(); usize::try_from(length).unwrap_or(0)];
        // SAFETY: it fills as many places as there are tensors.
        unsafe { torch_sys::ati_to_tensor_list(self.0, places.as_mut_ptr(), length) };
        // Owned before the error is looked at, so that what was filled is freed.
        let tensors = places.into_iter().filter(|tensor| !tensor.is_null()).map(Tensor);
        checked(tensors.collect())
    }

    fn filled(
        &self,
        length: i32,
        each: usize,
        fill: impl Fn(*mut CIValue, *mut *mut CIValue, i32),
    ) -> Result<Vec<Value>> {
        let mut places: Vec<*mut CIValue> = vec![ptr::null_mut(); each * usize::try_from(length).unwrap_or(0)];
        fill(self.0, places.as_mut_ptr(), length);
        // Owned before the error is looked at, so that what was filled is freed.
        let values = places.into_iter().filter(|value| !value.is_null()).map(Value).collect();
        checked(values)
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        // SAFETY: owned, and freed once.
        unsafe { torch_sys::ati_free(self.0) };
    }
}

// === impl Program ===

impl Program {
    pub fn load(path: &CStr, device: i32) -> Result<Self> {
        // SAFETY: a C string.
        let program = checked(unsafe { torch_sys::atm_load_on_device(path.as_ptr(), device) }).map(Self)?;
        // SAFETY: alive.
        checked(unsafe { torch_sys::atm_eval(program.0) })?;
        Ok(program)
    }

    pub fn forward(&self, arguments: &[Value]) -> Result<Value> {
        let raw: Vec<*mut CIValue> = arguments.iter().map(|value| value.0).collect();
        // SAFETY: the program and that many values are alive; it takes references of its own.
        checked(unsafe { torch_sys::atm_forward_(self.0, raw.as_ptr(), count(raw.len())?) }).map(Value)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: owned, and freed once.
        unsafe { torch_sys::atm_free(self.0) };
    }
}

// === impl NoGrad ===

impl NoGrad {
    pub fn enter() -> Result<Self> {
        // SAFETY: a plain number.
        let before = checked(unsafe { torch_sys::at_grad_set_enabled(0) })?;
        Ok(Self { before })
    }
}

impl Drop for NoGrad {
    fn drop(&mut self) {
        // SAFETY: a plain number.
        unsafe { torch_sys::at_grad_set_enabled(self.before) };
    }
}

fn count(length: usize) -> Result<i32> {
    i32::try_from(length).map_err(|_| Failure::new("more values than libtorch counts"))
}

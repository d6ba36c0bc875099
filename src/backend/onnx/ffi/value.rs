//! Tensors of the library's: what goes into a run and what comes out.

use std::{
    ffi::c_void,
    marker::PhantomData,
    ptr::{NonNull, null, null_mut},
    slice,
    sync::Arc,
};

use ort::sys;

use super::{Failure, Model, Outcome, api, check, dtype_of, not_null};
use crate::model::{DType, Shape};

/// A tensor of the library's. `'a` is the memory it looks into, `'static` where it has its own.
pub struct Value<'a> {
    pub(super) pointer: NonNull<sys::OrtValue>,
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

// === impl Value ===

impl<'a> Value<'a> {
    pub(super) fn new(pointer: *mut sys::OrtValue) -> Outcome<Self> {
        not_null(pointer).map(|pointer| Self { pointer, memory: PhantomData })
    }

    /// Type and shape. A failure where the value is no dense tensor.
    pub fn contents(&self) -> Outcome<Contents> {
        let mut kind = sys::ONNXType::ONNX_TYPE_UNKNOWN;
        // SAFETY: the value is alive and the out pointer valid.
        check(unsafe { (api().GetValueType)(self.pointer.as_ptr(), &mut kind) })?;
        if kind != sys::ONNXType::ONNX_TYPE_TENSOR {
            return Err(Failure { message: "an output is no dense tensor".into() });
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
        let shape = shape
            .collect::<Result<Shape, _>>()
            .map_err(|_| Failure { message: "an output has a negative dimension".into() })?;
        Ok(Contents { dtype: dtype_of(element), shape })
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
        let size = contents
            .dtype
            .and_then(DType::size)
            .ok_or_else(|| Failure { message: "an output's elements have no fixed size".into() })?;
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
        Ok(Self { value, data, len, _model: model })
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

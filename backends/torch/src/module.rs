//! One opened archive: how it was declared, and its runs.

use std::{
    ffi::{CStr, CString},
    ops::Range,
    sync::atomic::{AtomicU8, Ordering},
};

use crate::{
    abi::{PASS_DICT, PASS_EACH, PASS_LIST, Slice, TensorView},
    gpu::{self, OnStream},
    raw::{self, CPU, Failure, Kind, NoGrad, Program, Result, Tensor, Value},
};

/// A program and what was learnt of it. Shared by all threads.
pub struct Module {
    /// None while it is opened, and while it is closed.
    program: Option<Program>,
    device: i32,
    declaration: String,
    /// Whether `forward` writes into its inputs; one of the three below.
    writes: AtomicU8,
}

/// The outputs of one run: their memory, and the views of it.
pub struct Answer {
    parts: Vec<Part>,
    views: Vec<TensorView>,
}

struct Part {
    name: String,
    shape: Vec<i64>,
    dtype: i32,
    data: *const u8,
    bytes: usize,
    _memory: Tensor,
}

/// An input as libtorch holds it, and what tells whether it was written.
struct Input {
    tensor: Tensor,
    /// The caller's memory, where it was not copied.
    borrowed: Option<Range<usize>>,
    version: i64,
}

const UNKNOWN: u8 = 0;
const NEVER: u8 = 1;
const SOMETIMES: u8 = 2;

/// More than any `forward` takes.
const ARGUMENTS_TOO_MANY: usize = 1024;

// === impl Module ===

impl Module {
    pub fn open(path: &CStr, device: i32) -> Result<Self> {
        if device != CPU && i64::from(device) >= gpu::count()? {
            return Err(Failure::new(format!("there is no CUDA device {device} that libtorch can use")));
        }
        // From here on its drop gives the GPU back what a failed load has taken.
        let mut module = Self { program: None, device, declaration: String::new(), writes: AtomicU8::new(UNKNOWN) };
        let program = Program::load(path, device)?;
        if device != CPU {
            // The weights came by another stream than those that will read them.
            gpu::wait_for_all(device)?;
        }
        module.declaration = declaration(&program)?;
        module.program = Some(program);
        Ok(module)
    }

    fn program(&self) -> Result<&Program> {
        self.program.as_ref().ok_or_else(|| Failure::new("the module is closed"))
    }

    pub fn declaration(&self) -> &str {
        &self.declaration
    }

    /// Runs `forward`.
    ///
    /// The caller's memory is lent to libtorch without a copy, but not to a program that writes into its inputs: the first
    /// run has copies, and shows whether any input's version moved. A run that writes only later is noticed too; from the
    /// next one on there are copies.
    pub fn run(&self, passing: u32, views: &[TensorView]) -> Result<Answer> {
        let _no_grad = NoGrad::enter()?;
        let stream = (self.device != CPU).then(|| OnStream::enter(self.device)).transpose()?;
        let stream = stream.as_ref();
        // To a GPU it is a copy anyway.
        let lend = stream.is_some() || self.writes.load(Ordering::Relaxed) == NEVER;
        let inputs = views.iter().map(|view| Input::new(view, lend, stream)).collect::<Result<Vec<_>>>()?;
        let value = self.program()?.forward(&arguments(passing, views, &inputs)?)?;
        let written = inputs
            .iter()
            .map(|input| Ok(input.tensor.version()? != input.version))
            .collect::<Result<Vec<_>>>()?
            .contains(&true);
        if written {
            self.writes.store(SOMETIMES, Ordering::Relaxed);
        } else if !lend {
            // A failure means that it is known already.
            let _known = self.writes.compare_exchange(UNKNOWN, NEVER, Ordering::Relaxed, Ordering::Relaxed);
        }
        let parts = outputs(&value)?
            .into_iter()
            .map(|(name, tensor)| Part::new(name, tensor, &inputs, stream))
            .collect::<Result<Vec<_>>>()?;
        if let Some(stream) = stream {
            stream.wait()?;
        }
        Ok(Answer::new(parts))
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        self.program = None;
        if self.device != CPU {
            // What cannot be given back now is libtorch's for its next model.
            let _ = gpu::empty_cache();
        }
    }
}

// === impl Input ===

impl Input {
    /// Lent memory must live as long as the input; to a GPU it is copied before this comes back.
    fn new(view: &TensorView, lend: bool, stream: Option<&OnStream>) -> Result<Self> {
        // SAFETY: the caller's views are valid for the call.
        let (shape, data) = unsafe { (view.shape.get(), view.data.get()) };
        let size = raw::element_size(view.dtype).ok_or_else(|| Failure::new("an input of an unknown type"))?;
        let aligned = data.is_empty() || data.as_ptr().addr().is_multiple_of(size);
        if byte_count(shape, size) != Some(data.len()) || !aligned {
            return Err(Failure::new("an input whose bytes are not what its shape says, or not aligned"));
        }
        // SAFETY: the byte count and the alignment were checked; `run` lets no tensor over lent memory outlive the call.
        let tensor = unsafe {
            if lend {
                Tensor::over(data.as_ptr(), shape, view.dtype)?
            } else {
                Tensor::copied(data.as_ptr(), shape, view.dtype, size)?
            }
        };
        let tensor = match stream {
            None => tensor,
            Some(stream) => stream.copy_in(&tensor)?,
        };
        let borrowed = lend && stream.is_none();
        Ok(Self {
            version: tensor.version()?,
            tensor,
            borrowed: borrowed.then(|| data.as_ptr().addr()..data.as_ptr().addr() + data.len()),
        })
    }
}

/// How `forward` is declared. libtorch's C interface cannot be asked, but says it in the error of a call with more arguments
/// than there are, which is found before anything runs.
fn declaration(program: &Program) -> Result<String> {
    let arguments = (0..ARGUMENTS_TOO_MANY).map(|_| Value::none()).collect::<Result<Vec<_>>>()?;
    match program.forward(&arguments) {
        Ok(_) => Ok(String::new()),
        Err(failure) => match failure.text.split_once("Declaration: ") {
            Some((_, rest)) => Ok(rest.lines().next().unwrap_or_default().to_owned()),
            None => Err(failure),
        },
    }
}

fn arguments(passing: u32, views: &[TensorView], inputs: &[Input]) -> Result<Vec<Value>> {
    match passing {
        PASS_EACH => inputs.iter().map(|input| Value::tensor(&input.tensor)).collect(),
        PASS_LIST | PASS_DICT => {
            let tensors: Vec<&Tensor> = inputs.iter().map(|input| &input.tensor).collect();
            let value = if passing == PASS_LIST {
                Value::tensor_list(&tensors)?
            } else {
                let names = views.iter().map(name_of).collect::<Result<Vec<_>>>()?;
                Value::dict(&names, &tensors)?
            };
            Ok(vec![value])
        }
        _ => Err(Failure::new("an unknown way to pass the inputs")),
    }
}

fn name_of(view: &TensorView) -> Result<CString> {
    // SAFETY: the caller's views are valid for the call.
    let name = unsafe { view.name.get() };
    CString::new(name).map_err(|_| Failure::new("the name of an input holds NUL"))
}

/// The tensors of an answer; named where it is a dictionary.
fn outputs(value: &Value) -> Result<Vec<(String, Tensor)>> {
    let unnamed = |tensor| (String::new(), tensor);
    match value.kind()? {
        Kind::Tensor => Ok(vec![unnamed(value.to_tensor()?)]),
        Kind::TensorList => Ok(value.to_tensors()?.into_iter().map(unnamed).collect()),
        kind @ (Kind::Tuple | Kind::List) => value
            .parts(&kind)?
            .iter()
            .enumerate()
            .map(|(place, part)| Ok(unnamed(only_tensor(part, || format!("output {place}"))?)))
            .collect(),
        Kind::Dict => value
            .pairs()?
            .chunks_exact(2)
            .map(|pair| {
                let name = pair[0].to_text()?;
                let tensor = only_tensor(&pair[1], || format!("output '{name}'"))?;
                Ok((name, tensor))
            })
            .collect(),
        Kind::Other(what) => Err(Failure::new(format!(
            "forward returned {what}; expected a tensor, or a tuple, list or dictionary of tensors"
        ))),
    }
}

fn only_tensor(value: &Value, named: impl Fn() -> String) -> Result<Tensor> {
    match value.kind()? {
        Kind::Tensor => value.to_tensor(),
        Kind::Tuple => Err(Failure::new(format!("{} is a tuple, expected a tensor", named()))),
        Kind::List | Kind::TensorList => Err(Failure::new(format!("{} is a list, expected a tensor", named()))),
        Kind::Dict => Err(Failure::new(format!("{} is a dictionary, expected a tensor", named()))),
        Kind::Other(what) => Err(Failure::new(format!("{} is {what}, expected a tensor", named()))),
    }
}

/// `None` where it overflows or a dimension is negative.
fn byte_count(shape: &[i64], element_size: usize) -> Option<usize> {
    shape.iter().try_fold(element_size, |product, &dimension| product.checked_mul(usize::try_from(dimension).ok()?))
}

// === impl Part ===

impl Part {
    /// An output that lies in the caller's memory (a program that returns its input, or a view of it) is copied. One that lies on a
    /// GPU may be read when its stream was waited for.
    fn new(name: String, tensor: Tensor, inputs: &[Input], stream: Option<&OnStream>) -> Result<Self> {
        let tensor = tensor.contiguous()?;
        let tensor = match stream {
            Some(stream) if tensor.device()? != CPU => stream.copy_out(&tensor)?,
            _ => tensor,
        };
        let (shape, dtype) = (tensor.shape()?, tensor.dtype()?);
        let size = raw::element_size(dtype)
            .ok_or_else(|| Failure::new(format!("an output of libtorch's type {dtype}, which cannot be sent")))?;
        let bytes = byte_count(&shape, size).ok_or_else(|| Failure::new("an output too large to address"))?;
        let data = tensor.data()?;
        let lent =
            inputs.iter().filter_map(|input| input.borrowed.as_ref()).any(|borrowed| borrowed.contains(&data.addr()));
        let memory = if lent {
            // SAFETY: a dense tensor of that shape and type.
            unsafe { Tensor::copied(data, &shape, dtype, size)? }
        } else {
            tensor
        };
        Ok(Self { name, shape, dtype, data: memory.data()?, bytes, _memory: memory })
    }
}

// === impl Answer ===

impl Answer {
    fn new(parts: Vec<Part>) -> Self {
        // The views point to the heap, which does not move with `parts`.
        let views = parts
            .iter()
            .map(|part| TensorView {
                name: Slice::of(part.name.as_bytes()),
                dtype: part.dtype,
                shape: Slice::of(&part.shape),
                data: Slice { data: part.data, len: part.bytes },
            })
            .collect();
        Self { parts, views }
    }

    pub fn views(&self) -> &[TensorView] {
        debug_assert_eq!(self.parts.len(), self.views.len());
        &self.views
    }
}

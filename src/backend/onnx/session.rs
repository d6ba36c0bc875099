//! The scratch of one instance: its run options, and the way of bytes into the library's values and out of them.
//!
//! On the CPU inputs are not copied where they are aligned; on a GPU they go through memory that it reads by itself (`Binding`).
//! Outputs of some size are not copied at all: the answer holds the library's memory until it is sent.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use bytes::{BufMut, Bytes, BytesMut};
use smallvec::SmallVec;

use super::ffi::{Binding, Failure, Held, Model, RunOptions, Value};
use crate::{
    backend::{Call, RUN_STOPPED, Session, Stopper, View, message::shortened, shortage},
    error::{Code, Error, Result},
    model::{DType, Device, Signature, Tensor, TensorSpec},
};

pub struct OnnxSession {
    model: Arc<Model>,
    signature: Arc<Signature>,
    switch: Arc<Switch>,
    device: Device,
    /// Of a session on a GPU.
    binding: Option<Binding>,
}

/// Ends this session's run. Shared with whoever watches the thread that runs.
struct Switch {
    options: RunOptions,
    /// Set after the options were told to terminate; cleared, with them, before the next run.
    stopped: AtomicBool,
}

/// A smaller output is copied: that costs less than keeping the library's memory.
const COPIED_BYTES_MAX: usize = 4096;

// === impl OnnxSession ===

impl OnnxSession {
    pub fn new(model: Arc<Model>, signature: Arc<Signature>, device: Device) -> Result<Self> {
        let failed = |failure| run_error(failure, device);
        let switch = Switch { options: RunOptions::new().map_err(failed)?, stopped: AtomicBool::new(false) };
        let binding = match device {
            Device::Cpu => None,
            Device::Cuda(gpu) => Some(Binding::new(model.clone(), gpu).map_err(failed)?),
        };
        Ok(Self { model, signature, switch: Arc::new(switch), device, binding })
    }

    /// As on a GPU, but on the CPU: for tests where there is none.
    #[cfg(test)]
    pub fn bound_on_the_cpu(model: Arc<Model>, signature: Arc<Signature>) -> Result<Self> {
        let plain = Self::new(model.clone(), signature, Device::Cpu)?;
        let binding = Binding::on_the_cpu(model).map_err(|failure| plain.failed(failure))?;
        Ok(Self { binding: Some(binding), ..plain })
    }

    fn run_here(&self, call: &Call<'_>) -> Result<Vec<Tensor>> {
        let copies: SmallVec<[Option<Vec<u64>>; 8]> = call.inputs.iter().map(copy_to_align).collect();
        let data: SmallVec<[&[u8]; 8]> = call
            .inputs
            .iter()
            .zip(&copies)
            .map(|(view, copy)| copy.as_ref().map_or(view.data, |copy| &bytemuck::cast_slice(copy)[..view.data.len()]))
            .collect();
        let inputs: SmallVec<[Value<'_>; 8]> =
            call.inputs.iter().zip(&data).map(|(view, data)| self.input(view, data)).collect::<Result<_>>()?;
        let values = self.model.run(&self.switch.options, &inputs, call.outputs);
        self.outputs(values.map_err(|failure| self.failed(failure))?, call.outputs, &data)
    }

    fn run_bound(&self, binding: &mut Binding, call: &Call<'_>) -> Result<Vec<Tensor>> {
        for (place, view) in call.inputs.iter().enumerate() {
            let bound = binding.bind_input(place, view.dtype, view.shape, view.data);
            bound.map_err(|failure| self.failed(failure))?;
        }
        let strings = |place: usize| self.signature.outputs[place].dtype == DType::Bytes;
        let outputs: SmallVec<[(usize, bool); 8]> = call.outputs.iter().map(|&place| (place, strings(place))).collect();
        let values = binding.run(&self.switch.options, &outputs).map_err(|failure| self.failed(failure))?;
        let inputs: SmallVec<[&[u8]; 8]> = binding.inputs().collect();
        self.outputs(values, call.outputs, &inputs)
    }

    fn outputs(&self, values: Vec<Value<'static>>, places: &[usize], inputs: &[&[u8]]) -> Result<Vec<Tensor>> {
        let specs = places.iter().map(|&place| &self.signature.outputs[place]);
        values.into_iter().zip(specs).map(|(value, spec)| self.output(spec, value, inputs)).collect()
    }

    fn failed(&self, failure: Failure) -> Error {
        run_error(failure, self.device)
    }

    fn input<'a>(&self, view: &View<'a>, aligned: &'a [u8]) -> Result<Value<'a>> {
        let value = match view.dtype {
            DType::Bytes => self.model.strings(view.shape, view.data),
            dtype => self.model.view(dtype, view.shape, aligned),
        };
        value.map_err(|failure| self.failed(failure))
    }

    fn output(&self, spec: &TensorSpec, value: Value<'static>, inputs: &[&[u8]]) -> Result<Tensor> {
        let contents = value.contents().map_err(|failure| self.failed(failure))?;
        if contents.dtype != Some(spec.dtype) {
            let came = contents.dtype.map_or("another type", DType::as_str);
            let what = format!("output '{}': {came} came where the model declares {}", spec.name, spec.dtype);
            return Err(Error::internal("BACKEND_FAILED", what));
        }
        let data = match spec.dtype {
            DType::Bytes => strings(&value, contents.shape.iter().product()),
            _ => self.bytes(value, inputs),
        };
        let data = data.map_err(|failure| self.failed(failure))?;
        Ok(Tensor { name: spec.name.clone(), dtype: spec.dtype, shape: contents.shape, data })
    }

    /// An output that is an input handed through lies in the caller's memory, so it is copied whatever its size.
    fn bytes(&self, value: Value<'static>, inputs: &[&[u8]]) -> Result<Bytes, Failure> {
        let bytes = value.bytes()?;
        let range = bytes.as_ptr_range();
        let is_input = inputs
            .iter()
            .map(|input| input.as_ptr_range())
            .any(|input| range.start < input.end && input.start < range.end);
        if bytes.len() < COPIED_BYTES_MAX || is_input {
            return Ok(Bytes::copy_from_slice(bytes));
        }
        Ok(Bytes::from_owner(Held::new(value, self.model.clone())?))
    }
}

impl Session for OnnxSession {
    fn run(&mut self, call: &Call<'_>) -> Result<Vec<Tensor>> {
        if call.outputs.is_empty() {
            return Ok(Vec::new());
        }
        self.switch.rearm();
        let Some(mut binding) = self.binding.take() else {
            return self.run_here(call);
        };
        let outputs = self.run_bound(&mut binding, call);
        binding.clear();
        self.binding = Some(binding);
        outputs
    }

    fn stopper(&self) -> Option<Arc<dyn Stopper>> {
        Some(self.switch.clone())
    }
}

// === impl Switch ===

impl Switch {
    /// Before a run: a stop that came too late for the run before must not end this one.
    fn rearm(&self) {
        if self.stopped.swap(false, Ordering::AcqRel) {
            self.options.resume();
        }
    }
}

impl Stopper for Switch {
    fn stop(&self) {
        // In this order: a flag that is set while the options are not yet could be cleared too early, and then the options
        // would end every later run.
        self.options.terminate();
        self.stopped.store(true, Ordering::Release);
    }
}

/// The bytes at an address that suits their type, where the caller's does not.
fn copy_to_align(view: &View<'_>) -> Option<Vec<u64>> {
    let size = view.dtype.size()?;
    if view.data.as_ptr().addr().is_multiple_of(size) {
        return None;
    }
    let mut words = vec![0u64; view.data.len().div_ceil(8)];
    bytemuck::cast_slice_mut(&mut words)[..view.data.len()].copy_from_slice(view.data);
    Some(words)
}

fn strings(value: &Value<'_>, count: usize) -> Result<Bytes, Failure> {
    let (bytes, starts) = value.string_contents(count)?;
    let mut data = BytesMut::with_capacity(bytes.len() + 4 * count);
    for (place, &start) in starts.iter().enumerate() {
        let end = starts.get(place + 1).copied().unwrap_or(bytes.len());
        let element = bytes.get(start..end).unwrap_or_default();
        data.put_u32_le(element.len() as u32);
        data.put_slice(element);
    }
    Ok(data.freeze())
}

/// The library's failure as ours. The full text goes to the log alone: it may hold values of the request.
fn run_error(failure: Failure, device: Device) -> Error {
    let message = failure.message;
    tracing::debug!("ONNX Runtime refuses the batch: {message}");
    if message.contains("terminate flag") {
        return Error::new(Code::DeadlineExceeded, RUN_STOPPED, "the run was stopped, for it took too long");
    }
    if let Some(short) = shortage::of(&message, device) {
        return short;
    }
    Error::internal("BACKEND_FAILED", format!("the model refused the batch: {}", shortened(&message)))
}

//! The run of one instance on a GPU: inputs and outputs bound to memory that the GPU reads and writes by itself.
//!
//! Each binding belongs to one session and so to one thread. ONNX Runtime gives every run that goes on a stream of its own, so
//! while one instance copies another computes.

use std::{
    ffi::c_void,
    ptr::{self, NonNull, null_mut},
    slice,
    sync::Arc,
};

use ort::{AsPointer, sys};
use smallvec::SmallVec;

use super::{MemoryInfo, Model, Outcome, RunOptions, Value, api, check, not_null};
use crate::model::DType;

/// What one instance binds, and the pinned memory that its inputs lie in.
pub struct Binding {
    binding: NonNull<sys::OrtIoBinding>,
    pinned: MemoryInfo,
    allocator: Allocator,
    /// One for each input, kept and grown.
    inputs: Vec<Buffer>,
    /// Last, for all of the above is the session's.
    model: Arc<Model>,
}

/// The session's own allocator of pinned memory.
struct Allocator(NonNull<sys::OrtAllocator>);

#[derive(Default)]
struct Buffer {
    memory: Option<NonNull<u8>>,
    capacity: usize,
    /// Of them the last input's.
    length: usize,
}

// === impl Binding ===

impl Binding {
    pub fn new(model: Arc<Model>, gpu: u8) -> Outcome<Self> {
        Self::through(model, MemoryInfo::pinned(gpu)?)
    }

    /// Of a session on the CPU, by way of its plain memory: the same calls, where there is no GPU.
    #[cfg(test)]
    pub fn on_the_cpu(model: Arc<Model>) -> Outcome<Self> {
        Self::through(model, MemoryInfo::cpu()?)
    }

    fn through(model: Arc<Model>, pinned: MemoryInfo) -> Outcome<Self> {
        let allocator = Allocator::of(&model, &pinned)?;
        let mut binding = null_mut();
        // SAFETY: the session is alive, and kept so by `model`; binding does not change it.
        check(unsafe { (api().CreateIoBinding)(model.session.ptr().cast_mut(), &mut binding) })?;
        let inputs = model.input_names.iter().map(|_| Buffer::default()).collect();
        Ok(Self { binding: not_null(binding)?, pinned, allocator, inputs, model })
    }

    /// Copies an input to where the GPU takes it from, and has it taken. Strings stay where they are.
    pub fn bind_input(&mut self, place: usize, dtype: DType, shape: &[usize], data: &[u8]) -> Outcome<()> {
        if dtype == DType::Bytes {
            let value = self.model.strings(shape, data)?;
            return self.bind(place, &value);
        }
        self.inputs[place].fill(&self.allocator, data)?;
        let value = Model::view_in(&self.pinned, dtype, shape, self.inputs[place].bytes())?;
        self.bind(place, &value)
    }

    fn bind(&self, place: usize, value: &Value<'_>) -> Outcome<()> {
        let name = self.model.input_names[place].as_ptr();
        // SAFETY: all three are alive. The binding takes a reference of its own, to memory that lives until it is unbound: its own
        // copy on the GPU, or for what a model reads on the CPU the buffer, which is not touched before `clear`.
        check(unsafe { (api().BindInput)(self.binding.as_ptr(), name, value.pointer.as_ptr()) })
    }

    /// Runs the model on what was bound. `outputs` are places among those that can be sent, each with whether it holds strings.
    pub fn run(&mut self, options: &RunOptions, outputs: &[(usize, bool)]) -> Outcome<Vec<Value<'static>>> {
        for &(place, strings) in outputs {
            let memory = if strings { &self.model.memory } else { &self.pinned };
            let name = self.model.output_names[place].as_ptr();
            // SAFETY: all three are alive; the library copies the name and the memory's description.
            check(unsafe { (api().BindOutputToDevice)(self.binding.as_ptr(), name, memory.0.as_ptr()) })?;
        }
        // SAFETY: all three are alive, and the binding is this thread's alone; a session's runs may be many at once. It comes back
        // when the outputs are there.
        check(unsafe {
            (api().RunWithBinding)(self.model.session.ptr().cast_mut(), options.0.as_ptr(), self.binding.as_ptr())
        })?;
        self.outputs()
    }

    /// What the last run gave, in the order bound.
    fn outputs(&self) -> Outcome<Vec<Value<'static>>> {
        let (mut allocator, mut values, mut count) = (null_mut(), null_mut(), 0);
        // SAFETY: the default allocator is a static of the library and never released.
        check(unsafe { (api().GetAllocatorWithDefaultOptions)(&mut allocator) })?;
        // SAFETY: the binding is alive and the places are ours.
        check(unsafe { (api().GetBoundOutputValues)(self.binding.as_ptr(), allocator, &mut values, &mut count) })?;
        if values.is_null() {
            return Ok(Vec::new());
        }
        // SAFETY: so many values, each ours from now on.
        let owned: SmallVec<[*mut sys::OrtValue; 8]> = unsafe { slice::from_raw_parts(values, count) }.into();
        // SAFETY: the array, and not what it holds, goes back to where it came from, once. It cannot fail.
        let _ = check(unsafe { (api().AllocatorFree)(allocator, values.cast::<c_void>()) });
        owned.into_iter().map(Value::new).collect::<Vec<_>>().into_iter().collect()
    }

    /// Lets go of what the last run had, whatever came of it.
    pub fn clear(&mut self) {
        // SAFETY: alive, and this thread's alone.
        unsafe {
            (api().ClearBoundInputs)(self.binding.as_ptr());
            (api().ClearBoundOutputs)(self.binding.as_ptr());
        }
    }

    /// Where the inputs of the last run lie.
    pub fn inputs(&self) -> impl Iterator<Item = &[u8]> {
        self.inputs.iter().map(Buffer::bytes)
    }
}

impl Drop for Binding {
    fn drop(&mut self) {
        // SAFETY: ours, released once, before the memory that it may look into.
        unsafe { (api().ReleaseIoBinding)(self.binding.as_ptr()) };
        for buffer in &mut self.inputs {
            buffer.free(&self.allocator);
        }
    }
}

// SAFETY: it is used by the thread that owns it alone, and no part of it is tied to the one that made it.
unsafe impl Send for Binding {}

// === impl Buffer ===

impl Buffer {
    fn fill(&mut self, allocator: &Allocator, data: &[u8]) -> Outcome<()> {
        if data.len() > self.capacity {
            self.free(allocator);
            let capacity = data.len().next_power_of_two();
            self.memory = Some(allocator.take(capacity)?);
            self.capacity = capacity;
        }
        if let Some(memory) = self.memory {
            // SAFETY: the memory has room for that many bytes, and is nobody else's: what was bound before was cleared.
            unsafe { ptr::copy_nonoverlapping(data.as_ptr(), memory.as_ptr(), data.len()) };
        }
        self.length = data.len();
        Ok(())
    }

    fn bytes(&self) -> &[u8] {
        match self.memory {
            // SAFETY: `fill` has written as many bytes.
            Some(memory) => unsafe { slice::from_raw_parts(memory.as_ptr(), self.length) },
            None => &[],
        }
    }

    fn free(&mut self, allocator: &Allocator) {
        if let Some(memory) = self.memory.take() {
            allocator.give_back(memory);
        }
        (self.capacity, self.length) = (0, 0);
    }
}

// === impl Allocator ===

impl Allocator {
    fn of(model: &Model, memory: &MemoryInfo) -> Outcome<Self> {
        let mut allocator = null_mut();
        // SAFETY: the session and the description are alive; the place is ours.
        check(unsafe { (api().CreateAllocator)(model.session.ptr(), memory.0.as_ptr(), &mut allocator) })?;
        not_null(allocator).map(Self)
    }

    fn take(&self, bytes: usize) -> Outcome<NonNull<u8>> {
        let mut memory = null_mut();
        // SAFETY: the allocator is alive; the place is ours.
        check(unsafe { (api().AllocatorAlloc)(self.0.as_ptr(), bytes, &mut memory) })?;
        not_null(memory.cast::<u8>())
    }

    fn give_back(&self, memory: NonNull<u8>) {
        // SAFETY: taken from this allocator, and given back once. It cannot fail.
        let _ = check(unsafe { (api().AllocatorFree)(self.0.as_ptr(), memory.as_ptr().cast::<c_void>()) });
    }
}

impl Drop for Allocator {
    fn drop(&mut self) {
        // SAFETY: ours, released once, after all that was taken from it.
        unsafe { (api().ReleaseAllocator)(self.0.as_ptr()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{onnx::library, testing::native_dir};

    #[test]
    fn the_library_knows_pinned_memory_by_its_name() {
        library::load(&native_dir()).map(drop).expect("the library");
        for gpu in [0, 1, 15] {
            let memory = MemoryInfo::pinned(gpu).unwrap_or_else(|failure| panic!("{gpu}: {}", failure.message));
            let mut number = -1;
            // SAFETY: the description is alive and the place is ours.
            check(unsafe { (api().MemoryInfoGetId)(memory.0.as_ptr(), &mut number) }).expect("its number");
            assert_eq!(number, i32::from(gpu));
        }
    }
}

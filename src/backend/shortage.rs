//! Memory that ran out, recognised by what the libraries say: their errors carry no better sign. Pure.

use crate::{
    error::{Code, Error},
    model::Device,
};

/// Said of a GPU alone.
const OF_A_GPU: [&str; 7] = [
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUDA failure 2:",
    "cudaErrorMemoryAllocation",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "DEVICE_ALLOCATION_FAILED",
];
/// Said of a CPU's memory alone.
const OF_THE_HOST: [&str; 4] =
    ["bad_alloc", "bad allocation", "DefaultCPUAllocator", "can't allocate memory: you tried to allocate"];
/// Said of either: ONNX Runtime keeps the memory of both in arenas of one kind.
const OF_EITHER: [&str; 2] = ["Failed to allocate memory for requested buffer", "is smaller than requested bytes of"];

/// RESOURCE_EXHAUSTED with `DEVICE_OUT_OF_MEMORY`, or `MODEL_ALLOCATION` where it is the host's memory; `None` where `text` speaks
/// of something else. `device` is where the model runs.
pub fn of(text: &str, device: Device) -> Option<Error> {
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    let on_gpu = matches!(device, Device::Cuda(_));
    if on_gpu && (says(&OF_A_GPU) || (says(&OF_EITHER) && !says(&OF_THE_HOST))) {
        return Some(on(device));
    }
    (says(&OF_THE_HOST) || says(&OF_EITHER)).then(|| on(Device::Cpu))
}

/// The error of memory that ran out there.
pub fn on(device: Device) -> Error {
    let (reason, what) = match device {
        Device::Cpu => ("MODEL_ALLOCATION", "the model needs more memory for this batch than there is".to_owned()),
        Device::Cuda(_) => (
            "DEVICE_OUT_OF_MEMORY",
            format!("{device} has too little free memory for it, or instances.gpu_memory_limit leaves too little"),
        ),
    };
    Error::new(Code::ResourceExhausted, reason, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GPU: Device = Device::Cuda(0);

    fn reason(text: &str, device: Device) -> Option<&'static str> {
        let error = of(text, device)?;
        assert_eq!(error.code(), Code::ResourceExhausted);
        Some(error.reason())
    }

    /// As the libraries print them.
    const ARENA: &str = "Non-zero status code returned while running MatMul node. Name:'/encoder/MatMul' Status Message: \
        /onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:376 void* onnxruntime::BFCArena::AllocateRawInternal(size_t, \
        bool, onnxruntime::Stream*, bool, onnxruntime::WaitNotificationFn) Failed to allocate memory for requested buffer of \
        size 4294967296\n";
    const LIMIT: &str = "Non-zero status code returned while running Conv node. Name:'Conv_3' Status Message: \
        /onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:346 void* onnxruntime::BFCArena::AllocateRawInternal(size_t, \
        bool, onnxruntime::Stream*, bool, onnxruntime::WaitNotificationFn) Available memory of 0 is smaller than requested \
        bytes of 135383040\n";
    const CUBLAS: &str = "Exception during initialization: /onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:114 \
        CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 ; hostname=egg ; \
        file=/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_execution_provider.cc ; line=164 ; \
        expr=cublasCreate(&cublas_handle_);";
    const CUDA: &str = "CUDA failure 2: out of memory ; GPU=0 ; hostname=egg ; \
        file=/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_allocator.cc ; line=48 ; \
        expr=cudaMalloc((void**)&p, size);";
    const LIBTORCH: &str = "The following operation failed in the TorchScript interpreter.\nTraceback of TorchScript (most \
        recent call last):\n  File \"code/__torch__.py\", line 4, in forward\nRuntimeError: CUDA out of memory. Tried to \
        allocate 37252902.99 GiB. GPU 0 has a total capacity of 14.74 GiB of which 14.64 GiB is free. Process 8366 has 100.00 \
        MiB memory in use.";
    const LIBTORCH_CONTEXT: &str = "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some \
        other API call, so the stacktrace below might be incorrect.";
    const LIBTORCH_CPU: &str = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you \
        tried to allocate 40000000000 bytes. Error code 12 (Cannot allocate memory)";

    #[test]
    fn a_gpu_without_memory_is_recognised() {
        for text in [ARENA, LIMIT, CUBLAS, CUDA, LIBTORCH, LIBTORCH_CONTEXT] {
            assert_eq!(reason(text, GPU), Some("DEVICE_OUT_OF_MEMORY"), "{text}");
        }
    }

    #[test]
    fn the_hosts_memory_is_told_from_the_gpus() {
        assert_eq!(reason(ARENA, Device::Cpu), Some("MODEL_ALLOCATION"));
        assert_eq!(reason("std::bad_alloc", Device::Cpu), Some("MODEL_ALLOCATION"));
        for device in [Device::Cpu, GPU] {
            assert_eq!(reason(LIBTORCH_CPU, device), Some("MODEL_ALLOCATION"));
        }
    }

    #[test]
    fn other_failures_are_not_taken_for_it() {
        for text in [
            "CUDA failure 209: no kernel image is available for execution on the device ; GPU=0",
            "CUDA failure 700: an illegal memory access was encountered ; GPU=0",
            "CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED",
            "CUDNN failure 8: CUDNN_STATUS_EXECUTION_FAILED",
            "RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x5 and 4x3)",
            "",
        ] {
            assert_eq!(reason(text, GPU), None, "{text}");
        }
    }

    #[test]
    fn the_error_names_the_device_and_the_option_and_no_path() {
        let error = of(LIMIT, Device::Cuda(3)).expect("it is recognised");
        assert!(error.message().contains("cuda:3") && error.message().contains("gpu_memory_limit"), "{error}");
        assert!(!error.message().contains('/') && !error.message().contains("135383040"), "{error}");
    }
}

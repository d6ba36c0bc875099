//! What went wrong with a GPU, its libraries or its memory, and not with the model: by ONNX Runtime's words. Pure.

use crate::{
    backend::{LIBRARY_MISSING, message::shortened, shortage},
    error::{Code, Error},
    model::Device,
};

/// How the errors of CUDA and of its libraries begin; they end with a semicolon before what is of no use to anybody else.
const BEGINNINGS: [&str; 5] =
    ["CUDA failure", "CUDA error", "CUBLAS failure", "CUDNN failure", "CUDA execution provider"];

/// RESOURCE_EXHAUSTED `DEVICE_OUT_OF_MEMORY`, or FAILED_PRECONDITION with `LIBRARY_MISSING` or `DEVICE_FAILED`; `None` where the
/// model is to blame.
pub fn of(message: &str, device: Device) -> Option<Error> {
    shortage::of(message, device).or_else(|| unloadable(message)).or_else(|| unusable(message, device))
}

fn unloadable(message: &str) -> Option<Error> {
    let (_, rest) = message.split_once("Failed to load library ")?;
    let (library, why) = rest.split_once(" with error: ").unwrap_or((rest, ""));
    let (part, remedy) = match library.contains("tensorrt") {
        true => ("TensorRT", "install TensorRT 10 for CUDA 13, or leave out onnx.tensorrt"),
        false => ("CUDA", "`make gpu-libraries` fetches what it needs beside the driver"),
    };
    let what = format!("ONNX Runtime's part for {part} does not load: {}; {remedy}", shortened(why));
    Some(Error::new(Code::FailedPrecondition, LIBRARY_MISSING, what))
}

fn unusable(message: &str, device: Device) -> Option<Error> {
    let begin = BEGINNINGS.iter().find_map(|beginning| message.find(beginning))?;
    let why = message[begin..].split(" ;").next().unwrap_or_default();
    let what = format!("{device} cannot be used: {}", shortened(why));
    Some(Error::new(Code::FailedPrecondition, "DEVICE_FAILED", what))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(message: &str) -> Option<(&'static str, String)> {
        let error = of(message, Device::Cuda(0))?;
        assert!(!error.message().contains("/onnxruntime_src") && !error.message().contains("/opt"), "{error}");
        Some((error.reason(), error.message().to_owned()))
    }

    const AT: &str = "/onnxruntime_src/onnxruntime/core/session/provider_bridge_ort.cc:2043 onnxruntime::Provider& \
        onnxruntime::ProviderLibrary::Get() [ONNXRuntimeError] : 1 : FAIL : ";

    #[test]
    fn a_library_that_is_missing_is_named_with_what_to_do() {
        let missing = |provider: &str, library: &str| {
            said(&format!(
                "{AT}Failed to load library /opt/native/onnxruntime-gpu/libonnxruntime_providers_{provider}.so with error: \
                 {library}: cannot open shared object file: No such file or directory\n"
            ))
            .expect("it is not the model's fault")
        };
        let (reason, message) = missing("cuda", "libcublasLt.so.13");
        assert_eq!(reason, LIBRARY_MISSING);
        assert!(
            message.contains("libcublasLt.so.13: cannot open") && message.contains("make gpu-libraries"),
            "{message}"
        );
        let (_, message) = missing("tensorrt", "libnvinfer.so.10");
        assert!(message.contains("libnvinfer.so.10") && message.contains("install TensorRT 10"), "{message}");
    }

    #[test]
    fn a_gpu_that_cannot_be_used_is_said_in_cudas_words() {
        let (reason, message) = said(&format!(
            "{AT}provider_options_utils.h:187 Parse Failed to parse provider option \"device_id\": CUDA failure 36: API call is \
             not supported in the installed CUDA driver ; GPU=-1 ; hostname=vm ; file=/onnxruntime_src/x.cc ; line=70 ; \
             expr=cudaGetDeviceCount(&num_devices); \n"
        ))
        .expect("it is not the model's fault");
        assert_eq!(reason, "DEVICE_FAILED");
        let expected = "cuda:0 cannot be used: CUDA failure 36: API call is not supported in the installed CUDA driver";
        assert_eq!(message, expected);
    }

    #[test]
    fn memory_goes_first_and_what_is_the_models_own_fault_is_left_to_others() {
        let short = "CUDA failure 2: out of memory ; GPU=0 ; hostname=vm ; expr=cudaMalloc((void**)&p, size);";
        assert_eq!(said(short).map(|(reason, _)| reason), Some("DEVICE_OUT_OF_MEMORY"));
        assert_eq!(said("Load model from model.onnx failed:Protobuf parsing failed."), None);
    }
}

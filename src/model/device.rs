//! Where the instances of a version compute.

use std::fmt;

/// A device that was decided upon: what `instances.device: auto` became, or what it said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Device {
    Cpu,
    /// CUDA's number of the GPU.
    Cuda(u8),
}

// === impl Device ===

impl Device {
    /// `cpu` or `cuda:N`; `None` for `auto`, which is to be decided, and for what is no device.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "cpu" => Some(Self::Cpu),
            _ => text.strip_prefix("cuda:")?.parse().ok().map(Self::Cuda),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_reads_as_it_is_written() {
        for device in [Device::Cpu, Device::Cuda(0), Device::Cuda(15)] {
            assert_eq!(Device::parse(&device.to_string()), Some(device));
        }
        for text in ["auto", "cuda", "cuda:", "cuda:x", "cuda:-1", "cuda:300", "gpu", ""] {
            assert_eq!(Device::parse(text), None, "{text}");
        }
    }
}

//! What of a GPU's memory a version takes, and whether there is enough for one more.
//!
//! Both go by what the driver says is free, before a version is opened there and after it was warmed up. Loads onto GPUs go one at a
//! time, so that the difference is one version's; runs of others meanwhile, and other processes, still move it.

use std::sync::{Mutex, MutexGuard};

use crate::{
    backend::gpu::{self, GpuMemory},
    error::{Code, Error, Result},
    model::Device,
};

/// Of one process, for all loads.
#[derive(Default)]
pub struct GpuLoads(Mutex<()>);

/// A load onto a GPU that may go on.
pub struct GpuLoad<'a> {
    number: u8,
    before: Option<GpuMemory>,
    _one_at_a_time: MutexGuard<'a, ()>,
}

/// What is known of a version's need before it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// It took that much the last time.
    Measured(u64),
    /// Its weights have to be there.
    AtLeast(u64),
}

// === impl GpuLoads ===

impl GpuLoads {
    /// Waits for its turn. `None` on the CPU; INSUFFICIENT_DEVICE_MEMORY with the figures where there is not enough.
    pub fn begin(&self, device: Device, need: Need) -> Result<Option<GpuLoad<'_>>> {
        let Device::Cuda(number) = device else {
            return Ok(None);
        };
        let turn = self.0.lock().expect("no holder panics: this is a bug");
        let before = gpu::memory(number);
        if let Some(memory) = before {
            admit(device, need, memory)?;
        }
        Ok(Some(GpuLoad { number, before, _one_at_a_time: turn }))
    }
}

// === impl GpuLoad ===

impl GpuLoad<'_> {
    /// What the GPU has lost since; 0 where that is not known.
    pub fn taken(self) -> u64 {
        match (self.before, gpu::memory(self.number)) {
            (Some(before), Some(after)) => before.free.saturating_sub(after.free),
            _ => 0,
        }
    }
}

// === impl Need ===

impl Need {
    /// `measured` is 0 where the version was never there.
    pub fn of(measured: u64, weights: u64) -> Self {
        if measured > 0 { Self::Measured(measured) } else { Self::AtLeast(weights) }
    }
}

fn admit(device: Device, need: Need, memory: GpuMemory) -> Result<()> {
    let shown = |bytes: u64| bytesize::ByteSize(bytes).display();
    let (bytes, needs) = match need {
        Need::Measured(bytes) => (bytes, format!("it took {} when it was last there", shown(bytes))),
        Need::AtLeast(bytes) => (bytes, format!("its weights take {}", shown(bytes))),
    };
    if bytes <= memory.free {
        return Ok(());
    }
    let what = format!("{needs}; {device} has {} of {} free", shown(memory.free), shown(memory.total));
    Err(Error::new(Code::ResourceExhausted, "INSUFFICIENT_DEVICE_MEMORY", what)
        .with("needs_bytes", bytes)
        .with("free_bytes", memory.free)
        .with("total_bytes", memory.total))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: GpuMemory = GpuMemory { free: 3 << 30, total: 16 << 30 };

    #[test]
    fn what_does_not_fit_is_refused_with_the_figures() {
        let admitted = |need| admit(Device::Cuda(1), need, MEMORY);
        assert!(admitted(Need::of(3 << 30, 0)).is_ok());
        let error = admitted(Need::of(4 << 30, 1)).expect_err("too much");
        assert_eq!((error.code(), error.reason()), (Code::ResourceExhausted, "INSUFFICIENT_DEVICE_MEMORY"));
        assert_eq!(error.message(), "it took 4.0 GiB when it was last there; cuda:1 has 3.0 GiB of 16.0 GiB free");
        assert!(error.metadata().contains(&("free_bytes", (3u64 << 30).to_string())));
        let weights = admitted(Need::of(0, 4 << 30)).expect_err("too much");
        assert_eq!(weights.message(), "its weights take 4.0 GiB; cuda:1 has 3.0 GiB of 16.0 GiB free");
    }

    #[test]
    fn the_cpu_asks_nobody() {
        assert!(GpuLoads::default().begin(Device::Cpu, Need::AtLeast(u64::MAX)).expect("it goes on").is_none());
    }
}

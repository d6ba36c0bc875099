//! A backend whose behaviour a unit test writes. Compiled into the tests of `runtime` alone.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::Thread,
    time::Duration,
};

use super::{Call, Executable, RUN_STOPPED, Session, Stopper, shortage};
use crate::{
    error::{Code, Error, Result},
    model::{DType, Device, Filler, Pad, Shape, Signature, Tensor, TensorSpec, Unpad, bytes_from},
};

/// Doubles what it is given: `x` FP64 [-1] to `y` FP64 [-1].
///
/// A row of -1 fails the batch, one of -2 panics. Every run waits for the gate, then writes down its rows.
pub struct Scripted {
    pub signature: Signature,
    pub runs: Arc<Mutex<Vec<Vec<f64>>>>,
    /// On which thread each run was.
    pub threads: Arc<Mutex<Vec<String>>>,
    pub gate: Arc<Mutex<()>>,
    /// How many sessions were made.
    pub sessions: Arc<AtomicUsize>,
    pub gains_by_joining: bool,
    /// A run of more rows finds too little memory of the device.
    pub rows_max: usize,
    /// Where it says that it runs.
    pub device: Device,
    /// How long every run takes.
    pub pause: Duration,
}

struct ScriptedSession {
    rows_max: usize,
    device: Device,
    runs: Arc<Mutex<Vec<Vec<f64>>>>,
    threads: Arc<Mutex<Vec<String>>>,
    gate: Arc<Mutex<()>>,
    pause: Duration,
    end: Arc<End>,
    was_ended: bool,
}

/// Ends a run that hangs.
#[derive(Default)]
struct End {
    ended: AtomicBool,
    running: Mutex<Option<Thread>>,
}

/// What `padded` fills up with.
pub const FILLER: f64 = 0.25;
pub const FAILS: f64 = -1.0;
pub const PANICS: f64 = -2.0;
/// A run with this row goes on until it is ended.
pub const HANGS: f64 = -3.0;
/// The first run of a session with this row is ended by a stop that was meant for the run before.
pub const ENDED_FOR_ANOTHER: f64 = -4.0;

// === impl Scripted ===

impl Scripted {
    pub fn new(batch: bool) -> Self {
        let spec = |name| TensorSpec { batch, ..TensorSpec::new(name, DType::Fp64, &[-1]) };
        Self {
            signature: Signature { inputs: vec![spec("x")], outputs: vec![spec("y")] },
            runs: Arc::default(),
            threads: Arc::default(),
            gate: Arc::default(),
            sessions: Arc::default(),
            gains_by_joining: true,
            rows_max: usize::MAX,
            device: Device::Cpu,
            pause: Duration::ZERO,
        }
    }

    /// `x` and `y` FP64 [-1, -1], padded to 4 and 8.
    pub fn padded() -> Self {
        let spec = |name| TensorSpec { batch: true, ..TensorSpec::new(name, DType::Fp64, &[-1, -1]) };
        let value = Filler::new(DType::Fp64, FILLER).expect("a double: this is a bug");
        let x = TensorSpec { pad: Some(Pad { dim: 1, to: vec![4, 8], value }), ..spec("x") };
        let y = TensorSpec { unpad: Some(Unpad { dim: 1, input: 0 }), ..spec("y") };
        Self { signature: Signature { inputs: vec![x], outputs: vec![y] }, ..Self::new(true) }
    }
}

impl Executable for Scripted {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn library(&self) -> &str {
        "scripted"
    }

    fn device(&self) -> Device {
        self.device
    }

    fn gains_by_joining(&self) -> bool {
        self.gains_by_joining
    }

    fn session(&self) -> Result<Box<dyn Session>> {
        self.sessions.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(ScriptedSession {
            rows_max: self.rows_max,
            device: self.device,
            runs: self.runs.clone(),
            threads: self.threads.clone(),
            gate: self.gate.clone(),
            pause: self.pause,
            end: Arc::default(),
            was_ended: false,
        }))
    }
}

impl Session for ScriptedSession {
    fn run(&mut self, call: &Call<'_>) -> Result<Vec<Tensor>> {
        drop(self.gate.lock().expect("a test holds the gate and does not panic"));
        // Nobody unparks this thread: it is a run that takes its time.
        std::thread::park_timeout(self.pause);
        let values: Vec<f64> = bytemuck::pod_collect_to_vec(call.inputs[0].data);
        self.runs.lock().expect("no holder panics").push(values.clone());
        let thread = std::thread::current().name().unwrap_or_default().to_owned();
        self.threads.lock().expect("no holder panics").push(thread);
        assert!(!values.contains(&PANICS), "as the script says");
        if values.len() > self.rows_max {
            return Err(shortage::on(self.device));
        }
        if values.contains(&FAILS) {
            return Err(Error::internal("BACKEND_FAILED", "as the script says"));
        }
        if values.contains(&ENDED_FOR_ANOTHER) && !std::mem::replace(&mut self.was_ended, true) {
            return Err(stopped());
        }
        if values.contains(&HANGS) {
            return Err(self.end.hang());
        }
        let data = bytes_from(values.iter().map(|value| value * 2.0).collect::<Vec<_>>());
        Ok(vec![Tensor::new("y".into(), DType::Fp64, Shape::from_slice(call.inputs[0].shape), data)?])
    }

    fn stopper(&self) -> Option<Arc<dyn Stopper>> {
        Some(self.end.clone())
    }
}

// === impl End ===

impl End {
    fn hang(&self) -> Error {
        *self.running.lock().expect("no holder panics") = Some(std::thread::current());
        while !self.ended.swap(false, Ordering::AcqRel) {
            std::thread::park();
        }
        stopped()
    }
}

fn stopped() -> Error {
    Error::new(Code::DeadlineExceeded, RUN_STOPPED, "as the script says")
}

impl Stopper for End {
    fn stop(&self) {
        if let Some(running) = self.running.lock().expect("no holder panics").take() {
            self.ended.store(true, Ordering::Release);
            running.unpark();
        }
    }
}

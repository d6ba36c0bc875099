//! What a servable holds of a version: the executable, and the files that its library may have mapped.

use std::sync::Arc;

use crate::{
    backend::{Executable, Session},
    error::Result,
    model::{Device, Parameters, Signature},
    store::PrivateDir,
};

/// An executable and the private copy of its files: libraries may have mapped them.
pub struct Kept {
    executable: Arc<dyn Executable>,
    _dir: Arc<PrivateDir>,
}

// === impl Kept ===

impl Kept {
    pub fn new(executable: Arc<dyn Executable>, dir: Arc<PrivateDir>) -> Self {
        Self { executable, _dir: dir }
    }
}

impl Executable for Kept {
    fn signature(&self) -> &Signature {
        self.executable.signature()
    }

    fn notes(&self) -> &[String] {
        self.executable.notes()
    }

    fn library(&self) -> &str {
        self.executable.library()
    }

    fn device(&self) -> Device {
        self.executable.device()
    }

    fn gains_by_joining(&self) -> bool {
        self.executable.gains_by_joining()
    }

    fn check_parameters(&self, parameters: &Parameters) -> Result<()> {
        self.executable.check_parameters(parameters)
    }

    fn session(&self) -> Result<Box<dyn Session>> {
        self.executable.session()
    }
}

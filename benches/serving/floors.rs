//! The floor of the work: the model's own library in a loop, through the crate's backend, on the server's CPU.

use std::{
    fs,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use rustix::time::{ClockId, clock_gettime};
use sconce::{
    backend::{Call, Executable, OpenSpec, View, open},
    model::{
        Contents, DType, Data, Features, Manifest, ModelYaml, Normalizer, Parameters, Shape, Tensor, TensorInput,
        VersionYaml,
    },
};
use serde::Serialize;

use crate::{cases::Case, inference::ModelInferRequest, process::pin};

/// What calls of the library cost, by their rows.
#[derive(Clone, Debug, Serialize)]
pub struct LibraryFloor {
    /// (rows, microseconds a call), ascending.
    pub calls: Vec<(usize, f64)>,
}

/// One batch, laid out as the library wants it.
struct Batch {
    inputs: Vec<(DType, Shape, Vec<u8>)>,
}

const ROWS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
const MEASURED: Duration = Duration::from_millis(300);
/// Calls between two looks at the clock.
const CALLS: usize = 50;

/// Measures on a thread of its own, pinned to `cpu`.
pub fn library(case: &Case, store: &Path, native_dir: &Path, cpu: usize) -> Result<LibraryFloor> {
    thread::scope(|scope| {
        let pinned = thread::Builder::new().name("library floor".into()).spawn_scoped(scope, || {
            pin(&[cpu])?;
            measure(case, store, native_dir)
        })?;
        pinned.join().map_err(|_| anyhow!("the library's loop panicked"))?
    })
}

// === impl LibraryFloor ===

impl LibraryFloor {
    /// Microseconds of a call with `rows` rows, which may be a mean: linear between the measured points.
    pub fn call_us(&self, rows: f64) -> f64 {
        let above = self.calls.iter().position(|&(measured, _)| measured as f64 >= rows);
        let above = above.unwrap_or(self.calls.len() - 1).max(1);
        let ((low, low_us), (high, high_us)) = (self.calls[above - 1], self.calls[above]);
        let share = (rows - low as f64) / (high - low) as f64;
        low_us + share * (high_us - low_us)
    }

    /// Microseconds a row at the size of call where a row costs least.
    pub fn best_row_us(&self) -> f64 {
        self.calls.iter().map(|&(rows, us)| us / rows as f64).fold(f64::INFINITY, f64::min)
    }

    /// Microseconds a row in a call of `rows` rows.
    pub fn row_us(&self, rows: f64) -> f64 {
        self.call_us(rows) / rows
    }
}

fn measure(case: &Case, store: &Path, native_dir: &Path) -> Result<LibraryFloor> {
    let dir = case.version_dir(store);
    let read = |file: &str| fs::read_to_string(dir.join(file));
    let version = read("version.yaml").map_or_else(|_| Ok(VersionYaml::default()), |text| VersionYaml::parse(&text))?;
    let manifest = Manifest::resolve(case.platform, ModelYaml::default(), version)?;
    let executable = open(OpenSpec { dir: &dir, manifest: &manifest, native_dir })?;
    let normalizer =
        manifest.normalizer.as_deref().map(|file| Normalizer::parse(&read(file)?).map_err(anyhow::Error::from));
    let features = Features::new(executable.signature(), normalizer.transpose()?.as_ref())?;
    let rows = case.requests.iter().map(|request| {
        let bound = features.bind(executable.signature(), Data::Tensors(inputs(request)?))?;
        anyhow::Ok(bound.inputs)
    });
    let rows: Vec<Vec<Tensor>> = rows.collect::<Result<_>>()?;
    let calls = ROWS.map(|count| Ok((count, time_calls(&executable, &rows, count)?)));
    Ok(LibraryFloor { calls: calls.into_iter().collect::<Result<_>>()? })
}

/// Microseconds of CPU time a call, other batches in turn.
fn time_calls(executable: &Arc<dyn Executable>, rows: &[Vec<Tensor>], count: usize) -> Result<f64> {
    let mut session = executable.session()?;
    let outputs: Vec<usize> = (0..executable.signature().outputs.len()).collect();
    let batches: Vec<Batch> = (0..rows.len()).map(|first| Batch::new(rows, first, count)).collect();
    let parameters = Parameters::default();
    let mut calls = batches.iter().cycle();
    let mut run = || -> Result<()> {
        for batch in calls.by_ref().take(CALLS) {
            let views = batch.views();
            session.run(&Call { inputs: &views, outputs: &outputs, parameters: &parameters })?;
        }
        Ok(())
    };
    run()?;
    let (begun, cpu_begun, mut done) = (Instant::now(), thread_cpu(), 0);
    while begun.elapsed() < MEASURED {
        run()?;
        done += CALLS;
    }
    Ok((thread_cpu() - cpu_begun).as_secs_f64() * 1e6 / done as f64)
}

// === impl Batch ===

impl Batch {
    /// `count` rows from `first` on, round and round.
    fn new(rows: &[Vec<Tensor>], first: usize, count: usize) -> Self {
        let inputs = rows[0].iter().enumerate().map(|(place, model)| {
            let rows = rows.iter().cycle().skip(first).take(count);
            let bytes = rows.flat_map(|row| row[place].data.iter().copied()).collect();
            let mut shape = model.shape.clone();
            shape[0] = count;
            (model.dtype, shape, bytes)
        });
        Self { inputs: inputs.collect() }
    }

    fn views(&self) -> Vec<View<'_>> {
        let views = self.inputs.iter().map(|(dtype, shape, data)| View { dtype: *dtype, shape, data });
        views.collect()
    }
}

/// The inputs of a request as the edge would hand them on.
fn inputs(request: &ModelInferRequest) -> Result<Vec<TensorInput>> {
    let inputs = request.inputs.iter().zip(&request.raw_input_contents).map(|(input, raw)| {
        Ok(TensorInput {
            name: input.name.clone(),
            dtype: Some(DType::parse(&input.datatype).context("a known type")?),
            shape: Some(input.shape.iter().map(|&size| size as usize).collect()),
            contents: Contents::Raw(raw.clone()),
        })
    });
    inputs.collect()
}

fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

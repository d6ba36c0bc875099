//! From a listed version to a servable: copy and check, try in the child, open here, warm up.
//!
//! Loads run on a few threads at nice 19, each with a child of its own. A thread knows one version at a time and nothing of
//! the others; what comes of it goes back to the manager as a message.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use super::{
    gpu_memory::{GpuLoad, GpuLoads, Need},
    job::{Job, Report},
    kept::Kept,
    memory::{Memory, Short},
    opening::{Opened, Opener, Opening},
    probe::{CHILD_UNAVAILABLE, ProbeConfig, Prober},
    remembered::{self, LibraryStamp, Remembered},
    suspects::{self, Suspects},
    trial,
};
use crate::{
    backend::{self, LIBRARY_MISSING},
    error::{Code, Error, Result},
    model::{Manifest, ModelName, ModelYaml, Platform, Setting, Signature, Version, VersionYaml, settings_of_version},
    runtime::{self, Marker, Runtime, Servable, ServableConfig},
    store::{self, PrivateDir, Verified, VersionFolder, platform_of},
    telemetry::Metrics,
};

/// What the manager asks for.
#[derive(Clone, Debug)]
pub struct LoadJob {
    pub model: ModelName,
    pub version: Version,
    pub task: Task,
    /// The files, and the options, that this is about: they come back with the answer.
    pub source: Arc<VersionFolder>,
    pub options: Arc<ModelYaml>,
    /// What the version's digest was when it served before: a version never changes.
    pub known_digest: Option<String>,
    /// When its library was missing: what was said of it.
    pub missing_library: Option<(LibraryStamp, Error)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Task {
    Load,
    /// Only hash the files in the store.
    Recheck,
}

/// What came of it.
pub struct LoadDone<T = Servable> {
    pub model: ModelName,
    pub version: Version,
    pub source: Arc<VersionFolder>,
    pub options: Arc<ModelYaml>,
    pub outcome: Outcome<T>,
}

pub enum Outcome<T = Servable> {
    Loaded(Loaded<T>),
    /// The digest that the files have now.
    Rechecked(String),
    Failed {
        error: Error,
        /// Of the library, where it is what is missing.
        missing_library: Option<LibraryStamp>,
        /// How much memory would have to come back for it to be loaded; 0 where that is not what it failed by.
        short_bytes: u64,
    },
}

/// A version ready to serve.
pub struct Loaded<T = Servable> {
    pub servable: Arc<T>,
    pub platform: Platform,
    pub digest: String,
    pub bytes: u64,
    /// What it takes here, as measured in the child, and its files.
    pub memory_bytes: u64,
    /// What it takes of a GPU, as measured when it was opened there; 0 on the CPU, and where that is not known.
    pub gpu_bytes: u64,
    /// From the moment a thread took it up.
    pub load_time: Duration,
    pub notes: Vec<String>,
    pub metrics: std::collections::BTreeMap<String, f64>,
    /// What its version.yaml says of options.
    pub settings: Arc<[Setting]>,
}

/// What all loader threads share.
pub struct Loader {
    pub store: store::Config,
    pub probe: ProbeConfig,
    pub opener: Opener,
    pub memory: Memory,
    pub gpu_loads: GpuLoads,
    pub child_time: Duration,
    pub native_dir: PathBuf,
    pub copies: PathBuf,
    pub remembered: Remembered,
    pub suspects: Suspects,
    pub marker: Marker,
    pub runtime: Arc<Runtime>,
    pub metrics: Arc<Metrics>,
}

/// Why a version is not loaded.
enum Obstacle {
    Fault(Error),
    Short(Short),
}

/// Of its files' bytes, while the child has it, which shares the limit with the server: once as read, once as weights.
const UNTRIED_FACTOR: u64 = 2;

/// Starts `count` threads. They end when the sender is dropped.
pub fn start(loader: Loader, count: usize, done: mpsc::Sender<LoadDone>) -> Result<SyncSender<LoadJob>> {
    let (jobs, taken) = sync_channel(count);
    let taken = Arc::new(Mutex::new(taken));
    let loader = Arc::new(loader);
    for number in 1..=count {
        let (loader, taken, done) = (loader.clone(), taken.clone(), done.clone());
        std::thread::Builder::new()
            .name(format!("load-{number}"))
            .spawn(move || work(&loader, &taken, &done))
            .map_err(|error| Error::internal("THREAD", format!("could not start a loader's thread: {error}")))?;
    }
    Ok(jobs)
}

/// Reads and resolves what is written about a version. Also what `check` looks at.
pub fn manifest_of(source: &VersionFolder, options: &ModelYaml) -> Result<(Manifest, VersionYaml)> {
    if let Some((reason, sentence)) = &source.refused {
        return Err(Error::new(Code::FailedPrecondition, reason, sentence));
    }
    let yaml = match source.version_yaml.as_ref().map(|file| &file.text) {
        None => VersionYaml::default(),
        Some(Ok(text)) => VersionYaml::parse(text)?,
        Some(Err(why)) => return Err(Error::invalid("INVALID_MANIFEST", format!("version.yaml: {why}"))),
    };
    let declared = yaml.platform.or(options.platform);
    let platform = declared.or_else(|| platform_of(source)).ok_or_else(|| {
        let names = Platform::ALL.map(Platform::artifact).join(", ");
        Error::new(
            Code::FailedPrecondition,
            "NO_ARTIFACT",
            format!("the version has no artifact; one of {names} is expected"),
        )
    })?;
    if !source.files.contains_key(platform.artifact()) {
        return Err(Error::new(
            Code::FailedPrecondition,
            "NO_ARTIFACT",
            format!("platform {platform} needs the file {}", platform.artifact()),
        ));
    }
    let manifest = Manifest::resolve(platform, options.clone(), yaml.clone())?;
    // Here, as the child opens everything on the CPU.
    backend::refuse_device(platform, &manifest.device)?;
    Ok((manifest, yaml))
}

fn work(loader: &Loader, jobs: &Mutex<Receiver<LoadJob>>, done: &mpsc::Sender<LoadDone>) {
    if let Err(error) = runtime::background() {
        tracing::debug!(%error, "loads run at the usual priority");
    }
    let mut prober = Prober::new(loader.probe.clone());
    loop {
        let job = jobs.lock().expect("no holder panics: this is a bug").recv();
        let Ok(job) = job else {
            return;
        };
        let outcome = catch_unwind(AssertUnwindSafe(|| loader.answer(&mut prober, &job))).unwrap_or_else(|_| {
            prober = Prober::new(loader.probe.clone());
            Outcome::Failed {
                error: Error::internal("LOAD_PANICKED", "the loader panicked: this is a bug of the server"),
                missing_library: None,
                short_bytes: 0,
            }
        });
        let answer =
            LoadDone { model: job.model, version: job.version, source: job.source, options: job.options, outcome };
        if done.blocking_send(answer).is_err() {
            return;
        }
    }
}

// === impl Loader ===

impl Loader {
    fn answer(&self, prober: &mut Prober, job: &LoadJob) -> Outcome {
        let result = match job.task {
            Task::Recheck => store::digest(&self.store, &job.source).map(Outcome::Rechecked).map_err(Obstacle::Fault),
            Task::Load => self.load(prober, job).map(Outcome::Loaded),
        };
        result.unwrap_or_else(|obstacle| match obstacle {
            Obstacle::Fault(error) => Outcome::Failed {
                missing_library: (error.reason() == LIBRARY_MISSING)
                    .then(|| manifest_of(&job.source, &job.options).ok())
                    .flatten()
                    .map(|(manifest, _)| remembered::library_stamp(&self.native_dir, manifest.platform)),
                short_bytes: 0,
                error,
            },
            Obstacle::Short(short) => {
                Outcome::Failed { missing_library: None, short_bytes: short.missing(), error: short.into() }
            }
        })
    }

    fn load(&self, prober: &mut Prober, job: &LoadJob) -> Result<Loaded, Obstacle> {
        let begun = Instant::now();
        let (mut manifest, yaml) = manifest_of(&job.source, &job.options)?;
        if let Some((stamp, error)) = &job.missing_library
            && *stamp == remembered::library_stamp(&self.native_dir, manifest.platform)
        {
            // Nothing was installed since: no need to copy the version in order to hear it again.
            return Err(error.clone().into());
        }
        let device = backend::device_of(&manifest, &self.native_dir)?;
        manifest.device = device.to_string();
        let Verified { dir, digest, bytes } = store::copy(&self.store, &job.source, &yaml.files, &self.copies)?;
        if job.known_digest.as_ref().is_some_and(|known| *known != digest) {
            return Err(mutated().into());
        }
        let tag = suspects::tag(&job.model, job.version, &digest);
        let key = self.key(&digest, &manifest);
        let report = self.probe(prober, job, tag, &dir, &key, &manifest)?;
        let memory_bytes = report.memory_bytes + bytes;
        let promised = self.memory.promise(memory_bytes)?;
        let gpu_load =
            self.gpu_loads.begin(device, Need::of(report.gpu_bytes, artifact_bytes(&job.source, manifest.platform)))?;
        let (dir, mark) = (Arc::new(dir), self.marker.of(tag));
        let Opened { executable, cost } = self.opener.open(Opening {
            tag,
            mark,
            dir: dir.clone(),
            manifest: manifest.clone(),
            native_dir: self.native_dir.clone(),
            report: report.clone(),
        })?;
        drop(promised);
        let gpu_bytes = gpu_load.map_or(0, GpuLoad::taken);
        if gpu_bytes > 0 {
            self.remembered.keep(&key, &Report { gpu_bytes, ..report.clone() });
        }
        let features = trial::features(dir.path(), &manifest, executable.signature())?;
        let mut notes = executable.notes().to_vec();
        notes.extend(self.suspects.note(tag));
        notes.extend(manifest.oversubscribes(self.runtime.cores().count()));
        let signature = joined_as_shown(executable.signature().clone(), report.joinable);
        let platform = manifest.platform;
        let metrics = manifest.metrics.clone();
        let config = ServableConfig {
            model: job.model.clone(),
            version: job.version,
            manifest,
            executable: Arc::new(Kept::new(executable, dir)),
            signature,
            features,
            batching_reason: report.batching_reason,
            pads: report.pads,
            cost: cost.unwrap_or(report.cost),
            metrics: self.metrics.version(job.model.as_str(), &job.version.to_string()),
            mark,
        };
        let servable = Servable::new(&self.runtime, config);
        let settings = settings_of_version(&yaml).into();
        let load_time = begun.elapsed();
        Ok(Loaded { servable, platform, digest, bytes, memory_bytes, gpu_bytes, load_time, notes, metrics, settings })
    }

    /// What the child says of the version, now or when it last had the same before it.
    fn probe(
        &self,
        prober: &mut Prober,
        job: &LoadJob,
        tag: u64,
        copy: &PrivateDir,
        key: &str,
        manifest: &Manifest,
    ) -> Result<Report, Obstacle> {
        let asked = Job::new(copy, &as_the_child_sees(manifest), &self.native_dir, self.child_time);
        let is_suspect = self.suspects.holds(tag);
        if let Some(report) = self.remembered.recall(key).filter(|_| !is_suspect) {
            return Ok(report);
        }
        let _promised = self.memory.promise(job.source.bytes() * UNTRIED_FACTOR)?;
        let report = if is_suspect {
            self.suspects.name(tag, &job.model, job.version);
            let report = prober.probe_alone(&asked).map_err(crashed_server)?;
            self.suspects.clear(tag);
            report
        } else {
            prober.probe(&asked)?
        };
        self.remembered.keep(key, &report);
        Ok(report)
    }

    /// By which a pass of the child is remembered.
    fn key(&self, digest: &str, manifest: &Manifest) -> String {
        remembered::key(digest, &as_the_child_sees(manifest), &self.native_dir, self.probe.limits)
    }
}

// === impl Obstacle ===

impl From<Error> for Obstacle {
    fn from(error: Error) -> Self {
        Self::Fault(error)
    }
}

impl From<Short> for Obstacle {
    fn from(short: Short) -> Self {
        Self::Short(short)
    }
}

/// Without what the child does not look at, which must not make it look again.
fn as_the_child_sees(manifest: &Manifest) -> Manifest {
    Manifest { metrics: Default::default(), warmup_budget: Duration::ZERO, cache: None, ..manifest.clone() }
}

fn artifact_bytes(source: &VersionFolder, platform: Platform) -> u64 {
    source.files.get(platform.artifact()).map_or(0, |file| file.stamp.size)
}

/// What ran when the server died, and does not pass the child now.
fn crashed_server(error: Error) -> Error {
    match error.reason() {
        LIBRARY_MISSING | CHILD_UNAVAILABLE => error,
        reason => Error::new(
            Code::FailedPrecondition,
            "CRASHED_SERVER",
            format!("it was running when the server died, and does not pass the child: {} ({reason})", error.message()),
        ),
    }
}

/// The same version with other bytes.
pub fn mutated() -> Error {
    Error::new(
        Code::FailedPrecondition,
        "VERSION_MUTATED",
        "the files of this version have changed since it was loaded; a version never changes: publish a new one",
    )
}

/// Where joining was not shown to be safe, nothing batches.
fn joined_as_shown(mut signature: Signature, joinable: bool) -> Signature {
    if !joinable {
        let specs = signature.inputs.iter_mut().chain(&mut signature.outputs);
        specs.for_each(|spec| spec.batch = false);
    }
    signature
}

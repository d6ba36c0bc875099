//! `cargo bench --bench routing`: what it costs to find out who answers.
//!
//! The engine's pick, over a real store with real versions: for a model whose traffic nobody shares, and for the same with four
//! variants and a sticky key. One thread, in turns; the figure is the median.

#[path = "../parts/machine.rs"]
mod machine;
#[allow(dead_code, reason = "the other benches use the rest")]
#[path = "../parts/verdicts.rs"]
mod verdicts;

use std::{
    fs,
    hint::black_box,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use sconce::{
    catalog::{self, Catalog},
    engine::{Engine, IdKey},
    lifecycle::{self, Lifecycle, Told},
    model::{Data, Parameters, PredictRequest, Priority, Select},
    monitor::Scoreboard,
    runtime::{self, Runtime},
    store,
    telemetry::{Events, Metrics},
};

/// What it costs to find out who answers.
#[derive(Parser)]
struct Args {
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
    /// Append the figures to benches/RESULTS.md
    #[arg(long)]
    record: bool,
}

const PLAIN: &str = "plain";
const SHARED: &str = "shared";
const VERSIONS: u64 = 5;
const CALLERS: usize = 1_024;
const TURNS: usize = 21;
const PICKS: usize = 200_000;
const PATIENCE: Duration = Duration::from_secs(60);
/// A route of four variants and a sticky key, in microseconds a request.
const SHARED_MICROS_MAX: f64 = 1.0;

fn main() -> Result<()> {
    let args = Args::parse();
    sconce::backend::forbid_telemetry();
    let control = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let place = tempfile::tempdir().context("a folder for the store")?;
    lay_out(&place.path().join("store"))?;
    let (publisher, catalog) = catalog::new();
    let runtime = Runtime::start(&runtime::Config { cores: 1, loop_budget: Duration::from_millis(1) })?;
    let metrics = Metrics::new();
    let told = Told { metrics: metrics.clone(), scoreboard: Scoreboard::default(), events: Events::new("bench") };
    let lifecycle_config = lifecycle::Config {
        work_dir: place.path().join("work"),
        child_executable: env!("CARGO_BIN_EXE_sconce").into(),
        ..lifecycle::Config::new(native_dir())
    };
    let store_config =
        store::Config { settle: Duration::ZERO, ..store::Config::new(place.path().join("store").as_path()) };
    let (_refresh, asks, answers) = store::refresh();
    let lifecycle = {
        let _entered = control.enter();
        Lifecycle::start(lifecycle_config, store_config, (asks, answers), publisher, runtime.clone(), told)?
    };
    wait_until_ready(&catalog)?;
    let engine = Engine::new(catalog, metrics, IdKey::random()?);
    let nanos = measure(&engine)?;
    drop(lifecycle);
    runtime.stop();
    report(&args, nanos)
}

/// Two models of five versions, which are all the same; of the second, four share the traffic.
fn lay_out(store: &Path) -> Result<()> {
    let artifact = repository("tests/fixtures/onnx/tiny.onnx");
    for model in [PLAIN, SHARED] {
        for version in 1..=VERSIONS {
            let folder = store.join(model).join(version.to_string());
            fs::create_dir_all(&folder)?;
            fs::copy(&artifact, folder.join("model.onnx")).with_context(|| artifact.display().to_string())?;
        }
        fs::write(store.join(model).join("model.yaml"), "versions: all\n")?;
    }
    let variants =
        (2..=VERSIONS).map(|version| format!("- {{name: variant-{version}, version: {version}, weight: 20}}\n"));
    let route = format!("stable: 1.0.0\nsticky: {{attribute: customer}}\nvariants:\n{}", variants.collect::<String>());
    Ok(fs::write(store.join(SHARED).join("route.yaml"), route)?)
}

fn wait_until_ready(catalog: &Catalog) -> Result<()> {
    let begun = Instant::now();
    loop {
        let snapshot = catalog.load();
        let answers =
            |entry: &catalog::ModelEntry| entry.versions.values().filter(|version| version.servable.is_some()).count();
        if snapshot.models.len() == 2 && snapshot.models.values().all(|entry| answers(entry) == VERSIONS as usize) {
            return Ok(());
        }
        drop(snapshot);
        ensure!(begun.elapsed() < PATIENCE, "the versions are not ready after a minute");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// Nanoseconds a pick: of the plain model, and of the shared one.
fn measure(engine: &Engine) -> Result<[f64; 2]> {
    let requests = [PLAIN, SHARED].map(|model| (0..CALLERS).map(|caller| request(model, caller)).collect::<Vec<_>>());
    let shares =
        requests[1].iter().filter(|request| engine.route(request).is_ok_and(|served| &*served.variant != "stable"));
    let given = shares.count();
    ensure!((700..950).contains(&given), "{given} of {CALLERS} callers got a variant; 80 % were expected");
    let mut turns = [Vec::new(), Vec::new()];
    for _ in 0..TURNS {
        for (requests, turns) in requests.iter().zip(&mut turns) {
            let begun = Instant::now();
            for request in requests.iter().cycle().take(PICKS) {
                black_box(engine.route(black_box(request))?);
            }
            turns.push(begun.elapsed().as_nanos() as f64 / PICKS as f64);
        }
    }
    Ok(turns.map(|mut nanos| {
        nanos.sort_unstable_by(f64::total_cmp);
        nanos[TURNS / 2]
    }))
}

fn request(model: &str, caller: usize) -> PredictRequest {
    PredictRequest {
        model: model.into(),
        select: Select::Route,
        attributes: vec![("desk".into(), "rates".into()), ("customer".into(), format!("customer-{caller}"))],
        metadata: None,
        priority: Priority::Normal,
        parameters: Parameters::default(),
        data: Data::Tensors(vec![]),
        outputs: vec![],
        deadline: None,
    }
}

fn report(args: &Args, [plain, shared]: [f64; 2]) -> Result<()> {
    let machine = machine::Machine::look();
    let mut verdicts = verdicts::Verdicts::default();
    verdicts.at_most("microseconds a pick", "four variants, sticky", shared / 1e3, SHARED_MICROS_MAX);
    let text = format!(
        "\n## Routing · {} · {} · {} · {}\n\nFinding out who answers takes {plain:.0} ns where nobody shares the traffic and {shared:.0} ns with four \
         variants and a sticky key: {:.0} ns more.\n{}",
        humantime::format_rfc3339_seconds(std::time::SystemTime::now())
            .to_string()
            .split('T')
            .next()
            .unwrap_or_default(),
        machine::commit(),
        machine.processor,
        machine.kernel,
        shared - plain,
        verdicts.text()
    );
    print!("{text}");
    if args.record {
        let results = repository("benches/RESULTS.md");
        let before = fs::read_to_string(&results)?;
        fs::write(&results, before + &text)?;
    }
    Ok(())
}

fn native_dir() -> PathBuf {
    std::env::var_os("SCONCE_NATIVE_DIR").map_or_else(|| repository("native"), PathBuf::from)
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

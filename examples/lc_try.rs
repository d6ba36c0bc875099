use sconce::{
    catalog,
    lifecycle::{self, Config, Lifecycle},
    runtime, store,
    telemetry::Metrics,
};
use std::{
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};
fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if args[1] == lifecycle::CHILD_SUBCOMMAND {
        return lifecycle::run_child();
    }
    tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).init();
    let mut config = Config::new(std::path::absolute("native").unwrap());
    config.work_dir = std::env::var("WORK").unwrap_or("/tmp/lc_work".into()).into();
    let store = store::Config::new(&args[2]);
    if args[1] == "check" {
        for p in lifecycle::check(&config, &store).unwrap() {
            println!("{p:?}");
        }
        return ExitCode::SUCCESS;
    }
    let rt = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let begun = Instant::now();
    rt.block_on(async {
        let (publisher, catalog) = catalog::new();
        let runtime = runtime::Runtime::start(&runtime::Config {
            cores: 2,
            loop_budget: Duration::from_millis(1),
        })
        .unwrap();
        let _l = Lifecycle::start(config, store, publisher, runtime, Metrics::new()).unwrap();
        let mut changes = catalog.changes();
        loop {
            changes.changed().await.unwrap();
            let s = catalog.load();
            if s.is_ready() {
                break;
            }
        }
        println!("ready after {:?}", begun.elapsed());
        let follow = args.get(3).is_some();
        loop {
            {
                let s = catalog.load();
                for (n, m) in &s.models {
                    for (v, e) in &m.versions {
                        println!(
                            "{n} {v} {:?} stable {:?} {:?} {}",
                            e.state,
                            m.stable,
                            e.cause,
                            e.servable
                                .as_ref()
                                .map(|s| format!("{} {:?} {:?}", s.batching_reason(), s.placement(), s.predicted(1)))
                                .unwrap_or_default()
                        );
                    }
                    if let Some(x) = &m.message {
                        println!("{n}: {x}");
                    }
                }
                println!("unready {:?}", s.unready);
            }
            if !follow {
                break;
            }
            changes.changed().await.unwrap();
        }
    });
    ExitCode::SUCCESS
}

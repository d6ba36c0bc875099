//! `sconce check`: everything that would go wrong, found without serving and without changing anything.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{
    Config, aspire,
    job::Job,
    loader::manifest_of,
    model_state::read_yaml,
    probe::{ProbeConfig, Prober},
    work::Work,
};
use crate::{
    error::{Error, Result},
    model::{ModelName, ModelYaml, Route, Version},
    store::{self, ModelFolder, StoreListing, TextFile, VersionFolder},
};

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// `None` where it is about the store itself.
    pub model: Option<ModelName>,
    pub version: Option<Version>,
    /// The file inside the model's or version's folder.
    pub file: Option<String>,
    pub line: Option<usize>,
    pub message: String,
}

/// What was found out from the listing alone, or is to be found out in a child.
enum Finding {
    Problem(Problem),
    Trial(Trial),
}

struct Trial {
    model: ModelName,
    version: Version,
    source: Arc<VersionFolder>,
    options: Arc<ModelYaml>,
}

/// What the threads share, each with a child of its own.
struct Checker<'a> {
    config: &'a Config,
    store: &'a store::Config,
    probe: ProbeConfig,
    copies: PathBuf,
    findings: Vec<Finding>,
    /// The next finding that nobody looks at yet.
    next: AtomicUsize,
    /// Of trials, by their place in `findings`.
    failed: Mutex<BTreeMap<usize, Problem>>,
}

/// Lists the store, parses what people wrote, verifies every version's checksums and opens each in the throw-away child,
/// several at once. Versions that are still settling are looked at as they are. It blocks; it takes as long as the children
/// take. The problems stand in the store's order.
pub fn check(config: &Config, store: &store::Config) -> Result<Vec<Problem>> {
    let work = Work::open(&config.work_dir)?;
    let listing = store::look_once(store)
        .map_err(|error| Error::invalid("STORE_UNREADABLE", format!("the store cannot be listed: {error}")))?;
    let checker = Checker {
        config,
        store,
        probe: config.probe(&work),
        copies: work.copies(),
        findings: findings(&listing, &config.defaults),
        next: AtomicUsize::new(0),
        failed: Mutex::default(),
    };
    std::thread::scope(|scope| {
        for _ in 0..config.loads_at_once.max(1) {
            scope.spawn(|| checker.work());
        }
    });
    let mut failed = checker.failed.into_inner().expect("no holder panics: this is a bug");
    let findings = checker.findings.into_iter().enumerate();
    let problems = findings.filter_map(|(place, finding)| match finding {
        Finding::Problem(problem) => Some(problem),
        Finding::Trial(_) => failed.remove(&place),
    });
    Ok(problems.collect())
}

/// In the store's order.
fn findings(listing: &StoreListing, defaults: &ModelYaml) -> Vec<Finding> {
    let about_store = listing.problems.iter().map(|message| Problem::new(None, None, message));
    let mut findings: Vec<Finding> = about_store.map(Finding::Problem).collect();
    for (name, folder) in &listing.models {
        findings_of_model(name, folder, defaults, &mut findings);
    }
    findings
}

fn findings_of_model(name: &ModelName, folder: &ModelFolder, defaults: &ModelYaml, findings: &mut Vec<Finding>) {
    let mut report = |message: &str| findings.push(Finding::Problem(Problem::new(Some(name), None, message)));
    folder.problems.iter().for_each(|message| report(message));
    if let Some(Err(message)) = folder.route_yaml.as_ref().map(read_route) {
        report(&message);
    }
    let yaml = match read_yaml(folder.model_yaml.as_ref()) {
        Ok(yaml) => yaml,
        Err(message) => return report(&message),
    };
    if let Err(error) = aspire::aspired(yaml.versions.as_ref(), &[]) {
        report(error.message());
    }
    let there: Vec<Version> = folder.versions.keys().copied().collect();
    if let Some(message) = aspire::selects_none(yaml.versions.as_ref(), &there) {
        report(&message);
    }
    if folder.versions.is_empty() {
        report("the model has no version");
    }
    let options = Arc::new(yaml.over(defaults));
    findings.extend(folder.versions.iter().map(|(number, source)| {
        Finding::Trial(Trial {
            model: name.clone(),
            version: *number,
            source: source.clone(),
            options: options.clone(),
        })
    }));
}

fn read_route(file: &TextFile) -> Result<Route, String> {
    let text = file.text.as_ref().map_err(|why| format!("route.yaml: {why}"))?;
    Route::parse(text).map_err(|error| error.message().to_owned())
}

// === impl Checker ===

impl Checker<'_> {
    /// One thread's part.
    fn work(&self) {
        let mut prober = Prober::new(self.probe.clone());
        loop {
            let place = self.next.fetch_add(1, Ordering::Relaxed);
            match self.findings.get(place) {
                None => return,
                Some(Finding::Problem(_)) => {}
                Some(Finding::Trial(trial)) => {
                    if let Err(error) = self.try_version(&mut prober, trial) {
                        let problem = Problem::new(Some(&trial.model), Some(trial.version), error.message());
                        let mut failed = self.failed.lock().expect("no holder panics: this is a bug");
                        failed.insert(place, problem);
                    }
                }
            }
        }
    }

    fn try_version(&self, prober: &mut Prober, trial: &Trial) -> Result<()> {
        let (manifest, yaml) = manifest_of(&trial.source, &trial.options)?;
        let copy = store::copy(self.store, &trial.source, &yaml.files, &self.copies)?;
        let job = Job::new(&copy.dir, &manifest, &self.config.native_dir, self.config.child_time);
        prober.probe(&job).map(drop)
    }
}

// === impl Problem ===

impl Problem {
    fn new(model: Option<&ModelName>, version: Option<Version>, message: &str) -> Self {
        const FILES: [&str; 5] = ["model.yaml", "route.yaml", "version.yaml", "example.json", "normalizer.json"];
        // Errors of the files that people write begin with the file's name.
        let file = FILES.into_iter().find(|file| message.starts_with(file));
        Self {
            model: model.cloned(),
            version,
            file: file.map(String::from),
            line: line_in(message),
            message: message.to_owned(),
        }
    }
}

/// The line that serde's messages end with: `… at line 3 column 5`.
fn line_in(message: &str) -> Option<usize> {
    let (_, rest) = message.rsplit_once("at line ")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_found_where_serde_says_it() {
        let error = ModelYaml::parse("platform: onnx\nbatchin: off\n").expect_err("an unknown key");
        assert_eq!(line_in(error.message()), Some(2), "{error}");
        assert_eq!(line_in("nothing of the kind"), None);
    }
}

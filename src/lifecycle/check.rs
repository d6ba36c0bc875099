//! `sconce check`: everything that would go wrong, found without serving and without changing anything.

use super::{Config, job::Job, loader::manifest_of, probe::Prober, work::Work};
use crate::{
    error::Result,
    model::{ModelName, ModelYaml, Version},
    store::{self, ModelFolder, Scanner, TextFile, VersionFolder},
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

/// Lists the store, parses what people wrote, verifies every version's checksums and opens each in the throw-away child.
/// Versions that are still settling are looked at as they are. It blocks; it takes as long as the children take.
pub fn check(config: &Config, store: &store::Config) -> Result<Vec<Problem>> {
    let work = Work::open(&config.work_dir)?;
    let listing = Scanner::new(store.clone())
        .scan(std::time::Instant::now(), std::time::SystemTime::now())
        .map_err(|error| {
            crate::error::Error::invalid("STORE_UNREADABLE", format!("the store cannot be listed: {error}"))
        })?;
    let mut checker = Checker {
        config,
        store,
        copies: work.copies(),
        prober: Prober::new(config.probe(&work)),
        problems: Vec::new(),
    };
    for message in &listing.problems {
        checker.report(None, None, None, message);
    }
    for (name, folder) in &listing.models {
        checker.model(name, folder);
    }
    Ok(checker.problems)
}

struct Checker<'a> {
    config: &'a Config,
    store: &'a store::Config,
    copies: std::path::PathBuf,
    prober: Prober,
    problems: Vec<Problem>,
}

// === impl Checker ===

impl Checker<'_> {
    fn model(&mut self, name: &ModelName, folder: &ModelFolder) {
        for message in &folder.problems {
            self.report(Some(name), None, None, message);
        }
        let yaml = match folder.model_yaml.as_ref().map(parsed) {
            None => ModelYaml::default(),
            Some(Ok(yaml)) => yaml,
            Some(Err(message)) => {
                self.report(Some(name), None, Some("model.yaml"), &message);
                return;
            }
        };
        if let Err(error) = super::aspire::aspired(yaml.versions.as_ref(), &[]) {
            self.report(Some(name), None, Some("model.yaml"), error.message());
        }
        let options = yaml.over(&self.config.defaults);
        if folder.versions.is_empty() {
            self.report(Some(name), None, None, "the model has no version");
        }
        for (number, version) in &folder.versions {
            if let Err(error) = self.version(version, &options) {
                self.report(Some(name), Some(*number), None, error.message());
            }
        }
    }

    fn version(&mut self, version: &VersionFolder, options: &ModelYaml) -> Result<()> {
        let (mut manifest, yaml) = manifest_of(version, options)?;
        let copy = store::copy(self.store, version, &yaml.files, &self.copies)?;
        manifest.metrics.clear();
        manifest.device = "cpu".into();
        let job = Job {
            dir: copy.dir.path().to_owned(),
            manifest,
            native_dir: self.config.native_dir.clone(),
            time_limit: self.config.child_time,
        };
        self.prober.probe(&job).map(drop)
    }

    fn report(&mut self, model: Option<&ModelName>, version: Option<Version>, file: Option<&str>, message: &str) {
        const FILES: [&str; 4] = ["model.yaml", "version.yaml", "example.json", "normalizer.json"];
        // Errors of the files that people write begin with the file's name.
        let named = FILES.into_iter().find(|file| message.starts_with(file));
        self.problems.push(Problem {
            model: model.cloned(),
            version,
            file: file.or(named).map(String::from),
            line: line_in(message),
            message: message.to_owned(),
        });
    }
}

fn parsed(file: &TextFile) -> Result<ModelYaml, String> {
    match &file.text {
        Ok(text) => ModelYaml::parse(text).map_err(|error| error.message().to_owned()),
        Err(why) => Err(format!("model.yaml: {why}")),
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

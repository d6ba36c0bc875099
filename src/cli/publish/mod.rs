//! `sconce publish`: a version into a store, checked before, whole or not at all.

mod show;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, anyhow, bail, ensure};
use clap::Args;
use serde_json::{Value, json};

use super::{print, warn_of_environment};
use crate::{
    app,
    backend::LIBRARY_MISSING,
    config::{self, Config, Given},
    error::Error,
    model::{ModelName, Version},
    store::publish::{Place, Source, Staged, Standing, Watch as _, interrupted},
    telemetry::logs::escape,
};
use show::Show;

/// Check a version and put it into a store, whole or not at all
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub struct PublishArgs {
    /// A version's folder (…/NAME/VERSION), or a model's with all its versions
    #[arg(value_name = "DIR", required_unless_present = "from", conflicts_with = "from")]
    folder: Option<PathBuf>,
    /// The store that it goes to: a folder, s3://bucket/path, gs://… or az://…
    #[arg(long, value_name = "STORE")]
    to: String,
    /// A store that it comes from, byte for byte, instead of DIR; with --model and --version
    #[arg(long, value_name = "STORE", requires = "model", requires = "version")]
    from: Option<String>,
    /// The model's name (default: from DIR)
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// The version's number (default: from DIR)
    #[arg(long, value_name = "VERSION")]
    version: Option<String>,
    /// Replace the model.yaml of the target by the one beside the version; where the target has none, it goes along anyway
    #[arg(long)]
    with_model_yaml: bool,
    /// Check all but what needs the version's library: do not open it, do not run its examples
    #[arg(long)]
    no_run: bool,
    /// Print a JSON list of what was published
    #[arg(long)]
    json: bool,
    /// The server's file of options, for its `defaults` and limits; the environment counts as for the server
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

const AFTER_HELP: &str = "\
A server sees the version when all of it is there, and nothing of one that was interrupted.
Publishing again is harmless: the same version with the same bytes is \"already there\", with
other bytes it is an error. DIR is not changed: version.yaml, with the sha256 of every file,
is completed on the way. Credentials of a bucket come from AWS_*, GOOGLE_* or AZURE_*.

Examples:
  sconce publish out/early-signal/1.2.0 --to model-store
  sconce publish out --model early-signal --version 1.2.0 --to s3://models/live
  sconce publish model-store/early-signal --to s3://models/live --json
  sconce publish --from s3://models/test --model churn --version 1.2.0 --to s3://models/live

Exit status: 0 it is there, 1 it failed and stderr says what to do, 2 it was called wrongly.";

const CLEANING_TIME: Duration = Duration::from_secs(2);

/// One version to be published.
#[derive(Clone, Debug)]
struct Item {
    model: ModelName,
    version: Version,
    source: Source,
    /// The model.yaml beside it.
    model_yaml: Option<String>,
}

/// What all versions of one call share.
struct Job<'a> {
    args: &'a PublishArgs,
    config: &'a Config,
    to: Place,
    show: Show,
}

/// One version that is there now.
struct Published {
    model: ModelName,
    version: Version,
    digest: String,
    files: Vec<(String, String, u64)>,
    bytes: u64,
    is_model_yaml_sent: bool,
    was_there: bool,
}

pub fn run(args: &PublishArgs) -> anyhow::Result<ExitCode> {
    warn_of_environment();
    let given = Given::read(|name| std::env::var_os(name), args.config.as_deref())?;
    let config = config::without_flags(given)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut published = Vec::new();
    let done = runtime.block_on(async {
        let to = Place::open(&args.to).map_err(|error| anyhow!("--to: {}", said(&error)))?;
        let job = Job { args, config: &config, to, show: Show::listen()? };
        let done = tokio::select! {
            done = job.all(&mut published) => done,
            // Once asks it to end, twice means now: a bucket that does not answer is not waited for.
            () = job.show.signalled(2) => Err(anyhow!(said(&interrupted()))),
        };
        job.show.finish();
        done
    });
    // An interrupted check may still hold a copy: it gets a moment to remove it, else the next command here does. A child that
    // still tries a version ends with this process.
    runtime.shutdown_timeout(CLEANING_TIME);
    let text = match args.json {
        true => serde_json::to_string_pretty(&published.iter().map(to_json).collect::<Vec<_>>())? + "\n",
        false => published.iter().map(|one| sentence(one, &args.to) + "\n").collect(),
    };
    print(&text)?;
    done.map(|()| ExitCode::SUCCESS)
}

// === impl Job ===

impl Job<'_> {
    /// One after the other, the lowest first. What is published is in the list, also when a later one fails.
    async fn all(&self, published: &mut Vec<Published>) -> anyhow::Result<()> {
        for item in self.items().await? {
            let (model, version) = (item.model.clone(), item.version);
            let one = self.one(item).await;
            published.push(one.map_err(|error| anyhow!("{model} {version}: {}", said(&error)))?);
        }
        Ok(())
    }

    async fn items(&self) -> anyhow::Result<Vec<Item>> {
        let model = self.args.model.as_deref().map(ModelName::new).transpose()?;
        let version = self.args.version.as_deref().map(str::parse::<Version>).transpose()?;
        match (&self.args.from, &self.args.folder, model, version) {
            (Some(from), _, Some(model), Some(version)) => {
                let wrong = |error: Error| anyhow!("--from {}: {}", escape(from), said(&error));
                let from = Place::open(from).map_err(wrong)?;
                let source = from.source(&model, version).await.map_err(wrong)?;
                let model_yaml = from.model_yaml(&model).await.map_err(wrong)?;
                Ok(vec![Item { model, version, source, model_yaml }])
            }
            (_, Some(folder), model, version) => items_of(folder, model, version),
            _ => bail!("give a version's folder, or --from with --model and --version"),
        }
    }

    async fn one(&self, item: Item) -> crate::error::Result<Published> {
        let name = format!("{} {}", item.model, item.version);
        self.show.step(&format!("{name}: copying and hashing"), None);
        let key = (item.model.clone(), item.version);
        let is_published = self.args.from.is_some();
        let work_dir = app::work_dir(self.config);
        let staged = Staged::gather(&item.source, key, is_published, &work_dir, &self.show).await?;
        if self.to.standing(&staged, &self.show).await? == Standing::Same {
            return Ok(Published::new(&staged, true));
        }
        let theirs = self.to.model_yaml(&item.model).await?;
        if self.args.with_model_yaml && item.model_yaml.is_none() {
            return Err(Error::invalid("MISSING_FILE", "--with-model-yaml: there is no model.yaml beside the version"));
        }
        let is_sent = item.model_yaml.is_some() && (self.args.with_model_yaml || theirs.is_none());
        let staged = staged.with_model_yaml(if is_sent { item.model_yaml } else { theirs }, is_sent)?;
        let how = if self.args.no_run { "without running it" } else { "opening and running it in a child" };
        self.show.step(&format!("{name}: checking, {how}"), None);
        self.check(&staged).await?;
        let what = format!("{name}: sending {} files to {}", staged.files().len(), escape(&self.args.to));
        self.show.step(&what, Some(staged.bytes()));
        let came = self.to.send(&staged, &self.show).await?;
        Ok(Published::new(&staged, came == Standing::Same))
    }

    async fn check(&self, staged: &Staged) -> crate::error::Result<()> {
        let (config, root, is_run) = (self.config.clone(), staged.root().to_owned(), !self.args.no_run);
        let (model, version) = (staged.model.clone(), staged.version);
        let checked =
            tokio::task::spawn_blocking(move || app::check_version(&config, &root, (&model, version), is_run));
        tokio::select! {
            biased;
            () = self.show.signalled(1) => Err(interrupted()),
            checked = checked => {
                // A terminal tells the child, too: what came of it then is not the version's fault.
                self.show.go_on()?;
                checked.map_err(|_| Error::internal("LOAD_PANICKED", "the check panicked: this is a bug"))?
            }
        }
    }
}

/// The versions that a folder holds, by its name and those in it.
fn items_of(folder: &Path, model: Option<ModelName>, version: Option<Version>) -> anyhow::Result<Vec<Item>> {
    let folder = folder.canonicalize().with_context(|| folder.display().to_string())?;
    ensure!(folder.is_dir(), "{}: it is no folder; put the artifact into one, as …/NAME/VERSION/", folder.display());
    let name_of = |path: &Path| path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    let named: Option<Version> = name_of(&folder).parse().ok();
    if let Some(version) = version.or(named) {
        let parent = folder.parent().filter(|_| named.is_some()).unwrap_or(Path::new(""));
        let beside = ModelName::new(&name_of(parent)).ok();
        let model = model.or_else(|| beside.clone()).context("which model is it? Say --model NAME")?;
        // Only what is that model's own.
        let model_yaml = if beside.as_ref() == Some(&model) { model_yaml_in(parent)? } else { None };
        return Ok(vec![Item { model, version, source: Source::Folder(folder), model_yaml }]);
    }
    let model = match model {
        Some(model) => model,
        None => ModelName::new(&name_of(&folder))?,
    };
    let model_yaml = model_yaml_in(&folder)?;
    let entries = std::fs::read_dir(&folder)?.flatten().filter(|entry| entry.path().is_dir());
    let versions = entries.filter_map(|entry| {
        let version = entry.file_name().to_str()?.parse().ok()?;
        let (model, model_yaml) = (model.clone(), model_yaml.clone());
        Some(Item { model, version, source: Source::Folder(entry.path()), model_yaml })
    });
    let mut items: Vec<Item> = versions.collect();
    items.sort_by_key(|item| item.version);
    ensure!(
        !items.is_empty(),
        "{}: it is neither a version's folder (…/NAME/VERSION) nor a model's with versions in it; say --model and --version",
        folder.display()
    );
    Ok(items)
}

fn model_yaml_in(folder: &Path) -> anyhow::Result<Option<String>> {
    let file = folder.join("model.yaml");
    match std::fs::read_to_string(&file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        text => text.map(Some).with_context(|| file.display().to_string()),
    }
}

/// `REASON: sentence`, and what else can be done.
fn said(error: &Error) -> String {
    let more = match error.reason() {
        LIBRARY_MISSING => "; or publish it without running it (--no-run)",
        _ => "",
    };
    format!("{}: {}{more}", error.reason(), escape(error.message()))
}

fn sentence(one: &Published, to: &str) -> String {
    let (name, to) = (format!("{} {}", one.model, one.version), escape(to));
    if one.was_there {
        return format!("{name}: already there in {to}, the same bytes (digest {})", one.digest);
    }
    let along = if one.is_model_yaml_sent { ", and its model.yaml" } else { "" };
    let (count, size) = (one.files.len(), bytesize::ByteSize(one.bytes).display());
    format!("{name}: published to {to}: {count} files, {size}{along} (digest {})", one.digest)
}

fn to_json(one: &Published) -> Value {
    let file = |(name, sha256, size): &(String, String, u64)| json!({ "name": name, "sha256": sha256, "size": size });
    json!({
        "model": one.model.to_string(),
        "version": one.version.to_string(),
        "digest": one.digest,
        "files": one.files.iter().map(file).collect::<Vec<_>>(),
        "bytes": one.bytes,
        "model_yaml": one.is_model_yaml_sent,
        "already_there": one.was_there,
    })
}

// === impl Published ===

impl Published {
    fn new(staged: &Staged, was_there: bool) -> Self {
        Self {
            model: staged.model.clone(),
            version: staged.version,
            digest: staged.digest(),
            files: staged.files(),
            bytes: staged.bytes(),
            is_model_yaml_sent: staged.brings_model_yaml() && !was_there,
            was_there,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(folder: &Path, model: Option<&str>, version: Option<&str>) -> Result<Vec<String>, String> {
        let model = model.map(|name| ModelName::new(name).unwrap());
        let found = items_of(folder, model, version.map(|version| version.parse().unwrap()));
        let told = |item: Item| format!("{} {} {}", item.model, item.version, item.model_yaml.is_some());
        found.map(|items| items.into_iter().map(told).collect()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_folder_says_what_it_holds() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        for path in ["m/v1.2", "m/1.10", "m/.1.3.tmp-0", "m/junk", "out/files", "a b/1"] {
            std::fs::create_dir_all(at(path)).unwrap();
        }
        std::fs::write(at("m/model.yaml"), "").unwrap();
        assert_eq!(items(&at("m/v1.2"), None, None).unwrap(), ["m 1.2.0 true"]);
        assert_eq!(items(&at("m/v1.2/."), Some("n"), Some("2")).unwrap(), ["n 2.0.0 false"]);
        assert_eq!(items(&at("m"), None, None).unwrap(), ["m 1.2.0 true", "m 1.10.0 true"]);
        assert_eq!(items(&at("out"), Some("n"), Some("2")).unwrap(), ["n 2.0.0 false"]);
        assert!(items(&at("out"), None, None).unwrap_err().contains("--model and --version"));
        assert!(items(&at("out"), None, Some("2")).unwrap_err().contains("--model NAME"));
        assert!(items(&at("a b/1"), None, None).unwrap_err().contains("--model NAME"));
        assert!(items(&at("m/model.yaml"), None, None).unwrap_err().contains("no folder"));
    }
}

//! What the child does with an opened version: it runs the inputs that people gave, makes up others, and looks whether
//! requests may be joined and what a run costs.
//!
//! Inputs that people gave must succeed. Inputs made up here prove nothing by failing: only a crash, a hang or a passed limit
//! on them fails a version.

mod compare;
mod examples;
mod joining;
mod made_up;
mod padding;
#[cfg(test)]
mod padding_tests;
mod rows;
#[cfg(test)]
mod tests;
mod warm_up;

use std::{
    path::Path,
    time::{Duration, Instant},
};

pub use made_up::Recipe;
pub use warm_up::{cost_here, warm_up};

use super::job::Report;
use crate::{
    backend::{Call, Executable, Session, View},
    error::{Code, Error, Result},
    model::{ExampleFile, Features, Manifest, Normalizer, Parameters, Signature, Tensor, Warmup},
};

/// A version at hand for trying.
struct Trial<'a> {
    executable: &'a dyn Executable,
    session: Box<dyn Session>,
    manifest: &'a Manifest,
    signature: &'a Signature,
    /// When to stop making up inputs.
    enough: Instant,
}

/// Inputs that are known to run, and more of their kind.
enum Source {
    MadeUp(Recipe),
    /// Rows of an example, repeated.
    Example(Vec<Tensor>),
}

const COST_BUDGET: Duration = Duration::from_millis(100);
const COST_RUNS: usize = 5;

/// Tries an opened version.
///
/// EXAMPLE_MISMATCH and WARMUP_FAILED are failures of what people gave.
pub fn run(dir: &Path, manifest: &Manifest, executable: &dyn Executable, time_limit: Duration) -> Result<Report> {
    let features = features(dir, manifest, executable.signature())?;
    let mut trial = Trial {
        executable,
        session: executable.session()?,
        manifest,
        signature: executable.signature(),
        enough: Instant::now() + time_limit / 2,
    };
    let example = trial.examples(dir, &features)?;
    let recipe = trial.declared_warmups()?.or_else(|| trial.find_recipe());
    let mut sources: Vec<Source> = recipe.map(Source::MadeUp).into_iter().collect();
    sources.extend(example.map(Source::Example));
    let (joinable, mut batching_reason) = trial.judge_joining(&sources);
    let (pads, of_padding) = trial.judge_padding(&sources, joinable);
    batching_reason += &of_padding;
    if pads {
        // What is dearest is measured, and made ready: the largest size.
        sources = sources.into_iter().map(|source| source.longest(executable.signature())).collect();
    }
    let recipe = sources.iter().find_map(Source::recipe);
    let cost = match sources.first() {
        Some(source) => trial.cost(source, joinable, pads),
        None => Vec::new(),
    };
    Ok(Report {
        library: executable.library().to_owned(),
        joinable,
        pads,
        batching_reason,
        cost,
        recipe,
        ..Report::default()
    })
}

/// The features of a version, with its normalizer if it brings one. Also what the servable is made of.
pub fn features(dir: &Path, manifest: &Manifest, signature: &Signature) -> Result<Features> {
    let Some(file) = &manifest.normalizer else {
        return Features::new(signature, None);
    };
    let unreadable =
        || Error::invalid("INVALID_MANIFEST", format!("normalizer: '{file}' is not a file of the version"));
    if Path::new(file).components().any(|part| !matches!(part, std::path::Component::Normal(_))) {
        return Err(unreadable());
    }
    let text = std::fs::read_to_string(dir.join(file)).map_err(|_| unreadable())?;
    Features::new(signature, Some(&Normalizer::parse(&text)?))
}

// === impl Trial ===

impl Trial<'_> {
    fn run(&mut self, inputs: &[Tensor], parameters: &Parameters) -> Result<Vec<Tensor>> {
        run_once(&mut *self.session, self.signature, inputs, parameters)
    }

    fn time_is_up(&self) -> bool {
        Instant::now() >= self.enough
    }

    /// The examples' answers must come out. Returns inputs with rows, for the joined runs.
    fn examples(&mut self, dir: &Path, features: &Features) -> Result<Option<Vec<Tensor>>> {
        let path = dir.join("example.json");
        if !path.exists() {
            return Ok(None);
        }
        let unreadable =
            |error: std::io::Error| Error::invalid("INVALID_EXAMPLE", format!("example.json: {}", error.kind()));
        let file = ExampleFile::parse(&std::fs::read_to_string(path).map_err(unreadable)?)?;
        let mut kept: Option<(usize, Vec<Tensor>)> = None;
        for (place, example) in file.examples.iter().enumerate() {
            let failed = |error: &Error| examples::failed(place, error);
            let parameters = example.request.parameters().map_err(|error| failed(&error))?;
            self.executable.check_parameters(&parameters).map_err(|error| failed(&error))?;
            let data = example.request.data()?;
            let bound = features.bind(self.signature, data).map_err(|error| failed(&error))?;
            let answer = self.run(&bound.inputs, &parameters).map_err(|error| failed(&error))?;
            examples::check(place, example, &answer)?;
            let more = kept.as_ref().is_none_or(|(rows, _)| bound.rows > *rows);
            if more && parameters.0.is_empty() {
                kept = Some((bound.rows, bound.inputs));
            }
        }
        Ok(kept.map(|(_, inputs)| inputs))
    }

    /// Each warm-up that model.yaml declares must run. Returns how their inputs were made.
    fn declared_warmups(&mut self) -> Result<Option<Recipe>> {
        let mut known: Option<Recipe> = None;
        for &warmup in &self.manifest.warmup {
            let mut refusal = None;
            let found = Recipe::all().find(|base| {
                let (recipe, rows) = declared(warmup, *base);
                let inputs = recipe.make(self.signature, bounded(self.signature, rows), 1);
                let ran = self.run(&inputs, &Parameters::default());
                refusal = ran.err();
                refusal.is_none()
            });
            match refusal {
                Some(error) => return Err(warmup_failed(warmup, &error)),
                // Zeros that run say nothing of random values; random values that ran do.
                None if matches!(warmup, Warmup::Random(_)) => known = found,
                None => {}
            }
        }
        Ok(known)
    }

    /// The first way of making up inputs that the version takes.
    fn find_recipe(&mut self) -> Option<Recipe> {
        Recipe::all().find(|recipe| {
            let inputs = recipe.make(self.signature, 1, 1);
            !self.time_is_up() && self.run(&inputs, &Parameters::default()).is_ok()
        })
    }

    /// The median of a few runs at 1, 2, 4, … rows, as far as the budget reaches.
    fn cost(&mut self, source: &Source, joinable: bool, pads: bool) -> Vec<(usize, f64)> {
        let mut cost = Vec::new();
        let begun = Instant::now();
        for rows in sizes(joinable, self.manifest.max_batch_size) {
            let inputs = source.request(self.signature, rows, 0, 7, 1);
            let inputs = if pads { padding::padded(self.signature, inputs) } else { inputs };
            let mut took = Vec::with_capacity(COST_RUNS);
            for _ in 0..COST_RUNS {
                let start = Instant::now();
                if self.run(&inputs, &Parameters::default()).is_err() {
                    break;
                }
                took.push(start.elapsed().as_secs_f64() * 1e6);
                if begun.elapsed() > COST_BUDGET {
                    break;
                }
            }
            if took.is_empty() {
                break;
            }
            took.sort_by(f64::total_cmp);
            cost.push((rows, took[took.len() / 2]));
            if begun.elapsed() > COST_BUDGET {
                break;
            }
        }
        cost
    }
}

// === impl Source ===

impl Source {
    fn recipe(&self) -> Option<Recipe> {
        match self {
            Source::MadeUp(recipe) => Some(*recipe),
            Source::Example(_) => None,
        }
    }

    /// The inputs of one request. What does not batch is the same for all requests with the same `round`.
    fn request(&self, signature: &Signature, rows: usize, first_row: usize, seed: u64, round: u64) -> Vec<Tensor> {
        match self {
            Source::MadeUp(recipe) => recipe.make_request(signature, rows, seed, round),
            Source::Example(inputs) => rows::take_inputs(signature, inputs, first_row, rows),
        }
    }
}

fn run_once(
    session: &mut dyn Session,
    signature: &Signature,
    inputs: &[Tensor],
    parameters: &Parameters,
) -> Result<Vec<Tensor>> {
    let views: Vec<View<'_>> =
        inputs.iter().map(|tensor| View { dtype: tensor.dtype, shape: &tensor.shape, data: &tensor.data }).collect();
    let outputs: Vec<usize> = (0..signature.outputs.len()).collect();
    session.run(&Call { inputs: &views, outputs: &outputs, parameters })
}

/// 1, 2, 4, … and the limit itself; 1 alone where requests are not joined.
fn sizes(batches: bool, rows_max: usize) -> Vec<usize> {
    let rows_max = if batches { rows_max } else { 1 };
    let powers = std::iter::successors(Some(1usize), |rows| rows.checked_mul(2));
    let mut sizes: Vec<usize> = powers.take_while(|&rows| rows < rows_max).collect();
    sizes.push(rows_max);
    sizes
}

fn bounded(signature: &Signature, rows: usize) -> usize {
    if signature.inputs.iter().any(|spec| spec.batch) { rows } else { 1 }
}

fn declared(warmup: Warmup, recipe: Recipe) -> (Recipe, usize) {
    match warmup {
        Warmup::Zeros(rows) => (recipe.zeros(), rows),
        Warmup::Random(rows) => (recipe, rows),
    }
}

fn warmup_failed(warmup: Warmup, error: &Error) -> Error {
    let what = match warmup {
        Warmup::Zeros(rows) => format!("zeros: {rows}"),
        Warmup::Random(rows) => format!("random: {rows}"),
    };
    let message = format!("warmup {{{what}}} of model.yaml failed: {}", error.message());
    Error::new(Code::FailedPrecondition, "WARMUP_FAILED", message)
}

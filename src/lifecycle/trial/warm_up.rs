//! The runs of a version in the serving process before its first request: what they make ready (kernels chosen, arenas
//! grown), no caller waits for.

use std::time::{Duration, Instant};

use super::{COST_BUDGET, Source, Trial, bounded, declared, run_once, sizes, warmup_failed};
use crate::{
    backend::{Executable, Session},
    error::{Error, Result},
    lifecycle::{job::Report, opening::Alarm},
    model::{Manifest, Parameters, Signature, Tensor},
};

/// Runs the warm-up: what model.yaml declares, else 1 row, the largest batch and the powers of two between, as far as
/// `warmup_budget` reaches by what the child has measured. A declared one that fails here, though it passed in the child, is an
/// error; so is a run that does not end in time.
pub fn warm_up(executable: &dyn Executable, manifest: &Manifest, report: &Report, alarm: &Alarm) -> Result<()> {
    let Some(recipe) = report.recipe else {
        return Ok(());
    };
    let signature = executable.signature();
    let mut session = executable.session()?;
    alarm.watch(&*session);
    for warmup in &manifest.warmup {
        let (recipe, rows) = declared(*warmup, recipe);
        let inputs = recipe.make(signature, bounded(signature, rows), 1);
        in_time(&mut *session, signature, &inputs, alarm)?.map_err(|error| warmup_failed(*warmup, &error))?;
    }
    if !manifest.warmup.is_empty() {
        return Ok(());
    }
    let begun = Instant::now();
    for rows in in_order(sizes(report.joinable, manifest.max_batch_size)) {
        if rows > 1 && begun.elapsed() + predicted(&report.cost, rows) > manifest.warmup_budget {
            continue;
        }
        let inputs = recipe.make(signature, rows, 1);
        // What is made up proves nothing by failing.
        if in_time(&mut *session, signature, &inputs, alarm)?.is_err() {
            break;
        }
    }
    Ok(())
}

/// What runs cost in this process, for a version that the child has measured elsewhere: it opens those of a GPU on the CPU. `None`
/// where no inputs are known that it takes.
pub fn cost_here(
    executable: &dyn Executable,
    manifest: &Manifest,
    report: &Report,
    alarm: &Alarm,
) -> Result<Option<Vec<(usize, f64)>>> {
    let Some(recipe) = report.recipe else {
        return Ok(None);
    };
    let (session, signature) = (executable.session()?, executable.signature());
    let mut trial = Trial { executable, session, manifest, signature, enough: Instant::now() + COST_BUDGET };
    let cost = trial.cost(&Source::MadeUp(recipe), report.joinable, report.pads);
    match alarm.is_over() {
        true => Err(alarm.error()),
        false => Ok(Some(cost)),
    }
}

/// The run's own outcome, or that it took too long.
fn in_time(
    session: &mut dyn Session,
    signature: &Signature,
    inputs: &[Tensor],
    alarm: &Alarm,
) -> Result<Result<Vec<Tensor>, Error>> {
    let ran = run_once(session, signature, inputs, &Parameters::default());
    match alarm.is_over() {
        true => Err(alarm.error()),
        false => Ok(ran),
    }
}

/// One row first, then the largest batch, for that is what most is made ready by; then the others.
fn in_order(ascending: Vec<usize>) -> Vec<usize> {
    let mut sizes = ascending;
    if sizes.len() > 2 {
        sizes[1..].rotate_right(1);
    }
    sizes
}

/// By the largest run that was measured and is no larger, row by row.
fn predicted(cost: &[(usize, f64)], rows: usize) -> Duration {
    let known = cost.iter().rev().find(|(measured, _)| *measured <= rows);
    let micros = known.map_or(0.0, |(measured, micros)| micros * rows as f64 / *measured as f64);
    Duration::try_from_secs_f64(micros / 1e6).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_row_and_the_largest_batch_come_first() {
        assert_eq!(in_order(vec![1, 2, 4, 8, 12]), [1, 12, 2, 4, 8]);
        assert_eq!(in_order(vec![1, 2]), [1, 2]);
        assert_eq!(in_order(vec![1]), [1]);
    }

    #[test]
    fn a_run_is_predicted_by_the_next_smaller_one() {
        let cost = [(1, 100.0), (4, 200.0)];
        assert_eq!(predicted(&cost, 2), Duration::from_micros(200));
        assert_eq!(predicted(&cost, 64), Duration::from_micros(3200));
        assert_eq!(predicted(&[], 64), Duration::ZERO);
    }
}

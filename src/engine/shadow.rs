//! Versions that are asked what callers asked, after the callers have their answers: at the lowest priority, bounded, and
//! given up where too many are on their way.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use smallvec::SmallVec;

use crate::{
    catalog::{ShadowArm, Traffic},
    error::Result,
    model::{DType, Data, Parameters, PredictRequest, Priority, SLOTS, Tensor},
    monitor::Found,
    runtime::{Running, Servable, Work},
};

/// What shadows are to be asked.
pub struct Shadows {
    chosen: SmallVec<[Place; 1]>,
    data: Data,
    outputs: Vec<String>,
    parameters: Parameters,
}

/// One on its way: it holds its place until it is dropped.
struct Place {
    arm: Arc<ShadowArm>,
    bytes: usize,
}

/// Of one shadow, on this replica: requests, and the bytes of their inputs.
const ON_THEIR_WAY_MAX: (usize, usize) = (64, 64 << 20);
/// Of what waits for the version that callers are answered by, and for the shadow itself, by predicted time.
const BACKLOG_MAX: Duration = Duration::from_millis(2);
/// Whoever waits for nobody waits no longer than this.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Of one request: the comparison runs between the answers to callers.
const ROWS_COMPARED_MAX: usize = 256;
const ELEMENTS_COMPARED_MAX: usize = 1 << 16;

/// Which shadows a request is for that `answering` answers: no version is asked what it is asked anyway. Whoever is behind with those
/// who wait has no time for what nobody waits for.
pub fn choose(traffic: &Traffic, answering: &Servable, request: &PredictRequest) -> Option<Box<Shadows>> {
    let mut chosen: SmallVec<[Place; 1]> = SmallVec::new();
    for arm in &traffic.shadows {
        let Some(servable) = arm.servable.as_ref().filter(|_| arm.version != answering.version()) else { continue };
        if arm.cell.is_taken_out() || fastrand::u16(..SLOTS as u16) >= arm.sample {
            continue;
        }
        let is_behind = answering.waiting() > BACKLOG_MAX || servable.waiting() > BACKLOG_MAX;
        let bytes = request.data.bytes();
        if !is_behind && arm.cell.enter(bytes, ON_THEIR_WAY_MAX) {
            chosen.push(Place { arm: arm.clone(), bytes });
        } else {
            arm.cell.compare(|compared| compared.dropped += 1);
        }
    }
    if chosen.is_empty() {
        return None;
    }
    Some(Box::new(Shadows {
        chosen,
        data: request.data.clone(),
        outputs: request.outputs.clone(),
        parameters: request.parameters.clone(),
    }))
}

// === impl Shadows ===

impl Shadows {
    /// Asks them on this core, once what is ready now has run. `answer` is what the caller got, after that long.
    pub fn ask(self, answer: &[Tensor], took: Duration) {
        for place in self.chosen {
            let (data, answer) = (self.data.clone(), answer.to_vec());
            let (outputs, parameters) = (self.outputs.clone(), self.parameters.clone());
            tokio::spawn(async move {
                tokio::task::yield_now().await;
                place.run(data, outputs, parameters, &answer, took).await;
            });
        }
    }
}

// === impl Place ===

impl Place {
    async fn run(self, data: Data, outputs: Vec<String>, parameters: Parameters, answer: &[Tensor], took: Duration) {
        let cell = &self.arm.cell;
        cell.compare(|compared| compared.sent += 1);
        let Some(servable) = &self.arm.servable else { return };
        let started = Instant::now();
        let own = match begin(servable, data, &outputs, parameters, started + TIMEOUT) {
            Ok(running) => running.await,
            Err(error) => Err(error),
        };
        match own {
            Ok(done) => {
                let own_took = started.elapsed();
                let mut found = compare(answer, &done.outputs);
                let is_finite = |outputs: &[Tensor]| outputs.iter().all(Tensor::is_finite);
                found.non_finite = !is_finite(&done.outputs) && is_finite(answer);
                cell.compare(|compared| compared.note(&found, took, own_took));
            }
            Err(error) => {
                tracing::debug!(version = %self.arm.version, reason = error.reason(), %error, "a shadow failed");
                cell.compare(|compared| compared.failed += 1);
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.arm.cell.leave(self.bytes);
    }
}

fn begin(
    servable: &Arc<Servable>,
    data: Data,
    outputs: &[String],
    parameters: Parameters,
    deadline: Instant,
) -> Result<Running> {
    let signature = servable.signature();
    servable.check_parameters(&parameters)?;
    let outputs = signature.select(outputs)?;
    let bound = servable.features().bind(signature, data)?;
    servable.clone().run(Work {
        inputs: bound.inputs,
        rows: bound.rows,
        outputs,
        parameters,
        priority: Priority::Low,
        deadline: Some(deadline),
    })
}

/// Row by row, over the outputs that both have; the first rows of a large answer. A row agrees where all of its outputs do: several
/// numbers by the largest one's place, one number from 0 to 1 by its side of one half, other numbers within a thousandth, and
/// all else by equality. Outputs of other shapes or types agree in no row.
fn compare(answer: &[Tensor], shadow: &[Tensor]) -> Found {
    let pairs: Vec<(&Tensor, Option<&Tensor>)> =
        answer.iter().map(|own| (own, shadow.iter().find(|other| other.name == own.name))).collect();
    let rows = pairs.iter().map(|(own, _)| own.shape.first().copied().unwrap_or(1)).max().unwrap_or(0);
    let rows = rows.min(ROWS_COMPARED_MAX);
    let mut agrees = vec![true; rows];
    let mut found = Found { rows: rows as u64, ..Found::default() };
    for (own, other) in pairs.into_iter().filter_map(|(own, other)| Some((own, other?))) {
        compare_output(own, other, &mut agrees, &mut found);
    }
    found.agreed = agrees.iter().filter(|agrees| **agrees).count() as u64;
    found
}

fn compare_output(own: &Tensor, other: &Tensor, agrees: &mut [bool], found: &mut Found) {
    let width: usize = own.shape.iter().skip(1).product();
    if own.shape != other.shape || own.dtype != other.dtype {
        return agrees.fill(false);
    }
    if own.dtype == DType::Bytes {
        let mut texts = own.strings().zip(other.strings());
        for agrees in agrees {
            *agrees &= texts.by_ref().take(width).all(|(own, other)| own == other);
        }
        return;
    }
    let elements = (agrees.len() * width).min(ELEMENTS_COMPARED_MAX);
    let (own, other) = (own.first_numbers(elements), other.first_numbers(elements));
    let is_first = !found.is_scored;
    found.is_scored |= elements > 0;
    let rows = own.chunks_exact(width.max(1)).zip(other.chunks_exact(width.max(1)));
    for ((own, other), agrees) in rows.zip(agrees) {
        *agrees &= row_agrees(own, other);
        let differences = own.iter().zip(other).map(|(own, other)| (own - other).abs());
        let largest = differences.filter(|found| found.is_finite()).fold(found.largest_difference, f64::max);
        found.largest_difference = largest;
        let scores = (own[0] as f32, other[0] as f32);
        if is_first && scores.0.is_finite() && scores.1.is_finite() {
            found.scores.push(scores);
        }
    }
}

fn row_agrees(own: &[f64], other: &[f64]) -> bool {
    const TOLERANCE: f64 = 1e-3;
    match (own, other) {
        // Equal infinities, too.
        (own, other) if own == other => true,
        ([own], [other]) if (0.0..=1.0).contains(own) && (0.0..=1.0).contains(other) => {
            (*own >= 0.5) == (*other >= 0.5)
        }
        ([own], [other]) => (own - other).abs() <= TOLERANCE * own.abs().max(1.0) || own.is_nan() && other.is_nan(),
        _ => largest(own) == largest(other),
    }
}

fn largest(row: &[f64]) -> Option<usize> {
    row.iter().enumerate().max_by(|(_, one), (_, other)| one.total_cmp(other)).map(|(place, _)| place)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(values: Vec<f64>) -> Tensor {
        let shape = [values.len()].into_iter().collect();
        Tensor::from_f64("y".into(), shape, values)
    }

    #[test]
    fn probabilities_agree_by_their_side_and_other_numbers_within_a_thousandth() {
        let found = compare(&[column(vec![0.2, 0.4, 0.9])], &[column(vec![0.3, 0.6, 0.8])]);
        assert_eq!((found.rows, found.agreed), (3, 2));
        assert!((found.largest_difference - 0.2).abs() < 1e-12);
        assert_eq!(found.scores[0], (0.2, 0.3));
        let nan = compare(&[column(vec![0.2, 1e300])], &[column(vec![f64::NAN, 1e300])]);
        assert_eq!((nan.rows, nan.agreed, nan.scores.len()), (2, 1, 0), "what is no f32 has no rank");
        let found = compare(&[column(vec![100.0, 100.0, f64::NAN])], &[column(vec![100.05, 101.0, f64::NAN])]);
        assert_eq!((found.rows, found.agreed, found.largest_difference), (3, 2, 1.0));
    }

    #[test]
    fn several_numbers_agree_by_the_largest_and_other_shapes_in_no_row() {
        let wide = |values: Vec<f64>| Tensor::from_f64("y".into(), [2, 2].into_iter().collect(), values);
        let found = compare(&[wide(vec![0.1, 0.9, 0.8, 0.2])], &[wide(vec![0.4, 0.6, 0.3, 0.7])]);
        assert_eq!((found.rows, found.agreed), (2, 1));
        let other_shape = compare(&[wide(vec![0.0; 4])], &[column(vec![0.0; 4])]);
        assert_eq!((other_shape.rows, other_shape.agreed), (2, 0));
        let infinite = || column(vec![f64::INFINITY]);
        assert_eq!(compare(&[infinite()], &[infinite()]).agreed, 1);
        let texts = |words: &[&[u8]]| {
            let data = crate::model::length_prefixed(words);
            Tensor::new("t".into(), DType::Bytes, [words.len()].into_iter().collect(), data).expect("texts")
        };
        let found = compare(&[texts(&[b"a", b"b"])], &[texts(&[b"a", b"c"])]);
        assert_eq!((found.rows, found.agreed), (2, 1));
        let many = column(vec![0.1; 10 * ROWS_COMPARED_MAX]);
        assert_eq!(compare(std::slice::from_ref(&many), std::slice::from_ref(&many)).rows, ROWS_COMPARED_MAX as u64);
    }
}

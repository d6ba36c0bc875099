//! Versions that are asked what callers asked, after the callers have their answers: at the lowest priority, bounded, and
//! given up where too many are on their way.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use smallvec::SmallVec;

use super::router::Counts;
use crate::{
    catalog::{ShadowArm, Traffic},
    error::Result,
    model::{Data, Parameters, PredictRequest, Priority, SLOTS, Tensor},
    monitor::Found,
    runtime::{Servable, Work},
};

/// What shadows are to be asked.
pub struct Shadows {
    /// Places among the shadows of the route.
    chosen: SmallVec<[u8; 4]>,
    data: Data,
    bytes: usize,
    outputs: Vec<String>,
    parameters: Parameters,
}

/// One on its way: it holds its place until it is dropped.
struct Place {
    traffic: Arc<Traffic>,
    shadow: usize,
    bytes: usize,
}

/// Of one shadow, on this replica.
const REQUESTS_MAX: usize = 64;
const BYTES_MAX: usize = 64 << 20;
/// Of what waits for the version that callers are answered by, and for the shadow itself, by predicted time.
const BACKLOG_MAX: Duration = Duration::from_millis(2);
/// Whoever waits for nobody waits no longer than this.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Which shadows a request is for; of what the route gave to somebody, not of what a caller chose itself.
pub fn choose(traffic: &Traffic, counts: Counts, request: &PredictRequest) -> Option<Box<Shadows>> {
    if traffic.shadows.is_empty() || counts == Counts::Nowhere {
        return None;
    }
    let is_chosen = |shadow: &ShadowArm| shadow.servable.is_some() && fastrand::u16(..SLOTS as u16) < shadow.sample;
    let chosen = traffic.shadows.iter().enumerate().filter(|(_, shadow)| is_chosen(shadow));
    let chosen: SmallVec<[u8; 4]> = chosen.map(|(place, _)| place as u8).collect();
    if chosen.is_empty() {
        return None;
    }
    Some(Box::new(Shadows {
        chosen,
        bytes: request.data.bytes(),
        data: request.data.clone(),
        outputs: request.outputs.clone(),
        parameters: request.parameters.clone(),
    }))
}

// === impl Shadows ===

impl Shadows {
    /// Asks them on this core, once what is ready now has run. `answer` is what the caller got, after that long.
    pub fn ask(self, traffic: Arc<Traffic>, stable: &Servable, answer: Vec<Tensor>, took: Duration) {
        // Whoever is behind with those who wait has no time for what nobody waits for.
        let is_behind = stable.waiting() > BACKLOG_MAX;
        for shadow in self.chosen.iter().map(|place| usize::from(*place)) {
            let Some(place) = Place::take(&traffic, shadow, self.bytes).filter(|_| !is_behind) else {
                traffic.shadows[shadow].cell.compare(|compared| compared.dropped += 1);
                continue;
            };
            let (data, answer) = (self.data.clone(), answer.clone());
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
    fn take(traffic: &Arc<Traffic>, shadow: usize, bytes: usize) -> Option<Self> {
        let arm = &traffic.shadows[shadow];
        let place = Self { traffic: traffic.clone(), shadow, bytes };
        let requests = arm.requests.fetch_add(1, Relaxed);
        let held = arm.bytes.fetch_add(bytes, Relaxed);
        let is_behind = arm.servable.as_ref().is_none_or(|servable| servable.waiting() > BACKLOG_MAX);
        (requests < REQUESTS_MAX && held + bytes <= BYTES_MAX && !is_behind).then_some(place)
    }

    async fn run(self, data: Data, outputs: Vec<String>, parameters: Parameters, answer: &[Tensor], took: Duration) {
        let arm = &self.traffic.shadows[self.shadow];
        arm.cell.compare(|compared| compared.sent += 1);
        let Some(servable) = &arm.servable else { return };
        let started = Instant::now();
        let own = match begin(servable, data, &outputs, parameters, started + TIMEOUT) {
            Ok(running) => running.await,
            Err(error) => Err(error),
        };
        match own {
            Ok(done) => {
                let found = compare(answer, &done.outputs);
                arm.cell.compare(|compared| compared.note(&found, took, started.elapsed()));
            }
            Err(error) => {
                tracing::debug!(version = %arm.version, reason = error.reason(), %error, "a shadow failed");
                arm.cell.compare(|compared| compared.failed += 1);
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let arm = &self.traffic.shadows[self.shadow];
        arm.requests.fetch_sub(1, Relaxed);
        arm.bytes.fetch_sub(self.bytes, Relaxed);
    }
}

fn begin(
    servable: &Arc<Servable>,
    data: Data,
    outputs: &[String],
    parameters: Parameters,
    deadline: Instant,
) -> Result<crate::runtime::Running> {
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

/// Row by row, over the outputs that both have. A row agrees where all of its outputs do: several numbers by the largest
/// one's place, one number from 0 to 1 by its side of one half, other numbers within a thousandth, and all else by equality.
fn compare(answer: &[Tensor], shadow: &[Tensor]) -> Found {
    let pairs: Vec<(Vec<f64>, Vec<f64>, usize)> = answer.iter().filter_map(|own| pair(own, shadow)).collect();
    let rows = pairs.iter().map(|(own, _, width)| own.len() / width).max().unwrap_or(0);
    let mut found = Found { rows: rows as u64, ..Found::default() };
    for row in 0..rows {
        let mut agrees = true;
        for (own, other, width) in &pairs {
            let range = row * width..(row + 1) * width;
            let (Some(own), Some(other)) = (own.get(range.clone()), other.get(range)) else { continue };
            agrees &= row_agrees(own, other);
            let differences = own.iter().zip(other).map(|(own, other)| (own - other).abs());
            found.largest_difference =
                differences.filter(|found| found.is_finite()).fold(found.largest_difference, f64::max);
        }
        found.agreed += u64::from(agrees);
    }
    if let Some((own, other, width)) = pairs.first() {
        let firsts = own.iter().step_by(*width).zip(other.iter().step_by(*width));
        found.scores = firsts.map(|(own, other)| (*own as f32, *other as f32)).collect();
    }
    found
}

/// The numbers of both, and how many make a row; `None` where they are no numbers, or of other shapes.
fn pair(own: &Tensor, shadow: &[Tensor]) -> Option<(Vec<f64>, Vec<f64>, usize)> {
    let other = shadow.iter().find(|other| other.name == own.name && other.shape == own.shape)?;
    let width: usize = own.shape.iter().skip(1).product();
    let (own, other) = (own.to_f64()?, other.to_f64()?);
    (width > 0).then_some((own, other, width))
}

fn row_agrees(own: &[f64], other: &[f64]) -> bool {
    const TOLERANCE: f64 = 1e-3;
    match (own, other) {
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
        let found = compare(&[column(vec![100.0, 100.0, f64::NAN])], &[column(vec![100.05, 101.0, f64::NAN])]);
        assert_eq!((found.rows, found.agreed, found.largest_difference), (3, 2, 1.0));
    }

    #[test]
    fn several_numbers_agree_by_the_largest_and_other_shapes_are_not_compared() {
        let wide = |values: Vec<f64>| Tensor::from_f64("y".into(), [2, 2].into_iter().collect(), values);
        let found = compare(&[wide(vec![0.1, 0.9, 0.8, 0.2])], &[wide(vec![0.4, 0.6, 0.3, 0.7])]);
        assert_eq!((found.rows, found.agreed), (2, 1));
        assert_eq!(compare(&[wide(vec![0.0; 4])], &[column(vec![0.0; 4])]), Found::default());
    }
}

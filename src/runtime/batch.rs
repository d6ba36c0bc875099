//! One batch: from the requests of several callers to one run, and back to each its own part.
//!
//! Called by whoever owns a session: a core's loop or a thread. A batch that fails is run again one by one, so that only the
//! guilty request gets the error; a session that panics is made anew.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    answers::Answers,
    joining::{Cutter, Filled, join},
    queue::{Queued, Taken},
    shared::Shared,
    watchdog::Seat,
    work::{Done, Outcome, Reply, Work},
};
use crate::{
    backend::{Call, RUN_STOPPED, Session, View},
    error::{Error, Result},
    model::{Priority, Shape, Tensor, Timing},
};

/// One request, as a rule in one part.
pub type Pendings = smallvec::SmallVec<[Pending; 1]>;

/// Work that waits, and where its answer goes.
pub struct Pending {
    pub work: Work,
    pub enqueued: Instant,
    /// Not the first part of its request.
    pub goes_on: bool,
    pub reply: Reply,
    pub shared: Arc<Shared>,
}

/// A session and the memory in which its batches are put together.
pub struct Instance {
    session: Box<dyn Session>,
    /// One buffer for each input, in words of 8 bytes so that every element type lies aligned.
    joined: Vec<Vec<u64>>,
    /// Where it says what it runs.
    seat: Arc<Seat>,
    servable: u64,
}

// === impl Instance ===

impl Instance {
    pub fn new(shared: &Arc<Shared>, seat: Arc<Seat>) -> Result<Self> {
        let session = shared.session()?;
        seat.sit(shared, session.stopper());
        Ok(Self { session, joined: Vec::new(), seat, servable: shared.id })
    }

    /// Answers everything that was taken.
    pub fn run(&mut self, shared: &Arc<Shared>, taken: Taken<Pending>, answers: &mut Answers) {
        for pending in taken.expired {
            answers.give(pending.reply, Err(Error::deadline_exceeded("while the request waited; it was not run")));
        }
        for pending in taken.overdue {
            answers.give(pending.reply, Err(shared.queue_timeout()));
        }
        let mut batch = taken.batch;
        if !batch.is_empty() {
            shared.metrics.batch_closed(taken.closed);
        }
        if batch.len() > 1 && shared.gains_by_joining {
            let rows = batch.iter().map(|pending| pending.work.rows).sum();
            let started = Instant::now();
            self.seat.lend(batch.iter_mut().map(|pending| &mut pending.reply));
            let joined = self.run_joined(shared, &batch, rows, started);
            self.seat.take_back(batch.iter_mut().map(|pending| &mut pending.reply));
            match joined {
                Ok(joined) => return deliver(shared, batch, joined, started, rows, answers),
                Err(error) => {
                    tracing::debug!(model = %shared.model, version = %shared.version, error = error.message(),
                        "a batch failed; its requests are run again one by one");
                }
            }
        }
        for mut pending in batch {
            let started = Instant::now();
            if pending.gone() {
                continue;
            }
            if pending.deadline().is_some_and(|deadline| deadline <= started) {
                answers.give(pending.reply, Err(Error::deadline_exceeded("while its batch ran")));
                continue;
            }
            let mut outputs = self.run_watched(shared, &mut pending, started);
            if was_stopped(&outputs) && self.seat.is_core() {
                // It was ended for the sake of the others on this core: it may take its time elsewhere.
                answers.give(pending.reply, Ok(Outcome::Elsewhere(Box::new(pending.work))));
                continue;
            }
            let waits = !pending.gone() && pending.deadline().is_none_or(|deadline| deadline > Instant::now());
            if was_stopped(&outputs) && waits {
                // Somebody still waits for it: the stop was meant for the run before, and came too late for that.
                outputs = self.run_watched(shared, &mut pending, Instant::now());
            }
            let answer = finish(shared, &pending, outputs, started);
            answers.give(pending.reply, answer);
        }
    }

    fn run_watched(&mut self, shared: &Arc<Shared>, pending: &mut Pending, started: Instant) -> Result<Vec<Tensor>> {
        self.seat.lend(std::iter::once(&mut pending.reply));
        let outputs = self.run_alone(shared, pending, started);
        self.seat.take_back(std::iter::once(&mut pending.reply));
        outputs
    }

    /// One request by itself, its bytes where they came, unless they are to be padded.
    fn run_alone(&mut self, shared: &Arc<Shared>, pending: &Pending, started: Instant) -> Result<Vec<Tensor>> {
        let work = &pending.work;
        if shared.pads && shared.signature.needs_padding(&work.inputs) {
            let joined = self.run_joined(shared, std::slice::from_ref(pending), work.rows, started)?;
            let outputs = joined.places.into_iter().zip(joined.outputs);
            return Ok(outputs.map(|(place, output)| shared.unpadded(place, output, &work.inputs)).collect());
        }
        let views: smallvec::SmallVec<[View<'_>; 4]> = work
            .inputs
            .iter()
            .map(|tensor| View { dtype: tensor.dtype, shape: &tensor.shape, data: &tensor.data })
            .collect();
        let call = Call { inputs: &views, outputs: &work.outputs, parameters: &work.parameters };
        self.guarded(shared, started, work.deadline, |session| session.run(&call))
    }

    /// Requests as one, along the first dimension. The outputs of all, for all rows.
    fn run_joined(&mut self, shared: &Arc<Shared>, batch: &[Pending], rows: usize, started: Instant) -> Result<Joined> {
        let first = &batch[0].work;
        let specs = &shared.signature.inputs;
        let mut joined = std::mem::take(&mut self.joined);
        joined.resize_with(specs.len(), Vec::new);
        let mut filled = smallvec::SmallVec::<[Filled; 4]>::new();
        for (place, (spec, buffer)) in specs.iter().zip(&mut joined).enumerate() {
            let tensors = batch.iter().map(|pending| &pending.work.inputs[place]);
            let pad = spec.pad.as_ref().filter(|_| shared.pads);
            filled.push(if spec.batch { join(tensors, pad, buffer) } else { Filled::default() });
        }
        let shapes: smallvec::SmallVec<[Shape; 4]> = specs
            .iter()
            .zip(&first.inputs)
            .map(|(spec, tensor)| {
                let mut shape = match &spec.pad {
                    Some(pad) if shared.pads => pad.shape(&tensor.shape),
                    _ => tensor.shape.clone(),
                };
                if spec.batch {
                    shape[0] = rows;
                }
                shape
            })
            .collect();
        let views: smallvec::SmallVec<[View<'_>; 4]> = (0..specs.len())
            .map(|place| {
                let data: &[u8] = match specs[place].batch {
                    true => &bytemuck::cast_slice(&joined[place])[..filled[place].bytes],
                    false => &first.inputs[place].data,
                };
                View { dtype: first.inputs[place].dtype, shape: &shapes[place], data }
            })
            .collect();
        let wanted = wanted_by_any(batch);
        let call = Call { inputs: &views, outputs: &wanted, parameters: &first.parameters };
        let outputs = self.guarded(shared, started, last_deadline(batch), |session| session.run(&call));
        drop(views);
        self.joined = joined;
        let outputs = outputs?;
        if let Some(short) = outputs.iter().find(|output| output.shape.first() != Some(&rows)) {
            return Err(Error::internal(
                "OUTPUT_ROWS",
                format!("output '{}' does not have a row for each of the batch", short.name),
            ));
        }
        if shared.pads {
            shared.observe_padding(&filled);
            check_lengths(shared, &wanted, &outputs, &first.inputs)?;
        }
        Ok(Joined { places: wanted, outputs })
    }

    fn guarded<T>(
        &mut self,
        shared: &Arc<Shared>,
        started: Instant,
        until: Option<Instant>,
        run: impl FnOnce(&mut dyn Session) -> Result<T>,
    ) -> Result<T> {
        self.seat.begin(shared.id, started, until);
        let running = shared.mark.begin();
        // The session is thrown away when it panicked, so nobody sees what it left half done.
        let result = catch_unwind(AssertUnwindSafe(|| run(&mut *self.session)));
        drop(running);
        self.seat.end();
        match result {
            Ok(result) => result,
            Err(_) => {
                self.session = shared.session()?;
                self.seat.sit(shared, self.session.stopper());
                Err(Error::internal("BACKEND_PANICKED", "the backend failed unexpectedly at this batch"))
            }
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.seat.leave(self.servable);
    }
}

fn was_stopped<T>(outcome: &Result<T>) -> bool {
    outcome.as_ref().is_err_and(|error| error.reason() == RUN_STOPPED)
}

/// The outputs of a joined run, and which outputs of the signature they are.
struct Joined {
    places: Vec<usize>,
    outputs: Vec<Tensor>,
}

// === impl Pending ===

impl Queued for Pending {
    fn rows(&self) -> usize {
        self.work.rows.max(1)
    }

    fn bytes(&self) -> usize {
        self.work.inputs.iter().map(|tensor| tensor.data.len()).sum()
    }

    fn priority(&self) -> Priority {
        self.work.priority
    }

    fn deadline(&self) -> Option<Instant> {
        self.work.deadline
    }

    fn enqueued(&self) -> Instant {
        self.enqueued
    }

    fn goes_on(&self) -> bool {
        self.goes_on
    }

    fn gone(&self) -> bool {
        self.reply.is_closed()
    }

    /// Equal shapes but for the first dimension, once they are padded; equal bytes where an input does not batch, equal
    /// parameters.
    fn joins(&self, other: &Self) -> bool {
        let specs = &self.shared.signature.inputs;
        self.shared.joinable
            && self.work.parameters == other.work.parameters
            && self.work.inputs.iter().zip(&other.work.inputs).zip(specs).all(|((mine, theirs), spec)| {
                match spec.batch {
                    true => spec.joins(&mine.shape, &theirs.shape, self.shared.pads),
                    false => mine.shape == theirs.shape && mine.data == theirs.data,
                }
            })
    }
}

/// When the last caller gives up; `None` where one never does.
fn last_deadline(batch: &[Pending]) -> Option<Instant> {
    let first = batch.first()?.work.deadline?;
    batch.iter().try_fold(first, |last, pending| Some(last.max(pending.work.deadline?)))
}

/// An output that follows a padded dimension must have done so, or it could not be cut back.
fn check_lengths(shared: &Shared, places: &[usize], outputs: &[Tensor], inputs: &[Tensor]) -> Result<()> {
    for (place, output) in places.iter().zip(outputs) {
        let Some(unpad) = shared.signature.outputs[*place].unpad else { continue };
        let expected = shared.signature.followed(unpad, inputs).map(|(_, padded)| padded);
        if expected.as_ref() != output.shape.get(unpad.dim) {
            let what = format!("output '{}' does not follow the padded dimension of its input", output.name);
            return Err(Error::internal("OUTPUT_MISMATCH", what));
        }
    }
    Ok(())
}

/// The union of what the callers want, in the signature's order; usually all want the same.
fn wanted_by_any(batch: &[Pending]) -> Vec<usize> {
    let first = &batch[0].work.outputs;
    if batch.iter().all(|pending| pending.work.outputs == *first) {
        return first.clone();
    }
    let mut wanted: Vec<usize> = batch.iter().flat_map(|pending| pending.work.outputs.iter().copied()).collect();
    wanted.sort_unstable();
    wanted.dedup();
    wanted
}

/// Gives each caller its rows.
fn deliver(shared: &Shared, batch: Vec<Pending>, joined: Joined, started: Instant, rows: usize, answers: &mut Answers) {
    let took = started.elapsed();
    shared.observe(rows, took);
    let mut cutters: Vec<Cutter> = joined.outputs.into_iter().map(|output| Cutter::new(output, rows)).collect();
    for pending in batch {
        // Every cutter moves on for every caller, wanted or not: the rows lie one after another.
        let parts: Vec<Tensor> = cutters.iter_mut().map(|cutter| cutter.cut(pending.work.rows)).collect();
        let outputs = pending.work.outputs.iter().map(|place| {
            let at = joined.places.iter().position(|known| known == place).expect("a union: this is a bug");
            shared.unpadded(*place, parts[at].clone(), &pending.work.inputs)
        });
        let outputs = outputs.collect();
        let timing = timing(&pending, started, took, rows);
        shared.metrics.queue_duration.observe(timing.queue_us as f64 * 1e-6);
        answers.give(pending.reply, Ok(Outcome::Done(Done { outputs, timing })));
    }
}

fn finish(shared: &Shared, pending: &Pending, outputs: Result<Vec<Tensor>>, started: Instant) -> Result<Outcome> {
    let took = started.elapsed();
    let rows = pending.work.rows;
    if outputs.is_ok() {
        shared.observe(rows, took);
    }
    let timing = timing(pending, started, took, rows);
    shared.metrics.queue_duration.observe(timing.queue_us as f64 * 1e-6);
    outputs.map(|outputs| Outcome::Done(Done { outputs, timing }))
}

fn timing(pending: &Pending, started: Instant, took: Duration, rows: usize) -> Timing {
    Timing {
        queue_us: started.saturating_duration_since(pending.enqueued).as_micros() as u64,
        compute_us: took.as_micros() as u64,
        batch_rows: rows,
    }
}

//! The scratch of one instance: LightGBM's row predictors, one of each predict type that was asked for.
//!
//! Scores are computed row by row, which is as fast as many at once; leaves and contributions in one call for all rows.

use std::sync::Arc;

use super::{
    ffi::{Booster, PredictType, RowPredictor},
    predict_type,
};
use crate::{
    backend::{Call, Session, View, message::shortened},
    error::{Code, Error, Result},
    model::{DType, Shape, Tensor, TensorSpec, bytes_from},
};

pub struct LightgbmSession {
    booster: Arc<Booster>,
    output: TensorSpec,
    normal: Option<RowPredictor>,
    raw: Option<RowPredictor>,
}

// === impl LightgbmSession ===

impl LightgbmSession {
    pub fn new(booster: Arc<Booster>, output: TensorSpec) -> Self {
        Self { booster, output, normal: None, raw: None }
    }

    /// Scores row by row; a score for each class where there are classes.
    fn scores(&mut self, kind: PredictType, name: Arc<str>, rows: usize, values: &[f64]) -> Result<Tensor> {
        let place = match kind {
            PredictType::Normal => &mut self.normal,
            _ => &mut self.raw,
        };
        let predictor = match place {
            Some(predictor) => predictor,
            None => place.insert(RowPredictor::new(self.booster.clone(), kind).map_err(run_error)?),
        };
        let per_row = predictor.results();
        let mut results = room(rows, per_row)?;
        let row_values = values.chunks_exact(self.booster.features());
        for (row, results) in row_values.zip(results.chunks_exact_mut(per_row)) {
            predictor.predict(row, results).map_err(run_error)?;
        }
        let shape: Shape =
            if per_row == 1 { [rows].into_iter().collect() } else { [rows, per_row].into_iter().collect() };
        Ok(Tensor::from_f64(name, shape, results))
    }

    /// One number a row for each tree, or for each feature and class.
    fn table(&self, kind: PredictType, rows: usize, values: &[f64]) -> Result<(Shape, Vec<f64>)> {
        let per_row = self.booster.results(kind).map_err(run_error)?;
        let mut results = room(rows, per_row)?;
        if rows > 0 {
            self.booster.predict_table(kind, rows, values, &mut results).map_err(run_error)?;
        }
        Ok(([rows, per_row].into_iter().collect(), results))
    }

    fn leaves(&self, rows: usize, values: &[f64]) -> Result<Tensor> {
        let (shape, results) = self.table(PredictType::Leaf, rows, values)?;
        let leaves: Vec<i32> = results.into_iter().map(|leaf| leaf as i32).collect();
        Tensor::new("leaf_index".into(), DType::Int32, shape, bytes_from(leaves))
    }
}

impl Session for LightgbmSession {
    fn run(&mut self, call: &Call<'_>) -> Result<Vec<Tensor>> {
        if call.outputs.is_empty() {
            return Ok(Vec::new());
        }
        self.booster.adopt_thread();
        let input = &call.inputs[0];
        let rows = input.shape[0];
        let copy;
        let values = match bytemuck::try_cast_slice::<u8, f64>(input.data) {
            Ok(values) => values,
            Err(_) => {
                copy = aligned(input);
                &copy
            }
        };
        let tensor = match predict_type(call.parameters)? {
            PredictType::Normal => self.scores(PredictType::Normal, self.output.name.clone(), rows, values)?,
            PredictType::Raw => self.scores(PredictType::Raw, "raw_score".into(), rows, values)?,
            PredictType::Leaf => self.leaves(rows, values)?,
            PredictType::Contrib => {
                let (shape, results) = self.table(PredictType::Contrib, rows, values)?;
                Tensor::from_f64("contributions".into(), shape, results)
            }
        };
        Ok(vec![tensor])
    }
}

fn aligned(view: &View<'_>) -> Vec<f64> {
    bytemuck::pod_collect_to_vec(view.data)
}

fn room(rows: usize, per_row: usize) -> Result<Vec<f64>> {
    let short = || {
        let what = format!("{rows} rows of {per_row} numbers need more memory than there is");
        Error::new(Code::ResourceExhausted, "MODEL_ALLOCATION", what)
    };
    let count = rows.checked_mul(per_row).ok_or_else(short)?;
    let mut results = Vec::new();
    results.try_reserve_exact(count).map_err(|_| short())?;
    results.resize(count, 0.0);
    Ok(results)
}

fn run_error(message: String) -> Error {
    tracing::debug!("LightGBM refuses the batch: {message}");
    if message.contains("bad_alloc") {
        let what = "the model needs more memory for this batch than there is";
        return Error::new(Code::ResourceExhausted, "MODEL_ALLOCATION", what);
    }
    Error::internal("BACKEND_FAILED", format!("the model refused the batch: {}", shortened(&message)))
}

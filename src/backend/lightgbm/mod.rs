//! LightGBM's text models, in double precision throughout.
//!
//! `open` checks the text (`text`), for the library does not survive a damaged one, and hands exactly the checked bytes to
//! it (`ffi`). The trees are loaded once; each session has the library's row scratch of its own (`session`).
//!
//! The parameter `predict_type` says what is answered: `normal` (the signature's output), `raw` (`raw_score`), `leaf`
//! (`leaf_index`, INT32 [rows, trees]) or `contrib` (`contributions`, exact TreeSHAP: for each class the features' parts
//! and at the end the expected score). The answered tensor then carries that name and shape instead of the signature's.

mod ffi;
mod keys;
mod session;
mod text;

use std::{path::Path, sync::Arc};

use self::ffi::{Booster, PredictType};
use super::{Executable, OpenSpec, Session, declared, message::shortened};
use crate::{
    error::{Code, Error, Result},
    model::{DType, Manifest, Parameter, Parameters, Platform, Signature, SpecYaml, TensorSpec},
};

const LOAD_FAILED: &str = "LOAD_FAILED";

const PREDICT_TYPE: &str = "predict_type";
pub const PARAMETERS: [&str; 1] = [PREDICT_TYPE];

struct Lightgbm {
    booster: Arc<Booster>,
    signature: Signature,
    linear: bool,
}

/// FAILED_PRECONDITION with `LOAD_FAILED`, `UNSAFE_FORMAT`, or of the library itself; INVALID_ARGUMENT `INVALID_MANIFEST`
/// where what is declared disagrees.
pub fn open(spec: OpenSpec<'_>) -> Result<Arc<dyn Executable>> {
    let text = read(&spec.dir.join(Platform::Lightgbm.artifact()))?;
    let header = text::check(&text).map_err(|damage| failed(&damage))?;
    let signature = signature(&header, spec.manifest)?;
    let library = ffi::library(spec.native_dir)?;
    let text = ffi::c_text(text).map_err(|damage| failed(&damage))?;
    let booster = Booster::load(library, &text).map_err(|message| failed(&shortened(&message)))?;
    let per_row = booster.results(PredictType::Normal).map_err(|message| failed(&shortened(&message)))?;
    if booster.features() != header.feature_names.len() || per_row != header.classes {
        return Err(failed("the library reads other features or classes than the text says"));
    }
    Ok(Arc::new(Lightgbm { booster: Arc::new(booster), signature, linear: header.linear }))
}

fn read(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|_| failed("it cannot be read"))?;
    // Python's pickle and the archives that hold one: opening those runs what they hold.
    if bytes.starts_with(b"PK") || (bytes.starts_with(b"\x80") && bytes.get(1).is_some_and(|&protocol| protocol <= 5)) {
        let what = "model.txt is a pickle or an archive; save the model as text, with save_model of its Booster";
        return Err(Error::new(Code::FailedPrecondition, "UNSAFE_FORMAT", what));
    }
    String::from_utf8(bytes).map_err(|_| failed("it is no text"))
}

fn failed(what: &str) -> Error {
    Error::new(Code::FailedPrecondition, LOAD_FAILED, format!("model.txt: {what}"))
}

fn signature(header: &text::Header, manifest: &Manifest) -> Result<Signature> {
    let features = header.feature_names.len();
    let mut input = TensorSpec::new("features", DType::Fp64, &[-1, features as i64]);
    input.widens = true;
    input.feature_names = header.feature_names.iter().map(|name| name.as_str().into()).collect();
    input.missing = vec![None; features];
    let mut output = match header.objective.as_str() {
        "binary" => TensorSpec::new("probability", DType::Fp64, &[-1]),
        "multiclass" | "multiclassova" => TensorSpec::new("probability", DType::Fp64, &[-1, header.classes as i64]),
        _ if header.classes > 1 => TensorSpec::new("prediction", DType::Fp64, &[-1, header.classes as i64]),
        _ => TensorSpec::new("prediction", DType::Fp64, &[-1]),
    };
    if let Some(declared) = only("input", manifest.inputs.as_deref())? {
        input.name = declared.name.as_str().into();
        check_order(&header.feature_names, declared)?;
    }
    if let Some(declared) = only("output", manifest.outputs.as_deref())? {
        output.name = declared.name.as_str().into();
    }
    declared::merge(Signature { inputs: vec![input], outputs: vec![output] }, manifest)
}

/// A model has one input and one output, which people may name as they like.
fn only<'a>(side: &str, declared: Option<&'a [SpecYaml]>) -> Result<Option<&'a SpecYaml>> {
    match declared.unwrap_or_default() {
        [] => Ok(None),
        [one] => Ok(Some(one)),
        [_, second, ..] => {
            let what = format!("{side} '{}': a LightGBM model has one {side}", second.name);
            Err(Error::invalid("INVALID_MANIFEST", what).with("tensor", &second.name))
        }
    }
}

/// Declared names may rename the columns. A name of the text at another place is a mistake, which would feed one
/// feature's values to another.
fn check_order(known: &[String], declared: &SpecYaml) -> Result<()> {
    for (column, name) in declared.feature_names.iter().enumerate() {
        match known.iter().position(|known| known == name) {
            Some(place) if place != column => {
                let what = format!(
                    "input '{}': feature_names: '{name}' is column {column} here and column {place} in model.txt",
                    declared.name
                );
                return Err(Error::invalid("INVALID_MANIFEST", what).with("tensor", &declared.name));
            }
            _ => {}
        }
    }
    Ok(())
}

/// What the request asks for. INVALID_ARGUMENT names the choices.
fn predict_type(parameters: &Parameters) -> Result<PredictType> {
    let word = match parameters.get(PREDICT_TYPE) {
        None => return Ok(PredictType::Normal),
        Some(Parameter::Text(word)) => word.as_str(),
        Some(_) => "",
    };
    match word {
        "normal" => Ok(PredictType::Normal),
        "raw" => Ok(PredictType::Raw),
        "leaf" => Ok(PredictType::Leaf),
        "contrib" => Ok(PredictType::Contrib),
        _ => {
            Err(Error::invalid("INVALID_PARAMETER", "parameter 'predict_type': expected normal, raw, leaf or contrib")
                .with("parameter", PREDICT_TYPE))
        }
    }
}

// === impl Lightgbm ===

impl Executable for Lightgbm {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn library(&self) -> &str {
        self.booster.library()
    }

    fn gains_by_joining(&self) -> bool {
        false
    }

    fn check_parameters(&self, parameters: &Parameters) -> Result<()> {
        if predict_type(parameters)? == PredictType::Contrib && self.linear {
            return Err(Error::new(
                Code::FailedPrecondition,
                "UNSUPPORTED_PREDICT_TYPE",
                "parameter 'predict_type': contrib is not defined for linear trees, which this model has",
            ));
        }
        Ok(())
    }

    fn session(&self) -> Result<Box<dyn Session>> {
        let output = self.signature.outputs[0].clone();
        Ok(Box::new(session::LightgbmSession::new(self.booster.clone(), output)))
    }
}

#[cfg(test)]
mod tests;

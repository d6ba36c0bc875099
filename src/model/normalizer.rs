//! `normalizer.json`, as people and training scripts write it.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// `normalizer.json`: (x - mean) / scale by feature, in double precision.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Normalizer {
    pub method: NormalizerMethod,
    pub feature_names: Vec<String>,
    pub mean: Vec<f64>,
    pub scale: Vec<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NormalizerMethod {
    Zscore,
}

// === impl Normalizer ===

impl Normalizer {
    pub fn parse(text: &str) -> Result<Self> {
        let normalizer: Normalizer = serde_json::from_str(text)
            .map_err(|error| Error::invalid("INVALID_MANIFEST", format!("normalizer.json: {error}")))?;
        let count = normalizer.feature_names.len();
        if normalizer.mean.len() != count || normalizer.scale.len() != count {
            return Err(Error::invalid(
                "INVALID_MANIFEST",
                format!(
                    "normalizer.json: {count} feature_names, {} means and {} scales; they must be equal",
                    normalizer.mean.len(),
                    normalizer.scale.len()
                ),
            ));
        }
        if let Some(place) = normalizer.scale.iter().position(|scale| !scale.is_finite() || *scale == 0.0) {
            return Err(Error::invalid(
                "INVALID_MANIFEST",
                format!("normalizer.json: the scale of '{}' must be finite and not 0", normalizer.feature_names[place]),
            ));
        }
        Ok(normalizer)
    }
}

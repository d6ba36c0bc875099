//! ONE REQUEST. A placeholder with the signatures that the edge uses.

use crate::{
    catalog::Catalog,
    error::Result,
    model::{Answer, PredictRequest},
};

/// Answers requests.
#[derive(Clone)]
pub struct Engine {
    catalog: Catalog,
}

// === impl Engine ===

impl Engine {
    pub fn new(catalog: Catalog) -> Self {
        Self { catalog }
    }

    pub async fn predict(&self, _request: PredictRequest) -> Result<Answer> {
        unimplemented!("written next")
    }

    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }
}

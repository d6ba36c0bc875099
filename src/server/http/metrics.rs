//! `/metrics`.

use http::{StatusCode, header};

use super::{Page, text, with_header};
use crate::telemetry::Metrics;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub fn page(metrics: &Metrics) -> Page {
    with_header(text(StatusCode::OK, metrics.encode()), header::CONTENT_TYPE, OPENMETRICS)
}

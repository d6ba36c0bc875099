//! Every instrument, typed, in one place. The names are part of the interface: dashboards hang on them.
//!
//! The instruments of one version are looked up once, when its servable is made; a request touches no map.

use std::sync::{Arc, Mutex};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

/// All instruments of the process.
pub struct Metrics {
    registry: Mutex<Registry>,
    requests: Family<RequestLabels, Counter>,
    request_duration: Family<VersionLabels, Histogram, fn() -> Histogram>,
    queue_duration: Family<VersionLabels, Histogram, fn() -> Histogram>,
    compute_duration: Family<VersionLabels, Histogram, fn() -> Histogram>,
    batch_rows: Family<VersionLabels, Histogram, fn() -> Histogram>,
    queue_rows: Family<VersionLabels, Gauge>,
    loads: Family<LoadLabels, Counter>,
    refused: Family<RefusedLabels, Counter>,
    /// Open inference connections.
    pub connections: Gauge,
    /// Calls that were taken in and not answered yet.
    pub requests_in_flight: Gauge,
    /// Handlers that panicked: each one is a bug.
    pub panics: Counter,
}

/// The instruments of one version, resolved once.
#[derive(Clone)]
pub struct VersionMetrics {
    pub request_duration: Histogram,
    pub queue_duration: Histogram,
    pub compute_duration: Histogram,
    pub batch_rows: Histogram,
    pub queue_rows: Gauge,
    pub ok: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VersionLabels {
    model: String,
    version: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    model: String,
    version: String,
    code: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LoadLabels {
    model: String,
    outcome: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusedLabels {
    reason: String,
}

// === impl Metrics ===

impl Metrics {
    pub fn new() -> Arc<Self> {
        let mut registry = Registry::with_prefix("sconce");
        let metrics = Self {
            requests: Family::default(),
            request_duration: Family::new_with_constructor(seconds),
            queue_duration: Family::new_with_constructor(seconds),
            compute_duration: Family::new_with_constructor(seconds),
            batch_rows: Family::new_with_constructor(rows),
            queue_rows: Family::default(),
            loads: Family::default(),
            refused: Family::default(),
            connections: Gauge::default(),
            requests_in_flight: Gauge::default(),
            panics: Counter::default(),
            registry: Mutex::new(Registry::default()),
        };
        registry.register(
            "requests",
            "Calls of Predict by model, version and gRPC code",
            metrics.requests.clone(),
        );
        registry.register_with_unit(
            "request_duration",
            "From the decoded request to its answer",
            Unit::Seconds,
            metrics.request_duration.clone(),
        );
        registry.register_with_unit(
            "queue_duration",
            "From the decoded request to the start of its batch",
            Unit::Seconds,
            metrics.queue_duration.clone(),
        );
        registry.register_with_unit(
            "compute_duration",
            "One run of the backend",
            Unit::Seconds,
            metrics.compute_duration.clone(),
        );
        registry.register(
            "batch_rows",
            "Rows of one run of the backend",
            metrics.batch_rows.clone(),
        );
        registry.register("queue_rows", "Rows that wait", metrics.queue_rows.clone());
        registry.register("model_loads", "Loads of versions by outcome", metrics.loads.clone());
        registry.register(
            "refused",
            "Calls refused at the edge by reason",
            metrics.refused.clone(),
        );
        registry.register("connections", "Open inference connections", metrics.connections.clone());
        registry.register(
            "requests_in_flight",
            "Calls being worked on",
            metrics.requests_in_flight.clone(),
        );
        registry.register("panics", "Handlers that panicked", metrics.panics.clone());
        Arc::new(Self {
            registry: Mutex::new(registry),
            ..metrics
        })
    }

    pub fn version(&self, model: &str, version: &str) -> VersionMetrics {
        let labels = VersionLabels {
            model: model.into(),
            version: version.into(),
        };
        VersionMetrics {
            request_duration: self.request_duration.get_or_create(&labels).clone(),
            queue_duration: self.queue_duration.get_or_create(&labels).clone(),
            compute_duration: self.compute_duration.get_or_create(&labels).clone(),
            batch_rows: self.batch_rows.get_or_create(&labels).clone(),
            queue_rows: self.queue_rows.get_or_create(&labels).clone(),
            ok: self.request(model, version, "OK"),
        }
    }

    /// The counter of one ending; the endings that are not OK are looked up as they come.
    pub fn request(&self, model: &str, version: &str, code: &str) -> Counter {
        let labels = RequestLabels {
            model: model.into(),
            version: version.into(),
            code: code.into(),
        };
        self.requests.get_or_create(&labels).clone()
    }

    pub fn load_finished(&self, model: &str, outcome: &str) {
        self.loads
            .get_or_create(&LoadLabels {
                model: model.into(),
                outcome: outcome.into(),
            })
            .inc();
    }

    pub fn refused(&self, reason: &str) {
        self.refused
            .get_or_create(&RefusedLabels { reason: reason.into() })
            .inc();
    }

    /// The OpenMetrics text.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().expect("no holder panics: this is a bug");
        encode(&mut text, &registry).expect("writing to a string cannot fail: this is a bug");
        text
    }
}

/// 10 µs to 10 s, about three buckets a decade.
fn seconds() -> Histogram {
    Histogram::new([
        10e-6, 25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 0.1, 0.25, 0.5, 1.0, 2.5,
        5.0, 10.0,
    ])
}

/// Powers of two to 1,024.
fn rows() -> Histogram {
    Histogram::new((0..=10).map(|power| f64::from(1 << power)))
}

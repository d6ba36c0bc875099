//! Every instrument, typed, in one place. The names are part of the interface: dashboards hang on them.
//!
//! The instruments of one version are looked up once, when its servable is made; a request touches no map. They go with the
//! version's last user, so that a server that saw a thousand versions does not show them for ever.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, OnceLock, Weak},
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

pub use super::labels::Closed;
use super::{
    buckets::{ages, rows, seconds, shares},
    labels::{
        BatchLabels, CacheLabels, LoadLabels, OutcomeLabels, RefusedLabels, RequestLabels, VerdictLabels, VersionLabels,
    },
};
use crate::error::Code;

/// All instruments of the process.
pub struct Metrics {
    registry: Mutex<Registry>,
    requests: Family<RequestLabels, Counter>,
    request_duration: Family<VersionLabels, Histogram, fn() -> Histogram>,
    queue_duration: Family<VersionLabels, Histogram, fn() -> Histogram>,
    compute_duration: Family<VersionLabels, Histogram, fn() -> Histogram>,
    batch_rows: Family<VersionLabels, Histogram, fn() -> Histogram>,
    queue_rows: Family<VersionLabels, Gauge>,
    core_holds: Family<VersionLabels, Counter>,
    handed_over: Family<VersionLabels, Counter>,
    padding: Family<VersionLabels, Histogram, fn() -> Histogram>,
    batches: Family<BatchLabels, Counter>,
    cache_requests: Family<CacheLabels, Counter>,
    cache_entries: Family<VersionLabels, Gauge>,
    cache_bytes: Family<VersionLabels, Gauge>,
    cache_hit_age: Family<VersionLabels, Histogram, fn() -> Histogram>,
    loads: Family<LoadLabels, Counter>,
    refused: Family<RefusedLabels, Counter>,
    outcomes: Family<OutcomeLabels, Counter>,
    rollout_verdicts: Family<VerdictLabels, Counter>,
    /// The versions that have series.
    versions: Mutex<HashMap<VersionLabels, Weak<VersionMetrics>>>,
    /// Open inference connections.
    pub connections: Gauge,
    /// Calls that were taken in and not answered yet.
    pub requests_in_flight: Gauge,
    /// Handlers that panicked: each one is a bug.
    pub panics: Counter,
}

/// The instruments of one version, resolved once. All servables of the version share one; when the last is gone, its series
/// are removed.
pub struct VersionMetrics {
    metrics: Weak<Metrics>,
    labels: VersionLabels,
    pub request_duration: Histogram,
    pub queue_duration: Histogram,
    pub compute_duration: Histogram,
    pub batch_rows: Histogram,
    pub queue_rows: Gauge,
    /// Runs that kept a core from everything else.
    pub core_holds: Counter,
    pub handed_over: Counter,
    /// In the order of `Closed::ALL`.
    batches: [Counter; Closed::ALL.len()],
    pub ok: Counter,
    /// In the order of `Code::ALL`; a version that never failed with a code has no such series.
    failed: [OnceLock<Counter>; Code::ALL.len()],
    cache: OnceLock<Arc<CacheMetrics>>,
    padding: OnceLock<Histogram>,
}

/// Those of a version that keeps its answers; one that does not has no such series.
pub struct CacheMetrics {
    pub hits: Counter,
    pub misses: Counter,
    pub bypasses: Counter,
    pub entries: Gauge,
    pub bytes: Gauge,
    pub hit_age: Histogram,
}

/// A version's sums: how often, and how long in all.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    /// Calls that were answered.
    pub ok: u64,
    /// All calls, failed ones too.
    pub requests: (u64, Duration),
    pub queue: (u64, Duration),
    /// Runs of the library.
    pub compute: (u64, Duration),
    /// Rows of these runs.
    pub rows: u64,
    pub cache_hits: u64,
    pub cache_misses: u64,
}

/// How a request that was answered ends; the other endings are codes.
const OK: &str = "OK";
/// What a version's kept answers have to do with a request.
const HIT: &str = "hit";
const MISS: &str = "miss";
const BYPASS: &str = "bypass";

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
            core_holds: Family::default(),
            handed_over: Family::default(),
            padding: Family::new_with_constructor(shares),
            batches: Family::default(),
            cache_requests: Family::default(),
            cache_entries: Family::default(),
            cache_bytes: Family::default(),
            cache_hit_age: Family::new_with_constructor(ages),
            loads: Family::default(),
            refused: Family::default(),
            outcomes: Family::default(),
            rollout_verdicts: Family::default(),
            versions: Mutex::default(),
            connections: Gauge::default(),
            requests_in_flight: Gauge::default(),
            panics: Counter::default(),
            registry: Mutex::new(Registry::default()),
        };
        registry.register(
            "requests",
            "Calls of Predict and ModelInfer by model, version and gRPC code",
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
        registry.register("batch_rows", "Rows of one run of the backend", metrics.batch_rows.clone());
        registry.register("queue_rows", "Rows that wait", metrics.queue_rows.clone());
        registry.register("core_holds", "Runs that kept a core from everything else", metrics.core_holds.clone());
        registry.register("batches_handed_over", "Batches that another core ran", metrics.handed_over.clone());
        registry.register("batches", "Batches by why they were closed", metrics.batches.clone());
        registry.register_with_unit(
            "batch_padding",
            "Share of the padded inputs of one run that no caller sent",
            Unit::Ratios,
            metrics.padding.clone(),
        );
        metrics.register_cache(&mut registry);
        metrics.register_control(&mut registry);
        Arc::new(Self { registry: Mutex::new(registry), ..metrics })
    }

    /// What is counted seldom.
    fn register_control(&self, registry: &mut Registry) {
        registry.register("model_loads", "Loads of versions by outcome", self.loads.clone());
        registry.register("refused", "Calls refused at the edge by reason", self.refused.clone());
        registry.register("outcomes", "Outcomes of predictions by what became of them", self.outcomes.clone());
        let verdicts = self.rollout_verdicts.clone();
        registry.register(
            "rollout_verdicts",
            "Verdicts that moved a rollout, by the replica that wrote them",
            verdicts,
        );
        registry.register("connections", "Open inference connections", self.connections.clone());
        registry.register("requests_in_flight", "Calls being worked on", self.requests_in_flight.clone());
        registry.register("panics", "Handlers that panicked", self.panics.clone());
    }

    fn register_cache(&self, registry: &mut Registry) {
        registry.register(
            "cache_requests",
            "Calls of versions that keep their answers: answered by a kept one, computed, or not to be kept",
            self.cache_requests.clone(),
        );
        registry.register("cache_entries", "Answers that are kept", self.cache_entries.clone());
        registry.register("cache_bytes", "What kept answers take, roughly", self.cache_bytes.clone());
        registry.register_with_unit(
            "cache_hit_age",
            "How long ago an answer was computed that was given again",
            Unit::Seconds,
            self.cache_hit_age.clone(),
        );
    }

    fn cache(&self, labels: &VersionLabels) -> CacheMetrics {
        let requests = |result| self.cache_requests.get_or_create(&cache_labels(labels, result)).clone();
        CacheMetrics {
            hits: requests(HIT),
            misses: requests(MISS),
            bypasses: requests(BYPASS),
            entries: self.cache_entries.get_or_create(labels).clone(),
            bytes: self.cache_bytes.get_or_create(labels).clone(),
            hit_age: self.cache_hit_age.get_or_create(labels).clone(),
        }
    }

    /// The version's instruments: the ones there are, or new ones.
    pub fn version(self: &Arc<Self>, model: &str, version: &str) -> Arc<VersionMetrics> {
        let labels = VersionLabels { model: model.into(), version: version.into() };
        let mut versions = self.versions.lock().expect("no holder panics: this is a bug");
        if let Some(known) = versions.get(&labels).and_then(Weak::upgrade) {
            return known;
        }
        let new = Arc::new(VersionMetrics {
            metrics: Arc::downgrade(self),
            request_duration: self.request_duration.get_or_create(&labels).clone(),
            queue_duration: self.queue_duration.get_or_create(&labels).clone(),
            compute_duration: self.compute_duration.get_or_create(&labels).clone(),
            batch_rows: self.batch_rows.get_or_create(&labels).clone(),
            queue_rows: self.queue_rows.get_or_create(&labels).clone(),
            core_holds: self.core_holds.get_or_create(&labels).clone(),
            handed_over: self.handed_over.get_or_create(&labels).clone(),
            batches: Closed::ALL.map(|reason| self.batches.get_or_create(&labels.of(reason)).clone()),
            ok: self.request(model, version, OK),
            failed: [const { OnceLock::new() }; Code::ALL.len()],
            cache: OnceLock::new(),
            padding: OnceLock::new(),
            labels: labels.clone(),
        });
        versions.insert(labels, Arc::downgrade(&new));
        new
    }

    /// Removes a version's series, unless the version has come back meanwhile and goes on with them.
    fn forget(&self, labels: &VersionLabels) {
        let mut versions = self.versions.lock().expect("no holder panics: this is a bug");
        if versions.get(labels).is_some_and(|known| known.strong_count() > 0) {
            return;
        }
        versions.remove(labels);
        self.request_duration.remove(labels);
        self.queue_duration.remove(labels);
        self.compute_duration.remove(labels);
        self.batch_rows.remove(labels);
        self.queue_rows.remove(labels);
        self.core_holds.remove(labels);
        self.handed_over.remove(labels);
        self.padding.remove(labels);
        for reason in Closed::ALL {
            self.batches.remove(&labels.of(reason));
        }
        self.cache_entries.remove(labels);
        self.cache_bytes.remove(labels);
        self.cache_hit_age.remove(labels);
        for result in [HIT, MISS, BYPASS] {
            self.cache_requests.remove(&cache_labels(labels, result));
        }
        for code in Code::ALL.into_iter().map(Code::as_str).chain([OK]) {
            self.requests.remove(&RequestLabels {
                model: labels.model.clone(),
                version: labels.version.clone(),
                code: code.into(),
            });
        }
    }

    /// The counter of one ending.
    pub fn request(&self, model: &str, version: &str, code: &str) -> Counter {
        let labels = RequestLabels { model: model.into(), version: version.into(), code: code.into() };
        self.requests.get_or_create(&labels).clone()
    }

    pub fn load_finished(&self, model: &str, outcome: &str) {
        self.loads.get_or_create(&LoadLabels { model: model.into(), outcome: outcome.into() }).inc();
    }

    pub fn refused(&self, reason: &str) {
        self.refused.get_or_create(&RefusedLabels { reason: reason.into() }).inc();
    }

    /// Shows what is read of somewhere else whenever somebody looks.
    pub fn collect(&self, collector: Box<dyn Collector>) {
        self.registry.lock().expect("no holder panics: this is a bug").register_collector(collector);
    }

    /// No model where it is not known: callers could make as many names as they like.
    pub fn outcome(&self, model: &str, result: &'static str) {
        self.outcomes.get_or_create(&OutcomeLabels { model: model.into(), result }).inc();
    }

    pub fn rollout_verdict(&self, model: &str, decision: &'static str, rule: &'static str) {
        self.rollout_verdicts.get_or_create(&VerdictLabels { model: model.into(), decision, rule }).inc();
    }

    /// The OpenMetrics text.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().expect("no holder panics: this is a bug");
        encode(&mut text, &registry).expect("writing to a string cannot fail: this is a bug");
        text
    }
}

// === impl VersionMetrics ===

impl VersionMetrics {
    pub fn batch_closed(&self, closed: Closed) {
        self.batches[closed as usize].inc();
    }

    /// The instruments of its kept answers; asked for only where there are to be some.
    pub fn cache(&self) -> Arc<CacheMetrics> {
        let made =
            || Arc::new(self.metrics.upgrade().map_or_else(CacheMetrics::default, |all| all.cache(&self.labels)));
        self.cache.get_or_init(made).clone()
    }

    /// The counter of calls that ended so. Under overload most do, so it is looked up once.
    pub fn failed(&self, code: Code) -> &Counter {
        let VersionLabels { model, version } = &self.labels;
        let of_version = |all: Arc<Metrics>| all.request(model, version, code.as_str());
        let made = || self.metrics.upgrade().map_or_else(Counter::default, of_version);
        self.failed[code as usize].get_or_init(made)
    }

    /// Only of versions that pad: the others have no such series.
    pub fn padding(&self) -> &Histogram {
        let of_version = |all: Arc<Metrics>| all.padding.get_or_create(&self.labels).clone();
        self.padding.get_or_init(|| self.metrics.upgrade().map_or_else(shares, of_version))
    }

    /// What was counted and timed since the version's first servable.
    pub fn totals(&self) -> Totals {
        let seconds = |histogram: &Histogram| (histogram.count(), Duration::from_secs_f64(histogram.sum().max(0.0)));
        Totals {
            ok: self.ok.get(),
            requests: seconds(&self.request_duration),
            queue: seconds(&self.queue_duration),
            compute: seconds(&self.compute_duration),
            rows: self.batch_rows.sum() as u64,
            cache_hits: self.cache.get().map_or(0, |cache| cache.hits.get()),
            cache_misses: self.cache.get().map_or(0, |cache| cache.misses.get()),
        }
    }
}

impl Drop for VersionMetrics {
    fn drop(&mut self) {
        if let Some(metrics) = self.metrics.upgrade() {
            metrics.forget(&self.labels);
        }
    }
}

// === impl CacheMetrics ===

impl Default for CacheMetrics {
    /// Counted, but shown nowhere.
    fn default() -> Self {
        Self {
            hits: Counter::default(),
            misses: Counter::default(),
            bypasses: Counter::default(),
            entries: Gauge::default(),
            bytes: Gauge::default(),
            hit_age: ages(),
        }
    }
}

fn cache_labels(VersionLabels { model, version }: &VersionLabels, result: &'static str) -> CacheLabels {
    CacheLabels { model: model.clone(), version: version.clone(), result }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_is_counted_by_its_own_code() {
        let metrics = Metrics::new();
        let version = metrics.version("m", "1.0.0");
        for (times, code) in (1..).zip(Code::ALL) {
            version.failed(code).inc_by(times);
        }
        for (times, code) in (1..).zip(Code::ALL) {
            assert_eq!(metrics.request("m", "1.0.0", code.as_str()).get(), times, "{code:?}");
        }
    }

    #[test]
    fn the_series_of_a_version_go_with_its_last_user_and_come_back_with_the_next() {
        let metrics = Metrics::new();
        let shows = || metrics.encode().matches("model=\"m\",version=\"1.0.0\"").count();
        let first = metrics.version("m", "1.0.0");
        first.ok.inc();
        first.compute_duration.observe(0.25);
        first.batch_rows.observe(8.0);
        let totals = first.totals();
        assert_eq!((totals.ok, totals.compute, totals.rows), (1, (1, Duration::from_millis(250)), 8));
        assert_eq!((totals.cache_hits, metrics.encode().contains("sconce_cache_entries{")), (0, false));
        first.cache().hits.inc();
        first.cache().entries.set(3);
        assert_eq!(first.totals().cache_hits, 1);
        assert!(metrics.encode().contains("version=\"1.0.0\",result=\"hit\"} 1"), "{}", metrics.encode());
        metrics.request("m", "1.0.0", "INTERNAL").inc();
        // The version is loaded again with other options: the new servable comes before the old one goes.
        let second = metrics.version("m", "1.0.0");
        drop(first);
        assert!(metrics.encode().contains("code=\"OK\"} 1"), "{}", metrics.encode());
        drop(second);
        assert_eq!(shows(), 0, "{}", metrics.encode());
        let _back = metrics.version("m", "1.0.0");
        assert!(metrics.encode().contains("code=\"OK\"} 0"), "{}", metrics.encode());
    }
}

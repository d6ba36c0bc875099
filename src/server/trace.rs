//! `traceparent`: read only when a log line is written.

use http::{HeaderName, HeaderValue};
use opentelemetry::{
    propagation::{Extractor, TextMapPropagator},
    trace::TraceContextExt,
};
use opentelemetry_sdk::propagation::TraceContextPropagator;

/// The caller's trace, as it came.
#[derive(Clone, Debug, Default)]
pub struct Trace(Option<HeaderValue>);

struct OneHeader<'a>(&'a str);

// === impl Trace ===

impl Trace {
    pub fn of(headers: &http::HeaderMap) -> Self {
        Self(headers.get(&TRACEPARENT_HEADER).cloned())
    }

    /// The trace and the caller's span in hexadecimal; `None` where there is no valid header.
    pub fn ids(&self) -> Option<(String, String)> {
        let text = self.0.as_ref()?.to_str().ok()?;
        let context = TraceContextPropagator::new().extract(&OneHeader(text));
        let span = context.span().span_context().clone();
        span.is_valid().then(|| (span.trace_id().to_string(), span.span_id().to_string()))
    }
}

const TRACEPARENT: &str = "traceparent";
static TRACEPARENT_HEADER: HeaderName = HeaderName::from_static(TRACEPARENT);

// === impl OneHeader ===

impl Extractor for OneHeader<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        (key == TRACEPARENT).then_some(self.0)
    }

    fn keys(&self) -> Vec<&str> {
        vec![TRACEPARENT]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_valid_header_is_a_trace() {
        let ids = |text: &'static str| Trace(Some(HeaderValue::from_static(text))).ids();
        let (trace, span) = ids("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").expect("valid");
        assert_eq!(trace, "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(span, "00f067aa0ba902b7");
        for broken in ["", "00-0-0-01", "00-00000000000000000000000000000000-00f067aa0ba902b7-01"] {
            assert_eq!(ids(broken), None, "{broken:?} passed");
        }
        assert_eq!(Trace::default().ids(), None);
    }
}

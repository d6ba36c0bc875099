//! HTTP/1.1 for probes and scrapers: a few fixed paths, GET and HEAD, small texts.

mod health;
mod metrics;

use std::{convert::Infallible, io, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;

use super::{accept::Slot, phase::Phases};
use crate::{catalog::Catalog, runtime::Runtime, telemetry::Metrics};

/// What one HTTP port answers.
pub enum Pages {
    Health { catalog: Catalog, phases: Phases, runtime: Arc<Runtime> },
    Metrics(Arc<Metrics>),
}

/// The limits of one connection.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the first byte of a request, or the end of the one before, to the end of its headers.
    pub header_timeout: Duration,
    /// After this time the connection ends with its request.
    pub age: Duration,
}

/// A probe that asks once needs no more; a scraper comes back with a new connection when it is told to.
const READ_BUFFER_BYTES: usize = 16 << 10;

type Page = Response<Full<Bytes>>;

/// Serves one accepted socket to its end.
pub async fn serve(stream: TcpStream, pages: Arc<Pages>, limits: Limits, mut phases: Phases, slot: Slot) {
    let answer = service_fn(|request: Request<Incoming>| {
        let page = pages.answer(&request);
        async move { Ok::<_, Infallible>(page) }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.header_timeout)
            .max_buf_size(READ_BUFFER_BYTES)
            .serve_connection(TokioIo::new(stream), answer)
    );
    let done = tokio::select! {
        done = connection.as_mut() => done.map_err(io::Error::other),
        _ = phases.closing() => Ok(()),
        () = tokio::time::sleep(limits.age) => {
            connection.as_mut().graceful_shutdown();
            let ended = tokio::time::timeout(limits.header_timeout, connection).await;
            ended.map_or(Ok(()), |done| done.map_err(io::Error::other))
        }
    };
    if let Err(error) = done {
        tracing::debug!(%error, "an HTTP connection ended");
    }
    drop(slot);
}

// === impl Pages ===

impl Pages {
    fn answer(&self, request: &Request<Incoming>) -> Page {
        self.page(request.method(), request.uri().path(), request.uri().query())
    }

    /// hyper leaves the body of an answer to HEAD away by itself.
    fn page(&self, method: &Method, path: &str, query: Option<&str>) -> Page {
        let readable = method == Method::GET || method == Method::HEAD;
        let page = match (self, path) {
            (Pages::Health { runtime, .. }, "/livez") if readable => health::live(runtime.stuck()),
            (Pages::Health { catalog, phases, .. }, "/readyz") if readable => {
                let verbose = query.is_some_and(|query| query.split('&').any(|word| word.starts_with("verbose")));
                health::ready(&catalog.load(), phases.is_serving(), verbose)
            }
            (Pages::Metrics(metrics), "/metrics") if readable => metrics::page(metrics),
            (Pages::Health { .. }, "/livez" | "/readyz") | (Pages::Metrics(_), "/metrics") => {
                text(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD\n".into())
            }
            (pages, _) => text(StatusCode::NOT_FOUND, format!("not found; there is {}\n", pages.list())),
        };
        if page.status() == StatusCode::METHOD_NOT_ALLOWED {
            return with_header(page, header::ALLOW, "GET, HEAD");
        }
        page
    }

    fn list(&self) -> &'static str {
        match self {
            Pages::Health { .. } => "/livez, /readyz and /readyz?verbose",
            Pages::Metrics(_) => "/metrics",
        }
    }
}

fn text(status: StatusCode, text: String) -> Page {
    let mut page = Response::new(Full::new(text.into()));
    *page.status_mut() = status;
    with_header(page, header::CONTENT_TYPE, "text/plain; charset=utf-8")
}

fn with_header(mut page: Page, name: header::HeaderName, value: &'static str) -> Page {
    page.headers_mut().insert(name, HeaderValue::from_static(value));
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{catalog, server::phase};

    #[test]
    fn what_is_not_there_says_what_is() {
        let (_publisher, catalog) = catalog::new();
        let (_phase, phases) = phase::new();
        let layout = crate::runtime::Config { cores: 1, loop_budget: Duration::from_millis(1) };
        let runtime = Runtime::start(&layout).expect("it starts");
        let health = Pages::Health { catalog, phases, runtime };
        let status = |pages: &Pages, method, path| pages.page(&method, path, None).status();
        assert_eq!(status(&health, Method::GET, "/livez"), StatusCode::OK);
        assert_eq!(status(&health, Method::HEAD, "/readyz"), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(status(&health, Method::POST, "/readyz"), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(status(&health, Method::GET, "/metrics"), StatusCode::NOT_FOUND);
        assert_eq!(status(&health, Method::GET, "/livez/"), StatusCode::NOT_FOUND);
        let metrics = Pages::Metrics(Metrics::new());
        assert_eq!(status(&metrics, Method::GET, "/metrics"), StatusCode::OK);
        assert_eq!(status(&metrics, Method::DELETE, "/metrics"), StatusCode::METHOD_NOT_ALLOWED);
    }
}

//! The one layer in front of every gRPC service: what a call passes before anything of it is decoded, in order.

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderName, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use tonic::Status;

use super::{
    body::{RequestBody, Rules},
    budget::{Budget, Ledger},
    call::{self, Arrival, Call, CallContext, Ending, ResponseBody, Work},
    config::Config,
    connection::{ConnectionState, OpenCall},
    grpc::Services,
    method::{self, Door, Method, Service},
    phase::Phases,
    ports::Ports,
    timeout,
    trace::Trace,
};
use crate::{
    error::{Code, Error, Result},
    telemetry::Metrics,
};

/// What all connections of one door share.
pub struct Shared {
    pub door: Door,
    pub config: Arc<Config>,
    pub ports: Ports,
    pub budget: Arc<Budget>,
    pub metrics: Arc<Metrics>,
    pub phases: Phases,
}

/// The layer, one for each connection: so the counts that each call touches are not shared between cores.
#[derive(Clone)]
pub struct Edge {
    connection: Arc<ConnectionState>,
    services: Services,
}

// Made once: a name given as text is parsed at each look.
static GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");

/// When this server is full or going away, the next moment or the next replica may do.
const RETRY_AFTER: Duration = Duration::from_millis(100);

// === impl Edge ===

impl Edge {
    pub fn new(connection: Arc<ConnectionState>, services: Services) -> Self {
        Self { connection, services }
    }

    fn shared(&self) -> &Shared {
        &self.connection.shared
    }

    /// Everything that can refuse a call without reading it.
    fn admit(
        &self,
        method: &'static Method,
        request: Request<Incoming>,
        trace: Trace,
        arrived: Instant,
    ) -> Result<Call> {
        // Here a caller will be authenticated, authorised and held to a quota, by `method`.
        self.refuse_when_closing()?;
        let open = OpenCall::enter(self.connection.clone(), method.prediction.is_some())?;
        let deadline = timeout::deadline(request.headers(), arrived)?;

        let ledger = Ledger::new(self.shared().budget.clone());
        let rules = self.rules(method, request.headers(), deadline);
        let context = CallContext {
            arrival: Arrival { at: arrived, deadline },
            ledger: ledger.clone(),
            trace: trace.clone(),
            metadata: self.services.wanted_of(request.headers()),
            connection: self.connection.clone(),
        };
        let (parts, body) = request.into_parts();
        let body = RequestBody::new(body, rules, ledger, self.connection.clone());
        let work = match method.prediction {
            Some(prediction) if !rules.encoded => Work::Ours(self.services.predict(prediction, body, context)),
            _ => {
                let mut request = Request::from_parts(parts, body);
                request.extensions_mut().insert(context);
                Work::Library(self.services.dispatch(method.service, rules.encoded, request))
            }
        };
        let ending = Ending { method, trace, open, arrived };
        Ok(Call::working(work, ending))
    }

    fn find_method(&self, path: &str) -> Result<&'static Method> {
        let method = method::find(path).ok_or_else(|| {
            Error::new(
                Code::Unimplemented,
                "UNKNOWN_METHOD",
                "no such method; reflection lists the services and methods that there are",
            )
        })?;
        if method.service.is_behind(self.shared().door) {
            return Ok(method);
        }
        Err(wrong_port(method.service, &self.shared().ports))
    }

    fn refuse_when_closing(&self) -> Result<()> {
        if !self.connection.is_closing() {
            return Ok(());
        }
        Err(Error::unavailable("DRAINING", "this server is going away; connect anew", RETRY_AFTER))
    }

    fn rules(&self, method: &Method, headers: &HeaderMap, deadline: Option<Instant>) -> Rules {
        let config = &self.shared().config;
        Rules {
            shape: method.shape,
            message_bytes_max: config.max_message_bytes,
            encoded: headers.get(&GRPC_ENCODING).is_some_and(|encoding| encoding != "identity"),
            timeout: config.body_timeout,
            deadline,
        }
    }

    fn refuse(&self, error: Error, path: &str, trace: &Trace, arrived: Instant) -> Call {
        self.shared().metrics.refused(error.reason());
        let status = Status::from(error);
        call::log(path, trace, arrived, &status);
        Call::answered(status.into_http())
    }
}

impl hyper::service::Service<Request<Incoming>> for Edge {
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = Call;

    fn call(&self, request: Request<Incoming>) -> Call {
        let arrived = Instant::now();
        if !is_grpc(request.headers()) {
            return Call::answered(not_grpc());
        }
        let trace = Trace::of(request.headers());
        let method = match self.find_method(request.uri().path()) {
            Ok(method) => method,
            // A path that is no method is a caller's text of any length: it stays out of the log.
            Err(error) => return self.refuse(error, "unknown", &trace, arrived),
        };
        self.admit(method, request, trace.clone(), arrived)
            .unwrap_or_else(|error| self.refuse(error, method.path, &trace, arrived))
    }
}

/// `application/grpc`, alone or with a suffix.
fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

fn not_grpc() -> Response<tonic::body::Body> {
    let mut response = Response::new(tonic::body::Body::empty());
    *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    response
}

/// A right call at the wrong door.
fn wrong_port(service: Service, ports: &Ports) -> Error {
    let (what, option, port) = match service {
        Service::Admin => ("Admin", "--grpc-admin-port", ports.grpc_admin),
        _ => ("inference", "--grpc-port", Some(ports.grpc)),
    };
    let place = port.map_or("closed on this server".into(), |port| format!("on port {port}"));
    let error = Error::new(Code::Unimplemented, "WRONG_PORT", format!("{what} is {place}; {option} sets it"));
    match port {
        Some(port) => error.with("port", port),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admin_at_the_wrong_door_learns_the_right_one() {
        let mut ports = Ports { grpc: 7070, grpc_admin: Some(17071), ..Ports::default() };
        let error = wrong_port(Service::Admin, &ports);
        assert_eq!(error.code(), Code::Unimplemented);
        assert!(error.message().contains("port 17071"), "{error}");
        assert!(wrong_port(Service::Inference, &ports).message().contains("port 7070"));
        ports.grpc_admin = None;
        assert!(wrong_port(Service::Admin, &ports).message().contains("closed"));
    }
}

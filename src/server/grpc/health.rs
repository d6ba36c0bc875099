//! `grpc.health.v1` over the catalog: the whole server by the empty name or a service's, a model by its own.

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, async_trait};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_server::Health,
};

use crate::{
    catalog::Catalog,
    error::Error,
    server::{
        phase::Phases,
        proto::{inference::grpc_inference_service_server, sconce::v1::inference_server},
    },
};

#[derive(Clone)]
pub struct CatalogHealth {
    catalog: Catalog,
    phases: Phases,
}

// === impl CatalogHealth ===

impl CatalogHealth {
    pub fn new(catalog: Catalog, phases: Phases) -> Self {
        Self { catalog, phases }
    }

    /// `None` for a name that nothing has. From the first moment of the drain nothing serves.
    fn status(&self, service: &str) -> Option<ServingStatus> {
        let snapshot = self.catalog.load();
        let ready = match service {
            "" | inference_server::SERVICE_NAME | grpc_inference_service_server::SERVICE_NAME => snapshot.is_ready(),
            model => snapshot.models.get(model)?.is_ready(),
        };
        Some(match ready && self.phases.is_serving() {
            true => ServingStatus::Serving,
            false => ServingStatus::NotServing,
        })
    }

    /// Tells each change of one name's status until nobody listens or the server closes: a watcher must not hold up its end.
    async fn follow(mut self, service: String, tell: mpsc::Sender<Result<HealthCheckResponse, Status>>) {
        let mut changes = self.catalog.changes();
        let mut told = None;
        while !self.phases.is_closing() {
            let status = self.status(&service).unwrap_or(ServingStatus::ServiceUnknown);
            if told != Some(status) {
                if tell.send(Ok(response(status))).await.is_err() {
                    return;
                }
                told = Some(status);
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = self.phases.changed() => {}
                () = tell.closed() => return,
            }
        }
    }
}

#[async_trait]
impl Health for CatalogHealth {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let status = self.status(&request.get_ref().service);
        let status = status.ok_or_else(|| {
            Error::not_found("SERVICE_NOT_FOUND", "no such service; health knows the empty name and those of models")
        })?;
        Ok(Response::new(response(status)))
    }

    type WatchStream = ReceiverStream<Result<HealthCheckResponse, Status>>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (tell, told) = mpsc::channel(1);
        tokio::spawn(self.clone().follow(request.into_inner().service, tell));
        Ok(Response::new(ReceiverStream::new(told)))
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status as i32 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        catalog::{self, Snapshot},
        server::phase::{self, Phase},
    };

    #[test]
    fn a_drain_stops_serving_at_once() {
        let (publisher, catalog) = catalog::new();
        let (phase, phases) = phase::new();
        let health = CatalogHealth::new(catalog, phases);
        assert_eq!(health.status(""), Some(ServingStatus::NotServing), "before the first scan");
        publisher.publish(Snapshot { scanned: true, ..Snapshot::default() });
        assert_eq!(health.status(""), Some(ServingStatus::Serving));
        assert_eq!(health.status("inference.GRPCInferenceService"), Some(ServingStatus::Serving));
        assert_eq!(health.status("no-such-model"), None);
        phase.send_replace(Phase::Draining);
        assert_eq!(health.status(""), Some(ServingStatus::NotServing));
    }

    #[tokio::test]
    async fn a_watcher_hears_each_change_once() {
        let (publisher, catalog) = catalog::new();
        let (_phase, phases) = phase::new();
        let (tell, mut told) = mpsc::channel(1);
        tokio::spawn(CatalogHealth::new(catalog, phases).follow(String::new(), tell));
        let mut next = async || told.recv().await.map(|told| told.expect("a status").status());
        assert_eq!(next().await, Some(ServingStatus::NotServing));
        let scanned = || Snapshot { scanned: true, ..Snapshot::default() };
        publisher.publish(scanned());
        assert_eq!(next().await, Some(ServingStatus::Serving));
        publisher.publish(scanned());
        publisher.publish(Snapshot::default());
        assert_eq!(next().await, Some(ServingStatus::NotServing));
        drop(publisher);
        assert_eq!(next().await, None);
    }
}

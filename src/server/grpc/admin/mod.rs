//! `sconce.v1.Admin`: what is served and decided, and the decisions. `read` shows the catalog, `change` carries out what
//! operators ask for, `experiment` and `rollout` say how what is tried does, `watch` tells what happens, `server_info` is about
//! this replica.

mod change;
mod experiment;
mod plan;
mod read;
mod rollout;
mod server_info;
mod traffic;
mod watch;

use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, async_trait};

use self::change::Ask;
use super::context;
use crate::{
    catalog::Catalog,
    server::{
        control::Control,
        phase::Phases,
        proto::sconce::v1::{
            AbortRolloutRequest, ChangeResponse, DeployRequest, DescribeModelRequest, DescribeModelResponse,
            DescribeRolloutRequest, DescribeRolloutResponse, DisableModelRequest, EnableModelRequest,
            GetExperimentRequest, GetExperimentResponse, ListModelsRequest, ListModelsResponse, LoadVersionRequest,
            PauseRolloutRequest, PromoteRequest, RefreshRequest, RefreshResponse, ReloadModelRequest,
            ResumeRolloutRequest, RollbackRequest, RolloutPlan, ServerInfoRequest, ServerInfoResponse,
            SetLabelsRequest, SetLogLevelRequest, SetLogLevelResponse, SetRouteRequest, UnloadVersionRequest,
            UnpinRequest, WatchEventsRequest, WatchEventsResponse, admin_server::Admin,
        },
    },
};

pub use self::change::{Order, Who, carry_out, patience};

pub struct Console {
    pub catalog: Catalog,
    pub control: Control,
    pub phases: Phases,
}

// === impl Console ===

impl Console {
    async fn change<T: Ask>(&self, request: Request<T>) -> Result<Response<ChangeResponse>, Status> {
        let order = Order::of(request)?;
        let done = carry_out(&self.control, self.phases.clone(), order).await?;
        Ok(Response::new(done))
    }
}

#[async_trait]
impl Admin for Console {
    async fn list_models(&self, request: Request<ListModelsRequest>) -> Result<Response<ListModelsResponse>, Status> {
        Ok(Response::new(read::list(&self.catalog.load(), &request.get_ref().pattern)))
    }

    async fn describe_model(
        &self,
        request: Request<DescribeModelRequest>,
    ) -> Result<Response<DescribeModelResponse>, Status> {
        Ok(Response::new(read::describe(self.catalog.load().model(&request.get_ref().model)?)))
    }

    async fn get_experiment(
        &self,
        request: Request<GetExperimentRequest>,
    ) -> Result<Response<GetExperimentResponse>, Status> {
        let entry = self.catalog.load().model(&request.get_ref().model)?.clone();
        Ok(Response::new(experiment::of(&self.control.counts, &entry).await?))
    }

    async fn describe_rollout(
        &self,
        request: Request<DescribeRolloutRequest>,
    ) -> Result<Response<DescribeRolloutResponse>, Status> {
        let entry = self.catalog.load().model(&request.get_ref().model)?.clone();
        Ok(Response::new(rollout::of(&self.control.counts, &self.control.operator, &entry).await?))
    }

    type WatchEventsStream = ReceiverStream<Result<WatchEventsResponse, Status>>;

    async fn watch_events(
        &self,
        request: Request<WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let stream = watch::follow(&self.control.events, self.phases.clone(), &request.into_inner());
        Ok(Response::new(stream))
    }

    async fn promote(&self, request: Request<PromoteRequest>) -> Result<Response<ChangeResponse>, Status> {
        self.change(request).await
    }

    async fn rollback(&self, request: Request<RollbackRequest>) -> Result<Response<ChangeResponse>, Status> {
        self.change(request).await
    }

    async fn unpin(&self, request: Request<UnpinRequest>) -> Result<Response<ChangeResponse>, Status> {
        self.change(request).await
    }

    async fn set_labels(&self, request: Request<SetLabelsRequest>) -> Result<Response<ChangeResponse>, Status> {
        self.change(request).await
    }

    async fn set_route(&self, request: Request<SetRouteRequest>) -> Result<Response<ChangeResponse>, Status> {
        self.change(request).await
    }

    async fn deploy(&self, mut request: Request<DeployRequest>) -> Result<Response<ChangeResponse>, Status> {
        let asked = request.get_mut();
        // A model that is not known yet is looked for by whoever writes.
        if let (None, Ok(entry)) = (&asked.plan, self.catalog.load().model(&asked.model)) {
            asked.plan = Some(RolloutPlan::from(&*entry.canary));
        }
        self.change(request).await
    }

    async fn pause_rollout(&self, request: Request<PauseRolloutRequest>) -> Result<Response<ChangeResponse>, Status> {
        self.change(request).await
    }

    async fn resume_rollout(&self, request: Request<ResumeRolloutRequest>) -> Result<Response<ChangeResponse>, Status> {
        self.change(request).await
    }

    async fn abort_rollout(&self, request: Request<AbortRolloutRequest>) -> Result<Response<ChangeResponse>, Status> {
        self.change(request).await
    }

    async fn load_version(&self, request: Request<LoadVersionRequest>) -> Result<Response<ChangeResponse>, Status> {
        self.change(request).await
    }

    async fn unload_version(&self, request: Request<UnloadVersionRequest>) -> Result<Response<ChangeResponse>, Status> {
        self.change(request).await
    }

    async fn reload_model(&self, request: Request<ReloadModelRequest>) -> Result<Response<ChangeResponse>, Status> {
        self.change(request).await
    }

    async fn disable_model(&self, request: Request<DisableModelRequest>) -> Result<Response<ChangeResponse>, Status> {
        self.change(request).await
    }

    async fn enable_model(&self, request: Request<EnableModelRequest>) -> Result<Response<ChangeResponse>, Status> {
        self.change(request).await
    }

    async fn refresh(&self, _: Request<RefreshRequest>) -> Result<Response<RefreshResponse>, Status> {
        self.control.operator.look_now().await?;
        Ok(Response::new(RefreshResponse {}))
    }

    async fn set_log_level(
        &self,
        request: Request<SetLogLevelRequest>,
    ) -> Result<Response<SetLogLevelResponse>, Status> {
        let who = Who::asks(&request);
        Ok(Response::new(server_info::set_log_level(&self.control, request.into_inner(), who)?))
    }

    async fn server_info(&self, request: Request<ServerInfoRequest>) -> Result<Response<ServerInfoResponse>, Status> {
        let ports = context(&request).connection.shared.ports;
        let serving = self.phases.is_serving();
        Ok(Response::new(server_info::info(&self.control, &self.catalog.load(), ports, serving)))
    }
}

//! What the server's Admin service says of the versions, looked at again and again.

use std::time::Duration;

use anyhow::Result;
use sconce::server::proto::sconce::v1::{DescribeModelRequest, VersionState, admin_client::AdminClient};
use tokio::{sync::watch, time::sleep};
use tonic::transport::Channel;

use crate::served::Served;

/// Of the states of versions, all the time: what is compared pays for it alike.
const WATCH_POLL: Duration = Duration::from_millis(10);

/// The numbers of the versions of `model` that serve or finish what they had begun.
pub async fn watch(server: &Served, model: &str) -> Result<watch::Receiver<Vec<u64>>> {
    let address = format!("http://127.0.0.1:{}", server.ports.grpc_admin);
    let mut admin = AdminClient::connect(address).await?;
    let (sender, receiver) = watch::channel(at_work(&mut admin, model).await?);
    let model = model.to_owned();
    tokio::spawn(async move {
        // Ends with the server, or with whoever watches.
        while let (false, Ok(now)) = (sender.is_closed(), at_work(&mut admin, &model).await) {
            sender.send_replace(now);
            sleep(WATCH_POLL).await;
        }
    });
    Ok(receiver)
}

async fn at_work(admin: &mut AdminClient<Channel>, model: &str) -> Result<Vec<u64>> {
    let answer = admin.describe_model(DescribeModelRequest { model: model.into() }).await?.into_inner();
    let works = |state| matches!(state, VersionState::Ready | VersionState::Draining);
    let versions = answer.versions.iter().filter(|version| works(version.state()));
    Ok(versions.filter_map(|version| version.version.strip_prefix("1.0.")?.parse().ok()).collect())
}

//! Triton's model repository and statistics extensions: closed unless they are asked for, and then as Triton's clients
//! expect them.

use tonic::Code;

use super::{answering, route, two_versions};
use crate::{
    clients,
    harness::{Server, assert_refused, call},
    proto::oip::{
        ModelStatisticsRequest, RepositoryIndexRequest, RepositoryModelLoadRequest, RepositoryModelUnloadRequest,
        ServerMetadataRequest,
    },
};

const OPEN: &str = "--repository-api";

#[tokio::test]
async fn they_are_closed_and_name_the_option() {
    let server = Server::start(two_versions(), &[]).await;
    let mut client = server.oip().await;
    let index = client.repository_index(call(RepositoryIndexRequest::default())).await;
    let statistics = client.model_statistics(call(ModelStatisticsRequest::default())).await;
    let load = RepositoryModelLoadRequest { model_name: "tiny".into(), ..Default::default() };
    let unload = RepositoryModelUnloadRequest { model_name: "tiny".into(), ..Default::default() };
    for status in [
        assert_refused("index", index, Code::Unimplemented, "REPOSITORY_API_OFF"),
        assert_refused("statistics", statistics, Code::Unimplemented, "REPOSITORY_API_OFF"),
        assert_refused(
            "load",
            client.repository_model_load(call(load)).await,
            Code::Unimplemented,
            "REPOSITORY_API_OFF",
        ),
        assert_refused(
            "unload",
            client.repository_model_unload(call(unload)).await,
            Code::Unimplemented,
            "REPOSITORY_API_OFF",
        ),
    ] {
        assert!(status.message().contains(OPEN), "{}", status.message());
    }
    assert_eq!(route(&server).await.revision, 0);
    let metadata = client.server_metadata(call(ServerMetadataRequest {})).await.expect("metadata").into_inner();
    assert!(!metadata.extensions.contains(&"model_repository".to_owned()), "{metadata:?}");
}

#[tokio::test]
async fn unloading_holds_until_it_is_loaded_again() {
    let server = Server::start(two_versions(), &[OPEN]).await;
    let mut client = server.oip().await;
    let unload = RepositoryModelUnloadRequest { model_name: "tiny".into(), ..Default::default() };
    client.repository_model_unload(call(unload)).await.expect("it is right");
    let status = assert_refused("unloaded", answering(&server).await, Code::Unavailable, "MODEL_DISABLED");
    assert!(status.message().contains("unloaded through the repository API"), "{}", status.message());
    let load = RepositoryModelLoadRequest { model_name: "tiny".into(), ..Default::default() };
    client.repository_model_load(call(load)).await.expect("it is right");
    assert_eq!(answering(&server).await.expect("it answers"), "1.1.0");
    let unknown = RepositoryModelLoadRequest { model_name: "other".into(), ..Default::default() };
    let unknown = client.repository_model_load(call(unknown)).await;
    assert_refused("no model", unknown, Code::NotFound, "MODEL_NOT_FOUND");
    server.assert_unharmed().await;
}

#[tokio::test]
async fn tritonclient_lists_loads_unloads_and_counts() {
    let Some(python) = clients::python() else {
        return;
    };
    let server = Server::start(two_versions(), &[OPEN]).await;
    clients::passes(&python, "python/test_repository.py", &server).await;
    server.assert_unharmed().await;
}

//! Ctrl-C while a change is waited for: it ends the waiting alone, and whoever leaves hears what became of the change.

use std::time::Duration;

use tonic::transport::Channel;

use crate::{
    cli::{
        client,
        proto::{Asked, DescribeModelRequest, DescribeModelResponse, admin_client::AdminClient},
    },
    telemetry::logs::escape,
};

/// Whoever presses Ctrl-C does not wait for long.
const TIMEOUT: Duration = Duration::from_secs(1);

/// What is known of the change by now.
pub async fn said(mut client: AdminClient<Channel>, model: &str, asked: &Asked) -> String {
    let request = client::call(DescribeModelRequest { model: model.to_owned() }, TIMEOUT);
    let described = client.describe_model(request).await.ok();
    sentence(model, asked, described.as_ref().map(tonic::Response::get_ref))
}

fn sentence(model: &str, asked: &Asked, described: Option<&DescribeModelResponse>) -> String {
    let route = described.and_then(|described| described.route.as_ref());
    let mut written = route.into_iter().flat_map(|route| route.history.iter().map(move |change| (route, change)));
    let model = escape(model);
    match written.find(|(_, change)| change.request_id == asked.request_id) {
        Some((route, change)) => {
            let stands = match route.revision >= change.revision {
                true => "is taken here".to_owned(),
                false => format!("goes on by itself ({})", escape(&route.pending)),
            };
            format!(
                "interrupted: {} is written as revision {} and {stands}; `sconce describe {model}` shows it",
                escape(&change.change),
                change.revision
            )
        }
        None => format!(
            "interrupted: whether it was written is not known: ask again with --request-id {}, and it is made once",
            asked.request_id
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::proto::{Route, RouteChange};

    #[test]
    fn who_leaves_hears_whether_it_is_written() {
        let asked = Asked { request_id: "one".into(), ..Default::default() };
        let change = |revision, request_id: &str| RouteChange {
            revision,
            change: "promote 1.1.0".into(),
            request_id: request_id.into(),
            ..Default::default()
        };
        let route = |revision| Route {
            revision,
            pending: "revision 4 waits".into(),
            history: vec![change(4, "one"), change(3, "zero")],
            ..Default::default()
        };
        let said = |route| sentence("m", &asked, Some(&DescribeModelResponse { route, ..Default::default() }));
        let waits = said(Some(route(3)));
        assert!(
            waits.contains("promote 1.1.0 is written as revision 4 and goes on") && waits.contains("waits"),
            "{waits}"
        );
        assert!(said(Some(route(4))).contains("revision 4 and is taken here"));
        for unknown in [said(None), sentence("m", &asked, None)] {
            assert!(unknown.contains("--request-id one"), "{unknown}");
        }
    }
}

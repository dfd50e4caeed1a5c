//! One type that is polled over REST.

use std::rc::{Rc, Weak};
use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::service::discovery::v3::DiscoveryResponse;
use tokio::time::timeout;

use super::idle_until;
use crate::client::{Channel, ClientShared, RestSource};
use crate::{FetchFailure, TypeUrl};

/// What a poll brought.
enum Polled {
    Response(DiscoveryResponse),
    Unchanged,
    /// There was no answer, or one that is no answer.
    Failed(String),
    /// The answer could not be read.
    Rejected(String),
}

/// Runs until the channel is dropped.
pub(crate) async fn run(client: Weak<ClientShared>, channel: Weak<Channel>, source: Rc<RestSource>, path: String) {
    loop {
        let Some((type_url, body)) = request(&client, &channel, &source) else { return };
        let polled = match body {
            Ok(body) => match idle_until(&channel, poll(&source, &path, body)).await {
                Some(polled) => polled,
                None => return,
            },
            Err(e) => Polled::Failed(e),
        };
        let wait = {
            let (Some(client), Some(channel)) = (client.upgrade(), channel.upgrade()) else { return };
            took(&channel, &type_url, polled, &path);
            let millis = u64::try_from(source.refresh_delay.as_millis()).unwrap_or(u64::MAX).max(1);
            source.refresh_delay.max(Duration::from_millis(1)) + Duration::from_millis(client.random() % millis)
        };
        if idle_until(&channel, tokio::time::sleep(wait)).await.is_none() {
            return;
        }
    }
}

/// The next poll, and what it asks for. None if it is no longer needed.
fn request(
    client: &Weak<ClientShared>,
    channel: &Weak<Channel>,
    source: &RestSource,
) -> Option<(TypeUrl, Result<Vec<u8>, String>)> {
    let (client, channel) = (client.upgrade()?, channel.upgrade()?);
    let mut request = channel.mux.borrow_mut().poll_body(super::now())?;
    request.node = Some(client.node.clone());
    let type_url = TypeUrl::new(request.type_url.as_str());
    let subscribed = channel.mux.borrow().subscribed_to(&type_url);
    for consumer in subscribed.into_iter().filter_map(|id| channel.consumer(id)) {
        consumer.stats.attempt();
    }
    Some((type_url, source.codec.encode(&request)))
}

async fn poll(source: &RestSource, path: &str, body: Vec<u8>) -> Polled {
    let posted = timeout(source.request_timeout, source.transport.post(path, Bytes::from(body))).await;
    match posted {
        Err(_) => Polled::Failed("request timeout".to_owned()),
        Ok(Err(e)) => Polled::Failed(e),
        Ok(Ok(response)) => match response.status {
            200 => match source.codec.decode(&response.body) {
                Ok(response) => Polled::Response(response),
                Err(e) => Polled::Rejected(e),
            },
            304 => Polled::Unchanged,
            status => Polled::Failed(format!("HTTP status {status}")),
        },
    }
}

fn took(channel: &Channel, type_url: &TypeUrl, polled: Polled, path: &str) {
    let fail = |why: FetchFailure, error: String| {
        *channel.last_failure.borrow_mut() = error;
        let subscribed = channel.mux.borrow().subscribed_to(type_url);
        channel.fail(&subscribed, why);
    };
    channel.connected.set(!matches!(polled, Polled::Failed(_)));
    match polled {
        Polled::Response(response) => channel.deliver_fetched(response, type_url),
        Polled::Unchanged => {}
        Polled::Failed(error) => {
            tracing::warn!("REST update for {path} failed: {error}");
            fail(FetchFailure::ConnectionFailure, error);
        }
        Polled::Rejected(error) => {
            tracing::warn!("REST config for {path} rejected: {error}");
            fail(FetchFailure::UpdateRejected, error);
        }
    }
}

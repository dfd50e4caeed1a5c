//! One file of resources, read again whenever it is replaced.

use std::rc::{Rc, Weak};

use super::idle_until;
use crate::client::{Channel, PathSource};
use crate::transport::file::FileWatch;
use crate::{FetchFailure, TypeUrl};

/// Runs until the channel is dropped.
pub(crate) async fn run(channel: Weak<Channel>, source: Rc<PathSource>, type_url: TypeUrl, mut watch: FileWatch) {
    loop {
        match channel.upgrade() {
            Some(channel) => refresh(&channel, &source, &type_url),
            None => return,
        }
        if idle_until(&channel, watch.changed()).await.is_none() {
            return;
        }
    }
}

fn refresh(channel: &Channel, source: &PathSource, type_url: &TypeUrl) {
    let subscribed = channel.mux.borrow().subscribed_to(type_url);
    for consumer in subscribed.iter().filter_map(|id| channel.consumer(*id)) {
        consumer.stats.attempt();
    }
    let read = std::fs::read(&source.path).map_err(|e| e.to_string());
    let parsed = read.and_then(|content| (source.parse)(&source.path, &content));
    channel.connected.set(parsed.is_ok());
    match parsed {
        Ok(response) => channel.deliver_fetched(response, type_url),
        Err(error) => {
            tracing::warn!("Filesystem config update failure: in {}, {error}", source.path.display());
            *channel.last_failure.borrow_mut() = error;
            // The file cannot be had: a failure to those who count, a rejection to those who wait, as in Envoy.
            for consumer in subscribed.iter().filter_map(|id| channel.consumer(*id)) {
                consumer.stats.failure();
                consumer.handler.on_failure(FetchFailure::UpdateRejected);
            }
        }
    }
}

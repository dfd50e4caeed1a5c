//! The tasks behind the sources: the only places where the machines meet time, the network and the consumers.
//!
//! A task holds its channel weakly between events, so that a channel ends when its last subscription does.

pub(crate) mod grpc;
pub(crate) mod path;
pub(crate) mod rest;

use std::future::Future;
use std::pin::pin;
use std::rc::Weak;
use std::time::SystemTime;

use envoy_types::pb::envoy::service::discovery::v3::DiscoveryResponse;
use tokio::time::Instant;

use crate::client::Channel;
use crate::mux::{Response, WatchId};
use crate::{FetchFailure, Now, TypeUrl, Verdict};

/// One moment on both clocks.
pub(crate) fn now() -> Now {
    Now { instant: Instant::now().into_std(), wall: SystemTime::now() }
}

impl Channel {
    /// Hands a response to whom it concerns, and the verdicts to the mux.
    pub(crate) fn deliver(&self, response: Response) {
        let Some(mut delivery) = self.mux.borrow_mut().on_response(now(), response) else {
            tracing::debug!("xDS: a response of a type that no one asks for is ignored");
            return;
        };
        let type_url = delivery.type_url.clone();
        if let Some(error) = &delivery.malformed {
            tracing::warn!("xDS config for {type_url} rejected: {error}");
            let subscribed = self.mux.borrow().subscribed_to(&type_url);
            self.fail(&subscribed, FetchFailure::UpdateRejected);
        }
        let updates = std::mem::take(&mut delivery.updates);
        let mut verdicts: Vec<(WatchId, Verdict)> = Vec::with_capacity(updates.len());
        for (id, update) in updates {
            // The handler of another may have ended this one.
            let Some(consumer) = self.consumer(id) else { continue };
            let began = Instant::now();
            let verdict = consumer.handler.on_update(update);
            if self.is_stream() {
                consumer.stats.attempt();
            }
            match verdict.error() {
                None => consumer.stats.success(&delivery.version, SystemTime::now(), began.elapsed()),
                Some(error) => {
                    tracing::warn!("xDS config for {type_url} rejected: {error}");
                    consumer.stats.rejected();
                }
            }
            verdicts.push((id, verdict));
        }
        self.mux.borrow_mut().finish(now(), delivery, &verdicts);
    }

    /// Tells subscriptions that something went wrong.
    pub(crate) fn fail(&self, ids: &[WatchId], why: FetchFailure) {
        for consumer in ids.iter().filter_map(|id| self.consumer(*id)) {
            if self.is_stream() {
                consumer.stats.attempt();
            }
            match why {
                FetchFailure::ConnectionFailure => consumer.stats.failure(),
                FetchFailure::FetchTimedOut => consumer.stats.init_fetch_timeout(),
                FetchFailure::UpdateRejected => consumer.stats.rejected(),
            }
            consumer.handler.on_failure(why);
        }
    }

    /// Does what has come due: time-outs of first fetches, expired resources.
    pub(crate) fn expire(&self) {
        let expired = self.mux.borrow_mut().on_deadline(now());
        self.fail(&expired.timed_out, FetchFailure::FetchTimedOut);
        for (id, update) in expired.removals {
            let Some(consumer) = self.consumer(id) else { continue };
            let version = update.version.clone();
            let began = Instant::now();
            consumer.stats.attempt();
            if consumer.handler.on_update(update).is_accepted() {
                consumer.stats.success(&version, SystemTime::now(), began.elapsed());
            } else {
                consumer.stats.rejected();
            }
        }
    }

    /// Hands over a response of a poll or a file, whatever type it says it is of.
    pub(crate) fn deliver_fetched(&self, mut response: DiscoveryResponse, type_url: &TypeUrl) {
        type_url.as_str().clone_into(&mut response.type_url);
        self.deliver(Response::Sotw(response));
    }

    /// Waits until something comes due, or for ever.
    pub(crate) fn due(&self) -> impl Future<Output = ()> + 'static {
        let at = self.mux.borrow().next_deadline();
        async move {
            match at {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        }
    }
}

/// Waits for `until`, and does what comes due meanwhile. None if the channel is gone.
pub(crate) async fn idle_until<T>(channel: &Weak<Channel>, until: impl Future<Output = T>) -> Option<T> {
    let mut until = pin!(until);
    loop {
        let (due, changed) = {
            let channel = channel.upgrade()?;
            (channel.due(), channel.changed.clone())
        };
        tokio::select! {
            done = &mut until => return Some(done),
            () = due => channel.upgrade()?.expire(),
            () = changed.notified() => {}
        }
    }
}

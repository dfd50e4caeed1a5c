//! EDS: each cluster that takes its endpoints from outside has a subscription of its own, which touches only its hosts.

use super::stats::EndpointsCounted;
use super::{Inner, text};
use nuncio_config::cluster::{ClusterConfig, Discovery};
use nuncio_config::paths::FieldPath;
use nuncio_upstream::Cluster;
use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::AbortHandle;
use xds_client::names::is_same;
use xds_client::{
    FetchFailure, Interest, Resource, ResourceHandler, Source, Subscription, SubscriptionOptions, TypeUrl, Update,
    Verdict,
};

/// The subscription of one cluster object.
pub(super) struct Watch {
    cluster: u64,
    _subscription: Subscription,
}

/// Where the endpoints of a cluster come from.
pub(super) struct From {
    initial_fetch_timeout: Duration,
    source: Source,
}

/// Where the endpoints of a cluster with this configuration are to come from; None when it has its own.
///
/// # Errors
/// There is no such source: the cluster cannot be used.
pub(super) fn source(inner: &Inner, config: &ClusterConfig) -> Result<Option<From>, String> {
    let Discovery::Eds { source, service_name } = &config.discovery else { return Ok(None) };
    let path = FieldPath::parse(&config.path).field("eds_cluster_config").field("eds_config");
    let place = inner.server.context.sources.place(service_name, source, path).map_err(|errors| text(&errors))?;
    let name = config.alt_stat_name.as_deref().unwrap_or(&config.name);
    let prefix = format!("cluster.{}.", name.replace(':', "_"));
    let (source, initial_fetch_timeout) = inner.sources.place(&place, &prefix, inner.origin_of_clusters())?;
    inner.client.check(&source, &TypeUrl::CLUSTER_LOAD_ASSIGNMENT).map_err(|error| error.to_string())?;
    Ok(Some(From { initial_fetch_timeout, source }))
}

/// Subscribes to the endpoints of `cluster`, which come from `from`.
pub(super) fn watch(inner: &Rc<Inner>, cluster: &Arc<Cluster>, from: &From) -> Result<(), String> {
    let Discovery::Eds { service_name, .. } = &cluster.config.discovery else { return Ok(()) };
    let handler = Rc::new(EndpointsHandler {
        inner: Rc::downgrade(inner),
        cluster: Arc::downgrade(cluster),
        service_name: service_name.to_string(),
        stale: RefCell::default(),
    });
    let options = SubscriptionOptions {
        type_url: TypeUrl::CLUSTER_LOAD_ASSIGNMENT,
        interest: Interest::Names(vec![service_name.to_string()]),
        initial_fetch_timeout: from.initial_fetch_timeout,
    };
    let stats = Rc::new(EndpointsCounted::new(&inner.server.context.registry, cluster));
    let subscription =
        inner.client.subscribe(&from.source, options, handler, stats).map_err(|error| error.to_string())?;
    let watch = Watch { cluster: cluster.id, _subscription: subscription };
    inner.endpoints.borrow_mut().entry(cluster.name().clone()).or_default().push(watch);
    Ok(())
}

/// Ends the subscriptions of a cluster that is gone.
pub(super) fn forget(inner: &Inner, name: &str) {
    let gone = inner.endpoints.borrow_mut().remove(name);
    // Dropped when the map is free again: an end may call back.
    drop(gone);
}

/// Ends the subscriptions of clusters in whose place `cluster` is.
fn forget_older(inner: &Inner, cluster: &Cluster) {
    let mut gone = Vec::new();
    if let Some(watches) = inner.endpoints.borrow_mut().get_mut(cluster.name()) {
        let newest = watches.iter().position(|watch| watch.cluster == cluster.id).unwrap_or(0);
        gone.extend(watches.drain(..newest));
    }
    drop(gone);
}

struct EndpointsHandler {
    inner: Weak<Inner>,
    cluster: std::sync::Weak<Cluster>,
    service_name: String,
    /// Gives the endpoints up when no update comes in time (`endpoint_stale_after`).
    stale: RefCell<Option<AbortHandle>>,
}

impl EndpointsHandler {
    fn apply(&self, inner: &Rc<Inner>, cluster: &Arc<Cluster>, update: &Update) -> Result<(), String> {
        if update.added.is_empty() {
            // A server that removes them is not believed, as in Envoy.
            if update.expired && update.removed.iter().any(|name| is_same(name, &self.service_name)) {
                cluster.set_endpoints(Arc::default());
            }
            cluster.stats.update_empty().inc();
            cluster.give_up_waiting();
            return Ok(());
        }
        // A file may hold the endpoints of others, too.
        let own = |resource: &&Resource| is_same(&resource.name, &self.service_name);
        let Some(resource) = update.added.iter().find(own) else {
            let other = update.added.first().map_or("", |resource| resource.name.as_str());
            return Err(format!("Unexpected EDS cluster (expecting {}): {other}", self.service_name));
        };
        let assignment = Arc::new(inner.decoder.endpoints(resource)?);
        let stale_after = assignment.stale_after;
        cluster.set_endpoints(assignment);
        inner.server.resources.set_endpoints_version(cluster.name(), &resource.version);
        let timer = stale_after.map(|time| {
            let cluster = self.cluster.clone();
            let task = tokio::task::spawn_local(async move {
                tokio::time::sleep(time).await;
                if let Some(cluster) = cluster.upgrade() {
                    cluster.stats.assignment_stale().inc();
                    cluster.set_endpoints(Arc::default());
                }
            });
            task.abort_handle()
        });
        if let Some(old) = self.stale.replace(timer) {
            old.abort();
        }
        Ok(())
    }
}

impl Drop for EndpointsHandler {
    fn drop(&mut self) {
        if let Some(timer) = self.stale.take() {
            timer.abort();
        }
    }
}

impl ResourceHandler for EndpointsHandler {
    fn on_update(&self, update: Update) -> Verdict {
        let (Some(inner), Some(cluster)) = (self.inner.upgrade(), self.cluster.upgrade()) else {
            return Verdict::accept();
        };
        let done = self.apply(&inner, &cluster, &update);
        cluster.give_up_waiting();
        // What ends here asks for endpoints again, and stands behind the answer to the clusters.
        inner.clusters_may_be_done();
        forget_older(&inner, &cluster);
        match done {
            Ok(()) => Verdict::accept(),
            Err(message) => {
                tracing::warn!(target: "config", "endpoints of '{}' are refused: {message}", self.service_name);
                Verdict::reject(message)
            }
        }
    }

    fn on_failure(&self, why: FetchFailure) {
        let (Some(inner), Some(cluster)) = (self.inner.upgrade(), self.cluster.upgrade()) else { return };
        if why == FetchFailure::ConnectionFailure || !cluster.waits_for_endpoints() {
            return;
        }
        if why == FetchFailure::FetchTimedOut
            && let Some(resource) = inner.client.cached(&TypeUrl::CLUSTER_LOAD_ASSIGNMENT, &self.service_name)
            && let Ok(assignment) = inner.decoder.endpoints(&resource)
        {
            cluster.stats.assignment_use_cached().inc();
            cluster.set_endpoints(Arc::new(assignment));
        }
        cluster.give_up_waiting();
        inner.clusters_may_be_done();
        forget_older(&inner, &cluster);
    }
}

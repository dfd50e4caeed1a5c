//! EDS: each cluster that takes its endpoints from outside has a subscription of its own, which touches only its hosts.

use super::locality_endpoints::Collections;
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
    let (weak, weak_cluster) = (Rc::downgrade(inner), Arc::downgrade(cluster));
    let handler = Rc::new(EndpointsHandler {
        collections: Collections::new(&weak, &weak_cluster, came),
        inner: weak,
        cluster: weak_cluster,
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

/// A cluster may have waited for what has come.
fn came(inner: &Rc<Inner>, cluster: &Arc<Cluster>) {
    // What ends here asks for endpoints again, and stands behind the answer to the clusters.
    inner.clusters_may_be_done();
    forget_older(inner, cluster);
}

struct EndpointsHandler {
    inner: Weak<Inner>,
    cluster: std::sync::Weak<Cluster>,
    service_name: String,
    /// Endpoints that the assignment does not name one by one.
    collections: Rc<Collections>,
    /// Gives the endpoints up when no update comes in time (`endpoint_stale_after`).
    stale: RefCell<Option<AbortHandle>>,
}

impl EndpointsHandler {
    /// False where the hosts of a new assignment have to come still.
    fn apply(&self, inner: &Rc<Inner>, cluster: &Arc<Cluster>, update: &Update) -> Result<bool, String> {
        if update.added.is_empty() {
            // A server that removes them is not believed, as in Envoy.
            if update.expired && update.removed.iter().any(|name| is_same(name, &self.service_name)) {
                self.collections.assign(inner, cluster, Arc::default())?;
            }
            cluster.stats.update_empty().inc();
            return Ok(true);
        }
        // A file may hold the endpoints of others, too.
        let own = |resource: &&Resource| is_same(&resource.name, &self.service_name);
        let Some(resource) = update.added.iter().find(own) else {
            let other = update.added.first().map_or("", |resource| resource.name.as_str());
            return Err(format!("Unexpected EDS cluster (expecting {}): {other}", self.service_name));
        };
        let assignment = Arc::new(inner.decoder.endpoints(resource)?);
        let stale_after = assignment.stale_after;
        let complete = self.collections.assign(inner, cluster, assignment)?;
        if stale_after.is_some() {
            cluster.stats.assignment_timeout_received().inc();
        }
        inner.server.resources.set_endpoints_version(cluster.name(), &resource.version);
        let timer = stale_after.map(|time| {
            let (collections, inner) = (Rc::downgrade(&self.collections), self.inner.clone());
            let cluster = self.cluster.clone();
            let task = tokio::task::spawn_local(async move {
                tokio::time::sleep(time).await;
                let (Some(collections), Some(inner)) = (collections.upgrade(), inner.upgrade()) else { return };
                if let Some(cluster) = cluster.upgrade() {
                    cluster.stats.assignment_stale().inc();
                    // Nothing has to be asked for.
                    let _ = collections.assign(&inner, &cluster, Arc::default());
                }
            });
            task.abort_handle()
        });
        if let Some(old) = self.stale.replace(timer) {
            old.abort();
        }
        Ok(complete)
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
        if done != Ok(false) {
            cluster.give_up_waiting();
            came(&inner, &cluster);
        }
        match done {
            Ok(_) => Verdict::accept(),
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
            if self.collections.assign(&inner, &cluster, Arc::new(assignment)) == Ok(false) {
                return;
            }
        }
        cluster.give_up_waiting();
        came(&inner, &cluster);
    }
}

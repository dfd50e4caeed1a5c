//! CDS: clusters come, change and go.

use super::decode::{fingerprint, text};
use super::stats::Reloads;
use super::{Inner, endpoints, on_demand_clusters};
use crate::init::InitTarget;
use crate::listeners::Origin;
use crate::resources::Failure;
use nuncio_upstream::cluster_manager::AddOutcome;
use std::collections::HashSet;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::SystemTime;
use xds_client::{FetchFailure, Resource, ResourceError, ResourceHandler, TypeUrl, Update, Verdict};

/// Takes clusters.
pub(super) struct ClusterHandler {
    pub(super) inner: Weak<Inner>,
    pub(super) target: Arc<InitTarget>,
    pub(super) reloads: Reloads,
}

impl ResourceHandler for ClusterHandler {
    fn on_update(&self, update: Update) -> Verdict {
        let Some(inner) = self.inner.upgrade() else { return Verdict::accept() };
        // The endpoints of all new clusters are asked for at once.
        let pause = inner.client.pause(&[TypeUrl::CLUSTER_LOAD_ASSIGNMENT]);
        let mut errors = Vec::new();
        let mut seen = HashSet::new();
        for resource in &update.added {
            let done = match seen.insert(resource.name.as_str()) {
                true => take(&inner, resource),
                false => Err(refused(&inner, resource, format!("duplicate cluster {} found", resource.name))),
            };
            match done {
                Ok(()) => on_demand_clusters::came(&inner, &resource.name),
                Err(error) => errors.push(error),
            }
        }
        update.removed.iter().for_each(|name| remove(&inner, name));
        inner.server.resources.clusters().version = update.version.clone();
        // The secrets of new clusters are asked for before this is acknowledged.
        inner.take_wants();
        tracing::info!(
            target: "upstream",
            "cds: add {} cluster(s), remove {} cluster(s)",
            update.added.len(),
            update.removed.len()
        );
        drop(pause);
        self.reloads.count();
        inner.hold_clusters_until_warm();
        self.target.set_ready();
        inner.clusters_may_be_done();
        verdict("Error adding/updating cluster(s) ", ", ", "", errors)
    }

    fn on_failure(&self, why: FetchFailure) {
        if why != FetchFailure::ConnectionFailure {
            self.target.set_ready();
            if let Some(inner) = self.inner.upgrade() {
                inner.clusters_may_be_done();
            }
        }
    }
}

/// Adds a cluster, or puts it in the place of the one with its name.
///
/// # Errors
/// Why it is refused; what was there stays.
pub(super) fn take(inner: &Rc<Inner>, resource: &Resource) -> Result<(), ResourceError> {
    apply(inner, resource).map_err(|message| refused(inner, resource, message))
}

fn refused(inner: &Inner, resource: &Resource, message: String) -> ResourceError {
    let failure = Failure::new(&message, &resource.version, &resource.body);
    inner.server.resources.clusters().fail(&resource.name, failure);
    ResourceError { name: resource.name.clone(), message }
}

/// Removes a cluster, if there is one of this name that is not of the bootstrap.
pub(super) fn remove(inner: &Inner, name: &str) {
    if inner.server.context.clusters.remove(name) {
        tracing::debug!(target: "upstream", "cluster '{name}' was removed");
    }
    inner.server.resources.clusters().remove(name);
    endpoints::forget(inner, name);
    inner.server.resources.forget_endpoints(name);
}

fn apply(inner: &Rc<Inner>, resource: &Resource) -> Result<(), String> {
    let hash = fingerprint(&resource.body);
    let clusters = &inner.server.context.clusters;
    // What came before in the same words needs no reading.
    if let Some(present) = clusters.newest(&resource.name)
        && present.fingerprint == hash
        && present.config.added_via_api
    {
        inner.server.resources.clusters().clear_failure(&resource.name);
        return Ok(());
    }
    let config = inner.decoder.cluster(resource)?;
    // Before anything changes: what cannot be filled must not take the place of what serves.
    let unusable = inner.server.context.sources.cluster(&config);
    if !unusable.is_empty() {
        return Err(text(&unusable));
    }
    let from = endpoints::source(inner, &config)?;
    let (outcome, cluster) = clusters.add_or_update(Arc::new(config), hash).map_err(|error| error.to_string())?;
    if outcome == AddOutcome::Unchanged {
        return Ok(());
    }
    let origin = Origin { version: resource.version.clone(), bytes: resource.body.clone(), updated: SystemTime::now() };
    let active = clusters.cluster(cluster.name()).map(|active| active.id);
    inner.server.resources.clusters().set(cluster.name(), cluster.id, origin, |id| Some(id) == active);
    if let Some(from) = from
        && let Err(message) = endpoints::watch(inner, &cluster, &from)
    {
        // It must not wait for ever.
        cluster.give_up_waiting();
        return Err(message);
    }
    Ok(())
}

/// Envoy's text of a NACK: all bad resources with their reasons, which `separator` and `end` keep apart.
pub(super) fn verdict(prefix: &str, separator: &str, end: &str, errors: Vec<ResourceError>) -> Verdict {
    if errors.is_empty() {
        return Verdict::accept();
    }
    let all: Vec<_> = errors.iter().map(|error| format!("{}: {}", error.name, error.message)).collect();
    let message = format!("{prefix}{}{end}", all.join(separator));
    tracing::warn!(target: "config", "{}", message.trim_end());
    Verdict::reject_resources(message, errors)
}

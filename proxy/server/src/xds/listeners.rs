//! LDS: listeners come, change and go.

use super::Inner;
use super::clusters::verdict;
use super::decode::{fingerprint, text};
use crate::init::InitTarget;
use crate::listeners::Origin;
use crate::resources::Failure;
use std::collections::HashSet;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::SystemTime;
use xds_client::{FetchFailure, Resource, ResourceError, ResourceHandler, TypeUrl, Update, Verdict};

/// Takes listeners.
pub(super) struct ListenerHandler {
    pub(super) inner: Weak<Inner>,
    pub(super) target: Arc<InitTarget>,
}

impl ResourceHandler for ListenerHandler {
    fn on_update(&self, update: Update) -> Verdict {
        let Some(inner) = self.inner.upgrade() else { return Verdict::accept() };
        let server = &inner.server;
        // The routes of all new listeners are asked for at once.
        let pause = inner.client.pause(&[TypeUrl::ROUTE_CONFIGURATION]);
        // First, so that a new listener may have the address of one that goes.
        for name in &update.removed {
            if server.listeners.remove(server, name) {
                tracing::info!(target: "config", "lds: remove listener '{name}'");
            }
            server.resources.listeners().remove(name);
        }
        let mut errors = Vec::new();
        let mut seen = HashSet::new();
        for resource in &update.added {
            let done = match seen.insert(resource.name.as_str()) {
                true => apply(&inner, resource),
                false => Err(format!("duplicate listener {} found", resource.name)),
            };
            if let Err(message) = done {
                server
                    .resources
                    .listeners()
                    .fail(&resource.name, Failure::new(&message, &resource.version, &resource.body));
                errors.push(ResourceError { name: resource.name.clone(), message });
            } else {
                server.resources.listeners().clear_failure(&resource.name);
            }
        }
        server.resources.listeners().version = update.version.clone();
        inner.take_wants();
        drop(pause);
        self.target.set_ready();
        // Of listeners each has a line.
        verdict("Error adding/updating listener(s) ", "\n", "\n", errors)
    }

    fn on_failure(&self, why: FetchFailure) {
        if why != FetchFailure::ConnectionFailure {
            self.target.set_ready();
        }
    }
}

fn apply(inner: &Rc<Inner>, resource: &Resource) -> Result<(), String> {
    let hash = fingerprint(&resource.body);
    let server = &inner.server;
    if server.listeners.is_same(&resource.name, hash) {
        return Ok(());
    }
    let mut config = inner.decoder.listener(resource)?;
    if config.name.is_empty() {
        config.name = resource.name.as_str().into();
    }
    let origin = Origin { version: resource.version.clone(), bytes: resource.body.clone(), updated: SystemTime::now() };
    server.listeners.add_or_update(server, config, hash, origin).map_err(|errors| text(&errors))?;
    tracing::info!(target: "config", "lds: add/update listener '{}'", resource.name);
    Ok(())
}

//! RDS: a route table under a name has one subscription, whoever uses it.

use super::stats::{Counted, Reloads};
use super::{Inner, Unusable, text, virtual_hosts};
use crate::listeners::Origin;
use crate::named_routes::NamedRoutes;
use crate::resources::Failure;
use nuncio_base::stats::Counter;
use nuncio_config::paths::FieldPath;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::SystemTime;
use xds_client::names::is_same;
use xds_client::{FetchFailure, Interest, ResourceHandler, SubscriptionOptions, TypeUrl, Update, Verdict};

/// Subscribes to the routes that fill a table.
pub(super) fn watch(inner: &Rc<Inner>, routes: &Arc<NamedRoutes>) {
    if let Err(error) = try_watch(inner, routes) {
        tracing::error!(target: "config", "routes '{}' cannot be fetched: {error}", routes.name);
        let name = routes.name.to_string();
        inner.unusable.borrow_mut().push(Unusable { type_url: TypeUrl::ROUTE_CONFIGURATION, name, error });
        routes.target.set_ready();
    }
}

fn try_watch(inner: &Rc<Inner>, routes: &Arc<NamedRoutes>) -> Result<(), String> {
    let path = FieldPath::root().field("rds").field("config_source");
    let place = inner.server.context.sources.place(&routes.name, &routes.source, path);
    let place = place.map_err(|errors| text(&errors))?;
    let prefix = prefix(routes);
    let (from, initial_fetch_timeout) = inner.sources.place(&place, &prefix, inner.origin_of_listeners())?;
    let registry = &inner.server.context.registry;
    let handler = Rc::new(RouteHandler {
        inner: Rc::downgrade(inner),
        routes: Arc::downgrade(routes),
        name: routes.name.to_string(),
        reloads: reloads(inner, routes),
        empty: registry.counter(&format!("{prefix}update_empty")),
    });
    let options = SubscriptionOptions {
        type_url: TypeUrl::ROUTE_CONFIGURATION,
        interest: Interest::Names(vec![routes.name.to_string()]),
        initial_fetch_timeout,
    };
    let stats = Rc::new(Counted::new(registry, &prefix));
    let subscription = inner.client.subscribe(&from, options, handler, stats).map_err(|error| error.to_string())?;
    inner.routes.borrow_mut().insert(routes.id, subscription);
    Ok(())
}

fn prefix(routes: &NamedRoutes) -> String {
    format!("{}rds.{}.", routes.stat_prefix, routes.name.replace(':', "_"))
}

/// Counts each change of the table.
pub(super) fn reloads(inner: &Inner, routes: &NamedRoutes) -> Reloads {
    Reloads::new(&inner.server.context.registry, &prefix(routes))
}

/// Nobody uses the table any more.
pub(super) fn forget(inner: &Inner, id: u64) {
    let gone = inner.routes.borrow_mut().remove(&id);
    drop(gone);
    virtual_hosts::forget(inner, id);
    let waiting = inner.waiting.borrow_mut().remove(&id);
    drop(waiting);
    inner.server.resources.forget_routes(id);
}

/// The table can be used, or is waited for no longer. Requests that wait for it go on.
pub(super) fn ready(inner: &Rc<Inner>, routes: &Arc<NamedRoutes>) {
    routes.target.set_ready();
    if !routes.is_loaded() {
        return;
    }
    let waiting = inner.waiting.borrow_mut().remove(&routes.id).unwrap_or_default();
    for (host, answer) in waiting {
        virtual_hosts::fetch(inner, routes, &host, answer);
    }
}

struct RouteHandler {
    inner: Weak<Inner>,
    routes: std::sync::Weak<NamedRoutes>,
    name: String,
    reloads: Reloads,
    empty: Counter,
}

impl RouteHandler {
    /// Whether the table is ready now.
    fn apply(&self, inner: &Rc<Inner>, routes: &Arc<NamedRoutes>, update: &Update) -> Result<bool, String> {
        if update.added.is_empty() {
            // Routes are not removed by leaving them out, only by their time to live.
            if update.expired && update.removed.iter().any(|name| is_same(name, &self.name)) {
                routes.clear();
            }
            self.empty.inc();
            return Ok(true);
        }
        let Some(resource) = update.added.iter().find(|resource| is_same(&resource.name, &self.name)) else {
            let other = update.added.first().map_or("", |resource| resource.name.as_str());
            return Err(format!("Unexpected RDS configuration (expecting {}): {other}", self.name));
        };
        let resources = &inner.server.resources;
        if resources.routes_are(routes.id, &resource.body) {
            return Ok(true);
        }
        let applied = inner
            .decoder
            .routes(resource)
            .and_then(|config| virtual_hosts::apply(inner, routes, config, &resource.body));
        match applied {
            Ok(more) => {
                if !more {
                    self.reloads.count();
                }
                let origin = Origin {
                    version: resource.version.clone(),
                    bytes: resource.body.clone(),
                    updated: SystemTime::now(),
                };
                resources.set_routes(routes.id, &self.name, origin);
                Ok(!more)
            }
            Err(message) => {
                resources.fail_routes(routes.id, &self.name, Failure::new(&message, &resource.version, &resource.body));
                Err(message)
            }
        }
    }
}

impl ResourceHandler for RouteHandler {
    fn on_update(&self, update: Update) -> Verdict {
        let (Some(inner), Some(routes)) = (self.inner.upgrade(), self.routes.upgrade()) else {
            return Verdict::accept();
        };
        let done = self.apply(&inner, &routes, &update);
        if done != Ok(false) {
            ready(&inner, &routes);
        }
        match done {
            Ok(_) => Verdict::accept(),
            Err(message) => {
                tracing::warn!(target: "config", "routes '{}' are refused: {message}", self.name);
                Verdict::reject(message)
            }
        }
    }

    fn on_failure(&self, why: FetchFailure) {
        if why != FetchFailure::ConnectionFailure
            && let Some(routes) = self.routes.upgrade()
        {
            routes.target.set_ready();
        }
    }
}

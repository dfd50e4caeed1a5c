//! RDS: a route table under a name has one subscription, whoever uses it.

use super::stats::{Counted, Reloads};
use super::{Inner, Unusable, text};
use crate::listeners::Origin;
use crate::named_routes::NamedRoutes;
use crate::resources::Failure;
use nuncio_base::stats::Counter;
use nuncio_config::config_source::ConfigSource;
use nuncio_config::paths::FieldPath;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::SystemTime;
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
    let source = ConfigSource::parse(&routes.source, path).map_err(|errors| text(&errors))?;
    let prefix = format!("{}rds.{}.", routes.stat_prefix, routes.name.replace(':', "_"));
    let registry = &inner.server.context.registry;
    let handler = Rc::new(RouteHandler {
        inner: Rc::downgrade(inner),
        routes: Arc::downgrade(routes),
        name: routes.name.to_string(),
        reloads: Reloads::new(registry, &prefix),
        empty: registry.counter(&format!("{prefix}update_empty")),
    });
    let options = SubscriptionOptions {
        type_url: TypeUrl::ROUTE_CONFIGURATION,
        interest: Interest::Names(vec![routes.name.to_string()]),
        initial_fetch_timeout: source.initial_fetch_timeout,
    };
    let stats = Rc::new(Counted::new(registry, &prefix));
    let from = inner.sources.resolve(&source, &prefix, inner.origin_of_listeners())?;
    let subscription = inner.client.subscribe(&from, options, handler, stats).map_err(|error| error.to_string())?;
    inner.routes.borrow_mut().insert(routes.id, subscription);
    Ok(())
}

/// Nobody uses the table any more.
pub(super) fn forget(inner: &Inner, id: u64) {
    let gone = inner.routes.borrow_mut().remove(&id);
    drop(gone);
    inner.server.resources.forget_routes(id);
}

struct RouteHandler {
    inner: Weak<Inner>,
    routes: std::sync::Weak<NamedRoutes>,
    name: String,
    reloads: Reloads,
    empty: Counter,
}

impl RouteHandler {
    fn apply(&self, inner: &Inner, routes: &NamedRoutes, update: &Update) -> Result<(), String> {
        if update.added.is_empty() {
            // Routes are not removed by leaving them out, only by their time to live.
            if update.version.is_empty() && update.removed.contains(&self.name) {
                routes.clear();
            }
            self.empty.inc();
            return Ok(());
        }
        let Some(resource) = update.added.iter().find(|resource| resource.name == self.name) else {
            let other = update.added.first().map_or("", |resource| resource.name.as_str());
            return Err(format!("Unexpected RDS configuration (expecting {}): {other}", self.name));
        };
        let resources = &inner.server.resources;
        if resources.routes_are(routes.id, &resource.body) {
            return Ok(());
        }
        let applied = inner
            .decoder
            .routes(resource)
            .and_then(|config| routes.set(Arc::new(config)).map_err(|errors| text(&errors)));
        match applied {
            Ok(()) => {
                self.reloads.count();
                let origin = Origin {
                    version: resource.version.clone(),
                    bytes: resource.body.clone(),
                    updated: SystemTime::now(),
                };
                resources.set_routes(routes.id, &self.name, origin);
                Ok(())
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
        routes.target.set_ready();
        match done {
            Ok(()) => Verdict::accept(),
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

//! SRDS: scopes of routes, each of which leads to a route table under a name.
//!
//! An update is taken whole or not at all: two scopes may change their keys for each other's. Routes of scopes are
//! fetched as any others; those of a scope on demand once a request has asked for it.

use super::stats::{Counted, ScopesFamily};
use super::{Inner, Unusable, text, virtual_hosts};
use crate::init::InitTarget;
use crate::scoped_routes::{DiscoveredScopes, HeldScope};
use nuncio_config::paths::FieldPath;
use std::collections::HashSet;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::SystemTime;
use tokio::sync::oneshot;
use xds_client::{FetchFailure, ResourceHandler, SubscriptionOptions, TypeUrl, Update, Verdict};

/// Subscribes to scopes.
pub(super) fn watch(inner: &Rc<Inner>, scopes: &Arc<DiscoveredScopes>) {
    if let Err(error) = try_watch(inner, scopes) {
        tracing::error!(target: "config", "scoped routes '{}' cannot be fetched: {error}", scopes.name);
        let name = scopes.name.to_string();
        inner.unusable.borrow_mut().push(Unusable { type_url: TypeUrl::SCOPED_ROUTE_CONFIGURATION, name, error });
        scopes.target.set_ready();
    }
}

fn try_watch(inner: &Rc<Inner>, scopes: &Arc<DiscoveredScopes>) -> Result<(), String> {
    let root = inner.server.context.sources.scopes(&scopes.source, &scopes.locator, FieldPath::root());
    let root = root.map_err(|errors| text(&errors))?;
    let prefix = format!("{}scoped_rds.{}.", scopes.stat_prefix, scopes.name.replace(':', "_"));
    let registry = &inner.server.context.registry;
    let family = Rc::new(ScopesFamily::new(registry, &prefix));
    let handler =
        Rc::new(ScopeHandler { inner: Rc::downgrade(inner), scopes: Arc::downgrade(scopes), stats: family.clone() });
    let options = SubscriptionOptions {
        type_url: TypeUrl::SCOPED_ROUTE_CONFIGURATION,
        interest: inner.interest_in(&root),
        initial_fetch_timeout: root.source.initial_fetch_timeout,
    };
    let stats = Rc::new(Counted::new(registry, &prefix));
    let from = inner.sources.resolve(&root.source, &prefix, inner.origin_of_listeners())?;
    let subscription = inner.client.subscribe(&from, options, handler, stats).map_err(|error| error.to_string())?;
    inner.scopes.borrow_mut().insert(scopes.id, (subscription, family));
    Ok(())
}

/// Nobody uses the scopes any more.
pub(super) fn forget(inner: &Inner, id: u64) {
    let gone = inner.scopes.borrow_mut().remove(&id);
    drop(gone);
}

/// A request waits for the routes of a scope, and for the virtual host of `host` in them.
pub(super) fn fetch(
    inner: &Rc<Inner>,
    scopes: &Arc<DiscoveredScopes>,
    scope: &str,
    host: Box<str>,
    answer: oneshot::Sender<()>,
) {
    // The scope may have gone since: the request goes on without.
    let Some(held) = scopes.scope(scope) else { return };
    let routes = match held.routes {
        Some(routes) => routes,
        None => {
            let name = &held.config.routes_name;
            let tables = &inner.server.context.routes;
            let Some(routes) = tables.get(name, &scopes.rds_source, &scopes.stat_prefix) else { return };
            scopes.set(HeldScope { config: held.config, routes: Some(routes.clone()) });
            if let Some((_, stats)) = inner.scopes.borrow().get(&scopes.id) {
                count(stats, scopes);
            }
            inner.take_wants();
            routes
        }
    };
    if routes.is_loaded() {
        virtual_hosts::fetch(inner, &routes, &host, answer);
    } else {
        let mut waiting = inner.waiting.borrow_mut();
        let list = waiting.entry(routes.id).or_default();
        // Who has left does not wait any more. The cost is shared by those who came since.
        if list.len() >= 64 && list.len() == list.capacity() {
            list.retain(|(_, answer)| !answer.is_closed());
            list.reserve(list.len());
        }
        list.push((host, answer));
    }
}

struct ScopeHandler {
    inner: Weak<Inner>,
    scopes: std::sync::Weak<DiscoveredScopes>,
    stats: Rc<ScopesFamily>,
}

impl ScopeHandler {
    fn apply(&self, inner: &Rc<Inner>, scopes: &Arc<DiscoveredScopes>, update: &Update) -> Result<(), String> {
        let mut added = Vec::with_capacity(update.added.len());
        for resource in &update.added {
            added.push(Arc::new(inner.decoder.scope(resource)?));
        }
        if let Some(conflict) = scopes.conflict(&added, &update.removed) {
            return Err(format!("Error adding/updating scoped route(s): {conflict}"));
        }
        let named: HashSet<&str> = added.iter().map(|scope| &*scope.name).collect();
        // What goes is kept until the rest is there: other scopes may lead to the same routes.
        let mut gone = Vec::new();
        for name in update.removed.iter().filter(|name| !named.contains(name.as_str())) {
            gone.extend(scopes.remove(name));
        }
        let mut changed = !gone.is_empty();
        let mut result = Ok(());
        for config in added {
            if config.routes_name.is_empty() {
                result = Err("route_configuration_name is empty.".to_owned());
                break;
            }
            let old = scopes.scope(&config.name);
            if old.as_ref().is_some_and(|old| old.config.message == config.message) {
                continue;
            }
            changed = true;
            let tables = &inner.server.context.routes;
            let routes = if config.on_demand {
                // Routes that a request has asked for before stay.
                let same = |old: &HeldScope| old.config.on_demand && old.config.routes_name == config.routes_name;
                old.as_ref().filter(|old| same(old)).and_then(|old| old.routes.clone())
            } else {
                tables.get(&config.routes_name, &scopes.rds_source, &scopes.stat_prefix)
            };
            gone.extend(old);
            scopes.set(HeldScope { config, routes });
        }
        // New routes are asked for and old ones let go of within this call: in one request.
        inner.take_wants();
        drop(gone);
        inner.take_wants();
        result?;
        if changed {
            scopes.set_version(&update.version);
        }
        count(&self.stats, scopes);
        self.stats.config_reload().inc();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        self.stats.config_reload_time_ms().set(now.map_or(0, |since| since.as_millis() as u64));
        Ok(())
    }
}

fn count(stats: &ScopesFamily, scopes: &DiscoveredScopes) {
    let (all, on_demand, active) = scopes.counts();
    stats.all_scopes().set(all as u64);
    stats.on_demand_scopes().set(on_demand as u64);
    stats.active_scopes().set(active as u64);
}

impl ResourceHandler for ScopeHandler {
    fn on_update(&self, update: Update) -> Verdict {
        let (Some(inner), Some(scopes)) = (self.inner.upgrade(), self.scopes.upgrade()) else {
            return Verdict::accept();
        };
        let done = self.apply(&inner, &scopes, &update);
        if !scopes.target.is_ready() {
            ready_with_routes(&scopes);
        }
        match done {
            Ok(()) => Verdict::accept(),
            Err(message) => {
                tracing::warn!(target: "config", "scoped routes '{}' are refused: {message}", scopes.name);
                Verdict::reject(message)
            }
        }
    }

    fn on_failure(&self, why: FetchFailure) {
        if why != FetchFailure::ConnectionFailure
            && let Some(scopes) = self.scopes.upgrade()
        {
            scopes.target.set_ready();
        }
    }
}

/// The first scopes are there once their routes are.
fn ready_with_routes(scopes: &Arc<DiscoveredScopes>) {
    let routes = scopes.names().into_iter().filter_map(|name| scopes.scope(&name)?.routes);
    let waited: Vec<Arc<InitTarget>> =
        routes.map(|routes| routes.target.clone()).filter(|target| !target.is_ready()).collect();
    if waited.is_empty() {
        scopes.target.set_ready();
        return;
    }
    let target = scopes.target.clone();
    tokio::task::spawn_local(async move {
        for one in waited {
            one.ready().await;
        }
        target.set_ready();
    });
}

//! VHDS: virtual hosts that come beside those of a route configuration, all at once or when a request asks for its host.
//!
//! A virtual host is compiled on its own and joins the table of its routes; the others are not compiled again. Delta
//! only, as the service is.

use super::routes;
use super::stats::{Counted, Reloads, VirtualHostsFamily};
use super::{Inner, text};
use crate::named_routes::{NamedRoutes, VirtualHosts};
use bytes::Bytes;
use envoy_types::pb::envoy::config::route::v3 as pb;
use nuncio_config::config_source::{Api, ConfigSource, SourceKind};
use nuncio_config::paths::FieldPath;
use nuncio_config::route::RouteConfiguration;
use prost::Message as _;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use tokio::sync::oneshot;
use xds_client::{
    FetchFailure, Interest, ResourceHandler, Subscription, SubscriptionOptions, TypeUrl, Update, Verdict,
};

/// The virtual hosts of one table.
pub(super) struct Hosts {
    /// Serialized `ConfigSource`.
    source: Bytes,
    subscription: Subscription,
    state: Rc<RefCell<State>>,
}

#[derive(Default)]
struct State {
    /// The route configuration without its virtual hosts.
    shell: pb::RouteConfiguration,
    /// What came, by the name in the message.
    hosts: BTreeMap<Arc<str>, Host>,
    /// Requests that wait, with the name of the resource that they wait for.
    waiting: Vec<(String, oneshot::Sender<()>)>,
}

struct Host {
    /// The name of the resource.
    resource: Box<str>,
    message: pb::VirtualHost,
}

/// Takes a route configuration that has come into use, with the virtual hosts that belong to it. True if more are waited
/// for, so that the table is not ready yet.
pub(super) fn apply(
    inner: &Rc<Inner>,
    routes: &Arc<NamedRoutes>,
    config: RouteConfiguration,
    body: &Bytes,
) -> Result<bool, String> {
    let Some(source) = config.vhds.clone() else {
        routes.set(Arc::new(config), None).map_err(|errors| text(&errors))?;
        let gone = inner.virtual_hosts.borrow_mut().remove(&routes.id);
        drop(gone);
        return Ok(false);
    };
    let parsed = checked_source(inner, &source)?;
    let mut shell = pb::RouteConfiguration::decode(body.clone()).map_err(|error| error.to_string())?;
    shell.virtual_hosts.clear();
    shell.vhds = None;
    let known = inner.virtual_hosts.borrow().get(&routes.id).map(|hosts| (hosts.source == source, hosts.state.clone()));
    let state = match &known {
        Some((_, state)) => state.clone(),
        None => Rc::default(),
    };
    // Virtual hosts that came before are read again under other rules.
    let hosts = if known.is_some() && state.borrow().shell != shell {
        Some(compiled_again(inner, routes, &shell, &state.borrow())?)
    } else {
        None
    };
    routes.set(Arc::new(config), hosts).map_err(|errors| text(&errors))?;
    state.borrow_mut().shell = shell;
    if known.is_some_and(|(same, _)| same) {
        return Ok(false);
    }
    let prefix = format!("{}rds.vhds.{}.", routes.stat_prefix, routes.name.replace(':', "_"));
    let registry = &inner.server.context.registry;
    let handler = Rc::new(HostHandler {
        inner: Rc::downgrade(inner),
        routes: Arc::downgrade(routes),
        state: state.clone(),
        stats: VirtualHostsFamily::new(registry, &prefix),
        reloads: routes::reloads(inner, routes),
    });
    let options = SubscriptionOptions {
        type_url: TypeUrl::VIRTUAL_HOST,
        interest: Interest::Namespace(routes.name.to_string()),
        initial_fetch_timeout: parsed.initial_fetch_timeout,
    };
    let from = inner.sources.resolve(&parsed, &prefix, inner.origin_of_listeners())?;
    let stats = Rc::new(Counted::new(registry, &prefix));
    let subscription = inner.client.subscribe(&from, options, handler, stats).map_err(|error| error.to_string())?;
    let old = inner.virtual_hosts.borrow_mut().insert(routes.id, Hosts { source, subscription, state });
    drop(old);
    Ok(true)
}

fn checked_source(inner: &Inner, source: &Bytes) -> Result<ConfigSource, String> {
    let path = FieldPath::root().field("vhds").field("config_source");
    let parsed = ConfigSource::parse(source, path).map_err(|errors| text(&errors))?;
    match &parsed.kind {
        SourceKind::Ads => {
            let ads = inner.server.bootstrap.config.dynamic.ads.as_ref();
            let Some(ads) = ads else {
                return Err("vhds: ADS config source specified but no ADS configured in bootstrap.".to_owned());
            };
            if !matches!(ads.api, Api::Grpc { delta: true, .. }) {
                return Err("vhds: ADS must use DELTA_GRPC api_type when used as VHDS config source.".to_owned());
            }
        }
        SourceKind::Api(api) if matches!(api.api, Api::Grpc { delta: true, .. }) => {}
        _ => {
            return Err(
                "vhds: only 'DELTA_GRPC' or 'ADS' (which uses Delta xDS) is supported as a config source.".to_owned()
            );
        }
    }
    Ok(parsed)
}

fn compiled_again(
    inner: &Inner,
    routes: &NamedRoutes,
    shell: &pb::RouteConfiguration,
    state: &State,
) -> Result<VirtualHosts, String> {
    let compile = |(name, host): (&Arc<str>, &Host)| {
        let alone = inner.decoder.virtual_host(shell, host.message.clone())?;
        let table = routes.compile_host(alone).map_err(|errors| text(&errors))?;
        Ok((name.clone(), table))
    };
    state.hosts.iter().map(compile).collect()
}

/// Nobody uses the table any more.
pub(super) fn forget(inner: &Inner, id: u64) {
    let gone = inner.virtual_hosts.borrow_mut().remove(&id);
    drop(gone);
}

/// A request waits for the virtual host of `host`. Answered at once where none can come.
pub(super) fn fetch(inner: &Rc<Inner>, routes: &NamedRoutes, host: &str, answer: oneshot::Sender<()>) {
    let all = inner.virtual_hosts.borrow();
    let Some(hosts) = all.get(&routes.id) else { return };
    if routes.table.load().has_virtual_host(host.as_bytes()) {
        return;
    }
    let name = format!("{}/{host}", routes.name);
    let mut state = hosts.state.borrow_mut();
    // Who has left does not wait any more.
    state.waiting.retain(|(_, answer)| !answer.is_closed());
    state.waiting.push((name.clone(), answer));
    drop(state);
    hosts.subscription.request_on_demand(&[name]);
}

struct HostHandler {
    inner: Weak<Inner>,
    routes: std::sync::Weak<NamedRoutes>,
    state: Rc<RefCell<State>>,
    stats: VirtualHostsFamily,
    reloads: Reloads,
}

impl HostHandler {
    fn apply(&self, inner: &Inner, routes: &NamedRoutes, update: &Update) -> Result<(), String> {
        let mut state = self.state.borrow_mut();
        let mut compiled = VirtualHosts::new();
        let mut messages = Vec::new();
        for resource in update.added.iter().filter(|resource| !resource.unresolved) {
            let message: pb::VirtualHost = inner.decoder.message(resource)?;
            let name: Arc<str> = message.name.as_str().into();
            let alone = inner.decoder.virtual_host(&state.shell, message.clone())?;
            compiled.insert(name.clone(), routes.compile_host(alone).map_err(|errors| text(&errors))?);
            messages.push((name, Host { resource: resource.name.as_str().into(), message }));
        }
        let leaving: HashSet<&str> = update.removed.iter().map(String::as_str).collect();
        let leaves =
            |(name, host): &(&Arc<str>, &Host)| leaving.contains(&***name) || leaving.contains(&*host.resource);
        let gone: Vec<Arc<str>> = if leaving.is_empty() {
            Vec::new()
        } else {
            state.hosts.iter().filter(leaves).map(|(name, _)| name.clone()).collect()
        };
        if update.added.is_empty() && gone.is_empty() {
            return Ok(());
        }
        routes.change_hosts(compiled, &gone).map_err(|errors| text(&errors))?;
        gone.iter().for_each(|name| drop(state.hosts.remove(name)));
        state.hosts.extend(messages);
        let mut shown = Vec::new();
        for host in state.hosts.values() {
            // A field of a message that is not there: what follows another is added to its list.
            let field = pb::RouteConfiguration { virtual_hosts: vec![host.message.clone()], ..Default::default() };
            shown.extend(field.encode_to_vec());
        }
        inner.server.resources.set_virtual_hosts(routes.id, &update.version, shown.into());
        self.stats.config_reload().inc();
        // The routes are others too.
        self.reloads.count();
        Ok(())
    }

    fn answer(&self, update: &Update) {
        let names = update.added.iter().flat_map(|resource| std::iter::once(&resource.name).chain(&resource.aliases));
        let told: HashSet<&String> = names.chain(&update.removed).collect();
        // Dropped, a sender is an answer too.
        self.state.borrow_mut().waiting.retain(|(name, answer)| !told.contains(name) && !answer.is_closed());
    }
}

impl ResourceHandler for HostHandler {
    fn on_update(&self, update: Update) -> Verdict {
        let (Some(inner), Some(routes)) = (self.inner.upgrade(), self.routes.upgrade()) else {
            return Verdict::accept();
        };
        let done = self.apply(&inner, &routes, &update);
        routes::ready(&inner, &routes);
        match done {
            Ok(()) => {
                self.answer(&update);
                Verdict::accept()
            }
            Err(message) => {
                tracing::warn!(target: "config", "virtual hosts of '{}' are refused: {message}", routes.name);
                Verdict::reject(message)
            }
        }
    }

    fn on_failure(&self, why: FetchFailure) {
        if why != FetchFailure::ConnectionFailure
            && let (Some(inner), Some(routes)) = (self.inner.upgrade(), self.routes.upgrade())
        {
            routes::ready(&inner, &routes);
        }
    }
}

//! VHDS: virtual hosts that come beside those of a route configuration, all at once or when a request asks for its host.
//!
//! A virtual host is compiled on its own and joins the table of its routes; the others are not touched. Names that requests
//! bring are bounded ([`Names`]). Delta only, as the service is.

use super::names::{Limits, Names};
use super::routes;
use super::stats::{Counted, Reloads, VirtualHostsFamily};
use super::{Inner, text};
use crate::named_routes::{NamedRoutes, VirtualHosts};
use bytes::{Bytes, BytesMut};
use envoy_types::pb::envoy::config::route::v3 as pb;
use nuncio_config::config_source::{Api, ConfigSource, SourceKind};
use nuncio_config::paths::FieldPath;
use nuncio_config::route::RouteConfiguration;
use prost::Message as _;
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
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

struct State {
    /// The route configuration without its virtual hosts.
    shell: pb::RouteConfiguration,
    /// What came, by the name in the message.
    hosts: HashMap<Arc<str>, Host>,
    /// Names in messages by names of resources.
    by_resource: HashMap<Box<str>, Arc<str>>,
    /// What requests have asked for.
    asked: Names,
}

struct Host {
    /// The name of the resource.
    resource: Box<str>,
    /// The message.
    body: Bytes,
}

impl Default for State {
    fn default() -> Self {
        State {
            shell: pb::RouteConfiguration::default(),
            hosts: HashMap::new(),
            by_resource: HashMap::new(),
            asked: Names::new(Limits::default()),
        }
    }
}

impl State {
    /// The virtual hosts that these names, of resources or of messages, stand for.
    fn named<'a>(&self, names: impl Iterator<Item = &'a str>) -> Vec<Arc<str>> {
        let one =
            |name: &str| self.by_resource.get(name).or_else(|| self.hosts.get_key_value(name).map(|(name, _)| name));
        let found: HashSet<Arc<str>> = names.filter_map(|name| one(name).cloned()).collect();
        found.into_iter().collect()
    }

    fn remove(&mut self, name: &Arc<str>) {
        if let Some(old) = self.hosts.remove(name) {
            self.by_resource.remove(&old.resource);
        }
    }
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
        forget(inner, routes.id);
        inner.server.resources.forget_virtual_hosts(routes.id);
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
    let prefix = format!("{}rds.vhds.{}.", routes.stat_prefix, routes.name.replace(':', "_"));
    // Before anything changes: routes whose virtual hosts cannot be fetched are refused.
    let from = match known {
        Some((true, _)) => None,
        _ => Some(inner.source(&parsed, &TypeUrl::VIRTUAL_HOST, &prefix, inner.origin_of_listeners())?),
    };
    routes.set(Arc::new(config), hosts).map_err(|errors| text(&errors))?;
    state.borrow_mut().shell = shell;
    let Some(from) = from else { return Ok(false) };
    // Another server is asked: who waits for the old one's answer goes on without.
    state.borrow_mut().asked = Names::new(Limits::default());
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
        let message = pb::VirtualHost::decode(host.body.clone()).map_err(|error| error.to_string())?;
        let alone = inner.decoder.virtual_host(shell, message)?;
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
    if hosts.state.borrow().asked.is_settled(&name) {
        // The server has none, or one for other hosts. As Envoy does, it is asked once: it says so if that changes.
        return;
    }
    let asked = hosts.state.borrow_mut().asked.ask(&name, answer);
    let Some(asked) = asked else {
        tracing::debug!(target: "config", "routes '{}': no more virtual hosts are asked for", routes.name);
        return;
    };
    // To ask again without a name is counted, as Envoy does.
    let names = if asked.is_new { vec![name] } else { Vec::new() };
    hosts.subscription.request_on_demand(&names);
    give_up(inner, hosts, routes, &asked.given_up);
}

/// Names of resources are not asked for any more, and what they brought is let go of.
fn give_up(inner: &Inner, hosts: &Hosts, routes: &NamedRoutes, names: &[Arc<str>]) {
    if names.is_empty() {
        return;
    }
    hosts.subscription.release_on_demand(&names.iter().map(|name| name.to_string()).collect::<Vec<_>>());
    let mut state = hosts.state.borrow_mut();
    let gone: Vec<Arc<str>> = names.iter().filter_map(|name| state.by_resource.get(&**name).cloned()).collect();
    // Nothing is added: there is nothing that could be wrong.
    if !gone.is_empty() && routes.change_hosts(VirtualHosts::new(), &gone).is_ok() {
        gone.iter().for_each(|name| state.remove(name));
        inner.server.resources.forget_some_virtual_hosts(routes.id, &gone);
    }
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
            let body = message.encode_to_vec().into();
            messages.push((name, Host { resource: resource.name.as_str().into(), body }));
        }
        let gone = state.named(update.removed.iter().map(String::as_str));
        if update.added.is_empty() && gone.is_empty() {
            return Ok(());
        }
        routes.change_hosts(compiled, &gone).map_err(|errors| text(&errors))?;
        gone.iter().for_each(|name| state.remove(name));
        let shown = messages.iter().map(|(name, host)| (name.clone(), in_routes(&host.body)));
        inner.server.resources.change_virtual_hosts(routes.id, &update.version, shown, &gone);
        for (name, host) in messages {
            state.remove(&name);
            state.by_resource.insert(host.resource.clone(), name.clone());
            state.hosts.insert(name, host);
        }
        self.stats.config_reload().inc();
        // The routes are others too.
        self.reloads.count();
        Ok(())
    }

    /// Requests that waited for what an update speaks of go on. Returns what is asked for no longer.
    fn answer(&self, update: &Update) -> Vec<Arc<str>> {
        let asked = &mut self.state.borrow_mut().asked;
        let mut given_up = Vec::new();
        for resource in &update.added {
            for name in std::iter::once(&resource.name).chain(&resource.aliases) {
                given_up.extend(asked.answered(name, !resource.unresolved));
            }
        }
        for name in &update.removed {
            given_up.extend(asked.answered(name, false));
        }
        given_up
    }
}

/// A virtual host as the only field of a route configuration. What follows another such message is added to its list.
fn in_routes(host: &Bytes) -> Bytes {
    // `virtual_hosts`.
    const FIELD: u32 = 2;
    let mut out = BytesMut::with_capacity(host.len() + 8);
    prost::encoding::encode_key(FIELD, prost::encoding::WireType::LengthDelimited, &mut out);
    prost::encoding::encode_varint(host.len() as u64, &mut out);
    out.extend_from_slice(host);
    out.freeze()
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
                let given_up = self.answer(&update);
                if let Some(hosts) = inner.virtual_hosts.borrow().get(&routes.id) {
                    give_up(&inner, hosts, &routes, &given_up);
                }
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

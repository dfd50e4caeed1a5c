//! Hosts of a dynamic forward proxy's cluster: one per name of its DNS cache, found by the name that the request brings.

use super::{CachedHost, DnsCache, normalized};
use crate::cluster::Cluster;
use crate::discovery::{empty_groups, make_host};
use crate::host::{Health, Host};
use crate::host_set::{HostGroup, PrioritySet};
use crate::lb::LbContext;
use nuncio_config::address::EndpointAddress;
use nuncio_config::cluster::Endpoint;
use nuncio_http::headers::names;
use rustc_hash::FxHashMap;
use std::sync::Arc;

/// Filter state that names the host, before the request.
pub const DYNAMIC_HOST: &str = "envoy.upstream.dynamic_host";
/// Filter state with the port of a host that names none.
pub const DYNAMIC_PORT: &str = "envoy.upstream.dynamic_port";

/// Published hosts by name and port.
#[derive(Debug)]
pub(crate) struct NamedTable {
    hosts: FxHashMap<Arc<str>, (Arc<Host>, Arc<CachedHost>)>,
    default_port: u16,
}

impl NamedTable {
    /// `default_port` is for requests that name none.
    pub(crate) fn new(cache: &DnsCache, set: &PrioritySet, default_port: u16) -> Self {
        let entry = |host: &Arc<Host>| Some((host.hostname.clone(), (host.clone(), cache.host(&host.hostname)?)));
        NamedTable { hosts: set.hosts().filter_map(entry).collect(), default_port }
    }

    /// The host that the request asks for; None where it was not looked up, or fails its health checks.
    pub(crate) fn choose(&self, context: &LbContext<'_>) -> Option<Arc<Host>> {
        let (authority, port) = authority_of(context, self.default_port)?;
        let name = normalized(authority, port);
        let (host, cached) = self.hosts.get(name.as_str())?;
        if host.health() == Health::Unhealthy {
            return None;
        }
        cached.touch();
        Some(host.clone())
    }
}

/// The host that a request or connection names, and the port if the name has none.
pub(crate) fn authority_of<'a>(context: &LbContext<'a>, default_port: u16) -> Option<(&'a str, u16)> {
    let state = |name: &str| {
        let state = context.info?.filter_state.as_ref()?;
        state.iter().find(|(key, _)| **key == *name).map(|(_, text)| &**text)
    };
    let authority = match (state(DYNAMIC_HOST), context.headers) {
        (Some(host), _) => host,
        (None, Some(headers)) => headers.str(&names::AUTHORITY)?,
        (None, None) => context.info?.connection.requested_server_name.as_deref()?,
    };
    let port = state(DYNAMIC_PORT).and_then(|port| port.parse().ok()).filter(|port| *port > 0);
    Some((authority, port.unwrap_or(default_port)))
}

/// Gives `cluster` a host for each of `names` that has addresses. Hosts that stay keep their connections.
pub(super) fn set_hosts<'a>(cluster: &Arc<Cluster>, names: impl Iterator<Item = &'a Arc<CachedHost>>) {
    let old = cluster.state();
    let known: FxHashMap<&str, &Arc<Host>> = old.priority_set.hosts().map(|host| (&*host.hostname, host)).collect();
    let mut hosts = Vec::new();
    let mut new = false;
    // The address of the endpoint itself is not looked at.
    let endpoint = Endpoint::new(EndpointAddress::Name { host: String::new(), port: 0 });
    for cached in names {
        let Some(addresses) = cached.addresses() else { continue };
        let host = match known.get(&*cached.name) {
            Some(host) => Arc::clone(host),
            None => {
                new = true;
                make_host(&cluster.config, &endpoint, addresses[0].clone(), cached.name.clone(), &Arc::default(), 0)
            }
        };
        host.set_connect_addresses(&addresses);
        hosts.push(host);
    }
    if !new && hosts.len() == known.len() {
        return;
    }
    let mut groups = empty_groups(cluster);
    groups.groups.push(HostGroup { priority: 0, locality: Arc::default(), weight: None, hosts });
    cluster.update(groups.priority_set());
}

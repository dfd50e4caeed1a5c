//! The route table: one match function from a request to its route.
//!
//! Built once per route configuration, immutable, shared by all workers. Matching is pure and does not allocate in the common
//! case; a [`Tracer`] is told each decision and costs nothing when there is none.

use std::ops::Range;
use std::sync::Arc;

use nuncio_config::route::{RequireTls, RouteConfiguration};
use nuncio_net::tls::info::TlsInfo;
use smallvec::SmallVec;

use super::active::ActiveRoute;
use super::entry::{BuildContext, FilterConfigs, Global, LevelRules, Mismatch, RouteEntry, VirtualHostEntry};
use super::index::{Found, HostIndex, PathIndex, lower};
use super::joined::Joined;
use super::matching::{self, RequestTree};
use super::policies::Mirror;
use super::redirect;
use crate::headers::{HeaderName, HeaderValue, Headers, names};
use crate::matchers::{Runtime, header_name};
use crate::path::{without_parameters, without_query};
use crate::stream_info::{FilterState, StreamInfo};

/// What is wrong with a route configuration: where, and what.
pub type BuildError = (String, String);

/// What matching looks at.
#[derive(Clone, Copy)]
pub struct RouteRequest<'a> {
    /// Request headers.
    pub headers: &'a Headers,
    /// `x-forwarded-proto`: decides on `require_tls`. A request without one has no route.
    pub scheme: &'a [u8],
    /// Whether the request is internal (`x-envoy-internal`).
    pub internal: bool,
    /// Random number of this stream, for weights and fractions.
    pub random: u64,
    /// The downstream TLS session.
    pub tls: Option<&'a TlsInfo>,
    /// Dynamic metadata by filter.
    pub dynamic_metadata: Option<&'a serde_json::Map<String, serde_json::Value>>,
    /// What is known about the stream; hash policies that choose a cluster, and filter state, are read from it.
    pub info: Option<&'a StreamInfo>,
    /// Filter state.
    pub filter_state: Option<&'a FilterState>,
    /// Runtime layers.
    pub runtime: &'a dyn Runtime,
}

impl<'a> RouteRequest<'a> {
    /// From a stream whose `x-forwarded-proto` and `x-envoy-internal` are set.
    pub fn new(headers: &'a Headers, info: &'a StreamInfo, random: u64, runtime: &'a dyn Runtime) -> Self {
        Self {
            headers,
            scheme: headers.bytes(&names::X_FORWARDED_PROTO).unwrap_or_default(),
            internal: headers.bytes(&names::X_ENVOY_INTERNAL) == Some(b"true"),
            random,
            tls: info.connection.tls.as_deref(),
            dynamic_metadata: info.dynamic_metadata.as_deref(),
            info: Some(info),
            filter_state: info.filter_state.as_deref(),
            runtime,
        }
    }
}

/// How a domain matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DomainRule {
    /// `a.com`
    Exact,
    /// `*.com`
    Suffix,
    /// `a.*`
    Prefix,
    /// `*`
    Any,
}

/// Is told how a request finds its route.
pub trait Tracer {
    /// The virtual host that was chosen, and by what kind of domain.
    fn virtual_host(&mut self, host: &VirtualHostEntry, rule: DomainRule);
    /// A candidate route and why it does not match; routes whose path cannot match are not candidates.
    fn route(&mut self, route: &RouteEntry, verdict: Result<(), Mismatch>);
}

/// The outcome of matching.
#[derive(Debug)]
pub enum RouteOutcome<'t> {
    /// This route, pinned.
    Route(ActiveRoute),
    /// `require_tls`: redirect by 301 to [`RouteTable::tls_location`].
    TlsRedirect(&'t Arc<VirtualHostEntry>),
    /// No virtual host, or none of its routes.
    NotFound,
}

/// Virtual hosts and routes, indexed.
#[derive(Debug)]
pub struct RouteTable {
    global: Arc<Global>,
    hosts: Arc<[Arc<Host>]>,
    index: Arc<HostIndex>,
    /// Virtual hosts of other tables.
    joined: Option<Arc<Joined>>,
    vhost_header: Option<HeaderName>,
}

#[derive(Debug)]
pub(super) struct Host {
    entry: Arc<VirtualHostEntry>,
    routes: Box<[Arc<RouteEntry>]>,
    index: PathIndex,
    /// Takes the place of the index.
    matcher: Option<RequestTree<Range<u32>>>,
}

impl RouteTable {
    /// Compiles a configuration, without per-filter configuration and statistics; all errors.
    pub fn build(config: Arc<RouteConfiguration>) -> Result<Self, Vec<BuildError>> {
        Self::build_with(config, BuildContext::default())
    }

    /// Compiles a configuration; all errors.
    pub fn build_with(config: Arc<RouteConfiguration>, context: BuildContext<'_>) -> Result<Self, Vec<BuildError>> {
        let mut errors = Vec::new();
        let vhost_header = config.vhost_header.as_deref().and_then(|name| {
            let found = header_name(name);
            if found.is_none() {
                errors.push((format!("{}.vhost_header", config.path), format!("invalid header name: {name:?}")));
            }
            found
        });
        let global = Arc::new(Global {
            internal_only: config.internal_only_headers.iter().filter_map(|name| header_name(name)).collect(),
            rules: LevelRules::build(&config.headers, &config.path, &mut errors),
            filters: FilterConfigs::build(&config.typed_per_filter_config, context.decoder, &config.path, &mut errors),
            mirrors: Mirror::build_all(&config.request_mirror_policies, &mut errors),
            config,
        });
        let config = &global.config;
        let mut hosts = Vec::with_capacity(config.virtual_hosts.len());
        for position in 0..config.virtual_hosts.len() {
            let entry = Arc::new(VirtualHostEntry::build(&global, position, context, &mut errors));
            let routes = &config.virtual_hosts[position].routes;
            hosts.push(Arc::new(Host {
                routes: (0..routes.len())
                    .map(|route| Arc::new(RouteEntry::build(&entry, route, context, &mut errors)))
                    .collect(),
                index: PathIndex::build(routes),
                matcher: config.virtual_hosts[position].matcher.as_ref().and_then(|tree| {
                    let report = |text| errors.push((format!("{}.matcher", config.virtual_hosts[position].path), text));
                    matching::compile(tree).map_err(report).ok()
                }),
                entry,
            }));
        }
        let index = Arc::new(index_of(&hosts, &config.name, &mut errors));
        let table = Self { hosts: hosts.into(), index, joined: None, vhost_header, global };
        if errors.is_empty() { Ok(table) } else { Err(errors) }
    }

    /// This table, without the virtual hosts of the tables in `leave` that have joined it, and with those of the tables in
    /// `join`. Nothing is compiled again; the cost is that of the virtual hosts named, however many there are beside them.
    ///
    /// # Errors
    /// A domain stands in two virtual hosts.
    pub fn with_virtual_hosts<'t>(
        &self,
        leave: impl Iterator<Item = &'t RouteTable>,
        join: impl Iterator<Item = &'t RouteTable>,
    ) -> Result<Self, Vec<BuildError>> {
        let mut joined = self.joined.as_deref().cloned().unwrap_or_default();
        for host in leave.flat_map(|other| other.hosts.iter()) {
            for domain in &host.entry.config().domains {
                joined.remove(&domain.to_ascii_lowercase(), host);
            }
        }
        let mut errors = Vec::new();
        for host in join.flat_map(|other| other.hosts.iter()) {
            for (number, domain) in host.entry.config().domains.iter().enumerate() {
                let lower = domain.to_ascii_lowercase();
                if self.index.has(&lower) || joined.has(&lower) {
                    errors.push(duplicate(host, number, &lower, &self.global.config.name));
                } else {
                    joined.insert(&lower, host);
                }
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(Self {
            hosts: self.hosts.clone(),
            index: self.index.clone(),
            joined: (!joined.is_empty()).then(|| Arc::new(joined)),
            vhost_header: self.vhost_header.clone(),
            global: self.global.clone(),
        })
    }

    /// Whether a request for `host` has a virtual host, whatever becomes of it there.
    pub fn has_virtual_host(&self, host: &[u8]) -> bool {
        self.look_up(host).is_some()
    }

    /// The configuration that the table was built from.
    pub fn config(&self) -> &Arc<RouteConfiguration> {
        &self.global.config
    }

    /// `internal_only_headers`: removed from external requests.
    pub fn internal_only_headers(&self) -> &[HeaderName] {
        &self.global.internal_only
    }

    /// All routes in order, for validation of clusters and for output; not those of virtual hosts that have joined.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<RouteEntry>> {
        self.hosts.iter().flat_map(|host| &host.routes)
    }

    /// All virtual hosts in order, but those that have joined.
    pub fn virtual_hosts(&self) -> impl Iterator<Item = &Arc<VirtualHostEntry>> {
        self.hosts.iter().map(|host| &host.entry)
    }

    /// The route of a request.
    pub fn route(&self, request: &RouteRequest<'_>, mut tracer: Option<&mut dyn Tracer>) -> RouteOutcome<'_> {
        let Some((host, rule)) = self.find_host(request.headers) else { return RouteOutcome::NotFound };
        if let Some(tracer) = tracer.as_deref_mut() {
            tracer.virtual_host(&host.entry, rule);
        }
        if request.scheme.is_empty() {
            return RouteOutcome::NotFound;
        }
        let redirect = match host.entry.config().require_tls {
            RequireTls::None => false,
            RequireTls::ExternalOnly => request.scheme != b"https" && !request.internal,
            RequireTls::All => request.scheme != b"https",
        };
        if redirect {
            return RouteOutcome::TlsRedirect(&host.entry);
        }
        match self.find_route(host, request, tracer).and_then(|route| ActiveRoute::new(route, request)) {
            Some(active) => RouteOutcome::Route(active),
            None => RouteOutcome::NotFound,
        }
    }

    /// `location` of a TLS redirect.
    pub fn tls_location(headers: &Headers) -> Option<HeaderValue> {
        redirect::tls_location(headers)
    }

    fn find_host(&self, headers: &Headers) -> Option<(&Host, DomainRule)> {
        if self.joined.is_none()
            && let Some(at) = self.index.only_default()
        {
            return Some((&self.hosts[at as usize], DomainRule::Any));
        }
        let host = headers.bytes(self.vhost_header.as_ref().unwrap_or(&names::AUTHORITY))?;
        self.look_up(if self.global.config.ignore_port_in_host_matching { without_port(host) } else { host })
    }

    fn look_up(&self, host: &[u8]) -> Option<(&Host, DomainRule)> {
        let mut buffer = SmallVec::new();
        let host = lower(host, &mut buffer);
        let own = self.index.find(host);
        let other = self.joined.as_ref().and_then(|joined| joined.find(host));
        match (own, other) {
            (Some(own), Some(other)) if other.is_before(&own) => Some((other.host, other.rule)),
            (None, Some(other)) => Some((other.host, other.rule)),
            (Some(Found { host, rule, .. }), _) => Some((&self.hosts[host as usize], rule)),
            (None, None) => None,
        }
    }

    fn find_route<'t>(
        &'t self,
        host: &'t Host,
        request: &RouteRequest<'_>,
        mut tracer: Option<&mut dyn Tracer>,
    ) -> Option<&'t Arc<RouteEntry>> {
        let path = request.headers.bytes(&names::PATH).map(without_query);
        let plain = path.filter(|_| self.global.config.ignore_path_parameters_in_path_matching).map(without_parameters);
        let path = plain.as_deref().or(path);
        let mut accepts = |number: u32, path_known| {
            let route = &host.routes[number as usize];
            let verdict = route.matches(request, path, path_known);
            if let Some(tracer) = tracer.as_deref_mut() {
                tracer.route(route, verdict);
            }
            verdict.is_ok()
        };
        let found = match &host.matcher {
            None => host.index.first(path, accepts),
            Some(tree) => tree.find(request).and_then(|range| range.clone().find(|number| accepts(*number, false))),
        };
        Some(&host.routes[found? as usize])
    }
}

/// Which host has which domain.
fn index_of(hosts: &[Arc<Host>], name: &str, errors: &mut Vec<BuildError>) -> HostIndex {
    let places = || {
        let hosts = hosts.iter().enumerate();
        hosts.flat_map(|(at, host)| (0..host.entry.config().domains.len()).map(move |domain| (at, domain)))
    };
    HostIndex::build(
        places().map(|(host, domain)| (&*hosts[host].entry.config().domains[domain], host as u32)),
        |number, domain_name| {
            let (host, domain) = places().nth(number).unwrap_or_default();
            errors.push(duplicate(&hosts[host], domain, domain_name, name));
        },
    )
}

/// The domain with this number in `host` has a virtual host already.
fn duplicate(host: &Host, number: usize, domain: &str, table: &str) -> BuildError {
    let text = if domain == "*" {
        format!("Only a single wildcard domain is permitted in route {table}")
    } else {
        format!("Only unique values for domains are permitted. Duplicate entry of domain {domain} in route {table}")
    };
    (format!("{}.domains[{number}]", host.entry.config().path), text)
}

/// A host without its port; brackets of an IPv6 address stay.
fn without_port(host: &[u8]) -> &[u8] {
    match memchr::memrchr(b':', host) {
        Some(at) if memchr::memrchr(b']', host).is_none_or(|bracket| bracket < at) => &host[..at],
        _ => host,
    }
}

#[cfg(test)]
pub(super) mod tests;

//! A route that a request got and pins: with the cluster that was picked, and what is done to headers on both ways.

use std::any::Any;
use std::sync::Arc;

use nuncio_config::route::{ClusterSpecifier, HostRewrite, PathRewrite, WeightedClusters};

use super::entry::{Compiled, FilterConfigs, Forward, LevelRules, RouteEntry, VirtualCluster, WeightedEntry};
use super::rate_limit::{Descriptor, DescriptorInputs};
use super::rewrite::{replace_format, replace_prefix, replace_regex, replace_template, update_authority, update_path};
use super::stats::RequestStats;
use super::table::RouteRequest;
use crate::formatter::FormatContext;
use crate::headers::{HeaderName, HeaderValue, Headers, names};
use crate::path::without_query;

/// A pinned route.
#[derive(Debug, Clone)]
pub struct ActiveRoute {
    entry: Arc<RouteEntry>,
    /// Position of the weighted cluster that was picked.
    weighted: Option<u32>,
    /// Cluster that a header or a tree named.
    named: Option<Arc<str>>,
    virtual_cluster: Option<u32>,
}

impl ActiveRoute {
    /// Pins a route and picks its cluster. None where no weight is left by the runtime: the request then has no route.
    pub(super) fn new(entry: &Arc<RouteEntry>, request: &RouteRequest<'_>) -> Option<Self> {
        let mut active = Self { entry: Arc::clone(entry), weighted: None, named: None, virtual_cluster: None };
        let Compiled::Forward(forward) = &entry.compiled else { return Some(active) };
        let number = entry.host.virtual_cluster_of(request.headers);
        active.virtual_cluster = number.and_then(|number| u32::try_from(number).ok());
        match entry.route_action().map(|action| &action.cluster) {
            Some(ClusterSpecifier::Header(_)) => {
                active.named = cluster_named(forward.cluster_header.as_ref(), request.headers)
            }
            Some(ClusterSpecifier::Matcher(_)) => {
                active.named = forward.cluster_tree.as_ref().and_then(|tree| tree.find(request)).cloned();
            }
            Some(ClusterSpecifier::Unavailable) => return None,
            Some(ClusterSpecifier::Weighted(weighted)) => {
                let at = pick(weighted, forward, request)?;
                active.weighted = Some(at as u32);
                if weighted.clusters[at].name.is_empty() {
                    active.named = cluster_named(forward.weighted[at].header.as_ref(), request.headers);
                }
            }
            _ => {}
        }
        Some(active)
    }

    /// The route.
    pub fn entry(&self) -> &Arc<RouteEntry> {
        &self.entry
    }

    /// The cluster; None where a header should have named it but did not, or the route does not forward.
    pub fn cluster(&self) -> Option<&Arc<str>> {
        if self.named.is_some() {
            return self.named.as_ref();
        }
        match (&self.entry.route_action()?.cluster, self.weighted) {
            (ClusterSpecifier::Cluster(name), _) => Some(name),
            (ClusterSpecifier::Weighted(weighted), Some(at)) => {
                Some(&weighted.clusters[at as usize].name).filter(|name| !name.is_empty())
            }
            _ => None,
        }
    }

    /// Whether its cluster may be chosen anew for another try.
    pub fn chooses_anew(&self) -> bool {
        matches!(&self.entry.compiled, Compiled::Forward(forward) if forward.cluster_tree.is_some())
    }

    /// Chooses the cluster anew by the request as it is now, where a tree chooses it.
    pub fn choose_anew(&mut self, request: &RouteRequest<'_>) {
        if let Compiled::Forward(forward) = &self.entry.compiled
            && let Some(tree) = &forward.cluster_tree
        {
            self.named = tree.find(request).cloned();
        }
    }

    /// The virtual cluster of the request; None where its virtual host has none.
    pub fn virtual_cluster(&self) -> Option<&VirtualCluster> {
        self.entry.host.virtual_cluster(self.virtual_cluster? as usize)
    }

    /// Statistics that count the request beside its cluster's: those of its virtual cluster and of its route.
    pub fn request_stats(&self) -> impl Iterator<Item = &RequestStats> {
        let cluster = self.virtual_cluster().and_then(|cluster| cluster.stats.as_ref());
        cluster.into_iter().chain(self.entry.stats())
    }

    /// `metadata_match` of the subset load balancer: the weighted cluster's, or the route's.
    pub fn metadata_match(&self) -> Option<&Arc<serde_json::Value>> {
        let action = self.entry.route_action()?;
        let own = match (&action.cluster, self.weighted) {
            (ClusterSpecifier::Weighted(weighted), Some(at)) => weighted.clusters[at as usize].metadata_match.as_ref(),
            _ => None,
        };
        own.or(action.metadata_match.as_ref())
    }

    /// Whether the router has to set the host to the chosen endpoint's name, and whether it keeps the old one in
    /// `x-forwarded-host`.
    pub fn auto_host_rewrite(&self) -> Option<bool> {
        let action = self.entry.route_action()?;
        matches!(action.host_rewrite, HostRewrite::Auto).then_some(action.append_x_forwarded_host)
    }

    /// Headers, host and path of a request on its way upstream. With `keep_original` the old host and path are kept in
    /// `x-envoy-original-*` (unless `suppress_envoy_headers`).
    pub fn finalize_request_headers(&self, headers: &mut Headers, cx: &FormatContext<'_>, keep_original: bool) {
        if let Some(weighted) = self.weighted_entry() {
            weighted.rules.request.apply_request(headers, cx);
            if let Some(host) = &weighted.host {
                headers.set(names::AUTHORITY, host.clone());
            }
        }
        self.each_level(|rules| {
            if !rules.request.is_empty() {
                rules.request.apply_request(headers, cx);
            }
        });
        self.rewrite_host(headers, cx, keep_original);
        self.rewrite_path(headers, cx, keep_original);
    }

    /// Headers of a response on its way downstream, local replies included.
    pub fn finalize_response_headers(&self, headers: &mut Headers, cx: &FormatContext<'_>) {
        if let Some(weighted) = self.weighted_entry() {
            weighted.rules.response.apply_response(headers, cx);
        }
        self.each_level(|rules| {
            if !rules.response.is_empty() {
                rules.response.apply_response(headers, cx);
            }
        });
    }

    /// The decoded per-route configuration of a filter, most specific level first.
    pub fn filter_config(&self, filter: &str) -> Option<&Arc<dyn Any + Send + Sync>> {
        self.filter_levels().find_map(|level| level.get(filter))
    }

    /// The decoded per-route configurations of a filter, most specific level first.
    pub fn filter_configs(&self, filter: &str) -> impl Iterator<Item = &Arc<dyn Any + Send + Sync>> {
        self.filter_levels().filter_map(move |level| level.get(filter))
    }

    /// Whether a filter is switched off or on here; None where no level says.
    pub fn filter_disabled(&self, filter: &str) -> Option<bool> {
        self.filter_levels().find_map(|level| level.disabled(filter))
    }

    /// What rate-limit filters of a stage count the request under: with the request, or `on_stream_done`. The virtual
    /// host's count where the route has none, or includes them.
    pub fn descriptors(&self, stage: u32, on_stream_done: bool, inputs: &DescriptorInputs<'_>) -> Vec<Descriptor> {
        let mut out = Vec::new();
        let (Compiled::Forward(forward), Some(action)) = (&self.entry.compiled, self.entry.route_action()) else {
            return out;
        };
        forward.rate_limits.descriptors(stage, on_stream_done, inputs, &mut out);
        if forward.rate_limits.is_empty() || action.include_vh_rate_limits {
            self.entry.host.rate_limits.descriptors(stage, on_stream_done, inputs, &mut out);
        }
        out
    }

    fn filter_levels(&self) -> impl Iterator<Item = &FilterConfigs> {
        let host = &self.entry.host;
        let weighted = self.weighted_entry().map(|weighted| &weighted.filters);
        weighted.into_iter().chain([&self.entry.filters, &host.filters, &host.global.filters])
    }

    fn weighted_entry(&self) -> Option<&WeightedEntry> {
        match (&self.entry.compiled, self.weighted) {
            (Compiled::Forward(forward), Some(at)) => forward.weighted.get(at as usize),
            _ => None,
        }
    }

    /// Later levels win where they overwrite.
    fn each_level(&self, mut apply: impl FnMut(&LevelRules)) {
        let (route, host) = (&self.entry.rules, &self.entry.host);
        let levels = if host.global.config.most_specific_header_mutations_wins {
            [&host.global.rules, &host.rules, route]
        } else {
            [route, &host.rules, &host.global.rules]
        };
        levels.into_iter().for_each(&mut apply);
    }

    fn rewrite_host(&self, headers: &mut Headers, cx: &FormatContext<'_>, keep_original: bool) {
        let (Compiled::Forward(forward), Some(action)) = (&self.entry.compiled, self.entry.route_action()) else {
            return;
        };
        let host = match &action.host_rewrite {
            HostRewrite::None | HostRewrite::Auto => return,
            HostRewrite::Format(_) => forward.host_format.as_ref().and_then(|format| {
                let mut out = Vec::new();
                format.write(&FormatContext { request: Some(headers), ..*cx }, &mut out);
                HeaderValue::parse(out)
            }),
            HostRewrite::Literal(_) => forward.host.clone(),
            HostRewrite::Header(_) => forward.host_header.as_ref().and_then(|name| headers.get(name).cloned()),
            HostRewrite::PathRegex(rewrite) => forward.host_path.as_ref().and_then(|substitution| {
                let mut out = Vec::new();
                substitution.replace_all(rewrite, without_query(headers.path()), &mut out);
                HeaderValue::parse(out)
            }),
        };
        if let Some(host) = host.filter(|host| !host.as_bytes().is_empty()) {
            update_authority(headers, host, action.append_x_forwarded_host, keep_original);
        }
    }

    fn rewrite_path(&self, headers: &mut Headers, cx: &FormatContext<'_>, keep_original: bool) {
        let (Compiled::Forward(forward), Some(action)) = (&self.entry.compiled, self.entry.route_action()) else {
            return;
        };
        let path = headers.path();
        let new = match &action.path_rewrite {
            PathRewrite::Prefix(prefix) if !prefix.is_empty() => match self.entry.matched_len(headers) {
                Some(matched) => replace_prefix(path, matched, prefix.as_bytes()),
                None => return,
            },
            PathRewrite::Regex(rewrite) => match &forward.path {
                Some(substitution) => replace_regex(path, rewrite, substitution),
                None => return,
            },
            PathRewrite::Format(_) => match &forward.path_format {
                Some(format) => match replace_format(path, format, &FormatContext { request: Some(headers), ..*cx }) {
                    Some(new) => new,
                    None => return,
                },
                None => return,
            },
            PathRewrite::Template(template) => match replace_template(path, template) {
                Some(new) => new,
                None => return,
            },
            _ => return,
        };
        // What leaves nothing of the path leaves it alone.
        if new.first().is_none_or(|first| *first == b'?') && path.first().is_some_and(|first| *first != b'?') {
            return;
        }
        update_path(headers, new, keep_original);
    }
}

fn cluster_named(name: Option<&HeaderName>, headers: &Headers) -> Option<Arc<str>> {
    headers.str(name?).filter(|name| !name.is_empty()).map(Arc::from)
}

/// Envoy's arithmetic: the random value modulo the sum of weights falls into one cluster's share.
fn pick(weighted: &WeightedClusters, forward: &Forward, request: &RouteRequest<'_>) -> Option<usize> {
    let mut random = request.random;
    if weighted.use_hash_policy
        && let Some(hash) = request.info.and_then(|info| forward.hash.hash(request.headers, info, None))
    {
        random = hash;
    }
    if let Some(name) = &forward.random_header {
        let mut values = request.headers.get_all(name);
        if let (Some(value), None) = (values.next(), values.next())
            && let Some(number) = value.to_str().and_then(|text| text.trim().parse().ok())
        {
            random = number;
        }
    }
    let by_runtime = !weighted.runtime_key_prefix.is_empty();
    let weight = |at: usize| {
        let default = u64::from(weighted.clusters[at].weight);
        if by_runtime { request.runtime.integer(&forward.weighted[at].runtime_key).unwrap_or(default) } else { default }
    };
    let count = weighted.clusters.len();
    let total = if by_runtime {
        (0..count).try_fold(0u64, |sum, at| sum.checked_add(weight(at)).filter(|sum| *sum <= u64::from(u32::MAX)))?
    } else {
        u64::from(weighted.total)
    };
    let selected = random.checked_rem(total)?;
    let mut end = 0;
    (0..count).find(|at| {
        end += weight(*at);
        selected < end || end >= total
    })
}

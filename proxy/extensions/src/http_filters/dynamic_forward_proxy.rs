//! `envoy.filters.http.dynamic_forward_proxy`: resolves the host that a request names before the router needs it.
//!
//! Concerns requests whose route goes to a cluster of type `envoy.clusters.dynamic_forward_proxy`; the cluster and this
//! filter share a DNS cache by its name. Requests wait only for names that are new. Details and bodies are Envoy's.

use crate::registry::HttpFilterEntry;
use envoy_types::pb::envoy::extensions::filters::http::dynamic_forward_proxy::v3 as pb;
use nuncio_base::timer;
use nuncio_config::cluster::{Discovery, DnsCacheConfig};
use nuncio_config::decode::Context;
use nuncio_config::hcm::HttpFilterConfig;
use nuncio_config::typed_config::TypedConfig;
use nuncio_http::filter::{HeadersAction, Hooks, HttpFilter, Resume, StreamView};
use nuncio_http::headers::{HeaderName, HeaderValue, names};
use nuncio_http::local_reply::LocalReply;
use nuncio_http::stream_info::ResponseFlags;
use nuncio_upstream::ClusterManager;
use nuncio_upstream::dns_cache::{CachedHost, DYNAMIC_HOST, DYNAMIC_PORT, DnsCache, LookUp};
use nuncio_upstream::sub_clusters::SubCluster;
use std::any::Any;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// The filter.
struct DynamicForwardProxy {
    name: Arc<str>,
    clusters: Arc<ClusterManager>,
    /// None where the cluster has clusters of its own for names.
    cache: Option<Arc<DnsCache>>,
    /// How long a cluster for a name is waited for.
    cluster_init_timeout: Duration,
    /// Filter state may name the host.
    from_filter_state: bool,
}

/// `PerRouteConfig`: another host than the request's.
#[derive(Debug, PartialEq, Eq)]
enum HostRewrite {
    Literal(HeaderValue),
    Header(HeaderName),
}

impl HttpFilter for DynamicForwardProxy {
    type State = ();

    fn hooks(&self) -> Hooks {
        Hooks { decode_headers: true, ..Hooks::default() }
    }

    fn decode_headers(&self, (): &mut (), view: &mut StreamView<'_>, _: bool) -> HeadersAction {
        let Some(route) = view.route else { return HeadersAction::Continue };
        let cluster = route.cluster().and_then(|name| self.clusters.cluster(name));
        let cluster =
            cluster.filter(|cluster| matches!(cluster.config.discovery, Discovery::DynamicForwardProxy { .. }));
        let Some(cluster) = cluster else { return HeadersAction::Continue };
        if let Some(rewrite) = route.filter_config(&self.name).and_then(|config| config.downcast_ref::<HostRewrite>()) {
            let host = match rewrite {
                HostRewrite::Literal(host) => Some(host.clone()),
                HostRewrite::Header(name) => view.request.get(name).cloned(),
            };
            if let Some(host) = host {
                view.request.set(names::AUTHORITY, host);
            }
        }
        let state = |name: &str| {
            let state = view.info.filter_state.as_ref().filter(|_| self.from_filter_state)?;
            state.iter().find(|(key, _)| **key == *name).map(|(_, text)| &**text)
        };
        let port = state(DYNAMIC_PORT).and_then(|port| port.parse().ok()).filter(|port| *port > 0);
        let Some(authority) = state(DYNAMIC_HOST).or_else(|| view.request.str(&names::AUTHORITY)) else {
            return HeadersAction::Continue;
        };
        let port = port.unwrap_or_else(|| cluster.default_port());
        if let Some(subs) = cluster.sub_clusters() {
            return match subs.ask(authority, port) {
                SubCluster::Ready => HeadersAction::Continue,
                SubCluster::Overflow => refuse("Sub cluster overflow", "sub_cluster_overflow"),
                SubCluster::Made(ready) => self.wait(ready),
            };
        }
        let Some(cache) = &self.cache else { return HeadersAction::Continue };
        match cache.look_up(authority, port) {
            LookUp::Known(host) => go_on(&host),
            LookUp::Asked(waiting) => HeadersAction::Wait(Box::pin(async move {
                let host = waiting.answer().await;
                let resume: Resume = Box::new(move |_| match host {
                    Some(host) => go_on(&host),
                    // The cache goes with the last cluster and filter that use it.
                    None => HeadersAction::Continue,
                });
                resume
            })),
            LookUp::Overflow => refuse("DNS cache overflow", "dns_cache_overflow"),
            LookUp::PendingOverflow => refuse(
                "Dynamic forward proxy pending request overflow",
                "dynamic_forward_proxy_pending_request_overflow",
            ),
        }
    }
}

impl DynamicForwardProxy {
    /// Waits until a cluster is visible.
    fn wait(&self, ready: oneshot::Receiver<()>) -> HeadersAction {
        let limit = self.cluster_init_timeout;
        HeadersAction::Wait(Box::pin(async move {
            let outcome = timer::timeout(limit, ready).await;
            let resume: Resume = Box::new(move |_| match outcome {
                Ok(Ok(())) => HeadersAction::Continue,
                Ok(Err(_)) => refuse("Sub cluster overflow", "sub_cluster_overflow"),
                Err(_) => refuse("Sub cluster warming timeout", "sub_cluster_warming_timeout"),
            });
            resume
        }))
    }
}

fn refuse(body: &'static str, details: &'static str) -> HeadersAction {
    HeadersAction::Respond(LocalReply::new(503, body, details))
}

fn go_on(host: &CachedHost) -> HeadersAction {
    if host.has_address() {
        return HeadersAction::Continue;
    }
    let details = host.details().into_string();
    let reply = LocalReply::new(503, "DNS resolution failure", details).flags(ResponseFlags::DNS_RESOLUTION_FAILED);
    HeadersAction::Respond(reply)
}

fn build(
    filter: &HttpFilterConfig,
    context: &crate::registry::FactoryContext,
    chain: &mut nuncio_http::filter::FilterChain,
) -> Result<(), String> {
    use pb::filter_config::ImplementationSpecifier as Kind;
    let message =
        <pb::FilterConfig as prost::Message>::decode(filter.config.value.clone()).map_err(|e| e.to_string())?;
    let mut cluster_init_timeout = Duration::from_secs(5);
    let decoded = Context::default().run(|cx| {
        Some(match &message.implementation_specifier {
            Some(Kind::DnsCacheConfig(config)) => Some(DnsCacheConfig::decode(cx, config)),
            Some(Kind::SubClusterConfig(config)) => {
                if let Some(limit) = cx.duration("cluster_init_timeout", &config.cluster_init_timeout) {
                    cluster_init_timeout = limit;
                }
                None
            }
            None => None,
        })
    });
    let decoded = decoded.map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))?;
    let cache = decoded.map(|config| context.clusters.dns_cache(&config)).transpose()?;
    chain.push(
        filter.name.clone(),
        DynamicForwardProxy {
            name: filter.name.clone(),
            clusters: context.clusters.clone(),
            cache,
            cluster_init_timeout,
            from_filter_state: message.allow_dynamic_host_from_filter_state,
        },
    );
    Ok(())
}

/// Decodes `PerRouteConfig`.
///
/// # Errors
/// Names and values that no header can have.
pub fn per_route(config: &TypedConfig) -> Result<Arc<dyn Any + Send + Sync>, String> {
    use pb::per_route_config::HostRewriteSpecifier as Kind;
    let message = <pb::PerRouteConfig as prost::Message>::decode(config.value.clone()).map_err(|e| e.to_string())?;
    let rewrite = match message.host_rewrite_specifier {
        Some(Kind::HostRewriteLiteral(text)) => {
            HeaderValue::parse(text).map(HostRewrite::Literal).ok_or("host_rewrite_literal is no header value")
        }
        Some(Kind::HostRewriteHeader(name)) => {
            HeaderName::parse(&name).map(HostRewrite::Header).ok_or("host_rewrite_header is no header name")
        }
        None => return Ok(Arc::new(())),
    };
    Ok(Arc::new(rewrite?))
}

/// The filter in the registry.
pub const ENTRY: HttpFilterEntry = HttpFilterEntry {
    name: "envoy.filters.http.dynamic_forward_proxy",
    message: "envoy.extensions.filters.http.dynamic_forward_proxy.v3.FilterConfig",
    terminal: false,
    build: |filter, context, chain| Ok(build(filter, context, chain)?),
};

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(rewrite: pb::per_route_config::HostRewriteSpecifier) -> Result<Arc<dyn Any + Send + Sync>, String> {
        let message = pb::PerRouteConfig { host_rewrite_specifier: Some(rewrite) };
        per_route(&TypedConfig {
            name: "f".into(),
            type_name: "envoy.extensions.filters.http.dynamic_forward_proxy.v3.PerRouteConfig".into(),
            value: prost::Message::encode_to_vec(&message).into(),
            path: "".into(),
        })
    }

    #[test]
    fn a_route_names_the_host_or_the_header_that_does() {
        use pb::per_route_config::HostRewriteSpecifier as Kind;
        let literal = decode(Kind::HostRewriteLiteral("a.example:80".into())).unwrap();
        assert_eq!(literal.downcast_ref(), Some(&HostRewrite::Literal(HeaderValue::from_static("a.example:80"))));
        let header = decode(Kind::HostRewriteHeader("X-To".into())).unwrap();
        let name = HeaderName::parse("x-to").unwrap();
        assert_eq!(header.downcast_ref(), Some(&HostRewrite::Header(name)));
        assert!(decode(Kind::HostRewriteHeader("a b".into())).is_err());
    }
}

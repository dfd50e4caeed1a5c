//! `envoy.filters.http.on_demand`: a request that has no route, or whose cluster is not there, waits until they have been
//! asked for.
//!
//! What there is to ask for of routes (a virtual host, the routes of a scope) is known to the connection manager. Clusters are
//! asked of the source in `odcds`, of the filter or of the route.

use crate::on_demand::{ClusterSource, ClusterSources};
use crate::registry::HttpFilterEntry;
use envoy_types::pb::envoy::extensions::filters::http::on_demand::v3 as pb;
use nuncio_config::config_source::OnDemandClusters;
use nuncio_config::decode::Context;
use nuncio_config::typed_config::TypedConfig;
use nuncio_http::filter::{HeadersAction, Hooks, HttpFilter, LocalFuture, OnDemandCluster, StreamView};
use nuncio_http::route::ActiveRoute;
use nuncio_upstream::ClusterManager;
use prost::Message as _;
use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

/// How long a request waits where nothing is said.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The filter.
struct OnDemand(Arc<Shared>);

struct Shared {
    name: Arc<str>,
    clusters: Arc<ClusterManager>,
    /// Of the filter's own configuration.
    source: Option<Arc<dyn ClusterSource>>,
}

/// What a route says in place of the filter; None asks for nothing.
struct PerRoute(Option<Arc<dyn ClusterSource>>);

impl Shared {
    /// The cluster of a route that is not there.
    fn missing<'r>(&self, route: &'r ActiveRoute) -> Option<&'r Arc<str>> {
        let cluster = route.cluster().filter(|name| !name.is_empty())?;
        self.clusters.cluster(cluster).is_none().then_some(cluster)
    }

    fn source_of<'r>(&'r self, route: &'r ActiveRoute) -> Option<&'r Arc<dyn ClusterSource>> {
        let own = route.filter_config(&self.name).and_then(|config| config.downcast_ref::<PerRoute>());
        own.map_or(&self.source, |PerRoute(own)| own).as_ref()
    }
}

impl OnDemandCluster for Shared {
    fn fetch(&self, route: &ActiveRoute) -> Option<LocalFuture<'static, ()>> {
        let cluster = self.missing(route)?;
        let answer = self.source_of(route)?.fetch(cluster)?;
        // The router finds out what came of it.
        Some(Box::pin(async move {
            let _ = answer.await;
        }))
    }
}

impl HttpFilter for OnDemand {
    type State = ();

    fn hooks(&self) -> Hooks {
        Hooks { decode_headers: true, ..Hooks::default() }
    }

    fn decode_headers(&self, _: &mut (), view: &mut StreamView<'_>, _: bool) -> HeadersAction {
        match view.route {
            Some(route) if self.0.missing(route).is_none() => HeadersAction::Continue,
            _ => HeadersAction::OnDemand(Some(self.0.clone())),
        }
    }
}

fn decode(message: Option<pb::OnDemandCds>) -> Result<Option<OnDemandClusters>, String> {
    let Some(message) = message else { return Ok(None) };
    let decoded = Context::default().run(|cx| {
        Some(cx.at("odcds", |cx| OnDemandClusters::decode(cx, "source", &message.source, &message.timeout, TIMEOUT)))
    });
    decoded.map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
}

/// Decodes `PerRouteConfig`.
///
/// # Errors
/// Everything that is wrong with it, or that its source cannot be used.
pub fn per_route(config: &TypedConfig, sources: &dyn ClusterSources) -> Result<Arc<dyn Any + Send + Sync>, String> {
    let message = pb::PerRouteConfig::decode(config.value.clone()).map_err(|e| e.to_string())?;
    let source = decode(message.odcds)?.map(|config| sources.source(&config)).transpose()?;
    Ok(Arc::new(PerRoute(source)))
}

/// The filter in the registry.
pub const ENTRY: HttpFilterEntry = HttpFilterEntry {
    name: "envoy.filters.http.on_demand",
    message: "envoy.extensions.filters.http.on_demand.v3.OnDemand",
    terminal: false,
    build: |filter, context, chain| {
        let message = pb::OnDemand::decode(filter.config.value.clone()).map_err(|e| e.to_string())?;
        let odcds = decode(message.odcds)?;
        let source = odcds.map(|config| context.on_demand.source(&config)).transpose()?;
        let shared = Shared { name: filter.name.clone(), clusters: context.clusters.clone(), source };
        chain.push(filter.name.clone(), OnDemand(Arc::new(shared)));
        Ok(())
    },
};

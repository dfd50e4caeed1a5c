//! The types of resources that the discovery services serve, and where each is asked for.

use std::borrow::Cow;
use std::fmt;

const PREFIX: &str = "type.googleapis.com/";

/// The full type URL of a kind of resource, `type.googleapis.com/` included.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TypeUrl(Cow<'static, str>);

/// A known type: its URL, the gRPC service and its two methods, and the last part of its REST path.
struct Known {
    url: &'static str,
    service: &'static str,
    sotw: &'static str,
    delta: &'static str,
    rest: &'static str,
}

macro_rules! known {
    ($($(#[$doc:meta])* $name:ident = $url:literal, $service:literal, $sotw:literal, $delta:literal, $rest:literal;)*) => {
        impl TypeUrl {
            $($(#[$doc])* pub const $name: TypeUrl = TypeUrl(Cow::Borrowed(concat!("type.googleapis.com/", $url)));)*
        }
        const KNOWN: &[Known] = &[$(Known {
            url: concat!("type.googleapis.com/", $url),
            service: $service,
            sotw: $sotw,
            delta: $delta,
            rest: $rest,
        }),*];
    };
}

known! {
    /// LDS.
    LISTENER = "envoy.config.listener.v3.Listener",
        "envoy.service.listener.v3.ListenerDiscoveryService", "StreamListeners", "DeltaListeners", "listeners";
    /// CDS.
    CLUSTER = "envoy.config.cluster.v3.Cluster",
        "envoy.service.cluster.v3.ClusterDiscoveryService", "StreamClusters", "DeltaClusters", "clusters";
    /// RDS.
    ROUTE_CONFIGURATION = "envoy.config.route.v3.RouteConfiguration",
        "envoy.service.route.v3.RouteDiscoveryService", "StreamRoutes", "DeltaRoutes", "routes";
    /// SRDS.
    SCOPED_ROUTE_CONFIGURATION = "envoy.config.route.v3.ScopedRouteConfiguration",
        "envoy.service.route.v3.ScopedRoutesDiscoveryService", "StreamScopedRoutes", "DeltaScopedRoutes", "scoped-routes";
    /// VHDS, which exists as delta only.
    VIRTUAL_HOST = "envoy.config.route.v3.VirtualHost",
        "envoy.service.route.v3.VirtualHostDiscoveryService", "", "DeltaVirtualHosts", "";
    /// EDS.
    CLUSTER_LOAD_ASSIGNMENT = "envoy.config.endpoint.v3.ClusterLoadAssignment",
        "envoy.service.endpoint.v3.EndpointDiscoveryService", "StreamEndpoints", "DeltaEndpoints", "endpoints";
    /// LEDS, which exists as delta only.
    LB_ENDPOINT = "envoy.config.endpoint.v3.LbEndpoint",
        "envoy.service.endpoint.v3.LocalityEndpointDiscoveryService", "", "DeltaLocalityEndpoints", "";
    /// SDS.
    SECRET = "envoy.extensions.transport_sockets.tls.v3.Secret",
        "envoy.service.secret.v3.SecretDiscoveryService", "StreamSecrets", "DeltaSecrets", "secrets";
    /// ECDS.
    TYPED_EXTENSION_CONFIG = "envoy.config.core.v3.TypedExtensionConfig",
        "envoy.service.extension.v3.ExtensionConfigDiscoveryService",
        "StreamExtensionConfigs", "DeltaExtensionConfigs", "extension_configs";
    /// RTDS.
    RUNTIME = "envoy.service.runtime.v3.Runtime",
        "envoy.service.runtime.v3.RuntimeDiscoveryService", "StreamRuntime", "DeltaRuntime", "runtime";
}

/// The gRPC path of the aggregated service, state of the world.
pub const ADS_SOTW_PATH: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";
/// The gRPC path of the aggregated service, delta.
pub const ADS_DELTA_PATH: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

impl TypeUrl {
    /// Takes a full type URL, or the name of a message, which gets the usual prefix.
    pub fn new(url: impl Into<String>) -> TypeUrl {
        let url = url.into();
        if let Some(known) = KNOWN.iter().find(|k| k.url == url || k.url[PREFIX.len()..] == url) {
            return TypeUrl(Cow::Borrowed(known.url));
        }
        TypeUrl(Cow::Owned(if url.contains('/') { url } else { format!("{PREFIX}{url}") }))
    }

    /// The whole URL.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of the message: what follows the last slash.
    pub fn message(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    fn known(&self) -> Option<&'static Known> {
        KNOWN.iter().find(|k| k.url == self.0)
    }

    /// The gRPC path of this type's own service, state of the world. None if there is no such service.
    pub fn sotw_path(&self) -> Option<String> {
        self.known().filter(|k| !k.sotw.is_empty()).map(|k| format!("/{}/{}", k.service, k.sotw))
    }

    /// The gRPC path of this type's own service, delta. None if there is no such service.
    pub fn delta_path(&self) -> Option<String> {
        self.known().filter(|k| !k.delta.is_empty()).map(|k| format!("/{}/{}", k.service, k.delta))
    }

    /// The path to which a REST poll of this type is posted. None if there is no such service.
    pub fn rest_path(&self) -> Option<String> {
        self.known().filter(|k| !k.rest.is_empty()).map(|k| format!("/v3/discovery:{}", k.rest))
    }
}

impl fmt::Display for TypeUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_knows_its_services() {
        assert_eq!(
            TypeUrl::CLUSTER.sotw_path().as_deref(),
            Some("/envoy.service.cluster.v3.ClusterDiscoveryService/StreamClusters")
        );
        assert_eq!(TypeUrl::VIRTUAL_HOST.sotw_path(), None);
        assert_eq!(
            TypeUrl::VIRTUAL_HOST.delta_path().as_deref(),
            Some("/envoy.service.route.v3.VirtualHostDiscoveryService/DeltaVirtualHosts")
        );
        assert_eq!(TypeUrl::TYPED_EXTENSION_CONFIG.rest_path().as_deref(), Some("/v3/discovery:extension_configs"));
        assert_eq!(TypeUrl::SCOPED_ROUTE_CONFIGURATION.rest_path().as_deref(), Some("/v3/discovery:scoped-routes"));
    }

    #[test]
    fn a_message_name_gets_the_usual_prefix() {
        assert_eq!(TypeUrl::new("envoy.config.cluster.v3.Cluster"), TypeUrl::CLUSTER);
        assert_eq!(TypeUrl::new("a.B").as_str(), "type.googleapis.com/a.B");
        assert_eq!(TypeUrl::new("x.org/a.B").message(), "a.B");
    }
}

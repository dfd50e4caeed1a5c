//! From the bytes of a resource to the configuration: `TypedStruct`s, constraints, the support table, unknown fields,
//! decoding.
//!
//! All errors of a resource come back as one text, each with its path, for the NACK and for people.

use crate::server::Server;
use bytes::Bytes;
use envoy_types::pb::envoy::config::bootstrap::v3::Bootstrap;
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;
use envoy_types::pb::envoy::config::endpoint::v3::{ClusterLoadAssignment as PbAssignment, LbEndpoint};
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::route::v3::{
    RouteConfiguration as PbRoutes, ScopedRouteConfiguration as PbScope, VirtualHost as PbVirtualHost,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use envoy_types::pb::envoy::service::runtime::v3::Runtime;
use envoy_types::pb::google::protobuf::Any;
use nuncio_config::bootstrap::runtime_values;
use nuncio_config::cluster::{ClusterConfig, ClusterLoadAssignment, Endpoint};
use nuncio_config::decode::{Context, StaticSecret};
use nuncio_config::descriptors::{self, type_name};
use nuncio_config::diagnostics::ConfigError;
use nuncio_config::hcm::ScopedRouteConfiguration;
use nuncio_config::ingest::{self, Inspector};
use nuncio_config::listener::ListenerConfig;
use nuncio_config::paths::FieldPath;
use nuncio_config::route::RouteConfiguration;
use prost::Message;
use std::cell::RefCell;
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;
use xds_client::Resource;

/// Reads resources. Keeps the rules of the types that it has seen.
pub(crate) struct Decoder {
    server: Arc<Server>,
    inspector: RefCell<Option<Inspector>>,
    secrets: Vec<(String, StaticSecret)>,
}

impl Decoder {
    pub(crate) fn new(server: &Arc<Server>) -> Decoder {
        // These bytes were encoded by this process.
        let bootstrap = Bootstrap::decode(server.bootstrap.bytes.clone()).unwrap_or_default();
        let secrets = bootstrap.static_resources.unwrap_or_default().secrets;
        let mut cx = Context::default();
        let decode = |secret: &Secret| {
            let decoded = cx.run(|cx| StaticSecret::decode(cx, secret)).ok()?;
            Some((secret.name.clone(), decoded))
        };
        Decoder {
            server: server.clone(),
            inspector: RefCell::default(),
            secrets: secrets.iter().filter_map(decode).collect(),
        }
    }

    /// The message in a resource, with all its constraints kept.
    pub(crate) fn message<M: Message + Default>(&self, resource: &Resource) -> Result<M, String> {
        let Some(descriptor) = descriptors::message(resource.type_url.message()) else {
            return Err(format!("unknown type {}", resource.type_url));
        };
        let options = &self.server.options;
        let allow_unknown = !options.reject_unknown_dynamic_fields;
        let unwrapped = ingest::unwrap_typed_structs(&descriptor, &resource.body, allow_unknown);
        if !unwrapped.errors.is_empty() {
            return Err(text(&unwrapped.errors));
        }
        let body = unwrapped.bytes.map_or_else(|| resource.body.clone(), Bytes::from);
        let mut inspector = self.inspector.borrow_mut();
        let mut findings = inspector.get_or_insert_with(Inspector::default).inspect(&descriptor, &body, allow_unknown);
        if !findings.errors.is_empty() {
            return Err(text(&findings.errors));
        }
        findings.unknown.extend(unwrapped.unknown);
        if !findings.unknown.is_empty() && !options.ignore_unknown_dynamic_fields {
            self.server.stats.dynamic_unknown_fields().add(findings.unknown.len() as u64);
            for field in &findings.unknown {
                tracing::debug!(target: "config", resource = resource.name, "{}: unknown field, passed over", field.path);
            }
        }
        for field in &findings.ignored {
            tracing::debug!(target: "config", resource = resource.name, "{} has no effect: {}", field.path, field.reason);
        }
        M::decode(body).map_err(|error| error.to_string())
    }

    fn context(&self) -> Context {
        let mut cx = Context::new(FieldPath::root());
        cx.default_dns = self.server.bootstrap.config.dns.clone();
        for (name, secret) in &self.secrets {
            cx.add_secret(name, secret.clone());
        }
        let clusters = self.server.context.clusters.clone();
        cx.set_cluster_check(move |name| clusters.cluster(name).is_some());
        cx
    }

    pub(crate) fn cluster(&self, resource: &Resource) -> Result<ClusterConfig, String> {
        let message: Cluster = self.message(resource)?;
        let mut cluster = ClusterConfig::decode(&message, &mut self.context()).map_err(|errors| text(&errors))?;
        cluster.added_via_api = true;
        Ok(cluster)
    }

    pub(crate) fn endpoints(&self, resource: &Resource) -> Result<ClusterLoadAssignment, String> {
        let message: PbAssignment = self.message(resource)?;
        ClusterLoadAssignment::decode(&message, &mut self.context()).map_err(|errors| text(&errors))
    }

    /// An endpoint of a collection.
    pub(crate) fn endpoint(&self, resource: &Resource) -> Result<Endpoint, String> {
        let message: LbEndpoint = self.message(resource)?;
        Endpoint::decode_alone(&message, &mut self.context()).map_err(|errors| text(&errors))
    }

    pub(crate) fn listener(&self, resource: &Resource) -> Result<ListenerConfig, String> {
        let message: Listener = self.message(resource)?;
        ListenerConfig::decode(&message, &mut self.context()).map_err(|errors| text(&errors))
    }

    pub(crate) fn secret(&self, resource: &Resource) -> Result<StaticSecret, String> {
        let message: Secret = self.message(resource)?;
        self.context().run(|cx| StaticSecret::decode(cx, &message)).map_err(|errors| text(&errors))
    }

    pub(crate) fn runtime(&self, resource: &Resource) -> Result<Vec<(Box<str>, serde_json::Value)>, String> {
        let message: Runtime = self.message(resource)?;
        runtime_values(&mut self.context(), message.layer.as_ref()).map_err(|errors| text(&errors))
    }

    /// The type of the configuration in a `TypedExtensionConfig`; none where it cannot be read.
    pub(crate) fn extension_type(&self, resource: &Resource) -> Option<String> {
        let any = TypedExtensionConfig::decode(resource.body.clone()).ok()?.typed_config?;
        let outer = type_name(&any.type_url);
        if !matches!(outer, "xds.type.v3.TypedStruct" | "udpa.type.v1.TypedStruct") {
            return Some(outer.to_owned());
        }
        let inner = StructType::decode(any.value.as_slice()).ok()?;
        Some(type_name(&inner.type_url).to_owned())
    }

    /// The configuration in a `TypedExtensionConfig`.
    pub(crate) fn extension(&self, resource: &Resource) -> Result<Any, String> {
        let message: TypedExtensionConfig = self.message(resource)?;
        message.typed_config.ok_or_else(|| "typed_config is missing".to_owned())
    }

    pub(crate) fn routes(&self, resource: &Resource) -> Result<RouteConfiguration, String> {
        let message: PbRoutes = self.message(resource)?;
        RouteConfiguration::decode(&message, &mut self.context()).map_err(|errors| text(&errors))
    }

    pub(crate) fn scope(&self, resource: &Resource) -> Result<ScopedRouteConfiguration, String> {
        let message: PbScope = self.message(resource)?;
        ScopedRouteConfiguration::decode(&message, &mut self.context()).map_err(|errors| text(&errors))
    }

    /// A virtual host of the route configuration `shell`, which has none itself; alone in a copy of it.
    pub(crate) fn virtual_host(&self, shell: &PbRoutes, host: PbVirtualHost) -> Result<RouteConfiguration, String> {
        RouteConfiguration::decode_virtual_host(shell, host, &mut self.context()).map_err(|errors| text(&errors))
    }
}

/// What both `TypedStruct`s begin with.
#[derive(Clone, PartialEq, Message)]
struct StructType {
    #[prost(string, tag = "1")]
    type_url: String,
}

/// As [`text`], without the path of the configuration as a whole, which says nothing.
pub(crate) fn extension_text(errors: &[ConfigError]) -> String {
    let bare = |error: &ConfigError| match error.path.to_string().as_str() {
        "typed_config" => ConfigError { path: FieldPath::root(), ..error.clone() },
        _ => error.clone(),
    };
    text(&errors.iter().map(bare).collect::<Vec<_>>())
}

/// All errors in one line. The words come first, so that the text begins as Envoy's does; the path stands behind them.
pub(crate) fn text(errors: &[ConfigError]) -> String {
    let one = |error: &ConfigError| {
        let bare = ConfigError { path: FieldPath::root(), ..error.clone() };
        if error.path.is_root() { bare.to_string() } else { format!("{bare} (in {})", error.path) }
    };
    errors.iter().map(one).collect::<Vec<_>>().join("; ")
}

/// Tells two versions of a resource apart.
pub(crate) fn fingerprint(body: &[u8]) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(body)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::log::Log;
    use crate::options::Options;
    use nuncio_config::listener::NetworkFilterConfig;
    use prost_reflect::DynamicMessage;
    use serde_json::{Value, json};
    use xds_client::TypeUrl;

    /// A server that serves nothing, and keeps what it takes to read resources.
    pub(in crate::xds) fn server(flags: &[&str]) -> Arc<Server> {
        let config = "node: {id: a, cluster: b}\n\
                      dynamic_resources: {cds_config: {path_config_source: {path: /dev/null}}}\n";
        server_of(config, flags)
    }

    /// The same with a bootstrap of its own.
    pub(in crate::xds) fn server_of(config: &str, flags: &[&str]) -> Arc<Server> {
        let args = ["nuncio", "--config-yaml", config, "--concurrency", "1", "-l", "error"];
        let args = args.iter().chain(flags).map(|arg| (*arg).to_owned()).collect::<Vec<_>>();
        let options = Options::parse_args(args).unwrap_or_else(|(text, _)| panic!("{text}"));
        let log = Log::install("error", "", "%v", false, None).unwrap();
        let bootstrap = crate::loading::load(&options).unwrap_or_else(|report| panic!("{report}"));
        crate::server::build(bootstrap, options, log, false).unwrap_or_else(|e| panic!("{e:?}")).server
    }

    /// A listener as a control plane sends it that has its one filter's configuration as a struct.
    fn listener(fields: Value) -> Resource {
        let filter = json!({"name": "f", "typed_config": {
            "@type": "type.googleapis.com/xds.type.v3.TypedStruct",
            "type_url": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "value": fields,
        }});
        let address = json!({"socket_address": {"address": "127.0.0.1", "port_value": 1}});
        let message = json!({"name": "l", "address": address, "filter_chains": [{"filters": [filter]}]});
        let descriptor = descriptors::message("envoy.config.listener.v3.Listener").unwrap();
        let body = DynamicMessage::deserialize(descriptor, message).unwrap().encode_to_vec();
        resource("l", TypeUrl::LISTENER, body)
    }

    pub(in crate::xds) fn resource(name: &str, type_url: TypeUrl, body: Vec<u8>) -> Resource {
        Resource {
            name: name.to_owned(),
            aliases: Vec::new(),
            version: "1".to_owned(),
            type_url,
            body: body.into(),
            unresolved: false,
            ttl: None,
            do_not_cache: false,
        }
    }

    #[test]
    fn extensions_that_come_as_structs_are_read_as_the_messages_that_they_stand_for() {
        let read = |server: &Arc<Server>, fields| Decoder::new(server).listener(&listener(fields));
        let lenient = server(&[]);
        let config = read(&lenient, json!({"stat_prefix": "s", "cluster": "c"})).unwrap();
        let filter = &config.filter_chains[0].filters[0];
        assert!(matches!(filter, NetworkFilterConfig::TcpProxy(proxy) if &*proxy.stat_prefix == "s"), "{filter:?}");
        // The constraints of the message count, and its own unknown fields.
        let error = read(&lenient, json!({"cluster": "c"})).unwrap_err();
        assert!(error.contains("TcpProxyValidationError.StatPrefix"), "{error}");
        let before = lenient.stats.dynamic_unknown_fields().value();
        read(&lenient, json!({"stat_prefix": "s", "cluster": "c", "no_such": 1})).unwrap();
        assert_eq!(lenient.stats.dynamic_unknown_fields().value(), before + 1);
        let strict = server(&["--reject-unknown-dynamic-fields"]);
        let error = read(&strict, json!({"stat_prefix": "s", "cluster": "c", "no_such": 1})).unwrap_err();
        assert!(error.contains("(in filter_chains[0].filters[0].typed_config.no_such)"), "{error}");
    }
}

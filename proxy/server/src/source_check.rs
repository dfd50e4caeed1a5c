//! Whether what a `ConfigSource` says can be used at all: asked when something is built with it, so that what could never be
//! fetched is refused before it takes the place of what serves.
//!
//! The rules are Envoy's: a file has to exist, and a cluster that is asked has to be one of the bootstrap without endpoints
//! from outside. Nothing is opened or subscribed to here.

use crate::discovered::chain::path as filter_path;
use envoy_types::pb::envoy::config::core::v3 as pb;
use nuncio_config::cluster::{ClusterConfig, Discovery};
use nuncio_config::config_source::{
    Api, ApiConfigSource, ConfigSource, DynamicResources, GrpcTarget, SourceKind, too_many_services,
};
use nuncio_config::diagnostics::ConfigError;
use nuncio_config::listener::ListenerConfig;
use nuncio_config::paths::FieldPath;
use nuncio_config::tls::{CertificateSource, CommonTlsContext, SdsSecretConfig, ValidationSource};
use nuncio_http::matchers::Runtime;
use nuncio_upstream::ClusterManager;
use percent_encoding::percent_decode_str;
use prost::Message as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use xds_client::TypeUrl;
use xds_client::names::{ResourceName, is_xdstp};

/// See the module.
pub struct SourceCheck {
    clusters: Arc<ClusterManager>,
    runtime: Arc<dyn Runtime>,
    /// The bootstrap has an `ads_config`, and whether it is incremental.
    ads: Option<bool>,
    authorities: Vec<ConfigSource>,
    default_authority: Option<ConfigSource>,
}

/// Runtime feature, off by default: routes and endpoints with `xdstp://` names are asked from the authority of the name.
const BY_AUTHORITY: &str = "envoy.reloadable_features.xdstp_based_config_singleton_subscriptions";
/// Runtime feature, off by default: a source may name a second server.
const FAILOVER: &str = "envoy.restart_features.xds_failover_support";

/// Where a resource is asked for.
#[derive(Debug, Clone, PartialEq)]
pub enum Place {
    /// Where its configuration says.
    Source(ConfigSource),
    /// From the authority of its name.
    Authority {
        /// Which of `config_sources`; None for `default_config_source`.
        index: Option<usize>,
        /// Of that source.
        initial_fetch_timeout: Duration,
    },
}

/// What is the root of all that is fetched, or of the scopes of a connection manager.
#[derive(Debug, Clone, PartialEq)]
pub struct Root {
    /// Where it is asked for.
    pub source: ConfigSource,
    /// The collection; None for all of the type.
    pub collection: Option<ResourceName>,
}

impl SourceCheck {
    /// For the process whose clusters and runtime these are; `dynamic` is of its bootstrap.
    pub fn new(clusters: &Arc<ClusterManager>, runtime: &Arc<dyn Runtime>, dynamic: &DynamicResources) -> SourceCheck {
        let ads = dynamic.ads.as_ref().map(|ads| matches!(ads.api, Api::Grpc { delta: true, .. }));
        SourceCheck {
            clusters: clusters.clone(),
            runtime: runtime.clone(),
            ads,
            authorities: dynamic.authorities.clone(),
            default_authority: dynamic.default_authority.clone(),
        }
    }

    fn feature(&self, name: &str) -> bool {
        self.runtime.integer(name).unwrap_or(0) != 0
    }

    /// Where the resource `name` is asked for whose serialized `ConfigSource`, which may be empty, is at `path`.
    ///
    /// # Errors
    /// There is no such place.
    pub fn place(&self, name: &str, source: &[u8], path: FieldPath) -> Result<Place, Vec<ConfigError>> {
        if is_xdstp(name) && self.feature(BY_AUTHORITY) {
            let found = self.authority_of(name, source);
            if let Some(place) = found.map_err(|error| vec![ConfigError::new(path.clone(), error)])? {
                return Ok(place);
            }
        }
        let parsed = ConfigSource::parse(source, path.clone())?;
        self.usable(&parsed).map_err(|error| vec![ConfigError::new(path, error)])?;
        Ok(Place::Source(parsed))
    }

    fn authority_of(&self, name: &str, source: &[u8]) -> Result<Option<Place>, String> {
        let authority = ResourceName::parse(name).map_err(|error| error.to_string())?.authority;
        let own = pb::ConfigSource::decode(source).map_err(|error| error.to_string())?.authorities;
        if own.iter().any(|own| own.name == authority) {
            return Err(
                "Dynamically using non-bootstrap defined xDS-TP config sources is not yet supported.".to_owned()
            );
        }
        let index = self.authorities.iter().position(|one| one.authorities.iter().any(|name| **name == *authority));
        let found = index.and_then(|index| self.authorities.get(index)).or(self.default_authority.as_ref());
        Ok(found.map(|source| Place::Authority { index, initial_fetch_timeout: source.initial_fetch_timeout }))
    }

    /// What the scopes of a connection manager are asked for by; `path` is that of its `scoped_rds`.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn scopes(&self, source: &[u8], locator: &str, path: FieldPath) -> Result<Root, Vec<ConfigError>> {
        let source = match locator.starts_with(FILE_SCHEME) {
            true => None,
            false => Some(ConfigSource::parse(source, path.field("scoped_rds_config_source"))?),
        };
        let locator = Some(locator).filter(|locator| !locator.is_empty());
        let field = if locator.is_some() { "srds_resources_locator" } else { "scoped_rds_config_source" };
        self.root(source.as_ref(), locator, &TypeUrl::SCOPED_ROUTE_CONFIGURATION)
            .map_err(|error| vec![ConfigError::new(path.field(field), error)])
    }

    /// What all resources of a type are asked for by: a source, or a locator, which mostly needs one, too.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn root(
        &self,
        source: Option<&ConfigSource>,
        locator: Option<&str>,
        type_url: &TypeUrl,
    ) -> Result<Root, String> {
        let no_source = || "Missing config source specifier in envoy::config::core::v3::ConfigSource".to_owned();
        let Some(locator) = locator else {
            let source = source.ok_or_else(no_source)?;
            self.usable(source)?;
            return Ok(Root { source: source.clone(), collection: None });
        };
        let (name, fragment) = locator.split_once('#').unwrap_or((locator, ""));
        for directive in fragment.split(',').filter(|directive| !directive.is_empty()) {
            if !["alt=", "entry="].iter().any(|known| directive.starts_with(known)) {
                return Err(format!("Unknown fragment component {directive}"));
            }
        }
        if let Some(rest) = name.strip_prefix(FILE_SCHEME) {
            let path = rest.strip_prefix("//").map_or(rest, |rest| rest.find('/').map_or("/", |slash| &rest[slash..]));
            let path = percent_decode_str(path).decode_utf8_lossy().into_owned();
            file(Path::new(&path))?;
            return Ok(Root { source: collection_file(path), collection: None });
        }
        if name.starts_with("http:") {
            return Err("collections over HTTP are not implemented, in Envoy neither".to_owned());
        }
        if !is_xdstp(name) {
            return Err(format!("{locator} does not have a xdstp:, http: or file: scheme"));
        }
        // What is behind the fragment is part of the name that is sent.
        let collection = ResourceName::parse(locator).map_err(|error| error.to_string())?;
        if collection.resource_type != type_url.message() {
            return Err(format!("xdstp:// type does not match {} in {collection}", type_url.message()));
        }
        let unsupported = "Missing or not supported config source specifier in envoy::config::core::v3::ConfigSource for \
                           a collection. Only ADS and gRPC in delta-xDS mode are supported.";
        let source = match source.map(|source| &source.kind) {
            Some(SourceKind::Ads) => source,
            Some(SourceKind::Api(api)) => match &api.api {
                Api::Grpc { delta, aggregated, .. } if *delta || *aggregated => source,
                _ => return Err("Unknown xdstp:// transport API type: set DELTA_GRPC".to_owned()),
            },
            _ => return Err(unsupported.to_owned()),
        };
        let source = source.ok_or_else(no_source)?;
        self.usable(source)?;
        Ok(Root { source: source.clone(), collection: Some(collection) })
    }

    /// Whether the authorities of the bootstrap can be asked.
    ///
    /// # Errors
    /// The path of the first that cannot, and why.
    pub fn authorities(&self) -> Result<(), ConfigError> {
        let named = self.authorities.iter().enumerate();
        let named = named.map(|(index, source)| (FieldPath::root().field("config_sources").index(index), source));
        let default = self.default_authority.iter().map(|one| (FieldPath::root().field("default_config_source"), one));
        for (path, source) in named.chain(default) {
            if let SourceKind::Api(api) = &source.kind {
                self.api(api).map_err(|error| ConfigError::new(path, error))?;
            }
        }
        Ok(())
    }

    /// Whether a server can be asked.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn api(&self, api: &ApiConfigSource) -> Result<(), String> {
        if let Api::Grpc { failover: Some(failover), .. } = &api.api {
            if !self.feature(FAILOVER) {
                return Err(too_many_services(1));
            }
            if let GrpcTarget::Envoy { cluster, .. } = &failover.target {
                self.cluster_is_asked(cluster)?;
            }
        }
        api.cluster().map_or(Ok(()), |cluster| self.cluster_is_asked(cluster))
    }

    /// Whether a source speaks the incremental form.
    pub fn is_delta(&self, source: &ConfigSource) -> bool {
        match &source.kind {
            SourceKind::Ads => self.ads == Some(true),
            SourceKind::Api(api) => match api.api {
                Api::Grpc { aggregated: true, .. } => self.ads == Some(true),
                Api::Grpc { delta, .. } => delta,
                Api::Rest { .. } => false,
            },
            SourceKind::Path { .. } | SourceKind::CollectionFile(_) | SourceKind::SelfSource => false,
        }
    }

    /// Whether a serialized `ConfigSource`, which is at `path`, can be used.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, source: &[u8], path: FieldPath) -> Result<(), Vec<ConfigError>> {
        let parsed = ConfigSource::parse(source, path.clone())?;
        self.usable(&parsed).map_err(|error| vec![ConfigError::new(path, error)])
    }

    /// As [`SourceCheck::check`], for one that has been read.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn usable(&self, source: &ConfigSource) -> Result<(), String> {
        match &source.kind {
            SourceKind::Path { path, .. } | SourceKind::CollectionFile(path) => file(path),
            SourceKind::Api(api) if matches!(api.api, Api::Grpc { aggregated: true, .. }) => self.ads(),
            SourceKind::Api(api) => self.api(api),
            SourceKind::Ads => self.ads(),
            // What it stands for was checked where it is.
            SourceKind::SelfSource => Ok(()),
        }
    }

    fn ads(&self) -> Result<(), String> {
        self.ads.map(|_| ()).ok_or_else(|| "ADS must be configured to support an ADS config source".to_owned())
    }

    /// The cluster of the aggregated stream must be there.
    ///
    /// # Errors
    /// It is not.
    pub fn is_known(&self, name: &str) -> Result<(), String> {
        let found = self.clusters.cluster(name).is_some_and(|cluster| !cluster.config.added_via_api);
        if found { Ok(()) } else { Err(format!("Unknown gRPC client cluster '{name}'")) }
    }

    /// What configuration is fetched from must be there before any configuration is fetched.
    ///
    /// # Errors
    /// It is not.
    pub fn cluster_is_asked(&self, name: &str) -> Result<(), String> {
        let found = self.clusters.cluster(name).is_some_and(|cluster| {
            let eds = matches!(cluster.config.discovery, Discovery::Eds { .. });
            !cluster.config.added_via_api && !eds
        });
        if found {
            return Ok(());
        }
        Err(format!(
            "envoy.config.core.v3.ApiConfigSource must have a statically defined non-EDS cluster: '{name}' does not exist, \
             was added via api, or is an EDS cluster"
        ))
    }

    /// The sources of a listener's own secrets.
    pub fn listener(&self, config: &ListenerConfig, errors: &mut Vec<ConfigError>) {
        let chains = config.filter_chains.iter().chain(&config.default_filter_chain);
        for tls in chains.filter_map(|chain| chain.tls.as_ref()) {
            self.secrets(&tls.common, errors);
            if let Some(keys) = &tls.session_ticket_keys_sds {
                let path = FieldPath::parse(&tls.common.path).field("session_ticket_keys_sds_secret_config");
                self.secret(keys, path, errors);
            }
        }
    }

    /// The sources of a cluster's endpoints, filters and secrets.
    pub fn cluster(&self, config: &ClusterConfig) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        if let Discovery::Eds { source, service_name } = &config.discovery {
            let path = FieldPath::parse(&config.path).field("eds_cluster_config").field("eds_config");
            errors.extend(self.place(service_name, source, path).err().into_iter().flatten());
        }
        for filter in &config.http.http_filters {
            if let Some(source) = &filter.config_discovery {
                let path = filter_path(filter).field("config_discovery").field("config_source");
                errors.extend(self.check(&source.source, path).err().into_iter().flatten());
            }
        }
        let matches = config.transport_socket_matches.iter().filter_map(|entry| entry.socket.tls.as_ref());
        for tls in config.tls.iter().chain(matches) {
            self.secrets(&tls.common, &mut errors);
        }
        errors
    }

    fn secrets(&self, common: &CommonTlsContext, errors: &mut Vec<ConfigError>) {
        let path = FieldPath::parse(&common.path);
        let mut number = 0;
        for certificate in &common.certificates {
            if let CertificateSource::Sds(secret) = certificate {
                self.secret(secret, path.field("tls_certificate_sds_secret_configs").index(number), errors);
                number += 1;
            }
        }
        if let Some(ValidationSource::Sds { secret, .. }) = &common.validation {
            self.secret(secret, path.field("validation_context_sds_secret_config"), errors);
        }
    }

    /// A cluster that secrets are asked from may be missing, as in Envoy: they do not come then.
    fn secret(&self, secret: &SdsSecretConfig, path: FieldPath, errors: &mut Vec<ConfigError>) {
        let Some(source) = &secret.source else { return };
        let path = path.field("sds_config");
        match ConfigSource::parse(source, path.clone()) {
            Ok(source) if matches!(source.kind, SourceKind::Api(_)) => {}
            Ok(source) => errors.extend(self.usable(&source).err().map(|error| ConfigError::new(path, error))),
            Err(found) => errors.extend(found),
        }
    }
}

const FILE_SCHEME: &str = "file:";

fn collection_file(path: String) -> ConfigSource {
    ConfigSource {
        kind: SourceKind::CollectionFile(path.into()),
        initial_fetch_timeout: Duration::ZERO,
        authorities: Box::default(),
    }
}

fn file(path: &Path) -> Result<(), String> {
    if path.exists() {
        return Ok(());
    }
    Err(format!("paths must refer to an existing path in the system: '{}' does not exist", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use envoy_types::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier as Kind;
    use envoy_types::pb::envoy::config::core::v3::grpc_service::{EnvoyGrpc, TargetSpecifier};

    fn source(kind: Kind) -> Vec<u8> {
        pb::ConfigSource { config_source_specifier: Some(kind), ..Default::default() }.encode_to_vec()
    }

    fn file(path: &str) -> Vec<u8> {
        source(Kind::PathConfigSource(pb::PathConfigSource { path: path.into(), ..Default::default() }))
    }

    fn server(delta: bool) -> Vec<u8> {
        let target = EnvoyGrpc { cluster_name: "nobody".into(), ..Default::default() };
        let service =
            pb::GrpcService { target_specifier: Some(TargetSpecifier::EnvoyGrpc(target)), ..Default::default() };
        let api_type =
            if delta { pb::api_config_source::ApiType::DeltaGrpc } else { pb::api_config_source::ApiType::Grpc };
        let api = pb::ApiConfigSource { api_type: api_type.into(), grpc_services: vec![service], ..Default::default() };
        source(Kind::ApiConfigSource(api))
    }

    fn text(result: Result<(), Vec<ConfigError>>) -> String {
        result.err().into_iter().flatten().map(|error| error.to_string()).collect()
    }

    #[test]
    fn what_can_never_be_fetched_is_refused_with_its_path() {
        let server_of_tests = crate::xds::test_server();
        let check = &server_of_tests.context.sources;
        let path = || FieldPath::root().field("rds").field("config_source");
        assert_eq!(text(check.check(&file("/dev/null"), path())), "");
        assert_eq!(
            text(check.check(&file("/nowhere/at/all"), path())),
            "rds.config_source: paths must refer to an existing path in the system: '/nowhere/at/all' does not exist"
        );
        assert!(text(check.check(&server(false), path())).contains("'nobody' does not exist, was added via api"));
        assert!(text(check.check(&source(Kind::Ads(Default::default())), path())).contains("ADS must be configured"));
        assert!(text(check.check(b"", path())).contains("Missing config source specifier"));
    }

    #[test]
    fn secrets_may_be_asked_from_a_cluster_that_is_missing_but_not_from_a_file() {
        let server_of_tests = crate::xds::test_server();
        let check = &server_of_tests.context.sources;
        for (source, errors) in [(server(false), 0), (file("/nowhere/at/all"), 1), (file("/dev/null"), 0)] {
            let secret = SdsSecretConfig { name: "s".into(), source: Some(source.into()) };
            let mut found = Vec::new();
            check.secret(&secret, FieldPath::root(), &mut found);
            assert_eq!(found.len(), errors, "{found:?}");
        }
    }

    #[test]
    fn a_delta_source_is_told_apart() {
        let server_of_tests = crate::xds::test_server();
        let check = &server_of_tests.context.sources;
        let is_delta =
            |source: &[u8]| check.is_delta(&ConfigSource::parse(source, FieldPath::root()).expect("a source"));
        assert!(is_delta(&server(true)) && !is_delta(&server(false)) && !is_delta(&file("/dev/null")));
        assert!(!is_delta(&source(Kind::Ads(Default::default()))));
    }
}

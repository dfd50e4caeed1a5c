//! Whether what a `ConfigSource` says can be used at all: asked when something is built with it, so that what could never be
//! fetched is refused before it takes the place of what serves.
//!
//! The rules are Envoy's: a file has to exist, and a cluster that is asked has to be one of the bootstrap without endpoints
//! from outside. Nothing is opened or subscribed to here.

use nuncio_config::cluster::{ClusterConfig, Discovery};
use nuncio_config::config_source::{Api, ApiConfigSource, ConfigSource, SourceKind};
use nuncio_config::diagnostics::ConfigError;
use nuncio_config::listener::ListenerConfig;
use nuncio_config::paths::FieldPath;
use nuncio_config::tls::{CertificateSource, CommonTlsContext, SdsSecretConfig, ValidationSource};
use nuncio_upstream::ClusterManager;
use std::path::Path;
use std::sync::Arc;

/// See the module.
pub struct SourceCheck {
    clusters: Arc<ClusterManager>,
    /// The bootstrap has an `ads_config`, and whether it is incremental.
    ads: Option<bool>,
}

impl SourceCheck {
    /// For the process whose clusters these are; `ads` is the `ads_config` of its bootstrap.
    pub fn new(clusters: &Arc<ClusterManager>, ads: Option<&ApiConfigSource>) -> SourceCheck {
        let ads = ads.map(|ads| matches!(ads.api, Api::Grpc { delta: true, .. }));
        SourceCheck { clusters: clusters.clone(), ads }
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
            SourceKind::Path { .. } | SourceKind::SelfSource => false,
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
            SourceKind::Path { path, .. } => file(path),
            SourceKind::Api(api) if matches!(api.api, Api::Grpc { aggregated: true, .. }) => self.ads(),
            SourceKind::Api(api) => api.cluster().map_or(Ok(()), |cluster| self.cluster_is_asked(cluster)),
            SourceKind::Ads => self.ads(),
            // What it stands for was checked where it is.
            SourceKind::SelfSource => Ok(()),
        }
    }

    fn ads(&self) -> Result<(), String> {
        self.ads.map(|_| ()).ok_or_else(|| "ADS must be configured to support an ADS config source".to_owned())
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

    /// The sources of a cluster's endpoints and secrets.
    pub fn cluster(&self, config: &ClusterConfig) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        if let Discovery::Eds { source, .. } = &config.discovery {
            let path = FieldPath::parse(&config.path).field("eds_cluster_config").field("eds_config");
            errors.extend(self.check(source, path).err().into_iter().flatten());
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

fn file(path: &Path) -> Result<(), String> {
    if path.exists() {
        return Ok(());
    }
    Err(format!("paths must refer to an existing path in the system: '{}' does not exist", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use envoy_types::pb::envoy::config::core::v3 as pb;
    use envoy_types::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier as Kind;
    use envoy_types::pb::envoy::config::core::v3::grpc_service::{EnvoyGrpc, TargetSpecifier};
    use prost::Message as _;

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

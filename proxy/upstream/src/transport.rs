//! What stands between a socket to a host and its protocol: nothing, or TLS with the cluster's or the endpoint's context.

use crate::cluster::ClusterError;
use crate::host::Host;
use nuncio_config::cluster::ClusterConfig;

/// Transport sockets of one cluster.
#[derive(Debug)]
pub struct Transport {}

impl Transport {
    /// Builds the contexts of `config`.
    ///
    /// # Errors
    /// [`ClusterError`] for contexts that cannot be built.
    pub fn new(config: &ClusterConfig) -> Result<Transport, ClusterError> {
        let tls = config.tls.is_some() || config.transport_socket_matches.iter().any(|entry| entry.2.is_some());
        if tls || config.transport_socket.is_some() {
            return Err(ClusterError::Unsupported {
                path: format!("{}.transport_socket", config.path),
                what: "this transport socket is not supported".to_owned(),
            });
        }
        Ok(Transport {})
    }

    /// Whether connections to `host` are encrypted.
    pub fn is_secure(&self, host: &Host) -> bool {
        let _ = host;
        false
    }
}

/// The index of the first of `transport_socket_matches` whose criteria the metadata of an endpoint meets.
pub fn find_match(config: &ClusterConfig, metadata: Option<&serde_json::Value>) -> Option<u32> {
    let labels = metadata.and_then(|metadata| metadata.get("envoy.transport_socket_match"));
    config
        .transport_socket_matches
        .iter()
        .position(|(_, criteria, _)| {
            let Some(criteria) = criteria.as_object() else { return true };
            criteria.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
        })
        .map(|index| index as u32)
}

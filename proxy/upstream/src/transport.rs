//! What stands between a socket to a host and its protocol: nothing, or TLS with the cluster's or the endpoint's context.

use crate::cluster::ClusterError;
use crate::host::Host;
use crate::pool::connect::ConnectFailure;
use crate::stats::ClusterStats;
use nuncio_base::stats::Counter;
use nuncio_config::cluster::ClusterConfig;
use nuncio_http::codec::ResetReason;
use nuncio_net::connection::{ConnectionInfo, Io, Plain};
use nuncio_net::tls::TlsStats;
use nuncio_net::tls::client::{ClientTarget, ClientTlsContext};
use nuncio_net::tls::secrets::Secrets;
use std::net::IpAddr;
use std::sync::Arc;

/// What one connection asks of its transport socket beyond the configuration. Connections with different options are
/// never shared.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct TransportOptions {
    /// SNI from the request.
    pub server_name: Option<Box<str>>,
}

/// Transport sockets of one cluster.
pub struct Transport {
    /// That of the cluster, then those of `transport_socket_matches`; None for plain text.
    contexts: Box<[Option<Arc<ClientTlsContext>>]>,
    /// `<match>.total_match_count`.
    match_counts: Box<[Counter]>,
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.contexts.iter().map(Option::is_some)).finish()
    }
}

impl Transport {
    /// Builds the contexts of `config`.
    ///
    /// # Errors
    /// [`ClusterError`] for contexts that cannot be built.
    pub fn new(config: &ClusterConfig, stats: &ClusterStats, secrets: &Secrets) -> Result<Transport, ClusterError> {
        if let Some(socket) = &config.transport_socket {
            return Err(ClusterError::Unsupported {
                path: format!("{}.transport_socket", config.path),
                what: format!("transport socket {} is not implemented yet", socket.name),
            });
        }
        let all = std::iter::once(&config.tls).chain(config.transport_socket_matches.iter().map(|entry| &entry.2));
        let mut contexts = Vec::with_capacity(1 + config.transport_socket_matches.len());
        let mut tls_stats: Option<Arc<TlsStats>> = None;
        for context in all {
            contexts.push(match context {
                None => None,
                Some(context) => {
                    let stats =
                        tls_stats.get_or_insert_with(|| TlsStats::client(stats.registry(), stats.prefix()).into());
                    let mut context = context.clone();
                    if config.http.auto_san_validation && !context.auto_sni_san_validation {
                        Arc::make_mut(&mut context).auto_sni_san_validation = true;
                    }
                    Some(ClientTlsContext::with_secrets(context, stats.clone(), secrets)?)
                }
            });
        }
        let names = config.transport_socket_matches.iter();
        let count = |name: &str| stats.registry().counter(&format!("{}{name}.total_match_count", stats.prefix()));
        Ok(Transport { contexts: contexts.into(), match_counts: names.map(|entry| count(&entry.0)).collect() })
    }

    fn context(&self, host: &Host) -> Option<&Arc<ClientTlsContext>> {
        self.at(host.transport_socket_match)
    }

    fn at(&self, socket_match: Option<u32>) -> Option<&Arc<ClientTlsContext>> {
        self.contexts.get(socket_match.map_or(0, |index| index as usize + 1))?.as_ref()
    }

    /// Whether connections to hosts that match no other transport socket are encrypted.
    pub(crate) fn default_is_secure(&self) -> bool {
        self.at(None).is_some()
    }

    /// Whether connections to `host` are encrypted.
    #[inline]
    pub fn is_secure(&self, host: &Host) -> bool {
        self.context(host).is_some()
    }

    /// All TLS contexts, for certificate listings and reloading.
    pub fn contexts(&self) -> impl Iterator<Item = &Arc<ClientTlsContext>> {
        self.contexts.iter().flatten()
    }

    /// Counts which transport socket a new host got.
    pub(crate) fn count_match(&self, host: &Host, stats: &ClusterStats) {
        match host.transport_socket_match {
            None => stats.total_match_count().inc(),
            Some(index) => self.match_counts[index as usize].inc(),
        }
    }

    /// Does the handshake with `host` where `socket_match` has one; notes what it agreed in `info`.
    pub(crate) async fn wrap(
        &self,
        socket_match: Option<u32>,
        host: &Host,
        plain: Plain,
        options: &TransportOptions,
        alpn: Option<&[&[u8]]>,
        info: &mut ConnectionInfo,
    ) -> Result<Io, ConnectFailure> {
        let Some(context) = self.at(socket_match) else { return Ok(Io::plain(plain)) };
        let hostname = Some(&*host.hostname).filter(|name| !name.is_empty());
        let target = ClientTarget { hostname, server_name: options.server_name.as_deref(), alpn };
        // Boxed: a handshake is large, and most connections have none.
        match Box::pin(context.connect(plain, &target)).await {
            Ok(session) => {
                info.tls = Some(session.tls);
                info.negotiated_protocol = session.negotiated_protocol;
                info.requested_server_name = session.server_name;
                Ok(session.io)
            }
            Err(error) => Err(ConnectFailure {
                reason: ResetReason::RemoteConnectionFailure,
                text: Some(error.reason).filter(|text| !text.is_empty()),
            }),
        }
    }
}

/// The SNI for a request: its authority without the port, unless that is an address.
pub(crate) fn sni_of(authority: &str) -> Option<&str> {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !host.ends_with(':') => host,
        _ => authority,
    };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    (!host.is_empty() && bare.parse::<IpAddr>().is_err()).then_some(host)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::config;
    use serde_json::json;

    #[test]
    fn the_sni_is_the_authority_without_its_port_and_never_an_address() {
        assert_eq!(sni_of("example.com:8443"), Some("example.com"));
        assert_eq!(sni_of("example.com"), Some("example.com"));
        assert_eq!((sni_of("127.0.0.1:80"), sni_of("[::1]:80"), sni_of("")), (None, None, None));
    }

    #[test]
    fn the_first_match_whose_criteria_hold_is_taken() {
        let mut config = config();
        config.transport_socket_matches =
            vec![("a".into(), json!({"x": "1", "y": true}), None), ("b".into(), json!({}), None)];
        let metadata = json!({"envoy.transport_socket_match": {"x": "1", "y": true, "z": 3}});
        assert_eq!(find_match(&config, Some(&metadata)), Some(0));
        assert_eq!(find_match(&config, None), Some(1));
        config.transport_socket_matches.pop();
        assert_eq!(find_match(&config, Some(&json!({"envoy.transport_socket_match": {"x": "1"}}))), None);
    }
}

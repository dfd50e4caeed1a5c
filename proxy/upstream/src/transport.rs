//! What stands between a socket to a host and its protocol: nothing, or TLS with the cluster's or the endpoint's context;
//! before either a PROXY header, where that is asked for.

use crate::cluster::ClusterError;
use crate::host::Host;
use crate::pool::connect::ConnectFailure;
use crate::proxy_header::{ProxyHeader, ToldClient};
use crate::stats::ClusterStats;
use nuncio_base::stats::Counter;
use nuncio_config::cluster::ClusterConfig;
use nuncio_config::matchers::RuntimeFraction;
use nuncio_config::matching::{MatchData, MatchInput};
use nuncio_http::codec::ResetReason;
use nuncio_net::connection::{ConnectionInfo, Io, Plain};
use nuncio_net::tls::TlsStats;
use nuncio_net::tls::client::{ClientTarget, ClientTlsContext};
use nuncio_net::tls::secrets::Secrets;
use serde_json::Value;
use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::io::AsyncWriteExt as _;

/// What one connection asks of its transport socket beyond the configuration. Connections with different options are
/// never shared.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TransportOptions {
    /// SNI from the request.
    pub server_name: Option<Box<str>>,
    /// Whom the PROXY header tells of.
    pub client: Option<Box<ToldClient>>,
}

/// What connections of one kind have in front of their protocol.
struct TransportSocket {
    tls: Option<Arc<ClientTlsContext>>,
    header: Option<ProxyHeader>,
}

/// Transport sockets of one cluster.
pub struct Transport {
    /// That of the cluster, then those of `transport_socket_matches`.
    sockets: Box<[TransportSocket]>,
    /// `<match>.total_match_count`.
    match_counts: Box<[Counter]>,
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.sockets.iter().map(|socket| socket.tls.is_some())).finish()
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
        let matches = config.transport_socket_matches.iter();
        let all = std::iter::once((&config.tls, &config.proxy_protocol))
            .chain(matches.map(|entry| (&entry.socket.tls, &entry.socket.proxy_protocol)));
        let mut sockets = Vec::with_capacity(1 + config.transport_socket_matches.len());
        let mut tls_stats: Option<Arc<TlsStats>> = None;
        for (context, header) in all {
            let header = header.as_ref().map(|header| ProxyHeader::new(header, &config.path, stats)).transpose()?;
            let tls = match context {
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
            };
            sockets.push(TransportSocket { tls, header });
        }
        let names = config.transport_socket_matches.iter();
        let count = |name: &str| stats.registry().counter(&format!("{}{name}.total_match_count", stats.prefix()));
        Ok(Transport { sockets: sockets.into(), match_counts: names.map(|entry| count(&entry.name)).collect() })
    }

    fn at(&self, socket_match: Option<u32>) -> Option<&TransportSocket> {
        self.sockets.get(socket_match.map_or(0, |index| index as usize + 1))
    }

    fn tls(&self, socket_match: Option<u32>) -> Option<&Arc<ClientTlsContext>> {
        self.at(socket_match)?.tls.as_ref()
    }

    /// Whether connections to `host` tell of the client whom they serve.
    #[inline]
    pub(crate) fn tells_of_clients(&self, host: &Host) -> bool {
        self.at(host.transport_socket_match).is_some_and(|socket| socket.header.is_some())
    }

    /// Whether connections to hosts that match no other transport socket are encrypted.
    pub(crate) fn default_is_secure(&self) -> bool {
        self.tls(None).is_some()
    }

    /// Whether connections to `host` are encrypted.
    #[inline]
    pub fn is_secure(&self, host: &Host) -> bool {
        self.tls(host.transport_socket_match).is_some()
    }

    /// All TLS contexts, for certificate listings and reloading.
    pub fn contexts(&self) -> impl Iterator<Item = &Arc<ClientTlsContext>> {
        self.sockets.iter().filter_map(|socket| socket.tls.as_ref())
    }

    /// Counts which transport socket a new host got.
    pub(crate) fn count_match(&self, host: &Host, stats: &ClusterStats) {
        match host.transport_socket_match {
            None => stats.total_match_count().inc(),
            Some(index) => self.match_counts[index as usize].inc(),
        }
    }

    /// Sends the PROXY header and does the handshake with `host` where `socket_match` has them; notes what was agreed in
    /// `info`.
    pub(crate) async fn wrap(
        &self,
        socket_match: Option<u32>,
        host: &Host,
        mut plain: Plain,
        options: &TransportOptions,
        alpn: Option<&[&[u8]]>,
        info: &mut ConnectionInfo,
    ) -> Result<Io, ConnectFailure> {
        let Some(socket) = self.at(socket_match) else { return Ok(Io::plain(plain)) };
        if let Some(header) = &socket.header {
            let bytes = header.bytes(host, info, options.client.as_deref());
            // Nothing waits in a new socket: the header fits.
            if plain.write_all(&bytes).await.is_err() {
                return Err(ConnectFailure { reason: ResetReason::RemoteConnectionFailure, text: None });
            }
            info.bytes.sent.set(bytes.len() as u64);
        }
        let Some(context) = &socket.tls else { return Ok(Io::plain(plain)) };
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

/// The index of the transport socket match for an endpoint with such metadata, of its own and of its locality: the one
/// that the cluster's tree names, or the first whose criteria either meets.
pub fn find_match(config: &ClusterConfig, endpoint: Option<&Value>, locality: Option<&Value>) -> Option<u32> {
    match &config.transport_socket_matcher {
        Some(tree) => tree.find(&Labels { endpoint, locality }).copied().flatten(),
        None => first_match(config, endpoint).or_else(|| first_match(config, locality)),
    }
}

struct Labels<'a> {
    endpoint: Option<&'a Value>,
    locality: Option<&'a Value>,
}

impl MatchData<MatchInput> for Labels<'_> {
    fn value<'a>(&'a self, input: &'a MatchInput) -> Option<Cow<'a, [u8]>> {
        let (metadata, filter, path) = match input {
            MatchInput::EndpointMetadata(filter, path) => (self.endpoint?, filter, path),
            MatchInput::LocalityMetadata(filter, path) => (self.locality?, filter, path),
            MatchInput::Fixed(value) => return Some(value.as_ref()?.as_bytes().into()),
            _ => return None,
        };
        let found = path.iter().try_fold(metadata.get(&**filter)?, |value, key| value.get(&**key))?;
        Some(match found {
            Value::String(text) => text.as_bytes().into(),
            other => other.to_string().into_bytes().into(),
        })
    }

    fn in_fraction(&self, _: &RuntimeFraction, _: u64) -> bool {
        // Runtime is not asked for hosts.
        false
    }
}

fn first_match(config: &ClusterConfig, metadata: Option<&Value>) -> Option<u32> {
    let labels = metadata.and_then(|metadata| metadata.get("envoy.transport_socket_match"));
    config
        .transport_socket_matches
        .iter()
        .position(|entry| {
            let Some(criteria) = entry.criteria.as_object() else { return true };
            criteria.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
        })
        .map(|index| index as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::config;
    use nuncio_config::cluster::{TransportSocketMatch, UpstreamSocket};
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
        let entry = |name: &str, criteria| TransportSocketMatch {
            name: name.into(),
            criteria,
            socket: UpstreamSocket::default(),
        };
        config.transport_socket_matches = vec![entry("a", json!({"x": "1", "y": true})), entry("b", json!({}))];
        let metadata = json!({"envoy.transport_socket_match": {"x": "1", "y": true, "z": 3}});
        assert_eq!(find_match(&config, Some(&metadata), None), Some(0));
        assert_eq!(find_match(&config, None, None), Some(1));
        config.transport_socket_matches.pop();
        assert_eq!(find_match(&config, Some(&json!({"envoy.transport_socket_match": {"x": "1"}})), None), None);
        assert_eq!(find_match(&config, None, Some(&metadata)), Some(0));
    }
}

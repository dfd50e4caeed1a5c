//! The PROXY header before an upstream connection (`envoy.transport_sockets.upstream_proxy_protocol`).
//!
//! Made once per connection by [`crate::transport`]: it tells the addresses of the client whom the connection serves, so
//! that connections of different clients have pools of their own. A connection that serves no client (a health check)
//! tells its own addresses in version 1, and none in version 2.

use crate::cluster::ClusterError;
use crate::host::Host;
use crate::stats::ClusterStats;
use nuncio_base::random;
use nuncio_base::stats::Counter;
use nuncio_config::listener::ProxyProtocolVersion;
use nuncio_config::proxy_protocol::{AddedTlvs, Tlv, UpstreamProxyProtocol};
use nuncio_http::formatter::{FormatContext, LogFormatter};
use nuncio_http::stream_info::StreamInfo;
use nuncio_net::address::Address;
use nuncio_net::connection::ConnectionInfo;
use nuncio_net::proxy_protocol_header::{header_with_tlvs, local_header, proxy_protocol_header};
use std::hash::{Hash, Hasher};
use std::rc::Rc;
use std::sync::Arc;

/// The client for whom a connection is asked.
#[derive(Debug, Clone, Copy)]
pub struct Client<'a> {
    /// Its connection.
    pub connection: &'a ConnectionInfo,
    /// The TLVs that its header brought, and those of the TCP proxy.
    pub tlvs: &'a [Tlv],
}

impl<'a> Client<'a> {
    /// The client at the other end of `connection`.
    pub fn of(connection: &'a ConnectionInfo) -> Self {
        let tlvs = connection.proxy_protocol.as_ref().map_or(&[][..], |header| &header.tlvs);
        Client { connection, tlvs }
    }

    /// What is kept of it with its connection.
    pub(crate) fn to_owned(self) -> ToldClient {
        ToldClient {
            source: self.connection.remote_address.clone(),
            destination: self.connection.local_address.clone(),
            tlvs: self.tlvs.into(),
        }
    }

    /// What tells clients apart: as in Envoy the addresses alone.
    pub(crate) fn hash(&self, hasher: &mut impl Hasher) {
        self.connection.remote_address.hash(hasher);
        self.connection.local_address.hash(hasher);
    }

    /// Whether a connection that told of `other` can serve it.
    pub(crate) fn is(&self, other: &ToldClient) -> bool {
        self.connection.remote_address == other.source && self.connection.local_address == other.destination
    }
}

/// What a header tells of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToldClient {
    source: Address,
    destination: Address,
    tlvs: Box<[Tlv]>,
}

/// TLVs with fixed values and with formats, compiled.
#[derive(Debug)]
pub struct TlvWriter {
    fixed: Box<[Tlv]>,
    formats: Box<[(u8, LogFormatter)]>,
}

impl TlvWriter {
    /// Compiles formats.
    ///
    /// # Errors
    /// The first that does not compile, in Envoy's words.
    pub fn new(added: &AddedTlvs) -> Result<Self, String> {
        let compile = |(kind, format): &(u8, _)| match LogFormatter::new(format) {
            Ok(format) => Ok((*kind, format)),
            Err(error) => Err(format!("Failed to parse TLV format string: INVALID_ARGUMENT: {error}")),
        };
        let formats = added.formats.iter().map(compile).collect::<Result<_, _>>()?;
        Ok(TlvWriter { fixed: added.fixed.as_slice().into(), formats })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.fixed.is_empty() && self.formats.is_empty()
    }

    /// Those with fixed values.
    fn fixed(&self) -> &[Tlv] {
        &self.fixed
    }

    /// Those with formats.
    fn formatted<'a>(&'a self, cx: &'a FormatContext<'_>) -> impl Iterator<Item = Tlv> {
        self.formats.iter().map(|(kind, format)| {
            let mut value = Vec::new();
            format.write(cx, &mut value);
            (*kind, value.into())
        })
    }

    /// All of them.
    pub fn tlvs(&self, cx: &FormatContext<'_>) -> Vec<Tlv> {
        self.fixed.iter().cloned().chain(self.formatted(cx)).collect()
    }
}

/// The header of a transport socket.
#[derive(Debug)]
pub(crate) struct ProxyHeader {
    config: Arc<UpstreamProxyProtocol>,
    added: TlvWriter,
    v2_tlvs_exceed_max_length: Counter,
}

impl ProxyHeader {
    /// `path` is that of the cluster.
    pub(crate) fn new(
        config: &Arc<UpstreamProxyProtocol>,
        path: &str,
        stats: &ClusterStats,
    ) -> Result<Self, ClusterError> {
        let added = TlvWriter::new(&config.added)
            .map_err(|what| ClusterError::Unsupported { path: format!("{path}.transport_socket"), what })?;
        let name = format!("{}upstream.proxyprotocol.v2_tlvs_exceed_max_length", stats.prefix());
        Ok(ProxyHeader { config: config.clone(), added, v2_tlvs_exceed_max_length: stats.registry().counter(&name) })
    }

    /// The header of the connection `info` to `host`, which is to serve `client`.
    pub(crate) fn bytes(&self, host: &Host, info: &ConnectionInfo, client: Option<&ToldClient>) -> Vec<u8> {
        let (source, destination) = match client {
            Some(client) => (&client.source, &client.destination),
            None => (&info.local_address, &info.remote_address),
        };
        let client = match (self.config.version, client) {
            (ProxyProtocolVersion::V1, _) => {
                return proxy_protocol_header(ProxyProtocolVersion::V1, source, destination);
            }
            (ProxyProtocolVersion::V2, None) => return local_header(),
            (ProxyProtocolVersion::V2, Some(client)) => client,
        };
        let own = host.added_tlvs.as_deref().unwrap_or_default();
        let formatted = self.formatted(host, info);
        // Types that an endpoint has are its own; those with formats stand beside everything.
        let fixed = self.added.fixed().iter().filter(|(kind, _)| !own.iter().any(|(other, _)| other == kind));
        let mut tlvs: Vec<&Tlv> = own.iter().chain(fixed).chain(&formatted).collect();
        let added = tlvs.len();
        for tlv in client.tlvs.iter().filter(|(kind, _)| self.config.pass_through.includes(*kind)) {
            if !tlvs[..added].iter().any(|(kind, _)| *kind == tlv.0) {
                tlvs.push(tlv);
            }
        }
        let (header, fit) = header_with_tlvs(source, destination, &tlvs);
        if !fit {
            self.v2_tlvs_exceed_max_length.inc();
        }
        header
    }

    /// As in Envoy formats see the upstream connection as if it were the client's.
    fn formatted(&self, host: &Host, info: &ConnectionInfo) -> Vec<Tlv> {
        if self.added.formats.is_empty() {
            return Vec::new();
        }
        let mut connection = ConnectionInfo::unnumbered(info.local_address.clone(), info.remote_address.clone());
        connection.id = info.id;
        (connection.start_time, connection.start) = (info.start_time, info.start);
        let mut stream = StreamInfo::new(Rc::new(connection), random::u64(), None);
        (stream.start_time, stream.start) = (info.start_time, info.start);
        stream.upstream.host = Some(host.address_text.clone());
        stream.upstream.host_name = Some(host.hostname.clone()).filter(|name| !name.is_empty());
        stream.upstream.host_metadata = host.metadata();
        self.added.formatted(&FormatContext::new(&stream)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use nuncio_config::access_log::{LogFormat, LogFormatKind};
    use nuncio_config::proxy_protocol::PassThroughTlvs;

    fn ip(text: &str) -> Address {
        Address::Ip(text.parse().expect("an address"))
    }

    fn tlv(kind: u8, value: &[u8]) -> Tlv {
        (kind, value.into())
    }

    fn header(version: ProxyProtocolVersion, pass_through: PassThroughTlvs, added: AddedTlvs) -> ProxyHeader {
        let config = Arc::new(UpstreamProxyProtocol { version, pass_through, added });
        ProxyHeader::new(&config, "", &testing::stats()).expect("made")
    }

    #[test]
    fn own_tlvs_go_before_those_of_the_client() {
        let format = LogFormat {
            kind: LogFormatKind::Text("%UPSTREAM_HOST%".into()),
            omit_empty_values: false,
            sort_properties: false,
            path: "".into(),
        };
        let added = AddedTlvs { fixed: vec![tlv(1, b"a"), tlv(2, b"b")], formats: vec![(3, format)] };
        let header = header(ProxyProtocolVersion::V2, PassThroughTlvs::All, added);
        let mut host = Arc::into_inner(testing::host(9, 1, &Arc::default())).expect("one owner");
        host.added_tlvs = Some([tlv(1, b"h"), tlv(1, b"i")].into());
        let info = ConnectionInfo::unnumbered(ip("127.0.0.1:7"), ip("127.0.0.1:9"));
        let client = ToldClient {
            source: ip("1.2.3.4:5"),
            destination: ip("5.6.7.8:80"),
            tlvs: [tlv(2, b"x"), tlv(4, b"y"), tlv(4, b"z")].into(),
        };
        let bytes = header.bytes(&host, &info, Some(&client));
        assert_eq!(bytes[16..28], [1, 2, 3, 4, 5, 6, 7, 8, 0, 5, 0, 80]);
        let expected =
            [&b"\x01\0\x01h\x01\0\x01i\x02\0\x01b\x03\0\x0b127.0.0.1:9"[..], b"\x04\0\x01y\x04\0\x01z"].concat();
        assert_eq!(bytes[28..], expected);
        assert_eq!(header.bytes(&host, &info, None), local_header());
    }

    #[test]
    fn version_1_tells_its_own_addresses_where_there_is_no_client() {
        let header = header(ProxyProtocolVersion::V1, PassThroughTlvs::None, AddedTlvs::default());
        let host = testing::host(9, 1, &Arc::default());
        let info = ConnectionInfo::unnumbered(ip("127.0.0.1:7"), ip("127.0.0.1:9"));
        assert_eq!(header.bytes(&host, &info, None), b"PROXY TCP4 127.0.0.1 127.0.0.1 7 9\r\n");
    }

    #[test]
    fn clients_are_told_apart_by_their_addresses() {
        let connection = |from: &str| ConnectionInfo::unnumbered(ip("127.0.0.1:80"), ip(from));
        let (one, other) = (connection("127.0.0.1:7"), connection("127.0.0.1:8"));
        let told = Client::of(&one).to_owned();
        assert!(Client { connection: &one, tlvs: &[tlv(1, b"a")] }.is(&told));
        assert!(!Client::of(&other).is(&told));
    }
}

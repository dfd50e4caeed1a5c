//! `envoy.filters.listener.proxy_protocol`: addresses and TLVs from a PROXY header, version 1 or 2.
//!
//! Strict where the specification is; what is refused and counted follows Envoy.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nuncio_base::stat_family;
use nuncio_base::stats::{Counter, Registry};
use nuncio_config::listener::ProxyProtocolConfig;

use super::{ListenerFilter, Verdict};
use crate::address::Address;
use crate::connection::{ConnectionInfo, ProxyProtocolInfo, ProxyProtocolMetadata};

stat_family! {
    /// `proxy_proto.[PREFIX.]*`
    struct ProxyProtoStats {
        counters {
            not_found_disallowed,
            not_found_allowed,
            v1_found = "versions.v1.found",
            v1_disallowed = "versions.v1.disallowed",
            v1_error = "versions.v1.error",
            v2_found = "versions.v2.found",
            v2_disallowed = "versions.v2.disallowed",
            v2_error = "versions.v2.error",
        }
    }
}

const V1_SIGNATURE: &[u8] = b"PROXY ";
const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const V1_MAX: usize = 108;
const V2_HEADER: usize = 16;
/// A version 2 header with the longest length it can state.
const V2_MAX: usize = V2_HEADER + u16::MAX as usize;
/// Namespace of metadata where a rule names none.
const NAMESPACE: &str = "envoy.filters.listener.proxy_protocol";

/// The filter.
pub struct ProxyProtocol {
    config: ProxyProtocolConfig,
    stats: ProxyProtoStats,
    error: Counter,
}

/// A parsed header.
#[derive(Debug, PartialEq, Eq)]
struct Header {
    version: u8,
    length: usize,
    /// Source and destination; none for LOCAL and UNKNOWN, which keep the socket's addresses.
    addresses: Option<(SocketAddr, SocketAddr)>,
    tlvs: Vec<(u8, Box<[u8]>)>,
}

#[derive(Debug, PartialEq, Eq)]
enum Parsed {
    More {
        limit: usize,
    },
    Header(Header),
    /// Neither version's signature.
    Absent,
    Bad {
        version: Option<u8>,
    },
}

impl ProxyProtocol {
    pub(super) fn new(config: ProxyProtocolConfig, registry: &Registry) -> Self {
        let prefix = match &*config.stat_prefix {
            "" => "proxy_proto.".to_owned(),
            name => format!("proxy_proto.{name}."),
        };
        Self {
            stats: ProxyProtoStats::new(registry, &prefix),
            error: registry.counter("downstream_cx_proxy_proto_error"),
            config,
        }
    }
}

impl ListenerFilter for ProxyProtocol {
    fn on_data(&self, data: &[u8], info: &mut ConnectionInfo) -> Verdict {
        let stats = &self.stats;
        let allowed = self.config.allow_requests_without_proxy_protocol;
        match parse(data) {
            Parsed::More { limit } => Verdict::More { limit },
            Parsed::Absent if allowed => {
                stats.not_found_allowed().inc();
                Verdict::Done { consume: 0 }
            }
            Parsed::Absent => {
                stats.not_found_disallowed().inc();
                self.error.inc();
                Verdict::Close
            }
            Parsed::Bad { version } => {
                match version {
                    Some(1) => stats.v1_error().inc(),
                    Some(_) => stats.v2_error().inc(),
                    None => stats.not_found_disallowed().inc(),
                }
                self.error.inc();
                Verdict::Close
            }
            Parsed::Header(header) if self.config.disallowed_versions.contains(&header.version) => {
                if header.version == 1 {
                    stats.v1_disallowed().inc()
                } else {
                    stats.v2_disallowed().inc()
                }
                self.error.inc();
                Verdict::Close
            }
            Parsed::Header(header) => {
                if header.version == 1 {
                    stats.v1_found().inc()
                } else {
                    stats.v2_found().inc()
                }
                self.take(&header, info);
                Verdict::Done { consume: header.length }
            }
        }
    }
}

impl ProxyProtocol {
    fn take(&self, header: &Header, info: &mut ConnectionInfo) {
        if let Some((source, destination)) = header.addresses {
            info.remote_address = Address::Ip(source);
            info.local_address = Address::Ip(destination);
        }
        let rule = |kind: u8| self.config.rules.iter().find(|rule| rule.0 == kind);
        let metadata = header.tlvs.iter().filter_map(|(kind, value)| {
            let (_, namespace, key) = rule(*kind)?;
            let namespace = if namespace.is_empty() { NAMESPACE.into() } else { namespace.clone() };
            Some(ProxyProtocolMetadata { namespace, key: key.clone(), value: value.clone() })
        });
        info.proxy_protocol = Some(Box::new(ProxyProtocolInfo {
            version: header.version,
            kept: metadata.collect(),
            kept_in_filter_state: self.config.tlvs_in_filter_state,
            tlvs: header.tlvs.iter().filter(|(kind, _)| self.config.pass_through.includes(*kind)).cloned().collect(),
        }));
    }
}

fn parse(data: &[u8]) -> Parsed {
    if data.starts_with(V2_SIGNATURE) {
        return parse_v2(data);
    }
    if data.starts_with(V1_SIGNATURE) {
        return parse_v1(data);
    }
    if V2_SIGNATURE.starts_with(data) || V1_SIGNATURE.starts_with(data) {
        return Parsed::More { limit: V2_MAX };
    }
    Parsed::Absent
}

fn parse_v1(data: &[u8]) -> Parsed {
    let bad = Parsed::Bad { version: Some(1) };
    let window = &data[..data.len().min(V1_MAX)];
    let Some(end) = memchr::memmem::find(window, b"\r\n") else {
        return if data.len() >= V1_MAX { bad } else { Parsed::More { limit: V1_MAX } };
    };
    let Ok(line) = std::str::from_utf8(&data[V1_SIGNATURE.len()..end]) else { return bad };
    let length = end + 2;
    let header = |addresses| Parsed::Header(Header { version: 1, length, addresses, tlvs: Vec::new() });
    let mut parts = line.split(' ');
    let family = parts.next();
    if family == Some("UNKNOWN") {
        return header(None);
    }
    let [Some(source), Some(destination), Some(source_port), Some(destination_port), None] =
        [parts.next(), parts.next(), parts.next(), parts.next(), parts.next()]
    else {
        return bad;
    };
    let address = |ip: &str| match family {
        Some("TCP4") => ip.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        Some("TCP6") => ip.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        _ => None,
    };
    let port = |text: &str| {
        let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u16>().ok().filter(|_| plain)
    };
    let pair = |ip: &str, number: &str| Some(SocketAddr::new(address(ip).filter(is_unicast)?, port(number)?));
    match (pair(source, source_port), pair(destination, destination_port)) {
        (Some(source), Some(destination)) => header(Some((source, destination))),
        _ => bad,
    }
}

/// As Envoy has it: neither multicast nor unspecified nor broadcast.
fn is_unicast(ip: &IpAddr) -> bool {
    let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    !ip.is_multicast() && !ip.is_unspecified() && !broadcast
}

fn parse_v2(data: &[u8]) -> Parsed {
    let bad = Parsed::Bad { version: Some(2) };
    let Some((head, rest)) = data.split_first_chunk::<V2_HEADER>() else { return Parsed::More { limit: V2_MAX } };
    let (version, command) = (head[12] >> 4, head[12] & 0x0f);
    let (family, transport) = (head[13] >> 4, head[13] & 0x0f);
    let length = usize::from(u16::from_be_bytes([head[14], head[15]]));
    let address_length = match (version, command, family, transport) {
        (2, 0, _, _) => 0,
        (2, 1, 1, 1 | 2) => 12,
        (2, 1, 2, 1 | 2) => 36,
        // Unix sockets and AF_UNSPEC are refused, as in Envoy.
        _ => return bad,
    };
    if length < address_length {
        return bad;
    }
    let Some(body) = rest.get(..length) else { return Parsed::More { limit: V2_HEADER + length } };
    let (addresses, tlvs) = body.split_at(address_length);
    let addresses = match address_length {
        12 => Some((v4(&addresses[..4], &addresses[8..10]), v4(&addresses[4..8], &addresses[10..12]))),
        36 => Some((v6(&addresses[..16], &addresses[32..34]), v6(&addresses[16..32], &addresses[34..36]))),
        _ => None,
    };
    if addresses.is_some_and(|(source, destination)| !is_unicast(&source.ip()) || !is_unicast(&destination.ip())) {
        return bad;
    }
    // What follows a LOCAL header is skipped unread.
    let tlvs = if command == 0 { Some(Vec::new()) } else { parse_tlvs(tlvs) };
    match tlvs {
        Some(tlvs) => Parsed::Header(Header { version: 2, length: V2_HEADER + length, addresses, tlvs }),
        None => bad,
    }
}

fn v4(ip: &[u8], port: &[u8]) -> SocketAddr {
    let mut octets = [0; 4];
    octets.copy_from_slice(ip);
    SocketAddr::from((octets, u16::from_be_bytes([port[0], port[1]])))
}

fn v6(ip: &[u8], port: &[u8]) -> SocketAddr {
    let mut octets = [0; 16];
    octets.copy_from_slice(ip);
    SocketAddr::from((octets, u16::from_be_bytes([port[0], port[1]])))
}

fn parse_tlvs(mut rest: &[u8]) -> Option<Vec<(u8, Box<[u8]>)>> {
    let mut tlvs = Vec::new();
    while !rest.is_empty() {
        let (head, after) = rest.split_first_chunk::<3>()?;
        let (value, after) = after.split_at_checked(usize::from(u16::from_be_bytes([head[1], head[2]])))?;
        tlvs.push((head[0], value.into()));
        rest = after;
    }
    Some(tlvs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nuncio_config::proxy_protocol::PassThroughTlvs;

    const V4: &[u8] = b"\x01\x02\x03\x04\x05\x06\x07\x08\x03\xe8\x00\x50";

    fn v2(head: [u8; 2], body: &[u8]) -> Vec<u8> {
        [V2_SIGNATURE, &head, &(body.len() as u16).to_be_bytes(), body, b"GET /"].concat()
    }

    fn addresses(data: &[u8]) -> Option<(String, String)> {
        match parse(data) {
            Parsed::Header(Header { addresses: Some((source, destination)), .. }) => {
                Some((source.to_string(), destination.to_string()))
            }
            _ => None,
        }
    }

    #[test]
    fn both_versions_give_the_addresses() {
        let expected = Some(("1.2.3.4:1000".to_owned(), "5.6.7.8:80".to_owned()));
        assert_eq!(addresses(b"PROXY TCP4 1.2.3.4 5.6.7.8 1000 80\r\nGET"), expected);
        assert_eq!(addresses(&v2([0x21, 0x11], V4)), expected);
        assert_eq!(addresses(&v2([0x21, 0x12], V4)), expected);
        let expected = Some(("[::1]:1000".to_owned(), "[::2]:80".to_owned()));
        assert_eq!(addresses(b"PROXY TCP6 ::1 ::2 1000 80\r\n"), expected);
    }

    #[test]
    fn local_and_unknown_keep_the_sockets_addresses() {
        let kept = |data: &[u8], length| matches!(parse(data), Parsed::Header(Header { addresses: None, length: found, .. }) if found == length);
        assert!(kept(b"PROXY UNKNOWN\r\nGET", 15));
        assert!(kept(b"PROXY UNKNOWN whatever it says\r\nGET", 32));
        assert!(kept(&v2([0x20, 0x00], b""), 16));
        assert!(kept(&v2([0x20, 0x11], b"\xff\xff"), 18));
    }

    #[test]
    fn bad_headers_are_refused() {
        for data in [
            &b"PROXY TCP4 1.2.3 5.6.7.8 1000 80\r\n"[..],
            b"PROXY TCP4 224.0.0.1 5.6.7.8 1000 80\r\n",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 70000 80\r\n",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 +1000 80\r\n",
            b"PROXY  TCP4 1.2.3.4 5.6.7.8 1000 80\r\n",
            b"PROXY TCP4 ::1 ::2 1000 80\r\n",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 1000 80 9\r\n",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 1000 80\nGET / HTTP/1.1\r\n",
        ] {
            assert_eq!(parse(data), Parsed::Bad { version: Some(1) }, "{:?}", String::from_utf8_lossy(data));
        }
        for data in [
            v2([0x31, 0x11], V4),
            v2([0x22, 0x11], V4),
            v2([0x21, 0x11], &V4[..4]),
            v2([0x21, 0x31], &[0; 216]),
            v2([0x21, 0x00], b""),
            v2([0x21, 0x11], &[V4, b"\x05\x00\x09ab"].concat()),
        ] {
            assert_eq!(parse(&data), Parsed::Bad { version: Some(2) }, "{data:?}");
        }
        assert_eq!(parse(b"GET / HTTP/1.1"), Parsed::Absent);
    }

    #[test]
    fn every_prefix_asks_for_more() {
        for data in [b"PROXY TCP4 1.2.3.4 5.6.7.8 1000 80\r\n".to_vec(), v2([0x21, 0x11], V4)[..28].to_vec()] {
            for end in 1..data.len() {
                assert!(matches!(parse(&data[..end]), Parsed::More { .. }), "{end}");
            }
            assert!(matches!(parse(&data), Parsed::Header(_)));
        }
        let endless = [V1_SIGNATURE, &[b'x'; V1_MAX]].concat();
        assert_eq!(parse(&endless), Parsed::Bad { version: Some(1) });
    }

    #[test]
    fn rules_keep_tlvs_as_metadata_and_others_are_passed_on() {
        let registry = Registry::new(1, nuncio_base::stats::StatsConfig::default());
        let config = ProxyProtocolConfig {
            rules: vec![(5, "".into(), "unique_id".into())],
            pass_through: PassThroughTlvs::Types([6][..].into()),
            stat_prefix: "p".into(),
            ..ProxyProtocolConfig::default()
        };
        let filter = ProxyProtocol::new(config, &registry);
        let pipe = || Address::Pipe("".into());
        let mut info = ConnectionInfo::new(pipe(), pipe());
        let data = v2([0x21, 0x11], &[V4, b"\x05\x00\x02ab\x06\x00\x00"].concat());
        assert_eq!(filter.on_data(&data, &mut info), Verdict::Done { consume: data.len() - 5 });
        let found = info.proxy_protocol.expect("found");
        assert_eq!(found.tlvs, [(6, Box::default())]);
        assert_eq!(
            found.kept,
            [ProxyProtocolMetadata { namespace: NAMESPACE.into(), key: "unique_id".into(), value: b"ab"[..].into() }]
        );
        assert_eq!(info.remote_address.to_string(), "1.2.3.4:1000");
        assert_eq!(registry.counter_value("proxy_proto.p.versions.v2.found"), Some(1));
    }

    proptest::proptest! {
        #[test]
        fn garbage_never_panics(data in proptest::collection::vec(0u8.., 0..80), head in 0usize..3) {
            let start = [&b""[..], V1_SIGNATURE, V2_SIGNATURE][head];
            let _ = parse(&[start, &data].concat());
        }
    }
}

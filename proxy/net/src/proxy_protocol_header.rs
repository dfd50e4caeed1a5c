//! Writes PROXY protocol headers, for upstream connections that are to learn the client's addresses.
//!
//! Reading them is the work of the listener filter.

use crate::address::Address;
use nuncio_config::listener::ProxyProtocolVersion;
use nuncio_config::proxy_protocol::Tlv;
use std::net::{IpAddr, SocketAddr};

const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// The header that tells of a connection from `source` to `destination`. Addresses that are not IP are not told:
/// `UNKNOWN` in version 1, `LOCAL` in version 2.
pub fn proxy_protocol_header(version: ProxyProtocolVersion, source: &Address, destination: &Address) -> Vec<u8> {
    let addresses = match (source, destination) {
        (Address::Ip(source), Address::Ip(destination)) => Some(same_family(*source, *destination)),
        _ => None,
    };
    match (version, addresses) {
        (ProxyProtocolVersion::V1, None) => b"PROXY UNKNOWN\r\n".to_vec(),
        (ProxyProtocolVersion::V1, Some((source, destination))) => {
            let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
            let (from, to) = (source.ip(), destination.ip());
            format!("PROXY {family} {from} {to} {} {}\r\n", source.port(), destination.port()).into_bytes()
        }
        (ProxyProtocolVersion::V2, Some((source, destination))) => v2(source, destination, &[]).0,
        (ProxyProtocolVersion::V2, None) => local_header(),
    }
}

/// A header of version 2 that tells of no connection: that of health checks.
pub fn local_header() -> Vec<u8> {
    [V2_SIGNATURE, &[0x20, 0, 0, 0]].concat()
}

/// A header of version 2 with TLVs, and whether all of them fit: those that would make the header too long are left out.
pub fn header_with_tlvs(source: &Address, destination: &Address, tlvs: &[&Tlv]) -> (Vec<u8>, bool) {
    match (source, destination) {
        (Address::Ip(source), Address::Ip(destination)) => {
            let (source, destination) = same_family(*source, *destination);
            v2(source, destination, tlvs)
        }
        _ => (local_header(), true),
    }
}

fn v2(source: SocketAddr, destination: SocketAddr, tlvs: &[&Tlv]) -> (Vec<u8>, bool) {
    let (family, mut length) = if source.is_ipv4() { (0x11, 12) } else { (0x21, 36_u16) };
    let mut extensions = Vec::new();
    let mut fit = true;
    for (kind, value) in tlvs {
        let sizes =
            u16::try_from(value.len()).ok().and_then(|size| Some((size, length.checked_add(size)?.checked_add(3)?)));
        let Some((size, with)) = sizes else {
            fit = false;
            continue;
        };
        length = with;
        extensions.push(*kind);
        extensions.extend_from_slice(&size.to_be_bytes());
        extensions.extend_from_slice(value);
    }
    let mut header = Vec::with_capacity(V2_SIGNATURE.len() + 4 + usize::from(length));
    header.extend_from_slice(V2_SIGNATURE);
    header.extend_from_slice(&[0x21, family]);
    header.extend_from_slice(&length.to_be_bytes());
    for address in [source, destination] {
        match address.ip() {
            IpAddr::V4(ip) => header.extend_from_slice(&ip.octets()),
            IpAddr::V6(ip) => header.extend_from_slice(&ip.octets()),
        }
    }
    header.extend_from_slice(&source.port().to_be_bytes());
    header.extend_from_slice(&destination.port().to_be_bytes());
    header.extend_from_slice(&extensions);
    (header, fit)
}

/// Both as IPv4, or both as IPv6 where one of them is: a header has one family.
fn same_family(source: SocketAddr, destination: SocketAddr) -> (SocketAddr, SocketAddr) {
    if source.is_ipv4() == destination.is_ipv4() {
        return (source, destination);
    }
    let mapped = |address: SocketAddr| match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(IpAddr::V6(ip.to_ipv6_mapped()), address.port()),
        IpAddr::V6(_) => address,
    };
    (mapped(source), mapped(destination))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        Address::Ip(text.parse().expect("an address"))
    }

    #[test]
    fn version_1_is_a_line_of_text() {
        let header = |from, to| proxy_protocol_header(ProxyProtocolVersion::V1, &from, &to);
        let v4 = header(address("1.2.3.4:5"), address("6.7.8.9:80"));
        assert_eq!(v4, b"PROXY TCP4 1.2.3.4 6.7.8.9 5 80\r\n");
        assert_eq!(header(address("[::1]:5"), address("[::2]:80")), b"PROXY TCP6 ::1 ::2 5 80\r\n");
        assert_eq!(header(Address::Pipe("a".into()), address("6.7.8.9:80")), b"PROXY UNKNOWN\r\n");
    }

    #[test]
    fn version_2_has_one_family_and_states_its_length() {
        let header = |from, to| proxy_protocol_header(ProxyProtocolVersion::V2, &from, &to);
        let v4 = header(address("1.2.3.4:5"), address("6.7.8.9:80"));
        assert_eq!(v4[12..], [0x21, 0x11, 0, 12, 1, 2, 3, 4, 6, 7, 8, 9, 0, 5, 0, 80]);
        let mixed = header(address("1.2.3.4:5"), address("[::2]:80"));
        assert_eq!((mixed[13], mixed.len()), (0x21, 16 + 36));
        assert_eq!(header(Address::Pipe("a".into()), address("6.7.8.9:80"))[12..], [0x20, 0, 0, 0]);
    }

    #[test]
    fn tlvs_that_would_not_fit_are_left_out() {
        let (from, to) = (address("1.2.3.4:5"), address("6.7.8.9:80"));
        let [small, other]: [Tlv; 2] = [(0xe1, b"ab"[..].into()), (0xe2, Box::default())];
        let (header, fit) = header_with_tlvs(&from, &to, &[&small, &other]);
        assert!(fit);
        assert_eq!(header[14..16], [0, 12 + 5 + 3]);
        assert_eq!(header[28..], [0xe1, 0, 2, b'a', b'b', 0xe2, 0, 0]);
        // Address, type and length take 15 of 65535 bytes.
        let longest: Tlv = (1, vec![0; 65535 - 15].into());
        let longer: Tlv = (1, vec![0; 65535 - 14].into());
        let too_long: Tlv = (1, vec![0; 65536].into());
        assert!(header_with_tlvs(&from, &to, &[&longest]).1);
        let (header, fit) = header_with_tlvs(&from, &to, &[&longer, &too_long, &small]);
        assert!(!fit);
        assert_eq!(header[28..], [0xe1, 0, 2, b'a', b'b']);
        assert_eq!(header_with_tlvs(&Address::Pipe("a".into()), &to, &[&small]), (local_header(), true));
    }
}

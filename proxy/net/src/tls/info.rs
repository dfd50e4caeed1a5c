//! What is known about a TLS session and about certificates, in the text forms of Envoy's access logs and headers.
//!
//! Filled by the handshakes; certificates are parsed when somebody asks. Verification is not done here.

use std::cell::OnceCell;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::{CipherSuite, NamedGroup, ProtocolVersion};
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use x509_parser::der_parser::asn1_rs::{Any, Tag, ToDer};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::X509Name;

/// A TLS session.
#[derive(Debug)]
pub struct TlsInfo {
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// OpenSSL's name of the cipher suite, such as `TLS_AES_128_GCM_SHA256` or `ECDHE-ECDSA-AES128-GCM-SHA256`.
    pub cipher: &'static str,
    /// Key exchange group, such as `X25519` or `P-256`; empty where unknown.
    pub group: &'static str,
    /// Session id in lower-case hex. rustls resumes by ticket and tells no id, so that it is empty.
    pub session_id: Box<str>,
    /// The session was resumed.
    pub resumed: bool,
    /// The peer's chain, leaf first; empty when it sent none.
    pub peer_certificates: Box<[CertificateDer<'static>]>,
    /// The peer's certificate was verified (`peerCertificateValidated`): false under ACCEPT_UNTRUSTED after a failure.
    pub peer_validated: bool,
    /// Own certificate.
    pub local_certificate: Option<Arc<CertificateInfo>>,
    /// When the handshake began and when it was done; None where it failed.
    pub handshake: Option<(Instant, Instant)>,
    pub(crate) peer: OnceCell<Option<Box<CertificateInfo>>>,
}

impl TlsInfo {
    /// The peer's leaf certificate, parsed at the first call.
    pub fn peer_certificate(&self) -> Option<&CertificateInfo> {
        self.peer
            .get_or_init(|| self.peer_certificates.first().and_then(|der| CertificateInfo::parse(der)).map(Box::new))
            .as_ref()
            .map(|info| &**info)
    }

    /// Whether the peer showed a certificate.
    pub fn peer_certificate_presented(&self) -> bool {
        !self.peer_certificates.is_empty()
    }
}

/// A certificate's contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateInfo {
    /// The certificate itself.
    pub der: CertificateDer<'static>,
    /// Subject in RFC 2253 form, most specific part first.
    pub subject: Box<str>,
    /// Issuer in the same form.
    pub issuer: Box<str>,
    /// Serial number, lower-case hex without leading zeros.
    pub serial: Box<str>,
    /// Subject alternative names in the order of the certificate.
    pub sans: Vec<San>,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
}

/// A subject alternative name. Bytes are kept as they are, NULs included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum San {
    /// dNSName.
    Dns(Box<[u8]>),
    /// uniformResourceIdentifier.
    Uri(Box<[u8]>),
    /// rfc822Name.
    Email(Box<[u8]>),
    /// iPAddress as text.
    Ip(Box<str>),
    /// otherName: OID in dotted form and, when it is a string type, the value.
    OtherName(Box<str>, Option<Box<[u8]>>),
}

impl CertificateInfo {
    /// Reads a DER certificate; none if it is malformed.
    pub fn parse(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let time = |time: x509_parser::time::ASN1Time| {
            let seconds = time.timestamp();
            if seconds >= 0 {
                SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.unsigned_abs())
            } else {
                SystemTime::UNIX_EPOCH
            }
        };
        Some(Self {
            der: CertificateDer::from(der.to_vec()),
            subject: rfc2253(certificate.subject()).into(),
            issuer: rfc2253(certificate.issuer()).into(),
            serial: serial(certificate.raw_serial()).into(),
            sans: sans(&certificate),
            not_before: time(certificate.validity().not_before),
            not_after: time(certificate.validity().not_after),
        })
    }

    /// SHA-256 of the certificate, lower-case hex.
    pub fn fingerprint_256(&self) -> String {
        hex(&Sha256::digest(&self.der))
    }

    /// SHA-1 of the certificate, lower-case hex.
    pub fn fingerprint_1(&self) -> String {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, &self.der);
        hex(digest.as_ref())
    }

    /// The certificate in PEM with lines of 64 characters, as OpenSSL writes it.
    pub fn pem(&self) -> String {
        pem(&self.der)
    }

    /// DNS names as text.
    pub fn dns_sans(&self) -> impl Iterator<Item = std::borrow::Cow<'_, str>> {
        self.sans.iter().filter_map(|san| match san {
            San::Dns(name) => Some(String::from_utf8_lossy(name)),
            _ => None,
        })
    }

    /// URIs as text.
    pub fn uri_sans(&self) -> impl Iterator<Item = std::borrow::Cow<'_, str>> {
        self.sans.iter().filter_map(|san| match san {
            San::Uri(name) => Some(String::from_utf8_lossy(name)),
            _ => None,
        })
    }

    /// Mail addresses as text.
    pub fn email_sans(&self) -> impl Iterator<Item = std::borrow::Cow<'_, str>> {
        self.sans.iter().filter_map(|san| match san {
            San::Email(name) => Some(String::from_utf8_lossy(name)),
            _ => None,
        })
    }

    /// IP addresses as text.
    pub fn ip_sans(&self) -> impl Iterator<Item = &str> {
        self.sans.iter().filter_map(|san| match san {
            San::Ip(name) => Some(&**name),
            _ => None,
        })
    }
}

/// A certificate in PEM with lines of 64 characters.
pub fn pem(der: &[u8]) -> String {
    const TABLE: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(der.len() * 4 / 3 + der.len() / 48 + 64);
    out.push_str("-----BEGIN CERTIFICATE-----\n");
    for line in der.chunks(48) {
        for group in line.chunks(3) {
            let bits = group.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
            for at in 0..4 {
                let index = (bits >> (18 - 6 * at)) as usize & 63;
                out.push(if at <= group.len() { TABLE[index] as char } else { '=' });
            }
        }
        out.push('\n');
    }
    out.push_str("-----END CERTIFICATE-----\n");
    out
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        // Writing to a string cannot fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}

fn serial(raw: &[u8]) -> String {
    let first = raw.iter().position(|byte| *byte != 0).unwrap_or(raw.len());
    match hex(&raw[first..]) {
        text if text.is_empty() => "0".to_owned(),
        text => text,
    }
}

/// The names of a certificate's subjectAltName extension.
pub(crate) fn sans(certificate: &X509Certificate<'_>) -> Vec<San> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return Vec::new() };
    extension.value.general_names.iter().filter_map(san).collect()
}

fn san(name: &GeneralName<'_>) -> Option<San> {
    Some(match name {
        GeneralName::DNSName(name) => San::Dns(name.as_bytes().into()),
        GeneralName::URI(name) => San::Uri(name.as_bytes().into()),
        GeneralName::RFC822Name(name) => San::Email(name.as_bytes().into()),
        GeneralName::IPAddress(bytes) => San::Ip(match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).map(|octets| Ipv4Addr::from(octets).to_string()).ok()?.into(),
            16 => <[u8; 16]>::try_from(*bytes).map(|octets| Ipv6Addr::from(octets).to_string()).ok()?.into(),
            _ => return None,
        }),
        GeneralName::OtherName(oid, value) => San::OtherName(oid.to_id_string().into(), other_name(value)),
        _ => return None,
    })
}

/// The string inside `[0] EXPLICIT ANY` of an otherName.
fn other_name(value: &[u8]) -> Option<Box<[u8]>> {
    let (_, outer) = Any::from_der(value).ok()?;
    let inner = if outer.header.is_constructed() { Any::from_der(outer.data).ok()?.1 } else { outer };
    match inner.tag() {
        Tag::BmpString | Tag::UniversalString => None,
        Tag::Utf8String
        | Tag::Ia5String
        | Tag::PrintableString
        | Tag::T61String
        | Tag::VisibleString
        | Tag::GeneralString
        | Tag::NumericString
        | Tag::OctetString
        | Tag::GeneralizedTime
        | Tag::UtcTime => Some(inner.data.into()),
        _ => None,
    }
}

/// A distinguished name as OpenSSL's `XN_FLAG_RFC2253` prints it.
pub(crate) fn rfc2253(name: &X509Name<'_>) -> String {
    let mut out = String::new();
    let parts: Vec<_> = name.iter_rdn().collect();
    for (at, part) in parts.iter().rev().enumerate() {
        if at > 0 {
            out.push(',');
        }
        // OpenSSL walks the whole list backwards, also inside a part with several attributes.
        let attributes: Vec<_> = part.iter().collect();
        for (at, attribute) in attributes.iter().rev().enumerate() {
            if at > 0 {
                out.push('+');
            }
            let oid = attribute.attr_type().to_id_string();
            let value = attribute.attr_value();
            match short_name(&oid) {
                Some(short) => {
                    out.push_str(short);
                    out.push('=');
                    match string_value(value) {
                        Some(text) => escape(&text, &mut out),
                        None => dump(value, &mut out),
                    }
                }
                None => {
                    out.push_str(&oid);
                    out.push('=');
                    dump(value, &mut out);
                }
            }
        }
    }
    out
}

fn string_value(value: &Any<'_>) -> Option<Vec<u8>> {
    match value.tag() {
        Tag::Utf8String | Tag::PrintableString | Tag::Ia5String | Tag::NumericString | Tag::VisibleString => {
            Some(value.data.to_vec())
        }
        Tag::T61String => Some(value.data.iter().map(|byte| char::from(*byte)).collect::<String>().into_bytes()),
        Tag::BmpString => {
            let units: Vec<u16> =
                value.data.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect();
            Some(String::from_utf16_lossy(&units).into_bytes())
        }
        _ => None,
    }
}

fn dump(value: &Any<'_>, out: &mut String) {
    out.push('#');
    for byte in value.to_der_vec().unwrap_or_default() {
        let _ = write!(out, "{byte:02X}");
    }
}

fn escape(text: &[u8], out: &mut String) {
    for (at, byte) in text.iter().enumerate() {
        let edge = at == 0 || at + 1 == text.len();
        match byte {
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' => {
                out.push('\\');
                out.push(char::from(*byte));
            }
            b' ' if edge => out.push_str("\\ "),
            b'#' if at == 0 => out.push_str("\\#"),
            0x20..=0x7e => out.push(char::from(*byte)),
            _ => {
                let _ = write!(out, "\\{byte:02X}");
            }
        }
    }
}

/// OpenSSL's short names.
fn short_name(oid: &str) -> Option<&'static str> {
    Some(match oid {
        "2.5.4.3" => "CN",
        "2.5.4.4" => "SN",
        "2.5.4.5" => "serialNumber",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "street",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "2.5.4.12" => "title",
        "2.5.4.13" => "description",
        "2.5.4.15" => "businessCategory",
        "2.5.4.17" => "postalCode",
        "2.5.4.41" => "name",
        "2.5.4.42" => "GN",
        "2.5.4.43" => "initials",
        "2.5.4.44" => "generationQualifier",
        "2.5.4.46" => "dnQualifier",
        "2.5.4.65" => "pseudonym",
        "0.9.2342.19200300.100.1.1" => "UID",
        "0.9.2342.19200300.100.1.25" => "DC",
        "1.2.840.113549.1.9.1" => "emailAddress",
        "1.2.840.113549.1.9.2" => "unstructuredName",
        "1.2.840.113549.1.9.8" => "unstructuredAddress",
        _ => return None,
    })
}

/// Envoy's name of a protocol version.
pub(crate) fn version_name(version: Option<ProtocolVersion>) -> &'static str {
    match version {
        Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
        Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
        _ => "",
    }
}

/// OpenSSL's name of a cipher suite that rustls speaks.
pub(crate) fn cipher_name(suite: CipherSuite) -> &'static str {
    match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        CipherSuite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 => "ECDHE-ECDSA-AES128-GCM-SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 => "ECDHE-ECDSA-AES256-GCM-SHA384",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE-ECDSA-CHACHA20-POLY1305",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => "ECDHE-RSA-AES128-GCM-SHA256",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => "ECDHE-RSA-AES256-GCM-SHA384",
        CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE-RSA-CHACHA20-POLY1305",
        other => other.as_str().unwrap_or(""),
    }
}

/// BoringSSL's name of a group.
pub(crate) fn group_name(group: NamedGroup) -> &'static str {
    match group {
        NamedGroup::X25519 => "X25519",
        NamedGroup::secp256r1 => "P-256",
        NamedGroup::secp384r1 => "P-384",
        NamedGroup::secp521r1 => "P-521",
        NamedGroup::X25519MLKEM768 => "X25519MLKEM768",
        other => other.as_str().unwrap_or(""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(configure: impl FnOnce(&mut rcgen::CertificateParams)) -> CertificateInfo {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
        params.distinguished_name = rcgen::DistinguishedName::new();
        configure(&mut params);
        let certificate = params.self_signed(&key).expect("signed");
        CertificateInfo::parse(certificate.der()).expect("parses")
    }

    #[test]
    fn subjects_are_printed_as_rfc_2253_says() {
        let info = certificate(|params| {
            params.distinguished_name.push(rcgen::DnType::CountryName, "US");
            params.distinguished_name.push(rcgen::DnType::OrganizationName, "Ly, ft + #1");
            params.distinguished_name.push(rcgen::DnType::CommonName, "caf\u{e9} ");
        });
        assert_eq!(&*info.subject, "CN=caf\\C3\\A9\\ ,O=Ly\\, ft \\+ #1,C=US");
        assert_eq!(info.issuer, info.subject);
    }

    #[test]
    fn names_serial_and_validity_are_read() {
        let info = certificate(|params| {
            params.subject_alt_names = vec![
                rcgen::SanType::DnsName("a.example.com".try_into().expect("a name")),
                rcgen::SanType::URI("spiffe://td/ns".try_into().expect("a name")),
                rcgen::SanType::IpAddress("::1".parse().expect("an address")),
            ];
            params.serial_number = Some(rcgen::SerialNumber::from_slice(&[0, 0x0a, 0xbc]));
        });
        assert_eq!(info.dns_sans().collect::<Vec<_>>(), ["a.example.com"]);
        assert_eq!(info.uri_sans().collect::<Vec<_>>(), ["spiffe://td/ns"]);
        assert_eq!(info.ip_sans().collect::<Vec<_>>(), ["::1"]);
        assert_eq!(&*info.serial, "0abc");
        assert!(info.not_before < info.not_after);
        assert_eq!((info.fingerprint_256().len(), info.fingerprint_1().len()), (64, 40));
    }

    #[test]
    fn pem_is_what_a_pem_reader_reads_back() {
        use rustls_pki_types::pem::PemObject;
        for length in [1, 2, 3, 47, 48, 49, 100] {
            let der: Vec<u8> = (0..length).map(|byte| byte as u8 ^ 0xa5).collect();
            let text = pem(&der);
            assert!(text.lines().all(|line| line.len() <= 64), "{text}");
            let back = CertificateDer::from_pem_slice(text.as_bytes()).expect("reads");
            assert_eq!(&*back, &*der);
        }
    }
}

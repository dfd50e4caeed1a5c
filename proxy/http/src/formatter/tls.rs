//! Operators over TLS sessions and their certificates.

use nuncio_net::tls::info::{CertificateInfo, San, TlsInfo};

use super::operator::Side;

/// A fact about a TLS session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TlsField {
    Version,
    Cipher,
    Group,
    SessionId,
    /// Of the peer's certificate (true) or the own one.
    Subject(bool),
    Issuer,
    Pem,
    Serial,
    Fingerprint1,
    Fingerprint256,
    ChainSerials,
    ChainFingerprints1,
    ChainFingerprints256,
    IssuerSerial,
    IssuerFingerprint256,
    Sans(bool, SanKind),
}

/// Kind of a subject alternative name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SanKind {
    Dns,
    Uri,
    Ip,
    Email,
    Other,
}

impl TlsField {
    /// By operator name.
    pub(super) fn named(name: &str) -> Option<(Side, Self)> {
        let (side, rest) = if let Some(rest) = name.strip_prefix("DOWNSTREAM_") {
            (Side::Downstream, rest)
        } else {
            (Side::Upstream, name.strip_prefix("UPSTREAM_")?)
        };
        let both = match rest {
            "TLS_VERSION" => TlsField::Version,
            "TLS_CIPHER" => TlsField::Cipher,
            "TLS_GROUP" => TlsField::Group,
            "TLS_SESSION_ID" => TlsField::SessionId,
            "PEER_SUBJECT" => TlsField::Subject(true),
            "PEER_ISSUER" => TlsField::Issuer,
            "PEER_CERT" => TlsField::Pem,
            "PEER_DNS_SAN" => TlsField::Sans(true, SanKind::Dns),
            "PEER_URI_SAN" => TlsField::Sans(true, SanKind::Uri),
            "PEER_IP_SAN" => TlsField::Sans(true, SanKind::Ip),
            "LOCAL_DNS_SAN" => TlsField::Sans(false, SanKind::Dns),
            "LOCAL_URI_SAN" => TlsField::Sans(false, SanKind::Uri),
            "LOCAL_IP_SAN" => TlsField::Sans(false, SanKind::Ip),
            _ if side == Side::Upstream => return None,
            "LOCAL_SUBJECT" => TlsField::Subject(false),
            "PEER_EMAIL_SAN" => TlsField::Sans(true, SanKind::Email),
            "PEER_OTHERNAME_SAN" => TlsField::Sans(true, SanKind::Other),
            "LOCAL_EMAIL_SAN" => TlsField::Sans(false, SanKind::Email),
            "LOCAL_OTHERNAME_SAN" => TlsField::Sans(false, SanKind::Other),
            "PEER_SERIAL" => TlsField::Serial,
            "PEER_FINGERPRINT_1" => TlsField::Fingerprint1,
            "PEER_FINGERPRINT_256" => TlsField::Fingerprint256,
            "PEER_CHAIN_SERIALS" => TlsField::ChainSerials,
            "PEER_CHAIN_FINGERPRINTS_1" => TlsField::ChainFingerprints1,
            "PEER_CHAIN_FINGERPRINTS_256" => TlsField::ChainFingerprints256,
            "PEER_ISSUER_SERIAL" => TlsField::IssuerSerial,
            "PEER_ISSUER_FINGERPRINT_256" => TlsField::IssuerFingerprint256,
            _ => return None,
        };
        Some((side, both))
    }

    /// Appends the value; false where it is empty.
    pub(super) fn write(self, tls: &TlsInfo, out: &mut Vec<u8>) -> bool {
        let start = out.len();
        let peer = || tls.peer_certificate();
        let issuer = || tls.peer_certificates.get(1).and_then(|der| CertificateInfo::parse(der));
        let mut add = |text: &str| out.extend_from_slice(text.as_bytes());
        match self {
            TlsField::Version => add(tls.version),
            TlsField::Cipher => add(tls.cipher),
            TlsField::Group => add(tls.group),
            TlsField::SessionId => add(&tls.session_id),
            TlsField::Subject(true) => add(peer().map_or("", |certificate| &certificate.subject)),
            TlsField::Subject(false) => {
                add(tls.local_certificate.as_ref().map_or("", |certificate| &certificate.subject));
            }
            TlsField::Issuer => add(peer().map_or("", |certificate| &certificate.issuer)),
            TlsField::Pem => add(&peer().map(|certificate| url_encoded(&certificate.pem())).unwrap_or_default()),
            TlsField::Serial => add(peer().map_or("", |certificate| &certificate.serial)),
            TlsField::Fingerprint1 => add(&peer().map(CertificateInfo::fingerprint_1).unwrap_or_default()),
            TlsField::Fingerprint256 => add(&peer().map(CertificateInfo::fingerprint_256).unwrap_or_default()),
            TlsField::ChainSerials => add(&chain(tls, |certificate| certificate.serial.to_string())),
            TlsField::ChainFingerprints1 => add(&chain(tls, CertificateInfo::fingerprint_1)),
            TlsField::ChainFingerprints256 => add(&chain(tls, CertificateInfo::fingerprint_256)),
            TlsField::IssuerSerial => add(&issuer().map(|certificate| certificate.serial).unwrap_or_default()),
            TlsField::IssuerFingerprint256 => {
                add(&issuer().map(|certificate| certificate.fingerprint_256()).unwrap_or_default());
            }
            TlsField::Sans(of_peer, kind) => {
                let certificate = if of_peer { peer() } else { tls.local_certificate.as_deref() };
                if let Some(certificate) = certificate {
                    sans(certificate, kind, out);
                }
            }
        }
        out.len() > start
    }
}

fn sans(certificate: &CertificateInfo, kind: SanKind, out: &mut Vec<u8>) {
    let mut first = true;
    for san in &certificate.sans {
        let text = match (san, kind) {
            (San::Dns(name), SanKind::Dns) | (San::Uri(name), SanKind::Uri) | (San::Email(name), SanKind::Email) => {
                name
            }
            (San::OtherName(_, Some(value)), SanKind::Other) => value,
            (San::Ip(text), SanKind::Ip) => text.as_bytes(),
            _ => continue,
        };
        if !std::mem::replace(&mut first, false) {
            out.push(b',');
        }
        // A name with a control character could forge log lines.
        out.extend(text.iter().map(|byte| if byte.is_ascii_control() { b'_' } else { *byte }));
    }
}

fn chain(tls: &TlsInfo, show: impl Fn(&CertificateInfo) -> String) -> String {
    let parsed = tls.peer_certificates.iter().filter_map(|der| CertificateInfo::parse(der));
    parsed.map(|certificate| show(&certificate)).collect::<Vec<_>>().join(",")
}

/// PEM in one line, as it stands in headers.
fn url_encoded(pem: &str) -> String {
    let mut out = String::with_capacity(pem.len() + pem.len() / 8);
    for c in pem.chars() {
        match c {
            '\n' => out.push_str("%0A"),
            ' ' => out.push_str("%20"),
            '+' => out.push_str("%2B"),
            '/' => out.push_str("%2F"),
            '=' => out.push_str("%3D"),
            c => out.push(c),
        }
    }
    out
}

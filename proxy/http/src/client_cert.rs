//! One element of `x-forwarded-client-cert`: what this proxy says about the client certificate of a connection.

use nuncio_config::hcm::ClientCertDetails;
use nuncio_net::connection::TlsInfo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// Envoy's URL encoding of PEM text: RFC 3986 unreserved characters stay.
const PEM: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// `By=..;Hash=..` and the details that are asked for, in Envoy's order.
pub(crate) fn element(tls: &TlsInfo, details: &ClientCertDetails) -> String {
    let mut parts: Vec<String> = Vec::new();
    if let Some(local) = &tls.local_certificate {
        parts.extend(local.uri_sans().map(|uri| format!("By={uri}")));
    }
    let Some(peer) = tls.peer_certificate() else { return neutral(parts.join(";")) };
    parts.push(format!("Hash={}", peer.fingerprint_256()));
    if details.cert {
        parts.push(format!("Cert=\"{}\"", utf8_percent_encode(&peer.pem(), PEM)));
    }
    if details.chain {
        let chain: String = tls.peer_certificates.iter().map(|der| nuncio_net::tls::info::pem(der)).collect();
        parts.push(format!("Chain=\"{}\"", utf8_percent_encode(&chain, PEM)));
    }
    if details.subject {
        // RFC 2253 text has its quotes escaped already.
        parts.push(format!("Subject=\"{}\"", peer.subject));
    }
    if details.uri {
        let mut any = false;
        for uri in peer.uri_sans() {
            any = true;
            parts.push(format!("URI={uri}"));
        }
        if !any {
            parts.push("URI=".to_owned());
        }
    }
    if details.dns {
        parts.extend(peer.dns_sans().map(|dns| format!("DNS={dns}")));
    }
    if details.issuer {
        parts.push(format!("Issuer=\"{}\"", peer.issuer));
    }
    neutral(parts.join(";"))
}

/// Without control characters, which a certificate may have in its names: they would end the field, and the head, in the
/// eyes of an upstream. They are written as `%0D`.
fn neutral(text: String) -> String {
    const CONTROLS: &AsciiSet = percent_encoding::CONTROLS;
    if text.bytes().any(|byte| byte.is_ascii_control()) {
        return utf8_percent_encode(&text, CONTROLS).to_string();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_control_characters_cannot_end_the_field() {
        let name = "URI=spiffe://a\r\n\r\nGET /smuggled HTTP/1.1\0";
        assert_eq!(neutral(name.into()), "URI=spiffe://a%0D%0A%0D%0AGET /smuggled HTTP/1.1%00");
        assert_eq!(neutral("URI=spiffe://a/\u{e9}".into()), "URI=spiffe://a/\u{e9}");
    }
}

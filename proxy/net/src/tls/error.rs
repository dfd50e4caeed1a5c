//! Why a TLS context cannot be built, and why a handshake failed, the latter in the form of Envoy's logs.
//!
//! Envoy prints BoringSSL's error queue: `TLS_error:|268435581:SSL routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED:
//! TLS_error_end`. rustls has other errors; those with a counterpart get BoringSSL's number and name, the others keep
//! rustls' words without a number.

use std::fmt;
use std::io;

use rustls::{AlertDescription, InvalidMessage, PeerIncompatible};

use super::verify::VerifyFailure;

/// A TLS context that cannot be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct TlsConfigError {
    /// Path of the context in the configuration.
    pub path: Box<str>,
    /// What is wrong, with the file or data source at fault.
    pub problem: String,
}

impl TlsConfigError {
    pub(crate) fn new(path: &str, problem: impl Into<String>) -> Self {
        Self { path: path.into(), problem: problem.into() }
    }
}

/// A handshake that failed.
#[derive(Debug)]
pub struct HandshakeError {
    /// Text for `transport_failure_reason`; empty when the peer only went away.
    pub reason: Box<str>,
    /// What was known about the session when it failed (version and peer certificates), for logs.
    pub tls: Option<Box<super::info::TlsInfo>>,
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.reason.is_empty() { f.write_str("the peer closed the connection") } else { f.write_str(&self.reason) }
    }
}

impl std::error::Error for HandshakeError {}

const SSL_LIBRARY: u32 = 16 << 24;

/// `TLS_error:|NUMBER:SSL routines:OPENSSL_internal:NAME:TLS_error_end`.
fn boring(code: u32, name: &str, details: &str) -> String {
    let colon = if details.is_empty() { "" } else { ":" };
    format!("TLS_error:|{}:SSL routines:OPENSSL_internal:{name}{colon}{details}:TLS_error_end", SSL_LIBRARY + code)
}

/// The rustls error inside an I/O error.
pub(super) fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref().and_then(|inner| inner.downcast_ref())
}

/// Text of a failed handshake. `first` is what the peer sent first.
pub(super) fn failure_text(error: &rustls::Error, verify: Option<&VerifyFailure>, first: &[u8]) -> String {
    use rustls::Error as E;
    if let Some(failure) = verify {
        return boring(125, "CERTIFICATE_VERIFY_FAILED", &failure.text());
    }
    match error {
        E::NoCertificatesPresented => {
            boring(192, "PEER_DID_NOT_RETURN_A_CERTIFICATE", "peer did not provide required client certificate")
        }
        E::InvalidCertificate(error) => boring(125, "CERTIFICATE_VERIFY_FAILED", &error.to_string()),
        E::InvalidMessage(InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion)
            if first.first() != Some(&22) =>
        {
            let (code, name) = not_tls(first);
            boring(code, name, "")
        }
        E::PeerIncompatible(reason) => match reason {
            PeerIncompatible::NoCipherSuitesInCommon => boring(184, "NO_SHARED_CIPHER", ""),
            PeerIncompatible::NoKxGroupsInCommon => boring(266, "NO_SHARED_GROUP", ""),
            PeerIncompatible::NoSignatureSchemesInCommon => boring(253, "NO_COMMON_SIGNATURE_ALGORITHMS", ""),
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            // Only clients older than TLS 1.2 leave it out.
            | PeerIncompatible::SignatureAlgorithmsExtensionRequired
            | PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled => boring(240, "UNSUPPORTED_PROTOCOL", ""),
            other => words(&format!("{other:?}")),
        },
        E::DecryptError => boring(139, "DECRYPTION_FAILED_OR_BAD_RECORD_MAC", ""),
        E::NoApplicationProtocol => words("no application protocol in common"),
        E::AlertReceived(alert) => boring(1000 + u32::from(u8::from(*alert)), alert_name(*alert), ""),
        other => words(&other.to_string()),
    }
}

fn words(text: &str) -> String {
    format!("TLS_error:|{text}:TLS_error_end")
}

/// What BoringSSL makes of a first record that is none.
fn not_tls(first: &[u8]) -> (u32, &'static str) {
    if [&b"GET "[..], b"POST ", b"HEAD ", b"PUT "].iter().any(|method| first.starts_with(method)) {
        (156, "HTTP_REQUEST")
    } else if first.starts_with(b"CONNE") {
        (155, "HTTPS_PROXY_REQUEST")
    } else {
        (247, "WRONG_VERSION_NUMBER")
    }
}

/// What Envoy's TLS inspector notes as the transport failure of a connection that does not begin with a ClientHello.
pub fn plain_text_reason(first: &[u8]) -> String {
    let (code, name) = not_tls(first);
    format!("TLS_error|error:{:08x}:SSL routines:OPENSSL_internal:{name}:TLS_error_end", SSL_LIBRARY + code)
}

fn alert_name(alert: AlertDescription) -> &'static str {
    use AlertDescription as A;
    match alert {
        A::UnexpectedMessage => "SSLV3_ALERT_UNEXPECTED_MESSAGE",
        A::BadRecordMac => "SSLV3_ALERT_BAD_RECORD_MAC",
        A::RecordOverflow => "TLSV1_ALERT_RECORD_OVERFLOW",
        A::HandshakeFailure => "SSLV3_ALERT_HANDSHAKE_FAILURE",
        A::BadCertificate => "SSLV3_ALERT_BAD_CERTIFICATE",
        A::UnsupportedCertificate => "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
        A::CertificateRevoked => "SSLV3_ALERT_CERTIFICATE_REVOKED",
        A::CertificateExpired => "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        A::CertificateUnknown => "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
        A::IllegalParameter => "SSLV3_ALERT_ILLEGAL_PARAMETER",
        A::UnknownCA => "TLSV1_ALERT_UNKNOWN_CA",
        A::AccessDenied => "TLSV1_ALERT_ACCESS_DENIED",
        A::DecodeError => "TLSV1_ALERT_DECODE_ERROR",
        A::DecryptError => "TLSV1_ALERT_DECRYPT_ERROR",
        A::ProtocolVersion => "TLSV1_ALERT_PROTOCOL_VERSION",
        A::InsufficientSecurity => "TLSV1_ALERT_INSUFFICIENT_SECURITY",
        A::InternalError => "TLSV1_ALERT_INTERNAL_ERROR",
        A::UserCanceled => "TLSV1_ALERT_USER_CANCELLED",
        A::UnrecognisedName => "TLSV1_ALERT_UNRECOGNIZED_NAME",
        A::CertificateRequired => "TLSV1_ALERT_CERTIFICATE_REQUIRED",
        A::NoApplicationProtocol => "TLSV1_ALERT_NO_APPLICATION_PROTOCOL",
        other => other.as_str().unwrap_or("UNKNOWN_ALERT"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_failures_have_boringssls_number_and_name() {
        let text = failure_text(&rustls::Error::NoCertificatesPresented, None, &[22]);
        assert_eq!(
            text,
            "TLS_error:|268435648:SSL routines:OPENSSL_internal:PEER_DID_NOT_RETURN_A_CERTIFICATE:\
             peer did not provide required client certificate:TLS_error_end"
        );
        let invalid = rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType);
        let text = failure_text(&invalid, None, b"GET / HTTP/1.1");
        assert_eq!(text, "TLS_error:|268435612:SSL routines:OPENSSL_internal:HTTP_REQUEST:TLS_error_end");
        let alert = rustls::Error::AlertReceived(AlertDescription::UnknownCA);
        let text = failure_text(&alert, None, &[22]);
        assert_eq!(text, "TLS_error:|268436504:SSL routines:OPENSSL_internal:TLSV1_ALERT_UNKNOWN_CA:TLS_error_end");
        let text = plain_text_reason(b"GET / HTTP/1.1");
        assert_eq!(text, "TLS_error|error:1000009c:SSL routines:OPENSSL_internal:HTTP_REQUEST:TLS_error_end");
    }
}

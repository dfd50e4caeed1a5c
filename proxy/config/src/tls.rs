//! TLS contexts (`envoy.extensions.transport_sockets.tls.v3`), reduced to what rustls can do.

use crate::data_source::DataSource;
use crate::matchers::{CidrRange, StringMatcher};
use std::time::Duration;

mod decode;

/// Settings common to both directions.
#[derive(Debug, Clone)]
pub struct CommonTlsContext {
    /// Lowest version.
    pub min_version: TlsVersion,
    /// Highest version.
    pub max_version: TlsVersion,
    /// OpenSSL names of TLS 1.2 cipher suites in order; empty for the default list.
    pub cipher_suites: Vec<Box<str>>,
    /// Curve names in order; empty for the default list.
    pub curves: Vec<Box<str>>,
    /// Own certificates: several on a server (RSA and ECDSA, or chosen by SNI), at most one on a client.
    pub certificates: Vec<CertificateSource>,
    /// How the peer's certificate is checked.
    pub validation: Option<ValidationSource>,
    /// ALPN protocols in order of preference.
    pub alpn_protocols: Vec<Box<str>>,
    /// Where secrets of sessions are written, if they are.
    pub key_log: Option<KeyLogConfig>,
    /// Path of the context in the configuration, for errors found when files are read.
    pub path: Box<str>,
}

/// TLS versions rustls speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// TLS 1.2.
    V1_2,
    /// TLS 1.3.
    V1_3,
}

/// A certificate written in place or fetched by SDS under a name.
#[derive(Debug, Clone)]
pub enum CertificateSource {
    /// Written in the context or as a static secret.
    Static(TlsCertificate),
    /// `SdsSecretConfig`; name of the secret and its config source as protobuf bytes.
    Sds(SdsSecretConfig),
}

/// `SdsSecretConfig`: resolved against static secrets when the bootstrap is decoded; what is left needs a server or a file.
#[derive(Debug, Clone)]
pub struct SdsSecretConfig {
    /// Secret name.
    pub name: Box<str>,
    /// Serialized `ConfigSource`.
    pub source: Option<bytes::Bytes>,
}

/// `TlsCertificate`.
#[derive(Debug, Clone)]
pub struct TlsCertificate {
    /// PEM chain, leaf first; with `pkcs12` the archive.
    pub chain: DataSource,
    /// PEM private key; with `pkcs12` the archive.
    pub key: DataSource,
    /// Both are in one PKCS #12 archive.
    pub pkcs12: bool,
    /// Password of the key.
    pub password: Option<DataSource>,
    /// OCSP response to staple, DER.
    pub ocsp_staple: Option<DataSource>,
}

/// How a peer is verified, in place or by SDS.
#[derive(Debug, Clone)]
pub enum ValidationSource {
    /// Written in place.
    Static(ValidationContext),
    /// Fetched by name, with in-place defaults (`combined_validation_context`).
    Sds {
        /// Defaults that the fetched context is merged over.
        default: Option<Box<ValidationContext>>,
        /// The secret.
        secret: SdsSecretConfig,
    },
}

/// `CertificateValidationContext`.
#[derive(Debug, Clone, Default)]
pub struct ValidationContext {
    /// PEM bundle of trusted authorities. None and no system roots: the chain is not verified (Envoy's behaviour).
    pub trusted_ca: Option<DataSource>,
    /// `system_root_certs`.
    pub system_roots: bool,
    /// Base64 SHA-256 of SPKI.
    pub verify_certificate_spki: Vec<Box<str>>,
    /// Hex SHA-256 of the certificate, colons removed, lower case.
    pub verify_certificate_hash: Vec<Box<str>>,
    /// SANs, any of which must match.
    pub match_typed_subject_alt_names: Vec<SanMatcher>,
    /// PEM CRLs.
    pub crl: Option<DataSource>,
    /// Accept expired certificates.
    pub allow_expired_certificate: bool,
    /// `ACCEPT_UNTRUSTED`: verification failures are noted, not fatal.
    pub accept_untrusted: bool,
    /// `only_verify_leaf_cert_crl`.
    pub only_verify_leaf_cert_crl: bool,
    /// `max_verify_depth`.
    pub max_verify_depth: Option<u32>,
    /// Clients are not told which authorities are trusted.
    pub suppress_client_ca_list: bool,
}

/// `TlsKeyLog`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyLogConfig {
    /// The file.
    pub path: Box<str>,
    /// Only connections with a local address in one of these; empty for all.
    pub local: Vec<CidrRange>,
    /// Only connections with a remote address in one of these; empty for all.
    pub remote: Vec<CidrRange>,
}

/// `SubjectAltNameMatcher`.
#[derive(Debug, Clone)]
pub struct SanMatcher {
    /// Which kind of name.
    pub san_type: SanType,
    /// Condition on it.
    pub matcher: StringMatcher,
}

/// Kinds of subject alternative names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SanType {
    /// dNSName (wildcards in the certificate match as in RFC 6125).
    Dns,
    /// uniformResourceIdentifier.
    Uri,
    /// rfc822Name.
    Email,
    /// iPAddress, compared in text form.
    Ip,
    /// otherName with this OID.
    OtherName(Box<str>),
}

/// `DownstreamTlsContext`.
#[derive(Debug, Clone)]
pub struct DownstreamTlsContext {
    /// Common part.
    pub common: CommonTlsContext,
    /// Demand a client certificate.
    pub require_client_certificate: bool,
    /// Refuse a connection whose SNI matches no certificate.
    pub require_sni: bool,
    /// `full_scan_certs_on_sni_mismatch`.
    pub full_scan_certs_on_sni_mismatch: bool,
    /// Session tickets are off.
    pub disable_stateless_session_resumption: bool,
    /// Session cache by id is off (TLS 1.2).
    pub disable_stateful_session_resumption: bool,
    /// Keys given for tickets; empty for keys made in the process.
    pub session_ticket_keys: Vec<DataSource>,
    /// Keys that are fetched.
    pub session_ticket_keys_sds: Option<SdsSecretConfig>,
    /// Ticket lifetime; rustls' rotation period otherwise.
    pub session_timeout: Option<Duration>,
    /// Server's order of ciphers wins.
    pub prefer_client_ciphers: bool,
}

/// `UpstreamTlsContext`.
#[derive(Debug, Clone)]
pub struct UpstreamTlsContext {
    /// Common part.
    pub common: CommonTlsContext,
    /// Name to send; empty sends none unless `auto_host_sni`.
    pub sni: Box<str>,
    /// `auto_host_sni`: the endpoint's host name.
    pub auto_host_sni: bool,
    /// `auto_sni_san_validation`.
    pub auto_sni_san_validation: bool,
    /// Sessions kept for resumption per context; Envoy's default 1.
    pub max_session_keys: u32,
}

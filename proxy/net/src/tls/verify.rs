//! How a peer's certificate is checked, in Envoy's order: chain, then names, then pins.
//!
//! One verifier for both directions. The chain is checked by webpki; names are compared on the bytes of the certificate.
//! Two differences from webpki alone follow BoringSSL: a leaf that is itself in the trust bundle is trusted, and expiry can
//! be forgiven. The host name is not checked unless a matcher or `auto_sni_san_validation` asks for it: Envoy's contract.

use std::fmt;

use nuncio_config::matchers::StringMatcher;
use nuncio_config::tls::{SanMatcher, SanType, ValidationContext};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature, verify_tls13_signature,
    verify_tls13_signature_with_raw_key,
};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, TrustAnchor, UnixTime};
use sha2::{Digest as _, Sha256};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, OwnedCertRevocationList, RawPublicKeyEntity,
    RevocationCheckDepth, RevocationOptionsBuilder, UnknownStatusPolicy,
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::certificates::LoadedCertificate;
use super::error::TlsConfigError;
use super::handshake::note;
use super::info::{CertificateInfo, San, sans};
use super::sources::{self, base64};
use super::stats::signature_name;

/// Why a certificate was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum VerifyFailure {
    /// The chain does not hold; OpenSSL's words.
    Chain(&'static str),
    /// No matcher of names matched.
    SanMatcher,
    /// The name that was asked for is not in the certificate.
    SanList,
    /// Neither a hash nor a key pin matched.
    Pin,
}

impl VerifyFailure {
    /// Envoy's words.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Chain(why) => {
                format!("verify cert failed: X509_verify_cert: certificate verification error at depth 0: {why}")
            }
            Self::SanMatcher => "verify cert failed: SAN matcher".to_owned(),
            Self::SanList => "verify cert failed: verify SAN list".to_owned(),
            Self::Pin => "verify cert failed: cert hash and spki".to_owned(),
        }
    }
}

/// Checks peers of one context.
pub(super) struct Verifier {
    /// Absent: any chain is accepted.
    roots: Option<Roots>,
    crls: Vec<CertRevocationList<'static>>,
    sans: Vec<SanMatcher>,
    spki: Vec<[u8; 32]>,
    hashes: Vec<[u8; 32]>,
    allow_expired: bool,
    accept_untrusted: bool,
    leaf_crl_only: bool,
    max_depth: Option<u32>,
    /// A server asks for a certificate at all.
    request: bool,
    require: bool,
    /// A client wants its SNI among the server's names.
    match_sni: bool,
    algorithms: WebPkiSupportedAlgorithms,
    hints: Vec<DistinguishedName>,
}

struct Roots {
    anchors: Vec<TrustAnchor<'static>>,
    certificates: Vec<CertificateDer<'static>>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").finish_non_exhaustive()
    }
}

/// Bytes that a list of authorities has at most: its length is told in two of them.
const MAX_HINTS: usize = 60_000;

/// The names of authorities, each once, as a request for a client's certificate tells them.
fn names_of(anchors: &[TrustAnchor<'_>]) -> Vec<DistinguishedName> {
    let (mut names, mut size) = (Vec::new(), 0);
    for anchor in anchors {
        let name = DistinguishedName::in_sequence(&anchor.subject);
        if names.iter().any(|known: &DistinguishedName| known.as_ref() == name.as_ref()) {
            continue;
        }
        size += name.as_ref().len() + 2;
        if size > MAX_HINTS {
            break;
        }
        names.push(name);
    }
    names
}

impl Verifier {
    /// From the context; also the first authority, for the admin interface.
    pub(super) fn new(
        context: Option<&ValidationContext>,
        require: bool,
        match_sni: bool,
        path: &str,
    ) -> Result<(Self, Option<LoadedCertificate>), TlsConfigError> {
        let fail = |problem: String| TlsConfigError::new(path, problem);
        let default = ValidationContext::default();
        let context = context.unwrap_or(&default);
        let mut verifier = Self {
            roots: None,
            crls: Vec::new(),
            sans: context.match_typed_subject_alt_names.clone(),
            spki: Vec::new(),
            hashes: Vec::new(),
            allow_expired: context.allow_expired_certificate,
            accept_untrusted: context.accept_untrusted,
            leaf_crl_only: context.only_verify_leaf_cert_crl,
            max_depth: context.max_verify_depth,
            request: false,
            require,
            match_sni,
            algorithms: aws_lc_rs::default_provider().signature_verification_algorithms,
            hints: Vec::new(),
        };
        let mut ca = None;
        let mut certificates = Vec::new();
        if let Some(source) = &context.trusted_ca {
            let source = sources::read(source).map_err(fail)?;
            certificates = sources::certificates(&source, "trusted CA certificates").map_err(fail)?;
            verifier.add_crls(&source, "trusted CA certificates").map_err(fail)?;
            ca = certificates
                .first()
                .and_then(|first| CertificateInfo::parse(first))
                .map(|info| LoadedCertificate { path: source.label.into(), info: info.into() });
        }
        if context.system_roots {
            let found = rustls_native_certs::load_native_certs();
            if found.certs.is_empty() {
                let why = found.errors.first().map_or_else(|| "none found".to_owned(), ToString::to_string);
                return Err(fail(format!("Failed to load the system's trusted CA certificates: {why}")));
            }
            certificates.extend(found.certs);
        }
        if !certificates.is_empty() {
            let mut anchors = Vec::with_capacity(certificates.len());
            for certificate in &certificates {
                match webpki::anchor_from_trusted_cert(certificate) {
                    Ok(anchor) => anchors.push(anchor.to_owned()),
                    // One unusable root of many must not close the shop; a bundle without any usable one must.
                    Err(error) => tracing::warn!(context = path, %error, "a trusted CA certificate is unusable"),
                }
            }
            if anchors.is_empty() {
                return Err(fail("Failed to load trusted CA certificates: none of them is usable".to_owned()));
            }
            if !context.suppress_client_ca_list {
                verifier.hints = names_of(&anchors);
            }
            verifier.roots = Some(Roots { anchors, certificates });
        }
        if let Some(source) = &context.crl {
            let source = sources::read(source).map_err(fail)?;
            if verifier.roots.is_none() {
                return Err(fail(format!("Failed to load CRL from {} without trusted CA", source.label)));
            }
            verifier.add_crls(&source, "CRL").map_err(fail)?;
            if verifier.crls.is_empty() {
                return Err(fail(format!("Failed to load CRL from {}: no X509 CRL section in PEM form", source.label)));
            }
        }
        for pin in &context.verify_certificate_spki {
            let bytes = base64(pin).and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
            verifier.spki.push(bytes.ok_or_else(|| fail(format!("Invalid base64-encoded SHA-256 {pin}")))?);
        }
        for pin in &context.verify_certificate_hash {
            let bytes = unhex(pin).and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
            verifier.hashes.push(bytes.ok_or_else(|| fail(format!("Invalid hex-encoded SHA-256 {pin}")))?);
        }
        if !verifier.sans.is_empty() && verifier.roots.is_none() && !verifier.accept_untrusted {
            return Err(fail(
                "SAN-based verification of peer certificates without trusted CA is insecure and not allowed".to_owned(),
            ));
        }
        verifier.request = require || verifier.checks();
        Ok((verifier, ca))
    }

    fn add_crls(&mut self, source: &sources::Source, what: &str) -> Result<(), String> {
        for list in sources::revocation_lists(source, what)? {
            let list = OwnedCertRevocationList::from_der(&list)
                .map_err(|error| format!("Failed to load {what} from {}: {error}", source.label))?;
            self.crls.push(list.into());
        }
        Ok(())
    }

    /// Whether a handshake only succeeds with a certificate that passed: then one that is resumed has passed, too.
    pub(super) fn enforces(&self) -> bool {
        !self.accept_untrusted && self.checks()
    }

    /// Whether anything is checked at all.
    fn checks(&self) -> bool {
        self.roots.is_some() || !self.spki.is_empty() || !self.hashes.is_empty() || !self.sans.is_empty()
    }

    /// Checks a chain and leaves the outcome in the record of the handshake.
    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: Option<&ServerName<'_>>,
        now: UnixTime,
        server: bool,
    ) -> Result<(), Error> {
        let outcome = self
            .check_chain(leaf, others, now, server)
            .and_then(|()| self.check_leaf(leaf, name.filter(|_| self.match_sni)).map_err(|failure| (failure, None)));
        match outcome {
            Ok(()) => {
                note(|record| record.validated = self.checks());
                Ok(())
            }
            Err(_) if self.accept_untrusted => Ok(()),
            Err((failure, error)) => {
                note(|record| {
                    record.failure = Some(failure);
                    record.peer = std::iter::once(leaf).chain(others).map(|der| der.clone().into_owned()).collect();
                });
                Err(Error::InvalidCertificate(error.unwrap_or(CertificateError::BadSignature)))
            }
        }
    }

    fn check_chain(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
        server: bool,
    ) -> Result<(), (VerifyFailure, Option<CertificateError>)> {
        let Some(roots) = &self.roots else { return Ok(()) };
        if roots.certificates.contains(leaf) {
            return self.check_validity(leaf, now);
        }
        let end = EndEntityCert::try_from(leaf);
        if end.is_err() && self.issued_directly(leaf, roots, now, server) {
            return Ok(());
        }
        let end = end.map_err(|error| {
            (VerifyFailure::Chain("unsupported certificate"), Some(CertificateError::from_webpki(error)))
        })?;
        let mut result = self.path(&end, roots, others, now, server);
        if matches!(result, Err(webpki::Error::CaUsedAsEndEntity)) && self.issued_directly(leaf, roots, now, server) {
            return Ok(());
        }
        if self.allow_expired && matches!(&result, Err(error) if is_expiry(error)) {
            // At a moment when the leaf was valid; an issuer that was not valid then is still refused.
            for moment in validity(leaf).into_iter().flat_map(|(from, to)| [from, to]) {
                result = self.path(&end, roots, others, moment, server);
                if result.is_ok() {
                    break;
                }
            }
        }
        result.map_err(|error| {
            let self_signed = is_self_signed(leaf);
            (VerifyFailure::Chain(openssl_words(&error, self_signed)), Some(CertificateError::from_webpki(error)))
        })
    }

    /// The signature of the handshake. A certificate that webpki does not parse (X.509 version 1) has a usable key.
    fn check_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
        tls13: bool,
    ) -> Result<HandshakeSignatureValid, Error> {
        note(|record| record.sigalg = signature_name(signed.scheme));
        if EndEntityCert::try_from(certificate).is_ok() {
            return if tls13 {
                verify_tls13_signature(message, certificate, signed, &self.algorithms)
            } else {
                verify_tls12_signature(message, certificate, signed, &self.algorithms)
            };
        }
        let bad = || Error::InvalidCertificate(CertificateError::BadEncoding);
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| bad())?;
        let spki = SubjectPublicKeyInfoDer::from(parsed.public_key().raw);
        if tls13 {
            return verify_tls13_signature_with_raw_key(message, &spki, signed, &self.algorithms);
        }
        let key = RawPublicKeyEntity::try_from(&spki).map_err(|_| bad())?;
        let mut candidates = self.algorithms.mapping.iter().filter(|(scheme, _)| *scheme == signed.scheme);
        let valid = candidates.any(|(_, algorithms)| {
            algorithms.iter().any(|algorithm| key.verify_signature(*algorithm, message, signed.signature()).is_ok())
        });
        if !valid {
            return Err(Error::InvalidCertificate(CertificateError::BadSignature));
        }
        Ok(HandshakeSignatureValid::assertion())
    }

    /// Whether a trusted authority has signed the leaf itself, and it is valid now and for this use. For leaves that
    /// webpki refuses by form and BoringSSL takes: X.509 version 1, or marked as a CA (`openssl req -x509 -CA`).
    fn issued_directly(&self, leaf: &CertificateDer<'_>, roots: &Roots, now: UnixTime, server: bool) -> bool {
        let Ok((_, parsed)) = X509Certificate::from_der(leaf) else { return false };
        let for_use = match parsed.extended_key_usage() {
            Ok(Some(usage)) => {
                usage.value.any || if server { usage.value.server_auth } else { usage.value.client_auth }
            }
            Ok(None) => true,
            Err(_) => false,
        };
        // An unknown critical extension may forbid what is being done; revocation needs the whole chain.
        let known = [oid::KEY_USAGE, oid::EXTENDED_KEY_USAGE, oid::BASIC_CONSTRAINTS, oid::SUBJECT_ALT_NAME];
        let understood = parsed
            .extensions()
            .iter()
            .all(|extension| !extension.critical || known.contains(&extension.oid.to_id_string().as_str()));
        if !for_use || !understood || !self.crls.is_empty() || self.check_validity(leaf, now).is_err() {
            return false;
        }
        roots.certificates.iter().any(|root| {
            let Ok((_, issuer)) = X509Certificate::from_der(root) else { return false };
            let spki = SubjectPublicKeyInfoDer::from(issuer.public_key().raw);
            let (Ok(key), Ok(None)) = (RawPublicKeyEntity::try_from(&spki), issuer.name_constraints()) else {
                return false;
            };
            issuer.subject().as_raw() == parsed.issuer().as_raw()
                && self.check_validity(root, now).is_ok()
                && self.algorithms.all.iter().any(|algorithm| {
                    let signed = parsed.tbs_certificate.as_ref();
                    names_algorithm(&parsed, *algorithm)
                        && key.verify_signature(*algorithm, signed, &parsed.signature_value.data).is_ok()
                })
        })
    }

    fn path(
        &self,
        end: &EndEntityCert<'_>,
        roots: &Roots,
        others: &[CertificateDer<'_>],
        now: UnixTime,
        server: bool,
    ) -> Result<(), webpki::Error> {
        let crls: Vec<_> = self.crls.iter().collect();
        let revocation = match RevocationOptionsBuilder::new(&crls) {
            // BoringSSL with a CRL wants one for every certificate that it checks.
            Ok(builder) => Some(
                builder
                    .with_depth(if self.leaf_crl_only {
                        RevocationCheckDepth::EndEntity
                    } else {
                        RevocationCheckDepth::Chain
                    })
                    .with_status_policy(UnknownStatusPolicy::Deny)
                    .with_expiration_policy(ExpirationPolicy::Enforce)
                    .build(),
            ),
            Err(_) => None,
        };
        let usage = if server { KeyUsage::server_auth() } else { KeyUsage::client_auth() };
        let limit = self.max_depth;
        let depth = move |path: &webpki::VerifiedPath<'_>| match limit {
            Some(limit) if path.intermediate_certificates().count() > limit as usize => {
                Err(webpki::Error::MaximumPathDepthExceeded)
            }
            _ => Ok(()),
        };
        end.verify_for_usage(self.algorithms.all, &roots.anchors, others, now, usage, revocation, Some(&depth))
            .map(|_| ())
    }

    fn check_validity(
        &self,
        leaf: &CertificateDer<'_>,
        now: UnixTime,
    ) -> Result<(), (VerifyFailure, Option<CertificateError>)> {
        match validity(leaf) {
            _ if self.allow_expired => Ok(()),
            Some((from, _)) if now < from => {
                Err((VerifyFailure::Chain("certificate is not yet valid"), Some(CertificateError::NotValidYet)))
            }
            Some((_, to)) if now > to => {
                Err((VerifyFailure::Chain("certificate has expired"), Some(CertificateError::Expired)))
            }
            Some(_) => Ok(()),
            None => Err((VerifyFailure::Chain("unsupported certificate"), Some(CertificateError::BadEncoding))),
        }
    }

    fn check_leaf(&self, leaf: &CertificateDer<'_>, name: Option<&ServerName<'_>>) -> Result<(), VerifyFailure> {
        if name.is_none() && self.sans.is_empty() && self.spki.is_empty() && self.hashes.is_empty() {
            return Ok(());
        }
        let parsed = X509Certificate::from_der(leaf).map_err(|_| VerifyFailure::Chain("unsupported certificate"))?.1;
        if let Some(name) = name {
            let wanted = name.to_str();
            let found = sans(&parsed).iter().any(|san| match (san, name) {
                (San::Dns(pattern), ServerName::DnsName(_)) => dns_name_match(&wanted, pattern),
                (San::Ip(ip), ServerName::IpAddress(_)) => **ip == *wanted,
                _ => false,
            });
            if !found {
                return Err(VerifyFailure::SanList);
            }
        }
        if !self.sans.is_empty() {
            let names = sans(&parsed);
            if !self.sans.iter().any(|matcher| names.iter().any(|name| san_matches(matcher, name))) {
                return Err(VerifyFailure::SanMatcher);
            }
        }
        if !self.spki.is_empty() || !self.hashes.is_empty() {
            let hash = <[u8; 32]>::from(Sha256::digest(leaf));
            let spki = <[u8; 32]>::from(Sha256::digest(parsed.public_key().raw));
            if !self.hashes.contains(&hash) && !self.spki.contains(&spki) {
                return Err(VerifyFailure::Pin);
            }
        }
        Ok(())
    }
}

trait FromWebpki {
    fn from_webpki(error: webpki::Error) -> Self;
}

impl FromWebpki for CertificateError {
    /// The kinds that have an alert of their own.
    fn from_webpki(error: webpki::Error) -> Self {
        use webpki::Error as E;
        match error {
            E::BadDer | E::BadDerTime | E::TrailingData(_) => Self::BadEncoding,
            E::CertExpired { .. } | E::InvalidCertValidity => Self::Expired,
            E::CertNotValidYet { .. } => Self::NotValidYet,
            E::UnknownIssuer => Self::UnknownIssuer,
            E::CertRevoked => Self::Revoked,
            E::UnknownRevocationStatus => Self::UnknownRevocationStatus,
            E::CrlExpired { .. } => Self::ExpiredRevocationList,
            E::RequiredEkuNotFoundContext(_) => Self::InvalidPurpose,
            other => Self::Other(OtherError(std::sync::Arc::new(other))),
        }
    }
}

fn is_expiry(error: &webpki::Error) -> bool {
    matches!(error, webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. })
}

fn openssl_words(error: &webpki::Error, self_signed: bool) -> &'static str {
    use webpki::Error as E;
    match error {
        E::CertExpired { .. } | E::InvalidCertValidity => "certificate has expired",
        E::CertNotValidYet { .. } => "certificate is not yet valid",
        E::UnknownIssuer | E::CaUsedAsEndEntity if self_signed => "self signed certificate",
        E::UnknownIssuer => "unable to get local issuer certificate",
        E::CertRevoked => "certificate revoked",
        E::UnknownRevocationStatus => "unable to get certificate CRL",
        E::CrlExpired { .. } => "CRL has expired",
        E::RequiredEkuNotFoundContext(_) => "unsupported certificate purpose",
        E::PathLenConstraintViolated => "path length constraint exceeded",
        E::MaximumPathDepthExceeded => "certificate chain too long",
        E::NameConstraintViolation => "permitted subtree violation",
        E::InvalidSignatureForPublicKey | E::InvalidCrlSignatureForPublicKey => "certificate signature failure",
        E::EndEntityUsedAsCa => "invalid CA certificate",
        E::CaUsedAsEndEntity => "a CA certificate was used as a leaf",
        E::UnsupportedCertVersion => "unsupported certificate version",
        _ => "certificate verification error",
    }
}

fn is_self_signed(der: &[u8]) -> bool {
    X509Certificate::from_der(der).is_ok_and(|(_, certificate)| certificate.subject() == certificate.issuer())
}

fn validity(der: &[u8]) -> Option<(UnixTime, UnixTime)> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let time = |time: x509_parser::time::ASN1Time| {
        UnixTime::since_unix_epoch(std::time::Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or(0)))
    };
    Some((time(certificate.validity().not_before), time(certificate.validity().not_after)))
}

/// Whether the certificate says that it is signed with this algorithm.
fn names_algorithm(
    certificate: &X509Certificate<'_>,
    algorithm: &dyn rustls_pki_types::SignatureVerificationAlgorithm,
) -> bool {
    // The contents of the AlgorithmIdentifier begin with the OID in DER.
    let oid = certificate.signature_algorithm.algorithm.as_bytes();
    algorithm.signature_alg_id().as_ref().get(2..).is_some_and(|id| id.starts_with(oid))
}

/// Extensions that are understood where webpki is not asked.
mod oid {
    pub(super) const KEY_USAGE: &str = "2.5.29.15";
    pub(super) const SUBJECT_ALT_NAME: &str = "2.5.29.17";
    pub(super) const BASIC_CONSTRAINTS: &str = "2.5.29.19";
    pub(super) const EXTENDED_KEY_USAGE: &str = "2.5.29.37";
}

/// Whether a name satisfies a matcher.
fn san_matches(matcher: &SanMatcher, name: &San) -> bool {
    match (&matcher.san_type, name) {
        (SanType::Dns, San::Dns(name)) => match &matcher.matcher {
            StringMatcher::Exact(wanted, _) => dns_name_match(wanted, name),
            other => string_matches(other, name),
        },
        (SanType::Uri, San::Uri(name)) | (SanType::Email, San::Email(name)) => string_matches(&matcher.matcher, name),
        (SanType::Ip, San::Ip(name)) => string_matches(&matcher.matcher, name.as_bytes()),
        (SanType::OtherName(wanted), San::OtherName(oid, Some(value))) => {
            wanted == oid && string_matches(&matcher.matcher, value)
        }
        _ => false,
    }
}

fn string_matches(matcher: &StringMatcher, value: &[u8]) -> bool {
    let lower;
    let (pattern, value) = match matcher {
        StringMatcher::Regex(regex) => return regex.is_match(value),
        StringMatcher::Exact(pattern, ignore_case)
        | StringMatcher::Prefix(pattern, ignore_case)
        | StringMatcher::Suffix(pattern, ignore_case)
        | StringMatcher::Contains(pattern, ignore_case) => {
            if *ignore_case {
                lower = value.to_ascii_lowercase();
                (pattern.as_bytes(), &*lower)
            } else {
                (pattern.as_bytes(), value)
            }
        }
    };
    match matcher {
        StringMatcher::Exact(..) => value == pattern,
        StringMatcher::Prefix(..) => value.starts_with(pattern),
        StringMatcher::Suffix(..) => value.ends_with(pattern),
        _ => memchr::memmem::find(value, pattern).is_some(),
    }
}

/// Whether the name `wanted` is one of those that the certificate's `pattern` stands for: equal without regard to case,
/// or under a `*` that is the whole left-most label and stands for exactly one label (RFC 6125 6.4.3).
fn dns_name_match(wanted: &str, pattern: &[u8]) -> bool {
    if wanted.as_bytes().eq_ignore_ascii_case(pattern) {
        return true;
    }
    let Some(suffix) = pattern.strip_prefix(b"*.") else { return false };
    match wanted.split_once('.') {
        Some((label, rest)) => {
            !label.is_empty() && !label.starts_with("xn--") && rest.as_bytes().eq_ignore_ascii_case(suffix)
        }
        None => false,
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u32> =
        text.chars().filter(|digit| *digit != ':').map(|digit| digit.to_digit(16)).collect::<Option<_>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[high, low]| (high << 4 | low) as u8).collect())
}

impl ClientCertVerifier for Verifier {
    fn offer_client_auth(&self) -> bool {
        self.request
    }

    fn client_auth_mandatory(&self) -> bool {
        self.require
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity, intermediates, None, now, false).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, cert, dss, false)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, cert, dss, true)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity, intermediates, Some(server_name), now, true).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ClientCertVerifier::verify_tls12_signature(self, message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ClientCertVerifier::verify_tls13_signature(self, message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_stand_for_exactly_one_label() {
        assert!(dns_name_match("a.example.com", b"A.example.COM"));
        assert!(dns_name_match("a.example.com", b"*.example.com"));
        assert!(!dns_name_match("a.b.example.com", b"*.example.com"));
        assert!(!dns_name_match("example.com", b"*.example.com"));
        assert!(!dns_name_match(".example.com", b"*.example.com"));
        assert!(!dns_name_match("a.example.com", b"a*.example.com"));
    }

    #[test]
    fn a_nul_byte_never_cuts_a_name() {
        let matcher = SanMatcher { san_type: SanType::Dns, matcher: StringMatcher::Exact("a.com".into(), false) };
        assert!(san_matches(&matcher, &San::Dns(b"a.com"[..].into())));
        assert!(!san_matches(&matcher, &San::Dns(b"a.com\0.evil.org"[..].into())));
        assert!(!san_matches(&matcher, &San::Uri(b"a.com"[..].into())));
    }

    #[test]
    fn authorities_are_named_once_each() {
        let anchor = |subject: &'static [u8]| TrustAnchor {
            subject: subject.into(),
            subject_public_key_info: b"k"[..].into(),
            name_constraints: None,
        };
        let names = names_of(&[anchor(b"one"), anchor(b"two"), anchor(b"one")]);
        let texts: Vec<_> = names.iter().map(|name| &name.as_ref()[2..]).collect();
        assert_eq!(texts, [b"one", b"two"]);
    }

    #[test]
    fn pins_are_read_strictly() {
        assert_eq!(base64("aGVsbG8="), Some(b"hello".to_vec()));
        assert_eq!(base64("aGVsbG8"), None);
        assert_eq!(unhex("0a:Ff"), Some(vec![10, 255]));
        assert_eq!(unhex("0a:f"), None);
    }

    #[test]
    fn names_without_an_authority_are_refused() {
        let context = ValidationContext {
            match_typed_subject_alt_names: vec![SanMatcher {
                san_type: SanType::Dns,
                matcher: StringMatcher::Exact("a.com".into(), false),
            }],
            ..ValidationContext::default()
        };
        let error = Verifier::new(Some(&context), true, false, "p").expect_err("insecure");
        assert!(error.problem.starts_with("SAN-based verification"), "{error}");
    }
}

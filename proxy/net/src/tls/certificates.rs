//! Own certificates: loading, and choosing one for a ClientHello.

use std::sync::Arc;

use nuncio_config::tls::{CertificateSource, TlsCertificate};
use rustc_hash::FxHashMap;
use rustls::SignatureAlgorithm;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::error::TlsConfigError;
use super::handshake::note;
use super::info::{CertificateInfo, San};
use super::{pkcs12, sources};

/// A certificate and where it came from, for `/certs`.
#[derive(Debug, Clone)]
pub struct LoadedCertificate {
    /// File path or `<inline>`.
    pub path: Box<str>,
    /// Its contents.
    pub info: Arc<CertificateInfo>,
}

/// The certificates of one context, for `/certs`.
#[derive(Debug, Clone, Default)]
pub struct ContextCertificates {
    /// First authority of the trust bundle.
    pub ca: Option<LoadedCertificate>,
    /// Own leaf certificates.
    pub chains: Vec<LoadedCertificate>,
}

impl ContextCertificates {
    /// The moment when the first of them ends.
    pub fn first_expiration(&self) -> Option<std::time::SystemTime> {
        self.ca.iter().chain(&self.chains).map(|certificate| certificate.info.not_after).min()
    }
}

/// An own certificate with its key.
#[derive(Debug)]
pub(super) struct OwnCertificate {
    pub(super) key: Arc<CertifiedKey>,
    pub(super) info: Arc<CertificateInfo>,
    pub(super) label: Box<str>,
    ecdsa: bool,
    /// DNS names, or the common name of a certificate without any; lower case.
    names: Vec<Box<str>>,
}

/// Loads all certificates of a context.
pub(super) fn load_all(sources: &[CertificateSource], path: &str) -> Result<Vec<Arc<OwnCertificate>>, TlsConfigError> {
    sources
        .iter()
        .map(|source| match source {
            CertificateSource::Static(certificate) => load(certificate, path).map(Arc::new),
            CertificateSource::Sds(secret) => Err(TlsConfigError::new(
                path,
                format!(
                    "certificate secret '{}' is not a static secret; fetching secrets (SDS) is not implemented yet",
                    secret.name
                ),
            )),
        })
        .collect()
}

fn load(certificate: &TlsCertificate, path: &str) -> Result<OwnCertificate, TlsConfigError> {
    let fail = |problem: String| TlsConfigError::new(path, problem);
    let chain_source = sources::read(&certificate.chain).map_err(fail)?;
    let password = certificate.password.as_ref().map(sources::read).transpose().map_err(fail)?;
    let (mut chain, key, key_label) = if certificate.pkcs12 {
        let password = password.as_ref().map(sources::password).unwrap_or_default();
        let archive = pkcs12::open(&chain_source.bytes, password)
            .map_err(|problem| fail(format!("Failed to load pkcs12 from {}: {problem}", chain_source.label)))?;
        (archive.certificates, archive.key, chain_source.label.clone())
    } else {
        let chain = sources::certificates(&chain_source, "certificate chain").map_err(fail)?;
        let key_source = sources::read(&certificate.key).map_err(fail)?;
        (chain, sources::private_key(&key_source, password.as_ref()).map_err(fail)?, key_source.label)
    };
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let key = provider
        .key_provider
        .load_private_key(key)
        .map_err(|error| fail(format!("Failed to load private key from {key_label}: {error}")))?;
    let public = key.public_key();
    let is_own = |certificate: &CertificateDer<'_>| {
        let own = public.as_ref().map(AsRef::as_ref);
        X509Certificate::from_der(certificate).is_ok_and(|(_, it)| own.is_none_or(|own| it.public_key().raw == own))
    };
    // An archive has its certificates in any order.
    if certificate.pkcs12
        && let Some(own) = chain.iter().position(&is_own)
    {
        chain[..=own].rotate_right(1);
    }
    let info = chain
        .first()
        .and_then(|leaf| CertificateInfo::parse(leaf))
        .ok_or_else(|| fail(format!("Failed to load certificate chain from {}: bad encoding", chain_source.label)))?;
    // Not rustls' own comparison: it refuses certificates of X.509 version 1, which BoringSSL takes.
    if chain.first().is_some_and(|leaf| !is_own(leaf)) {
        return Err(fail(format!(
            "Failed to load private key from {key_label}: it is not the key of the certificate in {}",
            chain_source.label
        )));
    }
    let mut key = CertifiedKey::new(chain, key);
    if let Some(staple) = &certificate.ocsp_staple {
        let staple = sources::read(staple).map_err(fail)?;
        if staple.bytes.is_empty() {
            return Err(fail(format!("OCSP staple in {} is empty", staple.label)));
        }
        key.ocsp = Some(staple.bytes);
    }
    let ecdsa = key.key.algorithm() == SignatureAlgorithm::ECDSA;
    let names = names(&info);
    Ok(OwnCertificate { key: Arc::new(key), info: Arc::new(info), label: chain_source.label.into(), ecdsa, names })
}

fn names(info: &CertificateInfo) -> Vec<Box<str>> {
    let dns: Vec<Box<str>> = info
        .sans
        .iter()
        .filter_map(|san| match san {
            San::Dns(name) => std::str::from_utf8(name).ok().map(|name| name.to_ascii_lowercase().into()),
            _ => None,
        })
        .collect();
    if !dns.is_empty() {
        return dns;
    }
    let Ok((_, certificate)) = X509Certificate::from_der(&info.der) else { return Vec::new() };
    let common = certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok());
    common.map(|name| name.to_ascii_lowercase().into()).take(1).collect()
}

/// Chooses a certificate as Envoy does: by exact name, then by wildcard, then the first; among those of one name, ECDSA
/// when the client can do it.
#[derive(Debug)]
pub(super) struct Resolver {
    pub(super) certificates: Vec<Arc<OwnCertificate>>,
    by_name: FxHashMap<Box<str>, Choice>,
    full_scan: bool,
    require_sni: bool,
}

#[derive(Debug, Default, Clone, Copy)]
struct Choice {
    ecdsa: Option<usize>,
    other: Option<usize>,
}

impl Resolver {
    pub(super) fn new(certificates: Vec<Arc<OwnCertificate>>, full_scan: bool, require_sni: bool) -> Self {
        let mut by_name = FxHashMap::<Box<str>, Choice>::default();
        for (index, certificate) in certificates.iter().enumerate() {
            for name in &certificate.names {
                let choice = by_name.entry(name.clone()).or_default();
                let slot = if certificate.ecdsa { &mut choice.ecdsa } else { &mut choice.other };
                slot.get_or_insert(index);
            }
        }
        Self { certificates, by_name, full_scan, require_sni }
    }

    fn choose(&self, name: Option<&str>, fits: impl Fn(&OwnCertificate) -> bool) -> Option<&Arc<OwnCertificate>> {
        if let Some(name) = name {
            let by_choice = |choice: &Choice| {
                let both = [choice.ecdsa, choice.other];
                both.into_iter().flatten().map(|index| &self.certificates[index]).find(|own| fits(own))
            };
            if let Some(found) = self.by_name.get(name).and_then(by_choice) {
                return Some(found);
            }
            let wildcard = name.split_once('.').map(|(_, rest)| format!("*.{rest}"));
            if let Some(found) = wildcard.and_then(|name| self.by_name.get(&*name)).and_then(by_choice) {
                return Some(found);
            }
        }
        if self.require_sni {
            return None;
        }
        if name.is_none() || self.full_scan {
            let of_kind = |ecdsa: bool| self.certificates.iter().find(|own| own.ecdsa == ecdsa && fits(own));
            if let Some(found) = of_kind(true).or_else(|| of_kind(false)) {
                return Some(found);
            }
        }
        // Without a match Envoy takes the first; one that the client cannot use would only fail.
        self.certificates.iter().find(|own| fits(own)).or_else(|| self.certificates.first())
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let own =
            self.choose(hello.server_name(), |own| own.key.key.choose_scheme(hello.signature_schemes()).is_some())?;
        note(|record| record.local = Some(own.clone()));
        Some(own.key.clone())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use nuncio_config::data_source::DataSource;

    /// A self-signed certificate for `names` as configuration.
    pub(crate) fn self_signed(
        names: &[&str],
        algorithm: &'static rcgen::SignatureAlgorithm,
    ) -> (TlsCertificate, rcgen::Certificate) {
        let key = rcgen::KeyPair::generate_for(algorithm).expect("a key");
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let certificate = rcgen::CertificateParams::new(names).expect("names").self_signed(&key).expect("signed");
        let config = TlsCertificate {
            chain: DataSource::Inline(certificate.pem().into_bytes()),
            key: DataSource::Inline(key.serialize_pem().into_bytes()),
            pkcs12: false,
            password: None,
            ocsp_staple: None,
        };
        (config, certificate)
    }

    fn resolver(full_scan: bool, require_sni: bool) -> Resolver {
        let ec =
            |names: &[&str]| Arc::new(load(&self_signed(names, &rcgen::PKCS_ECDSA_P256_SHA256).0, "p").expect("ok"));
        let ed = |names: &[&str]| Arc::new(load(&self_signed(names, &rcgen::PKCS_ED25519).0, "p").expect("ok"));
        let all = vec![ed(&["default.org"]), ed(&["a.com"]), ec(&["A.com"]), ec(&["*.b.com"])];
        Resolver::new(all, full_scan, require_sni)
    }

    fn chosen(resolver: &Resolver, name: Option<&str>, ecdsa: bool) -> Option<usize> {
        let own = resolver.choose(name, |own| ecdsa || !own.ecdsa)?;
        resolver.certificates.iter().position(|other| Arc::ptr_eq(own, other))
    }

    #[test]
    fn names_then_wildcards_then_the_first() {
        let resolver = resolver(false, false);
        assert_eq!(chosen(&resolver, Some("a.com"), true), Some(2));
        assert_eq!(chosen(&resolver, Some("a.com"), false), Some(1));
        assert_eq!(chosen(&resolver, Some("x.b.com"), true), Some(3));
        assert_eq!(chosen(&resolver, Some("x.y.b.com"), true), Some(0));
        assert_eq!(chosen(&resolver, Some("other.net"), true), Some(0));
        assert_eq!(chosen(&resolver, None, true), Some(2));
    }

    #[test]
    fn a_scan_and_a_demand_for_sni_change_the_rest() {
        assert_eq!(chosen(&resolver(true, false), Some("other.net"), true), Some(2));
        assert_eq!(chosen(&resolver(false, true), Some("other.net"), true), None);
        assert_eq!(chosen(&resolver(false, true), None, true), None);
    }

    #[test]
    fn errors_name_the_file_and_the_reason() {
        let (mut config, _) = self_signed(&["a"], &rcgen::PKCS_ED25519);
        config.key = self_signed(&["a"], &rcgen::PKCS_ED25519).0.key;
        let error = load(&config, "listener").expect_err("another key").to_string();
        assert_eq!(
            error,
            "listener: Failed to load private key from <inline>: it is not the key of the certificate in <inline>"
        );
        config.chain = DataSource::File { path: "/does/not/exist.pem".into(), watched_directory: None };
        let error = load(&config, "listener").expect_err("no file").to_string();
        assert_eq!(error, "listener: cannot read file /does/not/exist.pem: No such file or directory");
        config.chain = DataSource::Inline(b"junk".to_vec());
        let error = load(&config, "listener").expect_err("no PEM").to_string();
        assert!(error.contains("no CERTIFICATE section"), "{error}");
    }
}

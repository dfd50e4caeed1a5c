//! Versions, cipher suites and curves: from OpenSSL's names to rustls' types.
//!
//! What BoringSSL can do and rustls cannot is refused with the reason.

use std::sync::Arc;

use nuncio_config::tls::{CommonTlsContext, TlsVersion};
use rustls::crypto::aws_lc_rs::{cipher_suite as suite, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::{SupportedCipherSuite, SupportedProtocolVersion, version};

use super::error::TlsConfigError;
use super::info::cipher_name;

/// BoringSSL's cipher suites of TLS 1.2 that rustls does not have.
const MISSING: &[&str] = &[
    "AES128-GCM-SHA256",
    "AES128-SHA",
    "AES128-SHA256",
    "AES256-GCM-SHA384",
    "AES256-SHA",
    "AES256-SHA256",
    "DES-CBC3-SHA",
    "ECDHE-ECDSA-AES128-SHA",
    "ECDHE-ECDSA-AES128-SHA256",
    "ECDHE-ECDSA-AES256-SHA",
    "ECDHE-RSA-AES128-SHA",
    "ECDHE-RSA-AES128-SHA256",
    "ECDHE-RSA-AES256-SHA",
    "ECDHE-PSK-AES128-CBC-SHA",
    "ECDHE-PSK-AES256-CBC-SHA",
    "ECDHE-PSK-CHACHA20-POLY1305",
    "PSK-AES128-CBC-SHA",
    "PSK-AES256-CBC-SHA",
];

const TLS12: [SupportedCipherSuite; 6] = [
    suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
];

/// Envoy's default list: equal preference of AES-128 and ChaCha20, then AES-256.
const DEFAULT_TLS12: [&str; 4] = [
    "[ECDHE-ECDSA-AES128-GCM-SHA256|ECDHE-ECDSA-CHACHA20-POLY1305]",
    "[ECDHE-RSA-AES128-GCM-SHA256|ECDHE-RSA-CHACHA20-POLY1305]",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
];

/// The suites of TLS 1.3; not configurable, as in Envoy.
const TLS13: [SupportedCipherSuite; 3] =
    [suite::TLS13_AES_128_GCM_SHA256, suite::TLS13_AES_256_GCM_SHA384, suite::TLS13_CHACHA20_POLY1305_SHA256];

/// What a context may negotiate.
#[derive(Debug, Clone)]
pub struct Parameters {
    /// Cipher suites of TLS 1.2 in order; suites in one group are equally good, so that the client's order decides.
    pub groups: Vec<Vec<SupportedCipherSuite>>,
    /// Key exchange groups in order.
    pub curves: Vec<&'static dyn SupportedKxGroup>,
    /// Versions.
    pub versions: Vec<&'static SupportedProtocolVersion>,
}

impl Parameters {
    /// Reads the names in a context.
    ///
    /// # Errors
    /// Names that are unknown, or known and not available.
    pub fn new(context: &CommonTlsContext) -> Result<Self, TlsConfigError> {
        let fail = |problem: String| TlsConfigError::new(&context.path, problem);
        let mut versions = Vec::new();
        if context.min_version <= TlsVersion::V1_3 && context.max_version >= TlsVersion::V1_3 {
            versions.push(&version::TLS13);
        }
        if context.min_version <= TlsVersion::V1_2 && context.max_version >= TlsVersion::V1_2 {
            versions.push(&version::TLS12);
        }
        if versions.is_empty() {
            return Err(fail("tls_minimum_protocol_version is higher than tls_maximum_protocol_version".to_owned()));
        }
        let mut groups = Vec::new();
        let names: Vec<&str> = if context.cipher_suites.is_empty() {
            DEFAULT_TLS12.to_vec()
        } else {
            context.cipher_suites.iter().map(|name| &**name).collect()
        };
        for name in names.iter().flat_map(|name| name.split(':')).filter(|name| !name.is_empty()) {
            let inner = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
            let suites = inner.split('|').map(|name| cipher(name).map_err(fail)).collect::<Result<Vec<_>, _>>()?;
            // TLS 1.3 suites in the list say nothing: they cannot be configured.
            let suites: Vec<_> = suites.into_iter().flatten().collect();
            if !suites.is_empty() {
                groups.push(suites);
            }
        }
        if groups.is_empty() && versions == [&version::TLS12] {
            return Err(fail("cipher_suites has no suite for TLS 1.2".to_owned()));
        }
        let curves = if context.curves.is_empty() {
            vec![kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1]
        } else {
            let names = context.curves.iter().flat_map(|names| names.split(':'));
            names.map(|name| curve(name).map_err(fail)).collect::<Result<Vec<_>, _>>()?
        };
        Ok(Self { groups, curves, versions })
    }

    /// A provider with these parameters; in each group of equal suites those that `first` likes come first.
    pub(super) fn provider(&self, first: impl Fn(&SupportedCipherSuite) -> bool) -> Arc<CryptoProvider> {
        let mut suites = TLS13.to_vec();
        for group in &self.groups {
            suites.extend(group.iter().filter(|suite| first(suite)));
            suites.extend(group.iter().filter(|suite| !first(suite)));
        }
        Arc::new(CryptoProvider {
            cipher_suites: suites,
            kx_groups: self.curves.clone(),
            ..rustls::crypto::aws_lc_rs::default_provider()
        })
    }
}

/// None for a suite of TLS 1.3.
fn cipher(name: &str) -> Result<Option<SupportedCipherSuite>, String> {
    if TLS13.iter().any(|suite| cipher_name(suite.suite()) == name) {
        return Ok(None);
    }
    if let Some(suite) = TLS12.iter().find(|suite| cipher_name(suite.suite()) == name) {
        return Ok(Some(*suite));
    }
    let have: Vec<_> = TLS12.iter().map(|suite| cipher_name(suite.suite())).collect();
    let have = have.join(", ");
    if MISSING.contains(&name) {
        return Err(format!(
            "cipher suite {name} is not available (no CBC and no RSA key exchange; these are for TLS 1.2: {have})"
        ));
    }
    Err(format!("unknown cipher suite {name} (these are for TLS 1.2: {have})"))
}

fn curve(name: &str) -> Result<&'static dyn SupportedKxGroup, String> {
    Ok(match name {
        "X25519" => kx_group::X25519,
        "P-256" | "prime256v1" => kx_group::SECP256R1,
        "P-384" | "secp384r1" => kx_group::SECP384R1,
        "X25519MLKEM768" => kx_group::X25519MLKEM768,
        "P-521" | "secp521r1" | "P-224" | "secp224r1" | "X25519Kyber768Draft00" => {
            return Err(format!("curve {name} is not available (X25519, P-256, P-384 and X25519MLKEM768 are)"));
        }
        _ => return Err(format!("unknown curve {name} (X25519, P-256, P-384 and X25519MLKEM768 are known)")),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn common() -> CommonTlsContext {
        CommonTlsContext {
            min_version: TlsVersion::V1_2,
            max_version: TlsVersion::V1_3,
            cipher_suites: Vec::new(),
            curves: Vec::new(),
            certificates: Vec::new(),
            validation: None,
            alpn_protocols: Vec::new(),
            key_log: None,
            path: "test".into(),
        }
    }

    #[test]
    fn groups_of_equal_suites_are_read() {
        let mut context = common();
        context.cipher_suites =
            vec!["[ECDHE-RSA-AES128-GCM-SHA256|ECDHE-RSA-CHACHA20-POLY1305]".into(), "TLS_AES_128_GCM_SHA256".into()];
        let parameters = Parameters::new(&context).expect("known");
        assert_eq!(parameters.groups.len(), 1);
        let names = |first: &str| {
            let provider = parameters.provider(|suite| cipher_name(suite.suite()) == first);
            provider.cipher_suites[3..].iter().map(|suite| cipher_name(suite.suite())).collect::<Vec<_>>()
        };
        assert_eq!(names("")[0], "ECDHE-RSA-AES128-GCM-SHA256");
        assert_eq!(names("ECDHE-RSA-CHACHA20-POLY1305")[0], "ECDHE-RSA-CHACHA20-POLY1305");
    }

    #[test]
    fn what_rustls_cannot_do_is_named() {
        let mut context = common();
        context.cipher_suites = vec!["ECDHE-RSA-AES128-SHA".into()];
        let error = Parameters::new(&context).expect_err("refused").to_string();
        assert!(error.starts_with("test: cipher suite ECDHE-RSA-AES128-SHA is not available (no CBC"), "{error}");
        context.cipher_suites = vec!["NONSENSE".into()];
        let error = Parameters::new(&context).expect_err("refused").to_string();
        assert!(error.starts_with("test: unknown cipher suite NONSENSE"), "{error}");
        context.cipher_suites.clear();
        context.curves = vec!["P-521".into()];
        let error = Parameters::new(&context).expect_err("refused").to_string();
        assert!(error.starts_with("test: curve P-521 is not available"), "{error}");
    }
}

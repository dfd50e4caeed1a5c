//! `ssl.*` stats of a listener or a cluster.
//!
//! The fixed names are a family. Names that carry a cipher, a version, a curve or a signature algorithm come from small
//! tables and appear with their first count, as in Envoy.

use std::sync::OnceLock;

use nuncio_base::stat_family;
use nuncio_base::stats::{Counter, Registry};
use rustls::SignatureScheme;

stat_family! {
    /// The fixed names.
    pub(crate) struct SslStats {
        when: used;
        counters {
            connection_error,
            handshake,
            session_reused,
            no_certificate,
            fail_verify_no_cert,
            fail_verify_error,
            fail_verify_san,
            fail_verify_cert_hash,
            ocsp_staple_failed,
            ocsp_staple_omitted,
            ocsp_staple_responses,
            ocsp_staple_requests,
        }
    }
}

stat_family! {
    /// Stats of a socket factory.
    pub(crate) struct SocketFactoryStats {
        when: used;
        counters {
            ssl_context_update_by_sds,
            upstream_context_secrets_not_ready,
            downstream_context_secrets_not_ready,
        }
    }
}

const CIPHERS: [&str; 9] = [
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-RSA-CHACHA20-POLY1305",
];
const VERSIONS: [&str; 2] = ["TLSv1.2", "TLSv1.3"];
const CURVES: [&str; 4] = ["X25519", "P-256", "P-384", "X25519MLKEM768"];
const SIGALGS: [&str; 10] = [
    "rsa_pkcs1_sha256",
    "rsa_pkcs1_sha384",
    "rsa_pkcs1_sha512",
    "ecdsa_secp256r1_sha256",
    "ecdsa_secp384r1_sha384",
    "ecdsa_secp521r1_sha512",
    "rsa_pss_rsae_sha256",
    "rsa_pss_rsae_sha384",
    "rsa_pss_rsae_sha512",
    "ed25519",
];

/// BoringSSL's name of a signature algorithm.
pub(super) fn signature_name(scheme: SignatureScheme) -> &'static str {
    use SignatureScheme as S;
    match scheme {
        S::RSA_PKCS1_SHA256 => SIGALGS[0],
        S::RSA_PKCS1_SHA384 => SIGALGS[1],
        S::RSA_PKCS1_SHA512 => SIGALGS[2],
        S::ECDSA_NISTP256_SHA256 => SIGALGS[3],
        S::ECDSA_NISTP384_SHA384 => SIGALGS[4],
        S::ECDSA_NISTP521_SHA512 => SIGALGS[5],
        S::RSA_PSS_SHA256 => SIGALGS[6],
        S::RSA_PSS_SHA384 => SIGALGS[7],
        S::RSA_PSS_SHA512 => SIGALGS[8],
        S::ED25519 => SIGALGS[9],
        _ => "",
    }
}

/// `ssl.*` of one listener or cluster, shared by its contexts.
pub struct TlsStats {
    pub(crate) fixed: SslStats,
    pub(crate) factory: SocketFactoryStats,
    prefix: Box<str>,
    registry: Registry,
    ciphers: [OnceLock<Counter>; CIPHERS.len()],
    versions: [OnceLock<Counter>; VERSIONS.len()],
    curves: [OnceLock<Counter>; CURVES.len()],
    sigalgs: [OnceLock<Counter>; SIGALGS.len()],
    rotation_failed: OnceLock<Counter>,
}

impl std::fmt::Debug for TlsStats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsStats").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl TlsStats {
    /// For a listener, under `listener.ADDRESS.`.
    pub fn server(registry: &Registry, prefix: &str) -> Self {
        Self::new(registry, prefix, "server")
    }

    /// For a cluster, under `cluster.NAME.`.
    pub fn client(registry: &Registry, prefix: &str) -> Self {
        Self::new(registry, prefix, "client")
    }

    fn new(registry: &Registry, prefix: &str, side: &str) -> Self {
        Self {
            fixed: SslStats::new(registry, &format!("{prefix}ssl.")),
            factory: SocketFactoryStats::new(registry, &format!("{prefix}{side}_ssl_socket_factory.")),
            prefix: prefix.into(),
            registry: registry.clone(),
            ciphers: Default::default(),
            versions: Default::default(),
            curves: Default::default(),
            sigalgs: Default::default(),
            rotation_failed: OnceLock::new(),
        }
    }

    /// There is a context: from now on the fixed names are shown.
    pub(crate) fn appear(&self) {
        self.fixed.appear();
        self.factory.appear();
    }

    fn count<const N: usize>(&self, kind: &str, names: &[&str; N], cells: &[OnceLock<Counter>; N], name: &str) {
        if let Some(at) = names.iter().position(|known| *known == name) {
            cells[at].get_or_init(|| self.registry.counter(&format!("{}ssl.{kind}.{name}", self.prefix))).inc();
        }
    }

    /// Counts what a finished handshake agreed on.
    pub(super) fn agreed(&self, version: &str, cipher: &str, curve: &str, sigalg: &str) {
        self.fixed.handshake().inc();
        self.count("versions", &VERSIONS, &self.versions, version);
        self.count("ciphers", &CIPHERS, &self.ciphers, cipher);
        self.count("curves", &CURVES, &self.curves, curve);
        self.count("sigalgs", &SIGALGS, &self.sigalgs, sigalg);
    }

    /// The gauge `ssl.certificate.NAME.expiration_unix_time_seconds`.
    pub(super) fn expiration(&self, name: &str) -> nuncio_base::stats::Gauge {
        self.registry.gauge(&format!("{}ssl.certificate.{name}.expiration_unix_time_seconds", self.prefix))
    }

    /// Counts a reload whose new files were bad; Envoy has this stat for secrets.
    pub(super) fn rotation_failed(&self) {
        let name = || self.registry.counter(&format!("{}ssl.key_rotation_failed", self.prefix));
        self.rotation_failed.get_or_init(name).inc();
    }
}

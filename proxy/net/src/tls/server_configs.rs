//! What a server context has read, as rustls needs it.
//!
//! One context has several rustls configurations, made when first needed: rustls ends a handshake without a common ALPN
//! name, while BoringSSL goes on without ALPN; and rustls knows either the server's or the client's order of ciphers,
//! while BoringSSL has the client's within groups of equal suites. So the ClientHello is read first and picks one. Nothing
//! here changes once it is made; [`server`](super::server) swaps it whole.

use std::sync::{Arc, OnceLock};

use nuncio_config::data_source::DataSource;
use nuncio_config::tls::DownstreamTlsContext;
use rustls::server::{ClientHello, NoServerSessionStorage, ProducesTickets, ServerSessionMemoryCache};
use rustls::{CipherSuite, ServerConfig};
use sha2::{Digest as _, Sha256};

use super::certificates::{LoadedCertificate, OwnCertificate, Resolver, load_all};
use super::error::TlsConfigError;
use super::parameters::Parameters;
use super::sources::{self, KeyLogFile};
use super::tickets::GivenKeys;
use super::verify::Verifier;

/// Sessions that can be resumed by id (TLS 1.2 clients without tickets), per context.
const SESSION_CACHE: usize = 1024;
/// Lifetime of tickets where the configuration gives none: two hours, BoringSSL's.
const TICKET_LIFETIME: u32 = 7200;

/// Certificates, trust, tickets and the configurations made of them.
#[derive(Debug)]
pub(super) struct ServerConfigs {
    parameters: Parameters,
    pub(super) verifier: Arc<Verifier>,
    pub(super) resolver: Arc<Resolver>,
    ticketer: Option<Arc<dyn ProducesTickets>>,
    sessions: Option<Arc<ServerSessionMemoryCache>>,
    pub(super) key_log: Option<Arc<KeyLogFile>>,
    alpn: Vec<Vec<u8>>,
    prefer_client_ciphers: bool,
    configs: [OnceLock<Arc<ServerConfig>>; 6],
    pub(super) ca: Option<LoadedCertificate>,
    pub(super) digest: [u8; 32],
}

/// Whose order of cipher suites counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Client,
    Server,
    /// The server's, and within groups of equal suites ChaCha20 first.
    ServerChaCha,
}
impl ServerConfigs {
    /// Reads all data sources of a context whose secrets are there.
    pub(super) fn load(config: &DownstreamTlsContext) -> Result<Self, TlsConfigError> {
        let common = &config.common;
        let fail = |problem: String| TlsConfigError::new(&common.path, problem);
        let sources = all_sources(config);
        // Taken first, so that a change while the files are read is seen by the next look.
        let digest = sources::digest(&sources);
        let parameters = Parameters::new(common)?;
        let certificates = load_all(&common.certificates, &common.path)?;
        if certificates.is_empty() {
            return Err(fail("No TLS certificates found for server context".to_owned()));
        }
        let validation = sources::validation(common).map_err(fail)?;
        let (verifier, ca) = Verifier::new(validation, config.require_client_certificate, false, &common.path)?;
        let lifetime =
            config.session_timeout.map_or(TICKET_LIFETIME, |time| u32::try_from(time.as_secs()).unwrap_or(u32::MAX));
        let ticketer = match () {
            () if config.disable_stateless_session_resumption => None,
            () if !config.session_ticket_keys.is_empty() => {
                let mut keys = Vec::new();
                for source in &config.session_ticket_keys {
                    let source = sources::read(source).map_err(fail)?;
                    keys.push((source.bytes, source.label));
                }
                let keys = GivenKeys::new(&keys, session_context(config, &certificates, ca.as_ref()), lifetime);
                Some(Arc::new(keys.map_err(fail)?) as Arc<dyn ProducesTickets>)
            }
            () => Some(
                rustls::crypto::aws_lc_rs::Ticketer::new()
                    .map_err(|error| fail(format!("cannot make session ticket keys: {error}")))?,
            ),
        };
        let sessions =
            (!config.disable_stateful_session_resumption).then(|| ServerSessionMemoryCache::new(SESSION_CACHE));
        let key_log = common.key_log.as_ref().map(KeyLogFile::open).transpose().map_err(fail)?;
        let resolver = Resolver::new(certificates, config.full_scan_certs_on_sni_mismatch, config.require_sni);
        let state = Self {
            parameters,
            verifier: Arc::new(verifier),
            resolver: Arc::new(resolver),
            ticketer,
            sessions,
            key_log: key_log.map(Arc::new),
            alpn: common.alpn_protocols.iter().map(|name| name.as_bytes().to_vec()).collect(),
            prefer_client_ciphers: config.prefer_client_ciphers,
            configs: Default::default(),
            ca,
            digest,
        };
        let config = state.build(Order::Client, true).map_err(|error| fail(error.to_string()))?;
        // The array is new, so that the cell is empty.
        let _ = state.configs[0].set(Arc::new(config));
        Ok(state)
    }

    fn build(&self, order: Order, alpn: bool) -> Result<ServerConfig, rustls::Error> {
        let provider = self.parameters.provider(|suite| {
            let chacha = matches!(
                suite.suite(),
                CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
                    | CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256
            );
            chacha == (order == Order::ServerChaCha)
        });
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&self.parameters.versions)?
            .with_client_cert_verifier(self.verifier.clone())
            .with_cert_resolver(self.resolver.clone());
        config.ignore_client_order = order != Order::Client;
        config.alpn_protocols = if alpn { self.alpn.clone() } else { Vec::new() };
        match &self.ticketer {
            Some(ticketer) => {
                config.ticketer = ticketer.clone();
                config.send_tls13_tickets = 1;
            }
            // Without tickets TLS 1.3 would fall back on stateful sessions; BoringSSL does not resume then.
            None => config.send_tls13_tickets = 0,
        }
        match &self.sessions {
            Some(sessions) => config.session_storage = sessions.clone(),
            None => config.session_storage = Arc::new(NoServerSessionStorage {}),
        }
        if let Some(key_log) = &self.key_log {
            config.key_log = key_log.clone();
        }
        Ok(config)
    }

    /// The configuration for a client that begins like this.
    pub(super) fn choose(&self, hello: &ClientHello<'_>) -> Arc<ServerConfig> {
        let alpn = match hello.alpn() {
            Some(mut offered) => offered.any(|name| self.alpn.iter().any(|own| own == name)),
            None => true,
        };
        let order = self.order(hello.cipher_suites());
        let index = match order {
            Order::Client => 0,
            Order::Server => 1,
            Order::ServerChaCha => 2,
        };
        let cell = &self.configs[index + if alpn { 0 } else { 3 }];
        if let Some(config) = cell.get() {
            return config.clone();
        }
        match (self.build(order, alpn), self.configs[0].get()) {
            (Ok(config), _) => cell.get_or_init(|| Arc::new(config)).clone(),
            // The same parameters have been accepted before, so that this cannot happen; the first one is right too.
            (Err(_), Some(first)) => first.clone(),
            (Err(error), None) => unreachable!("the first configuration is made with the state: {error}"),
        }
    }

    /// TLS 1.3 follows the client; TLS 1.2 the server's groups, and the client within a group.
    fn order(&self, offered: &[CipherSuite]) -> Order {
        let tls13 = |suite: &CipherSuite| {
            matches!(
                suite,
                CipherSuite::TLS13_AES_128_GCM_SHA256
                    | CipherSuite::TLS13_AES_256_GCM_SHA384
                    | CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
            )
        };
        let has_tls13 =
            self.parameters.versions.iter().any(|version| version.version == rustls::ProtocolVersion::TLSv1_3);
        if self.prefer_client_ciphers || has_tls13 && offered.iter().any(tls13) {
            return Order::Client;
        }
        let position = |wanted: [CipherSuite; 2]| offered.iter().position(|suite| wanted.contains(suite));
        let chacha = position([
            CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
            CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
        ]);
        let aes = position([
            CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        ]);
        match (chacha, aes) {
            (Some(chacha), Some(aes)) if chacha < aes => Order::ServerChaCha,
            (Some(_), None) => Order::ServerChaCha,
            _ => Order::Server,
        }
    }
}

/// Every data source that the context reads.
pub(super) fn all_sources(config: &DownstreamTlsContext) -> Vec<&DataSource> {
    let mut all = sources::of_context(&config.common);
    all.extend(&config.session_ticket_keys);
    all
}

/// What a session must have in common with this context to be resumed in it: who we are and whom we trust.
fn session_context(
    config: &DownstreamTlsContext,
    certificates: &[Arc<OwnCertificate>],
    ca: Option<&LoadedCertificate>,
) -> [u8; 32] {
    let mut digest = Sha256::new();
    digest.update([u8::from(config.require_client_certificate)]);
    for own in certificates {
        digest.update(own.info.subject.as_bytes());
        for san in &own.info.sans {
            digest.update(format!("{san:?}"));
        }
    }
    if let Some(ca) = ca {
        digest.update(ca.info.fingerprint_256());
    }
    // Matchers and pins have no canonical bytes; their debug form is stable within a version of the program.
    digest.update(format!("{:?}", config.common.validation));
    digest.finalize().into()
}

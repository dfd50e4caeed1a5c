//! The TLS context of a cluster: handshakes as a client.
//!
//! The server's name is sent as SNI and checked only where the configuration asks for it (SAN matchers, or
//! `auto_sni_san_validation`), as in Envoy.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use nuncio_base::clock;
use nuncio_config::tls::UpstreamTlsContext;
use rustls::ClientConfig;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::sign::CertifiedKey;
use rustls_pki_types::ServerName;
use tokio_rustls::TlsConnector;

use super::certificates::{ContextCertificates, LoadedCertificate, OwnCertificate, load_all};
use super::error::{HandshakeError, TlsConfigError, failure_text, tls_error};
use super::handshake::{Record, failed_session, finish, note, recorded};
use super::info::TlsInfo;
use super::parameters::Parameters;
use super::secrets::{Secret, SecretUser, Secrets, resolve};
use super::sources::{self, KeyLogFile};
use super::stats::TlsStats;
use super::verify::{Verifier, VerifyFailure};
use super::watch::Reload;
use crate::connection::{Io, Plain};

/// A client-side TLS context.
#[derive(Debug)]
pub struct ClientTlsContext {
    /// As configured; secrets by name.
    template: Arc<UpstreamTlsContext>,
    secrets: Vec<Arc<Secret>>,
    /// With its secrets in place.
    config: ArcSwap<UpstreamTlsContext>,
    stats: Arc<TlsStats>,
    /// None until all secrets have come.
    state: ArcSwapOption<State>,
}

#[derive(Debug)]
struct State {
    with_sni: Arc<ClientConfig>,
    without_sni: Arc<ClientConfig>,
    verifier: Arc<Verifier>,
    own: Option<Arc<OwnCertificate>>,
    key_log: Option<Arc<KeyLogFile>>,
    ca: Option<LoadedCertificate>,
    digest: [u8; 32],
}

/// What one connection asks for beyond its context.
#[derive(Debug, Clone, Copy, Default)]
pub struct ClientTarget<'a> {
    /// Host name of the endpoint, for `auto_host_sni`.
    pub hostname: Option<&'a str>,
    /// SNI from the request (`auto_sni`); goes before the context's.
    pub server_name: Option<&'a str>,
    /// ALPN names instead of the context's.
    pub alpn: Option<&'a [&'a [u8]]>,
}

/// A finished handshake.
#[derive(Debug)]
pub struct ClientSession {
    /// The encrypted stream.
    pub io: Io,
    /// The session.
    pub tls: Box<TlsInfo>,
    /// ALPN name that was agreed upon.
    pub negotiated_protocol: Option<Box<[u8]>>,
    /// SNI that was sent.
    pub server_name: Option<Box<str>>,
}

impl ClientTlsContext {
    /// Reads all data sources and builds the context.
    ///
    /// # Errors
    /// Names the file or option at fault, the reason and the path in the configuration.
    pub fn new(config: Arc<UpstreamTlsContext>, stats: Arc<TlsStats>) -> Result<Arc<Self>, TlsConfigError> {
        Self::with_secrets(config, stats, &Secrets::default())
    }

    /// As [`new`](Self::new), with secrets that come later. Until they have come every handshake fails.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_secrets(
        template: Arc<UpstreamTlsContext>,
        stats: Arc<TlsStats>,
        secrets: &Secrets,
    ) -> Result<Arc<Self>, TlsConfigError> {
        stats.appear();
        let secrets = secrets.of(&template.common);
        let config = resolved(&template, &secrets);
        let state = config.as_ref().map(|config| State::load(config)).transpose()?;
        let config = ArcSwap::new(config.unwrap_or_else(|| template.clone()));
        let this = Arc::new(Self { template, secrets, config, stats, state: ArcSwapOption::from_pointee(state) });
        for secret in &this.secrets {
            let user: std::sync::Weak<Self> = Arc::downgrade(&this);
            secret.used_by(user);
        }
        Ok(this)
    }

    /// The secrets that it needs.
    pub fn secrets(&self) -> &[Arc<Secret>] {
        &self.secrets
    }

    /// Certificates for `/certs`.
    pub fn certificates(&self) -> ContextCertificates {
        let state = self.state.load();
        let Some(state) = &*state else { return ContextCertificates::default() };
        let own = state.own.iter();
        ContextCertificates {
            ca: state.ca.clone(),
            chains: own.map(|own| LoadedCertificate { path: own.label.clone(), info: own.info.clone() }).collect(),
        }
    }

    /// The SNI for a connection to `target`; none when there is no name.
    pub fn server_name<'a>(&'a self, target: &ClientTarget<'a>) -> Option<&'a str> {
        let configured = Some(&*self.template.sni).filter(|name| !name.is_empty());
        let host = target.hostname.filter(|_| self.template.auto_host_sni);
        target.server_name.or(host).or(configured)
    }

    /// Does the handshake over `plain`. The caller sets the deadline; the outcome is counted.
    ///
    /// # Errors
    /// [`HandshakeError`] with the text for `%UPSTREAM_TRANSPORT_FAILURE_REASON%`.
    pub async fn connect(&self, plain: Plain, target: &ClientTarget<'_>) -> Result<ClientSession, HandshakeError> {
        let Some(state) = self.state.load_full() else {
            self.stats.factory.upstream_context_secrets_not_ready().inc();
            let reason = "TLS_error:_Secret_is_not_supplied_by_SDS";
            return Err(HandshakeError { reason: reason.into(), tls: None });
        };
        let server_name = self.server_name(target);
        let parsed = server_name.and_then(|name| ServerName::try_from(name.to_owned()).ok());
        let (config, name) = match parsed {
            Some(name) => (&state.with_sni, name),
            None => (&state.without_sni, ServerName::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED))),
        };
        let connector = TlsConnector::from(config.clone());
        let logs_keys = state.key_log.as_ref().is_some_and(|log| {
            let (local, remote) = plain.ips();
            log.concerns(local, remote)
        });
        let mut record = Record { began: Some(clock::now()), logs_keys, ..Record::default() };
        let outcome = match target.alpn {
            Some(alpn) => {
                let alpn = alpn.iter().map(|name| name.to_vec()).collect();
                recorded(&mut record, connector.with_alpn(alpn).connect(name, plain)).await
            }
            None => recorded(&mut record, connector.connect(name, plain)).await,
        };
        match outcome {
            Ok(stream) => {
                let session = stream.get_ref().1;
                let tls = finish(session, record, state.verifier.enforces(), &self.stats);
                Ok(ClientSession {
                    negotiated_protocol: session.alpn_protocol().map(Into::into),
                    io: Io::tls_client(stream),
                    tls: Box::new(tls),
                    server_name: server_name.map(Into::into),
                })
            }
            Err(error) => {
                let stats = &self.stats.fixed;
                let reason = match tls_error(&error) {
                    Some(error) => {
                        match &record.failure {
                            Some(VerifyFailure::SanList | VerifyFailure::SanMatcher) => stats.fail_verify_san().inc(),
                            Some(VerifyFailure::Pin) => stats.fail_verify_cert_hash().inc(),
                            Some(VerifyFailure::Chain(_)) => stats.fail_verify_error().inc(),
                            None => stats.connection_error().inc(),
                        }
                        // A server's first record is no help: it is not known here.
                        Cow::Owned(failure_text(error, record.failure.as_ref(), &[]))
                    }
                    None => Cow::Borrowed(""),
                };
                Err(HandshakeError { reason: reason.into(), tls: failed_session(record) })
            }
        }
    }
}

/// Shows the one own certificate to any server that asks.
#[derive(Debug)]
struct ClientCertificate(Arc<OwnCertificate>);

impl ResolvesClientCert for ClientCertificate {
    fn resolve(&self, _root_hint_subjects: &[&[u8]], schemes: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.key.key.choose_scheme(schemes)?;
        note(|record| record.local = Some(self.0.clone()));
        Some(self.0.key.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl State {
    fn load(config: &UpstreamTlsContext) -> Result<Self, TlsConfigError> {
        let common = &config.common;
        let fail = |problem: String| TlsConfigError::new(&common.path, problem);
        let digest = sources::digest(&sources::of_context(common));
        let parameters = Parameters::new(common)?;
        let own = load_all(&common.certificates, &common.path)?.into_iter().next();
        let validation = sources::validation(common).map_err(fail)?;
        let (verifier, ca) = Verifier::new(validation, false, config.auto_sni_san_validation, &common.path)?;
        let verifier = Arc::new(verifier);
        let builder = ClientConfig::builder_with_provider(parameters.provider(|_| false))
            .with_protocol_versions(&parameters.versions)
            .map_err(|error| fail(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(verifier.clone());
        let mut client = match &own {
            Some(own) => builder.with_client_cert_resolver(Arc::new(ClientCertificate(own.clone()))),
            None => builder.with_no_client_auth(),
        };
        client.alpn_protocols = common.alpn_protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        client.resumption = match config.max_session_keys {
            0 => Resumption::disabled(),
            keys => Resumption::in_memory_sessions(keys as usize),
        };
        let key_log = common.key_log.as_ref().map(KeyLogFile::open).transpose().map_err(fail)?.map(Arc::new);
        if let Some(key_log) = &key_log {
            client.key_log = key_log.clone();
        }
        let mut without_sni = client.clone();
        without_sni.enable_sni = false;
        Ok(Self { with_sni: Arc::new(client), without_sni: Arc::new(without_sni), verifier, own, key_log, ca, digest })
    }
}

impl Reload for ClientTlsContext {
    fn watched(&self) -> Vec<(PathBuf, PathBuf)> {
        sources::of_context(&self.config.load().common).into_iter().filter_map(sources::watched).collect()
    }

    fn reload(&self) -> Result<bool, TlsConfigError> {
        let config = self.config.load_full();
        match &*self.state.load() {
            Some(state) if sources::digest(&sources::of_context(&config.common)) != state.digest => {}
            _ => return Ok(false),
        }
        let state = State::load(&config).inspect_err(|_| {
            self.stats.rotation_failed();
            self.secrets.iter().for_each(|secret| secret.rotation_failed());
        })?;
        for secret in &self.secrets {
            secret.look_at_files();
        }
        self.state.store(Some(Arc::new(state)));
        self.stats.factory.ssl_context_update_by_sds().inc();
        Ok(true)
    }

    fn context_certificates(&self) -> ContextCertificates {
        self.certificates()
    }
}

impl SecretUser for ClientTlsContext {
    fn refresh(&self) -> Result<(), TlsConfigError> {
        let Some(config) = resolved(&self.template, &self.secrets) else { return Ok(()) };
        let state = State::load(&config)?;
        self.config.store(config);
        self.state.store(Some(Arc::new(state)));
        self.stats.factory.ssl_context_update_by_sds().inc();
        Ok(())
    }
}

/// The context with its secrets in place; None while one is missing.
fn resolved(template: &Arc<UpstreamTlsContext>, secrets: &[Arc<Secret>]) -> Option<Arc<UpstreamTlsContext>> {
    if secrets.is_empty() {
        return Some(template.clone());
    }
    let common = resolve(&template.common, secrets)?;
    Some(Arc::new(UpstreamTlsContext { common, ..(**template).clone() }))
}

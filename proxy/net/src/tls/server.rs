//! The TLS context of a filter chain: handshakes as a server, secrets that come and files that change.
//!
//! What rustls is configured with is the work of `server_configs`.

use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::BytesMut;
use nuncio_base::clock;
use nuncio_config::tls::DownstreamTlsContext;
use rustls::server::Acceptor;
use tokio::io::AsyncReadExt as _;
use tokio_rustls::LazyConfigAcceptor;

use super::certificates::{ContextCertificates, LoadedCertificate};
use super::error::{HandshakeError, TlsConfigError, failure_text, tls_error};
use super::handshake::{Record, failed_session, finish, recorded};
use super::secrets::{Secret, SecretUser, Secrets, resolve_server};
use super::server_configs::{ServerConfigs, all_sources};
use super::sources;
use super::stats::TlsStats;
use super::verify::VerifyFailure;
use super::watch::Reload;
use crate::connection::{ConnectionInfo, Io, Plain};

/// A server-side TLS context. Built on the control thread, used by all workers, swapped whole when its files change.
#[derive(Debug)]
pub struct ServerTlsContext {
    /// As configured; secrets by name.
    template: Arc<DownstreamTlsContext>,
    secrets: Vec<Arc<Secret>>,
    /// With its secrets in place.
    config: ArcSwap<DownstreamTlsContext>,
    stats: Arc<TlsStats>,
    expiration: Vec<nuncio_base::stats::Gauge>,
    /// None until all secrets have come.
    state: ArcSwapOption<ServerConfigs>,
}

impl ServerTlsContext {
    /// Reads all data sources and builds the context.
    ///
    /// # Errors
    /// Names the file or option at fault, the reason and the path in the configuration.
    pub fn new(config: Arc<DownstreamTlsContext>, stats: Arc<TlsStats>) -> Result<Arc<Self>, TlsConfigError> {
        Self::with_secrets(config, stats, &Secrets::default())
    }

    /// As [`new`](Self::new), with secrets that come later. Until they have come every handshake fails.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_secrets(
        template: Arc<DownstreamTlsContext>,
        stats: Arc<TlsStats>,
        secrets: &Secrets,
    ) -> Result<Arc<Self>, TlsConfigError> {
        stats.appear();
        let keys = template.session_ticket_keys_sds.as_ref().map(|config| secrets.ticket_keys(config));
        let mut secrets = secrets.of(&template.common);
        // Behind those of the common part.
        secrets.extend(keys);
        let config = resolve_server(&template, &secrets);
        let state = config.as_ref().map(|config| ServerConfigs::load(config)).transpose()?;
        let mut expiration = Vec::new();
        if let Some(state) = &state {
            if let Some(ca) = &state.ca {
                expiration.push(expiration_gauge(&stats, "unnamed_ca_cert", ca));
            }
            for own in &state.resolver.certificates {
                let loaded = LoadedCertificate { path: own.label.clone(), info: own.info.clone() };
                expiration.push(expiration_gauge(&stats, "unnamed_cert", &loaded));
            }
        }
        let this = Arc::new(Self {
            config: ArcSwap::new(config.unwrap_or_else(|| template.clone())),
            template,
            secrets,
            stats,
            expiration,
            state: ArcSwapOption::from_pointee(state),
        });
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

    /// Whether a client must show a certificate.
    pub fn requires_client_certificate(&self) -> bool {
        self.template.require_client_certificate
    }

    /// Certificates for `/certs`.
    pub fn certificates(&self) -> ContextCertificates {
        let state = self.state.load();
        let Some(state) = &*state else { return ContextCertificates::default() };
        let own = state.resolver.certificates.iter();
        ContextCertificates {
            ca: state.ca.clone(),
            chains: own.map(|own| LoadedCertificate { path: own.label.clone(), info: own.info.clone() }).collect(),
        }
    }

    /// Does the handshake over `plain` and fills in what `info` says about TLS.
    ///
    /// The caller sets the deadline. No matter how it ends, the outcome is counted.
    ///
    /// # Errors
    /// [`HandshakeError`], whose reason also becomes the transport failure reason in `info`.
    pub async fn accept(&self, plain: Plain, info: &mut ConnectionInfo) -> Result<Io, HandshakeError> {
        let Some(state) = self.state.load_full() else {
            self.stats.factory.downstream_context_secrets_not_ready().inc();
            let reason = "TLS_error:_Secret_is_not_supplied_by_SDS";
            let _ = info.transport_failure_reason.set(reason.into());
            return Err(HandshakeError { reason: reason.into(), tls: None });
        };
        let logs_keys =
            state.key_log.as_ref().is_some_and(|log| log.concerns(info.local_address.ip(), info.remote_address.ip()));
        let mut record = Record { began: Some(clock::now()), logs_keys, ..Record::default() };
        let mut first = [0; 5];
        let outcome = recorded(&mut record, handshake(&state, plain, &mut first)).await;
        match outcome {
            Ok(stream) => {
                let session = stream.get_ref().1;
                let mut tls = finish(session, record, state.verifier.enforces(), &self.stats);
                if let (None, [only]) = (&tls.local_certificate, &*state.resolver.certificates) {
                    // A resumed session shows no certificate; it was this one.
                    tls.local_certificate = Some(only.info.clone());
                }
                info.negotiated_protocol = session.alpn_protocol().map(Into::into);
                info.tls = Some(Box::new(tls));
                let mut io = Io::tls_server(stream);
                io.set_meter(info.bytes.clone());
                Ok(io)
            }
            Err(error) => {
                let stats = &self.stats.fixed;
                let mut reason = String::new();
                if let Some(error) = tls_error(&error) {
                    match (&record.failure, error) {
                        (Some(VerifyFailure::SanList | VerifyFailure::SanMatcher), _) => stats.fail_verify_san().inc(),
                        (Some(VerifyFailure::Pin), _) => stats.fail_verify_cert_hash().inc(),
                        (Some(VerifyFailure::Chain(_)), _) => stats.fail_verify_error().inc(),
                        (None, rustls::Error::NoCertificatesPresented) => stats.fail_verify_no_cert().inc(),
                        (None, _) => stats.connection_error().inc(),
                    }
                    reason = failure_text(error, record.failure.as_ref(), &first);
                    // Set once per connection; a listener filter may have said something before.
                    let _ = info.transport_failure_reason.set(reason.as_str().into());
                }
                let tls = failed_session(record);
                Err(HandshakeError { reason: reason.into(), tls })
            }
        }
    }
}

fn expiration_gauge(stats: &TlsStats, kind: &str, certificate: &LoadedCertificate) -> nuncio_base::stats::Gauge {
    // Envoy appends a hash of the name of the secret, which certificates written in place do not have.
    let gauge = stats.expiration(&format!("{kind}_e3b0c442"));
    let end = certificate.info.not_after.duration_since(std::time::SystemTime::UNIX_EPOCH);
    gauge.set(end.map_or(0, |end| end.as_secs()));
    gauge
}

async fn handshake(
    state: &ServerConfigs,
    mut plain: Plain,
    first: &mut [u8; 5],
) -> std::io::Result<tokio_rustls::server::TlsStream<Plain>> {
    if plain.prefix().is_empty() {
        // The first bytes are read here, since they tell what to log when they are no TLS.
        let mut buffer = BytesMut::with_capacity(4096);
        if plain.read_buf(&mut buffer).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        plain.unread(buffer.freeze());
    }
    let known = plain.prefix().len().min(first.len());
    first[..known].copy_from_slice(&plain.prefix()[..known]);
    let start = LazyConfigAcceptor::new(Acceptor::default(), plain).await?;
    let config = state.choose(&start.client_hello());
    start.into_stream(config).await
}

impl Reload for ServerTlsContext {
    fn watched(&self) -> Vec<(PathBuf, PathBuf)> {
        all_sources(&self.config.load()).into_iter().filter_map(sources::watched).collect()
    }

    fn reload(&self) -> Result<bool, TlsConfigError> {
        let config = self.config.load_full();
        match &*self.state.load() {
            Some(state) if sources::digest(&all_sources(&config)) != state.digest => {}
            _ => return Ok(false),
        }
        let state = ServerConfigs::load(&config).inspect_err(|_| {
            self.stats.rotation_failed();
            self.secrets.iter().for_each(|secret| secret.rotation_failed());
        })?;
        for secret in &self.secrets {
            secret.look_at_files();
        }
        let ends = state.ca.iter().map(|ca| &ca.info).chain(state.resolver.certificates.iter().map(|own| &own.info));
        for (gauge, info) in self.expiration.iter().zip(ends) {
            let end = info.not_after.duration_since(std::time::SystemTime::UNIX_EPOCH);
            gauge.set(end.map_or(0, |end| end.as_secs()));
        }
        self.state.store(Some(Arc::new(state)));
        self.stats.factory.ssl_context_update_by_sds().inc();
        Ok(true)
    }

    fn context_certificates(&self) -> ContextCertificates {
        self.certificates()
    }
}

impl SecretUser for ServerTlsContext {
    fn refresh(&self) -> Result<(), TlsConfigError> {
        let Some(config) = resolve_server(&self.template, &self.secrets) else { return Ok(()) };
        let state = ServerConfigs::load(&config)?;
        self.config.store(config);
        self.state.store(Some(Arc::new(state)));
        self.stats.factory.ssl_context_update_by_sds().inc();
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::certificates::tests::self_signed;
    use super::super::client::{ClientSession, ClientTarget, ClientTlsContext};
    use super::super::parameters::tests::common;
    use super::*;
    use crate::address::Address;
    use nuncio_base::stats::{Registry, StatsConfig};
    use nuncio_config::data_source::DataSource;
    use nuncio_config::matchers::StringMatcher;
    use nuncio_config::tls::{
        CertificateSource, SanMatcher, SanType, TlsVersion, UpstreamTlsContext, ValidationContext, ValidationSource,
    };
    use tokio::io::AsyncWriteExt as _;

    pub(crate) fn downstream() -> DownstreamTlsContext {
        let mut common = common();
        let (certificate, _) = self_signed(&["a.example.com"], &rcgen::PKCS_ECDSA_P256_SHA256);
        common.certificates = vec![CertificateSource::Static(certificate)];
        DownstreamTlsContext {
            common,
            require_client_certificate: false,
            require_sni: false,
            full_scan_certs_on_sni_mismatch: false,
            disable_stateless_session_resumption: false,
            disable_stateful_session_resumption: false,
            session_ticket_keys: Vec::new(),
            session_ticket_keys_sds: None,
            session_timeout: None,
            prefer_client_ciphers: false,
        }
    }

    pub(crate) fn upstream() -> UpstreamTlsContext {
        UpstreamTlsContext {
            common: common(),
            sni: "a.example.com".into(),
            auto_host_sni: false,
            auto_sni_san_validation: false,
            max_session_keys: 1,
        }
    }

    struct Pair {
        registry: Registry,
        server: Arc<ServerTlsContext>,
        client: Arc<ClientTlsContext>,
    }

    impl Pair {
        fn new(server: DownstreamTlsContext, client: UpstreamTlsContext) -> Self {
            let registry = Registry::new(1, StatsConfig::default());
            let stats = Arc::new(TlsStats::server(&registry, "listener.x."));
            let server = ServerTlsContext::new(Arc::new(server), stats).expect("server context");
            let stats = Arc::new(TlsStats::client(&registry, "cluster.y."));
            let client = ClientTlsContext::new(Arc::new(client), stats).expect("client context");
            Self { registry, server, client }
        }

        async fn connect(
            &self,
            target: ClientTarget<'_>,
        ) -> (ConnectionInfo, Result<Io, HandshakeError>, Result<ClientSession, HandshakeError>) {
            let (near, far) = tokio::io::duplex(1 << 16);
            let pipe = || Address::Pipe("".into());
            let mut info = ConnectionInfo::new(pipe(), pipe());
            let server = async {
                let mut io = self.server.accept(Plain::memory(near), &mut info).await?;
                io.write_all(b"x").await.expect("written");
                Ok(io)
            };
            let client = async {
                let mut session = self.client.connect(Plain::memory(far), &target).await?;
                // With TLS 1.3 a refused client certificate and the tickets are seen only now.
                if session.io.read(&mut [0; 1]).await.is_err() {
                    return Err(HandshakeError { reason: "refused".into(), tls: None });
                }
                Ok(session)
            };
            let (server, client) = tokio::join!(server, client);
            (info, server, client)
        }

        fn count(&self, name: &str) -> u64 {
            self.registry.counter_value(name).unwrap_or(0)
        }
    }

    fn trust(certificate: &rcgen::Certificate) -> ValidationContext {
        ValidationContext {
            trusted_ca: Some(DataSource::Inline(certificate.pem().into_bytes())),
            ..ValidationContext::default()
        }
    }

    #[tokio::test]
    async fn a_handshake_is_described_and_counted() {
        let mut server = downstream();
        server.common.alpn_protocols = vec!["h2".into(), "http/1.1".into()];
        let mut client = upstream();
        client.common.alpn_protocols = vec!["http/1.1".into()];
        let pair = Pair::new(server, client);
        let (info, io, session) = pair.connect(ClientTarget::default()).await;
        io.expect("server side");
        let session = session.expect("client side");
        assert!(info.negotiated(b"http/1.1"));
        assert_eq!(session.negotiated_protocol.as_deref(), Some(&b"http/1.1"[..]));
        let tls = info.tls.expect("TLS");
        assert_eq!((tls.version, tls.group), ("TLSv1.3", "X25519"));
        assert!(tls.cipher.starts_with("TLS_"), "{}", tls.cipher);
        assert!(tls.local_certificate.is_some() && !tls.peer_certificate_presented());
        assert!(!session.tls.peer_validated);
        let seen = session.tls.peer_certificate().expect("the server's certificate");
        assert_eq!(seen.dns_sans().collect::<Vec<_>>(), ["a.example.com"]);
        for name in ["handshake", "no_certificate", "versions.TLSv1.3", "curves.X25519"] {
            assert_eq!(pair.count(&format!("listener.x.ssl.{name}")), 1, "{name}");
        }
        assert_eq!(pair.count(&format!("listener.x.ssl.ciphers.{}", tls.cipher)), 1);
        assert_eq!(pair.count("cluster.y.ssl.sigalgs.ecdsa_secp256r1_sha256"), 1);
    }

    #[tokio::test]
    async fn no_common_alpn_name_means_no_alpn() {
        let mut server = downstream();
        server.common.alpn_protocols = vec!["h2".into()];
        let pair = Pair::new(server, upstream());
        let target = ClientTarget { alpn: Some(&[b"foo"]), ..ClientTarget::default() };
        let (info, io, session) = pair.connect(target).await;
        io.expect("server side");
        session.expect("client side");
        assert_eq!(info.negotiated_protocol, None);
    }

    #[tokio::test]
    async fn a_demanded_client_certificate_must_be_shown_and_trusted() {
        let (own, certificate) = self_signed(&["client"], &rcgen::PKCS_ECDSA_P256_SHA256);
        let (other, _) = self_signed(&["other"], &rcgen::PKCS_ECDSA_P256_SHA256);
        let mut server = downstream();
        server.require_client_certificate = true;
        server.common.validation = Some(ValidationSource::Static(trust(&certificate)));

        let pair = Pair::new(server.clone(), upstream());
        let (info, io, client) = pair.connect(ClientTarget::default()).await;
        assert!(io.is_err() && client.is_err());
        let reason = info.transport_failure_reason.get().expect("a reason");
        assert!(reason.contains("PEER_DID_NOT_RETURN_A_CERTIFICATE"), "{reason}");
        assert_eq!(pair.count("listener.x.ssl.fail_verify_no_cert"), 1);
        assert_eq!(pair.count("listener.x.ssl.connection_error"), 0);

        let mut client = upstream();
        client.common.certificates = vec![CertificateSource::Static(other)];
        let pair = Pair::new(server.clone(), client);
        let (info, io, _) = pair.connect(ClientTarget::default()).await;
        let error = io.expect_err("untrusted");
        assert!(error.reason.contains("CERTIFICATE_VERIFY_FAILED:verify cert failed: X509_verify_cert"), "{error}");
        assert!(info.transport_failure_reason.get().is_some());
        let shown = error.tls.expect("a session");
        assert!(shown.peer_certificate().is_some_and(|peer| peer.dns_sans().any(|name| name == "other")));
        assert_eq!(pair.count("listener.x.ssl.fail_verify_error"), 1);

        let mut client = upstream();
        client.common.certificates = vec![CertificateSource::Static(own)];
        let pair = Pair::new(server, client);
        let (info, io, _) = pair.connect(ClientTarget::default()).await;
        io.expect("trusted");
        assert!(info.tls.is_some_and(|tls| tls.peer_validated));
    }

    #[tokio::test]
    async fn an_upstream_is_checked_only_as_far_as_configured() {
        let (own, certificate) = self_signed(&["a.example.com"], &rcgen::PKCS_ECDSA_P256_SHA256);
        let (_, stranger) = self_signed(&["a.example.com"], &rcgen::PKCS_ECDSA_P256_SHA256);
        let mut server = downstream();
        server.common.certificates = vec![CertificateSource::Static(own)];
        let san = |name: &str| SanMatcher { san_type: SanType::Dns, matcher: StringMatcher::Exact(name.into(), false) };
        let with_san =
            |name: &str| ValidationContext { match_typed_subject_alt_names: vec![san(name)], ..trust(&certificate) };
        let pin = |byte: u8| ValidationContext {
            verify_certificate_hash: vec![format!("{byte:02x}").repeat(32).into()],
            ..ValidationContext::default()
        };
        let cases = [
            (trust(&certificate), true, ""),
            (trust(&stranger), false, "fail_verify_error"),
            (ValidationContext { accept_untrusted: true, ..trust(&stranger) }, true, ""),
            (with_san("a.example.com"), true, ""),
            (with_san("b.example.com"), false, "fail_verify_san"),
            (pin(7), false, "fail_verify_cert_hash"),
        ];
        for (index, (validation, passes, counter)) in cases.into_iter().enumerate() {
            let mut client = upstream();
            client.common.validation = Some(ValidationSource::Static(validation));
            let pair = Pair::new(server.clone(), client);
            let (_, _, session) = pair.connect(ClientTarget::default()).await;
            assert_eq!(session.is_ok(), passes, "case {index}: {:?}", session.err());
            if !passes {
                assert_eq!(pair.count(&format!("cluster.y.ssl.{counter}")), 1, "case {index}");
            }
        }
        let mut client = upstream();
        client.sni = "c.example.com".into();
        client.auto_sni_san_validation = true;
        client.common.validation = Some(ValidationSource::Static(trust(&certificate)));
        let pair = Pair::new(server, client);
        let (_, _, session) = pair.connect(ClientTarget::default()).await;
        assert!(session.is_err_and(|error| error.reason.contains("verify SAN list")));
    }

    #[tokio::test]
    async fn sessions_resume_unless_tickets_are_off() {
        for (off, resumed) in [(false, true), (true, false)] {
            for version in [TlsVersion::V1_2, TlsVersion::V1_3] {
                let mut server = downstream();
                server.disable_stateless_session_resumption = off;
                server.disable_stateful_session_resumption = off;
                server.common.max_version = version;
                let pair = Pair::new(server, upstream());
                for _ in 0..2 {
                    let (info, io, session) = pair.connect(ClientTarget::default()).await;
                    assert!(info.tls.is_some_and(|tls| tls.local_certificate.is_some()));
                    io.expect("server side");
                    session.expect("client side");
                }
                assert_eq!(pair.count("listener.x.ssl.session_reused"), u64::from(resumed), "{off} {version:?}");
            }
        }
    }

    #[tokio::test]
    async fn an_untrusted_client_certificate_is_not_validated_by_resuming() {
        let (own, certificate) = self_signed(&["client"], &rcgen::PKCS_ECDSA_P256_SHA256);
        let (_, stranger) = self_signed(&["ca"], &rcgen::PKCS_ECDSA_P256_SHA256);
        for (accept_untrusted, authority, validated) in [(true, &stranger, false), (false, &certificate, true)] {
            for version in [TlsVersion::V1_2, TlsVersion::V1_3] {
                let mut server = downstream();
                server.require_client_certificate = true;
                server.common.max_version = version;
                let context = ValidationContext { accept_untrusted, ..trust(authority) };
                server.common.validation = Some(ValidationSource::Static(context));
                let mut client = upstream();
                client.common.certificates = vec![CertificateSource::Static(own.clone())];
                let pair = Pair::new(server, client);
                for resumed in [false, true] {
                    let (info, io, _) = pair.connect(ClientTarget::default()).await;
                    io.expect("accepted");
                    let tls = info.tls.expect("TLS");
                    assert!(tls.peer_certificate_presented());
                    assert_eq!((tls.resumed, tls.peer_validated), (resumed, validated), "{version:?}");
                }
            }
        }
    }

    #[tokio::test]
    async fn plain_text_is_named_in_the_failure() {
        let pair = Pair::new(downstream(), upstream());
        let (near, mut far) = tokio::io::duplex(1 << 16);
        far.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("written");
        let pipe = || Address::Pipe("".into());
        let mut info = ConnectionInfo::new(pipe(), pipe());
        let error = pair.server.accept(Plain::memory(near), &mut info).await.expect_err("no TLS");
        assert!(error.reason.contains("268435612:SSL routines:OPENSSL_internal:HTTP_REQUEST"), "{error}");
        assert_eq!(pair.count("listener.x.ssl.connection_error"), 1);
    }

    #[tokio::test]
    async fn changed_files_are_used_and_bad_ones_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = |name: &str| DataSource::File { path: folder.path().join(name), watched_directory: None };
        let write = |config: &nuncio_config::tls::TlsCertificate| {
            for (name, source) in [("chain", &config.chain), ("key", &config.key)] {
                let DataSource::Inline(bytes) = source else { panic!("inline") };
                std::fs::write(folder.path().join(name), bytes).expect("written");
            }
        };
        let (first, _) = self_signed(&["first"], &rcgen::PKCS_ECDSA_P256_SHA256);
        write(&first);
        let mut server = downstream();
        let from_files = nuncio_config::tls::TlsCertificate { chain: file("chain"), key: file("key"), ..first };
        server.common.certificates = vec![CertificateSource::Static(from_files)];
        let pair = Pair::new(server, upstream());
        let contexts = super::super::watch::TlsContexts::new();
        contexts.add(&pair.server);
        assert_eq!(contexts.reload(), 0);
        let name = || pair.server.certificates().chains[0].info.dns_sans().next().map(|name| name.into_owned());

        std::fs::write(folder.path().join("key"), "junk").expect("written");
        assert_eq!(contexts.reload(), 0);
        assert_eq!(name().as_deref(), Some("first"));
        assert_eq!(pair.count("listener.x.ssl.key_rotation_failed"), 1);

        write(&self_signed(&["second"], &rcgen::PKCS_ECDSA_P256_SHA256).0);
        let deadline = std::time::Duration::from_secs(10);
        let changed = async {
            while name().as_deref() != Some("second") {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            () = contexts.run() => {}
            done = tokio::time::timeout(deadline, changed) => done.expect("reloaded by the watcher"),
        }
        assert!(contexts.days_until_first_expiration(std::time::SystemTime::now()).is_some_and(|days| days > 0));
        assert_eq!(pair.count("listener.x.server_ssl_socket_factory.ssl_context_update_by_sds"), 1);
    }

    #[tokio::test]
    async fn a_change_between_reading_files_and_watching_them_is_seen() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = |name: &str| DataSource::File { path: folder.path().join(name), watched_directory: None };
        let contexts = super::super::watch::TlsContexts::new();
        // The folder of the first is not watched yet when its files change, that of the second is.
        let mut pairs = Vec::new();
        for names in [["first", "second"], ["third", "fourth"]] {
            let [(before, _), (after, _)] = names.map(|name| self_signed(&[name], &rcgen::PKCS_ECDSA_P256_SHA256));
            let write = |config: &nuncio_config::tls::TlsCertificate| {
                for (name, source) in [("chain", &config.chain), ("key", &config.key)] {
                    let DataSource::Inline(bytes) = source else { panic!("inline") };
                    std::fs::write(folder.path().join(name), bytes).expect("written");
                }
            };
            write(&before);
            let mut server = downstream();
            let from_files = nuncio_config::tls::TlsCertificate { chain: file("chain"), key: file("key"), ..before };
            server.common.certificates = vec![CertificateSource::Static(from_files)];
            let pair = Pair::new(server, upstream());
            write(&after);
            contexts.add(&pair.server);
            let name = || pair.server.certificates().chains[0].info.dns_sans().next().map(|name| name.into_owned());
            let changed = async {
                while name().as_deref() != Some(names[1]) {
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
            };
            tokio::select! {
                () = contexts.run() => {}
                done = tokio::time::timeout(std::time::Duration::from_secs(10), changed) => done.expect("reloaded"),
            }
            pairs.push(pair);
        }
    }

    #[tokio::test]
    async fn a_leaf_marked_as_authority_passes_when_a_trusted_key_signed_it() {
        use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
        let authority = |name: &str| {
            let key = KeyPair::generate().expect("a key");
            let mut params = CertificateParams::new(Vec::new()).expect("parameters");
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let certificate = params.self_signed(&key).expect("signed");
            (certificate, Issuer::new(params, key))
        };
        let ((trusted, issuer), (namesake, _)) = (authority("ca"), authority("ca"));
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec!["a.example.com".to_owned()]).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let leaf = params.signed_by(&key, &issuer).expect("signed");
        let mut server = downstream();
        server.common.certificates = vec![CertificateSource::Static(nuncio_config::tls::TlsCertificate {
            chain: DataSource::Inline(leaf.pem().into_bytes()),
            key: DataSource::Inline(key.serialize_pem().into_bytes()),
            pkcs12: false,
            password: None,
            ocsp_staple: None,
        })];
        for (authority, passes) in [(&trusted, true), (&namesake, false)] {
            let mut client = upstream();
            client.common.validation = Some(ValidationSource::Static(trust(authority)));
            let pair = Pair::new(server.clone(), client);
            let (_, _, session) = pair.connect(ClientTarget::default()).await;
            assert_eq!(session.is_ok(), passes, "{:?}", session.err());
        }
    }

    #[tokio::test]
    async fn certificates_of_version_1_and_keys_under_a_password_work() {
        let inline = |text: &str| DataSource::Inline(text.as_bytes().to_vec());
        let mut server = downstream();
        server.common.certificates = vec![CertificateSource::Static(nuncio_config::tls::TlsCertificate {
            chain: inline(include_str!("testdata/x509-v1.pem")),
            key: inline(include_str!("testdata/x509-v1-encrypted.key")),
            pkcs12: false,
            password: Some(inline("secret\n")),
            ocsp_staple: None,
        })];
        for version in [TlsVersion::V1_2, TlsVersion::V1_3] {
            let mut client = upstream();
            client.common.max_version = version;
            client.common.validation = Some(ValidationSource::Static(ValidationContext {
                trusted_ca: Some(inline(include_str!("testdata/x509-v1-ca.pem"))),
                ..ValidationContext::default()
            }));
            let pair = Pair::new(server.clone(), client);
            let (_, io, session) = pair.connect(ClientTarget::default()).await;
            io.expect("server side");
            assert!(session.expect("client side").tls.peer_validated);
        }
    }
}

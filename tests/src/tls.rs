//! TLS of the clients and of the scripted upstreams.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::case::{ClientTls, ServerTls};
use crate::certs::Certs;

/// A byte stream, plain or TLS.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// Takes every certificate; the outcome names the one that came.
#[derive(Debug)]
struct TakeAny(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for TakeAny {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Handshakes as a client. The second value says what was agreed: the protocol, the version, the server's certificate.
///
/// # Errors
/// The handshake fails.
pub async fn connect(stream: tokio::net::TcpStream, tls: &ClientTls, certs: &Certs) -> Result<(Box<dyn Io>, Value)> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions: &[&rustls::SupportedProtocolVersion] =
        if tls.max.as_deref() == Some("1.2") { &[&rustls::version::TLS12] } else { rustls::ALL_VERSIONS };
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TakeAny(provider)));
    let mut config = match &tls.cert {
        Some(name) => {
            let (chain, key) = certs.pair(name)?;
            builder.with_client_auth_cert(chain, key)?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = tls.alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    config.enable_sni = tls.sni.is_some();
    let name = tls.sni.clone().unwrap_or_else(|| "none.example".to_owned());
    let name = ServerName::try_from(name).context("the server name")?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    let (_, session) = stream.get_ref();
    let info = json!({
        "alpn": session.alpn_protocol().map(crate::text::latin1),
        "version": session.protocol_version().map(|v| format!("{v:?}")),
        "certificate": session.peer_certificates().and_then(|c| c.first()).map(|c| common_name(c)),
    });
    Ok((Box::new(stream), info))
}

/// The acceptor of an upstream.
///
/// # Errors
/// A certificate that is not there.
pub fn acceptor(tls: &ServerTls, certs: &Certs) -> Result<TlsAcceptor> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let (chain, key) = certs.pair(&tls.cert)?;
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = match &tls.client_ca {
        Some(ca) => builder.with_client_cert_verifier(
            rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(certs.roots(ca)?), provider)
                .allow_unauthenticated()
                .build()?,
        ),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = tls.alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// What an upstream saw of the TLS connection.
pub fn seen(session: &rustls::ServerConnection) -> Value {
    json!({
        "sni": session.server_name(),
        "alpn": session.alpn_protocol().map(crate::text::latin1),
        "client": session.peer_certificates().and_then(|c| c.first()).map(|c| common_name(c)),
    })
}

/// The subject's common name, the last one in the certificate (the issuer's stands before it).
fn common_name(der: &CertificateDer<'_>) -> String {
    // OID 2.5.4.3, then a string tag and a length: enough for the certificates that `certs` makes.
    let oid = [0x55, 0x04, 0x03];
    let bytes: &[u8] = der.as_ref();
    let Some(at) = bytes.windows(3).rposition(|w| w == oid) else { return String::new() };
    let length = usize::from(bytes.get(at + 4).copied().unwrap_or(0));
    crate::text::latin1(bytes.get(at + 5..at + 5 + length).unwrap_or_default())
}

//! Connections to control planes: through the proxy's own clusters, or straight to a target.

use crate::server::Server;
use nuncio_base::stats::Registry;
use nuncio_config::config_source::GoogleTls;
use nuncio_upstream::pool::tcp_connect_with;
use nuncio_upstream::{LbContext, StreamOptions};
use std::io;
use std::sync::Arc;
use xds_client::transport::{Connect, Io, LocalFuture};

/// Connects to hosts of a cluster, by its load balancing, TLS and limits.
pub(crate) struct ClusterConnect {
    server: Arc<Server>,
    cluster: Box<str>,
}

impl ClusterConnect {
    pub(crate) fn new(server: &Arc<Server>, cluster: &str) -> ClusterConnect {
        ClusterConnect { server: server.clone(), cluster: cluster.into() }
    }

    /// Whether the cluster's connections are encrypted.
    pub(crate) fn is_secure(&self) -> bool {
        self.server.context.clusters.cluster(&self.cluster).is_some_and(|cluster| cluster.config.tls.is_some())
    }
}

impl Connect for ClusterConnect {
    fn connect(&self) -> LocalFuture<io::Result<Box<dyn Io>>> {
        let (server, name) = (self.server.clone(), self.cluster.clone());
        Box::pin(async move {
            // A gRPC client speaks HTTP/2, whatever names the TLS context of the cluster has.
            let stream = connect_cluster(&server, &name, Protocol::Http2).await?;
            Ok(Box::new(stream) as Box<dyn Io>)
        })
    }
}

/// A connection that stays counted in its cluster while it lives.
pub(crate) struct Counted(nuncio_upstream::pool::TcpUpstream);

/// What will be spoken on a connection, which a TLS server is told.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

pub(super) async fn connect_cluster(server: &Server, name: &str, protocol: Protocol) -> io::Result<Counted> {
    let Some(cluster) = server.context.clusters.cluster(name) else {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("Unknown gRPC client cluster '{name}'")));
    };
    let Some(host) = cluster.choose_host(&LbContext::default()) else {
        cluster.stats.upstream_cx_none_healthy().inc();
        return Err(io::Error::new(io::ErrorKind::NotConnected, "no healthy upstream"));
    };
    let named = cluster.config.tls.as_ref().is_some_and(|tls| !tls.common.alpn_protocols.is_empty());
    let alpn: Option<&[&[u8]]> = match protocol {
        Protocol::Http2 => Some(&[b"h2"]),
        Protocol::Http1 if named => None,
        Protocol::Http1 => Some(&[b"http/1.1"]),
    };
    match tcp_connect_with(&cluster, &host, &StreamOptions::default(), alpn).await {
        Ok(stream) => {
            match protocol {
                Protocol::Http1 => cluster.stats.upstream_cx_http1_total().inc(),
                Protocol::Http2 => cluster.stats.upstream_cx_http2_total().inc(),
            }
            Ok(Counted(stream))
        }
        Err(failure) => {
            let text = failure.transport_failure_reason.unwrap_or_else(|| failure.reason.as_str().into());
            Err(io::Error::other(text.into_string()))
        }
    }
}

mod counted {
    use super::Counted;
    use std::io;
    use std::pin::Pin;
    use std::task::{Context, Poll};
    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

    impl AsyncRead for Counted {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            let before = buf.filled().len();
            let result = Pin::new(&mut self.0.io).poll_read(cx, buf);
            match &result {
                Poll::Ready(Ok(())) if buf.filled().len() == before => self.0.ended_by_host(),
                Poll::Ready(Err(_)) => self.0.ended_by_host(),
                _ => {}
            }
            result
        }
    }

    impl AsyncWrite for Counted {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.0.io).poll_write(cx, data)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0.io).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0.io).poll_shutdown(cx)
        }
    }
}

/// A `google_grpc` target: `host:port`, `dns:host:port`, `ipv4:a:port`, `unix:path`.
pub(crate) struct Target {
    authority: String,
    kind: TargetKind,
    tls: Option<Arc<nuncio_net::tls::client::ClientTlsContext>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum TargetKind {
    Tcp(String),
    Unix(String),
}

impl Target {
    pub(crate) fn parse(uri: &str, tls: Option<&GoogleTls>, registry: &Registry) -> Result<Target, String> {
        let kind = match uri.split_once(':') {
            Some(("unix", path)) => TargetKind::Unix(path.trim_start_matches("//").to_owned()),
            Some(("dns", name)) => TargetKind::Tcp(name.trim_start_matches('/').to_owned()),
            Some(("ipv4" | "ipv6", address)) => TargetKind::Tcp(address.to_owned()),
            _ => TargetKind::Tcp(uri.to_owned()),
        };
        let kind = match kind {
            TargetKind::Tcp(address) if !address.contains(':') => TargetKind::Tcp(format!("{address}:443")),
            other => other,
        };
        let authority = match &kind {
            TargetKind::Tcp(address) => address.clone(),
            TargetKind::Unix(_) => "localhost".to_owned(),
        };
        let tls = match tls {
            None => None,
            Some(credentials) => Some(google_tls(credentials, &authority, registry)?),
        };
        Ok(Target { authority, kind, tls })
    }

    pub(crate) fn authority(&self) -> &str {
        &self.authority
    }
}

fn google_tls(
    credentials: &GoogleTls,
    authority: &str,
    registry: &Registry,
) -> Result<Arc<nuncio_net::tls::client::ClientTlsContext>, String> {
    use nuncio_config::tls::{
        CertificateSource, CommonTlsContext, TlsCertificate, TlsVersion, UpstreamTlsContext, ValidationContext,
        ValidationSource,
    };
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    let certificates = match (&credentials.cert_chain, &credentials.private_key) {
        (Some(chain), Some(key)) => vec![CertificateSource::Static(TlsCertificate {
            chain: chain.clone(),
            key: key.clone(),
            pkcs12: false,
            password: None,
            ocsp_staple: None,
        })],
        _ => Vec::new(),
    };
    let context = UpstreamTlsContext {
        common: CommonTlsContext {
            min_version: TlsVersion::V1_2,
            max_version: TlsVersion::V1_3,
            cipher_suites: Vec::new(),
            curves: Vec::new(),
            certificates,
            validation: Some(ValidationSource::Static(ValidationContext {
                trusted_ca: credentials.root_certs.clone(),
                system_roots: credentials.root_certs.is_none(),
                ..ValidationContext::default()
            })),
            alpn_protocols: vec!["h2".into()],
            key_log: None,
            path: "google_grpc.channel_credentials".into(),
        },
        sni: host.into(),
        auto_host_sni: false,
        // gRPC checks the name of the server.
        auto_sni_san_validation: true,
        max_session_keys: 1,
    };
    let stats = Arc::new(nuncio_net::tls::TlsStats::client(registry, "google_grpc."));
    nuncio_net::tls::client::ClientTlsContext::new(Arc::new(context), stats).map_err(|error| error.to_string())
}

impl Connect for Target {
    fn connect(&self) -> LocalFuture<io::Result<Box<dyn Io>>> {
        let (kind, tls) = (self.kind.clone(), self.tls.clone());
        Box::pin(async move {
            use nuncio_net::connection::Plain;
            let plain = match &kind {
                TargetKind::Tcp(address) => {
                    let stream = tokio::net::TcpStream::connect(address.as_str()).await?;
                    stream.set_nodelay(true)?;
                    Plain::tcp(stream)
                }
                TargetKind::Unix(path) => Plain::unix(tokio::net::UnixStream::connect(path).await?),
            };
            let Some(tls) = tls else { return Ok(Box::new(nuncio_net::connection::Io::plain(plain)) as Box<dyn Io>) };
            let session = tls
                .connect(plain, &Default::default())
                .await
                .map_err(|error| io::Error::other(error.reason.into_string()))?;
            Ok(Box::new(session.io) as Box<dyn Io>)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_of_google_grpc_are_understood() {
        let registry = Registry::new(1, nuncio_base::stats::StatsConfig::default());
        let kind = |uri: &str| Target::parse(uri, None, &registry).unwrap().kind;
        assert_eq!(kind("xds.example:18000"), TargetKind::Tcp("xds.example:18000".into()));
        assert_eq!(kind("dns:///xds.example"), TargetKind::Tcp("xds.example:443".into()));
        assert_eq!(kind("ipv4:127.0.0.1:1"), TargetKind::Tcp("127.0.0.1:1".into()));
        assert_eq!(kind("unix:///run/x.sock"), TargetKind::Unix("/run/x.sock".into()));
        assert_eq!(kind("unix:run/x.sock"), TargetKind::Unix("run/x.sock".into()));
    }
}

//! Connections to control planes: through the proxy's own clusters, or straight to a target.

use crate::server::Server;
use bytes::Bytes;
use nuncio_base::stats::Registry;
use nuncio_config::config_source::GoogleTls;
use nuncio_upstream::pool::tcp_connect;
use nuncio_upstream::{LbContext, StreamOptions};
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use xds_client::transport::{Connect, Io, LocalFuture, RestResponse, RestTransport};

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
            let stream = connect_cluster(&server, &name).await?;
            Ok(Box::new(stream) as Box<dyn Io>)
        })
    }
}

/// A connection that stays counted in its cluster while it lives.
pub(crate) struct Counted(nuncio_upstream::pool::TcpUpstream);

async fn connect_cluster(server: &Server, name: &str) -> io::Result<Counted> {
    let Some(cluster) = server.context.clusters.cluster(name) else {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("Unknown gRPC client cluster '{name}'")));
    };
    let Some(host) = cluster.choose_host(&LbContext::default()) else {
        cluster.stats.upstream_cx_none_healthy().inc();
        return Err(io::Error::new(io::ErrorKind::NotConnected, "no healthy upstream"));
    };
    match tcp_connect(&cluster, &host, &StreamOptions::default()).await {
        Ok(stream) => Ok(Counted(stream)),
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

/// Polls over HTTP/1.1, one connection each: polls are seconds apart.
pub(crate) struct ClusterRest {
    server: Arc<Server>,
    cluster: Box<str>,
}

/// Largest answer to a poll.
const MAX_RESPONSE: usize = 256 << 20;

impl ClusterRest {
    pub(crate) fn new(server: &Arc<Server>, cluster: &str) -> ClusterRest {
        ClusterRest { server: server.clone(), cluster: cluster.into() }
    }
}

impl RestTransport for ClusterRest {
    fn post(&self, path: &str, body: Bytes) -> LocalFuture<Result<RestResponse, String>> {
        let (server, cluster, path) = (self.server.clone(), self.cluster.clone(), path.to_owned());
        Box::pin(async move { post(&server, &cluster, &path, body).await.map_err(|error| error.to_string()) })
    }
}

async fn post(server: &Server, cluster: &str, path: &str, body: Bytes) -> io::Result<RestResponse> {
    let mut stream = connect_cluster(server, cluster).await?;
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: {cluster}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         x-envoy-internal: true\r\nx-forwarded-for: {}\r\nconnection: close\r\n\r\n",
        body.len(),
        server.context.local_address(),
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(&body).await?;
    stream.flush().await?;
    let mut answer = Vec::new();
    (&mut stream).take(MAX_RESPONSE as u64).read_to_end(&mut answer).await?;
    rest_response(&answer)
}

/// The answer on a connection that was closed after it.
fn rest_response(answer: &[u8]) -> io::Result<RestResponse> {
    let bad = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").ok_or_else(|| bad("no end of headers"))?;
    let head = std::str::from_utf8(&answer[..end]).map_err(|_| bad("headers are no text"))?;
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| bad("no status line"))?;
    let mut length = None;
    let mut chunked = false;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            length = Some(value.parse::<usize>().map_err(|_| bad("bad content-length"))?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            chunked = value.eq_ignore_ascii_case("chunked");
        }
    }
    let body = &answer[end + 4..];
    let body = match (chunked, length) {
        (true, _) => unchunk(body).ok_or_else(|| bad("bad chunks"))?,
        (false, Some(length)) => body.get(..length).ok_or_else(|| bad("the body is cut short"))?.to_vec(),
        (false, None) => body.to_vec(),
    };
    Ok(RestResponse { status, body: body.into() })
}

fn unchunk(mut body: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    loop {
        let end = body.windows(2).position(|two| two == b"\r\n")?;
        let size = std::str::from_utf8(&body[..end]).ok()?.split(';').next()?.trim();
        let size = usize::from_str_radix(size, 16).ok()?;
        body = &body[end + 2..];
        if size == 0 {
            return Some(out);
        }
        out.extend_from_slice(body.get(..size)?);
        body = body.get(size.checked_add(2)?..)?;
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
            key_log_path: None,
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

    #[test]
    fn answers_to_polls_are_read_with_and_without_chunks() {
        let plain = rest_response(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab").unwrap();
        assert_eq!((plain.status, &plain.body[..]), (200, &b"ab"[..]));
        let chunked =
            rest_response(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n1;x\r\nc\r\n0\r\n\r\n");
        assert_eq!(&chunked.unwrap().body[..], b"abc");
        assert_eq!(rest_response(b"HTTP/1.1 304 Not Modified\r\n\r\n").unwrap().status, 304);
        for cut in [&b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab"[..], b"HTTP/1.1 200", b"\r\n\r\n"] {
            assert!(rest_response(cut).is_err());
        }
        assert!(rest_response(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nff\r\nab").is_err());
    }
}
